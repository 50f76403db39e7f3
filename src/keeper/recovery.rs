//! Recovery from a suspected loss.
//!
//! Owns the suspicion, the time of the next attempt, and the order of the steps that settle it: the instance adopts what another one
//! has opened, or raises the epoch and rebuilds. Invariants: between closing and opening, no instance sells; what is opened holds
//! all that the ledger and Redis remember. Each step may be the last one of this process: the next instance finds a suspected loss
//! and begins anew. Leaves to [`super::rebuild`] how one sale is put together.

use super::error::KeeperError;
use super::late_records::LateRecords;
use super::membership::{self, Membership, OWN_DRAIN};
use super::open_sales::OpenSales;
use super::own_work::OwnWork;
use super::owner;
use super::present::Present;
use super::rebuild::rebuild_closed;
use super::sale_store::Built;
use super::servers::Servers;
use super::store::Condition;
use crate::domain::Terms;
use crate::inventory::{ENDED_KEPT_MS, Suspicion};
use crate::ledger::Epoch;
use crossbeam_channel::Receiver;
use std::time::{Duration, Instant};

/// How long an instance that is no member of an epoch waits for the openers' lock.
const LOCK_WAIT: Duration = Duration::from_secs(3);
/// How long the other instances may take to stop, write what they have and leave the old epoch. Postgres releases a dead one's
/// locks; what a slow one still has is offered to Redis afterwards.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// How long an opener waits for the other instances if the ledger was away a moment ago: the ledger may have lost their
/// locks, so nothing shows whether they have left. In this time they hear of the closing and write the records that they
/// could not write in the outage.
const BLIND_WAIT: Duration = Duration::from_millis(1_200);
/// How long a transaction that was begun before the epoch was raised may take to commit.
const COMMIT_WAIT: Duration = Duration::from_millis(500);
/// The wait after an attempt failed; it doubles up to [`MAX_RETRY`].
const MIN_RETRY: Duration = Duration::from_millis(50);
/// The longest wait between two attempts: each may write a whole sale anew.
const MAX_RETRY: Duration = Duration::from_secs(1);

/// The time between two rebuilds that are made because a script cannot read a state.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(10);

/// A suspected loss, if there is one.
#[derive(Default)]
pub(super) struct Recovery {
    /// Why it may be that something was lost.
    suspected: Option<String>,
    /// When the last attempt failed, and how long to wait after it.
    retry: Option<(Instant, Duration)>,
    /// The epoch under which a script could not read a state last, and when that was found.
    unreadable: Option<(u64, Instant)>,
}

impl Recovery {
    /// Something may be lost. The first reason stays until it is settled.
    pub(super) fn suspect(&mut self, why: String) {
        self.suspected.get_or_insert(why);
    }

    /// A script of `epoch` could not read a state, which only a rebuild mends. If a rebuild for this reason began less than
    /// [`UNREADABLE_PAUSE`] ago, it has not helped, and another one would only stop the sales again: nothing is done then.
    pub(super) fn suspect_unreadable(&mut self, now: Instant, epoch: u64, why: String) {
        if self.unreadable.is_none_or(|(_, found)| now.saturating_duration_since(found) >= UNREADABLE_PAUSE) {
            self.unreadable = Some((epoch, now));
            self.suspect(why);
        }
    }

    /// The epoch whose states are not to be adopted, however good their numbers are.
    pub(super) fn unreadable(&self) -> Option<u64> {
        self.unreadable.map(|(epoch, _)| epoch)
    }

    /// The reason, if a loss is suspected.
    pub(super) fn suspected(&self) -> Option<&str> {
        self.suspected.as_deref()
    }

    /// Fails with [`KeeperError::NotSettled`] if the next attempt is not due yet.
    pub(super) fn check_due(&self, now: Instant) -> Result<(), KeeperError> {
        match (&self.suspected, self.retry) {
            (Some(why), Some((failed, wait))) if now.saturating_duration_since(failed) < wait => {
                Err(KeeperError::NotSettled(why.clone()))
            }
            _ => Ok(()),
        }
    }

    /// An attempt has ended at `now`, with success or without.
    pub(super) fn attempted(&mut self, now: Instant, settled: bool) {
        if settled {
            (self.suspected, self.retry) = (None, None);
        } else {
            let wait = self.retry.map_or(MIN_RETRY, |(_, wait)| (wait * 2).min(MAX_RETRY));
            self.retry = Some((now, wait));
        }
    }
}

/// One attempt to settle a suspected loss, and all that it touches.
pub(super) struct Attempt<'a> {
    /// See [`Recovery::unreadable`].
    pub unreadable: Option<u64>,
    pub membership: &'a mut Membership,
    pub sales: &'a mut OpenSales,
    pub late: &'a mut LateRecords,
    pub own: &'a dyn OwnWork,
    pub suspicions: &'a Receiver<Suspicion>,
}

