//! The embedded ledger: one SQLite file in `DATA_DIR`.
//!
//! Owns the folder (one process at a time, by a lock on `<DATA_DIR>/lock`), the file `ledger.db` and its schema.
//! Two handles share the lock: [`SqliteLedger`] for the keeper and [`SqliteAppend`] for the writer, each with a
//! connection of its own; a thread of the writer's handle copies the log into `ledger.db`, with a third one. Invariants: a
//! committed transaction is on the disk (WAL, `synchronous=FULL`); the epoch is always
//! [`EMBEDDED_EPOCH`](crate::domain::EMBEDDED_EPOCH), since no other instance has to be fenced off. Leaves decisions to the
//! inventory.

mod append;
mod checkpoint;
mod files;
mod folder;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod report_tests;
mod schema;
#[cfg(test)]
mod tests;

pub use append::SqliteAppend;
pub use folder::OpenError;

use super::{Ledger, LedgerError, LedgerId, SaleRow};
use crate::code::{KEY_BYTES, MAX_INSTANCE, random_key};
use crate::domain::{HoldFacts, HoldNumber, HoldRow, Id, SaleId, Terms};
use files::OpenFiles;
use folder::FolderLock;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a statement waits for another connection's write. The keeper's own writes take milliseconds; an operator with
/// a shell on the file may take longer, and the sale goes on afterwards.
const BUSY: Duration = Duration::from_secs(2);
/// With so many pages in the write-ahead log, 64 MB, a commit copies them into the database. The checkpointer does so much earlier.
const BACKSTOP_PAGES: u32 = 16_000;
/// The page cache of a connection, in KiB: enough for a sale's rows.
const CACHE_KIB: i64 = 32 * 1024;

const HOLDS: &str = "
    SELECT h.hold AS hold, h.user_id, h.item_id, h.created_at, h.expires_at, p.created_at
    FROM ledger_holds h LEFT JOIN ledger_purchases p ON p.sale_id = h.sale_id AND p.hold = h.hold
    WHERE h.sale_id = ?1
    UNION ALL
    SELECT p.hold, p.user_id, p.item_id, p.created_at, 0, p.created_at
    FROM ledger_purchases p
    WHERE p.sale_id = ?1
      AND NOT EXISTS (SELECT 1 FROM ledger_holds h WHERE h.sale_id = p.sale_id AND h.hold = p.hold)
    ORDER BY hold";

/// The keeper's handle.
#[derive(Debug)]
pub struct SqliteLedger {
    db: Connection,
    path: PathBuf,
    lock: Arc<FolderLock>,
    files: Arc<OpenFiles>,
}

impl SqliteLedger {
    /// Opens the ledger in `dir`, or makes a new one there. The lock on `dir` keeps other processes out for as long as this
    /// handle or an appender of it lives.
    pub fn open(dir: &Path) -> Result<SqliteLedger, OpenError> {
        let lock = Arc::new(FolderLock::take(dir)?);
        let path = dir.join("ledger.db");
        let failed = |e: rusqlite::Error| OpenError::Database { path: path.clone(), source: e.into() };
        files::make(&path);
        let mut db = connect(&path).map_err(failed)?;
        schema::migrate(&mut db, &path)?;
        lock.sync()?;
        let unreadable = |e: std::io::Error| OpenError::Database { path: path.clone(), source: e.into() };
        let files = Arc::new(OpenFiles::look(&path).map_err(unreadable)?);
        Ok(SqliteLedger { db, path, lock, files })
    }
}

/// A connection with this ledger's settings, to a file that exists.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // Without URIs: a folder may have the name `file:data`.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |row| {
        // Some file systems cannot share memory: SQLite then keeps the old mode without an error.
        let mode: String = row.get(0)?;
        if mode.eq_ignore_ascii_case("wal") { Ok(()) } else { Err(rusqlite::Error::InvalidQuery) }
    })?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    db.pragma_update_and_check(None, "wal_autocheckpoint", BACKSTOP_PAGES, |_| Ok(()))?;
    Ok(db)
}

impl From<rusqlite::Error> for LedgerError {
    fn from(e: rusqlite::Error) -> LedgerError {
        LedgerError::about("the ledger", e)
    }
}

/// A number as SQLite's integer; an error beyond 63 bits.
fn int(n: u64) -> Result<i64, LedgerError> {
    i64::try_from(n).map_err(|_| LedgerError::failed(format!("{n} does not fit the ledger")))
}

/// The column `at`, which is never negative.
fn uint(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let n: i64 = row.get(at)?;
    u64::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, n))
}

