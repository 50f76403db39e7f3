use super::*;
use crate::domain::SaleId;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Three items, two to a user; holds last 100 ms; the sale is on from 1,000 to 2,000.
const TERMS: Terms = Terms { sale: SaleId(1), items: 3, user_limit: 2, hold_ms: 100, starts_ms: 1_000, ends_ms: 2_000 };

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

/// A checkout's row: taken at `taken_ms` by `user`, and purchased at `purchased_ms`.
fn row(number: u64, user: &str, taken_ms: u64, purchased_ms: Option<u64>) -> HoldRow {
    let (user, item, expires_ms) = (id(user), id("i"), TERMS.hold_expires_ms(taken_ms));
    HoldRow { number: HoldNumber(number), facts: HoldFacts { user, item, taken_ms, expires_ms, purchased_ms } }
}

/// A decision in short.
fn short(decision: Decision) -> String {
    match decision {
        Decision::NotOn { now_ms } => format!("not on {now_ms}"),
        Decision::Duplicate => "duplicate".to_owned(),
        Decision::Decided { outcome, record } => {
            let what = match outcome {
                Outcome::Held { hold, expires_ms } => format!("held {} to {expires_ms}", hold.number.0),
                Outcome::SoldOut { retry_ms } => format!("sold out {retry_ms}"),
                Outcome::UserLimit { retry_ms } => format!("limit {retry_ms}"),
                Outcome::Purchased { item } => format!("purchased {}", item.as_str()),
                Outcome::AlreadyPurchased { item } => format!("already {}", item.as_str()),
                Outcome::InvalidCode => "invalid".to_owned(),
                Outcome::HoldLost => "lost".to_owned(),
                Outcome::Unavailable => "unavailable".to_owned(),
            };
            match record {
                Some(r) => format!("{what}; {:?} {} {} at {}", r.kind, r.number.0, r.user.as_str(), r.at_ms),
                None => what,
            }
        }
    }
}

/// Runs "<ms> c <number> <user>", "<ms> p <number>", "<ms> s" (stock) and "<ms> u <Hold|Purchase> <number>" (undo)
/// in order, and compares what each came to.
fn check(sale: &mut MemorySale, rows: &[(&str, &str)]) {
    for (line, want) in rows {
        let words: Vec<&str> = line.split(' ').collect();
        let now: u64 = words[0].parse().unwrap();
        let number = |at: usize| HoldNumber(words[at].parse().unwrap());
        let got = match words[1] {
            "c" => short(sale.checkout(now, number(2), id(words[3]), id("i"))),
            "p" => short(sale.purchase(now, number(2))),
            "u" => {
                let kind = if words[2] == "Hold" { RecordKind::Hold } else { RecordKind::Purchase };
                let (user, item) = (id("u"), id("i"));
                sale.undo(&Record { kind, number: number(3), user, item, at_ms: now, expires_ms: 0 });
                String::new()
            }
            _ => {
                let Stock { free, held, purchased } = sale.stock(now);
                format!("{free} {held} {purchased}")
            }
        };
        assert_eq!(got, *want, "{line}");
    }
}

#[test]
fn a_sale_from_start_to_end() {
    check(
        &mut MemorySale::open(TERMS, [], 0),
        &[
            ("999 c 1 ann", "not on 999"),
            ("1000 c 1 ann", "held 1 to 1100; Hold 1 ann at 1000"),
            ("1000 c 1 bob", "duplicate"),
            ("1010 c 2 ann", "held 2 to 1110; Hold 2 ann at 1010"),
            ("1010 c 3 ann", "limit 100"),
            ("1020 c 3 bob", "held 3 to 1120; Hold 3 bob at 1020"),
            // Sold out goes before the limit, and says when the oldest hold expires.
            ("1030 c 4 ann", "sold out 70"),
            ("1030 s", "0 3 0"),
            ("1099 p 1", "purchased i; Purchase 1 ann at 1099"),
            ("1099 p 1", "already i"),
            ("1099 p 9", "lost"),
            // The clock stands when time goes back.
            ("1000 c 4 cy", "sold out 11"),
            ("1110 p 2", "invalid"),
            ("1110 c 5 ann", "held 5 to 1210; Hold 5 ann at 1110"),
            ("1110 p 2", "invalid"),
            ("1110 c 2 cy", "duplicate"),
            ("1950 s", "2 0 1"),
            ("1950 c 6 bob", "held 6 to 2000; Hold 6 bob at 1950"),
            ("1960 c 7 ann", "held 7 to 2000; Hold 7 ann at 1960"),
            ("1960 p 6", "purchased i; Purchase 6 bob at 1960"),
            ("1970 p 7", "purchased i; Purchase 7 ann at 1970"),
            // Nothing is held: no item can be free before the end.
            ("1980 c 8 cy", "sold out 20"),
            ("2000 c 8 cy", "not on 2000"),
            // What was purchased before the end stays so, and nothing else is redeemed.
            ("2000 p 6", "already i"),
            ("2000 p 2", "invalid"),
            ("2000 p 99", "invalid"),
            ("999999 p 6", "already i"),
            // A look from beyond the end has not moved the clock.
            ("1990 p 6", "already i"),
        ],
    );
}

