//! The fence in Postgres: the epoch's row and the advisory locks.
//!
//! Owns the sessions of this instance's membership, of the openers' lock and of the reconcilers' lock: a lock lives exactly
//! as long as its session, so a dead instance's locks are released. Invariant: no session ever queues for an epoch's
//! exclusive lock, since the writers that it waits for would queue behind it. Leaves to the keeper when to raise the epoch.

use super::connect::ConnectSettings;
use super::failure::Failure;
use super::ledger::PostgresLedger;
use super::session::Session;
use super::values::{number, signed};
use super::{EPOCH_CLASS, MEMBERS_CLASS, OPENERS_CLASS, OPENING, RECONCILING, URGENT, WORK_LIMIT, epoch_key};
use crate::ledger::{Epoch, Fence, LedgerError};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

/// How often draining looks for locks: short beside the seconds of an outage, long beside the query's own cost.
const DRAIN_LOOK: Duration = Duration::from_millis(10);
/// How often draining renews the openers' lock, whose session ends after three idle seconds.
const DRAIN_SIGN: Duration = Duration::from_millis(500);

/// How many of this instance's latest member sessions are remembered, to leave them out of the members.
const OWN_SESSIONS: usize = 8;

/// The granted locks of the class `$1` of the epoch `$2` and of all before it. Reading the list of locks makes no session
/// wait; trying to take an exclusive lock would make new shared ones queue.
const OLD_LOCKS: &str = "FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2 \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
    AND classid::bigint = $1 AND objid::bigint <= $2";

impl PostgresLedger {
    /// The error of an update that found another epoch in force than the one that it names.
    fn stale(&mut self) -> LedgerError {
        self.epoch().map_or_else(|e| e, |epoch| LedgerError::Stale { current: epoch.number })
    }
}

fn not_held() -> Failure {
    Failure::refused("the openers' lock is not held")
}

