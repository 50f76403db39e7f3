//! Random sequences: few users, few items, few moments, so that everything collides.

use flashsale::domain::{SaleId, Terms};
use proptest::prelude::*;
use proptest::sample::select;
use std::fmt;

/// When every sale starts: far ahead, since Redis' own clock removes keys long after a sale's end.
pub const START_MS: u64 = 4_000_000_000_000;
/// How long every sale lasts.
pub const LENGTH_MS: u64 = 2_000;
/// Users and items with the signs that records and queues are written with.
pub const USERS: [&str; 3] = ["a:b", "1:2", "é|"];
pub const ITEMS: [&str; 2] = ["lamp", "3:x"];

/// A step of a sequence.
#[derive(Clone, Debug)]
pub enum Op {
    /// One call for these (user, item). With a number, it asks under numbers that were given out before: from the chunk on that is
    /// so many back.
    Checkouts(Vec<(usize, usize)>, Option<usize>),
    /// One call for these holds: those granted so many back; from [`UNKNOWN`] on, one that was never given out.
    Purchases(Vec<usize>),
    /// The clock steps, in milliseconds; it may go back.
    Clock(i64),
    /// The clock steps to the sale's end, plus this.
    End(i64),
    /// Calls of another epoch, which must change nothing.
    Stale,
    /// The server and Redis are started anew, Redis with nothing: the sale is rebuilt from the ledger's rows.
    Restart,
    /// The sale is rebuilt under a newer epoch from what Redis and the ledger have, and the ledger lacks what these
    /// bits say.
    Rebuild(u64),
}

/// From here on, a purchase's number is none that was ever given out.
pub const UNKNOWN: usize = 10;

/// A sale and what happens to it.
#[derive(Clone, Debug)]
pub struct Case {
    pub items: u64,
    pub user_limit: u64,
    pub hold_ms: u64,
    /// The first moment, from the sale's start.
    pub begin: i64,
    pub ops: Vec<Op>,
}

impl Case {
    pub fn terms(&self, sale: SaleId) -> Terms {
        let Case { items, user_limit, hold_ms, .. } = *self;
        Terms { sale, items, user_limit, hold_ms, starts_ms: START_MS, ends_ms: START_MS + LENGTH_MS }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Case { items, user_limit, hold_ms, begin, ops } = self;
        writeln!(f, "  {items} items, {user_limit} to a user, holds of {hold_ms} ms, the clock at {begin}")?;
        ops.iter().enumerate().try_for_each(|(at, op)| writeln!(f, "  {at}: {op:?}"))
    }
}

/// Steps of which many end exactly where a hold does.
fn clock() -> impl Strategy<Value = Op> {
    let steps = select(vec![10i64, 10, 10, 20, 20, 30, 40, 40, 50, 100, 150, 300, -10, -10, -40, -200]);
    prop_oneof![20 => steps.prop_map(Op::Clock), 1 => select(vec![-20i64, -10, -1, 0, 0, 30]).prop_map(Op::End)]
}

fn op() -> impl Strategy<Value = Op> {
    let order = (0..USERS.len(), 0..ITEMS.len());
    let reused = proptest::option::weighted(0.1, 0..6usize);
    // Up to three chunks of numbers.
    let orders = prop_oneof![
        8 => proptest::collection::vec(order.clone(), 1..5),
        1 => proptest::collection::vec(order, 5..20),
    ];
    let checkouts = (orders, reused).prop_map(|(orders, at)| Op::Checkouts(orders, at));
    let purchases = proptest::collection::vec(0..UNKNOWN + 1, 1..5).prop_map(Op::Purchases);
    prop_oneof![
        10 => checkouts,
        8 => purchases,
        9 => clock(),
        1 => Just(Op::Stale),
        1 => Just(Op::Restart),
        1 => any::<u64>().prop_map(Op::Rebuild),
    ]
}

/// All cases.
pub fn cases() -> impl Strategy<Value = Case> {
    let terms = (0..10u64, 1..6u64, select(vec![40u64, 40, 150, 10_000]), select(vec![-10i64, 0, 0, 10, 500, 1_960]));
    (terms, proptest::collection::vec(op(), 1..50)).prop_map(|((items, user_limit, hold_ms, begin), ops)| Case {
        items,
        user_limit,
        hold_ms,
        begin,
        ops,
    })
}
