//! `lua/offer.lua`: records of an older epoch, offered to a sale that goes on, against the obvious version of it.

use crate::bench::{Bench, Told, text, with_test_clock};
use crate::case::{ITEMS, LENGTH_MS, START_MS, USERS};
use crate::state::{State, same};
use flashsale::domain::{HoldNumber, Id, Outcome, Terms};
use flashsale::inventory::memory::{Hold, HoldState};
use flashsale::inventory::redis::scripts::chunk::push_slot;
use flashsale::inventory::redis::scripts::layout::{queue_key, state_key};
use flashsale::inventory::redis::scripts::offer;
use flashsale::keeper::merge::RebuiltSale;
use proptest::prelude::*;
use redis::cmd;
use std::collections::BTreeMap;
use std::fmt;

const HOLD_MS: u64 = 100;

/// A late record: whether it is a purchase, the chunk and the place of its hold's number, whose hold it is, and when the hold was
/// taken, from the sale's start.
type Late = (bool, (u64, u64), usize, u64);

/// Holds that a call takes: the first numbers of its chunk.
const A_CALL: usize = 2;

/// A sale with some holds, of which some are redeemed, and what is offered to it at some time.
#[derive(Clone, Debug)]
pub struct Case {
    items: u64,
    user_limit: u64,
    /// The users of holds: two are taken in each call, 10 ms after the one before.
    held: Vec<usize>,
    bought: Vec<u64>,
    at: u64,
    late: Vec<Late>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {self:?}")
    }
}

pub fn cases() -> impl Strategy<Value = Case> {
    let late = (any::<bool>(), (0..6u64, 0..4u64), 0..USERS.len(), 0..20u64);
    let held = proptest::collection::vec(0..USERS.len(), 0..8);
    let bought = proptest::collection::vec(0..8u64, 0..4);
    let terms = (0..10u64, 1..5u64, 0..40u64);
    (terms, held, bought, proptest::collection::vec(late, 1..16)).prop_map(|(terms, held, bought, late)| {
        let (items, user_limit, at) = terms;
        Case { items, user_limit, held, bought, at: at * 5, late }
    })
}

/// The number of the nth of the holds that are taken by calls.
fn number(nth: u64) -> HoldNumber {
    HoldNumber(8 * (nth / A_CALL as u64) + nth % A_CALL as u64)
}

/// The obvious version: what is held and purchased, and nothing that is counted besides.
struct Model {
    terms: Terms,
    holds: BTreeMap<HoldNumber, Hold>,
}

impl Model {
    fn has_room_for(&self, user: Id) -> bool {
        let active = || self.holds.values().filter(|hold| hold.state != HoldState::Expired);
        let his = active().filter(|hold| hold.user == user).count() as u64;
        (active().count() as u64) < self.terms.items && his < self.terms.user_limit
    }

    /// The items of holds whose time has passed are free again.
    fn expire(&mut self, now: u64) {
        let held = self.holds.values_mut().filter(|hold| hold.state == HoldState::Held);
        held.filter(|hold| hold.expires_ms <= now).for_each(|hold| hold.state = HoldState::Expired);
    }

    fn purchase(&mut self, number: HoldNumber) -> Outcome {
        let Some(hold) = self.holds.get_mut(&number) else { return Outcome::HoldLost };
        match hold.state {
            HoldState::Purchased => Outcome::AlreadyPurchased { item: hold.item },
            HoldState::Expired => Outcome::InvalidCode,
            HoldState::Held => {
                hold.state = HoldState::Purchased;
                Outcome::Purchased { item: hold.item }
            }
        }
    }

    fn offer(&mut self, now: u64, purchase: bool, number: HoldNumber, hold: Hold) -> bool {
        let known = self.holds.get(&number).copied();
        let state = match (purchase, known.map(|known| known.state)) {
            (false, Some(_)) => {
                let known = self.holds.get_mut(&number).unwrap();
                if known.expires_ms == 0 {
                    // Its purchase had come alone.
                    (known.taken_ms, known.expires_ms) = (hold.taken_ms, hold.expires_ms);
                }
                return true;
            }
            (true, Some(HoldState::Purchased)) => return true,
            (false, None) if hold.expires_ms <= now => HoldState::Expired,
            (true, Some(HoldState::Held)) => HoldState::Purchased,
            _ if !self.has_room_for(hold.user) => return false,
            (false, None) => HoldState::Held,
            (true, _) => HoldState::Purchased,
        };
        let renewed = if state == HoldState::Held { self.terms.hold_expires_ms(now) } else { hold.expires_ms };
        let fresh = Hold { state, expires_ms: if purchase { 0 } else { renewed }, ..hold };
        self.holds.insert(number, known.map_or(fresh, |known| Hold { state, ..known }));
        true
    }
}

