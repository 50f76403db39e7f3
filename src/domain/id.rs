//! The ids of users and items.
//!
//! Owns the one rule for what an id may be. Invariant: an [`Id`] that exists is valid. Pure.

use std::fmt;
use std::hash::{Hash, Hasher};

/// The longest user or item id, in bytes of UTF-8 (fixed by the HTTP contract).
pub const MAX_ID_BYTES: usize = 64;

// An id's length travels as one byte.
const _: () = assert!(MAX_ID_BYTES <= u8::MAX as usize);

/// A user's or an item's id: 1 to [`MAX_ID_BYTES`] bytes of UTF-8 without control characters.
///
/// Kept inline, so that a request carries its ids without allocating.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Id {
    len: u8,
    bytes: [u8; MAX_ID_BYTES],
}

/// Why a string is not an [`Id`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdError {
    /// No bytes at all.
    Empty,
    /// More than [`MAX_ID_BYTES`] bytes.
    TooLong,
    /// Not UTF-8.
    NotUtf8,
    /// A control character (Unicode category Cc).
    Control,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IdError::Empty => "is empty",
            IdError::TooLong => "is longer than 64 bytes",
            IdError::NotUtf8 => "is not UTF-8",
            IdError::Control => "has a control character",
        })
    }
}

impl std::error::Error for IdError {}

impl Hash for Id {
    /// Only the bytes in use: the others are always zero, and hashing them too takes longer than the lookup that follows.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Id {
    /// Checks `bytes` and keeps a copy of them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Id, IdError> {
        if bytes.is_empty() {
            return Err(IdError::Empty);
        }
        let mut id = Id { len: bytes.len() as u8, bytes: [0; MAX_ID_BYTES] };
        id.bytes.get_mut(..bytes.len()).ok_or(IdError::TooLong)?.copy_from_slice(bytes);
        // Plain ASCII is nearly all there is: decide it without decoding.
        if bytes.iter().all(|b| (0x20..0x7f).contains(b)) {
            return Ok(id);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| IdError::NotUtf8)?;
        if text.chars().any(char::is_control) {
            return Err(IdError::Control);
        }
        Ok(id)
    }

    /// The id's bytes, as the client sent them once percent-decoded.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl std::str::FromStr for Id {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Id, IdError> {
        Id::from_bytes(s.as_bytes())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        let check = |text: &[u8], want: Result<(), IdError>| {
            assert_eq!(Id::from_bytes(text).map(|id| assert_eq!(id.as_bytes(), text)), want, "{text:?}");
        };
        check(b"a", Ok(()));
        check("a:b|c\"d' e\u{1f600}".as_bytes(), Ok(()));
        check(&[b'x'; 64], Ok(()));
        check(&[b'x'; 65], Err(IdError::TooLong));
        check(&[b'x'; 400], Err(IdError::TooLong));
        check(b"", Err(IdError::Empty));
        check(b"a\tb", Err(IdError::Control));
        check(b"a\0", Err(IdError::Control));
        check(b"\x7f", Err(IdError::Control));
        check("\u{85}".as_bytes(), Err(IdError::Control));
        check(b"\xff", Err(IdError::NotUtf8));
        check(b"\xc3", Err(IdError::NotUtf8));
    }
}