/// Takes the lock `key` of the openers' class in a transaction of a session of its own, waiting for it at most `wait`.
/// `None` if another session has it. An urgent caller holds [`URGENT`] meanwhile.
fn exclusive(settings: &ConnectSettings, key: i32, wait: Duration, urgent: bool) -> Result<Option<Session>, Failure> {
    let mut session = Session::open(settings, WORK_LIMIT)?;
    // Zero would mean no limit. The statement's limit has to be later than the lock's.
    let lock = wait.as_millis().max(1);
    let statement = (wait + WORK_LIMIT).as_millis();
    let notice = if urgent {
        format!("SELECT pg_advisory_xact_lock_shared({OPENERS_CLASS}, {URGENT}); ")
    } else {
        String::new()
    };
    let begin = format!(
        "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '3s'; SET LOCAL lock_timeout = {lock}; \
         SET LOCAL statement_timeout = {statement}; {notice}SELECT pg_advisory_xact_lock({OPENERS_CLASS}, {key})"
    );
    match session.run_within(wait + WORK_LIMIT, async move |wire| Ok(wire.client.batch_execute(&begin).await?)) {
        Ok(()) => Ok(Some(session)),
        Err(failure) if failure.is(&SqlState::LOCK_NOT_AVAILABLE) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Ends the transaction of a lock. Waited for, so that the lock is free on return; if this fails, the session's end frees it.
fn end_exclusive(session: Option<Session>) {
    if let Some(mut session) = session {
        let _ = session.run(async |wire| Ok(wire.client.batch_execute("ROLLBACK").await?));
    }
}

impl Fence for PostgresLedger {
    fn clock_ms(&mut self) -> Result<u64, LedgerError> {
        self.run(async |wire| {
            const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint";
            number(&wire.client.query_one(CLOCK, &[]).await?, 0)
        })
    }

    fn epoch(&mut self) -> Result<Epoch, LedgerError> {
        self.run(async |wire| {
            let row = wire.client.query_opt("SELECT number, identity FROM ledger_fence", &[]).await?;
            let row = row.ok_or_else(|| Failure::refused("the row of ledger_fence is missing"))?;
            Ok(Epoch { number: number(&row, 0)?, identity: row.try_get(1)? })
        })
    }

    fn join(&mut self, epoch: u64) -> Result<(), LedgerError> {
        let key = epoch_key(epoch)?;
        let mut session = match self.member.take() {
            Some(session) => session,
            None => Session::open(&self.settings, WORK_LIMIT)?,
        };
        let lock = format!(
            "SELECT pg_advisory_unlock_all(); SELECT pg_advisory_lock_shared({EPOCH_CLASS}, {key}); \
             SELECT pg_advisory_lock_shared({MEMBERS_CLASS}, {key})"
        );
        let pid: i32 = session.run(async move |wire| {
            wire.client.batch_execute(&lock).await?;
            Ok(wire.client.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?)
        })?;
        self.member = Some(session);
        if self.own_sessions.back() != Some(&pid) {
            self.own_sessions.push_back(pid);
            // The server gives the number of a session that has ended to a new one some day.
            let surplus = self.own_sessions.len().saturating_sub(OWN_SESSIONS);
            self.own_sessions.drain(..surplus);
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), LedgerError> {
        // On an error the session is dropped, and the lock with it as soon as the server notices.
        let Some(mut session) = self.member.take() else { return Ok(()) };
        session.run(async |wire| Ok(wire.client.batch_execute("SELECT pg_advisory_unlock_all()").await?))?;
        Ok(())
    }

    fn is_member(&mut self) -> bool {
        let Some(mut session) = self.member.take() else { return false };
        let alive = session.run(async |wire| Ok(wire.client.batch_execute("SELECT 1").await?)).is_ok();
        self.member = alive.then_some(session);
        alive
    }

    fn members(&mut self, epoch: u64) -> Result<Vec<i32>, LedgerError> {
        let key = i64::from(epoch_key(epoch)?);
        let mut sessions: Vec<i32> = self.run(async move |wire| {
            let look = format!("SELECT pid {OLD_LOCKS} AND objid::bigint = $2");
            let class = i64::from(MEMBERS_CLASS);
            let rows = wire.client.query_typed(&look, &[(&class, Type::INT8), (&key, Type::INT8)]).await?;
            rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<_, Failure>>()
        })?;
        sessions.retain(|session| !self.own_sessions.contains(session));
        Ok(sessions)
    }

    fn lock_opening(&mut self, wait: Duration, urgent: bool) -> Result<bool, LedgerError> {
        if self.opener.is_some() && self.still_opening().is_ok() {
            return Ok(true);
        }
        self.opener = exclusive(&self.settings, OPENING, wait, urgent)?;
        Ok(self.opener.is_some())
    }

    fn still_opening(&mut self) -> Result<(), LedgerError> {
        let mut session = self.opener.take().ok_or_else(not_held)?;
        session.run(async |wire| Ok(wire.client.batch_execute("SELECT 1").await?))?;
        self.opener = Some(session);
        Ok(())
    }

    fn opening_is_urgent(&mut self) -> Result<bool, LedgerError> {
        let mut session = self.opener.take().ok_or_else(not_held)?;
        let urgent = session.run(async |wire| {
            const LOOK: &str = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted \
                AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                AND classid::bigint = $1 AND objid::bigint = $2 AND pid <> pg_backend_pid())";
            let class = i64::from(OPENERS_CLASS);
            let key = i64::from(URGENT);
            let row = wire.client.query_typed(LOOK, &[(&class, Type::INT8), (&key, Type::INT8)]).await?;
            Ok(row.first().is_some_and(|row| row.get(0)))
        })?;
        self.opener = Some(session);
        Ok(urgent)
    }

    fn unlock_opening(&mut self) {
        end_exclusive(self.opener.take());
    }

    fn lock_reconciling(&mut self) -> Result<bool, LedgerError> {
        if let Some(mut session) = self.reconciler.take() {
            // The server ends the session after three idle seconds, and this instance may have rebuilt a sale for longer.
            let is_held = session.run(async |wire| Ok(wire.client.batch_execute("SELECT 1").await?)).is_ok();
            self.reconciler = is_held.then_some(session);
            return Ok(is_held);
        }
        self.reconciler = exclusive(&self.settings, RECONCILING, Duration::ZERO, false)?;
        Ok(self.reconciler.is_some())
    }

    fn unlock_reconciling(&mut self) {
        end_exclusive(self.reconciler.take());
    }

    fn announce_closing(&mut self, epoch: u64) -> Result<(), LedgerError> {
        let changed = self.run(async move |wire| {
            const ANNOUNCE: &str = "UPDATE ledger_fence SET identity = '' WHERE number = $1";
            Ok(wire.client.execute(ANNOUNCE, &[&signed(epoch)?]).await?)
        })?;
        if changed == 0 { Err(self.stale()) } else { Ok(()) }
    }

    fn raise(&mut self, from: u64, to: u64) -> Result<(), LedgerError> {
        let changed = self.run(async move |wire| {
            // The new epoch is not opened on any Redis yet. If the opener dies now, the empty identity says so.
            const RAISE: &str = "UPDATE ledger_fence SET number = $2, identity = '' WHERE number = $1 AND $2 > $1";
            Ok(wire.client.execute(RAISE, &[&signed(from)?, &i64::from(epoch_key(to)?)]).await?)
        })?;
        if changed == 0 { Err(self.stale()) } else { Ok(()) }
    }

    fn set_identity(&mut self, epoch: u64, identity: &str) -> Result<(), LedgerError> {
        let changed = self.run(async move |wire| {
            const NOTE: &str = "UPDATE ledger_fence SET identity = $2 WHERE number = $1 AND identity IN ('', $2)";
            Ok(wire.client.execute(NOTE, &[&signed(epoch)?, &identity]).await?)
        })?;
        if changed == 0 { Err(self.stale()) } else { Ok(()) }
    }

    fn drain(&mut self, epoch: u64, wait: Duration) -> Result<bool, LedgerError> {
        let key = i64::from(epoch_key(epoch)?);
        let until = Instant::now() + wait;
        let mut sign = Instant::now();
        loop {
            let free = self.run(async move |wire| {
                let look = format!("SELECT NOT EXISTS (SELECT 1 {OLD_LOCKS})");
                Ok(wire.client.query_one(&look, &[&i64::from(EPOCH_CLASS), &key]).await?.try_get::<_, bool>(0)?)
            })?;
            if free {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if self.opener.is_some() && sign.elapsed() >= DRAIN_SIGN {
                self.still_opening()?;
                sign = Instant::now();
            }
            std::thread::sleep(DRAIN_LOOK.min(left));
        }
    }

    fn evict(&mut self, epoch: u64) -> Result<u64, LedgerError> {
        let key = i64::from(epoch_key(epoch)?);
        self.run(async move |wire| {
            let end = format!("SELECT pg_terminate_backend(pid) {OLD_LOCKS} AND pid <> pg_backend_pid()");
            Ok(wire.client.query(&end, &[&i64::from(EPOCH_CLASS), &key]).await?.len() as u64)
        })
    }
}
