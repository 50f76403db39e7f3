//! The writer's side of the embedded ledger: one transaction a call.
//!
//! Owns a connection of its own, and the checkpointer. Invariant: after [`Append::append`] returned an error, no record of
//! its batches is in the ledger, unless the disk itself failed in the commit: then the rows may show up after a crash, and
//! writing them again is harmless. Leaves to the writer what becomes of refused records.

use super::checkpoint::Checkpointer;
use super::{FolderLock, OpenFiles, SqliteLedger, connect, int};
use crate::code::Codes;
use crate::domain::{EMBEDDED_EPOCH, HoldKey, RecordKind, RecordRef, Records};
use crate::ledger::{Append, LedgerError};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, ToSql, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const INSERT_HOLD: &str = "INSERT INTO ledger_holds VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";
const INSERT_PURCHASE: &str = "INSERT INTO ledger_purchases VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";

/// How many free bytes the disk must have before a ledger that refused is used again: a large batch takes as much.
const PROBE_ROOM: u64 = 4 << 20;

/// The writer's handle.
pub struct SqliteAppend {
    checkpointer: Checkpointer,
    /// `None` after an error that may have left the connection unusable: the next call makes a new one.
    db: Option<Connection>,
    path: PathBuf,
    codes: Codes,
    folder: Arc<FolderLock>,
    files: Arc<OpenFiles>,
}

impl SqliteLedger {
    /// The writer's handle, which mints the codes of its rows with `codes`.
    pub fn appender(&self, codes: Codes) -> Result<SqliteAppend, LedgerError> {
        // The schema and the codes' key go from the log into the database at once: if the log is lost later, the rows are
        // worth nothing without them. If this fails, the log has them as before, and the first write reports the cause.
        let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        SqliteAppend::new(self.path.clone(), codes, Arc::clone(&self.lock), Arc::clone(&self.files))
    }
}

impl SqliteAppend {
    fn new(
        path: PathBuf,
        codes: Codes,
        folder: Arc<FolderLock>,
        files: Arc<OpenFiles>,
    ) -> Result<SqliteAppend, LedgerError> {
        let checkpointer = Checkpointer::start(&path, folder.clone(), files.clone())?;
        Ok(SqliteAppend { checkpointer, db: Some(connect(&path)?), path, codes, folder, files })
    }

    /// `Err` if the files that are open are not those of `DATA_DIR` any more.
    ///
    /// If the log alone has lost its name, its contents are copied into `ledger.db` first: otherwise a kill would lose them.
    fn check_files(&self) -> Result<(), LedgerError> {
        let folder = self.folder.dir().display();
        if !self.folder.is_in_place() {
            let why = format!("DATA_DIR {folder}: the folder was removed or replaced while it was in use");
            return Err(LedgerError::failed(why));
        }
        let checked = self.files.check();
        if checked.is_err() && self.files.is_log_alone_lost() {
            self.rescue();
        }
        checked.map_err(|lost| LedgerError::about(format!("DATA_DIR {folder}"), lost))
    }

    /// Copies the log's contents into the database, on the connection that has both open. If an error has cost that
    /// connection there is no copy: a new connection would make a new log. Called at each check: readers may prevent one
    /// copy, and the keeper may have written since. `PASSIVE` waits for no other connection and leaves the log as it is.
    fn rescue(&self) {
        if let Some(db) = &self.db
            && let Err(e) = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        {
            tracing::debug!("the ledger's log was removed, and copying its contents into the database failed: {e}");
        }
    }

    /// How many bytes the ledger's files may still grow: what the disk has free, at most what this process' limit allows.
    fn room(&self) -> Result<u64, LedgerError> {
        let disk = rustix::fs::statvfs(&self.path).map_err(|e| LedgerError::about("the ledger's disk", e))?;
        // Some file systems do not report their size. There the probe's transaction decides.
        let free = if disk.f_blocks == 0 { u64::MAX } else { disk.f_bavail.saturating_mul(disk.f_frsize) };
        let allowed = rustix::process::getrlimit(rustix::process::Resource::Fsize).current.unwrap_or(u64::MAX);
        Ok(free.min(allowed.saturating_sub(self.files.largest())))
    }

    /// The connection, for tests that set limits on it.
    #[cfg(test)]
    pub(super) fn connection(&self) -> Option<&Connection> {
        self.db.as_ref()
    }
}

