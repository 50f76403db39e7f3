//! An opener ends at every single step of a recovery; another instance takes over, and all promises hold.

use crate::ledger::SimLedger;
use crate::redis::SimStore;
use crate::shop::{SimWork, USERS};
use crate::world::{Instance, State, World};
use flashsale::config::SaleSettings;
use flashsale::domain::{HoldNumber, Id, RecordKind, SaleId};
use flashsale::inventory::LostCalls;
use flashsale::inventory::memory::MemorySale;
use flashsale::keeper::distributed::{Keeper, Parts};
use flashsale::keeper::time::TimeSource;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const SETTINGS: SaleSettings = SaleSettings { items: 300, user_limit: 2, sale_ms: 3_600_000, hold_ms: 600_000 };
/// When Redis loses something.
const FAULT: Duration = Duration::from_secs(4);
/// When the world is checked: all is sold by then, and all records are written.
const CHECK: Duration = Duration::from_secs(27);
/// How long no instance sells at most, after a loss and after the opener's end.
const RECOVERY: Duration = Duration::from_secs(8);
/// How many seeds are tried.
const SEEDS: u64 = 100;
/// Steps after the instance sells again at which it is ended too.
const STEPS_AFTER: u64 = 30;

// Enough users for all items, so that their limits and the stock both bind.
const _: () = assert!(USERS * SETTINGS.user_limit > SETTINGS.items);

/// What Redis loses.
type Fault = fn(&mut State);

/// A new server takes the place of the old one.
fn replaced(state: &mut State) {
    state.redis.starts += 1;
    flushed(state);
}

/// The same server has lost its keys.
fn flushed(state: &mut State) {
    (state.redis.owner, state.redis.states) = (None, BTreeMap::new());
    state.redis.built.clear();
}

/// The server was restarted, and has lost what it decided in the last second.
fn restarted(state: &mut State) {
    state.redis.starts += 1;
    let now_ms = state.unix_ms();
    for found in state.redis.states.values_mut() {
        let Some(sale) = &found.sale else { continue };
        let terms = *sale.terms();
        found.facts.retain(|_, facts| facts.taken_ms < now_ms - 1_000);
        for facts in found.facts.values_mut() {
            facts.purchased_ms = facts.purchased_ms.filter(|at_ms| *at_ms < now_ms - 1_000);
        }
        let rows: Vec<_> = found.rows().collect();
        found.sale = Some(MemorySale::open(terms, rows, now_ms));
    }
}

/// One instance's life.
fn live(instance: &Instance) {
    let me = instance.number;
    let parts = |state: &mut State| {
        let shop = &state.shops[me];
        (shop.view.clone(), shop.suspicions.clone(), shop.stale.clone(), shop.counters.clone())
    };
    let (view, suspicions, stale, counters) = instance.look(parts);
    let own = || Box::new(SimWork { instance: instance.clone(), counters: counters.clone() });
    let mut keeper = Keeper::connect(Parts {
        ledger: Box::new(SimLedger(instance.clone())),
        store: Box::new(SimStore { instance: instance.clone(), ledger: None }),
        time: Arc::new(instance.clone()),
        settings: SETTINGS,
        view,
        suspicions,
        stale,
        lost_calls: LostCalls::default(),
        own: own(),
    })
    .unwrap();
    keeper.serve(own());
    while instance.look(|state| state.now) < CHECK + Duration::from_secs(1) {
        keeper.turn();
        instance.sleep(keeper.pause());
    }
}

/// All that has to hold once the world is quiet again.
fn check(state: &mut State) {
    let mut wrong = Vec::new();
    let (sale, terms) = state.ledger.sales.iter().map(|(sale, row)| (*sale, row.terms)).next().unwrap();
    check_recovery(state, sale, &mut wrong);
    check_promises(state, sale, &mut wrong);
    let quarantined = |number: HoldNumber| state.ledger.quarantined.contains(&(sale, number, RecordKind::Hold));
    let on_record: BTreeMap<HoldNumber, Id> = state
        .ledger
        .holds
        .iter()
        .chain(&state.ledger.purchases)
        .filter(|((of, number), _)| *of == sale && !quarantined(*number))
        .map(|((_, number), record)| (*number, record.user))
        .collect();
    // No hold expires in a run.
    if on_record.len() as u64 > terms.items {
        wrong.push(format!("{} items are on record, of {}", on_record.len(), terms.items));
    }
    let mut users: BTreeMap<&str, u64> = BTreeMap::new();
    on_record.values().for_each(|user| *users.entry(user.as_str()).or_default() += 1);
    users.iter().filter(|(_, items)| **items > terms.user_limit).for_each(|(user, items)| {
        wrong.push(format!("{user} has {items} items on record"));
    });
    if let Some(found) = state.redis.states.get_mut(&sale) {
        let unknown = on_record.keys().filter(|number| !found.facts.contains_key(number)).count();
        if unknown > 0 {
            wrong.push(format!("Redis does not know {unknown} holds that are on record"));
        }
        let stock = found.sale.as_mut().map(|sale| sale.stock(sale.terms().starts_ms + 1_900_000));
        if stock.is_none_or(|stock| stock.free > 0 || stock.held + stock.purchased != terms.items) {
            wrong.push(format!("all is sold by now: {stock:?}"));
        }
    }
    let now = state.now;
    state.violations.extend(wrong.into_iter().map(|what| format!("at {now:?} {what}")));
}

