//! What a shopper sees of an item: its name and its picture.
//!
//! Owns where they come from: made from the id, or the operator's file. Invariants: an item's fields never change while
//! the process runs; the JSON that is written is valid, and also safe inside HTML; a file is read once, and any error in it
//! stops the start. An item that is not listed has a name and a picture all the same, since a shopper may have bought it
//! before the list was changed. Leaves stock and sales to others.

use crate::domain::Id;
use crate::http::query;
use serde::Deserialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read;
use std::path::Path;

mod drawing;
mod error;

pub use drawing::svg;
pub use error::{CatalogError, FieldProblem, MAX_FILE_BYTES, MAX_ITEMS, Problem};

/// The longest name, in characters.
pub const MAX_NAME_CHARS: usize = 200;
/// The longest image URL, in bytes.
pub const MAX_IMAGE_BYTES: usize = 2048;

/// What some editors put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The names and pictures of items.
#[derive(Debug)]
pub struct Catalog {
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
    /// A catalogue in which every id is an item, its name and picture made from the id. The images' URLs are paths of this
    /// server.
    pub fn generated() -> Catalog {
        Catalog { listed: None }
    }

    /// The items of a file of JSON lines: `{"id":"…","name":"…","image":"…"}`. Blank lines are skipped.
    ///
    /// # Errors
    /// A file that cannot be read or passes the limits, and any line that is not exactly one new, valid item.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Catalog, CatalogError> {
        let path = path.as_ref();
        let fail = |line: Option<usize>, problem: Problem| CatalogError { path: path.to_owned(), line, problem };
        let text = read(path).map_err(|problem| fail(None, problem))?;
        let mut items = HashMap::new();
        for (index, line) in text.split(|b| *b == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let (id, item) = parse_item(line).map_err(|problem| fail(Some(index + 1), problem))?;
            if items.len() == MAX_ITEMS {
                return Err(fail(Some(index + 1), Problem::TooMany));
            }
            match items.entry(id) {
                Entry::Vacant(place) => drop(place.insert(item)),
                Entry::Occupied(_) => return Err(fail(Some(index + 1), Problem::Repeated(id))),
            }
        }
        if items.is_empty() {
            return Err(fail(None, Problem::NoItems));
        }
        Ok(Catalog { listed: Some(items) })
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
        out.extend_from_slice(b"\",\"item_image\":\"/items/");
        query::encode_segment(id.as_str(), |byte| out.push(byte));
        out.extend_from_slice(b".svg\"");
    }

    fn item(&self, id: &Id) -> Option<&Item> {
        self.listed.as_ref()?.get(id)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    name: String,
    image: String,
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let file = std::fs::File::open(path).map_err(Problem::Open)?;
    let mut text = Vec::new();
    // One byte more tells a file that is too large from one that just fits.
    let size = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(Problem::Read)?;
    if size as u64 > MAX_FILE_BYTES {
        return Err(Problem::TooLarge);
    }
    // The beginning of a line in UTF-16, with a byte order mark or without.
    if [&b"\xff\xfe"[..], b"\xfe\xff", b"{\0", b"\0{"].iter().any(|start| text.starts_with(start)) {
        return Err(Problem::Utf16);
    }
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(text)
}

fn parse_item(line: &[u8]) -> Result<(Id, Item), Problem> {
    // serde would also take an array, for the fields in their order.
    if line.first() != Some(&b'{') {
        return Err(Problem::NoObject);
    }
    let Line { id, name, image } = serde_json::from_slice(line).map_err(Problem::Json)?;
    let id: Id = id.parse().map_err(Problem::Id)?;
    check_name(&name).map_err(Problem::Name)?;
    check_image(&image).map_err(Problem::Image)?;
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

fn check_name(name: &str) -> Result<(), FieldProblem> {
    if name.trim().is_empty() {
        return Err(FieldProblem::Empty);
    }
    if name.chars().count() > MAX_NAME_CHARS {
        return Err(FieldProblem::TooManyChars(MAX_NAME_CHARS));
    }
    if name.chars().any(char::is_control) { Err(FieldProblem::Control) } else { Ok(()) }
}

fn check_image(image: &str) -> Result<(), FieldProblem> {
    if image.is_empty() {
        return Err(FieldProblem::Empty);
    }
    if image.len() > MAX_IMAGE_BYTES {
        return Err(FieldProblem::TooManyBytes(MAX_IMAGE_BYTES));
    }
    if image.chars().any(char::is_control) {
        return Err(FieldProblem::Control);
    }
    let is_url = ["http://", "https://", "/"].iter().any(|start| image.starts_with(start));
    if is_url { Ok(()) } else { Err(FieldProblem::NoUrl) }
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
