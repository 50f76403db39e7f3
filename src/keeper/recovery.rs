//! Settling a doubt: adopting what another instance has opened, or raising the epoch and rebuilding.
//!
//! Invariant: between closing and opening, no instance sells; what is opened holds all that the ledger and Redis
//! remember. Every step may be the last one of this process: the next one to come finds a doubt and begins again.

use super::distributed::Keeper;
use super::merge::{Known, Union};
use super::store::{Built, Condition};
use crate::domain::{HoldNumber, Record, RecordKind, Records, Terms};
use crate::ledger::{Epoch, HoldRow};
use crate::record::Message;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long the openers' lock is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How long the other instances may take to stop, write what they have and let go of the old epoch. A dead one's
/// lock is let go by Postgres; what a slow one still has is offered to Redis afterwards.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// How long a session that was told to end may take.
const EVICT_WAIT: Duration = Duration::from_secs(2);
/// How long this instance's own calls and records may take to be done.
const OWN_DRAIN: Duration = Duration::from_secs(2);
/// Records that the ledger lacks are written in batches of this size.
const BATCH: usize = 2_000;

impl Keeper {
    /// Runs `work` under the lock that only one instance has.
    pub(super) fn with_opening_lock(
        &mut self,
        work: impl FnOnce(&mut Keeper) -> Result<(), String>,
    ) -> Result<(), String> {
        if !self.ledger.lock_opening(LOCK_WAIT).map_err(|e| e.to_string())? {
            return Err("another instance is opening sales".into());
        }
        let done = work(self);
        self.ledger.unlock_opening();
        done
    }

    /// Settles a doubt. Selling has stopped on this instance.
    pub(super) fn recover(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        self.drain_own();
        self.ledger.leave().map_err(|e| e.to_string())?;
        self.with_opening_lock(Keeper::recover_locked)?;
        self.doubt = None;
        // What the cores found odd until now is settled with it; what still is odd, they find again.
        while self.suspicions.try_recv().is_ok() {}
        let took = begun.elapsed();
        tracing::info!(epoch = self.epoch.number, sales = self.open.len(), ?took, "the doubt is settled");
        Ok(())
    }

