//! A sale's state in Redis, read raw: whole in itself, and the same as the one in memory.

use flashsale::domain::{HoldNumber, Id, Terms};
use flashsale::inventory::memory::{Hold, HoldState, MemorySale, Stock};
use flashsale::inventory::redis::scripts::layout::{queue_key, state_key};
use redis::{Connection, cmd, pipe};
use std::collections::{BTreeMap, HashMap};

/// What is in Redis.
#[derive(Debug)]
pub struct State {
    pub fields: HashMap<String, String>,
    pub holds: BTreeMap<HoldNumber, Hold>,
    pub users: BTreeMap<String, u64>,
    /// The queue's entries: when each expires, and the holds that it names.
    pub queue: Vec<(u64, Vec<HoldNumber>)>,
    /// Seconds that the keys are kept.
    ttls: (i64, i64),
}

/// The items of a share, '<expiry of the last hold, 13 digits><held and purchased>'.
fn items(share: &str) -> u64 {
    let (last_ms, items) = share.split_at(13);
    let _: u64 = last_ms.parse().unwrap();
    items.parse().unwrap()
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

impl State {
    pub fn read(connection: &mut Connection, terms: &Terms) -> State {
        let (state, queue) = (state_key(terms.sale), queue_key(terms.sale));
        let mut pipe = pipe();
        pipe.add_command(cmd("HGETALL").arg(&state).clone());
        pipe.add_command(cmd("LRANGE").arg(&queue).arg(0).arg(-1).clone());
        pipe.add_command(cmd("TTL").arg(&state).clone()).add_command(cmd("TTL").arg(&queue).clone());
        type Raw = (HashMap<String, String>, Vec<String>, i64, i64);
        let (all, entries, state_ttl, queue_ttl): Raw = pipe.query(connection).expect("read a state");
        let (mut fields, mut users) = (HashMap::new(), BTreeMap::new());
        let (mut chunks, mut marks) = (HashMap::new(), HashMap::new());
        for (name, value) in all {
            if let Some(user) = name.strip_prefix("u:") {
                users.insert(user.to_owned(), items(&value));
            } else if let Some(chunk) = name.strip_prefix('c').filter(|chunk| chunk.contains(':')) {
                chunks.insert(chunk.to_owned(), value);
            } else if let Some(chunk) = name.strip_prefix('m').filter(|chunk| chunk.contains(':')) {
                marks.insert(chunk.to_owned(), value);
            } else {
                fields.insert(name, value);
            }
        }
        assert!(marks.keys().all(|chunk| chunks.contains_key(chunk)), "marks without a chunk: {marks:?}");
        // A user who has given all back may stay with nothing.
        users.retain(|_, count| *count > 0);
        let slots: BTreeMap<HoldNumber, Slot> = chunks
            .iter()
            .flat_map(|(name, chunk)| slots(name, chunk, marks.get(name).map_or("", String::as_str)))
            .collect();
        let queue: Vec<_> = entries.iter().map(|entry| queued(entry, &slots)).collect();
        let is_queued = |number: &HoldNumber| queue.iter().any(|(_, numbers)| numbers.contains(number));
        let hold = |(number, slot): (&HoldNumber, &Slot)| {
            let state = match slot.purchased_ms {
                Some(_) => HoldState::Purchased,
                None if is_queued(number) => HoldState::Held,
                None => HoldState::Expired,
            };
            (*number, Hold { state, ..slot.hold })
        };
        let holds = slots.iter().map(hold).collect();
        State { fields, holds, users, queue, ttls: (state_ttl, queue_ttl) }
    }

    pub fn number(&self, name: &str) -> u64 {
        let text = self.fields.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        text.parse().unwrap_or_else(|e| panic!("{name} is {text}: {e}"))
    }

    fn count(&self, state: HoldState) -> u64 {
        self.holds.values().filter(|hold| hold.state == state).count() as u64
    }

    /// What must be so after every script.
    pub fn check(&self, terms: &Terms, epoch: u64) -> Result<(), String> {
        let (held, purchased) = (self.number("held"), self.number("purchased"));
        same("items", self.number("items"), terms.items)?;
        same("limit", self.number("limit"), terms.user_limit)?;
        same("epoch", self.number("epoch"), epoch)?;
        same("status", self.fields.get("status").map(String::as_str), Some("selling"))?;
        same("held", held, self.count(HoldState::Held))?;
        same("purchased", purchased, self.count(HoldState::Purchased))?;
        // Of some holds no more than the purchase is known.
        let known = self.holds.values().filter(|hold| hold.expires_ms > 0).count();
        same("taken", self.number("taken"), known as u64)?;
        same("free + held + purchased", self.number("free") + held + purchased, terms.items.max(held + purchased))?;
        same("the queue's length", self.number("queue"), self.queue.len() as u64)?;
        let mut users = BTreeMap::new();
        for hold in self.holds.values().filter(|hold| hold.state != HoldState::Expired) {
            *users.entry(hold.user.as_str().to_owned()).or_insert(0) += 1;
        }
        same("the users' counts", &self.users, &users)?;
        same("the queue's order", self.queue.is_sorted_by_key(|entry| entry.0), true)?;
        let mut queued = BTreeMap::new();
        for (expires_ms, numbers) in &self.queue {
            for number in numbers {
                same("twice in the queue", queued.insert(*number, ()), None)?;
                same("an entry", *expires_ms, self.holds[number].expires_ms)?;
            }
        }
        let clock_ms = self.number("clock");
        let lives = |hold: &Hold| hold.state == HoldState::Expired && hold.expires_ms > clock_ms;
        same("a hold that is not queued", self.holds.iter().find(|(_, hold)| lives(hold)), None)?;
        same("the state has a backstop", self.ttls.0 > 0, true)?;
        same("the queue has a backstop", self.ttls.1 > 0, !self.queue.is_empty())
    }

    /// Compares with the state in memory: at one moment, since both take expired holds back when they look.
    pub fn compare(mut self, memory: &mut MemorySale) -> Result<(), String> {
        let clock = self.number("clock");
        let (mut free, mut held) = (self.number("free"), self.number("held"));
        for hold in self.holds.values_mut() {
            if hold.state == HoldState::Held && hold.expires_ms <= clock {
                hold.state = HoldState::Expired;
                (free, held) = (free + 1, held - 1);
                *self.users.get_mut(hold.user.as_str()).ok_or("a hold of nobody")? -= 1;
            }
        }
        self.users.retain(|_, count| *count > 0);
        let stock = memory.stock(clock);
        same("the stock", Stock { free, held, purchased: self.number("purchased") }, stock)?;
        same("the holds", self.holds, memory.holds().collect())?;
        same("the users", self.users, memory.users().map(|(user, n)| (user.as_str().to_owned(), n)).collect())
    }
}

/// `Err` says what differs.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, scripts: T, memory: T) -> Result<(), String> {
    if scripts == memory {
        Ok(())
    } else {
        Err(format!("{what}: the scripts say {scripts:?}, it should be {memory:?}"))
    }
}

