//! One sale in memory: the embedded inventory's state, and the oracle that the Lua scripts are tested against.
//!
//! Owns the obvious version of every decision, written as plainly as can be; how holds are kept in little memory is in
//! `holds` and `names`, which behave as plain maps. Invariants: held and purchased items are never more than the stock (save
//! when the ledger itself says that more were purchased), and a user's share is the user's held and purchased items. The
//! caller passes the time in; the sale's time never goes back. Leaves clocks, threads, locks, Redis and the ledger to
//! others.

mod holds;
mod names;
#[cfg(test)]
mod tests;

use super::Progress;
pub use crate::domain::HoldState;
use crate::domain::{HoldFacts, HoldKey, HoldNumber, HoldRow, Id, Outcome, Record, RecordKind, Terms};
pub use holds::Hold;
use holds::{Change, Holds};
use std::collections::BTreeSet;

/// A user's items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    held: u32,
    purchased: u32,
}

impl Share {
    fn items(&self) -> u64 {
        u64::from(self.held) + u64::from(self.purchased)
    }

    /// The count that a hold of `state` belongs to; an expired hold counts for no user.
    fn count(&mut self, state: HoldState) -> Option<&mut u32> {
        match state {
            HoldState::Held => Some(&mut self.held),
            HoldState::Purchased => Some(&mut self.purchased),
            HoldState::Expired => None,
        }
    }
}

/// Where the sale's items are: the three add up to its stock, unless the ledger tells of more purchases than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stock {
    /// To be had.
    pub free: u64,
    /// Off the stock for a while.
    pub held: u64,
    /// Sold.
    pub purchased: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is looked at and dropped at once, a box would cost an allocation each"
)]
pub enum Decision {
    /// It was decided.
    Decided {
        /// The answer.
        outcome: Outcome,
        /// The fact that the ledger must keep before the answer is sent, if there is a new one.
        record: Option<Record>,
    },
    /// The sale is not on. Nothing changed.
    NotOn {
        /// The sale's clock, unix milliseconds.
        now_ms: u64,
    },
    /// The hold number of a checkout is taken: the caller gave it out twice.
    Duplicate,
}

impl Decision {
    fn refused(outcome: Outcome) -> Decision {
        Decision::Decided { outcome, record: None }
    }
}

/// One sale's state.
#[derive(Clone, Debug)]
pub struct MemorySale {
    terms: Terms,
    /// The sale's time at the last decision.
    last_ms: u64,
    /// Where the clock has gone back behind that: what the clock and the sale's time were when this was noticed.
    slewed: Option<(u64, u64)>,
    holds: Holds,
    /// The holds that are `Held`, the one that expires first at the front.
    queue: BTreeSet<(u64, HoldNumber)>,
    purchased: u64,
    /// The items of each user, by the numbers that the users have in `holds`. A number that no user has any more has no items.
    shares: Vec<Share>,
    dropped: u64,
}

impl MemorySale {
    /// The state that the ledger's `rows` tell of: opening is rebuilding. Purchased beats expired beats held. Time
    /// does not go back behind what the rows record: an expired hold would be valid again, although its item may be sold.
    ///
    /// All purchases are kept. If they and the holds that run at `now_ms` are more than the stock (which only a loss
    /// can bring about), the oldest holds that fit are kept, and the others are forgotten: see
    /// [`MemorySale::dropped`].
    pub fn open(terms: Terms, rows: impl IntoIterator<Item = HoldRow>, now_ms: u64) -> MemorySale {
        let rows: Vec<HoldRow> = rows.into_iter().collect();
        let latest =
            rows.iter().map(|row| row.facts.taken_ms.max(row.facts.purchased_ms.unwrap_or(0))).max().unwrap_or(0);
        let now_ms = now_ms.max(latest);
        let mut sale = MemorySale {
            terms,
            last_ms: latest,
            slewed: None,
            holds: Holds::default(),
            queue: BTreeSet::new(),
            purchased: 0,
            shares: Vec::new(),
            dropped: 0,
        };
        let mut found = Holds::default();
        for HoldRow { number, facts } in rows {
            let HoldFacts { user, item, taken_ms, expires_ms, purchased_ms } = facts;
            let state = match purchased_ms {
                Some(_) => HoldState::Purchased,
                None if expires_ms <= now_ms => HoldState::Expired,
                None => HoldState::Held,
            };
            if found.get(number).is_none_or(|other| other.state < state) {
                found.insert(number, Hold { user, item, taken_ms, expires_ms, state });
            }
        }
        // Purchases take their items first; then the holds, the oldest first, as far as the stock and the users' limits allow.
        let mut held: Vec<(u64, HoldNumber)> = Vec::new();
        for (number, hold) in found.iter() {
            match hold.state {
                HoldState::Held => held.push((hold.taken_ms, number)),
                HoldState::Purchased => sale.insert(number, hold),
                HoldState::Expired => {
                    // As in a state that is rebuilt in Redis, where the time alone says what has expired.
                    sale.last_ms = sale.last_ms.max(hold.expires_ms);
                    sale.insert(number, hold);
                }
            }
        }
        // Numbers rise within one life of an instance only.
        held.sort_unstable();
        for (number, hold) in held.into_iter().filter_map(|(_, number)| Some((number, found.get(number)?))) {
            if sale.free() == 0 || sale.share(&hold.user).items() >= terms.user_limit {
                sale.dropped += 1;
                continue;
            }
            sale.insert(number, hold);
        }
        sale
    }

