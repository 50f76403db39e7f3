//! Holds in chunks: the fields of a sale's state that have its holds, and the queue's entries.
//!
//! Owns both directions of the forms that `lua/chunk.lua` describes in its head. Invariants: what is written here reads back the
//! same; each hold that holds an item stands in one entry of the queue; a chunk of which a part cannot be read is not read at all.
//! Leaves to others: which commands read and write it, and when.

use super::layout::{TIME_DIGITS, write_time};
use crate::code::{CHUNK_NUMBERS, hold_number, number_parts};
use crate::domain::{HoldFacts, HoldNumber, HoldState, Id, MAX_ID_BYTES};
use std::fmt;

/// Holds in a chunk.
pub const SLOTS: usize = CHUNK_NUMBERS as usize;
/// Chunks that one entry of the queue names at most: those of the largest call.
pub const MAX_CHUNKS: u64 = 64;

/// Bytes of a chunk before its first entry: when its holds were taken, and when they expire.
const HEAD: usize = 2 * TIME_DIGITS;
/// Bytes of a mark: slot, kind, digits.
const MARK: usize = 2 + TIME_DIGITS;
/// What an id's length is counted from, so that it is a printable byte.
const NO_BYTES: u8 = b' ';

// An id's length is one byte, below those that are not ASCII.
const _: () = assert!(MAX_ID_BYTES + (NO_BYTES as usize) < 128);

/// A chunk of hold numbers: an instance, and the counter divided by [`CHUNK_NUMBERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkId {
    instance: u64,
    nth: u64,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.instance, self.nth)
    }
}

impl ChunkId {
    /// The chunk of `number`, and the number's place in it.
    pub fn of(number: HoldNumber) -> (ChunkId, usize) {
        let (instance, counter) = number_parts(number);
        (ChunkId { instance, nth: counter / CHUNK_NUMBERS }, (counter % CHUNK_NUMBERS) as usize)
    }

    /// The chunk so many behind this one.
    pub fn plus(self, chunks: u64) -> ChunkId {
        ChunkId { nth: self.nth.saturating_add(chunks), ..self }
    }

    /// The number of a slot; `None` if no instance has such numbers.
    fn number(self, slot: usize) -> Option<HoldNumber> {
        hold_number(self.instance, self.nth.checked_mul(CHUNK_NUMBERS)?.checked_add(slot as u64)?)
    }

    /// Appends `<instance>:<chunk>`.
    pub fn push(self, out: &mut Vec<u8>) {
        let mut digits = itoa::Buffer::new();
        out.extend_from_slice(digits.format(self.instance).as_bytes());
        out.push(b':');
        out.extend_from_slice(digits.format(self.nth).as_bytes());
    }

    /// Appends the field that has the chunk's holds.
    pub fn push_field(self, out: &mut Vec<u8>) {
        out.push(b'c');
        self.push(out);
    }

    /// The same field as text.
    pub fn field(self) -> String {
        format!("c{self}")
    }

    /// The field that has the chunk's marks.
    pub fn marks_field(self) -> String {
        format!("m{self}")
    }

    /// The chunk whose holds this field has; `None` if it is not such a field.
    pub fn of_field(field: &[u8]) -> Option<ChunkId> {
        let (instance, nth) = std::str::from_utf8(field.strip_prefix(b"c")?).ok()?.split_once(':')?;
        Some(ChunkId { instance: instance.parse().ok()?, nth: nth.parse().ok()? })
    }
}

/// Appends the name of a hold's slot: `<letter><instance>:<chunk>`.
pub fn push_slot(number: HoldNumber, out: &mut Vec<u8>) {
    let (chunk, slot) = ChunkId::of(number);
    out.push(letter(slot));
    chunk.push(out);
}

/// Appends a slot's entry: `<byte 32 + bytes of user><byte 32 + bytes of item><user><item>`.
pub fn push_entry(user: &Id, item: &Id, out: &mut Vec<u8>) {
    let (user, item) = (user.as_bytes(), item.as_bytes());
    out.extend_from_slice(&[NO_BYTES + user.len() as u8, NO_BYTES + item.len() as u8]);
    out.extend_from_slice(user);
    out.extend_from_slice(item);
}