impl Attempt<'_> {
    /// Makes the attempt. Selling has stopped on this instance.
    pub(super) fn run(mut self, servers: &mut Servers) -> Result<(), KeeperError> {
        self.membership.drain_and_leave(servers, self.own)?;
        let had_lock = servers.locked(LOCK_WAIT, true, |servers| {
            self.adopt_or_reopen(servers)?;
            self.membership.join(servers)
        })?;
        if had_lock { Ok(()) } else { Err(KeeperError::Busy) }
    }

    fn adopt_or_reopen(&mut self, servers: &mut Servers) -> Result<(), KeeperError> {
        let current = servers.ledger.epoch()?;
        let mut redis = owner::look(servers)?;
        if current.identity != redis.identity {
            // An old connection may still lead to a master that the others have left.
            servers.store.reconnect();
            redis = owner::look(servers)?;
        }
        owner::claim(servers, &redis.owner)?;
        let now_ms = servers.now_ms()?;
        let opened: Vec<Terms> = self
            .sales
            .rows(servers, now_ms)?
            .iter()
            // Those that have just ended too: their purchases are still asked for.
            .filter(|row| row.opened && row.terms.ends_ms + ENDED_KEPT_MS > now_ms)
            .map(|row| row.terms)
            .collect();
        let is_readable = self.unreadable != Some(current.number);
        let (mut good, mut newest) = (current.identity == redis.identity && is_readable, current.number);
        for terms in &opened {
            match servers.store.condition(terms.sale, current.number)? {
                // A sale that has not begun gets the ledger's terms when it is looked at next.
                Condition::Good if terms.starts_ms > now_ms || servers.store.has_terms(terms)? => {}
                other => {
                    good = false;
                    // An opener may have died before it raised the epoch; a ledger may be older than Redis.
                    newest = newest.max(if let Condition::Epoch(theirs) = other { theirs } else { 0 });
                }
            }
        }
        if !good {
            return self.reopen(servers, current.number, newest + 1, &redis.identity, &opened);
        }
        self.membership.epoch = current;
        self.sales.replace(opened);
        self.place_own(servers);
        Ok(())
    }

    /// Places what this instance's writer could not write. What cannot be placed is tried again in a later round.
    fn place_own(&mut self, servers: &mut Servers) {
        self.late.take_stale();
        let present = Present {
            open: self.sales.open(),
            epoch: self.membership.epoch.number,
            counters: self.own.counters(),
            suspicions: self.suspicions,
        };
        if let Err(why) = self.late.place_open(servers, &present) {
            tracing::warn!("records that were too late for a rebuild are not placed yet, and are tried again: {why}");
        }
    }

    /// Closes the epoch `old`, and opens all sales anew under `epoch`.
    fn reopen(
        &mut self,
        servers: &mut Servers,
        old: u64,
        epoch: u64,
        identity: &str,
        opened: &[Terms],
    ) -> Result<(), KeeperError> {
        let sales = opened.len();
        tracing::warn!(
            "rebuilding {sales} sales from the ledger and Redis under epoch {epoch}; none of them sells until it is done"
        );
        self.close(servers, old, epoch, opened)?;
        let mut built = Vec::with_capacity(opened.len());
        let done = open_anew(servers, epoch, identity, opened, &mut built);
        if done.is_err() {
            built.iter().for_each(|built| servers.store.discard(built));
            return done;
        }
        self.membership.epoch = Epoch { number: epoch, identity: identity.to_owned() };
        self.sales.replace(opened.to_vec());
        // The late records of this instance are placed before any instance sells: while the row has no identity, none adopts
        // the epoch.
        self.place_own(servers);
        Ok(servers.ledger.set_identity(epoch, identity)?)
    }

    /// Closes the epoch `old` and raises it to `epoch`. All that was decided under `old` is in the ledger afterwards, is in the closed
    /// states, or is offered as late records.
    fn close(&mut self, servers: &mut Servers, old: u64, epoch: u64, opened: &[Terms]) -> Result<(), KeeperError> {
        // All members hear that selling is over, and may write what they have: the epoch is in force until it is raised.
        servers.still_opening()?;
        servers.ledger.announce_closing(old)?;
        for terms in opened {
            servers.store.close(terms, epoch)?;
        }
        // A worker may have sent a call just before it saw that selling has stopped: its records are written too.
        servers.still_opening()?;
        membership::drain(servers, self.own);
        servers.still_opening()?;
        if self.membership.is_ledger_just_back(servers.now()) {
            servers.time.sleep(BLIND_WAIT);
            servers.still_opening()?;
        }
        membership::await_or_evict_members(servers, old, DRAIN_WAIT)?;
        servers.ledger.raise(old, epoch)?;
        // A member that did not leave in time may have begun to write meanwhile. From here on none can begin.
        membership::await_or_evict_members(servers, old, COMMIT_WAIT)?;
        // This instance's writer gives up what it could not write under the old epoch, so that it can be placed.
        servers.still_opening()?;
        membership::flush(self.own, servers.now() + OWN_DRAIN);
        servers.still_opening()
    }
}

/// Rebuilds the closed sales and puts them in place. What was built so far is left in `built`.
fn open_anew(
    servers: &mut Servers,
    epoch: u64,
    identity: &str,
    opened: &[Terms],
    built: &mut Vec<Built>,
) -> Result<(), KeeperError> {
    for terms in opened {
        // Each sale keeps the openers' lock alive by this, also a small one, whose rebuild ends before `alive` is due.
        servers.still_opening()?;
        built.push(rebuild_closed(servers, terms, epoch)?);
    }
    // The last look before opening: this instance still is the opener, and Redis is still the same.
    servers.still_opening()?;
    if owner::look(servers)?.identity != identity {
        return Err(KeeperError::Superseded("Redis was started anew in the middle of the rebuild".into()));
    }
    for built in built {
        servers.store.open(built)?;
    }
    Ok(())
}