    /// The sale's terms.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// How many holds did not fit the stock when the sale was opened.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// All holds by their numbers, the expired ones too.
    pub fn holds(&self) -> impl Iterator<Item = (HoldNumber, Hold)> {
        self.holds.iter()
    }

    /// The users who have any items, in no order, each with the number of held and purchased items.
    pub fn users(&self) -> impl Iterator<Item = (Id, u64)> {
        let items = |number: u32| self.shares.get(number as usize).map_or(0, Share::items);
        self.holds.users().map(move |(number, user)| (user, items(number))).filter(|(_, items)| *items > 0)
    }

    /// Takes an item off the stock for `user`, as hold `number`.
    pub fn checkout(&mut self, now_ms: u64, number: HoldNumber, user: Id, item: Id) -> Decision {
        let now = match self.tick(now_ms) {
            Ok(now) => now,
            Err(now_ms) => return Decision::NotOn { now_ms },
        };
        self.expire(now);
        if self.holds.contains(number) {
            return Decision::Duplicate;
        }
        if self.free() == 0 {
            let next_ms = self.queue.first().map_or(self.terms.ends_ms, |(expires_ms, _)| *expires_ms);
            return Decision::refused(Outcome::SoldOut { retry_ms: next_ms - now });
        }
        let share = self.share(&user);
        if share.items() >= self.terms.user_limit {
            let to_the_end = self.terms.ends_ms - now;
            // What is purchased does not come back in this sale.
            let bought = u64::from(share.purchased) >= self.terms.user_limit;
            let retry_ms = if bought { to_the_end } else { self.terms.hold_ms.min(to_the_end) };
            return Decision::refused(Outcome::UserLimit { retry_ms });
        }
        let expires_ms = self.terms.hold_expires_ms(now);
        self.insert(number, Hold { user, item, taken_ms: now, expires_ms, state: HoldState::Held });
        Decision::Decided {
            outcome: Outcome::Held { hold: HoldKey { sale: self.terms.sale, number }, expires_ms },
            record: Some(Record { kind: RecordKind::Hold, number, user, item, at_ms: now, expires_ms }),
        }
    }

    /// Redeems hold `number`. After the sale's end nothing is redeemed: what was purchased before stays so.
    pub fn purchase(&mut self, now_ms: u64, number: HoldNumber) -> Decision {
        let now = match self.tick(now_ms) {
            Ok(now) => now,
            Err(now_ms) if now_ms < self.terms.starts_ms => return Decision::NotOn { now_ms },
            Err(_) => {
                return Decision::refused(match self.holds.get(number) {
                    Some(Hold { state: HoldState::Purchased, item, .. }) => Outcome::AlreadyPurchased { item },
                    _ => Outcome::InvalidCode,
                });
            }
        };
        let Some(hold) = self.holds.get(number) else {
            return Decision::refused(Outcome::HoldLost);
        };
        let Hold { user, item, expires_ms, .. } = hold;
        match hold.state {
            HoldState::Purchased => Decision::refused(Outcome::AlreadyPurchased { item }),
            HoldState::Expired => Decision::refused(Outcome::InvalidCode),
            HoldState::Held if expires_ms <= now => Decision::refused(Outcome::InvalidCode),
            HoldState::Held => {
                self.set_state(number, HoldState::Purchased);
                Decision::Decided {
                    outcome: Outcome::Purchased { item },
                    record: Some(Record { kind: RecordKind::Purchase, number, user, item, at_ms: now, expires_ms: 0 }),
                }
            }
        }
    }

    /// Takes back what `record` states, since the ledger could not keep it. Where several are taken back, the newest
    /// goes first. The clock stays, and so does what has expired meanwhile.
    pub fn undo(&mut self, record: &Record) {
        if record.kind == RecordKind::Hold {
            self.remove(record.number);
            return;
        }
        let Some(hold) = self.holds.get(record.number) else { return };
        let state = match hold.state {
            HoldState::Purchased if hold.expires_ms > self.last_ms => HoldState::Held,
            HoldState::Purchased => HoldState::Expired,
            other => other,
        };
        self.set_state(record.number, state);
    }

