//! What chance would hardly find: more expired holds than one call takes back, and late records.

use crate::bench::{Bench, Told, with_test_clock};
use crate::state::State;
use flashsale::domain::{HoldNumber, Id, Outcome, Record, RecordKind, Records, Terms};
use flashsale::inventory::redis::scripts::layout::{queue_key, state_key};
use flashsale::inventory::redis::scripts::offer;
use flashsale::inventory::redis::scripts::replan::TEXT as REPLAN;
use flashsale::keeper::error::KeeperError;
use flashsale::keeper::merge::{HoldFacts, HoldMerge, RebuiltSale};
use flashsale::keeper::sale_store::SaleStore;

/// Chunks of holds that one call takes back, as `lua/chunk.lua` says.
const BOUND: u64 = 64;
const START_MS: u64 = crate::case::START_MS;

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

/// A bench with a new, empty sale, its clock at the sale's start.
fn opened(items: u64, user_limit: u64) -> (Bench, Terms) {
    let mut bench = Bench::start();
    let sale = bench.next_sale();
    let ends_ms = START_MS + 100_000;
    let terms = Terms { sale, items, user_limit, hold_ms: 1_000, starts_ms: START_MS, ends_ms };
    let built = bench.store.build(&terms, 1, &RebuiltSale::default(), &mut || Ok(())).unwrap();
    bench.store.open(&built).unwrap();
    bench.send_clock(START_MS);
    (bench, terms)
}

impl Bench {
    /// One checkout call for `numbers`, which begin with a chunk, all by `user`.
    fn take(&mut self, terms: &Terms, numbers: std::ops::Range<u64>, user: &str) -> Vec<Told> {
        let orders: Vec<_> = numbers.clone().map(|_| (id(user), id("i"))).collect();
        self.send_checkouts(terms, 1, HoldNumber(numbers.start), &orders);
        self.replies().pop().unwrap().unwrap()
    }

    /// A call for each of `chunks`, which takes one hold, the first of its chunk.
    fn take_singly(&mut self, terms: &Terms, chunks: std::ops::Range<u64>, user: impl Fn(u64) -> Id) {
        for chunk in chunks.clone() {
            self.send_checkouts(terms, 1, HoldNumber(8 * chunk), &[(user(chunk), id("i"))]);
        }
        let replies = self.replies();
        assert_eq!(replies.len() as u64, chunks.end - chunks.start);
        assert!(replies.iter().all(|reply| reply.as_ref().unwrap().iter().all(is_held)), "{replies:?}");
    }

    fn free(&mut self, terms: &Terms) -> (u64, u64) {
        let state = State::read(&mut self.connection, terms);
        state.check(terms, 1).unwrap();
        (state.number("free"), state.number("queue"))
    }
}

fn is_held(told: &Told) -> bool {
    matches!(told, Told::Outcome(Outcome::Held { .. }, _))
}

/// The ledger is asked for all rows up to the time of the reading: a later row must not count among them.
#[test]
fn what_is_decided_after_a_reading_is_later_than_it() {
    let (mut bench, terms) = opened(9, 9);
    let hold = |bench: &mut Bench, chunk: u64| match bench.take(&terms, 8 * chunk..8 * chunk + 1, "u").as_slice() {
        [Told::Outcome(Outcome::Held { expires_ms, .. }, _)] => expires_ms - terms.hold_ms,
        other => panic!("{other:?}"),
    };
    for chunk in 1..5 {
        let before_ms = hold(&mut bench, chunk);
        let counts = bench.store.counts(terms.sale).unwrap().unwrap();
        assert_eq!(counts.taken, 2 * chunk - 1);
        assert!(before_ms <= counts.upto_ms, "{before_ms} {}", counts.upto_ms);
        let after_ms = hold(&mut bench, chunk + 100);
        assert!(after_ms > counts.upto_ms, "{after_ms} {}", counts.upto_ms);
    }
}

#[test]
fn what_found_no_place_is_expected_in_the_ledger() {
    let mut bench = Bench::start();
    let sale = bench.next_sale();
    let ends_ms = START_MS + 100_000;
    let terms = Terms { sale, items: 2, user_limit: 9, hold_ms: 1_000, starts_ms: START_MS, ends_ms };
    let mut union = HoldMerge::default();
    for number in 0..5 {
        let (taken_ms, purchased_ms) = (START_MS, (number == 4).then_some(START_MS));
        let known = HoldFacts { user: id("u"), item: id("i"), taken_ms, expires_ms: START_MS + 1_000, purchased_ms };
        union.ledger(number, known);
    }
    let rebuilt = union.rebuild(&terms, START_MS);
    assert_eq!(rebuilt.quarantined.len(), 3);
    let built = bench.store.build(&terms, 1, &rebuilt, &mut || Ok(())).unwrap();
    bench.store.open(&built).unwrap();
    // All five checkouts are in the ledger, and a sixth one that is lacking has to be noticed.
    let counts = bench.store.counts(sale).unwrap().unwrap();
    assert_eq!((counts.taken, counts.purchased), (5, 1));
    State::read(&mut bench.connection, &terms).check(&terms, 1).unwrap();
}

