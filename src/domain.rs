//! The words of a flash sale: ids, terms, requests, outcomes.
//!
//! Owns the types that every other module speaks in, and the one rule for what an id may be.
//! Invariant: an [`Id`] that exists is valid. Refuses to know HTTP, Redis, SQL, threads and clocks;
//! it imports nothing of this crate.

mod hold;
mod sale;

pub use hold::{HoldFacts, HoldState};
pub use sale::{NamedSale, SaleId, Terms, Utc};

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

/// A hold's number, unique over all instances: the instance in the high bits, a counter below.
///
/// Never above `i64::MAX`, since both ledgers keep it as a signed 64-bit integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldNumber(pub u64);

/// What a code names: one hold of one sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldKey {
    /// The sale that the hold was taken in.
    pub sale: SaleId,
    /// Its number.
    pub number: HoldNumber,
}

/// The epoch of a process that runs by itself: there is no second opinion to fence off.
pub const EMBEDDED_EPOCH: u64 = 1;

/// What a shopper asks for.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Take an item off the stock for `user`.
    Checkout {
        /// Who asks.
        user: Id,
        /// What he wants.
        item: Id,
    },
    /// Redeem a hold.
    Purchase {
        /// What the code names.
        hold: HoldKey,
    },
}

/// What the inventory decided. Business results are outcomes, not errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An item was taken off the stock.
    Held {
        /// The new hold.
        hold: HoldKey,
        /// When it expires, unix milliseconds.
        expires_ms: u64,
    },
    /// No item is free.
    SoldOut {
        /// Milliseconds to the next moment at which one can be.
        retry_ms: u64,
    },
    /// The user holds or has purchased as many as the sale allows.
    UserLimit {
        /// Milliseconds: the hold time, or the time to the sale's end if that is shorter.
        retry_ms: u64,
    },
    /// The hold was redeemed now.
    Purchased {
        /// What was bought.
        item: Id,
    },
    /// The hold had been redeemed before.
    AlreadyPurchased {
        /// What was bought then.
        item: Id,
    },
    /// Not a hold of a running sale, or expired.
    InvalidCode,
    /// A genuine code, but its hold was lost with Redis and nothing can be sold for it.
    HoldLost,
    /// No decision is possible now. The effect may have happened.
    Unavailable,
}

/// Which fact a record states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    /// A hold was taken (a row of `checkout_attempts`).
    Hold,
    /// A hold was redeemed (a row of `purchases`).
    Purchase,
}

/// One fact for the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which fact.
    pub kind: RecordKind,
    /// The hold's number.
    pub number: HoldNumber,
    /// Who.
    pub user: Id,
    /// What.
    pub item: Id,
    /// When it happened by the inventory's clock, unix milliseconds.
    pub at_ms: u64,
    /// When the hold expires, unix milliseconds (0 on a purchase).
    pub expires_ms: u64,
}

/// Facts of one sale, decided under one epoch, on their way to the ledger.
///
/// Flat: the ids stand one after the other in `text`, so that filling and recycling a batch allocates nothing.
#[derive(Clone, Debug)]
pub struct Records {
    /// The sale of all of them.
    pub sale: SaleId,
    /// The epoch that they were decided under.
    pub epoch: u64,
    entries: Vec<Entry>,
    text: Vec<u8>,
    repeated: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: RecordKind,
    repeated: bool,
    number: HoldNumber,
    at_ms: u64,
    expires_ms: u64,
    user_len: u8,
    item_len: u8,
}

/// A [`Record`] lent out of a [`Records`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Which fact.
    pub kind: RecordKind,
    /// The hold's number.
    pub number: HoldNumber,
    /// Who, as a valid id's bytes.
    pub user: &'a [u8],
    /// What, as a valid id's bytes.
    pub item: &'a [u8],
    /// When it happened, unix milliseconds.
    pub at_ms: u64,
    /// When the hold expires, unix milliseconds (0 on a purchase).
    pub expires_ms: u64,
    /// Whether the ledger may have it already, see [`Records::push_repeated`].
    pub repeated: bool,
}