/// Takes a slot's entry from the front of `rest`: user and item, or no hold. `None` if it is no entry.
pub fn read_entry(rest: &mut &[u8]) -> Option<Option<(Id, Id)>> {
    let (&[user_len, item_len], tail) = rest.split_first_chunk()?;
    let (user, tail) = tail.split_at_checked(usize::from(user_len.checked_sub(NO_BYTES)?))?;
    let (item, tail) = tail.split_at_checked(usize::from(item_len.checked_sub(NO_BYTES)?))?;
    *rest = tail;
    if user.is_empty() && item.is_empty() {
        return Some(None);
    }
    Some(Some((Id::from_bytes(user).ok()?, Id::from_bytes(item).ok()?)))
}

/// Takes a time from the front of `rest`, unix milliseconds.
pub fn read_time(rest: &mut &[u8]) -> Option<u64> {
    let (digits, tail) = rest.split_at_checked(TIME_DIGITS)?;
    *rest = tail;
    let are_digits = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| are_digits)?.parse().ok()
}

fn letter(slot: usize) -> u8 {
    b'a' + slot as u8
}

/// What an entry of the queue names: holds that expire at one moment, and hold an item unless they are purchased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    /// When they expire, unix milliseconds.
    pub expires_ms: u64,
    /// The chunk of them, or the first.
    pub first: ChunkId,
    /// Which.
    pub holds: Queued,
}

/// The holds of an entry of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queued {
    /// All holds of so many chunks in a row, save those that have an expiry of their own.
    Chunks(u64),
    /// These slots of one chunk, by their letters. Each has an expiry of its own.
    Slots(String),
}

impl fmt::Display for QueueEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", write_time(self.expires_ms), self.first)?;
        match &self.holds {
            Queued::Chunks(count) => write!(f, "{count}"),
            Queued::Slots(letters) => f.write_str(letters),
        }
    }
}

impl QueueEntry {
    /// Reads an entry; `None` if it is not one.
    pub fn read(entry: &[u8]) -> Option<QueueEntry> {
        let mut parts = std::str::from_utf8(entry).ok()?.split(':');
        let mut number = || parts.next()?.parse().ok();
        let (expires_ms, instance, nth) = (number()?, number()?, number()?);
        let rest = parts.next().filter(|rest| !rest.is_empty())?;
        let holds = rest.parse().map_or_else(|_| Queued::Slots(rest.to_owned()), Queued::Chunks);
        parts.next().is_none().then_some(QueueEntry { expires_ms, first: ChunkId { instance, nth }, holds })
    }

    /// The last of its chunks.
    pub fn last(&self) -> ChunkId {
        match self.holds {
            Queued::Chunks(count) => self.first.plus(count.saturating_sub(1)),
            Queued::Slots(_) => self.first,
        }
    }

    /// Takes in the chunk of `other` if it comes next and its holds expire at the same time.
    fn extend_by(&mut self, other: &QueueEntry) -> bool {
        match (&mut self.holds, &other.holds) {
            (Queued::Chunks(count), Queued::Chunks(1))
                if *count < MAX_CHUNKS
                    && self.expires_ms == other.expires_ms
                    && self.first.plus(*count) == other.first =>
            {
                *count += 1;
                true
            }
            _ => false,
        }
    }
}

/// The queue of a state that is being built.
#[derive(Debug, Default)]
pub struct Queue {
    entries: Vec<QueueEntry>,
}

impl Queue {
    /// Adds the entries of one chunk. Chunks come in the order of their numbers.
    pub fn add(&mut self, entries: impl IntoIterator<Item = QueueEntry>) {
        for entry in entries {
            if !self.entries.last_mut().is_some_and(|last| last.extend_by(&entry)) {
                self.entries.push(entry);
            }
        }
    }

    /// The entries in the order of expiry.
    pub fn in_order(mut self) -> Vec<QueueEntry> {
        self.entries.sort_by_key(|entry| entry.expires_ms);
        self.entries
    }
}

/// One chunk of a state, with its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which.
    pub id: ChunkId,
    /// What its field has.
    pub holds: Vec<u8>,
    /// What the field of its marks has; empty where there are none.
    pub marks: Vec<u8>,
    /// The entries of the queue that name its holds.
    pub queued: Vec<QueueEntry>,
}