#[test]
fn more_expired_holds_than_a_call_takes_back() {
    // All items are held, each by a hold in a chunk of its own, and expire at the same moment; each later call takes 64 chunks back.
    let items = 2 * BOUND + 10;
    let (mut bench, terms) = opened(items, 1_000);
    bench.take_singly(&terms, 0..items, |_| id("u"));
    bench.send_clock(START_MS + 1_000);
    // As many as come back are sold; the rest is asked to come again, never told that nothing is left.
    let told = bench.take(&terms, 8_000..8_000 + BOUND + 5, "v");
    let (held, again) = told.split_at(BOUND as usize);
    assert!(held.iter().all(is_held), "{held:?}");
    assert!(again.iter().all(|told| *told == Told::Again), "{again:?}");
    assert_eq!(bench.free(&terms), (0, items - BOUND + 1));
    let told = bench.take(&terms, 16_000..16_000 + BOUND + 5, "v");
    assert!(told[..BOUND as usize].iter().all(is_held) && told[BOUND as usize..] == [Told::Again; 5], "{told:?}");
    // Ten are left to come back: the next call sees all of them, and is right.
    let told = bench.take(&terms, 24_000..24_011, "v");
    assert!(told[..10].iter().all(is_held), "{told:?}");
    assert_eq!(told[10], Told::Outcome(Outcome::SoldOut { retry_ms: 1_000 }, None));
    assert_eq!(bench.free(&terms), (0, 3));
}

#[test]
fn a_users_expired_holds_behind_those_that_a_call_takes_back() {
    let users = 2 * BOUND + 10;
    let (mut bench, terms) = opened(10_000, 1);
    let user = |n: u64| id(&format!("user {n}"));
    bench.take_singly(&terms, 0..users, user);
    bench.send_clock(START_MS + 1_000);
    // The last one's hold has expired with all others, but two calls look at others first.
    for round in 1..=3 {
        bench.send_checkouts(&terms, 1, HoldNumber(8_000 * round), &[(user(users - 1), id("i"))]);
    }
    let replies: Vec<Vec<Told>> = bench.replies().into_iter().map(Result::unwrap).collect();
    assert_eq!(replies[..2], [[Told::Again], [Told::Again]]);
    assert!(is_held(&replies[2][0]), "{replies:?}");
}

#[test]
fn more_purchased_holds_than_a_call_drops() {
    // All but the last are redeemed: an answer `sold_out` has to name the last one's expiry.
    let items = 2 * BOUND + 1;
    let (mut bench, terms) = opened(items, 1_000);
    bench.take_singly(&terms, 0..2 * BOUND, |_| id("u"));
    bench.send_clock(START_MS + 10);
    bench.replies();
    bench.take_singly(&terms, 2 * BOUND..items, |_| id("u"));
    bench.send_purchases(&terms, 1, (0..2 * BOUND).map(|chunk| HoldNumber(8 * chunk)).collect());
    bench.send_clock(START_MS + 20);
    bench.replies();
    assert_eq!(bench.take(&terms, 8_000..8_001, "v"), [Told::Again]);
    assert_eq!(bench.free(&terms), (0, BOUND + 1));
    assert_eq!(bench.take(&terms, 8_008..8_009, "v"), [Told::Again]);
    let sold_out = Told::Outcome(Outcome::SoldOut { retry_ms: 990 }, None);
    assert_eq!(bench.take(&terms, 8_016..8_017, "v"), [sold_out]);
    assert_eq!(bench.free(&terms), (0, 1));
}

#[test]
fn the_largest_batch_over_the_largest_take_back() {
    // Every call's longest lists: 512 users who hold something new, the holds of 63 and of 64 chunks that come back. And 512 holds
    // of as many chunks that are redeemed.
    let (mut bench, terms) = opened(10_000, 1);
    let orders = |from: u64, count: u64| -> Vec<(Id, Id)> {
        (from..from + count).map(|n| (id(&format!("user {n}")), id("i"))).collect()
    };
    bench.send_checkouts(&terms, 1, HoldNumber(0), &orders(0, 504));
    bench.send_checkouts(&terms, 1, HoldNumber(8_000), &orders(1_000, 512));
    bench.send_clock(START_MS + 1_000);
    bench.send_checkouts(&terms, 1, HoldNumber(16_000), &orders(2_000, 512));
    bench.send_purchases(&terms, 1, (16_000..16_512).map(HoldNumber).collect());
    let replies = bench.replies();
    assert!(replies[..3].iter().all(|reply| reply.as_ref().unwrap().iter().all(is_held)));
    let bought = |told: &Told| matches!(told, Told::Outcome(Outcome::Purchased { .. }, Some(_)));
    assert!(replies[3].as_ref().unwrap().iter().all(bought));
    assert_eq!(bench.free(&terms), (10_000 - 512, 1));
    bench.take_singly(&terms, 4_000..4_512, |chunk| id(&format!("user {chunk}")));
    bench.send_purchases(&terms, 1, (4_000..4_512).map(|chunk| HoldNumber(8 * chunk)).collect());
    assert!(bench.replies()[0].as_ref().unwrap().iter().all(bought));
}

