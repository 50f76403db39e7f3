//! Reconciliation: the rows that Redis has the facts of and the ledger lacks are written.
//!
//! Owns the sale that is being reconciled, and how far it has come. Invariants: a row is written only of a fact that Redis
//! holds, and only under the epoch in which it was read there; a sale's keys are removed only once the ledger has all that
//! they hold. It goes in steps of a fraction of a second, and holds no lock that opening or rebuilding a sale waits for:
//! its writes are fenced by the epoch, as the writer's are. Leaves to [`super::maintenance`] when a sale is to be compared.

use super::distributed::Keeper;
use super::merge::{HoldFacts, lacking};
use super::store::Condition;
use crate::domain::{HoldNumber, Record, Records, SaleId};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How long the keeper reconciles before it looks at the servers again.
const TURN: Duration = Duration::from_millis(100);
/// Rows that are written in one transaction: some tens of milliseconds.
const BATCH: usize = 2_000;

/// A sale that is to be reconciled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    /// Which.
    pub sale: SaleId,
    /// Only what was decided until then, unix milliseconds: later records may be on their way to the ledger.
    pub settled_ms: u64,
    /// Whether it ended so long ago that its keys are removed afterwards.
    pub over: bool,
}

/// What is to be reconciled, and how far the first of it has come.
#[derive(Default)]
pub(super) struct Reconciliation {
    tasks: VecDeque<Task>,
    current: Option<Progress>,
}

struct Progress {
    task: Task,
    epoch: u64,
    /// What the ledger has of each hold: the checkout, the purchase.
    in_ledger: HashMap<u64, (bool, bool)>,
    missing: Vec<Record>,
    /// Whether all that Redis holds could be read.
    whole: bool,
    added: u64,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    /// Reads the ledger's holds after this one.
    Ledger(Option<HoldNumber>),
    /// Reads Redis' holds from this cursor on, and writes what is missing.
    Redis(u64),
    /// All is read; writes the rest.
    Rest,
}

impl Reconciliation {
    /// Whether there is something to do.
    pub(super) fn is_busy(&self) -> bool {
        self.current.is_some() || !self.tasks.is_empty()
    }

    /// Has `task` done after those before it.
    pub(super) fn add(&mut self, task: Task) {
        self.tasks.push_back(task);
    }
}

impl Keeper {
    /// Reconciles for a while. One instance at a time does it; the others come back with their next comparison.
    pub(super) fn reconcile(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        // What a worker found odd comes first: nothing may be sold meanwhile.
        while self.reconciliation.is_busy() && begun.elapsed() < TURN && self.suspicions.is_empty() {
            let taken = self.ledger.lock_reconciling().map_err(|e| e.to_string());
            match taken.and_then(|taken| if taken { self.reconcile_step() } else { Ok(false) }) {
                Ok(true) => {}
                Ok(false) => self.drop_reconciliation(),
                Err(why) => {
                    self.drop_reconciliation();
                    return Err(why);
                }
            }
        }
        if !self.reconciliation.is_busy() {
            self.ledger.unlock_reconciling();
        }
        Ok(())
    }

    /// Gives up what is under way: the next comparison begins it anew. What was written stays.
    pub(super) fn drop_reconciliation(&mut self) {
        self.reconciliation = Reconciliation::default();
        self.ledger.unlock_reconciling();
    }

    /// One step. `Ok(false)` if what was read is of no more use.
    fn reconcile_step(&mut self) -> Result<bool, String> {
        let current = self.reconciliation.current.take();
        let next = || self.reconciliation.tasks.pop_front().map(|task| Progress::new(task, self.epoch.number));
        let Some(mut progress) = current.or_else(next) else { return Ok(true) };
        if progress.epoch != self.epoch.number {
            return Ok(false);
        }
        let sale = progress.task.sale;
        match progress.stage {
            Stage::Ledger(after) => {
                let in_ledger = &mut progress.in_ledger;
                let each = &mut |row: crate::ledger::HoldRow| {
                    in_ledger.insert(row.number.0, (row.has_checkout, row.purchased_ms.is_some()));
                };
                let last = self.ledger.page_of_holds(sale, after, each).map_err(|e| e.to_string())?;
                progress.stage = last.map_or(Stage::Redis(0), |last| Stage::Ledger(Some(last)));
            }
            Stage::Redis(cursor) => {
                let Progress { in_ledger, missing, task, .. } = &mut progress;
                let each = &mut |number, known: HoldFacts| {
                    let (has_checkout, has_purchase) = in_ledger.get(&number).copied().unwrap_or_default();
                    let records = lacking(number, &known, has_checkout, has_purchase);
                    missing.extend(records.filter(|record| record.at_ms <= task.settled_ms));
                };
                let (next, whole) = self.store.some_holds(sale, cursor, each)?;
                progress.whole &= whole;
                progress.stage = if next == 0 { Stage::Rest } else { Stage::Redis(next) };
                if progress.missing.len() >= BATCH && !self.write_missing(&mut progress)? {
                    return Ok(false);
                }
            }
            Stage::Rest => {
                if !progress.missing.is_empty() {
                    if !self.write_missing(&mut progress)? {
                        return Ok(false);
                    }
                } else {
                    self.end_reconciliation(&progress)?;
                    return Ok(true);
                }
            }
        }
        self.reconciliation.current = Some(progress);
        Ok(true)
    }

    /// Writes one batch of what is missing. `Ok(false)` if it was read of a state that is not in force.
    fn write_missing(&mut self, progress: &mut Progress) -> Result<bool, String> {
        let sale = progress.task.sale;
        // An open sale's facts are those of its present epoch. A sale that has ended keeps its last state.
        let is_open = self.open.iter().any(|terms| terms.sale == sale);
        match self.store.condition(sale, progress.epoch)? {
            Condition::Foreign | Condition::Missing => return Ok(false),
            Condition::Epoch(_) if is_open => return Ok(false),
            _ => {}
        }
        let mut records = Records::new(sale, progress.epoch);
        let rest = progress.missing.len().saturating_sub(BATCH);
        progress.missing.drain(rest..).for_each(|record| records.push(&record));
        progress.added += self.ledger.add_missing(&records).map_err(|e| e.to_string())?;
        Ok(true)
    }

    fn end_reconciliation(&mut self, progress: &Progress) -> Result<(), String> {
        let Progress { task: Task { sale, over, .. }, added, whole, .. } = *progress;
        if added > 0 {
            tracing::warn!(
                "{}: {added} records that only Redis had were written to the ledger by reconciliation",
                sale.named()
            );
        }
        if over && whole {
            self.store.unlink(sale)?;
            self.maintenance.forget(sale);
            tracing::info!("{} is cleared away from Redis: the ledger has all of it", sale.named());
        }
        Ok(())
    }
}

impl Progress {
    fn new(task: Task, epoch: u64) -> Progress {
        let (in_ledger, missing) = (HashMap::new(), Vec::new());
        Progress { task, epoch, in_ledger, missing, whole: true, added: 0, stage: Stage::Ledger(None) }
    }
}
