//! This instance's membership of the epoch.
//!
//! Owns the epoch that the instance sells under, and when the ledger was away last. Invariants: an epoch whose identity is empty is
//! one that nothing may be sold under; an instance that joins looks at the epoch again before it sells. Leaves to
//! [`super::recovery`] when an epoch is closed, and to the ledger who holds which lock.

use super::error::KeeperError;
use super::own_work::OwnWork;
use super::servers::Servers;
use super::time::is_due;
use crate::ledger::{Epoch, LedgerError};
use std::time::{Duration, Instant};

/// How often the ledger is asked whether the epoch is still in force: an opener waits for the members to leave.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// If the ledger was away within this time, it may have lost the locks of all instances: an opener cannot tell by the locks who
/// still has something to write.
const JUST_BACK: Duration = Duration::from_secs(15);
/// How long this instance's own calls and records may take to be done.
pub(super) const OWN_DRAIN: Duration = Duration::from_secs(2);
/// How often the undecided requests are counted meanwhile.
const DRAIN_LOOK: Duration = Duration::from_millis(2);
/// How long the sessions that were told to end may take.
const EVICT_WAIT: Duration = Duration::from_secs(2);

/// The epoch that this instance sells under, and its part in it.
pub(super) struct Membership {
    pub epoch: Epoch,
    /// When the ledger last did not answer, or had lost this instance's session.
    away: Option<Instant>,
    /// When the ledger was asked for the epoch last.
    looked: Option<Instant>,
}

impl Membership {
    /// No member of any epoch yet.
    pub(super) fn none() -> Membership {
        Membership { epoch: Epoch { number: 0, identity: String::new() }, away: None, looked: None }
    }

    /// Whether there is an epoch to sell under: not before the first opening, and not while an instance closes the epoch.
    pub(super) fn is_open(&self) -> bool {
        !self.epoch.identity.is_empty()
    }

    /// Takes note of a result of the keeper's work: a ledger that did not answer may have lost the locks of all instances.
    pub(super) fn note_outage<T>(&mut self, now: Instant, result: &Result<T, KeeperError>) {
        if let Err(KeeperError::Ledger(LedgerError::Failed(_))) = result {
            self.away = Some(now);
        }
    }

    /// Whether the ledger was away a moment ago.
    pub(super) fn is_ledger_just_back(&self, now: Instant) -> bool {
        self.away.is_some_and(|away| now.saturating_duration_since(away) < JUST_BACK)
    }

    /// Whether it is time to look at the ledger. Counts as a look, before the ledger answers: one that hangs is not asked in every
    /// round.
    pub(super) fn begin_look(&mut self, now: Instant) -> bool {
        let due = is_due(self.looked, now, LOOK_EVERY);
        if due {
            self.looked = Some(now);
        }
        due
    }

    /// Asks the ledger whether the epoch is still in force. Returns why a loss is suspected, if it is not.
    pub(super) fn check_epoch(&mut self, servers: &mut Servers) -> Result<Option<String>, KeeperError> {
        let current = servers.ledger.epoch()?;
        if self.epoch.identity.is_empty() && current.number == self.epoch.number {
            // This instance came before the first opening, which another instance has done.
            self.epoch.identity = current.identity;
            return Ok(None);
        }
        Ok(if current.number != self.epoch.number {
            Some(format!("another instance has raised the epoch to {}", current.number))
        } else if current.identity != self.epoch.identity {
            Some(format!("another instance is closing epoch {}", current.number))
        } else {
            None
        })
    }

    /// Joins the epoch again if the session of its lock has ended, alone or because Postgres was restarted. Not to be called
    /// while a loss is suspected: an opener would wait for this instance.
    pub(super) fn renew(&mut self, servers: &mut Servers, selling: bool) -> Result<(), KeeperError> {
        if self.is_open() && !servers.ledger.is_member() {
            // While this instance has no lock, an opener does not wait for it; but the opener closes the states in Redis
            // first, and then Redis refuses its calls. The other instances may have lost their locks too, so the ledger
            // counts as away.
            if selling {
                self.away = self.looked;
            }
            servers.ledger.join(self.epoch.number)?;
        }
        Ok(())
    }

    /// Becomes a member of the epoch, if it still is the one in force. If that fails, it is a member of no epoch: an opener
    /// would wait for it.
    pub(super) fn join(&mut self, servers: &mut Servers) -> Result<(), KeeperError> {
        self.try_join(servers).inspect_err(|_| {
            let _ = servers.ledger.leave();
        })
    }

    fn try_join(&mut self, servers: &mut Servers) -> Result<(), KeeperError> {
        servers.ledger.join(self.epoch.number)?;
        // An opener that was frozen may go on after another instance has raised the epoch: it must not sell under the epoch
        // that it opened.
        let current = servers.ledger.epoch()?;
        if current == self.epoch {
            return Ok(());
        }
        Err(KeeperError::Superseded(format!("the ledger has moved on to epoch {}", current.number)))
    }

    /// Writes what this instance has and leaves the epoch: an opener need not wait for it any longer. Selling has stopped.
    pub(super) fn drain_and_leave(&mut self, servers: &mut Servers, own: &dyn OwnWork) -> Result<(), KeeperError> {
        drain(servers, own);
        Ok(servers.ledger.leave()?)
    }
}

/// Waits until this instance's calls are answered and its records written, for a while.
pub(super) fn drain(servers: &Servers, own: &dyn OwnWork) {
    let until = servers.now() + OWN_DRAIN;
    while own.undecided() > 0 && servers.now() < until {
        servers.time.sleep(DRAIN_LOOK);
    }
    flush(own, until);
}

/// Waits until `until` that the writer is done with all that it was given.
pub(super) fn flush(own: &dyn OwnWork, until: Instant) {
    if !own.flush(until) {
        // At debug level, since an outage brings this in each round; the writer has logged the outage.
        tracing::debug!("records of this instance are not written yet; they are offered again afterwards");
    }
}

/// Waits until no session holds a lock of the epoch `old` or of one before it. Ends the sessions that still do after `wait`.
pub(super) fn await_or_evict_members(servers: &mut Servers, old: u64, wait: Duration) -> Result<(), KeeperError> {
    if servers.ledger.drain(old, wait)? {
        return Ok(());
    }
    servers.still_opening()?;
    // A frozen instance, or a writer in a transaction that does not end: it could commit after the merge. What it has not committed
    // is offered to Redis when it goes on.
    let sessions = servers.ledger.evict(old)?;
    tracing::warn!(
        "an instance has not left epoch {old} in time: its sessions are ended ({sessions} sessions with Postgres)"
    );
    let free = servers.ledger.drain(old, EVICT_WAIT)?;
    servers.still_opening()?;
    if free {
        return Ok(());
    }
    Err(KeeperError::Superseded(format!("a session with Postgres still writes under epoch {old}")))
}