/// What is known of a hold; its state in `hold` is not.
struct Slot {
    hold: Hold,
    has_own_expiry: bool,
    purchased_ms: Option<u64>,
}

/// The number of a slot: instance, chunk and place.
fn number(instance: &str, chunk: u64, place: usize) -> HoldNumber {
    HoldNumber((instance.parse::<u64>().unwrap() << 43) + chunk * 8 + place as u64)
}

/// The slots of a chunk that have a hold. '<taken><expires>' and for each slot '<byte 32 + bytes of user><byte 32 + bytes of
/// item><user><item>'; the marks '<slot><kind><13 digits>'.
fn slots(name: &str, chunk: &str, marks: &str) -> Vec<(HoldNumber, Slot)> {
    let (instance, nth) = name.split_once(':').unwrap();
    let time = |text: &str| -> u64 { text.parse().unwrap() };
    assert_eq!(marks.len() % 15, 0, "{marks}");
    let mark = |letter: char, kind: char| {
        let found: Vec<u64> = (0..marks.len())
            .step_by(15)
            .filter(|at| {
                marks[*at..].starts_with([letter].as_slice()) && marks[at + 1..].starts_with([kind].as_slice())
            })
            .map(|at| time(&marks[at + 2..at + 15]))
            .collect();
        assert!(found.len() <= 1, "{name}: twice in {marks}: {letter}{kind}");
        found.first().copied()
    };
    let (taken_ms, expires_ms, mut rest) = (time(&chunk[..13]), time(&chunk[13..26]), &chunk[26..]);
    let mut slots = Vec::new();
    for (place, letter) in ('a'..='h').enumerate() {
        let Some(lengths) = rest.as_bytes().first_chunk::<2>() else { break };
        let [user_len, item_len] = lengths.map(|length| usize::from(length - 32));
        let (user, tail) = rest[2..].split_at(user_len);
        let (item, tail) = tail.split_at(item_len);
        rest = tail;
        if user_len == 0 {
            assert_eq!(item_len, 0, "{chunk}");
            continue;
        }
        let (purchased_ms, own_ms) = (mark(letter, 'P'), mark(letter, 'E'));
        let expires_ms = own_ms.unwrap_or(expires_ms);
        let taken_ms = mark(letter, 'T').unwrap_or(taken_ms);
        // Of some holds no more than the purchase is known.
        let taken_ms = if expires_ms == 0 { purchased_ms.unwrap() } else { taken_ms };
        let hold = Hold { user: id(user), item: id(item), taken_ms, expires_ms, state: HoldState::Held };
        slots.push((
            number(instance, nth.parse().unwrap(), place),
            Slot { hold, has_own_expiry: own_ms.is_some(), purchased_ms },
        ));
    }
    assert_eq!(rest, "", "{chunk}");
    slots
}

/// What an entry of the queue names: '<expires>:<instance>:<chunk>:<chunks>' all holds of these chunks that have no expiry of their
/// own, '<expires>:<instance>:<chunk>:<slots>' these slots, each with an expiry of its own.
fn queued(entry: &str, slots: &BTreeMap<HoldNumber, Slot>) -> (u64, Vec<HoldNumber>) {
    let parts: Vec<&str> = entry.split(':').collect();
    let [expires, instance, first, rest] = parts[..] else { panic!("an entry of no form: {entry}") };
    assert_eq!(expires.len(), 13, "{entry}");
    let first: u64 = first.parse().unwrap();
    let numbers = match rest.parse::<u64>() {
        Ok(count) => {
            let last = number(instance, first + count, 0);
            let all = slots.range(number(instance, first, 0)..last);
            all.filter(|(_, slot)| !slot.has_own_expiry).map(|(number, _)| *number).collect()
        }
        Err(_) => {
            let numbers = rest.bytes().map(|letter| number(instance, first, usize::from(letter - b'a')));
            let numbers: Vec<HoldNumber> = numbers.collect();
            assert!(numbers.iter().all(|number| slots[number].has_own_expiry), "{entry}");
            numbers
        }
    };
    (expires.parse().unwrap(), numbers)
}
