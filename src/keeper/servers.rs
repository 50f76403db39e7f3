//! The two servers that the keeper works with, and the clocks.
//!
//! Owns the ways to the ledger and to Redis, the checked clock of Redis, and the use of the openers' lock. Invariant: the
//! lock is released when the work that was done under it ends, however it ends. Leaves the calls to the other files.

use super::clock::{CheckedClock, PATIENCE};
use super::error::KeeperError;
use super::sale_store::SaleStore;
use super::time::TimeSource;
use crate::domain::SaleId;
use crate::inventory::{CLOCK_TOLERANCE_MS, Clock};
use crate::ledger::{LedgerId, SharedLedger};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a member of the epoch waits for the openers' lock: the instance that has it may be waiting for this one to leave.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(100);
/// How often the holder of the openers' lock gives a sign of life: its session ends after three seconds of silence.
const SIGN_EVERY: Duration = Duration::from_millis(500);
/// How often an instance that starts compares the clocks while they differ.
const COMPARE_EVERY: Duration = Duration::from_millis(200);

/// The servers.
pub(super) struct Servers {
    pub ledger: Box<dyn SharedLedger>,
    pub store: Box<dyn SaleStore>,
    pub time: Arc<dyn TimeSource>,
    clock: CheckedClock,
    /// The identity of the ledger, for messages; `None` before it was asked.
    id: Option<LedgerId>,
}

impl Servers {
    pub(super) fn new(ledger: Box<dyn SharedLedger>, store: Box<dyn SaleStore>, time: Arc<dyn TimeSource>) -> Servers {
        Servers { ledger, store, time, clock: CheckedClock::default(), id: None }
    }

    /// The moment on the monotonic clock.
    pub(super) fn now(&self) -> Instant {
        self.time.now()
    }

    /// Asks the ledger for its identity, and asks Redis on behalf of that ledger from now on.
    pub(super) fn identify(&mut self) -> Result<(), KeeperError> {
        let id = self.ledger.identity()?;
        self.store.set_ledger(id);
        self.id = Some(id);
        Ok(())
    }

    /// The ledger's identity as text.
    pub(super) fn ledger_id(&self) -> Option<String> {
        self.id.map(|id| id.to_string())
    }

    /// Redis' clock, unix milliseconds, as it is believed: a jump ahead is followed only once it has lasted for some time.
    pub(super) fn now_ms(&mut self) -> Result<u64, KeeperError> {
        let shown_ms = self.store.time_ms()?;
        // The moment after the answer: the clock that goes on from here may be behind Redis', never ahead of it.
        Ok(self.clock.take_in(self.time.now(), shown_ms, || false))
    }

    /// Waits until Redis' clock and the ledger's agree, for [`PATIENCE`] at most; then Redis' clock counts. For an instance that has
    /// not read the clock yet: while one of the two is wrong, it would open and sell sales of another time.
    pub(super) fn await_clocks(&mut self) -> Result<(), KeeperError> {
        let (begun, mut is_told) = (self.now(), false);
        loop {
            let apart_ms = self.store.time_ms()?.abs_diff(self.ledger.clock_ms()?);
            if apart_ms <= CLOCK_TOLERANCE_MS {
                return Ok(());
            }
            if self.now().saturating_duration_since(begun) >= PATIENCE {
                tracing::error!(
                    "Redis' clock and the ledger's still differ by {apart_ms} ms: sales go by Redis' clock"
                );
                return Ok(());
            }
            if !is_told {
                tracing::warn!(
                    "Redis' clock and the ledger's differ by {apart_ms} ms: this instance starts when they agree, and in ten \
                     seconds at the latest"
                );
                is_told = true;
            }
            self.time.sleep(COMPARE_EVERY);
        }
    }

    /// Reads Redis' clock. Where it has jumped ahead, asks the ledger whether its clock shows the same.
    pub(super) fn look_at_clock(&mut self) -> Result<(), KeeperError> {
        let Servers { ledger, store, time, clock, .. } = self;
        let shown_ms = store.time_ms()?;
        let confirm = || ledger.clock_ms().is_ok_and(|other_ms| other_ms.abs_diff(shown_ms) <= CLOCK_TOLERANCE_MS);
        clock.take_in(time.now(), shown_ms, confirm);
        Ok(())
    }

    /// Redis' clock as it was believed last.
    pub(super) fn clock(&self) -> Clock {
        self.clock.clock()
    }

    /// The latest that a script called now may take Redis' clock to show, unix milliseconds.
    pub(super) fn latest_ms(&self) -> u64 {
        self.clock().ms(self.now()).saturating_add(CLOCK_TOLERANCE_MS)
    }

    /// Runs `work` under the lock that only one instance has, which is waited for at most `wait`. `Ok(false)` if another
    /// instance has it. Work that can wait releases the lock for an `urgent` caller: see [`super::late_records`].
    pub(super) fn locked(
        &mut self,
        wait: Duration,
        urgent: bool,
        work: impl FnOnce(&mut Servers) -> Result<(), KeeperError>,
    ) -> Result<bool, KeeperError> {
        if !self.ledger.lock_opening(wait, urgent)? {
            return Ok(false);
        }
        let done = work(self);
        self.ledger.unlock_opening();
        done.map(|()| true)
    }

    /// Fails if the openers' lock is not this instance's any more.
    pub(super) fn still_opening(&mut self) -> Result<(), KeeperError> {
        Ok(self.ledger.still_opening()?)
    }

    /// The sales of this ledger that have a state in Redis, with their end in unix milliseconds. Looks through all keys.
    pub(super) fn own_states(&mut self) -> Result<Vec<(SaleId, u64)>, KeeperError> {
        let ours = self.ledger_id();
        let states = self.store.states()?.into_iter();
        let own = states.filter(|found| ours.is_none() || found.ledger.is_none() || found.ledger == ours);
        Ok(own.map(|found| (found.sale, found.ends_ms)).collect())
    }

    /// The store, and a check for long work on it that it may call often: now and then it tells the server of the openers' lock that
    /// the holder lives, and it fails once the lock is another instance's.
    pub(super) fn store_and_alive(&mut self) -> (&mut dyn SaleStore, impl FnMut() -> Result<(), KeeperError>) {
        let Servers { ledger, store, time, .. } = self;
        let mut last = time.now();
        let alive = move || {
            if time.now().saturating_duration_since(last) < SIGN_EVERY {
                return Ok(());
            }
            last = time.now();
            Ok(ledger.still_opening()?)
        };
        (&mut **store, alive)
    }
}
