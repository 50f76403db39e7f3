//! Why work of the keeper did not get done.
//!
//! Owns the distinctions that the keeper acts on. Invariant: each error reads as the reason in a line of the log. Leaves the
//! words of a server's own error to the module that asked it.

use crate::ledger::LedgerError;
use crate::redis_wire::endpoint::Unreachable;

/// Why work of the keeper did not get done. All but [`KeeperError::Unusable`] and [`KeeperError::Foreign`] may pass by themselves:
/// the next round tries again.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Redis cannot be reached, refused a call, or answered what no script answers; in words for the log.
    #[error("{0}")]
    Redis(String),
    /// A script cannot read a sale's state, which only a rebuild mends.
    #[error("{0}")]
    Unreadable(String),
    /// The ledger refused, or cannot be reached.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Another instance has the openers' lock.
    #[error("another instance is opening sales")]
    Busy,
    /// Work that can wait gave way to an instance that cannot sell before it gets the openers' lock.
    #[error("late records of an ended sale wait: the openers' lock is needed")]
    GaveWay,
    /// Another instance, or another Redis, has come in the meantime: what this instance was about to do is void.
    #[error("{0}")]
    Superseded(String),
    /// Redis may have lost something: nothing may be sold until a recovery has settled it.
    #[error("{0}")]
    SuspectedLoss(String),
    /// A suspected loss is not settled, and the next attempt is not due yet.
    #[error("the suspected loss is not settled yet: {0}")]
    NotSettled(String),
    /// The Redis database holds the sales of another ledger, or of one that is not known.
    #[error("{0}")]
    Foreign(String),
    /// A server cannot be used at all.
    #[error("{setting}: {why}")]
    Unusable {
        /// The setting that names the server.
        setting: &'static str,
        /// The problem, in words for the operator.
        why: String,
    },
}

impl From<Unreachable> for KeeperError {
    fn from(why: Unreachable) -> KeeperError {
        KeeperError::Redis(why.to_string())
    }
}

impl KeeperError {
    /// Redis did not do what was asked because of `why`.
    pub fn redis(why: impl Into<String>) -> KeeperError {
        KeeperError::Redis(why.into())
    }
}
