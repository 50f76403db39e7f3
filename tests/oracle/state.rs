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
    pub queue: Vec<(HoldNumber, u64, String)>,
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
        let (mut fields, mut holds, mut users) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, value) in all {
            match name.split_at_checked(2) {
                Some(("h:", number)) => drop(holds.insert(HoldNumber(number.parse().unwrap()), hold(&value))),
                Some(("u:", user)) => drop(users.insert(user.to_owned(), items(&value))),
                _ => drop(fields.insert(name, value)),
            }
        }
        // A user who has given all back may stay with nothing.
        users.retain(|_, count| *count > 0);
        let entry = |entry: String| {
            let mut parts = entry.splitn(3, ':');
            let mut number = || parts.next().unwrap().parse::<u64>().unwrap();
            let (number, expires_ms) = (HoldNumber(number()), number());
            (number, expires_ms, parts.next().unwrap().to_owned())
        };
        State { fields, holds, users, queue: entries.into_iter().map(entry).collect(), ttls: (state_ttl, queue_ttl) }
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
        same("status", self.fields.get("status").map(String::as_str), Some("open"))?;
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
        same("the queue's order", self.queue.is_sorted_by_key(|entry| entry.1), true)?;
        let mut queued = BTreeMap::new();
        for (number, expires_ms, user) in &self.queue {
            same("twice in the queue", queued.insert(*number, ()), None)?;
            let hold = self.holds.get(number).ok_or_else(|| format!("{number:?} is queued, but is no hold"))?;
            same("an entry", (*expires_ms, user.as_str()), (hold.expires_ms, hold.user.as_str()))?;
        }
        let lost = self.holds.iter().find(|(n, hold)| hold.state == HoldState::Held && !queued.contains_key(n));
        same("a hold that is not queued", lost, None)?;
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

/// Reads '<H|P|X><taken>:<expires>:<purchased>:<bytes of user>:<user><item>'.
fn hold(record: &str) -> Hold {
    let (mark, rest) = record.split_at(1);
    let mut parts = rest.splitn(5, ':');
    let mut number = || parts.next().unwrap().parse::<u64>().unwrap();
    let (taken_ms, expires_ms, _purchased, user_len) = (number(), number(), number(), number());
    let (user, item) = parts.next().unwrap().split_at(usize::try_from(user_len).unwrap());
    let state = match mark {
        "H" => HoldState::Held,
        "P" => HoldState::Purchased,
        "X" => HoldState::Expired,
        _ => panic!("a record of no kind: {record}"),
    };
    Hold { user: id(user), item: id(item), taken_ms, expires_ms, state }
}
