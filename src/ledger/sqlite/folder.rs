//! The embedded ledger's folder: made when missing, locked against a second process.
//!
//! Owns the folder and its lock. Invariant: while a [`FolderLock`] lives, no other process, and no second lock in this
//! process, has the folder; the kernel releases the lock when the process ends, however it ends. Leaves the files in the
//! folder to the ledger.

use crate::ledger::TooNew;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::error::Error;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the embedded ledger did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made, written or synced.
    #[error("DATA_DIR {}: cannot be used: {source}", .dir.display())]
    Folder {
        /// `DATA_DIR`.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has locked the folder.
    #[error("DATA_DIR {}: another flashsale uses it; stop that one or choose another folder", .dir.display())]
    InUse {
        /// `DATA_DIR`.
        dir: PathBuf,
    },
    /// The file is a database of another program.
    #[error("DATA_DIR: {} is not a flashsale ledger", .path.display())]
    NoLedger {
        /// The file.
        path: PathBuf,
    },
    /// The file needs a newer program.
    #[error("DATA_DIR: {} {source}", .path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The versions of the file and of this program.
        source: TooNew,
    },
    /// SQLite cannot open or read the file.
    #[error("DATA_DIR: {} cannot be opened: {source}", .path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite or the system said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A migration failed; the file is as it was before this migration.
    #[error("DATA_DIR: {} cannot be opened: the schema's migration {name}: {source}", .path.display())]
    Migration {
        /// The file.
        path: PathBuf,
        /// The migration's name.
        name: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// The lock on the folder, held for as long as this value lives.
#[derive(Debug)]
pub struct FolderLock {
    dir: PathBuf,
    lock: File,
}

impl FolderLock {
    /// Makes `dir` if it is missing and locks it.
    pub fn take(dir: &Path) -> Result<FolderLock, OpenError> {
        let failed = |source| OpenError::Folder { dir: dir.to_owned(), source };
        make(dir).map_err(failed)?;
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"));
        let lock = open.map_err(failed)?;
        // flock belongs to the open file: unlike fcntl's lock, it also keeps out a second handle in this process.
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(FolderLock { dir: dir.to_owned(), lock }),
            Err(Errno::WOULDBLOCK) => Err(OpenError::InUse { dir: dir.to_owned() }),
            Err(e) => Err(failed(e.into())),
        }
    }

    /// Whether `DATA_DIR` still leads to the folder that was locked. If the folder was removed or replaced, a write
    /// now goes to files that no later start finds, and another process may use the new folder.
    pub fn is_in_place(&self) -> bool {
        let same = |ours: Metadata, there: Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        let there = std::fs::metadata(self.dir.join("lock"));
        self.lock.metadata().ok().zip(there.ok()).is_some_and(|(ours, there)| same(ours, there))
    }

    /// The folder's path, as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the names of the folder's files survive a loss of power.
    pub fn sync(&self) -> Result<(), OpenError> {
        sync_dir(&self.dir).map_err(|source| OpenError::Folder { dir: self.dir.clone(), source })
    }
}

/// Makes `dir` and the folders above it that are missing, and syncs each name into its parent. Only this user may look
/// inside: the key of the codes is kept there.
fn make(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make(parent)?;
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_dir(parent),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
