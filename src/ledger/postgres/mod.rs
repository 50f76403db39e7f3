//! The ledger in Postgres, 12 or later.
//!
//! Owns the tables of `sql/postgres/` and three kinds of advisory locks: the schema's, the openers', and one per
//! epoch. Advisory locks belong to a database, so a database serves one deployment; and they belong to sessions, so
//! a pooler that shares sessions between transactions must not stand in between.
//!
//! Invariants: rows are written only in a transaction that holds the shared lock of its epoch and has seen that epoch
//! in force; a call ends within its time limit even if Postgres hangs, because each session runs under a deadline of
//! its own ([`PostgresLedger`] names them). A call that ran into it may still have taken effect.
//! Refuses to know Redis, and when an epoch is to be raised.

mod append;
mod connect;
pub mod copy;
mod dsn;
mod fence;
mod ledger;
mod reconnecting;
mod records;
mod schema;
mod session;
mod tls;
mod write;

pub use append::PostgresAppend;
pub use connect::{ConnectSettings, DsnError, parse_dsn};
pub use dsn::GrammarError;
pub use ledger::PostgresLedger;
pub use tls::TlsError;

use session::Failure;
use std::error::Error;
use std::time::Duration;

/// How long a statement of the keeper's may take.
const WORK_LIMIT: Duration = Duration::from_secs(4);
/// How long writing a batch may take: a disk that is busy with a checkpoint is slow, not gone.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long reading all holds of a sale may take.
const READ_LIMIT: Duration = Duration::from_secs(60);

// The first key of our advisory locks: arbitrary, but never to change, or two versions would not exclude each other.
/// The schema's lock.
const SCHEMA_CLASS: i32 = 0x6673_0001;
/// The locks of the epochs; the second key is the epoch.
const EPOCH_CLASS: i32 = 0x6673_0002;
/// The openers' lock and those beside it; the second key is one of the three below.
const OPENERS_CLASS: i32 = 0x6673_0003;
/// The openers' lock itself.
const OPENING: i32 = 0;
/// Shared by all that wait for the openers' lock while nothing can be sold.
const URGENT: i32 = 1;
/// The reconcilers' lock.
const RECONCILING: i32 = 2;

/// Held shared by each member beside its epoch's lock, which writers hold too for a moment; the second key is the epoch.
const MEMBERS_CLASS: i32 = 0x6673_0004;

/// The second key of an epoch's lock.
fn epoch_key(epoch: u64) -> Result<i32, Failure> {
    i32::try_from(epoch).map_err(|_| Failure::refused(format!("the epoch {epoch} is beyond 31 bits")))
}

/// What an error of the driver's says, causes and SQLSTATE included, in one line.
fn one_line(error: &tokio_postgres::Error) -> String {
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