    /// Where the items are at `now_ms`. What has expired goes back to the stock first, if the sale is on.
    pub fn stock(&mut self, now_ms: u64) -> Stock {
        if let Ok(now) = self.tick(now_ms) {
            self.expire(now);
        }
        Stock { free: self.free(), held: self.queue.len() as u64, purchased: self.purchased }
    }

    /// How far the sale has come. An expired hold counts as held until the next checkout.
    pub fn progress(&self) -> Progress {
        // The hold that expires last was taken last.
        let newest = self.queue.last().and_then(|(_, number)| self.holds.get(*number));
        let sold_out_ms = (self.free() == 0).then(|| newest.map_or(self.last_ms, |hold| hold.taken_ms));
        Progress { sold_out_ms, taken: self.holds.len(), purchased: self.purchased }
    }

    /// Moves the sale's time to what it is when the clock shows `clock_ms`. `Err` with the time if the sale is not on: then
    /// nothing may change, not even the time.
    fn tick(&mut self, clock_ms: u64) -> Result<u64, u64> {
        let (now_ms, slewed) = self.time(clock_ms);
        if !self.terms.is_on(now_ms) {
            return Err(now_ms);
        }
        (self.last_ms, self.slewed) = (now_ms, slewed);
        Ok(now_ms)
    }

    /// The sale's time when the clock shows `clock_ms`, as `lua/time.lua` has it: it never goes back, and goes on at half
    /// speed where the clock did.
    fn time(&self, clock_ms: u64) -> (u64, Option<(u64, u64)>) {
        if clock_ms >= self.last_ms {
            return (clock_ms, self.slewed);
        }
        if let Some((was_ms, from_ms)) = self.slewed
            && let Some(since_ms) = clock_ms.checked_sub(was_ms)
        {
            let slow_ms = (from_ms + since_ms / 2).min(self.terms.ends_ms - 1);
            if slow_ms >= self.last_ms {
                return (slow_ms, self.slewed);
            }
        }
        (self.last_ms, Some((clock_ms, self.last_ms)))
    }

    /// Gives back the items of the holds whose time has passed.
    fn expire(&mut self, now: u64) {
        while let Some((expires_ms, number)) = self.queue.first().copied() {
            if expires_ms > now {
                return;
            }
            self.set_state(number, HoldState::Expired);
        }
    }

    fn free(&self) -> u64 {
        self.terms.items.saturating_sub(self.queue.len() as u64 + self.purchased)
    }

    fn share(&self, user: &Id) -> Share {
        let share = self.holds.user(user).and_then(|number| self.shares.get(number as usize));
        share.copied().unwrap_or_default()
    }

    /// The share of the user with this number.
    fn share_mut(&mut self, user: u32) -> Option<&mut Share> {
        if self.shares.len() <= user as usize {
            self.shares.resize(user as usize + 1, Share::default());
        }
        self.shares.get_mut(user as usize)
    }

    /// Changes what became of hold `number`, where it stands: a purchase looks the hold up once.
    fn set_state(&mut self, number: HoldNumber, state: HoldState) {
        let Some(Change { user, expires_ms, was }) = self.holds.set_state(number, state) else { return };
        match was {
            HoldState::Held => drop(self.queue.remove(&(expires_ms, number))),
            HoldState::Purchased => self.purchased -= 1,
            HoldState::Expired => {}
        }
        match state {
            HoldState::Held => drop(self.queue.insert((expires_ms, number))),
            HoldState::Purchased => self.purchased += 1,
            HoldState::Expired => {}
        }
        let Some(share) = self.share_mut(user) else { return };
        share.count(was).into_iter().for_each(|count| *count -= 1);
        share.count(state).into_iter().for_each(|count| *count += 1);
    }

    /// Adds a hold and counts it. Its number must be new.
    fn insert(&mut self, number: HoldNumber, hold: Hold) {
        match hold.state {
            HoldState::Held => {
                self.queue.insert((hold.expires_ms, number));
            }
            HoldState::Purchased => self.purchased += 1,
            HoldState::Expired => {}
        }
        let user = self.holds.insert(number, hold);
        if let Some(count) = self.share_mut(user).and_then(|share| share.count(hold.state)) {
            *count += 1;
        }
    }

    /// Forgets hold `number` and what it counted for.
    fn remove(&mut self, number: HoldNumber) {
        self.set_state(number, HoldState::Expired);
        self.holds.remove(number);
    }
}
