//! What a shopper sees of an item: its name and its picture.
//!
//! Owns where they come from: made from the id, or the operator's file. Invariants: an item's fields never change while
//! the process runs; what is written is valid JSON that is also safe inside HTML. A file is read once, at start-up, and
//! any doubt about it stops the start. Refuses to know stock and sales: an item that is not listed can still have been
//! bought before the list was changed, so it has a name and a picture all the same.

use crate::domain::{Id, IdError};
use crate::http::query;
use serde::Deserialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

mod drawing;
pub use drawing::svg;

/// The largest catalogue file, in bytes: [`MAX_ITEMS`] lines of the usual length.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// The most items of a catalogue. All of them are kept in memory.
pub const MAX_ITEMS: usize = 1_000_000;
/// The longest name, in characters.
pub const MAX_NAME_CHARS: usize = 200;
/// The longest image URL, in bytes.
pub const MAX_IMAGE_BYTES: usize = 2048;

/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The names and pictures of items.
#[derive(Debug)]
pub struct Catalog {
    /// What stands before `/items/` in a generated image's URL, escaped for JSON.
    base: Vec<u8>,
    /// `None`: every id is an item.
    listed: Option<HashMap<Id, Item>>,
}

#[derive(Debug)]
struct Item {
    name: Box<str>,
    /// The three fields as they are written.
    json: Box<[u8]>,
}

impl Catalog {
    /// A catalogue in which every id is an item, its name and picture made from the id. `base` stands before `/items/` in
    /// the images' URLs: empty, or a scheme and host.
    pub fn generated(base: &str) -> Catalog {
        let mut escaped = Vec::new();
        push_json(&mut escaped, base.trim_end_matches('/'));
        Catalog { base: escaped, listed: None }
    }

    /// The items of a file of JSON lines: `{"id":"…","name":"…","image":"…"}`. Blank lines are skipped.
    ///
    /// # Errors
    /// A file that cannot be read or passes the limits, and any line that is not exactly one new, valid item.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Catalog, CatalogError> {
        let path = path.as_ref();
        let fail = |line: Option<usize>, problem: String| CatalogError { path: path.to_owned(), line, problem };
        let text = read(path).map_err(|problem| fail(None, problem))?;
        let mut items = HashMap::new();
        for (index, line) in text.split(|b| *b == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let (id, item) = parse_item(line).map_err(|problem| fail(Some(index + 1), problem))?;
            if items.len() == MAX_ITEMS {
                return Err(fail(Some(index + 1), format!("there are more than {MAX_ITEMS} items")));
            }
            match items.entry(id) {
                Entry::Vacant(place) => drop(place.insert(item)),
                Entry::Occupied(_) => return Err(fail(Some(index + 1), format!("id {id:?} is given twice"))),
            }
        }
        if items.is_empty() {
            return Err(fail(None, "there are no items".into()));
        }
        Ok(Catalog { base: Vec::new(), listed: Some(items) })
    }

    /// Whether `id` is an item.
    pub fn knows(&self, id: &Id) -> bool {
        self.listed.as_ref().is_none_or(|items| items.contains_key(id))
    }

    /// The item's name, as plain text.
    pub fn name(&self, id: &Id) -> String {
        let mut name = String::new();
        match self.item(id) {
            Some(item) => name.push_str(&item.name),
            None => drawing::name_pieces(id, |piece| name.push_str(piece)),
        }
        name
    }

    /// Appends `"item_id":"…","item_name":"…","item_image":"…"`.
    pub fn write_json_fields(&self, id: &Id, out: &mut Vec<u8>) {
        if let Some(item) = self.item(id) {
            return out.extend_from_slice(&item.json);
        }
        out.extend_from_slice(b"\"item_id\":\"");
        push_json(out, id.as_str());
        out.extend_from_slice(b"\",\"item_name\":\"");
        drawing::name_pieces(id, |piece| push_json(out, piece));
        out.extend_from_slice(b"\",\"item_image\":\"");
        out.extend_from_slice(&self.base);
        out.extend_from_slice(b"/items/");
        query::encode_segment_with(id.as_str(), |byte| out.push(byte));
        out.extend_from_slice(b".svg\"");
    }

    fn item(&self, id: &Id) -> Option<&Item> {
        self.listed.as_ref()?.get(id)
    }
}

