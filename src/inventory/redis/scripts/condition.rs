//! The condition of a sale's state.
//!
//! Owns the rule by which a state is good, missing, of another epoch, closed, damaged or of another ledger. Invariant: a
//! state is good only if all of the sale's own fields are. Holds and shares are not looked at: a script reports those that
//! it cannot read. Leaves to the keeper what follows from the condition.

use super::layout::{MAX_EPOCH, SELLING, field, queue_key, state_key};
use crate::domain::SaleId;
use redis::{Cmd, cmd};
use std::fmt;

/// What a sale's state is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It sells under the epoch that was asked for.
    Good,
    /// There is none.
    Missing,
    /// It is of this epoch.
    Epoch(u64),
    /// It does not sell.
    Closed,
    /// It is not a state that a script can go on from: its queue is not the one that it knows, its numbers do not add up, or a
    /// key is of another type.
    Damaged,
    /// It was built for another ledger.
    Foreign,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Good => f.write_str("sells"),
            Condition::Missing => f.write_str("is missing"),
            Condition::Epoch(epoch) => write!(f, "is of epoch {epoch}"),
            Condition::Closed => f.write_str("is closed"),
            Condition::Damaged => f.write_str("is damaged"),
            Condition::Foreign => f.write_str("is another ledger's"),
        }
    }
}

/// The fields that are read of a state. All but the first three have to be numbers.
const FIELDS: [&str; 14] = [
    field::EPOCH,
    field::STATUS,
    field::LEDGER,
    field::QUEUE,
    field::ITEMS,
    field::FREE,
    field::HELD,
    field::PURCHASED,
    field::TAKEN,
    field::CLOCK,
    field::LIMIT,
    field::HOLD,
    field::START,
    field::END,
];

/// The two commands whose replies [`read`] takes. They have to see the same moment: in one transaction.
pub fn ask(sale: SaleId) -> [Cmd; 2] {
    let (mut get, mut length) = (cmd("HMGET"), cmd("LLEN"));
    get.arg(state_key(sale)).arg(&FIELDS[..]);
    length.arg(queue_key(sale));
    [get, length]
}

/// What a state with these `fields` and a queue of `length` entries is like for a caller that sells under `epoch` and belongs
/// to `ledger`, where that is known.
pub fn read(fields: &[Option<Vec<u8>>], length: u64, epoch: u64, ledger: Option<&str>) -> Condition {
    let texts: Vec<Option<&str>> = fields.iter().map(|field| std::str::from_utf8(field.as_deref()?).ok()).collect();
    let [Some(theirs), status, owner, numbers @ ..] = texts.as_slice() else {
        let exists = fields.first().is_some_and(Option::is_some);
        return if exists { Condition::Damaged } else { Condition::Missing };
    };
    if ledger.zip(*owner).is_some_and(|(ours, theirs)| ours != theirs) {
        return Condition::Foreign;
    }
    // Counting on from an epoch that no instance has written would raise the ledger's epoch beyond its bound.
    let Some(theirs) = theirs.parse::<u64>().ok().filter(|number| *number <= MAX_EPOCH) else {
        return Condition::Damaged;
    };
    let numbers: Option<Vec<u64>> = numbers.iter().map(|text| text.and_then(|text| text.parse().ok())).collect();
    match (*status, numbers.as_deref()) {
        _ if theirs != epoch => Condition::Epoch(theirs),
        (Some(SELLING), Some([queue, items, free, held, purchased, ..]))
            if *queue == length && is_balanced(*items, *free, *held, *purchased) =>
        {
            Condition::Good
        }
        (Some(SELLING), _) => Condition::Damaged,
        _ => Condition::Closed,
    }
}

/// Whether free, held and purchased items add up to the stock. If the ledger has more purchases than the stock has items, a
/// rebuilt state has them all, with nothing free.
fn is_balanced(items: u64, free: u64, held: u64, purchased: u64) -> bool {
    let taken = held.saturating_add(purchased);
    free.saturating_add(taken) == items.max(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let good = ["3", "selling", "a", "1", "5", "3", "1", "1", "2", "9", "1", "1", "1", "2"];
        let check = |changes: &[(&str, Option<&str>)], want: Condition| {
            let mut fields: Vec<Option<Vec<u8>>> = good.iter().map(|text| Some(text.as_bytes().to_vec())).collect();
            for (name, value) in changes {
                let at = FIELDS.iter().position(|field| field == name).unwrap();
                fields[at] = value.map(|value| value.as_bytes().to_vec());
            }
            assert_eq!(read(&fields, 1, 3, Some("a")), want, "{changes:?}");
        };
        check(&[], Condition::Good);
        check(&[("ledger", None)], Condition::Good);
        check(&[("epoch", None)], Condition::Missing);
        check(&[("epoch", Some("x"))], Condition::Damaged);
        check(&[("epoch", Some("2147483648"))], Condition::Damaged);
        check(&[("epoch", Some("4"))], Condition::Epoch(4));
        check(&[("epoch", Some("4")), ("ledger", Some("b"))], Condition::Foreign);
        check(&[("status", Some("closed"))], Condition::Closed);
        check(&[("status", None)], Condition::Closed);
        // As an earlier version wrote it, in another layout.
        check(&[("status", Some("open"))], Condition::Closed);
        for field in &FIELDS[3..] {
            check(&[(field, None)], Condition::Damaged);
            check(&[(field, Some("-1"))], Condition::Damaged);
        }
        check(&[("free", Some("2"))], Condition::Damaged);
        check(&[("queue", Some("2"))], Condition::Damaged);
        check(&[("purchased", Some("6")), ("free", Some("0"))], Condition::Good);
        assert_eq!(read(&vec![None; FIELDS.len()], 0, 3, Some("a")), Condition::Missing);
    }
}
