//! Regular work: when the counts of Redis and of the ledger are compared, and when sales that have ended are looked for.
//!
//! Owns the times of the last comparisons, what they found, and the reconciliation that follows from them. Invariant: what Redis had
//! of a sale at one comparison, the ledger has by the next one, or the sale is reconciled. Leaves to [`super::reconcile`] how missing
//! rows are written, and to a recovery what does not agree.

use super::error::KeeperError;
use super::present::Present;
use super::reconcile::{Reconciliation, Task};
use super::servers::Servers;
use super::store::Counts;
use super::time::is_due;
use crate::domain::SaleId;
use crate::inventory::ENDED_KEPT_MS;
use crate::ledger::Decided;
use crate::record::Counters;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often ledger and Redis are compared for the sales that are open.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// How often they are compared while records may have no other way into the ledger: their instance is dead, or lost the
/// replies that told of them.
const COMPARE_QUICKLY: Duration = Duration::from_secs(1);
/// How long the comparisons stay quick. Redis may execute a call after its instance has given it up, and missing rows are
/// found only by a second comparison: the first one notes Redis' counts.
const QUICK_FOR: Duration = Duration::from_secs(4);
/// How often the sales that have ended are looked for, among all keys in Redis: what still has keys is found, however long
/// no instance was there.
const SWEEP_EVERY: Duration = Duration::from_secs(15);
/// The least time between two comparisons that an outage or an overflow causes: such events come in series.
const HURRY: Duration = Duration::from_secs(1);
/// After an outage or an overflow, only records older than this are reconciled: the writers are busy with the others.
const SETTLED_MS: u64 = 5_000;
/// How long after its end a sale's state is cleared away.
const CLEAR_AFTER_MS: u64 = 75_000;

// All that a sale decided is settled when it is cleared away.
const _: () = assert!(CLEAR_AFTER_MS > 2 * SETTLED_MS);
// A record that is decided at the last moment is seen by one comparison, and found missing by the next.
const _: () = assert!(QUICK_FOR.as_millis() > 3 * COMPARE_QUICKLY.as_millis());
// A sale's keys are removed only when no instance asks for the sale any more: a missing state would look like a loss.
const _: () = assert!(CLEAR_AFTER_MS >= ENDED_KEPT_MS + 10_000);

/// The regular work of one instance.
#[derive(Default)]
pub(super) struct Maintenance {
    /// When the open sales were compared last.
    compared: Option<Instant>,
    /// When the ended sales were looked for last.
    swept: Option<Instant>,
    /// What Redis had of each sale at the last comparison, and when: by the next one the ledger should have it.
    seen: HashMap<SaleId, (Instant, Counts)>,
    /// Up to which moment (unix milliseconds) the ledger was found to have all of a sale.
    confirmed: HashMap<SaleId, u64>,
    /// How many records had overflowed when that was looked at last.
    overflowed: u64,
    /// How many had overflowed at the last comparison.
    overflowed_then: u64,
    /// Whether the next comparison is a thorough one, see [`Maintenance::is_lacking`].
    hurried: bool,
    /// Until when comparisons are quick.
    quick_until: Option<Instant>,
    /// The sessions of the members of an epoch, when they were looked at last.
    members: (u64, Vec<i32>),
    reconciliation: Reconciliation,
}

impl Maintenance {
    /// Many records may be missing: the next comparison comes soon, and is a thorough one, by the counts that Redis has then.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }

    /// Some records may be with Redis alone: comparisons follow each other quickly for a while.
    pub(super) fn quicken(&mut self, now: Instant) {
        self.quick_until = Some(now + QUICK_FOR);
    }

    /// Takes note of the sessions that are members of `epoch`. One that is gone may be a dead instance's.
    pub(super) fn see_members(&mut self, now: Instant, epoch: u64, sessions: Vec<i32>) {
        let (before, known) = &self.members;
        if *before == epoch && known.iter().any(|session| !sessions.contains(session)) {
            tracing::info!("an instance has left epoch {epoch}: what it may have left unwritten is looked for");
            self.quicken(now);
        }
        self.members = (epoch, sessions);
    }

    /// What happened in the sale before this moment (unix milliseconds) was found in the ledger.
    pub(super) fn confirmed_ms(&self, sale: SaleId) -> u64 {
        self.confirmed.get(&sale).copied().unwrap_or(0)
    }

    /// Whether a reconciliation is under way or waits.
    pub(super) fn is_busy(&self) -> bool {
        self.reconciliation.is_busy()
    }

    /// Gives up the reconciliation that is under way: the next comparison begins it anew. What was written stays.
    pub(super) fn drop_reconciliation(&mut self, servers: &mut Servers) {
        self.reconciliation.give_up(servers);
    }

