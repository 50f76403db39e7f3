//! Why a ledger did not do what was asked.
//!
//! Owns the one distinction that callers act on: records of another epoch, or any other failure. Leaves the words to each ledger.

use std::error::Error;

/// Why the ledger did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The records were decided under another epoch than the ledger's, and are not written.
    #[error("the ledger's epoch is {current}")]
    Stale {
        /// The epoch that is in force.
        current: u64,
    },
    /// The ledger refused, or cannot be reached. A write may have had its effect all the same; the same call may be repeated.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
}

impl LedgerError {
    /// The ledger failed because of `why`: an error, or a text that says it.
    pub fn failed(why: impl Into<Box<dyn Error + Send + Sync>>) -> LedgerError {
        LedgerError::Failed(why.into())
    }

    /// The ledger failed because of `source`, during or about `what`.
    pub fn about(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> LedgerError {
        LedgerError::failed(About { what: what.into(), source: source.into() })
    }
}

/// An error, and what it is about.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct About {
    what: String,
    source: Box<dyn Error + Send + Sync>,
}
