//! What the keeper asks Postgres about records, and the records that it writes itself.
//!
//! Owns the pages of holds, the rows that are added beside the writer, and the quarantine. Invariant: rows are added only
//! under the shared lock of their epoch, as the writer's are. Leaves to the keeper which records are missing, and which do not fit.

use super::ledger::PostgresLedger;
use super::values::{PgTimestamp, signed};
use super::{WRITE_LIMIT, counting, write};
use crate::domain::{HoldKey, HoldNumber, RecordKind, Records, SaleId};
use crate::ledger::{Decided, HoldRow, LedgerError, SharedRecords};

impl SharedRecords for PostgresLedger {
    fn has_all(&mut self, sale: SaleId, decided: &Decided) -> Result<bool, LedgerError> {
        let decided = *decided;
        self.run(async move |wire| counting::has_all(wire, sale, &decided).await)
    }

    fn page_of_holds(
        &mut self,
        sale: SaleId,
        after: Option<HoldNumber>,
        each: &mut dyn FnMut(HoldRow),
    ) -> Result<Option<HoldNumber>, LedgerError> {
        self.read_page(sale, after, each)
    }

    fn add_missing(&mut self, records: &Records) -> Result<u64, LedgerError> {
        let codes = self.codes()?;
        self.rows.encode(&[records], &codes)?;
        let PostgresLedger { work, rows, .. } = self;
        let rows = &*rows;
        let epoch = records.epoch;
        let new = work.run_within(WRITE_LIMIT, async move |wire| write::staged(wire, &[epoch], rows).await)?;
        Ok(new)
    }

    fn quarantine(&mut self, records: &Records, reason: &str) -> Result<(), LedgerError> {
        let codes = self.codes()?;
        let sale = signed(records.sale.0)?;
        let count = records.len();
        let mut kinds = Vec::with_capacity(count);
        let mut holds = Vec::with_capacity(count);
        let mut blocks = Vec::new();
        let mut users = Vec::new();
        let mut items = Vec::new();
        let mut moments = Vec::new();
        for record in records.iter() {
            kinds.push(match record.kind {
                RecordKind::Hold => "hold",
                RecordKind::Purchase => "purchase",
            });
            holds.push(signed(record.number.0)?);
            blocks.push(codes.mint_block(HoldKey { sale: records.sale, number: record.number }).to_vec());
            users.push(std::str::from_utf8(record.user).unwrap_or_default());
            items.push(std::str::from_utf8(record.item).unwrap_or_default());
            moments.push(PgTimestamp::of(record.at_ms));
        }
        self.run(async move |wire| {
            // Once for each fact: after an error the same call is repeated.
            const QUARANTINE: &str = "INSERT INTO quarantined_records \
                (sale_id, reason, kind, hold, code, user_id, item_id, created_at) \
                SELECT $1, $2, * FROM unnest($3::text[], $4::bigint[], $5::bytea[], $6::text[], $7::text[], \
                $8::timestamptz[]) ON CONFLICT DO NOTHING";
            wire.client
                .execute(QUARANTINE, &[&sale, &reason, &kinds, &holds, &blocks, &users, &items, &moments])
                .await?;
            Ok(())
        })
    }
}
