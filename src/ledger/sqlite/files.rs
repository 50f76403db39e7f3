//! The ledger's files: made before SQLite opens them, and watched while SQLite has them open.
//!
//! Owns the making of a new `ledger.db`, and the check that the names still lead to the files that are open.
//! Invariant: beside SQLite, this process never closes a descriptor of an existing file of the ledger while SQLite has it open. Closing
//! any descriptor of a file drops all POSIX locks that the process has on that file; the next reader in another process
//! would then take itself for the last one, and remove the write-ahead log that SQLite is still writing here.
//! Leaves the contents of the files to SQLite, and the folder to its lock.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What SQLite adds to the database's name: for the database itself, its write-ahead log, and the shared memory.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// Makes an empty file at `path` that only this user may read, since the codes' key will be in it. Leaves an existing file
/// alone. SQLite gives its other files the same mode. An error is not reported here: SQLite reports a clearer one.
pub(super) fn make(path: &Path) {
    let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

/// Identifies a file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A name that does not lead to the file that is open.
#[derive(Debug, thiserror::Error)]
#[error("{} was removed or replaced while it was in use: stop this process with SIGTERM, then start it", .0.display())]
pub(super) struct FileLost(PathBuf);

/// The files of a ledger that SQLite has open. The owner of a connection drops it before its handle to this.
#[derive(Debug)]
pub(super) struct OpenFiles {
    files: [(PathBuf, FileId); 3],
    /// `ledger.db`, to sync it. Closed with the last handle to this, when this process has no lock on the file any more.
    database: File,
}

impl OpenFiles {
    /// The files of the database at `path`, once a connection has read from it. An error if a name does not lead to a file
    /// that this process has open.
    pub fn look(path: &Path) -> io::Result<OpenFiles> {
        // As SQLite does it: the other files are beside the file that a symbolic link leads to.
        let path = path.canonicalize()?;
        let open = open_here();
        let find = |suffix: &str| {
            let mut name: OsString = path.clone().into();
            name.push(suffix);
            let name = PathBuf::from(name);
            let id = FileId::of(&std::fs::metadata(&name)?);
            match &open {
                Some(open) if !open.contains(&id) => Err(io::Error::other(FileLost(name))),
                _ => Ok((name, id)),
            }
        };
        let [database, log, memory] = SUFFIXES;
        let files = [find(database)?, find(log)?, find(memory)?];
        Ok(OpenFiles { files, database: File::open(&path)? })
    }

    /// `Err`, which names the file, if a name no longer leads to the file that is open: no other process and no later start
    /// would find what is written now. Makes three system calls, which take about three microseconds.
    pub fn check(&self) -> Result<(), FileLost> {
        match self.files.iter().find(|file| !is_in_place(file)) {
            Some((name, _)) => Err(FileLost(name.clone())),
            None => Ok(()),
        }
    }

    /// Whether the write-ahead log has lost its name while the database still has its own. Then the log can be copied into
    /// the database, which a later start finds. If the database has lost its name, the log must not be copied: SQLite
    /// overwrites a log that was copied, and the log may be all that a later start finds.
    pub fn is_log_alone_lost(&self) -> bool {
        let [database, log, _] = &self.files;
        is_in_place(database) && !is_in_place(log)
    }

    /// Waits until what was written to `ledger.db` is on the disk.
    pub fn sync_database(&self) -> io::Result<()> {
        self.database.sync_data()
    }

    /// The size of the largest file, in bytes.
    pub fn largest(&self) -> u64 {
        self.files.iter().filter_map(|(name, _)| std::fs::metadata(name).ok()).map(|file| file.len()).max().unwrap_or(0)
    }
}

fn is_in_place((name, id): &(PathBuf, FileId)) -> bool {
    std::fs::metadata(name).is_ok_and(|there| FileId::of(&there) == *id)
}

/// All files that this process has open; `None` where the system does not list them. Opens none of them.
fn open_here() -> Option<HashSet<FileId>> {
    let links = std::fs::read_dir("/proc/self/fd").ok()?.filter_map(Result::ok);
    Some(links.filter_map(|link| std::fs::metadata(link.path()).ok()).map(|file| FileId::of(&file)).collect())
}