#[test]
fn a_clock_that_jumps_ahead_is_followed_as_far_as_the_caller_believes() {
    let (mut bench, terms) = opened(3, 9);
    let held_until = |told: &[Told]| match told {
        [Told::Outcome(Outcome::Held { expires_ms, .. }, _)] => *expires_ms,
        other => panic!("{other:?}"),
    };
    assert_eq!(held_until(&bench.take(&terms, 0..1, "u")), START_MS + 1_000);
    // By the clock the sale is over; by the caller it cannot have come further than half a second.
    bench.send_clock(terms.ends_ms + 60_000);
    bench.latest_ms = START_MS + 500;
    assert_eq!(held_until(&bench.take(&terms, 8..9, "u")), START_MS + 1_500);
    bench.send_purchases(&terms, 1, vec![HoldNumber(0)]);
    assert!(matches!(bench.replies().pop().unwrap().unwrap()[..], [Told::Outcome(Outcome::Purchased { .. }, Some(_))]));
    // The clock is right again: nothing has happened to the sale's time.
    bench.send_clock(START_MS + 600);
    bench.latest_ms = START_MS + 3_600;
    assert_eq!(held_until(&bench.take(&terms, 16..17, "u")), START_MS + 1_600);
}

#[test]
fn a_purchase_that_is_asked_for_after_the_end() {
    let (mut bench, terms) = opened(3, 9);
    bench.take(&terms, 0..2, "u");
    bench.send_purchases(&terms, 1, vec![HoldNumber(0)]);
    bench.replies();
    let before = State::read(&mut bench.connection, &terms);
    bench.send_clock(terms.ends_ms);
    bench.send_purchases(&terms, 1, [0, 1, 7].map(HoldNumber).to_vec());
    let told = bench.replies().pop().unwrap().unwrap();
    assert!(matches!(told[0], Told::Outcome(Outcome::AlreadyPurchased { .. }, Some(_))), "{told:?}");
    assert_eq!(told[1..], [Told::Outcome(Outcome::InvalidCode, None); 2]);
    assert_eq!(State::read(&mut bench.connection, &terms).fields, before.fields, "nothing is written");
}

#[test]
fn a_keepers_connection_that_redis_ended_while_it_was_idle() {
    let mut bench = Bench::start();
    bench.store.look().unwrap();
    let ended: u64 = redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .query(&mut bench.connection)
        .unwrap();
    assert_eq!(ended, 1);
    // As long as Redis waits before it ends an idle client.
    std::thread::sleep(std::time::Duration::from_secs(1));
    bench.store.look().unwrap();
}

#[test]
fn the_terms_of_a_sale_ahead_change_while_the_clock_shows_too_much() {
    let (mut bench, terms) = opened(5, 2);
    let replan = |bench: &mut Bench, latest_ms: u64, items: u64| -> String {
        let mut eval = redis::cmd("EVAL");
        eval.arg(with_test_clock(REPLAN)).arg(1).arg(state_key(terms.sale)).arg(1).arg(latest_ms);
        eval.arg(items).arg(9).arg(1_000).query(&mut bench.connection).unwrap()
    };
    // By the clock the sale has begun; by the caller it cannot have.
    bench.send_clock(START_MS + 60_000);
    bench.replies();
    assert_eq!(replan(&mut bench, START_MS - 500, 7), "K");
    let state = State::read(&mut bench.connection, &terms);
    assert_eq!(["items", "free", "limit", "hold"].map(|name| state.number(name)), [7, 7, 9, 1_000]);
    assert_eq!(replan(&mut bench, START_MS, 8), format!("T {START_MS}"));
    bench.send_clock(START_MS - 1);
    bench.replies();
    assert_eq!(replan(&mut bench, u64::MAX, 9), "K", "the clock is right again");
}

