//! One sequence, played on both sides.

use crate::bench::{Bench, Reply, Told, text};
use crate::case::{Case, ITEMS, Op, START_MS, UNKNOWN, USERS};
use crate::state::{State, same};
use flashsale::domain::{HoldNumber, HoldRow, Id, Outcome, Record, RecordKind, Terms};
use flashsale::inventory::memory::{Decision, MemorySale};
use flashsale::inventory::redis::scripts::Refusal;
use flashsale::keeper::merge::{HoldFacts, HoldMerge};
use flashsale::keeper::sale_store::SaleStore;
use std::collections::BTreeMap;

/// The first hold number, of a chunk: none of these fits a double.
const FIRST: u64 = 1 << 62;

struct Expected {
    step: usize,
    reply: Reply,
    /// Of each request, whether the user took a hold less than a hold time ago: then the scripts do not know yet that all
    /// of the user's limit is purchased.
    recent: Vec<bool>,
}

impl Expected {
    fn refused(step: usize, refusal: Refusal) -> Expected {
        Expected { step, reply: Err(refusal), recent: Vec::new() }
    }
}

/// The side in memory, and what both sides are led by.
struct Duel<'a> {
    bench: &'a mut Bench,
    terms: Terms,
    epoch: u64,
    memory: MemorySale,
    /// What a ledger would have.
    rows: BTreeMap<HoldNumber, HoldRow>,
    now: u64,
    next: u64,
    /// What the calls on their way should come to, each with its step.
    expected: Vec<Expected>,
}

/// Plays `case`; `Err` says where the two sides part.
pub fn play(bench: &mut Bench, case: &Case) -> Result<(), String> {
    let terms = case.terms(bench.next_sale());
    let memory = MemorySale::open(terms, [], 0);
    let now = START_MS.saturating_add_signed(case.begin);
    let mut duel =
        Duel { bench, terms, epoch: 0, memory, rows: BTreeMap::new(), now, next: FIRST, expected: Vec::new() };
    duel.restart()?;
    for (at, op) in case.ops.iter().enumerate() {
        duel.step(at, op).map_err(|why| format!("step {at}: {why}"))?;
    }
    // A last look of both at the time, also when the last step was the clock's.
    let at = case.ops.len();
    duel.step(at, &Op::Purchases(vec![UNKNOWN]))?;
    duel.step(at, &Op::Checkouts(vec![(0, 0)], None))?;
    duel.settle()
}

fn user(at: usize) -> Id {
    USERS[at].parse().unwrap()
}

fn item(at: usize) -> Id {
    ITEMS[at].parse().unwrap()
}

