//! The identity of a ledger.
//!
//! Owns its form: 32 hex digits. Invariant: the text of an identity reads back as the same identity. Leaves storing it to each
//! ledger, and comparing it to the keeper.

use super::error::LedgerError;
use std::fmt;
use std::str::FromStr;

/// A ledger's identity: 128 random bits, made once for each ledger. A restored backup has the identity of its original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LedgerId(u128);

impl LedgerId {
    /// A new identity, from the operating system's random numbers.
    pub(super) fn random() -> Result<LedgerId, LedgerError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|e| LedgerError::about("the system gives no random bytes for an identity", e))?;
        Ok(LedgerId(u128::from_be_bytes(bytes)))
    }

    /// The identity that stands as `text` in a ledger's table.
    pub(super) fn from_row(text: &str) -> Result<LedgerId, LedgerError> {
        text.parse().map_err(|()| LedgerError::failed(format!("ledger_identity has {text:?}, not 32 hex digits")))
    }
}

impl fmt::Display for LedgerId {
    /// 32 lower-case hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for LedgerId {
    type Err = ();

    /// From 32 hex digits.
    fn from_str(text: &str) -> Result<LedgerId, ()> {
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(LedgerId).map_err(drop)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_32_hex_digits() {
        let id = LedgerId::random().unwrap();
        assert_ne!(id, LedgerId::random().unwrap());
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(LedgerId(10).to_string(), format!("{}a", "0".repeat(31)));
        for bad in ["", "a", &"0".repeat(31), &"0".repeat(33), &"g".repeat(32), &format!("+{}", "0".repeat(31))] {
            assert_eq!(bad.parse::<LedgerId>(), Err(()), "{bad}");
        }
        let why = LedgerId::from_row("x").unwrap_err().to_string();
        assert!(why.contains("ledger_identity"), "{why}");
    }
}
