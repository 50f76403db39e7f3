//! A session that is opened again after an error.
//!
//! Owns reconnecting, the end of the server's process that a lost session left behind, the one quiet attempt on a new
//! session if the old one turns out to be over, and one warning for each outage. Invariant: the caller's work may be done
//! twice, so it must do no harm twice. Leaves the work to its caller.

use super::connect::ConnectSettings;
use super::failure::Failure;
use super::session::{Backend, Session, Wire};
use std::time::Duration;

/// A place for one session.
pub(super) struct ReconnectingSession {
    settings: ConnectSettings,
    /// The part of the service that uses the session, for the log.
    role: &'static str,
    limit: Duration,
    session: Option<Session>,
    /// The process of a session that was dropped in the middle of something. It may hold rows that were not committed.
    left: Option<Backend>,
    /// Whether the last call succeeded; `None` before the first success, while the caller reports all failures.
    answers: Option<bool>,
}

impl ReconnectingSession {
    /// No session yet; each statement in a later session may take `limit`.
    pub fn new(settings: ConnectSettings, role: &'static str, limit: Duration) -> ReconnectingSession {
        ReconnectingSession { settings, role, limit, session: None, left: None, answers: None }
    }

    /// Does `work` in the session, and opens one first if there is none. Any error but `Stale` ends the session. If a
    /// session that was good before is over now, a new one replaces it and `work` is done once more before a failure is
    /// reported: the first time may have had its effect.
    pub fn run<T>(&mut self, work: impl AsyncFnMut(&mut Wire) -> Result<T, Failure>) -> Result<T, Failure> {
        self.run_within(self.limit, work)
    }

    /// [`ReconnectingSession::run`] with a time limit of its own.
    pub fn run_within<T>(
        &mut self,
        limit: Duration,
        mut work: impl AsyncFnMut(&mut Wire) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let was_good = self.session.is_some();
        let mut done = self.attempt(limit, &mut work);
        if let Err(failure) = &done
            && was_good
            && failure.is_lost_session()
        {
            tracing::debug!("the {}'s session with Postgres was over and is replaced: {failure:?}", self.role);
            done = self.attempt(limit, &mut work);
        }
        self.tell(&done);
        done
    }

    fn attempt<T>(
        &mut self,
        limit: Duration,
        work: &mut impl AsyncFnMut(&mut Wire) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let done = match self.session() {
            Ok(session) => session.run_within(limit, work),
            Err(failure) => Err(failure),
        };
        if let Err(Failure::Broken { .. }) = &done {
            self.left = self.session.take().map(|session| session.backend()).or(self.left);
        }
        done
    }

    fn session(&mut self) -> Result<&mut Session, Failure> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::open(&self.settings, self.limit)?,
        };
        if let Some(left) = self.left {
            session.end(left)?;
            self.left = None;
        }
        Ok(self.session.insert(session))
    }

    /// Logs when an outage begins and when it ends, not for each attempt in between.
    fn tell<T>(&mut self, done: &Result<T, Failure>) {
        match done {
            Err(Failure::Broken { text, .. }) if self.answers == Some(true) => {
                self.answers = Some(false);
                let role = self.role;
                let place = self.settings.describe();
                tracing::warn!("the {role} cannot use Postgres ({place}) and tries again until it can: {text}");
            }
            Ok(_) | Err(Failure::Stale(_)) if self.answers.replace(true) == Some(false) => {
                tracing::info!("the {} can use Postgres again ({})", self.role, self.settings.describe());
            }
            _ => {}
        }
    }
}
