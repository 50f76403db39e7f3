//! How much memory a sale in memory takes, in a process of its own.
#![allow(clippy::unwrap_used)]

use flashsale::domain::{HoldFacts, HoldNumber, HoldRow, Id, Outcome, SaleId, Terms};
use flashsale::inventory::memory::{Decision, MemorySale};

const NOW: u64 = 1_800_000_000_000;
const HOLDS: u64 = 1_000_000;
const TERMS: Terms = Terms {
    sale: SaleId(1_800_000_000),
    items: 2 * HOLDS,
    user_limit: 10,
    hold_ms: 300_000,
    starts_ms: NOW,
    ends_ms: NOW + 3_600_000,
};

/// The memory of this process that is in use, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

/// The user of a hold, one of so many, and the item.
fn words(number: u64, users: u64) -> (Id, Id) {
    (id(&format!("user-{:07}", number * 7_919 % users)), id(&format!("item-{}", number % 10_000)))
}

#[test]
fn a_hold_takes_150_bytes_whatever_its_user_has() {
    // None is dropped before the end: its memory would be used again.
    let mut sales = Vec::new();
    for users in [HOLDS, HOLDS / 10] {
        let before = resident();
        let mut sale = MemorySale::open(TERMS, [], NOW);
        // Numbers begin at a random place in each life of an instance.
        let first = (5 << 43) + 0x123_4567_89ab;
        for number in 0..HOLDS {
            let (user, item) = words(number, users);
            let decision = sale.checkout(NOW + number / 60, HoldNumber(first + number), user, item);
            assert!(matches!(decision, Decision::Decided { outcome: Outcome::Held { .. }, record: Some(_) }));
        }
        let each = (resident() - before) / HOLDS;
        println!("{each} bytes a hold, with {users} users");
        assert!(each <= 150, "{each} bytes a hold, with {users} users");
        assert_eq!(sale.users().count() as u64, users);
        sales.push(sale);
    }
    // The same from a ledger's rows, as at a start.
    let row = |number: u64| {
        let (user, item) = words(number, HOLDS);
        let (taken_ms, expires_ms) = (NOW + number / 60, NOW + number / 60 + TERMS.hold_ms);
        let purchased_ms = number.is_multiple_of(2).then_some(taken_ms + 1);
        HoldRow { number: HoldNumber(number), facts: HoldFacts { user, item, taken_ms, expires_ms, purchased_ms } }
    };
    let before = resident();
    let rows: Vec<HoldRow> = (0..HOLDS).map(row).collect();
    let sale = MemorySale::open(TERMS, rows, NOW + 20_000);
    let each = resident().saturating_sub(before) / HOLDS;
    println!("{each} bytes a hold, after a start");
    // The rows themselves, some of which the allocator keeps, were more than this.
    assert!(each <= 250, "{each} bytes a hold, after a start");
    assert_eq!((sale.dropped(), sale.progress().taken, sale.progress().purchased), (0, HOLDS, HOLDS / 2));
}