#[test]
fn the_limit_near_the_end_and_a_stock_of_nothing() {
    check(
        &mut MemorySale::open(Terms { user_limit: 1, ..TERMS }, [], 0),
        &[("1950 c 1 ann", "held 1 to 2000; Hold 1 ann at 1950"), ("1960 c 2 ann", "limit 40")],
    );
    check(&mut MemorySale::open(Terms { items: 0, ..TERMS }, [], 0), &[("1500 c 1 ann", "sold out 500")]);
}

#[test]
fn the_limit_of_one_who_has_purchased_it() {
    check(
        &mut MemorySale::open(Terms { items: 9, ..TERMS }, [], 0),
        &[
            ("1000 c 1 ann", "held 1 to 1100; Hold 1 ann at 1000"),
            ("1000 c 2 ann", "held 2 to 1100; Hold 2 ann at 1000"),
            ("1010 p 1", "purchased i; Purchase 1 ann at 1010"),
            // One of the two may still come back.
            ("1010 c 3 ann", "limit 100"),
            ("1020 p 2", "purchased i; Purchase 2 ann at 1020"),
            ("1020 c 3 ann", "limit 980"),
            ("1020 u Purchase 2", ""),
            ("1020 c 3 ann", "limit 100"),
        ],
    );
}

#[test]
fn a_clock_that_goes_back() {
    check(
        &mut MemorySale::open(TERMS, [], 0),
        &[
            ("1500 c 1 ann", "held 1 to 1600; Hold 1 ann at 1500"),
            // It has gone back by 200 ms: the sale's time stands for a moment, then goes on at half speed.
            ("1300 c 2 ann", "held 2 to 1600; Hold 2 ann at 1500"),
            ("1400 c 3 bob", "held 3 to 1650; Hold 3 bob at 1550"),
            ("1499 p 1", "purchased i; Purchase 1 ann at 1599"),
            ("1500 p 2", "invalid"),
            // The clock has caught up.
            ("1660 c 4 bob", "held 4 to 1760; Hold 4 bob at 1660"),
            ("1700 s", "1 1 1"),
            ("1700 c 5 cy", "held 5 to 1800; Hold 5 cy at 1700"),
            // Back again, twice, and before what was noted the first time.
            ("1650 s", "0 2 1"),
            ("1640 s", "0 2 1"),
            ("1660 p 5", "purchased i; Purchase 5 cy at 1710"),
        ],
    );
    // It does not come to the end that way.
    check(
        &mut MemorySale::open(TERMS, [], 0),
        &[
            ("1990 c 1 ann", "held 1 to 2000; Hold 1 ann at 1990"),
            ("1500 s", "2 1 0"),
            ("1900 p 1", "purchased i; Purchase 1 ann at 1999"),
            ("1999 s", "2 0 1"),
            ("2000 p 1", "already i"),
        ],
    );
}

