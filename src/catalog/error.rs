//! What can be wrong with a catalogue file.
//!
//! Owns the limits of a file, and the errors and their texts. Invariant: each text goes on from the file's name and the line's
//! number, which stand before it. Leaves finding errors to the catalogue.

use crate::domain::{Id, IdError};
use std::fmt;
use std::io;
use std::path::PathBuf;

/// The largest catalogue file, in bytes: [`MAX_ITEMS`] lines of the usual length.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// The most items of a catalogue. All of them are kept in memory.
pub const MAX_ITEMS: usize = 1_000_000;

/// A problem of a catalogue file, and its place.
#[derive(Debug)]
pub struct CatalogError {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1; `None` if the problem is the whole file's.
    pub line: Option<usize>,
    /// The problem.
    pub problem: Problem,
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl std::error::Error for CatalogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.problem)
    }
}

/// A problem of a file or of one of its lines.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The system does not open the file.
    #[error("cannot be opened: {0}")]
    Open(#[source] io::Error),
    /// The system does not read the file.
    #[error("cannot be read: {0}")]
    Read(#[source] io::Error),
    /// More than [`MAX_FILE_BYTES`].
    #[error("is larger than {} MiB", MAX_FILE_BYTES >> 20)]
    TooLarge,
    /// An editor saved the file as UTF-16.
    #[error("is UTF-16: it has to be UTF-8")]
    Utf16,
    /// All lines are blank.
    #[error("there are no items")]
    NoItems,
    /// More than [`MAX_ITEMS`]: the first line that is one too many.
    #[error("there are more than {MAX_ITEMS} items")]
    TooMany,
    /// An earlier line has the same id.
    #[error("id {0:?} is given twice")]
    Repeated(Id),
    /// The line does not begin with `{`.
    #[error("is not a JSON object")]
    NoObject,
    /// The line is not JSON, or has other fields than an item's.
    #[error("{}", without_line(.0))]
    Json(#[source] serde_json::Error),
    /// The field `id`.
    #[error("id {0}")]
    Id(#[source] IdError),
    /// The field `name`.
    #[error("name {0}")]
    Name(#[source] FieldProblem),
    /// The field `image`.
    #[error("image {0}")]
    Image(#[source] FieldProblem),
}

/// A problem of a field's text. Its text goes on from the field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldProblem {
    /// No text, or only blanks.
    #[error("is empty")]
    Empty,
    /// More characters than the bound.
    #[error("is longer than {0} characters")]
    TooManyChars(usize),
    /// More bytes than the bound.
    #[error("is longer than {0} bytes")]
    TooManyBytes(usize),
    /// A control character, a line break for instance.
    #[error("has a control character")]
    Control,
    /// Neither a URL of HTTP nor a path of this server.
    #[error("does not start with http://, https:// or /")]
    NoUrl,
}

/// serde's text without its line number: serde saw one line only, and would say 1.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("{what} (column {})", error.column())
}
