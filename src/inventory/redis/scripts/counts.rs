//! `lua/counts.lua`: reads how much a sale has decided, and makes all later decisions count for a later millisecond.

use super::eval;
use super::layout::state_key;
use crate::domain::SaleId;
use redis::Cmd;

/// The script.
pub const TEXT: &str = include_str!("../../../../lua/counts.lua");

/// How much a sale has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The time of the last decision that is counted, unix milliseconds.
    pub upto_ms: u64,
    /// Holds whose checkout the ledger should have: all that there ever were, and those that found no place in the state.
    pub taken: u64,
    /// Holds that were redeemed.
    pub purchased: u64,
}

/// Asks on behalf of `ledger`. A state of another ledger is only read.
pub fn call(sale: SaleId, ledger: Option<&str>) -> Cmd {
    let mut call = eval(TEXT, &[&state_key(sale)]);
    call.arg(ledger.unwrap_or_default());
    call
}

/// Reads the fields of the reply: the ledger that the state names, and its counts; `None` in place of counts that are missing or
/// cannot be read.
pub fn read(found: &[Option<String>]) -> (Option<&str>, Option<Counts>) {
    let text = |at: usize| found.get(at)?.as_deref();
    let number = |at: usize| text(at)?.parse::<u64>().ok();
    let counts = || {
        let (upto_ms, taken, purchased) = (number(0)?, number(1)?, number(2)?);
        Some(Counts { upto_ms, taken: taken.saturating_add(number(3).unwrap_or(0)), purchased })
    };
    (text(4), counts())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        let reply = |texts: [&str; 6]| texts.map(|text| (!text.is_empty()).then(|| text.to_owned()));
        let counts = Counts { upto_ms: 9, taken: 6, purchased: 2 };
        assert_eq!(read(&reply(["9", "5", "2", "1", "a", "open"])), (Some("a"), Some(counts)));
        assert_eq!(read(&reply(["9", "6", "2", "", "", "open"])), (None, Some(counts)));
        for bad in [["", "6", "2", "", "a", ""], ["9", "x", "2", "", "a", ""], ["9", "6", "", "", "a", ""]] {
            assert_eq!(read(&reply(bad)), (Some("a"), None));
        }
        assert_eq!(read(&[]), (None, None));
    }
}