/// Plays `case`; `Err` says where the two sides part.
pub fn play(bench: &mut Bench, case: &Case) -> Result<(), String> {
    let sale = bench.next_sale();
    let Case { items, user_limit, .. } = *case;
    let ends_ms = START_MS + LENGTH_MS;
    let terms = Terms { sale, items, user_limit, hold_ms: HOLD_MS, starts_ms: START_MS, ends_ms };
    let built = bench.store.build(&terms, 1, &RebuiltSale::default(), &mut || Ok(())).map_err(text)?;
    bench.store.open(&built).map_err(text)?;
    let mut model = Model { terms, holds: BTreeMap::new() };
    prepare(bench, case, &mut model);

    let now = START_MS + case.at.max(10 * case.held.len() as u64);
    model.expire(now);
    let text = with_test_clock(offer::TEXT);
    let mut eval = cmd("EVAL");
    eval.arg(&text).arg(2).arg(state_key(sale)).arg(queue_key(sale)).arg(1).arg(u64::MAX);
    let mut wanted = String::from("K ");
    for (purchase, (chunk, place), user, at) in &case.late {
        let (number, at_ms) = (HoldNumber(8 * chunk + place), START_MS + at * 5);
        // A hold has one user and one item, in each record of it.
        let user = model.holds.get(&number).map_or(id(USERS[*user]), |hold| hold.user);
        let item = model.holds.get(&number).map_or(id(ITEMS[0]), |hold| hold.item);
        let (mark, taken_ms, expires_ms, bought_ms) =
            if *purchase { ("P", 0, 0, at_ms) } else { ("H", at_ms, terms.hold_expires_ms(at_ms), 0) };
        let mut slot = Vec::new();
        push_slot(number, &mut slot);
        eval.arg(mark).arg(slot).arg(user.as_bytes()).arg(item.as_bytes());
        for ms in [taken_ms, expires_ms, bought_ms] {
            eval.arg(format!("{ms:013}"));
        }
        let hold = Hold { user, item, taken_ms: at_ms, expires_ms, state: HoldState::Held };
        wanted.push(if model.offer(now, *purchase, number, hold) { 'F' } else { 'M' });
    }
    bench.send_clock(now);
    bench.replies();
    let reply: String = eval.query(&mut bench.connection).map_err(|e| e.to_string())?;
    same("the marks", reply, wanted)?;
    let holds = |bench: &mut Bench| -> Result<BTreeMap<HoldNumber, Hold>, String> {
        let state = State::read(&mut bench.connection, &terms);
        state.check(&terms, 1)?;
        Ok(state.holds)
    };
    same("the holds", holds(bench)?, model.holds.clone())?;
    // What was put back is redeemed like any other hold, and expires like it.
    let asked: Vec<_> = case.late.iter().take(3).map(|(_, (chunk, place), ..)| HoldNumber(8 * chunk + place)).collect();
    bench.send_purchases(&terms, 1, asked.clone());
    let told = bench.replies().pop().unwrap().map_err(|refusal| format!("{refusal:?}"))?;
    for (number, told) in asked.iter().zip(told) {
        let Told::Outcome(outcome, _) = told else { return Err(format!("{told:?}")) };
        same("a purchase", outcome, model.purchase(*number))?;
    }
    bench.send_clock(now + HOLD_MS);
    bench.send_checkouts(&terms, 1, HoldNumber(0), &[]);
    bench.replies();
    model.expire(now + HOLD_MS);
    same("the holds at the end", holds(bench)?, model.holds)
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

/// The holds that there are before anything is offered, through the scripts. Nothing expires meanwhile.
fn prepare(bench: &mut Bench, case: &Case, model: &mut Model) {
    bench.send_clock(START_MS);
    for (nth, users) in case.held.chunks(A_CALL).enumerate() {
        bench.send_clock(START_MS + 10 * nth as u64);
        let orders: Vec<_> = users.iter().map(|user| (id(USERS[*user]), id(ITEMS[1]))).collect();
        bench.send_checkouts(&model.terms, 1, HoldNumber(8 * nth as u64), &orders);
    }
    for nth in &case.bought {
        bench.send_purchases(&model.terms, 1, vec![number(*nth)]);
    }
    for told in bench.replies().into_iter().flatten().flatten() {
        match told {
            Told::Outcome(Outcome::Held { hold, expires_ms }, Some(record)) => {
                let (user, item, taken_ms) = (record.user, record.item, record.at_ms);
                let held = Hold { user, item, taken_ms, expires_ms, state: HoldState::Held };
                model.holds.insert(hold.number, held);
            }
            Told::Outcome(Outcome::Purchased { .. }, Some(record)) => {
                model.holds.get_mut(&record.number).unwrap().state = HoldState::Purchased;
            }
            _ => {}
        }
    }
}
