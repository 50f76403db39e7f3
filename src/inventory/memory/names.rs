//! Ids, each kept once, under a number of 32 bits.
//!
//! Owns the bytes of the ids, and the finding of an id's number. Invariants: two ids have two numbers, and an id keeps its number
//! while it is in use; an id that is not in use any more is forgotten as soon as no later id is in use (uses end in the reverse
//! order in which they began: only what was decided last is undone). Leaves to its owner what an id names.

use crate::domain::Id;
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};

/// Tables of numbers, by parts of the ids' hashes. A table that grows moves all its entries at once: with a million ids in one
/// table, all requests would wait some 50 ms for that.
const PARTS: usize = 256;

/// Ids with their numbers. 17 bytes an id and 5 to 10 for the table's entry, beside the bytes of the id itself.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The bytes of all ids, by their numbers.
    text: Vec<u8>,
    /// By number.
    entries: Vec<Entry>,
    /// The numbers, by the hashes of their ids.
    tables: Vec<HashTable<u32>>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where the id begins in `text`.
    start: u64,
    /// How often it is in use.
    uses: u32,
    len: u8,
}

impl Entry {
    fn bytes<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        text.get(start..start + usize::from(self.len)).unwrap_or_default()
    }
}

impl Default for Names {
    fn default() -> Names {
        let tables = (0..PARTS).map(|_| HashTable::new()).collect();
        Names { text: Vec::new(), entries: Vec::new(), tables, hasher: RandomState::new() }
    }
}

impl Names {
    /// The number of `id`, if it has one.
    pub fn find(&self, id: &Id) -> Option<u32> {
        let bytes = id.as_bytes();
        let hash = self.hasher.hash_one(bytes);
        let is_it = |number: &u32| self.entry(*number).is_some_and(|entry| entry.bytes(&self.text) == bytes);
        self.tables.get(part(hash))?.find(hash, is_it).copied()
    }

    /// The number of `id`, which is in use once more: an id that is new gets the next one.
    pub fn use_once(&mut self, id: &Id) -> u32 {
        let number = self.find(id).unwrap_or_else(|| self.add(id));
        if let Some(entry) = self.entries.get_mut(number as usize) {
            entry.uses += 1;
        }
        number
    }

    /// The id of `number`; `None` if no id has it.
    pub fn get(&self, number: u32) -> Option<Id> {
        Id::from_bytes(self.entry(number)?.bytes(&self.text)).ok()
    }

    /// Ends one use of the id of `number`.
    pub fn end_use(&mut self, number: u32) {
        if let Some(entry) = self.entries.get_mut(number as usize) {
            debug_assert!(entry.uses > 0, "a use has begun before it ends");
            entry.uses = entry.uses.saturating_sub(1);
        }
        while self.entries.last().is_some_and(|last| last.uses == 0) {
            self.forget_last();
        }
    }

    /// All numbers with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Id)> {
        (0..self.entries.len() as u32).filter_map(|number| Some((number, self.get(number)?)))
    }

    fn entry(&self, number: u32) -> Option<&Entry> {
        self.entries.get(number as usize)
    }

    fn add(&mut self, id: &Id) -> u32 {
        let bytes = id.as_bytes();
        // Four thousand million ids would take 200 GB.
        let number = self.entries.len() as u32;
        self.entries.push(Entry { start: self.text.len() as u64, uses: 0, len: bytes.len() as u8 });
        self.text.extend_from_slice(bytes);
        let Names { text, entries, tables, hasher } = self;
        let hash = hasher.hash_one(bytes);
        let rehash = |number: &u32| entries.get(*number as usize).map_or(0, |entry| hasher.hash_one(entry.bytes(text)));
        if let Some(table) = tables.get_mut(part(hash)) {
            table.insert_unique(hash, number, rehash);
        }
        number
    }

    fn forget_last(&mut self) {
        let Some(number) = self.entries.len().checked_sub(1).map(|last| last as u32) else { return };
        if let Some(hash) = self.entry(number).map(|entry| self.hasher.hash_one(entry.bytes(&self.text)))
            && let Some(table) = self.tables.get_mut(part(hash))
            && let Ok(found) = table.find_entry(hash, |other| *other == number)
        {
            found.remove();
        }
        if let Some(entry) = self.entries.pop() {
            self.text.truncate(entry.start as usize);
        }
    }
}

/// The table that ids of this hash are in. By other bits than those that the table itself goes by.
fn part(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn an_id_has_its_number_while_it_is_in_use() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let id = |n: u64| -> Id { format!("{}-{n}", "x".repeat((n % 20) as usize)).parse().unwrap() };
        let (mut names, mut used) = (Names::default(), Vec::<Id>::new());
        for _ in 0..20_000 {
            if random.u32(0..5) < 3 {
                let id = id(random.u64(0..3_000));
                let known = names.find(&id);
                let number = names.use_once(&id);
                assert!(known.is_none_or(|known| known == number));
                used.push(id);
            } else if let Some(id) = used.pop() {
                names.end_use(names.find(&id).unwrap());
            }
            let id = id(random.u64(0..3_000));
            assert_eq!(names.find(&id).is_some(), used.contains(&id), "{id:?}");
        }
        let known: BTreeMap<u32, Id> = names.iter().collect();
        assert!(known.iter().all(|(number, id)| names.find(id) == Some(*number) && names.get(*number) == Some(*id)));
        let bytes: usize = known.values().map(|id| id.as_bytes().len()).sum();
        let found: usize = names.tables.iter().map(HashTable::len).sum();
        let kept = (names.text.len(), names.entries.len(), found);
        assert_eq!(kept, (bytes, known.len(), known.len()), "nothing else is kept");
        // A use that ends out of order: the id stays until those after it are gone.
        let mut names = Names::default();
        let [a, b] = [id(1), id(2)].map(|id| names.use_once(&id));
        names.end_use(a);
        assert_eq!(names.find(&id(1)), Some(a));
        names.end_use(b);
        assert_eq!((names.find(&id(1)), names.text.len()), (None, 0));
    }
}
