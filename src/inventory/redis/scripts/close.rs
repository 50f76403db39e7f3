//! `lua/close.lua`: stops a sale's state from selling under an older epoch.

use super::layout::{keep_until, state_key};
use super::{Refusal, eval, read_done};
use crate::domain::Terms;
use redis::Cmd;

/// The script.
pub const TEXT: &str = include_str!("../../../../lua/close.lua");

/// Closes the sale for `epoch`. A state of another ledger than `ledger` is replaced, where that is known.
pub fn call(terms: &Terms, epoch: u64, ledger: Option<&str>) -> Cmd {
    let mut call = eval(TEXT, &[&state_key(terms.sale)]);
    call.arg(epoch).arg(keep_until(terms)).arg(ledger.unwrap_or_default());
    call
}

/// Reads the reply; `None` if it is not one. [`Refusal::Epoch`]: the state carries this epoch or a newer one.
pub fn read(reply: &[u8]) -> Option<Result<(), Refusal>> {
    read_done(reply)
}
