//! Rows in the form of Postgres' binary COPY.
//!
//! Owns the bytes, without I/O. Invariant: a finished table is a complete COPY stream, header to trailer, of rows with the
//! columns of `HOLDS` or of `PURCHASES` in that order. Public so that the benchmarks can time it. Leaves transactions to
//! `write`.

use super::tally::Tally;
use super::values::micros;
use crate::code::{Codes, MAX_SALE};
use crate::domain::{HoldKey, HoldNumber, RecordKind, RecordRef, Records, SaleId};
use crate::ledger::LedgerError;
use bytes::Bytes;

/// The columns of a hold's row.
pub const HOLDS: &str = "sale_id, hold, code, user_id, item_id, created_at, expires_at";
/// The columns of a purchase's row.
pub(super) const PURCHASES: &str = "sale_id, hold, code, user_id, item_id, created_at";

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1i16).to_be_bytes();
/// How many bytes a table's buffer keeps between two batches: some 25,000 rows.
const KEEP_BYTES: usize = 4 << 20;

/// A number that the ledger's columns cannot keep. No instance gives one out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfRange {
    /// The id of a sale.
    #[error("the sale {0} is beyond {MAX_SALE}, the greatest id that a ledger keeps")]
    Sale(SaleId),
    /// The number of a hold.
    #[error("the hold {} is beyond 63 bits", .0.0)]
    Hold(HoldNumber),
}

impl From<OutOfRange> for LedgerError {
    fn from(error: OutOfRange) -> LedgerError {
        LedgerError::failed(error)
    }
}

/// The COPY stream of one table.
#[derive(Debug, Default)]
pub struct Table {
    /// The stream. [`Rows::encode`] uses its memory again.
    pub bytes: Bytes,
    /// How many rows the stream has.
    pub rows: u64,
}

/// The COPY streams of one transaction.
#[derive(Debug, Default)]
pub struct Rows {
    /// For the holds' table.
    pub holds: Table,
    /// For the purchases' table.
    pub purchases: Table,
    /// How many rows of both there are, by moment.
    pub(super) tally: Tally,
}

impl Rows {
    /// Encodes all records of `batches`, into the memory that the previous call used.
    pub fn encode(&mut self, batches: &[&Records], codes: &Codes) -> Result<(), OutOfRange> {
        self.encode_where(batches, codes, |_| true)
    }

    /// [`Rows::encode`] for those records alone whose [`RecordRef::repeated`] is `repeated`.
    pub(super) fn encode_part(
        &mut self,
        batches: &[&Records],
        codes: &Codes,
        repeated: bool,
    ) -> Result<(), OutOfRange> {
        self.encode_where(batches, codes, |record| record.repeated == repeated)
    }

    /// Whether neither table has a row.
    pub(super) fn is_empty(&self) -> bool {
        self.holds.rows + self.purchases.rows == 0
    }

    fn encode_where(
        &mut self,
        batches: &[&Records],
        codes: &Codes,
        wanted: impl Fn(&RecordRef<'_>) -> bool,
    ) -> Result<(), OutOfRange> {
        let mut holds = self.holds.start();
        let mut purchases = self.purchases.start();
        self.tally.clear();
        for batch in batches {
            let sale = i64::try_from(batch.sale.0).ok().filter(|sale| *sale as u64 <= MAX_SALE);
            let sale = sale.ok_or(OutOfRange::Sale(batch.sale))?;
            for record in batch.iter().filter(&wanted) {
                let number = record.number;
                let hold = i64::try_from(number.0).map_err(|_| OutOfRange::Hold(number))?;
                let code = codes.mint_block(HoldKey { sale: batch.sale, number });
                self.tally.add(sale, record.at_ms, record.kind);
                match record.kind {
                    RecordKind::Hold => {
                        row(&mut holds, 7, sale, hold, &code, &record);
                        field(&mut holds, &micros(record.expires_ms).to_be_bytes());
                        self.holds.rows += 1;
                    }
                    RecordKind::Purchase => {
                        row(&mut purchases, 6, sale, hold, &code, &record);
                        self.purchases.rows += 1;
                    }
                }
            }
        }
        self.holds.finish(holds);
        self.purchases.finish(purchases);
        Ok(())
    }
}

impl Table {
    /// The previous stream's memory, with a header in it; new memory if that has grown beyond [`KEEP_BYTES`].
    fn start(&mut self) -> Vec<u8> {
        self.rows = 0;
        // No copy: once a stream was sent, this is the only handle to its memory.
        let mut memory = Vec::from(std::mem::take(&mut self.bytes));
        if memory.capacity() > KEEP_BYTES {
            memory = Vec::new();
        }
        memory.clear();
        memory.extend_from_slice(HEADER);
        memory
    }