fn sale_row(row: &Row<'_>) -> rusqlite::Result<SaleRow> {
    let terms = Terms {
        sale: SaleId(uint(row, 0)?),
        items: uint(row, 1)?,
        user_limit: uint(row, 2)?,
        hold_ms: uint(row, 3)?,
        starts_ms: uint(row, 4)?,
        ends_ms: uint(row, 5)?,
    };
    Ok(SaleRow { terms, opened: row.get(6)? })
}

fn hold_row(row: &Row<'_>) -> Result<HoldRow, LedgerError> {
    let number = HoldNumber(uint(row, 0)?);
    let id = |at: usize| -> Result<Id, LedgerError> {
        let bytes = row.get_ref(at)?.as_bytes().unwrap_or_default();
        Id::from_bytes(bytes).map_err(|e| LedgerError::failed(format!("hold {}: an id {e}", number.0)))
    };
    let purchased: Option<i64> = row.get(5)?;
    let facts = HoldFacts {
        user: id(1)?,
        item: id(2)?,
        taken_ms: uint(row, 3)?,
        expires_ms: uint(row, 4)?,
        purchased_ms: purchased.map(|_| uint(row, 5)).transpose()?,
    };
    Ok(HoldRow { number, facts })
}

impl Ledger for SqliteLedger {
    fn code_key(&mut self) -> Result<[u8; KEY_BYTES], LedgerError> {
        let fresh = random_key().map_err(|e| LedgerError::about("the system gives no random bytes for a key", e))?;
        self.db.execute("INSERT INTO code_key VALUES (1, ?1) ON CONFLICT DO NOTHING", [fresh])?;
        Ok(self.db.query_row("SELECT key FROM code_key", [], |row| row.get(0))?)
    }

    fn identity(&mut self) -> Result<LedgerId, LedgerError> {
        let fresh = LedgerId::random()?.to_string();
        self.db.execute("INSERT INTO ledger_identity VALUES (1, ?1) ON CONFLICT DO NOTHING", [fresh])?;
        let id: String = self.db.query_row("SELECT id FROM ledger_identity", [], |row| row.get(0))?;
        LedgerId::from_row(&id)
    }

    fn new_instance(&mut self) -> Result<u64, LedgerError> {
        let next = "UPDATE instances SET last = last + 1 WHERE last < ?1 RETURNING last";
        let next = self.db.query_row(next, [int(MAX_INSTANCE)?], |row| uint(row, 0)).optional()?;
        next.ok_or_else(|| LedgerError::failed(format!("all {MAX_INSTANCE} starts of this ledger are used up")))
    }

    fn sales(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, LedgerError> {
        let mut query = self.db.prepare_cached(
            "SELECT sale_id, items, user_limit, hold_ms, starts_at, ends_at, opened FROM sales
             WHERE ends_at > ?1 ORDER BY starts_at, sale_id",
        )?;
        let rows = query.query_map([int(now_ms)?], sale_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn plan(&mut self, terms: &Terms) -> Result<SaleRow, LedgerError> {
        let sale = int(terms.sale.0)?;
        let values = [
            sale,
            int(terms.items)?,
            int(terms.user_limit)?,
            int(terms.hold_ms)?,
            int(terms.starts_ms)?,
            int(terms.ends_ms)?,
        ];
        self.db.execute("INSERT INTO sales VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0) ON CONFLICT DO NOTHING", values)?;
        let query = "SELECT sale_id, items, user_limit, hold_ms, starts_at, ends_at, opened FROM sales
                     WHERE sale_id = ?1";
        Ok(self.db.query_row(query, [sale], sale_row)?)
    }

    fn replan(&mut self, terms: &Terms) -> Result<bool, LedgerError> {
        let values = [int(terms.sale.0)?, int(terms.items)?, int(terms.user_limit)?, int(terms.hold_ms)?];
        let replan = "UPDATE sales SET items = ?2, user_limit = ?3, hold_ms = ?4 WHERE sale_id = ?1
                      AND NOT EXISTS (SELECT 1 FROM ledger_holds WHERE sale_id = ?1)";
        Ok(self.db.execute(replan, values)? == 1)
    }

    fn mark_opened(&mut self, sale: SaleId) -> Result<(), LedgerError> {
        match self.db.execute("UPDATE sales SET opened = 1 WHERE sale_id = ?1", [int(sale.0)?])? {
            1 => Ok(()),
            _ => Err(LedgerError::failed(format!("sale {sale} is not planned"))),
        }
    }

    fn holds(&mut self, sale: SaleId, each: &mut dyn FnMut(HoldRow)) -> Result<(), LedgerError> {
        let mut query = self.db.prepare_cached(HOLDS)?;
        let mut rows = query.query([int(sale.0)?])?;
        while let Some(row) = rows.next()? {
            each(hold_row(row)?);
        }
        Ok(())
    }
}
