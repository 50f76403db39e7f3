//! Records: facts for the ledger, one by one and in batches.
//!
//! Owns the batch that a worker fills and the writer reads. Invariant: a batch gives its facts back in the order in which they
//! were added, and is of one sale and one epoch; filling and recycling it allocates nothing once it has grown. Pure.

use super::hold::HoldNumber;
use super::id::{Id, IdError};
use super::sale::SaleId;

/// The epoch of an embedded process: it is the only one, so no other instance has to be fenced off.
pub const EMBEDDED_EPOCH: u64 = 1;

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
    /// The number of the hold that the fact is about.
    pub number: HoldNumber,
    /// The user who took the hold.
    pub user: Id,
    /// The item that was taken off the stock.
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
    /// The number of the hold that the fact is about.
    pub number: HoldNumber,
    /// The user who took the hold, as a valid id's bytes.
    pub user: &'a [u8],
    /// The item that was taken off the stock, as a valid id's bytes.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
