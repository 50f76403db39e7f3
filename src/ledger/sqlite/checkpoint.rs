//! The checkpointer: a thread that copies the write-ahead log into `ledger.db`, so that no commit has to.
//!
//! Owns a connection of its own, and the turn: a lock that the writer holds during each transaction. A log is written from its
//! beginning again only if all of it was copied and synced at a moment at which no transaction is under way; a writer that never
//! pauses gives no such moment ("checkpoint starvation" in SQLite's manual), so the checkpointer takes one. It copies and syncs
//! beforehand, while the writer goes on: what is left for the moment is what was written in the last milliseconds.
//!
//! Invariants: nothing is copied while the names of the files do not lead to the open files; a copy changes no answer, since a
//! commit is on the disk before any copy of it. If the thread is slow, is kept from its work by a reader, or is gone, the writer's
//! own connection copies at `BACKSTOP_PAGES`, as SQLite does by default at fewer pages. Leaves writing to the writer.

use super::files::OpenFiles;
use super::{BACKSTOP_PAGES, FolderLock, connect};
use crate::ledger::LedgerError;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The least time between two copies.
const ROUND: Duration = Duration::from_millis(50);
/// So many pages in the log are worth a copy, about.
const COPIED_PAGES: u64 = 250;
/// With so many pages, the log is written from its beginning again: 16 MB. The writer waits 0.6 to 0.9 ms for that, about once a
/// second at 15,000 checkouts a second in a thousand transactions. A commit that copied 1,000 pages took 2.5 ms, four times a second.
const LOG_PAGES: i64 = 4_000;
// The checkpointer has a few seconds of load before a commit does its work.
const _: () = assert!(LOG_PAGES * 4 <= BACKSTOP_PAGES as i64);