impl Duel<'_> {
    fn step(&mut self, at: usize, op: &Op) -> Result<(), String> {
        match op {
            Op::Clock(by) => self.set_clock(self.now.saturating_add_signed(*by)),
            Op::End(by) => self.set_clock(self.terms.ends_ms.saturating_add_signed(*by)),
            Op::Checkouts(orders, reused) => self.checkouts(at, orders, *reused),
            Op::Purchases(which) => {
                let holds: Vec<_> = which.iter().map(|back| self.granted(*back)).collect();
                let told: Vec<Decision> = holds.iter().map(|n| self.memory.purchase(self.now, *n)).collect();
                self.expect(at, told, Vec::new());
                self.bench.send_purchases(&self.terms, self.epoch, holds);
            }
            Op::Stale => self.stale(at),
            Op::Restart => self.restart()?,
            Op::Rebuild(lacking) => self.rebuild(at, *lacking)?,
        }
        Ok(())
    }

    fn checkouts(&mut self, at: usize, orders: &[(usize, usize)], reused: Option<usize>) {
        let chunks = orders.len().div_ceil(8) as u64;
        let before = reused.map(|back| self.next.saturating_sub(8 * (back as u64 + 1)).max(FIRST));
        // Not where all holds of a chunk found no item left in a rebuilding: only the ledger still knows them.
        let is_usable = |chunk: u64| self.known_in(chunk).is_some() || !self.is_written(chunk);
        let before = before.filter(|first| (0..chunks).all(|nth| is_usable(first + 8 * nth)));
        let first = before.unwrap_or(self.next);
        self.next = self.next.max(first + 8 * chunks);
        let orders: Vec<(Id, Id)> = orders.iter().map(|(u, i)| (user(*u), item(*i))).collect();
        // A chunk of which one number is taken is taken as a whole.
        let taken: Vec<Option<HoldNumber>> = (0..chunks).map(|nth| self.known_in(first + 8 * nth)).collect();
        let number = |i: usize| taken[i / 8].unwrap_or(HoldNumber(first + i as u64));
        let told: Vec<Decision> = orders
            .iter()
            .enumerate()
            .map(|(nth, (user, item))| self.memory.checkout(self.now, number(nth), *user, *item))
            .collect();
        let recent = orders.iter().map(|(user, _)| self.has_recent_hold(*user)).collect();
        self.expect(at, told, recent);
        self.bench.send_checkouts(&self.terms, self.epoch, HoldNumber(first), &orders);
    }

    /// The hold that was granted so many before the last one.
    fn granted(&self, back: usize) -> HoldNumber {
        let back = if back < UNKNOWN { back % self.rows.len().max(1) } else { usize::MAX };
        let row = self.rows.keys().rev().nth(back).copied();
        row.unwrap_or(HoldNumber(u64::from(u32::MAX)))
    }

    /// Whether the ledger has a hold of the chunk that begins at `first`.
    fn is_written(&self, first: u64) -> bool {
        self.rows.range(HoldNumber(first)..HoldNumber(first + 8)).next().is_some()
    }

    /// A hold of the chunk that begins at `first`.
    fn known_in(&self, first: u64) -> Option<HoldNumber> {
        self.memory.holds().map(|(number, _)| number).find(|number| number.0 / 8 == first / 8)
    }

    fn set_clock(&mut self, ms: u64) {
        self.now = ms;
        self.bench.send_clock(ms);
    }

    /// Notes what a call should come to, and what the ledger gets of it.
    fn expect(&mut self, step: usize, decisions: Vec<Decision>, recent: Vec<bool>) {
        let mut told = Vec::new();
        for decision in decisions {
            told.push(match decision {
                Decision::NotOn { now_ms } => {
                    self.expected.push(Expected::refused(step, Refusal::NotOn(now_ms)));
                    return;
                }
                Decision::Duplicate => Told::Duplicate,
                Decision::Decided { outcome, record } => {
                    record.iter().for_each(|record| self.write(record));
                    Told::Outcome(outcome, record)
                }
            });
        }
        self.expected.push(Expected { step, reply: Ok(told), recent });
    }

    fn has_recent_hold(&self, user: Id) -> bool {
        self.memory.holds().any(|(_, hold)| hold.user == user && hold.expires_ms > self.now)
    }

    fn write(&mut self, record: &Record) {
        let Record { number, user, item, at_ms, expires_ms, kind } = *record;
        if kind == RecordKind::Purchase {
            self.rows.get_mut(&number).expect("a hold before its purchase").facts.purchased_ms = Some(at_ms);
            return;
        }
        let facts = HoldFacts { user, item, taken_ms: at_ms, expires_ms, purchased_ms: None };
        assert!(self.rows.insert(number, HoldRow { number, facts }).is_none(), "a number that was held before");
    }

    /// Calls of other epochs change nothing.
    fn stale(&mut self, at: usize) {
        for epoch in [self.epoch - 1, self.epoch + 1] {
            self.bench.send_purchases(&self.terms, epoch, vec![HoldNumber(self.next - 1)]);
            self.bench.send_checkouts(&self.terms, epoch, HoldNumber(self.next), &[(user(0), item(0))]);
            self.expected.extend([0, 1].map(|_| Expected::refused(at, Refusal::Epoch(self.epoch))));
            self.next += 8;
        }
    }

    /// Lets the calls arrive, and compares what became of them and what is there now.
    fn settle(&mut self) -> Result<(), String> {
        let replies = self.bench.replies();
        assert_eq!(replies.len(), self.expected.len());
        for (expected, mut reply) in std::mem::take(&mut self.expected).into_iter().zip(replies) {
            let Expected { step: at, reply: expected, recent } = expected;
            allow_the_shorter_wait(&mut reply, &expected, &recent);
            self.take_known_facts(&mut reply).map_err(|why| format!("step {at}: {why}"))?;
            if let (Ok(told), Ok(wanted)) = (&reply, &expected) {
                for (i, (told, wanted)) in told.iter().zip(wanted).enumerate() {
                    same(&format!("step {at}, request {i}"), told, wanted)?;
                }
            }
            same(&format!("step {at}"), reply, expected)?;
        }
        let state = State::read(&mut self.bench.connection, &self.terms);
        let checked = state.check(&self.terms, self.epoch);
        checked.and_then(|()| state.compare(&mut self.memory)).map_err(|why| format!("the state: {why}"))
    }

    /// Memory keeps no purchases' times: the scripts' word on older purchases is compared with the ledger's.
    fn take_known_facts(&self, reply: &mut Reply) -> Result<(), String> {
        for told in reply.iter_mut().flatten() {
            if let Told::Outcome(Outcome::AlreadyPurchased { .. }, record) = told
                && let Some(Record { number, user, at_ms, .. }) = record.take()
            {
                let row = self.rows.get(&number).map(|row| (row.facts.user, row.facts.purchased_ms));
                same("an earlier purchase", Some((user, Some(at_ms))), row)?;
            }
        }
        Ok(())
    }

    /// Redis loses everything, and so does the process: both come back from the ledger's rows.
    fn restart(&mut self) -> Result<(), String> {
        if self.epoch > 0 {
            self.settle()?;
        }
        self.bench.store.unlink(self.terms.sale).map_err(text)?;
        let rows: Vec<HoldRow> = self.rows.values().copied().collect();
        self.reopen(&rows, &[])
    }

    fn rebuild(&mut self, at: usize, lacking: u64) -> Result<(), String> {
        self.settle()?;
        self.bench.store.close(&self.terms, self.epoch + 1).map_err(text)?;
        for (epoch, refusal) in [(self.epoch, Refusal::Epoch(self.epoch + 1)), (self.epoch + 1, Refusal::Closed)] {
            self.bench.send_purchases(&self.terms, epoch, vec![HoldNumber(self.next - 1)]);
            self.bench.send_checkouts(&self.terms, epoch, HoldNumber(self.next), &[(user(0), item(0))]);
            let replies = self.bench.replies();
            same(&format!("step {at}, while closed"), replies, vec![Err(refusal), Err(refusal)])?;
        }
        let (mut rows, mut missing) = (Vec::new(), Vec::new());
        let known: Vec<HoldNumber> = self.memory.holds().map(|(number, _)| number).collect();
        for (i, row) in self.rows.values().enumerate() {
            // What did not fit an earlier rebuilding is in the ledger alone.
            let bits = if known.contains(&row.number) { lacking >> (2 * (i % 32)) & 3 } else { 0 };
            rows.extend(lack(row, bits, &mut missing));
        }
        self.reopen(&rows, &missing)
    }

    /// Opens both sides anew. The ledger has `rows`; what it lacks is found in Redis.
    fn reopen(&mut self, rows: &[HoldRow], lacking: &[Record]) -> Result<(), String> {
        self.epoch += 1;
        let mut union = HoldMerge::default();
        for row in rows {
            union.ledger(row.number.0, row.facts);
        }
        let has_checkout = |number: u64| rows.iter().any(|row| row.number.0 == number && row.facts.has_checkout());
        self.bench
            .store
            .holds(
                self.terms.sale,
                &mut |number, known| {
                    union.redis(number, known, has_checkout(number));
                },
                &mut || Ok(()),
            )
            .map_err(text)?;
        let sorted = |records: &[Record]| {
            let mut records = records.to_vec();
            records.sort_by_key(|record| (record.number, record.kind));
            records
        };
        same("what the ledger lacks", sorted(&union.missing), sorted(lacking))?;
        let rebuilt = union.rebuild(&self.terms, self.now);
        let built = self.bench.store.build(&self.terms, self.epoch, &rebuilt, &mut || Ok(())).map_err(text)?;
        self.bench.store.open(&built).map_err(text)?;
        self.memory = MemorySale::open(self.terms, self.rows.values().copied(), self.now);
        same("holds without an item", rebuilt.quarantined.len() as u64, self.memory.dropped())?;
        self.set_clock(self.now);
        Ok(())
    }
}