/// An instance sells, all under one epoch, and the dead one has left nothing behind.
fn check_recovery(state: &State, sale: SaleId, wrong: &mut Vec<String>) {
    let since = state.ended.unwrap_or(FAULT).max(FAULT);
    match state.resumed {
        None => wrong.push("no instance sells".into()),
        Some((at, _)) if at > since + RECOVERY => {
            wrong.push(format!("no instance sold from {since:?} to {at:?}"));
        }
        Some(_) => {}
    }
    let epoch = &state.ledger.epoch;
    let alive = |instance: usize| state.is_alive(instance);
    if epoch.identity != state.redis.identity() {
        wrong.push(format!("the epoch is open on {:?}, and Redis is {}", epoch.identity, state.redis.identity()));
    }
    if state.redis.states.get(&sale).is_none_or(|found| found.epoch != epoch.number || !found.is_open) {
        wrong.push(format!("the sale is not open under epoch {}", epoch.number));
    }
    for (instance, shop) in state.shops.iter().enumerate().filter(|(instance, _)| alive(*instance)) {
        let view = shop.view.load();
        if !view.selling || view.epoch != epoch.number {
            wrong.push(format!("instance {instance}: selling {}, epoch {}", view.selling, view.epoch));
        }
    }
    let left = state.ledger.members.iter().filter(|(instance, of, _)| !alive(*instance) || *of != epoch.number).count();
    if left > 0 || state.ledger.opener.is_some() || state.ledger.reconciler.is_some_and(|holder| !alive(holder)) {
        wrong.push(format!("{left} locks of epochs are left, openers' lock: {:?}", state.ledger.opener));
    }
}

/// What was acknowledged is on record, and so are the holds of all codes that an instance gave out which is not ended.
fn check_promises(state: &State, sale: SaleId, wrong: &mut Vec<String>) {
    let bought: BTreeSet<_> = state.promises.purchases.iter().collect();
    if bought.len() < 20 {
        wrong.push(format!("only {} purchases were acknowledged", bought.len()));
    }
    for key in bought {
        let in_redis = state.redis.states.get(&sale).and_then(|found| found.facts.get(&key.1));
        if !state.ledger.purchases.contains_key(key) || in_redis.is_none_or(|facts| facts.purchased_ms.is_none()) {
            wrong.push(format!("the acknowledged purchase {:?} is lost: in Redis {in_redis:?}", key.1));
        }
    }
    for ((_, number), instance) in &state.promises.codes {
        let key = (sale, *number);
        let is_kept = state.ledger.holds.contains_key(&key)
            || state.ledger.quarantined.contains(&(sale, *number, RecordKind::Hold));
        if state.is_alive(*instance) && !is_kept {
            wrong.push(format!("the hold {number:?} that instance {instance} gave out is not on record"));
        }
    }
}

fn world(seed: u64, fault: Fault) -> World {
    World::new(2, seed).with_fault(FAULT, fault).checked(CHECK, check)
}

/// Runs a world, and checks it. `what` names it in a message.
fn run(world: World, what: &str) -> State {
    let state = world.run(live);
    assert_eq!(state.violations, Vec::<String>::new(), "{what}");
    state
}

/// The steps at which the opener may be ended: from the loss until it sells again, and some more.
fn steps(whole: &State) -> (usize, std::ops::RangeInclusive<u64>) {
    let opener = *whole.ledger.raised_by.first().expect("the epoch is raised");
    let (struck, resumed) = (&whole.struck.as_ref().unwrap().1, &whole.resumed.as_ref().unwrap().1);
    (opener, struck[opener] + 1..=resumed[opener] + STEPS_AFTER)
}

/// Ends the opener at each of its steps.
fn check_every_step(seed: u64, world: impl Fn() -> World) {
    let (opener, steps) = steps(&run(world(), &format!("seed {seed}, no instance ended")));
    let (mut names, count) = (BTreeSet::new(), steps.clone().count());
    for step in steps.clone() {
        let what = format!("seed {seed}: instance {opener} ended at step {step} of {steps:?}");
        let state = run(world().ending(opener, step), &what);
        assert!(state.ended.is_some(), "{what}: it takes that step");
        names.insert(state.last_call[opener]);
    }
    // What a recovery consists of: else the steps were others.
    let protocol =
        ["announce closing", "close", "drain", "raise", "rows", "forget", "build", "open", "set identity", "join"];
    protocol.iter().for_each(|step| assert!(names.contains(step), "{step} is not among the steps: {names:?}"));
    println!("seed {seed}: {count} steps, {} kinds", names.len());
}

#[test]
fn an_opener_ends_at_every_step_after_redis_was_replaced() {
    check_every_step(1, || world(1, replaced));
}

#[test]
fn an_opener_ends_at_every_step_after_redis_was_flushed() {
    check_every_step(2, || world(2, flushed));
}

#[test]
fn an_opener_ends_at_every_step_after_redis_lost_its_last_second() {
    check_every_step(3, || world(3, restarted));
}

/// An opener gives the others time to write what they have before it raises the epoch.
#[test]
fn no_record_is_late_where_the_writers_are_quick() {
    check_every_step(4, || world(4, flushed).with_quick_writers());
}

/// The same at one step for each of many seeds.
#[test]
fn an_opener_ends_somewhere() {
    for seed in 100..100 + SEEDS {
        let mut random = fastrand::Rng::with_seed(seed);
        let faults: [Fault; 3] = [replaced, flushed, restarted];
        let fault = faults[random.usize(..faults.len())];
        let whole = run(world(seed, fault), &format!("seed {seed}, no instance ended"));
        let (opener, steps) = steps(&whole);
        let step = random.u64(steps.clone());
        run(
            world(seed, fault).ending(opener, step),
            &format!("seed {seed}: instance {opener} ended at step {step} of {steps:?}"),
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let state = world(7, replaced).run(live);
        let rows: Vec<_> = state.ledger.holds.keys().copied().collect();
        (state.calls, state.now, rows, state.resumed)
    };
    assert_eq!(run(), run());
}