impl RecordRef<'_> {
    /// A copy that owns its ids.
    pub fn to_owned(&self) -> Result<Record, IdError> {
        Ok(Record {
            kind: self.kind,
            number: self.number,
            user: Id::from_bytes(self.user)?,
            item: Id::from_bytes(self.item)?,
            at_ms: self.at_ms,
            expires_ms: self.expires_ms,
        })
    }
}

impl Records {
    /// No facts yet, of `sale` under `epoch`.
    pub fn new(sale: SaleId, epoch: u64) -> Records {
        Records { sale, epoch, entries: Vec::new(), text: Vec::new(), repeated: 0 }
    }

    /// Forgets the facts and keeps the memory.
    pub fn reset(&mut self, sale: SaleId, epoch: u64) {
        self.sale = sale;
        self.epoch = epoch;
        self.entries.clear();
        self.text.clear();
        self.repeated = 0;
    }

    /// Adds one fact that no earlier record states.
    pub fn push(&mut self, record: &Record) {
        self.add(record, false);
    }

    /// Adds one fact that an earlier record may state, so that the ledger may have it already. The writer keeps such
    /// facts out of the transaction of the others: a row that exists would roll all of them back.
    pub fn push_repeated(&mut self, record: &Record) {
        self.add(record, true);
        self.repeated += 1;
    }

    /// How many facts were added by [`Records::push_repeated`].
    pub fn repeated(&self) -> usize {
        self.repeated
    }

    fn add(&mut self, record: &Record, repeated: bool) {
        let (user, item) = (record.user.as_bytes(), record.item.as_bytes());
        self.entries.push(Entry {
            kind: record.kind,
            repeated,
            number: record.number,
            at_ms: record.at_ms,
            expires_ms: record.expires_ms,
            user_len: user.len() as u8,
            item_len: item.len() as u8,
        });
        self.text.extend_from_slice(user);
        self.text.extend_from_slice(item);
    }

    /// How many facts there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The facts in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let mut rest = self.text.as_slice();
        self.entries.iter().map(move |e| {
            let (user, tail) = rest.split_at_checked(usize::from(e.user_len)).unwrap_or_default();
            let (item, tail) = tail.split_at_checked(usize::from(e.item_len)).unwrap_or_default();
            rest = tail;
            RecordRef {
                kind: e.kind,
                number: e.number,
                user,
                item,
                at_ms: e.at_ms,
                expires_ms: e.expires_ms,
                repeated: e.repeated,
            }
        })
    }
}

/// All that the ledger knows of one hold: the checkout's row, the purchase's row, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldRow {
    /// The hold's number.
    pub number: HoldNumber,
    /// Who.
    pub user: Id,
    /// What.
    pub item: Id,
    /// When it was taken, unix milliseconds (the purchase's time if only that row is there).
    pub taken_ms: u64,
    /// When it expires, unix milliseconds (0 if only the purchase's row is there).
    pub expires_ms: u64,
    /// When it was redeemed, unix milliseconds.
    pub purchased_ms: Option<u64>,
    /// Whether the checkout's row is there.
    pub has_checkout: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
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

    #[test]
    fn records_keep_their_order_and_text() {
        let mut records = Records::new(SaleId(7), 3);
        let rows: Vec<Record> = (0..5u64)
            .map(|i| Record {
                kind: if i % 2 == 0 { RecordKind::Hold } else { RecordKind::Purchase },
                number: HoldNumber(i),
                user: format!("u{}", "x".repeat(i as usize)).parse().unwrap(),
                item: format!("item {i}").parse().unwrap(),
                at_ms: i,
                expires_ms: i + 1,
            })
            .collect();
        rows.iter().for_each(|r| records.push(r));
        let back: Vec<Record> = records.iter().map(|r| r.to_owned().unwrap()).collect();
        assert_eq!(back, rows);
        records.reset(SaleId(8), 4);
        assert!(records.is_empty() && records.iter().next().is_none());
    }
}