/// Where the scripts cannot know yet that a user has purchased all of the limit, they may say the hold time instead of the
/// time to the sale's end: what memory says is put in its place.
fn allow_the_shorter_wait(reply: &mut Reply, expected: &Reply, recent: &[bool]) {
    let (Ok(told), Ok(wanted)) = (reply, expected) else { return };
    for ((told, wanted), _) in told.iter_mut().zip(wanted).zip(recent).filter(|(_, recent)| **recent) {
        if let (
            Told::Outcome(Outcome::UserLimit { retry_ms: shorter }, None),
            Told::Outcome(Outcome::UserLimit { retry_ms }, None),
        ) = (&*told, wanted)
            && shorter < retry_ms
        {
            *told = *wanted;
        }
    }
}

/// `row` without its purchase (1), as a whole (2), or without its checkout (3); what is taken away is `missing`.
fn lack(row: &HoldRow, bits: u64, missing: &mut Vec<Record>) -> Option<HoldRow> {
    let HoldRow { number, facts } = *row;
    let HoldFacts { user, item, taken_ms, expires_ms, purchased_ms } = facts;
    let hold = Record { kind: RecordKind::Hold, number, user, item, at_ms: taken_ms, expires_ms };
    let purchase =
        purchased_ms.map(|at_ms| Record { kind: RecordKind::Purchase, number, user, item, at_ms, expires_ms: 0 });
    match (bits, purchase) {
        (1, _) => {
            missing.extend(purchase);
            Some(HoldRow { number, facts: HoldFacts { purchased_ms: None, ..facts } })
        }
        (2, _) => {
            missing.push(hold);
            missing.extend(purchase);
            None
        }
        (3, Some(purchase)) => {
            missing.push(hold);
            Some(HoldRow { number, facts: HoldFacts { taken_ms: purchase.at_ms, expires_ms: 0, ..facts } })
        }
        _ => Some(*row),
    }
}
