//! Settling a doubt: adopting what another instance has opened, or raising the epoch and rebuilding.
//!
//! Invariant: between closing and opening, no instance sells; what is opened holds all that the ledger and Redis
//! remember. Every step may be the last one of this process: the next one to come finds a doubt and begins again.

use super::build::Built;
use super::distributed::Keeper;
use super::merge::{HoldFacts, HoldMerge, RebuiltSale};
use super::store::Condition;
use crate::domain::{HoldNumber, Record, RecordKind, Records, SaleId, Terms};
use crate::inventory::ENDED_KEPT_MS;
use crate::ledger::{Epoch, Fence, HoldRow, LedgerError};
use crate::record::Message;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// How long the openers' lock is waited for by whoever has let go of his epoch.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How long the other instances may take to stop, write what they have and let go of the old epoch. A dead one's
/// lock is let go by Postgres; what a slow one still has is offered to Redis afterwards.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// Where the ledger was away within this time, it may have lost everybody's locks: nobody can be waited for by his...
const JUST_BACK: Duration = Duration::from_secs(15);
/// ...but only for so long: the others hear of the closing, and write what the outage has left with them.
const BLIND_WAIT: Duration = Duration::from_millis(1_200);
/// How long a transaction that was begun before the epoch was raised may take to commit.
const COMMIT_WAIT: Duration = Duration::from_millis(500);
/// How long a session that was told to end may take.
const EVICT_WAIT: Duration = Duration::from_secs(2);
/// How long this instance's own calls and records may take to be done.
const OWN_DRAIN: Duration = Duration::from_secs(2);
/// How often the holder of the openers' lock gives a sign of life: its session ends after three seconds of silence.
const SIGN_EVERY: Duration = Duration::from_millis(500);
/// Records that the ledger lacks are written in batches of this size.
const BATCH: usize = 2_000;

impl Keeper {
    /// Runs `work` under the lock that only one instance has, waiting for it at most `wait`. `Ok(false)` if another one
    /// has it. Whoever is a member of an epoch must not wait long: the other one may be waiting for him.
    pub(super) fn with_opening_lock(
        &mut self,
        wait: Duration,
        work: impl FnOnce(&mut Keeper) -> Result<(), String>,
    ) -> Result<bool, String> {
        self.locked(wait, false, work)
    }

    /// [`Keeper::with_opening_lock`]. An `urgent` caller is given way by work that can wait: see [`super::offer`].
    fn locked(
        &mut self,
        wait: Duration,
        urgent: bool,
        work: impl FnOnce(&mut Keeper) -> Result<(), String>,
    ) -> Result<bool, String> {
        if !self.ledger.lock_opening(wait, urgent).map_err(|e| was_away(&mut self.ledger_away, &e))? {
            return Ok(false);
        }
        let done = work(self);
        self.ledger.unlock_opening();
        done.map(|()| true)
    }

    /// Settles a doubt. Selling has stopped on this instance.
    pub(super) fn recover(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        self.drop_reconciliation();
        self.drain_and_leave()?;
        if !self.locked(LOCK_WAIT, true, Keeper::recover_locked)? {
            return Err("another instance is opening sales".into());
        }
        self.doubt = None;
        // What the workers found odd until now is settled with it; what still is odd, they find again.
        while self.suspicions.try_recv().is_ok() {}
        let took = begun.elapsed();
        let (sales, epoch) = (self.open.len(), self.epoch.number);
        tracing::info!("the doubt is settled after {took:.1?}: this instance sells {sales} sales under epoch {epoch}");
        Ok(())
    }

    /// Writes what this instance has and leaves the epoch: whoever closes it need not wait any longer. Selling has
    /// stopped.
    pub(super) fn drain_and_leave(&mut self) -> Result<(), String> {
        self.drain_own();
        self.ledger.leave().map_err(|e| was_away(&mut self.ledger_away, &e))
    }

