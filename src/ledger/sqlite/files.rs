//! The ledger's files: made before SQLite opens them, and watched while SQLite has them open.
//!
//! Owns the first making of `ledger.db`, and the check that its names still lead to the files that are open.
//! Invariant: this process never opens and closes a descriptor of an existing file of the ledger beside SQLite. To close
//! any descriptor of a file drops all POSIX locks that the process has on it; the next reader in another process would
//! then believe to be the last one, and remove the write-ahead log that SQLite goes on writing here.
//! Leaves what is in the files to SQLite, and the folder to its lock.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What SQLite adds to the name of the database: itself, the write-ahead log, and the memory that processes share.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// Makes an empty file at `path` that only this user may read, since the codes' key will be in it. Leaves a file that
/// exists alone. SQLite's other files get the same mode. Where this fails, SQLite has the clearer words.
pub(super) fn make(path: &Path) {
    let _ = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

/// Which file a name leads to.
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

/// The files of a ledger that SQLite has open.
#[derive(Debug)]
pub(super) struct OpenFiles([(PathBuf, FileId); 3]);

impl OpenFiles {
    /// Those of the database at `path`, once a connection has read from it. An error if a name does not lead to a file
    /// that this process has open.
    pub fn look(path: &Path) -> io::Result<OpenFiles> {
        // As SQLite does it: the other files stand beside the one that a symbolic link leads to.
        let path = path.canonicalize()?;
        let open = open_here();
        let find = |suffix: &str| {
            let mut name: OsString = path.clone().into();
            name.push(suffix);
            let name = PathBuf::from(name);
            let id = FileId::of(&std::fs::metadata(&name)?);
            match &open {
                Some(open) if !open.contains(&id) => Err(io::Error::other(removed(&name))),
                _ => Ok((name, id)),
            }
        };
        let [database, log, memory] = SUFFIXES;
        Ok(OpenFiles([find(database)?, find(log)?, find(memory)?]))
    }

    /// `Err`, which names the file, if a name does not lead any more to the file that was open: what is written now would
    /// be found by no other process and by no later start. Takes three system calls, about three microseconds.
    pub fn check(&self) -> Result<(), String> {
        match self.0.iter().find(|file| !is_in_place(file)) {
            Some((name, _)) => Err(removed(name)),
            None => Ok(()),
        }
    }

    /// Whether the name of the write-ahead log does not lead to it any more, while that of the database still leads to the
    /// database: then the log can be copied into a file that a later start finds. A database without its name must not get
    /// the log's contents: a log that is copied is overwritten later, and may be all that a later start finds.
    pub fn is_log_alone_lost(&self) -> bool {
        let [database, log, _] = &self.0;
        is_in_place(database) && !is_in_place(log)
    }

    /// The size of the largest one.
    pub fn largest(&self) -> u64 {
        self.0.iter().filter_map(|(name, _)| std::fs::metadata(name).ok()).map(|file| file.len()).max().unwrap_or(0)
    }
}

fn is_in_place((name, id): &(PathBuf, FileId)) -> bool {
    std::fs::metadata(name).is_ok_and(|there| FileId::of(&there) == *id)
}

fn removed(name: &Path) -> String {
    format!(
        "{} was removed or replaced while it was in use: stop this process with SIGTERM, then start it",
        name.display()
    )
}

/// All files that this process has open; `None` where the system does not tell. Opens none of them.
fn open_here() -> Option<HashSet<FileId>> {
    let links = std::fs::read_dir("/proc/self/fd").ok()?.filter_map(Result::ok);
    Some(links.filter_map(|link| std::fs::metadata(link.path()).ok()).map(|file| FileId::of(&file)).collect())
}