    /// Does the work that is due.
    pub(super) fn run(&mut self, servers: &mut Servers, present: &Present<'_>) -> Result<(), KeeperError> {
        self.look_at_overflow(present.counters);
        if self.reconciliation.is_busy() {
            return self.reconcile(servers, present);
        }
        let now = servers.now();
        let hurried = self.hurried && is_due(self.compared, now, HURRY);
        let is_quick = self.quick_until.is_some_and(|until| now < until);
        let every = if is_quick { COMPARE_QUICKLY } else { COMPARE_EVERY };
        if hurried || is_due(self.compared, now, every) {
            self.compared = Some(now);
            self.compare_open(servers, present, hurried)?;
            if hurried {
                self.hurried = false;
            }
        }
        if hurried || is_due(self.swept, now, SWEEP_EVERY) {
            self.swept = Some(now);
            self.sweep(servers, present)?;
        }
        self.reconcile(servers, present)
    }

    fn reconcile(&mut self, servers: &mut Servers, present: &Present<'_>) -> Result<(), KeeperError> {
        for sale in self.reconciliation.run(servers, present)? {
            self.seen.remove(&sale);
        }
        Ok(())
    }

    fn look_at_overflow(&mut self, counters: &Counters) {
        let overflowed = counters.overflowed.load(Ordering::Relaxed);
        let before = std::mem::replace(&mut self.overflowed, overflowed);
        if before != overflowed {
            let records = overflowed - before;
            tracing::warn!(
                "the ledger cannot keep up: {records} records found no room on their way to it and are left to reconciliation"
            );
            self.hurry();
        }
    }

    fn compare_open(
        &mut self,
        servers: &mut Servers,
        present: &Present<'_>,
        thorough: bool,
    ) -> Result<(), KeeperError> {
        let now_ms = servers.now_ms()?;
        let overflowed_then = std::mem::replace(&mut self.overflowed_then, self.overflowed);
        let mut lacking = false;
        for sale in present.open.iter().filter(|t| t.starts_ms <= now_ms).map(|t| t.sale) {
            if let Some(upto_ms) = self.is_lacking(servers, sale, thorough)? {
                lacking = true;
                let settled_ms = if thorough { now_ms.saturating_sub(SETTLED_MS) } else { upto_ms };
                self.reconciliation.add(Task { sale, settled_ms, over: false });
            }
        }
        if !lacking && !thorough {
            // The ledger has all that Redis had at the last comparison.
            present.counters.reconciled.store(overflowed_then, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether the ledger lacks what Redis had of `sale` at the last comparison or, when `thorough`, has now: then the
    /// time of Redis' last decision that was counted.
    fn is_lacking(&mut self, servers: &mut Servers, sale: SaleId, thorough: bool) -> Result<Option<u64>, KeeperError> {
        let Some(in_redis) = servers.store.counts(sale)? else { return Ok(None) };
        let now = servers.now();
        let known = match self.seen.get(&sale) {
            // Seen a moment ago, before comparisons became quick: its records may still be on their way.
            Some((at, _)) if !thorough && now.duration_since(*at) < COMPARE_QUICKLY => return Ok(None),
            Some((_, known)) if !thorough => *known,
            _ => in_redis,
        };
        let is_first = self.seen.insert(sale, (now, in_redis)).is_none();
        if is_first && !thorough {
            return Ok(None);
        }
        // Up to the same moment: rows of later decisions must not hide missing ones.
        let decided = Decided { upto_ms: known.upto_ms, holds: known.taken, purchases: known.purchased };
        if !servers.ledger.has_all(sale, &decided)? {
            return Ok(Some(known.upto_ms));
        }
        self.confirmed.insert(sale, known.upto_ms);
        Ok(None)
    }

    /// Compares the sales that have ended, and clears away those that ended some time ago.
    fn sweep(&mut self, servers: &mut Servers, present: &Present<'_>) -> Result<(), KeeperError> {
        let now_ms = servers.now_ms()?;
        let mut ended = servers.own_states()?;
        ended.retain(|(_, ends_ms)| *ends_ms <= now_ms);
        self.seen.retain(|sale, _| {
            ended.iter().any(|(other, _)| other == sale) || present.open.iter().any(|terms| terms.sale == *sale)
        });
        let seen = &self.seen;
        self.confirmed.retain(|sale, _| seen.contains_key(sale));
        let Some(first) = ended.iter().map(|(_, ends_ms)| *ends_ms).min() else { return Ok(()) };
        let rows = servers.ledger.sales(first.saturating_sub(1))?;
        for (sale, ends_ms) in ended {
            // Nothing is known of a sale that this ledger has not opened.
            if !rows.iter().any(|row| row.terms.sale == sale && row.opened) {
                continue;
            }
            // Of a sale that is long over nothing is on its way any more.
            let over = ends_ms + CLEAR_AFTER_MS < now_ms;
            let is_settled = ends_ms + SETTLED_MS < now_ms;
            if over {
                self.reconciliation.add(Task { sale, settled_ms: u64::MAX, over });
            } else if let Some(settled_ms) = self.is_lacking(servers, sale, is_settled)? {
                self.reconciliation.add(Task { sale, settled_ms, over });
            }
        }
        Ok(())
    }
}
