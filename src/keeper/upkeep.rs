//! Regular work: writing what the ledger lacks, and clearing away what has ended.
//!
//! Invariants: a row is written only of a fact that Redis holds; a sale's keys are removed only once the ledger has all
//! that they hold. Refuses to judge: what does not agree is settled by rebuilding, elsewhere.

use super::distributed::{Keeper, is_due};
use super::merge::lacking;
use super::store::Counts;
use crate::domain::SaleId;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often ledger and Redis are compared for the sales that are open.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// How often the sales that have ended are looked for, among all keys in Redis: however long nobody was there, what
/// still has keys is found.
const SWEEP_EVERY: Duration = Duration::from_secs(15);
/// After an outage or an overflow it does not wait that long, but this long: they come in series.
const HURRY: Duration = Duration::from_secs(1);
/// Only records older than this are reconciled, so that it does not collide with live writers.
const SETTLED_MS: u64 = 5_000;
/// How long after its end a sale's state is cleared away.
const CLEAR_AFTER_MS: u64 = 60_000;

// All that a sale decided is settled when it is cleared away.
const _: () = assert!(CLEAR_AFTER_MS > 2 * SETTLED_MS);

/// When what was done last.
#[derive(Default)]
pub(super) struct Upkeep {
    compared: Option<Instant>,
    swept: Option<Instant>,
    /// What Redis had of each sale at the last comparison: by now the ledger should have it.
    seen: HashMap<SaleId, Counts>,
    overflowed: u64,
    /// How many had overflowed at the last comparison.
    overflowed_then: u64,
    hurried: bool,
}

impl Upkeep {
    /// Records may be missing: the next comparison is a thorough one, and comes soon.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }
}

impl Keeper {
    /// What is due of the regular work.
    pub(super) fn take_care(&mut self) -> Result<(), String> {
        self.place_stale()?;
        if self.inventory.is_none() {
            // Starting: shoppers wait for it, and nothing can be missing that is not missing a moment later.
            return Ok(());
        }
        let overflowed = self.recorder.counters().overflowed.load(Ordering::Relaxed);
        let before = std::mem::replace(&mut self.upkeep.overflowed, overflowed);
        if before != overflowed {
            let records = overflowed - before;
            tracing::warn!(records, "the ledger cannot keep up: records are left to reconciliation");
            self.upkeep.hurry();
        }
        let hurried = self.upkeep.hurried && is_due(self.upkeep.compared, HURRY);
        if hurried || is_due(self.upkeep.compared, COMPARE_EVERY) {
            self.upkeep.compared = Some(Instant::now());
            self.compare_open_sales(hurried)?;
            if hurried {
                self.upkeep.hurried = false;
            }
        }
        if hurried || is_due(self.upkeep.swept, SWEEP_EVERY) {
            self.upkeep.swept = Some(Instant::now());
            self.sweep()?;
        }
        Ok(())
    }

    fn compare_open_sales(&mut self, thorough: bool) -> Result<(), String> {
        let now_ms = self.store.now_ms()?;
        let overflowed_then = std::mem::replace(&mut self.upkeep.overflowed_then, self.upkeep.overflowed);
        let mut lacking = false;
        let started: Vec<SaleId> = self.open.iter().filter(|t| t.starts_ms <= now_ms).map(|t| t.sale).collect();
        for sale in started {
            if self.is_lacking(sale, thorough)? {
                lacking = true;
                self.reconcile(sale, now_ms, false)?;
            }
        }
        if !lacking && !thorough {
            // The ledger has all that Redis had at the last comparison.
            self.recorder.counters().reconciled.store(overflowed_then, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the ledger lacks what Redis had of `sale` at the last comparison or, when `thorough`, has now.
    fn is_lacking(&mut self, sale: SaleId, thorough: bool) -> Result<bool, String> {
        let Some(in_redis) = self.store.counts(sale)? else { return Ok(false) };
        let known = self.upkeep.seen.insert(sale, in_redis).filter(|_| !thorough).unwrap_or(in_redis);
        // Up to the same moment: what was written since must not hide what is missing of it.
        let (taken, purchased) = self.ledger.counts(sale, known.upto_ms).map_err(|e| e.to_string())?;
        Ok(known.taken > taken || known.purchased > purchased)
    }

    /// Compares the sales that have ended, and clears away those that ended some time ago.
    fn sweep(&mut self) -> Result<(), String> {
        let now_ms = self.store.now_ms()?;
        let mut ended = self.store.sales()?;
        ended.retain(|(_, ends_ms)| *ends_ms <= now_ms);
        self.upkeep.seen.retain(|sale, _| {
            ended.iter().any(|(other, _)| other == sale) || self.open.iter().any(|terms| terms.sale == *sale)
        });
        let Some(first) = ended.iter().map(|(_, ends_ms)| *ends_ms).min() else { return Ok(()) };
        let rows = self.ledger.sales(first.saturating_sub(1)).map_err(|e| e.to_string())?;
        for (sale, ends_ms) in ended {
            // Another deployment's sales are not ours to judge.
            if !rows.iter().any(|row| row.terms.sale == sale && row.opened) {
                continue;
            }
            let over = ends_ms + CLEAR_AFTER_MS < now_ms;
            if over || self.is_lacking(sale, false)? {
                self.reconcile(sale, now_ms, over)?;
            }
        }
        Ok(())
    }

    /// One instance at a time; whoever does not get the lock comes back.
    fn reconcile(&mut self, sale: SaleId, now_ms: u64, over: bool) -> Result<(), String> {
        if !self.ledger.lock_opening(Duration::ZERO).map_err(|e| e.to_string())? {
            return Ok(());
        }
        // Of a sale that is long over nothing is on its way any more.
        let settled_ms = if over { u64::MAX } else { now_ms.saturating_sub(SETTLED_MS) };
        let done = self.write_missing(sale, settled_ms);
        let done = match done {
            Ok(whole) if over && whole => {
                tracing::info!(sale = sale.0, "cleared away");
                self.upkeep.seen.remove(&sale);
                self.store.unlink(sale)
            }
            other => other.map(drop),
        };
        self.ledger.unlock_opening();
        done
    }

    /// Writes what Redis holds of `sale`, up to `settled_ms`, and the ledger lacks. Says whether all that Redis holds
    /// could be read.
    fn write_missing(&mut self, sale: SaleId, settled_ms: u64) -> Result<bool, String> {
        let mut in_ledger = HashMap::new();
        let each = &mut |row: crate::ledger::HoldRow| {
            in_ledger.insert(row.number.0, (row.has_checkout, row.purchased_ms.is_some()));
        };
        self.ledger.holds(sale, each).map_err(|e| e.to_string())?;
        let mut missing = Vec::new();
        let each = &mut |number, known: super::merge::Known| {
            let (has_checkout, has_purchase) = in_ledger.get(&number).copied().unwrap_or_default();
            let records = lacking(number, &known, has_checkout, has_purchase);
            missing.extend(records.filter(|record| record.at_ms <= settled_ms));
        };
        let ledger = &mut self.ledger;
        let whole = self.store.holds(sale, each, &mut || ledger.still_opening().map_err(|e| e.to_string()))?;
        let added = self.add_missing(sale, self.epoch.number, &missing)?;
        if added > 0 {
            tracing::warn!(sale = sale.0, records = added, "written to the ledger by reconciliation");
        }
        Ok(whole)
    }
}
