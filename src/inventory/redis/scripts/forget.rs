//! `lua/forget.lua`: throws away what a closed state holds.

use super::layout::{keep_until, queue_key, state_key};
use super::{Refusal, eval, read_done};
use crate::domain::Terms;
use redis::Cmd;

/// The script.
pub const TEXT: &str = include_str!("../../../../lua/forget.lua");

/// Empties the state that was closed for `epoch`.
pub fn call(terms: &Terms, epoch: u64, ledger: Option<&str>) -> Cmd {
    let mut call = eval(TEXT, &[&state_key(terms.sale), &queue_key(terms.sale)]);
    call.arg(epoch).arg(keep_until(terms)).arg(ledger.unwrap_or_default());
    call
}

/// Reads the reply; `None` if it is not one. [`Refusal::Epoch`]: the state is not closed for the epoch, it carries this one.
pub fn read(reply: &[u8]) -> Option<Result<(), Refusal>> {
    read_done(reply)
}
