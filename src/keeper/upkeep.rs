//! Regular work: writing what the ledger lacks, and clearing away what has ended.

use super::distributed::Keeper;
use crate::domain::{HoldNumber, Record, RecordKind, Records, SaleId, Terms};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often ledger and Redis are compared.
const RECONCILE_EVERY: Duration = Duration::from_secs(10);
/// Only records older than this are reconciled, so that it does not collide with live writers.
const SETTLED_MS: u64 = 5_000;
/// How long after its end a sale's state is cleared away.
const CLEAR_AFTER_MS: u64 = 60_000;
/// Records that the ledger lacks are written in batches of this size.
const BATCH: usize = 2_000;

/// When what was done last.
#[derive(Default)]
pub(super) struct Upkeep {
    reconciled: Option<Instant>,
}

impl Keeper {
    /// What is due of the regular work.
    pub(super) fn take_care(&mut self) -> Result<(), String> {
        self.place_stale()?;
        if self.upkeep.reconciled.is_some_and(|last| last.elapsed() < RECONCILE_EVERY) {
            return Ok(());
        }
        self.upkeep.reconciled = Some(Instant::now());
        let now_ms = self.store.now_ms()?;
        let rows = self.rows(now_ms)?;
        for row in rows.iter().filter(|row| row.opened && row.terms.starts_ms <= now_ms) {
            let Some(in_redis) = self.store.counts(row.terms.sale)? else { continue };
            let in_ledger = self.ledger.counts(row.terms.sale).map_err(|e| e.to_string())?;
            let lacking = in_redis.0 > in_ledger.0 || in_redis.1 > in_ledger.1;
            let over = row.terms.ends_ms + CLEAR_AFTER_MS < now_ms;
            if !lacking && !over {
                continue;
            }
            // One instance at a time; whoever does not get the lock comes back.
            if !self.ledger.lock_opening(Duration::ZERO).map_err(|e| e.to_string())? {
                continue;
            }
            let done = self.reconcile(&row.terms, now_ms, over);
            self.ledger.unlock_opening();
            done?;
        }
        Ok(())
    }

    fn reconcile(&mut self, terms: &Terms, now_ms: u64, over: bool) -> Result<(), String> {
        let added = self.write_missing(terms.sale, now_ms)?;
        if added > 0 {
            tracing::warn!(sale = terms.sale.0, records = added, "written to the ledger by reconciliation");
        }
        if over {
            self.store.unlink(terms.sale)?;
            tracing::info!(sale = terms.sale.0, "cleared away");
        }
        Ok(())
    }

    /// Writes what Redis holds of `sale` and the ledger lacks. Returns how many records.
    fn write_missing(&mut self, sale: SaleId, now_ms: u64) -> Result<u64, String> {
        let mut in_ledger = HashMap::new();
        let each = &mut |row: crate::ledger::HoldRow| {
            in_ledger.insert(row.number.0, (row.has_checkout, row.purchased_ms.is_some()));
        };
        self.ledger.holds(sale, each).map_err(|e| e.to_string())?;
        let mut missing = Vec::new();
        let settled = now_ms.saturating_sub(SETTLED_MS);
        self.store.holds(sale, &mut |number, known| {
            let (has_checkout, has_purchase) = in_ledger.get(&number).copied().unwrap_or_default();
            let record = |kind, at_ms, expires_ms| Record {
                kind,
                number: HoldNumber(number),
                user: known.user,
                item: known.item,
                at_ms,
                expires_ms,
            };
            if !has_checkout && known.taken_ms <= settled {
                missing.push(record(RecordKind::Hold, known.taken_ms, known.expires_ms));
            }
            if let Some(at_ms) = known.purchased_ms.filter(|at_ms| !has_purchase && *at_ms <= settled) {
                missing.push(record(RecordKind::Purchase, at_ms, 0));
            }
        })?;
        let mut added = 0;
        for chunk in missing.chunks(BATCH) {
            let mut records = Records::new(sale, self.epoch.number);
            chunk.iter().for_each(|record| records.push(record));
            added += self.ledger.add_missing(&records).map_err(|e| e.to_string())?;
            self.ledger.still_opening().map_err(|e| e.to_string())?;
        }
        Ok(added)
    }
}