#[test]
fn undoing() {
    check(
        &mut MemorySale::open(TERMS, [], 0),
        &[
            ("1000 c 1 ann", "held 1 to 1100; Hold 1 ann at 1000"),
            ("1000 c 2 ann", "held 2 to 1100; Hold 2 ann at 1000"),
            ("1000 u Hold 2", ""),
            ("1000 p 2", "lost"),
            ("1000 s", "2 1 0"),
            ("1050 c 2 ann", "held 2 to 1150; Hold 2 ann at 1050"),
            ("1060 p 1", "purchased i; Purchase 1 ann at 1060"),
            ("1060 p 2", "purchased i; Purchase 2 ann at 1060"),
            ("1120 s", "1 0 2"),
            // The time of hold 1 has passed meanwhile, that of hold 2 has not.
            ("1120 u Purchase 2", ""),
            ("1120 u Purchase 1", ""),
            ("1120 s", "2 1 0"),
            ("1120 p 1", "invalid"),
            ("1120 p 2", "purchased i; Purchase 2 ann at 1120"),
            // Neither an expired hold nor an unknown one gives anything back.
            ("1120 u Hold 1", ""),
            ("1120 u Purchase 9", ""),
            ("1120 s", "2 0 1"),
        ],
    );
}

#[test]
fn opening_from_rows() {
    let mut alone = row(4, "dan", 1_010, Some(1_010));
    alone.facts.expires_ms = 0;
    let rows = [row(1, "ann", 1_000, None), row(2, "ann", 1_005, None), row(3, "bob", 900, None), alone];
    let mut sale = MemorySale::open(TERMS, rows, 1_020);
    assert_eq!(sale.dropped(), 0);
    check(
        &mut sale,
        &[
            ("1020 s", "0 2 1"),
            ("1020 p 3", "invalid"),
            ("1020 p 4", "already i"),
            ("1020 c 5 cy", "sold out 80"),
            ("1100 c 5 ann", "held 5 to 1200; Hold 5 ann at 1100"),
        ],
    );
}

#[test]
fn opening_with_more_than_the_stock() {
    // The younger holds go, whatever the order of the rows; what is sold stays, even beyond the stock.
    let rows = [row(4, "a", 1_000, None), row(3, "b", 1_000, Some(1_010)), row(2, "c", 1_000, None)];
    let rows = rows.into_iter().chain([row(1, "d", 1_000, None)]);
    let mut sale = MemorySale::open(TERMS, rows, 1_050);
    assert_eq!(sale.dropped(), 1);
    check(&mut sale, &[("1050 s", "0 2 1"), ("1050 p 4", "lost"), ("1050 p 1", "purchased i; Purchase 1 d at 1050")]);
    let mut sale = MemorySale::open(TERMS, (1..=5).map(|n| row(n, "a", 1_000, Some(1_010))), 1_050);
    check(&mut sale, &[("1050 s", "0 0 5"), ("1050 c 6 z", "sold out 950"), ("1050 p 5", "already i")]);
}

#[test]
fn two_rows_of_one_hold() {
    for twice in [[None, Some(1_010)], [Some(1_010), None]] {
        let mut sale = MemorySale::open(TERMS, twice.map(|purchased| row(1, "a", 1_000, purchased)), 1_050);
        check(&mut sale, &[("1050 s", "2 0 1")]);
    }
}

/// What must hold after everything, counted anew from the holds.
fn invariant(sale: &mut MemorySale, now: u64) {
    let stock = sale.stock(now);
    let mut users: HashMap<Id, u64> = HashMap::new();
    let (mut held, mut purchased) = (0, 0);
    for (number, hold) in sale.holds() {
        match hold.state {
            HoldState::Held => held += 1,
            HoldState::Purchased => purchased += 1,
            HoldState::Expired => continue,
        }
        *users.entry(hold.user).or_insert(0) += 1;
        assert_eq!(hold.state == HoldState::Held, sale.queue.contains(&(hold.expires_ms, number)));
    }
    assert_eq!(stock, Stock { free: sale.terms.items - held - purchased, held, purchased });
    assert!(users.values().all(|count| *count <= sale.terms.user_limit));
    assert_eq!(sale.users().collect::<HashMap<_, _>>(), users);
    assert!(sale.shares.iter().map(|share| u64::from(share.purchased)).sum::<u64>() == purchased);
    assert!(sale.shares.iter().map(|share| u64::from(share.held)).sum::<u64>() == held);
}