    /// Waits until this instance's calls are answered and its records written, for a while.
    fn drain_own(&mut self) {
        let until = Instant::now() + OWN_DRAIN;
        if let Some((inventory, workers)) = &self.inventory {
            while (0..*workers).map(|worker| inventory.undecided(worker)).sum::<usize>() > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.flush(until);
    }

    /// Waits until `until` that the writer is done with all that it was given.
    fn flush(&mut self, until: Instant) {
        self.recorder.hurry();
        let (done, wait) = crossbeam_channel::bounded(1);
        let left = until.saturating_duration_since(Instant::now());
        if self.recorder.sender().send_timeout(Message::Flush(done), left).is_err()
            || wait.recv_deadline(until).is_err()
        {
            // In each round of an outage, of which the writer has spoken.
            tracing::debug!("records of this instance are not written yet; they are offered again afterwards");
        }
    }

    fn recover_locked(&mut self) -> Result<(), String> {
        let current = self.ledger.epoch().map_err(|e| was_away(&mut self.ledger_away, &e))?;
        let mut identity = self.store.identity()?;
        if current.identity != identity {
            // A connection of old may still lead to a master that the others have left.
            self.store.reconnect();
            identity = self.store.identity()?;
        }
        self.claim()?;
        let now_ms = self.store.now_ms()?;
        let opened: Vec<Terms> = self
            .rows(now_ms)?
            .iter()
            // Those that have just ended too: what was purchased in them is still asked for.
            .filter(|row| row.opened && row.terms.ends_ms + ENDED_KEPT_MS > now_ms)
            .map(|row| row.terms)
            .collect();
        let (mut good, mut newest) = (current.identity == identity, current.number);
        for terms in &opened {
            match self.store.condition(terms.sale, current.number)? {
                // A sale that has not begun gets the ledger's terms when it is looked at next.
                Condition::Good if terms.starts_ms > now_ms || self.store.has_terms(terms)? => {}
                other => {
                    good = false;
                    // An opener may have died before he raised the epoch; a ledger may be older than Redis.
                    newest = newest.max(if let Condition::Epoch(theirs) = other { theirs } else { 0 });
                }
            }
        }
        if good {
            (self.epoch, self.open) = (current, opened);
            self.place_own();
        } else {
            self.reopen(current.number, newest + 1, &identity, &opened)?;
        }
        self.join_in().inspect_err(|_| {
            // Nobody may be waited for who is no member in earnest.
            let _ = self.ledger.leave();
        })
    }

    /// Becomes a member of the epoch, if it still is the one in force.
    fn join_in(&mut self) -> Result<(), String> {
        self.ledger.join(self.epoch.number).map_err(|e| e.to_string())?;
        // A frozen opener may have come back long after others went on: he must not sell by what he has opened.
        let current = self.ledger.epoch().map_err(|e| e.to_string())?;
        if current == self.epoch { Ok(()) } else { Err(format!("the ledger has moved on to epoch {}", current.number)) }
    }

    /// Places what this instance's writer could not write. What cannot be placed comes again.
    fn place_own(&mut self) {
        self.take_stale();
        if let Err(why) = self.place_late(false) {
            tracing::warn!(
                "records that came too late for a rebuilding are not placed yet, and are tried again: {why}"
            );
        }
    }

    /// Closes the epoch `old`, and opens all sales anew under `epoch`.
    fn reopen(&mut self, old: u64, epoch: u64, identity: &str, opened: &[Terms]) -> Result<(), String> {
        let sales = opened.len();
        tracing::warn!(
            "rebuilding {sales} sales from the ledger and Redis under epoch {epoch}; none of them sells until it is done"
        );
        // All hear that selling is over, and may write what they have: until the epoch is raised, it is in force.
        self.still_opening()?;
        self.ledger.announce_closing(old).map_err(|e| e.to_string())?;
        for terms in opened {
            self.store.close(terms, epoch)?;
        }
        // What one of our workers had just sent when selling stopped.
        self.still_opening()?;
        self.drain_own();
        self.still_opening()?;
        if self.ledger_away.is_some_and(|away| away.elapsed() < JUST_BACK) {
            std::thread::sleep(BLIND_WAIT);
            self.still_opening()?;
        }
        self.await_or_evict_members(old, DRAIN_WAIT)?;
        self.ledger.raise(old, epoch).map_err(|e| e.to_string())?;
        // Whoever did not leave in time may have begun to write meanwhile. From here on nobody can begin.
        self.await_or_evict_members(old, COMMIT_WAIT)?;
        // Our own writer gives up what it could not write under the old epoch, so that it can be placed.
        self.still_opening()?;
        self.flush(Instant::now() + OWN_DRAIN);
        self.still_opening()?;
        let mut built = Vec::with_capacity(opened.len());
        let done = self.open_anew(epoch, identity, opened, &mut built);
        if done.is_err() {
            built.iter().for_each(|built| self.store.discard(built));
            return done;
        }
        (self.epoch, self.open) = (Epoch { number: epoch, identity: identity.to_owned() }, opened.to_vec());
        // What this instance still had comes before anybody sells: without the identity nobody adopts the epoch.
        self.place_own();
        self.ledger.set_identity(epoch, identity).map_err(|e| e.to_string())
    }

    /// Rebuilds the closed sales and puts them in place. What was built so far is left in `built`.
    fn open_anew(
        &mut self,
        epoch: u64,
        identity: &str,
        opened: &[Terms],
        built: &mut Vec<Built>,
    ) -> Result<(), String> {
        for terms in opened {
            // A small sale gives no other sign of life.
            self.still_opening()?;
            let (rebuilt, whole) = self.merge(terms, epoch)?;
            if whole {
                self.store.forget(terms, epoch)?;
            }
            built.push(self.build(terms, epoch, &rebuilt)?);
        }
        // The last look: still the one who opens, and still the same Redis.
        self.still_opening()?;
        if self.store.identity()? != identity {
            return Err("Redis was started anew in the middle of rebuilding".into());
        }
        for built in built {
            self.store.open(built)?;
        }
        Ok(())
    }

    /// Writes what the ledger lacks of a sale. Returns how much of it was lacking indeed. Under the openers' lock.
    pub(super) fn add_missing(&mut self, sale: SaleId, epoch: u64, missing: &[Record]) -> Result<u64, String> {
        let mut added = 0;
        for chunk in missing.chunks(BATCH) {
            let mut records = Records::new(sale, epoch);
            chunk.iter().for_each(|record| records.push(record));
            added += self.ledger.add_missing(&records).map_err(|e| e.to_string())?;
            self.still_opening()?;
        }
        Ok(added)
    }

    fn still_opening(&mut self) -> Result<(), String> {
        self.ledger.still_opening().map_err(|e| e.to_string())
    }

    /// Waits until nobody holds a lock of the epoch `old` or of one before it, and after `wait` sees to it.
    fn await_or_evict_members(&mut self, old: u64, wait: Duration) -> Result<(), String> {
        if self.ledger.drain(old, wait).map_err(|e| e.to_string())? {
            return Ok(());
        }
        self.still_opening()?;
        // A frozen instance, or a writer in the midst of a transaction that never ends: it could commit after the
        // merge. What it has not committed is offered to Redis when it goes on.
        let sessions = self.ledger.evict(old).map_err(|e| e.to_string())?;
        tracing::warn!(
            "an instance has not let go of epoch {old} in time: its sessions are ended ({sessions} sessions with Postgres)"
        );
        let free = self.ledger.drain(old, EVICT_WAIT).map_err(|e| e.to_string())?;
        self.still_opening()?;
        if free { Ok(()) } else { Err(format!("a session with Postgres still writes under epoch {old}")) }
    }

    /// Builds a sale's state for `epoch` from all that is known of it. [`super::store::Store::open`] puts it in place.
    pub(super) fn rebuild(&mut self, terms: &Terms, epoch: u64) -> Result<Built, String> {
        let (rebuilt, _) = self.merge(terms, epoch)?;
        self.build(terms, epoch, &rebuilt)
    }

    fn build(&mut self, terms: &Terms, epoch: u64, rebuilt: &RebuiltSale) -> Result<Built, String> {
        self.store.build(terms, epoch, rebuilt, &mut signs_of_life(&mut *self.ledger))
    }

    /// What is known of a sale, all of which is in the ledger afterwards; and whether Redis' side could be read wholly.
    fn merge(&mut self, terms: &Terms, epoch: u64) -> Result<(RebuiltSale, bool), String> {
        let mut union = HoldMerge::default();
        let mut with_checkout = HashSet::new();
        let each = &mut |row: HoldRow| {
            if row.has_checkout {
                with_checkout.insert(row.number.0);
            }
            union.ledger(row.number.0, known(&row));
        };
        self.ledger.holds(terms.sale, each).map_err(|e| e.to_string())?;
        let each = &mut |number, known| union.redis(number, known, with_checkout.contains(&number));
        // Another ledger's holds are nothing to this one: its state is replaced as it is.
        let is_foreign = self.store.condition(terms.sale, epoch)? == Condition::Foreign;
        let whole = is_foreign || self.store.holds(terms.sale, each, &mut signs_of_life(&mut *self.ledger))?;
        self.add_missing(terms.sale, epoch, &union.missing)?;
        let now_ms = self.store.now_ms()?;
        let rebuilt = union.rebuild(terms, now_ms);
        if rebuilt.purchased > terms.items {
            tracing::error!("{terms}: {} items were purchased, more than its {}", rebuilt.purchased, terms.items);
        }
        if !rebuilt.misfits.is_empty() {
            let holds = rebuilt.misfits.len();
            tracing::error!("{terms}: {holds} holds found no item left; they are kept apart in ledger_misfits");
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
                .quarantine(&records, "no item, or no share of the user, was left when the sale was rebuilt")
                .map_err(|e| e.to_string())?;
        }
        Ok((rebuilt, whole))
    }
}

/// Tells the server of the openers' lock now and then that its holder lives, and fails once it is another's. Not each time
/// that it is called: that would be a round trip for each piece of work.
fn signs_of_life(ledger: &mut dyn Fence) -> impl FnMut() -> Result<(), String> {
    let mut last = Instant::now();
    move || {
        if last.elapsed() < SIGN_EVERY {
            return Ok(());
        }
        last = Instant::now();
        ledger.still_opening().map_err(|e| e.to_string())
    }
}

/// Notes that the ledger did not answer: it may have lost everybody's locks.
fn was_away(ledger_away: &mut Option<Instant>, error: &LedgerError) -> String {
    *ledger_away = Some(Instant::now());
    error.to_string()
}

fn known(row: &HoldRow) -> HoldFacts {
    HoldFacts {
        user: row.user,
        item: row.item,
        taken_ms: row.taken_ms,
        expires_ms: row.expires_ms,
        purchased_ms: row.purchased_ms,
    }
}
