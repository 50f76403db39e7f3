//! The writer thread's way into Postgres.
//!
//! Owns a session of its own and the doubt about the last write. Invariant: after doubt (a lost session, a unique
//! violation, any refusal) the next write goes through staging tables, and only once the process of the session in
//! doubt is gone, since its rows would block the new ones. Refuses to know who decided the records.

use super::connect::ConnectSettings;
use super::copy::Rows;
use super::reconnecting::ReconnectingSession;
use super::session::Failure;
use super::{WRITE_LIMIT, write};
use crate::code::Codes;
use crate::domain::Records;
use crate::ledger::{Append, LedgerError};
use tokio_postgres::error::SqlState;

/// [`Append`] over a session of its own. Makes no connection before the first call.
pub struct PostgresAppend {
    link: ReconnectingSession,
    codes: Codes,
    rows: Rows,
    doubt: bool,
}

impl PostgresAppend {
    /// Writes with the codes of `codes`, into a ledger whose schema is there
    /// ([`super::PostgresLedger`] makes it on its first call).
    pub fn new(settings: ConnectSettings, codes: Codes) -> PostgresAppend {
        let link = ReconnectingSession::new(settings, "writer", WRITE_LIMIT);
        PostgresAppend { link, codes, rows: Rows::default(), doubt: false }
    }
}

impl Append for PostgresAppend {
    fn append(&mut self, batches: &[&Records]) -> Result<(), LedgerError> {
        if batches.is_empty() {
            return Ok(());
        }
        self.rows.encode(batches, &self.codes).map_err(LedgerError::Failed)?;
        let PostgresAppend { link, rows, doubt, .. } = self;
        let (rows, mut staged) = (&*rows, *doubt);
        let epochs: Vec<u64> = batches.iter().map(|batch| batch.epoch).collect();
        let done = link.run(async move |wire| {
            // Where a lost session has it done twice, the first time may have written the rows.
            if std::mem::replace(&mut staged, true) {
                return write::staged(wire, &epochs, rows).await.map(drop);
            }
            match write::plain(wire, &epochs, rows).await {
                Err(failure) if failure.is(&SqlState::UNIQUE_VIOLATION) => {
                    // The session is in order and nobody's rows are half-written: settle it at once.
                    wire.client.batch_execute("ROLLBACK").await?;
                    write::staged(wire, &epochs, rows).await.map(drop)
                }
                done => done,
            }
        });
        *doubt = matches!(done, Err(Failure::Broken { .. }));
        Ok(done?)
    }
}