impl Append for SqliteAppend {
    fn append(&mut self, batches: &[&Records]) -> Result<(), LedgerError> {
        if batches.iter().any(|records| records.epoch != EMBEDDED_EPOCH) {
            return Err(LedgerError::Stale { current: EMBEDDED_EPOCH });
        }
        self.check_files()?;
        let done = {
            let _turn = self.checkpointer.turn();
            on_connection(&mut self.db, &self.path, |db| write(db, &self.codes, batches))
        };
        if done.is_ok() {
            self.checkpointer.committed(batches.iter().map(|records| records.len()).sum());
        }
        done
    }

    fn probe(&mut self) -> Result<(), LedgerError> {
        self.check_files()?;
        // A full disk takes a page that is in the files already, and refuses the next batch all the same.
        let room = self.room()?;
        if room < PROBE_ROOM {
            return Err(LedgerError::failed(format!("the ledger's files may grow by {room} bytes only")));
        }
        let _turn = self.checkpointer.turn();
        on_connection(&mut self.db, &self.path, probe)
    }

    fn look(&mut self) -> Result<(), LedgerError> {
        self.check_files()
    }
}

/// Why a transaction did not commit.
enum WriteError {
    Sqlite(rusqlite::Error),
    Ledger(LedgerError),
}

impl WriteError {
    fn code(&self) -> Option<ErrorCode> {
        match self {
            WriteError::Sqlite(e) => e.sqlite_error_code(),
            WriteError::Ledger(_) => None,
        }
    }
}

impl From<rusqlite::Error> for WriteError {
    fn from(e: rusqlite::Error) -> WriteError {
        WriteError::Sqlite(e)
    }
}

impl From<LedgerError> for WriteError {
    fn from(e: LedgerError) -> WriteError {
        WriteError::Ledger(e)
    }
}

impl From<WriteError> for LedgerError {
    fn from(e: WriteError) -> LedgerError {
        match e {
            WriteError::Sqlite(e) => e.into(),
            WriteError::Ledger(e) => e,
        }
    }
}

/// Does `work` on the connection of `place`, or on a new one if there is none.
fn on_connection(
    place: &mut Option<Connection>,
    path: &Path,
    work: impl FnOnce(&mut Connection) -> Result<(), WriteError>,
) -> Result<(), LedgerError> {
    let mut db = match place.take() {
        Some(db) => db,
        None => connect(path)?,
    };
    let done = work(&mut db);
    // After a full disk or a busy file the connection has rolled back and is usable.
    let harmless = |e: &WriteError| matches!(e.code(), Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy));
    let usable = done.as_ref().err().is_none_or(|e| harmless(e) && db.is_autocommit());
    *place = usable.then_some(db);
    Ok(done?)
}

/// Writes `batches` in one transaction, which is rolled back if it is dropped before its commit.
fn write(db: &mut Connection, codes: &Codes, batches: &[&Records]) -> Result<(), WriteError> {
    // Immediate: SQLite waits for a busy file only before the transaction has read anything.
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut holds = tx.prepare_cached(INSERT_HOLD)?;
        let mut purchases = tx.prepare_cached(INSERT_PURCHASE)?;
        for records in batches {
            for record in records.iter() {
                let code = codes.mint_block(HoldKey { sale: records.sale, number: record.number });
                let insert = match record.kind {
                    RecordKind::Hold => &mut holds,
                    RecordKind::Purchase => &mut purchases,
                };
                bind(insert, int(records.sale.0)?, &code, &record)?;
                insert.raw_execute()?;
            }
        }
    }
    Ok(tx.commit()?)
}

/// A transaction that changes nothing in the end, and has to reach the disk all the same. It adds one and subtracts one:
/// SQLite does not write a row that is given the value that it has.
fn probe(db: &mut Connection) -> Result<(), WriteError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute("UPDATE instances SET last = last + 1", [])?;
    tx.execute("UPDATE instances SET last = last - 1", [])?;
    Ok(tx.commit()?)
}

fn bind(insert: &mut CachedStatement<'_>, sale: i64, code: &[u8], record: &RecordRef<'_>) -> Result<(), WriteError> {
    insert.raw_bind_parameter(1, sale)?;
    insert.raw_bind_parameter(2, int(record.number.0)?)?;
    insert.raw_bind_parameter(3, code)?;
    insert.raw_bind_parameter(4, Text(record.user))?;
    insert.raw_bind_parameter(5, Text(record.item))?;
    insert.raw_bind_parameter(6, int(record.at_ms)?)?;
    if record.kind == RecordKind::Hold {
        insert.raw_bind_parameter(7, int(record.expires_ms)?)?;
    }
    Ok(())
}

/// A valid id's bytes as SQL text: they are UTF-8, so they are not checked again.
struct Text<'a>(&'a [u8]);

impl ToSql for Text<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}
