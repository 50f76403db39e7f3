//! The writer thread's session with Postgres.
//!
//! Owns that session, and whether rows of the previous write may be in the ledger although it failed. Invariants:
//! - Records that the ledger may have already ([`Records::push_repeated`]) are written after the others, through staging
//!   tables and in a transaction of their own: a row that exists makes a plain COPY fail, and all rows beside it with it.
//! - After a write that failed, or a lost session, the next write goes through staging tables, and only once the server's
//!   process of the failed session is gone: rows that it has not committed would block the new ones.
//!
//! Leaves to the writer when to write, and what becomes of records that the ledger refuses.

use super::connect::ConnectSettings;
use super::copy::Rows;
use super::failure::Failure;
use super::reconnecting::ReconnectingSession;
use super::session::Wire;
use super::{WRITE_LIMIT, write};
use crate::code::Codes;
use crate::domain::Records;
use crate::ledger::{Append, LedgerError};
use tokio_postgres::error::SqlState;

/// [`Append`] over a session of its own. Makes no connection before the first call.
pub struct PostgresAppend {
    session: ReconnectingSession,
    codes: Codes,
    /// The records that no earlier record states.
    fresh: Rows,
    /// The records that the ledger may have already.
    repeated: Rows,
    /// Whether the previous write failed in such a way that some of its rows may be in the ledger.
    unsettled: bool,
}

impl PostgresAppend {
    /// Writes with the codes of `codes`, into a ledger whose schema is there
    /// ([`super::PostgresLedger`] makes it on its first call).
    pub fn new(settings: ConnectSettings, codes: Codes) -> PostgresAppend {
        let session = ReconnectingSession::new(settings, "writer", WRITE_LIMIT);
        PostgresAppend { session, codes, fresh: Rows::default(), repeated: Rows::default(), unsettled: false }
    }
}

impl Append for PostgresAppend {
    fn append(&mut self, batches: &[&Records]) -> Result<(), LedgerError> {
        if batches.is_empty() {
            return Ok(());
        }
        self.fresh.encode_part(batches, &self.codes, false)?;
        self.repeated.encode_part(batches, &self.codes, true)?;
        let PostgresAppend { session, fresh, repeated, unsettled, .. } = self;
        let epochs: Vec<u64> = batches.iter().map(|batch| batch.epoch).collect();
        let mut staged = *unsettled;
        let done = session.run(async |wire| {
            // After a session is lost, this runs once more, and the first run may have written the rows.
            let staged = std::mem::replace(&mut staged, true);
            if !fresh.is_empty() || repeated.is_empty() {
                write_fresh(wire, &epochs, fresh, staged).await?;
            }
            if !repeated.is_empty() {
                write::staged(wire, &epochs, repeated).await?;
            }
            Ok(())
        });
        *unsettled = matches!(done, Err(Failure::Broken { .. }));
        Ok(done?)
    }
}

/// Writes `rows` with a plain COPY, or through staging tables if `staged`, or if the plain COPY finds some of them there.
async fn write_fresh(wire: &mut Wire, epochs: &[u64], rows: &Rows, staged: bool) -> Result<(), Failure> {
    if !staged {
        match write::plain(wire, epochs, rows).await {
            // A deadlock is possible with another instance that writes the same rows, as repeated ones.
            Err(failure) if failure.is(&SqlState::UNIQUE_VIOLATION) || failure.is(&SqlState::T_R_DEADLOCK_DETECTED) => {
                // The session is in order and none of these rows is half-written: write them again at once.
                wire.client.batch_execute("ROLLBACK").await?;
            }
            done => return done,
        }
    }
    write::staged(wire, epochs, rows).await.map(drop)
}