    /// Waits until this instance's calls are answered and its records written, for a while.
    fn drain_own(&mut self) {
        let until = Instant::now() + OWN_DRAIN;
        if let Some((inventory, cores)) = &self.inventory {
            while (0..*cores).map(|core| inventory.undecided(core)).sum::<usize>() > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let (done, wait) = crossbeam_channel::bounded(1);
        let left = until.saturating_duration_since(Instant::now());
        if self.recorder.sender().send_timeout(Message::Flush(done), left).is_err()
            || wait.recv_deadline(until).is_err()
        {
            tracing::warn!("records of this instance are not written yet; they are offered again afterwards");
        }
    }

    fn recover_locked(&mut self) -> Result<(), String> {
        let current = self.ledger.epoch().map_err(|e| e.to_string())?;
        let identity = self.store.identity()?;
        let now_ms = self.store.now_ms()?;
        let opened: Vec<Terms> = self
            .rows(now_ms)?
            .iter()
            .filter(|row| row.opened && row.terms.ends_ms > now_ms)
            .map(|row| row.terms)
            .collect();
        let mut good = current.identity == identity;
        for terms in &opened {
            good = good && self.store.condition(terms.sale, current.number)? == Condition::Good;
        }
        if good {
            self.epoch = current;
        } else {
            self.reopen(current.number, &identity, &opened)?;
        }
        self.open = opened;
        self.ledger.join(self.epoch.number).map_err(|e| e.to_string())?;
        // A frozen opener may have come back long after others went on: he must not sell by what he has opened.
        let current = self.ledger.epoch().map_err(|e| e.to_string())?;
        if current != self.epoch {
            return Err(format!("the ledger has moved on to epoch {}", current.number));
        }
        Ok(())
    }

    /// Raises the epoch and opens all sales anew under it.
    fn reopen(&mut self, old: u64, identity: &str, opened: &[Terms]) -> Result<(), String> {
        let epoch = self.ledger.raise(old).map_err(|e| e.to_string())?;
        tracing::warn!(epoch, sales = opened.len(), "rebuilding under a new epoch");
        for terms in opened {
            self.store.close(terms, epoch)?;
        }
        self.drain_others(old)?;
        let mut built = Vec::with_capacity(opened.len());
        for terms in opened {
            built.push(self.rebuild(terms, epoch)?);
        }
        // The last look before it sells: still the one who opens, still the same epoch and the same Redis.
        self.still_opening()?;
        self.ledger.set_identity(epoch, identity).map_err(|e| e.to_string())?;
        if self.store.identity()? != identity {
            return Err("Redis was started anew in the middle of rebuilding".into());
        }
        for built in &built {
            self.store.open(built)?;
        }
        self.epoch = Epoch { number: epoch, identity: identity.to_owned() };
        Ok(())
    }

    fn still_opening(&mut self) -> Result<(), String> {
        self.ledger.still_opening().map_err(|e| e.to_string())
    }

    /// Waits until nobody can write under the epoch `old`, and sees to it in the end.
    fn drain_others(&mut self, old: u64) -> Result<(), String> {
        if self.ledger.drain(old, DRAIN_WAIT).map_err(|e| e.to_string())? {
            return Ok(());
        }
        self.still_opening()?;
        // A frozen instance, or a writer in the midst of a transaction that never ends: it could commit after the
        // merge. What it has not committed is offered to Redis when it goes on.
        let sessions = self.ledger.evict(old).map_err(|e| e.to_string())?;
        tracing::warn!(epoch = old, sessions, "an instance has not let go of the old epoch: its sessions are ended");
        let free = self.ledger.drain(old, EVICT_WAIT).map_err(|e| e.to_string())?;
        self.still_opening()?;
        if free { Ok(()) } else { Err(format!("somebody still writes under epoch {old}")) }
    }

    /// Builds a sale's state for `epoch` from all that is known of it. [`super::store::Store::open`] puts it in place.
    pub(super) fn rebuild(&mut self, terms: &Terms, epoch: u64) -> Result<Built, String> {
        let mut union = Union::default();
        let mut with_checkout = HashSet::new();
        let each = &mut |row: HoldRow| {
            if row.has_checkout {
                with_checkout.insert(row.number.0);
            }
            union.ledger(row.number.0, known(&row));
        };
        self.ledger.holds(terms.sale, each).map_err(|e| e.to_string())?;
        let ledger = &mut self.ledger;
        let alive = &mut || ledger.still_opening().map_err(|e| e.to_string());
        let each = &mut |number, known| union.redis(number, known, with_checkout.contains(&number));
        self.store.holds(terms.sale, each, alive)?;
        for chunk in union.missing.chunks(BATCH) {
            let mut records = Records::new(terms.sale, epoch);
            chunk.iter().for_each(|record| records.push(record));
            self.ledger.add_missing(&records).map_err(|e| e.to_string())?;
            self.still_opening()?;
        }
        let now_ms = self.store.now_ms()?;
        let rebuilt = union.rebuild(terms, now_ms);
        if rebuilt.purchased > terms.items {
            tracing::error!(sale = terms.sale.0, purchased = rebuilt.purchased, "more was purchased than there was");
        }
        if !rebuilt.misfits.is_empty() {
            tracing::error!(sale = terms.sale.0, holds = rebuilt.misfits.len(), "holds found no item left");
            let mut records = Records::new(terms.sale, epoch);
            for (number, known) in &rebuilt.misfits {
                records.push(&Record {
                    kind: RecordKind::Hold,
                    number: HoldNumber(*number),
                    user: known.user,
                    item: known.item,
                    at_ms: known.taken_ms,
                    expires_ms: known.expires_ms,
                });
            }
            self.ledger
                .keep_apart(&records, "no item was left when the sale was rebuilt")
                .map_err(|e| e.to_string())?;
        }
        let ledger = &mut self.ledger;
        self.store.build(terms, epoch, &rebuilt, &mut || ledger.still_opening().map_err(|e| e.to_string()))
    }
}

fn known(row: &HoldRow) -> Known {
    Known {
        user: row.user,
        item: row.item,
        taken_ms: row.taken_ms,
        expires_ms: row.expires_ms,
        purchased_ms: row.purchased_ms,
    }
}
