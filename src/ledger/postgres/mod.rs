//! The ledger in Postgres, 12 or later.
//!
//! Owns the tables of `sql/postgres/` and the advisory locks: the schema's, the openers' and the reconcilers', and two for
//! each epoch. Advisory locks belong to a database, so a database serves one deployment; and they belong to sessions, so
//! no pooler that shares a session between clients may stand in between.
//!
//! Invariants: rows are written only in a transaction that holds the shared lock of its epoch and has seen that epoch
//! in force; a call ends within its time limit even if Postgres hangs, because each session runs under a deadline of
//! its own ([`PostgresLedger`] names them). A call that ran into its deadline may still have taken effect.
//! Leaves to the keeper when an epoch is raised, and all that concerns Redis.

mod append;
mod connect;
pub mod copy;
mod counted;
mod counting;
mod dsn;
mod failure;
mod fence;
mod ledger;
mod reconnecting;
mod records;
mod schema;
mod session;
mod tally;
mod tls;
mod values;
mod write;

pub use append::PostgresAppend;
pub use connect::{ConnectSettings, DsnError, parse_dsn};
pub use dsn::GrammarError;
pub use ledger::PostgresLedger;
pub use tls::TlsError;

use failure::Failure;
use std::time::Duration;

/// How long a statement of the keeper may take.
const WORK_LIMIT: Duration = Duration::from_secs(4);
/// How long writing a batch may take: during a checkpoint a disk can be slow for seconds.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long reading a page of a sale's holds may take.
const READ_LIMIT: Duration = Duration::from_secs(60);

// The first keys of the advisory locks: arbitrary, but they must never change, or two versions would not exclude each other.
/// The schema's lock.
const SCHEMA_CLASS: i32 = 0x6673_0001;
/// The locks of the epochs, which members and writers hold; the second key is the epoch.
const EPOCH_CLASS: i32 = 0x6673_0002;
/// The openers' lock and the two beside it; the second key is one of the three below.
const OPENERS_CLASS: i32 = 0x6673_0003;
/// The openers' lock.
const OPENING: i32 = 0;
/// Held shared by each instance that waits for the openers' lock while it cannot sell.
const URGENT: i32 = 1;
/// The reconcilers' lock.
const RECONCILING: i32 = 2;

/// Held shared by each member, beside its epoch's lock, which writers hold too for a moment; the second key is the epoch.
const MEMBERS_CLASS: i32 = 0x6673_0004;

/// The second key of an epoch's lock.
fn epoch_key(epoch: u64) -> Result<i32, Failure> {
    i32::try_from(epoch).map_err(|_| Failure::refused(format!("the epoch {epoch} is beyond 31 bits")))
}
