//! The embedded ledger's folder: made when missing, locked against a second process.
//!
//! Invariant: while a [`FolderLock`] lives, no other process (and no second one in this process) has the folder. The
//! kernel lets go of it when the process ends, however it ends. Refuses to know what is in the folder.

use crate::ledger::TooNew;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fmt;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the embedded ledger did not open.
#[derive(Debug)]
pub enum OpenError {
    /// The folder cannot be made, written or synced.
    Folder {
        /// `DATA_DIR`.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the folder.
    InUse {
        /// `DATA_DIR`.
        dir: PathBuf,
    },
    /// The file is of another program.
    NoLedger {
        /// The file.
        path: PathBuf,
    },
    /// The file needs a newer program.
    TooNew {
        /// The file.
        path: PathBuf,
        /// The versions.
        why: TooNew,
    },
    /// SQLite cannot open the file.
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        why: String,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Folder { dir, source } => write!(f, "DATA_DIR {}: cannot be used: {source}", dir.display()),
            OpenError::InUse { dir } => {
                write!(
                    f,
                    "DATA_DIR {}: another flashsale uses it; stop that one or choose another folder",
                    dir.display()
                )
            }
            OpenError::NoLedger { path } => write!(f, "DATA_DIR: {} is not a flashsale ledger", path.display()),
            OpenError::TooNew { path, why } => write!(f, "DATA_DIR: {} {why}", path.display()),
            OpenError::Database { path, why } => write!(f, "DATA_DIR: {} cannot be opened: {why}", path.display()),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Folder { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The folder, kept for this process.
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

    /// Whether the folder still is the one that was locked. If it was removed or replaced, what is written now goes to
    /// files that nobody will find, and another process may use the folder.
    pub fn is_in_place(&self) -> bool {
        let same = |ours: Metadata, there: Metadata| (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        let there = std::fs::metadata(self.dir.join("lock"));
        self.lock.metadata().ok().zip(there.ok()).is_some_and(|(ours, there)| same(ours, there))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the names of the folder's files survive a loss of power.
    pub fn sync(&self) -> Result<(), OpenError> {
        sync_dir(&self.dir).map_err(|source| OpenError::Folder { dir: self.dir.clone(), source })
    }
}

/// Makes `dir` with what is missing above it, each name synced into its parent. Only this user may look inside: the
/// key of the codes lives there.
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
