//! The holds of a sale by their numbers, in little memory.
//!
//! Owns the holds, and the ids of their users and items. Behaves as a `BTreeMap` from numbers to [`Hold`]s, which is its twin in the
//! tests; each user also has a number here, by which the sale counts what the user has. A hold takes 33 bytes, and its user, where
//! it is the user's first, about 25 beside the id's own bytes: the numbers of one life of an instance follow each other, so holds are
//! kept in pages of neighbouring numbers. Leaves to the sale what a hold counts for.

use super::names::Names;
use crate::domain::{HoldNumber, HoldState, Id};
use std::collections::BTreeMap;

/// One hold of the sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The user who took it.
    pub user: Id,
    /// The item that was taken off the stock.
    pub item: Id,
    /// When it was taken, unix milliseconds.
    pub taken_ms: u64,
    /// When it expires, unix milliseconds (0 if only its purchase is known).
    pub expires_ms: u64,
    /// Whether it is held, expired or purchased.
    pub state: HoldState,
}

/// Neighbouring numbers in a page. Two pages of each life of an instance may be filled in part.
const PAGE: u64 = 64;

/// The holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Holds {
    /// By the numbers divided by [`PAGE`].
    pages: BTreeMap<u64, Box<[Option<Stored>; PAGE as usize]>>,
    len: u64,
    users: Names,
    items: Names,
}

/// A [`Hold`], with the numbers of its user and item in the place of their ids.
#[derive(Clone, Copy, Debug)]
struct Stored {
    taken_ms: u64,
    expires_ms: u64,
    user: u32,
    item: u32,
    state: HoldState,
}

// An empty place takes no more: the state has values to spare.
const _: () = assert!(size_of::<Option<Stored>>() == 32);

/// What [`Holds::set_state`] has changed.
pub(super) struct Change {
    /// The number of the hold's user.
    pub user: u32,
    /// When the hold expires, unix milliseconds.
    pub expires_ms: u64,
    /// The hold's state before.
    pub was: HoldState,
}

impl Holds {
    /// How many holds there are.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The hold with this number.
    pub fn get(&self, number: HoldNumber) -> Option<Hold> {
        self.hold(self.stored(number)?)
    }

    /// Whether there is a hold with this number.
    pub fn contains(&self, number: HoldNumber) -> bool {
        self.stored(number).is_some()
    }

    /// Puts `hold` under `number`, in the place of the one that may be there. Returns the number of its user.
    pub fn insert(&mut self, number: HoldNumber, hold: Hold) -> u32 {
        let Hold { user, item, taken_ms, expires_ms, state } = hold;
        let (user, item) = (self.users.use_once(&user), self.items.use_once(&item));
        let page = self.pages.entry(number.0 / PAGE).or_insert_with(|| Box::new([None; PAGE as usize]));
        if let Some(place) = page.get_mut(place(number)) {
            match place.replace(Stored { taken_ms, expires_ms, user, item, state }) {
                Some(before) => self.end_uses(&before),
                None => self.len += 1,
            }
        }
        user
    }

    /// Gives the hold with this number another state; `None` if there is no such hold.
    pub fn set_state(&mut self, number: HoldNumber, state: HoldState) -> Option<Change> {
        let stored = self.pages.get_mut(&(number.0 / PAGE))?.get_mut(place(number))?.as_mut()?;
        let was = std::mem::replace(&mut stored.state, state);
        Some(Change { user: stored.user, expires_ms: stored.expires_ms, was })
    }

    /// Forgets the hold with this number.
    pub fn remove(&mut self, number: HoldNumber) {
        let Some(page) = self.pages.get_mut(&(number.0 / PAGE)) else { return };
        let Some(stored) = page.get_mut(place(number)).and_then(Option::take) else { return };
        if page.iter().all(Option::is_none) {
            self.pages.remove(&(number.0 / PAGE));
        }
        self.len -= 1;
        self.end_uses(&stored);
    }

    /// All holds, by their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (HoldNumber, Hold)> {
        let numbers = |page: u64| (page * PAGE..=page * PAGE + (PAGE - 1)).map(HoldNumber);
        let places = self.pages.iter().flat_map(move |(page, places)| numbers(*page).zip(places.iter()));
        places.filter_map(|(number, stored)| Some((number, self.hold(stored.as_ref()?)?)))
    }

    /// The number of a user who has a hold.
    pub fn user(&self, id: &Id) -> Option<u32> {
        self.users.find(id)
    }

    /// The users of all holds, with their numbers.
    pub fn users(&self) -> impl Iterator<Item = (u32, Id)> {
        self.users.iter()
    }

    fn stored(&self, number: HoldNumber) -> Option<&Stored> {
        self.pages.get(&(number.0 / PAGE))?.get(place(number))?.as_ref()
    }

    fn hold(&self, stored: &Stored) -> Option<Hold> {
        let Stored { taken_ms, expires_ms, user, item, state } = *stored;
        Some(Hold { user: self.users.get(user)?, item: self.items.get(item)?, taken_ms, expires_ms, state })
    }

    fn end_uses(&mut self, stored: &Stored) {
        self.users.end_use(stored.user);
        self.items.end_use(stored.item);
    }
}

/// The place of a number in its page.
fn place(number: HoldNumber) -> usize {
    (number.0 % PAGE) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_those_of_a_plain_map() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut holds, mut plain) = (Holds::default(), BTreeMap::new());
        // Some numbers follow each other, as in a life, and some stand at the ends of what there is.
        let lives = [0, 1_000, u64::MAX / 2, u64::MAX - 200];
        for _ in 0..20_000 {
            let number = HoldNumber(*random.choice(&lives).unwrap() + random.u64(0..200));
            let state = *random.choice(&[HoldState::Held, HoldState::Expired, HoldState::Purchased]).unwrap();
            match random.u32(0..4) {
                0 | 1 => {
                    let id = |random: &mut fastrand::Rng| format!("id {}", random.u32(0..90)).parse::<Id>().unwrap();
                    let (user, item) = (id(&mut random), id(&mut random));
                    let hold = Hold { user, item, taken_ms: random.u64(..), expires_ms: random.u64(..), state };
                    let user_number = holds.insert(number, hold);
                    assert_eq!(holds.user(&user), Some(user_number));
                    plain.insert(number, hold);
                }
                2 => {
                    let change = holds.set_state(number, state).map(|change| (change.expires_ms, change.was));
                    let want = plain
                        .get_mut(&number)
                        .map(|hold: &mut Hold| (hold.expires_ms, std::mem::replace(&mut hold.state, state)));
                    assert_eq!(change, want);
                }
                _ => {
                    holds.remove(number);
                    plain.remove(&number);
                }
            }
            assert_eq!(
                (holds.get(number), holds.contains(number)),
                (plain.get(&number).copied(), plain.contains_key(&number))
            );
            assert_eq!(holds.len(), plain.len() as u64);
        }
        assert!(holds.iter().eq(plain.iter().map(|(number, hold)| (*number, *hold))));
        let mut users: Vec<Id> = plain.values().map(|hold| hold.user).collect();
        assert!(
            users.iter().all(|user| holds.users().any(|(number, id)| id == *user && holds.user(user) == Some(number)))
        );
        while let Some((number, _)) = plain.pop_last() {
            holds.remove(number);
        }
        users.clear();
        assert_eq!((holds.pages.len(), holds.users().count(), holds.items.iter().count()), (0, 0, 0));
    }
}