/// What is wrong with a catalogue file, and where.
#[derive(Debug)]
pub struct CatalogError {
    /// The file.
    pub path: PathBuf,
    /// The line, counted from 1, if it is about one.
    pub line: Option<usize>,
    /// What is wrong, for the operator.
    pub problem: String,
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

impl std::error::Error for CatalogError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    name: String,
    image: String,
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let mut text = Vec::new();
    // One byte more tells a file that is too large from one that just fits.
    let size =
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if size as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20));
    }
    // What a line of this file begins with as UTF-16, with a byte order mark or without.
    if [&b"\xff\xfe"[..], b"\xfe\xff", b"{\0", b"\0{"].iter().any(|start| text.starts_with(start)) {
        return Err("is UTF-16: it has to be UTF-8".into());
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

fn parse_item(line: &[u8]) -> Result<(Id, Item), String> {
    // Otherwise serde takes an array for the fields in their order.
    if line.first() != Some(&b'{') {
        return Err("is not a JSON object".into());
    }
    let Line { id, name, image } = serde_json::from_slice(line).map_err(|error| without_line(&error))?;
    let id: Id = id.parse().map_err(|error: IdError| format!("id {error}"))?;
    check_name(&name).map_err(|problem| format!("name {problem}"))?;
    check_image(&image).map_err(|problem| format!("image {problem}"))?;
    let mut json = Vec::with_capacity(64 + id.as_bytes().len() + name.len() + image.len());
    for (key, value) in
        [("\"item_id\":\"", id.as_str()), ("\",\"item_name\":\"", &name), ("\",\"item_image\":\"", &image)]
    {
        json.extend_from_slice(key.as_bytes());
        push_json(&mut json, value);
    }
    json.push(b'"');
    Ok((id, Item { name: name.into(), json: json.into() }))
}

/// What serde says, without the line: it only saw one, and would say 1.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("{what} (column {})", error.column())
}

fn check_name(name: &str) -> Result<(), String> {
    if name.trim().is_empty() {
        return Err("is empty".into());
    }
    if name.chars().count() > MAX_NAME_CHARS {
        return Err(format!("is longer than {MAX_NAME_CHARS} characters"));
    }
    if name.chars().any(char::is_control) { Err("has a control character".into()) } else { Ok(()) }
}

fn check_image(image: &str) -> Result<(), String> {
    if image.is_empty() {
        return Err("is empty".into());
    }
    if image.len() > MAX_IMAGE_BYTES {
        return Err(format!("is longer than {MAX_IMAGE_BYTES} bytes"));
    }
    if image.chars().any(char::is_control) {
        return Err("has a control character".into());
    }
    match ["http://", "https://", "/"].iter().any(|start| image.starts_with(start)) {
        true => Ok(()),
        false => Err("does not start with http://, https:// or /".into()),
    }
}

/// Appends `text` as it stands between the quotes of a JSON string, such that it can also stand in a script of a page.
fn push_json(out: &mut Vec<u8>, text: &str) {
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_escaped(*c)) {
        let (plain, tail) = rest.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        match c {
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            c => {
                out.extend_from_slice(b"\\u");
                let digits = [12, 8, 4, 0].map(|shift| char::from_digit(u32::from(c) >> shift & 15, 16));
                out.extend(digits.into_iter().flatten().map(|digit| digit as u8));
            }
        }
        rest = tail.get(c.len_utf8()..).unwrap_or_default();
    }
    out.extend_from_slice(rest.as_bytes());
}

fn is_escaped(c: char) -> bool {
    matches!(c, '"' | '\\' | '<' | '>' | '&' | '\0'..='\x1f' | '\x7f' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests;
