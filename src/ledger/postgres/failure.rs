//! Why a call of Postgres did not do what was asked.
//!
//! Owns the distinctions that sessions and the ledger act on, and the words of the driver's errors. Leaves to the others what
//! follows from a failure.

use crate::ledger::LedgerError;
use std::error::Error;
use tokio_postgres::error::{Severity, SqlState};

/// Why a call did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The epoch is another one. The transaction is over, the session in order.
    Stale(u64),
    /// Postgres refused, or the session is lost: in both cases the session is not to be used again.
    Broken {
        /// What went wrong, in one line.
        text: String,
        /// The driver's error, unless the failure was found here.
        source: Option<tokio_postgres::Error>,
        /// Whether the socket or Postgres said that the session is over, as opposed to one refused statement or to silence.
        lost: bool,
    },
}

/// A [`Failure::Broken`] without its session: the source of the errors that the ledger returns.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct PostgresError {
    text: String,
    source: Option<tokio_postgres::Error>,
}

impl Failure {
    /// A failure that was found here, not by Postgres: the session is alive.
    pub fn refused(text: impl Into<String>) -> Failure {
        Failure::Broken { text: text.into(), source: None, lost: false }
    }

    /// Whether the session is over while Postgres may be well: `idle_session_timeout` and administrators end idle sessions,
    /// and a router on the way may forget them.
    pub fn is_lost_session(&self) -> bool {
        matches!(self, Failure::Broken { lost: true, .. })
    }

    /// The session is over.
    pub fn lost(text: impl Into<String>) -> Failure {
        Failure::Broken { text: text.into(), source: None, lost: true }
    }

    /// The same failure, whose text begins with `what`: what was done when it came up.
    pub fn during(self, what: &str) -> Failure {
        match self {
            Failure::Broken { text, source, lost } => Failure::Broken { text: format!("{what}: {text}"), source, lost },
            stale @ Failure::Stale(_) => stale,
        }
    }

    /// Whether Postgres refused with the SQLSTATE `wanted` and the session is alive.
    pub fn is(&self, wanted: &SqlState) -> bool {
        matches!(self, Failure::Broken { source: Some(error), lost: false, .. } if error.code() == Some(wanted))
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        let lost = error
            .as_db_error()
            .is_none_or(|db| matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic)));
        Failure::Broken { text: one_line(&error), source: Some(error), lost }
    }
}

impl From<Failure> for LedgerError {
    fn from(failure: Failure) -> LedgerError {
        let (text, source, lost) = match failure {
            Failure::Stale(current) => return LedgerError::Stale { current },
            Failure::Broken { text, source, lost } => (text, source, lost),
        };
        let is_answer = source.as_ref().is_some_and(|error| error.as_db_error().is_some());
        let text = match (is_answer, lost) {
            (true, _) => format!("Postgres says: {text}"),
            (false, true) => format!("the connection to Postgres failed: {text}"),
            (false, false) => text,
        };
        LedgerError::failed(PostgresError { text, source })
    }
}

/// The text of a driver's error in one line, with its causes and its SQLSTATE.
pub(super) fn one_line(error: &tokio_postgres::Error) -> String {
    let text = match error.as_db_error() {
        Some(db) => {
            let detail = db.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
            format!("{}: {}{detail} [SQLSTATE {}]", db.severity(), db.message(), db.code().code())
        }
        None => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            text
        }
    };
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