impl Chunk {
    /// Writes `holds`, all of one chunk and in the order of their numbers. `None` if there are none.
    pub fn write<'a>(holds: impl Iterator<Item = (HoldNumber, &'a HoldFacts, HoldState)> + Clone) -> Option<Chunk> {
        let (id, _) = ChunkId::of(holds.clone().next()?.0);
        // Usually they were taken in one call.
        let first = holds.clone().find(|(_, facts, _)| facts.has_checkout());
        let (taken_ms, expires_ms) = first.map_or((0, 0), |(_, facts, _)| (facts.taken_ms, facts.expires_ms));
        let head = write_time(taken_ms) + &write_time(expires_ms);
        let mut chunk = Chunk { id, holds: head.into_bytes(), marks: Vec::new(), queued: Vec::new() };
        let mut next = 0;
        let mut whole = false;
        for (number, facts, state) in holds {
            let (_, slot) = ChunkId::of(number);
            for _ in next..slot {
                chunk.holds.extend_from_slice(&[NO_BYTES; 2]);
            }
            next = slot + 1;
            push_entry(&facts.user, &facts.item, &mut chunk.holds);
            let has_own_expiry = facts.expires_ms != expires_ms;
            if has_own_expiry {
                chunk.mark(slot, b'E', facts.expires_ms);
            }
            if facts.has_checkout() && facts.taken_ms != taken_ms {
                chunk.mark(slot, b'T', facts.taken_ms);
            }
            if let Some(purchased_ms) = facts.purchased_ms {
                chunk.mark(slot, b'P', purchased_ms);
            }
            match state {
                HoldState::Held if has_own_expiry => chunk.queue_slot(slot, facts.expires_ms),
                HoldState::Held => whole = true,
                HoldState::Expired | HoldState::Purchased => {}
            }
        }
        if whole {
            chunk.queued.push(QueueEntry { expires_ms, first: id, holds: Queued::Chunks(1) });
        }
        Some(chunk)
    }

    fn mark(&mut self, slot: usize, kind: u8, ms: u64) {
        self.marks.extend_from_slice(&[letter(slot), kind]);
        self.marks.extend_from_slice(write_time(ms).as_bytes());
    }

    fn queue_slot(&mut self, slot: usize, expires_ms: u64) {
        let letter = char::from(letter(slot));
        for entry in &mut self.queued {
            if let Queued::Slots(letters) = &mut entry.holds
                && entry.expires_ms == expires_ms
            {
                letters.push(letter);
                return;
            }
        }
        self.queued.push(QueueEntry { expires_ms, first: self.id, holds: Queued::Slots(letter.into()) });
    }
}

/// The marks of a slot, unix milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    purchased_ms: Option<u64>,
    expires_ms: Option<u64>,
    taken_ms: Option<u64>,
}

fn read_marks(marks: &[u8]) -> Option<[Marks; SLOTS]> {
    let mut all = [Marks::default(); SLOTS];
    let marks = marks.chunks_exact(MARK);
    if !marks.remainder().is_empty() {
        return None;
    }
    for mark in marks {
        let (&[slot, kind], mut rest) = mark.split_first_chunk()?;
        let slot = all.get_mut(usize::from(slot.checked_sub(letter(0))?))?;
        let place = match kind {
            b'P' => &mut slot.purchased_ms,
            b'E' => &mut slot.expires_ms,
            b'T' => &mut slot.taken_ms,
            _ => return None,
        };
        *place = Some(read_time(&mut rest)?);
    }
    Some(all)
}

/// The holds of a chunk whose fields have `holds` and `marks`, by their numbers; `None` if a part of it cannot be read.
pub fn read(id: ChunkId, holds: &[u8], marks: &[u8]) -> Option<Vec<(HoldNumber, HoldFacts)>> {
    let marks = read_marks(marks)?;
    let mut rest = holds;
    let (taken_ms, expires_ms) = (read_time(&mut rest)?, read_time(&mut rest)?);
    let mut found = Vec::with_capacity(SLOTS);
    for (slot, marks) in marks.into_iter().enumerate() {
        if rest.is_empty() {
            break;
        }
        let Some((user, item)) = read_entry(&mut rest)? else { continue };
        let Marks { purchased_ms, .. } = marks;
        let expires_ms = marks.expires_ms.unwrap_or(expires_ms);
        // Where only the purchase is known, its time stands for that of the checkout.
        let taken_ms = if expires_ms == 0 { purchased_ms? } else { marks.taken_ms.unwrap_or(taken_ms) };
        found.push((id.number(slot)?, HoldFacts { user, item, taken_ms, expires_ms, purchased_ms }));
    }
    rest.is_empty().then_some(found)
}

const _: () = assert!(HEAD == 26 && MARK == 15 && SLOTS == 8, "as lua/chunk.lua has them");

#[cfg(test)]
mod tests;