fn same(a: &MemorySale, b: &MemorySale) {
    assert!(a.holds().eq(b.holds()));
    let users =
        |sale: &MemorySale| -> HashMap<Id, Share> { sale.users().map(|(user, _)| (user, sale.share(&user))).collect() };
    assert_eq!((a.purchased, &a.queue, users(a)), (b.purchased, &b.queue, users(b)));
}

/// Plays (milliseconds on, whether the clock is read late, whether it is a purchase, which hold or user). Returns the
/// records.
fn play(sale: &mut MemorySale, ops: &[(u64, bool, bool, u64)]) -> Vec<Record> {
    let (mut now, mut next, mut records) = (990, 100, Vec::new());
    for (passed, late, purchase, which) in ops {
        now += passed;
        let seen = if *late { now - 50 } else { now };
        let decision = if *purchase {
            sale.purchase(seen, HoldNumber(100 + which % (next - 99)))
        } else {
            next += 1;
            sale.checkout(seen, HoldNumber(next), id(&format!("u{}", which % 5)), id("i"))
        };
        if let Decision::Decided { record: Some(record), .. } = decision {
            records.push(record);
        }
        invariant(sale, seen);
    }
    records
}

fn ops() -> impl Strategy<Value = Vec<(u64, bool, bool, u64)>> {
    let passed = prop_oneof![3 => 0..8u64, 1 => 0..60u64];
    proptest::collection::vec((passed, any::<bool>(), any::<bool>(), any::<u64>()), 0..120)
}

proptest! {
    #[test]
    fn undoing_all_leads_back(before in ops(), after in ops(), items in 0..12u64) {
        let mut sale = MemorySale::open(Terms { items, ..TERMS }, [], 0);
        play(&mut sale, &before);
        let mut start = sale.clone();
        let records = play_on(&mut sale, &after);
        for record in records.iter().rev() {
            sale.undo(record);
            let now = sale.last_ms;
            invariant(&mut sale, now);
        }
        // Only time has passed.
        let now = sale.last_ms;
        sale.stock(now);
        start.stock(now);
        same(&sale, &start);
    }

    #[test]
    fn the_rows_rebuild_the_state(ops in ops(), items in 0..12u64) {
        let terms = Terms { items, ..TERMS };
        let mut sale = MemorySale::open(terms, [], 0);
        let records = play(&mut sale, &ops);
        let mut rows: BTreeMap<HoldNumber, HoldRow> = BTreeMap::new();
        for r in &records {
            match r.kind {
                RecordKind::Hold => {
                    let (taken_ms, expires_ms) = (r.at_ms, r.expires_ms);
                    let (number, user, item) = (r.number, r.user, r.item);
                    let facts = HoldFacts { user, item, taken_ms, expires_ms, purchased_ms: None };
                    rows.insert(number, HoldRow { number, facts });
                }
                RecordKind::Purchase => rows.get_mut(&r.number).unwrap().facts.purchased_ms = Some(r.at_ms),
            }
        }
        let now = sale.last_ms;
        sale.stock(now);
        let rebuilt = MemorySale::open(terms, rows.into_values(), now);
        prop_assert_eq!(rebuilt.dropped(), 0);
        same(&rebuilt, &sale);
    }
}

/// As `play`, with hold numbers that `play` has not used, and purchases of its holds as well.
fn play_on(sale: &mut MemorySale, ops: &[(u64, bool, bool, u64)]) -> Vec<Record> {
    let (mut now, mut records) = (sale.last_ms.max(TERMS.starts_ms), Vec::new());
    for (at, (passed, _, purchase, which)) in ops.iter().enumerate() {
        now += passed;
        let decision = if *purchase {
            let known: Vec<HoldNumber> = sale.holds().map(|(number, _)| number).collect();
            let number = known.get(*which as usize % known.len().max(1)).copied().unwrap_or(HoldNumber(1));
            sale.purchase(now, number)
        } else {
            sale.checkout(now, HoldNumber(1_000 + at as u64), id(&format!("u{}", which % 5)), id("i"))
        };
        if let Decision::Decided { record: Some(record), .. } = decision {
            records.push(record);
        }
    }
    records
}
