//! `lua/replan.lua`: gives a sale that has not begun the terms that the ledger has for it.

use super::layout::state_key;
use super::{Refusal, eval, read_done};
use crate::domain::Terms;
use redis::Cmd;

/// The script.
pub const TEXT: &str = concat!(include_str!("../../../../lua/time.lua"), include_str!("../../../../lua/replan.lua"));

/// Gives the sale the items, the limit and the hold time of `terms`. Redis' clock is not believed beyond `latest_ms` (unix
/// milliseconds).
pub fn call(terms: &Terms, epoch: u64, latest_ms: u64) -> Cmd {
    let mut call = eval(TEXT, &[&state_key(terms.sale)]);
    call.arg(epoch).arg(latest_ms).arg(terms.items).arg(terms.user_limit).arg(terms.hold_ms);
    call
}

/// Reads the reply; `None` if it is not one. [`Refusal::NotOn`]: the sale has begun, or has holds.
pub fn read(reply: &[u8]) -> Option<Result<(), Refusal>> {
    read_done(reply)
}