    fn finish(&mut self, mut memory: Vec<u8>) {
        memory.extend_from_slice(&TRAILER);
        self.bytes = Bytes::from(memory);
    }
}

/// Writes the columns that both tables' rows begin with.
fn row(out: &mut Vec<u8>, columns: i16, sale: i64, hold: i64, code: &[u8; 16], record: &RecordRef<'_>) {
    out.extend_from_slice(&columns.to_be_bytes());
    field(out, &sale.to_be_bytes());
    field(out, &hold.to_be_bytes());
    field(out, code);
    field(out, record.user);
    field(out, record.item);
    field(out, &micros(record.at_ms).to_be_bytes());
}

/// Writes one value behind its length. All values are ids, numbers and codes, far below 2 GiB.
fn field(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(&(value.len() as i32).to_be_bytes());
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Record;

    fn records(kinds: &[RecordKind]) -> Records {
        let mut records = Records::new(SaleId(1), 1);
        for (i, kind) in kinds.iter().enumerate() {
            records.push(&Record {
                kind: *kind,
                number: HoldNumber(i as u64),
                user: "u".parse().unwrap(),
                item: "it".parse().unwrap(),
                at_ms: 946_684_800_001,
                expires_ms: 946_684_800_002,
            });
        }
        records
    }

    #[test]
    fn the_bytes_are_those_of_the_documentation() {
        let codes = Codes::new(&[3; 16]);
        let mut rows = Rows::default();
        rows.encode(&[&records(&[RecordKind::Purchase])], &codes).unwrap();
        let mut want = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x06".to_vec();
        want.extend(b"\0\0\0\x08\0\0\0\0\0\0\0\x01\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\x10");
        want.extend(codes.mint_block(HoldKey { sale: SaleId(1), number: HoldNumber(0) }));
        want.extend(b"\0\0\0\x01u\0\0\0\x02it\0\0\0\x08\0\0\0\0\0\0\x03\xe8\xff\xff");
        assert_eq!((rows.purchases.bytes.as_ref(), rows.purchases.rows), (want.as_slice(), 1));
        assert_eq!((rows.holds.bytes.len(), rows.holds.rows), (HEADER.len() + 2, 0));
    }

    #[test]
    fn memory_is_used_again_and_old_rows_are_gone() {
        let codes = Codes::new(&[3; 16]);
        let mut rows = Rows::default();
        rows.encode(&[&records(&[RecordKind::Hold; 50])], &codes).unwrap();
        let (at, long) = (rows.holds.bytes.as_ptr(), rows.holds.bytes.len());
        rows.encode(&[&records(&[RecordKind::Hold])], &codes).unwrap();
        assert_eq!(rows.holds.rows, 1);
        assert!(rows.holds.bytes.len() < long / 10);
        assert_eq!(rows.holds.bytes.as_ptr(), at);
    }

    #[test]
    fn numbers_that_no_ledger_keeps() {
        let mut far = Records::new(SaleId(u64::MAX), 1);
        assert!(Rows::default().encode(&[&far], &Codes::new(&[0; 16])).is_err());
        far.reset(SaleId(1), 1);
        far.push(&Record {
            number: HoldNumber(1 << 63),
            ..records(&[RecordKind::Hold]).iter().next().unwrap().to_owned().unwrap()
        });
        assert!(Rows::default().encode(&[&far], &Codes::new(&[0; 16])).is_err());
    }
}