#[test]
fn the_time_of_a_sale_that_is_being_rebuilt() {
    let (mut bench, terms) = opened(5, 2);
    bench.send_clock(START_MS + 700);
    bench.take(&terms, 0..1, "u");
    bench.store.close(&terms, 2).unwrap();
    let clock = |bench: &mut Bench| -> Option<u64> {
        redis::cmd("HGET").arg(state_key(terms.sale)).arg("clock").query(&mut bench.connection).unwrap()
    };
    assert_eq!(clock(&mut bench), Some(START_MS + 700));
    // If this attempt fails after it has thrown the state away, the next one still finds the time.
    bench.store.forget(&terms, 2).unwrap();
    assert_eq!(clock(&mut bench), Some(START_MS + 700));
}

#[test]
fn holds_that_an_earlier_version_wrote_are_read_beside_chunks() {
    let (mut bench, terms) = opened(5, 2);
    bench.take(&terms, 16..18, "u");
    bench.send_purchases(&terms, 1, vec![HoldNumber(17)]);
    bench.replies();
    let old = [("h:5", "P5:6:7:3:a:bc:i"), ("h:6", "X5:6:0:1:ai"), ("h:7", "H5:6:0:1:ai"), ("h:8", "none")];
    let _: () = redis::cmd("HSET").arg(state_key(terms.sale)).arg(&old[..]).query(&mut bench.connection).unwrap();
    let mut found = Vec::new();
    let whole =
        bench.store.holds(terms.sale, &mut |number, known| found.push((number, known)), &mut || Ok(())).unwrap();
    assert!(!whole, "one of them is no record");
    found.sort_by_key(|(number, _)| *number);
    let known = |user: &str, item: &str, taken_ms, expires_ms, purchased_ms| HoldFacts {
        user: id(user),
        item: id(item),
        taken_ms,
        expires_ms,
        purchased_ms,
    };
    let (taken_ms, expires_ms) = (START_MS, START_MS + 1_000);
    let want = [
        (5, known("a:b", "c:i", 5, 6, Some(7))),
        (6, known("a", "i", 5, 6, None)),
        (7, known("a", "i", 5, 6, None)),
        (16, known("u", "i", taken_ms, expires_ms, None)),
        (17, known("u", "i", taken_ms, expires_ms, Some(START_MS))),
    ];
    assert_eq!(found, want);
}

/// One that cannot be read makes a script fail: no item comes back that is sold twice, at whatever time the next call comes.
#[test]
fn an_offer_that_fails_gives_no_item_back_under_a_time_that_is_forgotten() {
    let (mut bench, terms) = opened(1, 5);
    assert!(is_held(&bench.take(&terms, 8..9, "a")[0]));
    let state = state_key(terms.sale);
    let _: () = redis::cmd("HSET").arg(&state).arg("c0:3").arg("x").query(&mut bench.connection).unwrap();
    bench.send_clock(START_MS + 2_000);
    bench.replies();
    let mut eval = redis::cmd("EVAL");
    eval.arg(with_test_clock(offer::TEXT)).arg(2).arg(&state).arg(queue_key(terms.sale)).arg(1).arg(u64::MAX);
    for slot in ["a0:2", "a0:3"] {
        eval.arg("H").arg(slot).arg("b").arg("i").arg(START_MS).arg(START_MS + 9_000).arg("0000000000000");
    }
    let failed = eval.query::<String>(&mut bench.connection).unwrap_err().to_string();
    assert!(failed.contains("cannot read a chunk of holds"), "{failed}");
    let _: () = redis::cmd("HDEL").arg(&state).arg("c0:3").query(&mut bench.connection).unwrap();
    bench.send_clock(START_MS + 500);
    bench.send_purchases(&terms, 1, vec![HoldNumber(8)]);
    let bought = bench.replies().pop().unwrap().unwrap();
    let is_bought = matches!(bought[0], Told::Outcome(Outcome::Purchased { .. }, _));
    let is_taken = is_held(&bench.take(&terms, 32..33, "c")[0]);
    assert!(!(is_bought && is_taken), "one item, two holds that can be purchased");
    bench.free(&terms);
}

/// The keeper has the sale rebuilt then.
#[test]
fn a_state_that_the_keepers_script_cannot_read_is_told_apart() {
    let (mut bench, terms) = opened(5, 5);
    let _: () =
        redis::cmd("HSET").arg(state_key(terms.sale)).arg("c0:0").arg("x").query(&mut bench.connection).unwrap();
    let mut records = Records::new(terms.sale, 1);
    let (user, item, number) = (id("u"), id("i"), HoldNumber(0));
    records.push(&Record { kind: RecordKind::Hold, number, user, item, at_ms: START_MS, expires_ms: START_MS + 1 });
    let records: Vec<_> = records.iter().collect();
    let failed = bench.store.offer(terms.sale, 1, u64::MAX, &records);
    assert!(matches!(failed, Err(KeeperError::Unreadable(_))), "{failed:?}");
    let failed = bench.store.offer(terms.sale, 7, u64::MAX, &records);
    assert!(matches!(failed, Err(KeeperError::Redis(_))), "{failed:?}");
}
