//! `lua/open.lua`: puts a sale's rebuilt state in the place of the one that is there, in one step.

use super::eval;
use super::layout::{keep_until, queue_key, state_key};
use crate::domain::Terms;
use redis::Cmd;

/// The script.
pub const TEXT: &str = include_str!("../../../../lua/open.lua");

/// Why the state was not put in place. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `E`: this newer epoch is there.
    Epoch(u64),
    /// `O`: a state of this epoch sells there already.
    Selling,
    /// `N`: no state was built for this epoch.
    NotBuilt,
}

/// Puts the state that was built under the keys `built` (state, queue) for `epoch` in the place of the sale's.
pub fn call(terms: &Terms, epoch: u64, built: (&str, &str)) -> Cmd {
    let (state, queue) = (state_key(terms.sale), queue_key(terms.sale));
    let mut call = eval(TEXT, &[&state, &queue, built.0, built.1]);
    call.arg(epoch).arg(keep_until(terms));
    call
}

/// Reads the reply; `None` if it is not one.
pub fn read(reply: &[u8]) -> Option<Result<(), Refusal>> {
    match reply {
        b"K" => Some(Ok(())),
        b"O" => Some(Err(Refusal::Selling)),
        b"N" => Some(Err(Refusal::NotBuilt)),
        _ => {
            let epoch = std::str::from_utf8(reply.strip_prefix(b"E ")?).ok()?;
            Some(Err(Refusal::Epoch(epoch.parse().ok()?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        assert_eq!(read(b"K"), Some(Ok(())));
        assert_eq!(read(b"O"), Some(Err(Refusal::Selling)));
        assert_eq!(read(b"N"), Some(Err(Refusal::NotBuilt)));
        assert_eq!(read(b"E 7"), Some(Err(Refusal::Epoch(7))));
        for nonsense in [&b""[..], b"K ", b"E x", b"Q"] {
            assert_eq!(read(nonsense), None, "{nonsense:?}");
        }
    }
}
