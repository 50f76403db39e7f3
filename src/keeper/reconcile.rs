//! Reconciliation: writing the rows that the ledger lacks of facts that Redis has.
//!
//! Owns the sale that is being reconciled, and how far it has come. Invariants: a row is written only of a fact that Redis
//! holds, and only under the epoch in which it was read there; a sale's keys are removed only once the ledger has all that
//! they hold. It goes in steps of a fraction of a second, and holds no lock that opening or rebuilding a sale waits for:
//! its writes are fenced by the epoch, as the writer's are. Leaves to [`super::maintenance`] when a sale is to be compared.

use super::error::KeeperError;
use super::merge::{HoldFacts, lacking};
use super::present::Present;
use super::servers::Servers;
use super::store::Condition;
use crate::domain::{HoldNumber, Record, Records, SaleId, Terms};
use crate::ledger::HoldRow;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

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

    /// Adds `task` behind the others.
    pub(super) fn add(&mut self, task: Task) {
        self.tasks.push_back(task);
    }

    /// Gives up what is under way. What was written stays.
    pub(super) fn give_up(&mut self, servers: &mut Servers) {
        *self = Reconciliation::default();
        servers.ledger.unlock_reconciling();
    }

    /// Reconciles for a while. One instance at a time does it; the others come back with their next comparison. Returns the sales
    /// that were cleared away from Redis.
    pub(super) fn run(&mut self, servers: &mut Servers, present: &Present<'_>) -> Result<Vec<SaleId>, KeeperError> {
        let mut cleared = Vec::new();
        if self.is_busy() {
            let done = self.turn(servers, present, &mut cleared);
            if !matches!(done, Ok(true)) {
                self.give_up(servers);
            }
            done?;
        }
        if !self.is_busy() {
            servers.ledger.unlock_reconciling();
        }
        Ok(cleared)
    }

    /// Reconciles for [`TURN`], and writes what it has found: a row that is missing does not wait until all rows are read.
    /// `Ok(false)` if another instance reconciles, or if what was read is of no more use.
    fn turn(
        &mut self,
        servers: &mut Servers,
        present: &Present<'_>,
        cleared: &mut Vec<SaleId>,
    ) -> Result<bool, KeeperError> {
        let begun = servers.now();
        // Asked for once a turn: two instances that reconcile at the same time do nothing wrong, only the same twice.
        if !servers.ledger.lock_reconciling()? {
            return Ok(false);
        }
        // What a worker found odd comes first: nothing may be sold meanwhile.
        while self.is_busy() && servers.now().saturating_duration_since(begun) < TURN && present.suspicions.is_empty() {
            if !self.step(servers, present, cleared)? {
                return Ok(false);
            }
        }
        match &mut self.current {
            Some(progress) if !progress.missing.is_empty() && present.suspicions.is_empty() => {
                progress.write_missing(servers, present.open)
            }
            _ => Ok(true),
        }
    }

    /// One step. `Ok(false)` if the epoch was raised since the reading began, so that it has to begin again.
    fn step(
        &mut self,
        servers: &mut Servers,
        present: &Present<'_>,
        cleared: &mut Vec<SaleId>,
    ) -> Result<bool, KeeperError> {
        let current = self.current.take();
        let next = || self.tasks.pop_front().map(|task| Progress::new(task, present.epoch));
        let Some(mut progress) = current.or_else(next) else { return Ok(true) };
        if progress.epoch != present.epoch {
            return Ok(false);
        }
        match progress.stage {
            Stage::Ledger(after) => progress.read_ledger(servers, after)?,
            Stage::Redis(cursor) => {
                progress.read_redis(servers, cursor)?;
                if progress.missing.len() >= BATCH && !progress.write_missing(servers, present.open)? {
                    return Ok(false);
                }
            }
            Stage::Rest if progress.missing.is_empty() => {
                cleared.extend(progress.end(servers)?);
                return Ok(true);
            }
            Stage::Rest => {
                if !progress.write_missing(servers, present.open)? {
                    return Ok(false);
                }
            }
        }
        self.current = Some(progress);
        Ok(true)
    }
}

impl Progress {
    fn new(task: Task, epoch: u64) -> Progress {
        let (in_ledger, missing) = (HashMap::new(), Vec::new());
        Progress { task, epoch, in_ledger, missing, whole: true, added: 0, stage: Stage::Ledger(None) }
    }

    fn read_ledger(&mut self, servers: &mut Servers, after: Option<HoldNumber>) -> Result<(), KeeperError> {
        let in_ledger = &mut self.in_ledger;
        let each = &mut |row: HoldRow| {
            in_ledger.insert(row.number.0, (row.facts.has_checkout(), row.facts.purchased_ms.is_some()));
        };
        let last = servers.ledger.page_of_holds(self.task.sale, after, each)?;
        self.stage = last.map_or(Stage::Redis(0), |last| Stage::Ledger(Some(last)));
        Ok(())
    }

    fn read_redis(&mut self, servers: &mut Servers, cursor: u64) -> Result<(), KeeperError> {
        let Progress { in_ledger, missing, task, .. } = self;
        let each = &mut |number, known: HoldFacts| {
            let (has_checkout, has_purchase) = in_ledger.get(&number).copied().unwrap_or_default();
            let records = lacking(number, &known, has_checkout, has_purchase);
            missing.extend(records.filter(|record| record.at_ms <= task.settled_ms));
        };
        let (next, whole) = servers.store.some_holds(task.sale, cursor, each)?;
        self.whole &= whole;
        self.stage = if next == 0 { Stage::Rest } else { Stage::Redis(next) };
        Ok(())
    }

    /// Writes one batch of what is missing. `Ok(false)` if it was read of a state that is not in force.
    fn write_missing(&mut self, servers: &mut Servers, open: &[Terms]) -> Result<bool, KeeperError> {
        let sale = self.task.sale;
        // An open sale's facts are those of its present epoch. A sale that has ended keeps its last state.
        let is_open = open.iter().any(|terms| terms.sale == sale);
        match servers.store.condition(sale, self.epoch)? {
            Condition::Foreign | Condition::Missing => return Ok(false),
            Condition::Epoch(_) if is_open => return Ok(false),
            _ => {}
        }
        let mut records = Records::new(sale, self.epoch);
        let rest = self.missing.len().saturating_sub(BATCH);
        self.missing.drain(rest..).for_each(|record| records.push(&record));
        self.added += servers.ledger.add_missing(&records)?;
        Ok(true)
    }

    /// The ledger has all. Returns the sale if it was cleared away from Redis.
    fn end(&self, servers: &mut Servers) -> Result<Option<SaleId>, KeeperError> {
        let Progress { task: Task { sale, over, .. }, added, whole, .. } = *self;
        if added > 0 {
            tracing::warn!(
                "{}: {added} records that only Redis had were written to the ledger by reconciliation",
                sale.named()
            );
        }
        if !over || !whole {
            return Ok(None);
        }
        servers.store.unlink(sale)?;
        tracing::info!("{} is cleared away from Redis: the ledger has all of it", sale.named());
        Ok(Some(sale))
    }
}