/// The thread, from the writer's side.
pub(super) struct Checkpointer {
    /// About how many pages were written since the last copy.
    pages: Arc<AtomicU64>,
    turn: Arc<Mutex<()>>,
    /// Tells the thread that there is something to copy. `None` only while this is dropped.
    wake: Option<Sender<()>>,
    /// The thread ends when this is dropped.
    life: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread for the database at `path`, which is open as `files`.
    pub fn start(path: &Path, folder: Arc<FolderLock>, files: Arc<OpenFiles>) -> Result<Checkpointer, LedgerError> {
        let (wake, woken) = bounded(1);
        let (life, end) = bounded(0);
        let (pages, turn) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(())));
        let work = Work { db: connect(path)?, folder, files, turn: turn.clone() };
        let thread = std::thread::Builder::new().name("ledger-checkpoint".to_owned()).spawn({
            let pages = pages.clone();
            move || work.run(&woken, &end, &pages)
        });
        let thread = thread.map_err(|e| LedgerError::about("the ledger's checkpointer cannot start", e))?;
        Ok(Checkpointer { pages, turn, wake: Some(wake), life: Some(life), thread: Some(thread) })
    }

    /// The right to write a transaction. Held until its commit.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// A transaction of `rows` rows was committed.
    pub fn committed(&self, rows: usize) {
        // The page that was filled before, the one that is filled now, and what is between them.
        let written = 2 + rows as u64 / 16;
        if self.pages.fetch_add(written, Ordering::Relaxed) + written >= COPIED_PAGES
            && let Some(wake) = &self.wake
        {
            let _ = wake.try_send(());
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        // The thread's connection ends before the writer's does: the last one copies the rest and removes the log.
        drop((self.wake.take(), self.life.take()));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread works with. The connection is dropped before the files: see [`OpenFiles`].
struct Work {
    db: Connection,
    folder: Arc<FolderLock>,
    files: Arc<OpenFiles>,
    turn: Arc<Mutex<()>>,
}

impl Work {
    fn run(self, woken: &Receiver<()>, end: &Receiver<Infallible>, pages: &AtomicU64) {
        while woken.recv().is_ok() {
            if end.recv_timeout(ROUND) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            pages.store(0, Ordering::Relaxed);
            if let Err(e) = self.round() {
                // The log has all of it. A commit will report what is wrong with the disk.
                tracing::debug!("the ledger's log cannot be copied into ledger.db now: {e}");
            }
        }
    }

    /// Copies what is in the log, and makes room in a log that has grown large.
    fn round(&self) -> Result<(), LedgerError> {
        if self.copy()? < LOG_PAGES {
            return Ok(());
        }
        // Twice: the first may take long. The second has only what was written meanwhile.
        for _ in 0..2 {
            self.files.sync_database().map_err(|e| LedgerError::about("ledger.db", e))?;
            self.copy()?;
        }
        let _turn = self.turn.lock();
        self.copy().map(drop)
    }

    /// Copies the log as far as it has come. Returns its pages; 0 if not all of them could be copied, because of a reader or another
    /// connection's copy. Waits for neither.
    fn copy(&self) -> Result<i64, LedgerError> {
        if !self.folder.is_in_place() || self.files.check().is_err() {
            return Ok(0);
        }
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let (busy, log, copied) = self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], read)?;
        Ok(if busy == 0 && copied == log { log } else { 0 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::code::Codes;
    use crate::domain::RecordKind::Hold;
    use crate::ledger::Append;
    use crate::ledger::sqlite::SqliteLedger;
    use crate::ledger::sqlite::tests::{SALE, batch};
    use std::sync::atomic::AtomicBool;
    use std::time::Instant;
    use tempfile::TempDir;

    fn work(ledger: &SqliteLedger) -> Work {
        let db = connect(&ledger.path).unwrap();
        Work { db, folder: ledger.lock.clone(), files: ledger.files.clone(), turn: Arc::default() }
    }

    /// A connection that writes eleven pages a commit.
    fn writer(ledger: &SqliteLedger) -> Connection {
        let db = connect(&ledger.path).unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS filler (x BLOB)").unwrap();
        db
    }

    fn write(db: &Connection) {
        db.execute("INSERT INTO filler VALUES (randomblob(40000))", []).unwrap();
    }

    fn fill(db: &Connection) {
        (0..LOG_PAGES / 10).for_each(|_| write(db));
    }

    #[test]
    fn a_large_log_begins_anew_although_the_writer_never_pauses() {
        let dir = TempDir::new().unwrap();
        let ledger = SqliteLedger::open(dir.path()).unwrap();
        let (work, db) = (work(&ledger), writer(&ledger));
        fill(&db);
        let (turn, stop) = (work.turn.clone(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _turn = turn.lock();
                    write(&db);
                }
                // The first commit after a complete copy begins the log anew.
                write(&db);
            });
            work.round().unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        let log = work.copy().unwrap();
        assert!((1..LOG_PAGES / 2).contains(&log), "{log} pages are in the log");
    }

    #[test]
    fn the_writer_does_not_wait_for_a_reader() {
        let dir = TempDir::new().unwrap();
        let ledger = SqliteLedger::open(dir.path()).unwrap();
        let (work, db, reader) = (work(&ledger), writer(&ledger), connect(&ledger.path).unwrap());
        write(&db);
        reader.execute_batch("BEGIN; SELECT count(*) FROM filler").unwrap();
        fill(&db);
        assert_eq!(work.copy().unwrap(), 0, "what the reader may still need is not overwritten");
        {
            // If the round waited for the writer's turn here, it would never end.
            let _turn = work.turn.lock();
            work.round().unwrap();
        }
        reader.execute_batch("COMMIT").unwrap();
        work.round().unwrap();
        write(&db);
        assert!((1..100).contains(&work.copy().unwrap()));
    }

    #[test]
    fn nothing_is_copied_into_a_database_without_its_name() {
        let dir = TempDir::new().unwrap();
        let ledger = SqliteLedger::open(dir.path()).unwrap();
        let (work, db) = (work(&ledger), writer(&ledger));
        write(&db);
        let path = dir.path().join("ledger.db");
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        let size = || std::fs::metadata(dir.path().join("elsewhere")).unwrap().len();
        let before = size();
        work.round().unwrap();
        assert_eq!(size(), before);
        std::fs::rename(dir.path().join("elsewhere"), &path).unwrap();
        assert!(work.copy().unwrap() > 0);
        assert!(std::fs::metadata(&path).unwrap().len() > before);
    }

    /// `cargo test --release --lib -- --ignored --nocapture a_commits_time`
    #[test]
    #[ignore = "a measurement"]
    fn a_commits_time() {
        let dir = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let ledger = SqliteLedger::open(dir.path()).unwrap();
        let mut append = ledger.appender(Codes::new(&[7; 16])).unwrap();
        let mut took = Vec::new();
        let begun = Instant::now();
        for commit in 0..20_000u64 {
            // 15,000 rows a second.
            let due = Duration::from_micros(commit * 1_000);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let rows: Vec<_> = (commit * 15..(commit + 1) * 15).map(|number| (Hold, number, "u123456")).collect();
            let rows = batch(SALE, &rows);
            let from = Instant::now();
            append.append(&[&rows]).unwrap();
            took.push(from.elapsed());
        }
        let whole = begun.elapsed();
        took.sort_unstable();
        let at = |share: f64| took.get(((took.len() - 1) as f64 * share) as usize).unwrap();
        println!(
            "{whole:.1?}: p50 {:.2?} p99 {:.2?} p99.9 {:.2?} p99.99 {:.2?} max {:.2?}",
            at(0.5),
            at(0.99),
            at(0.999),
            at(0.9999),
            at(1.0)
        );
    }
}
