//! How many rows each transaction adds, by the moment at which they were decided.
//!
//! Owns the form of a row of the table `ledger_tallies`. The writer puts a tally into the transaction of its rows, so it is committed
//! with its rows or not at all. Invariant: each row is in one tally at most. Rows without a tally exist: those of earlier versions,
//! and those that were written through staging tables. Leaves to `counting` what is read from the table. Pure.

use super::values::LAST_MS;
use crate::domain::RecordKind;
use std::fmt::Write;

/// The rows of one sale that were decided in one millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    sale: i64,
    at_ms: i64,
    holds: u32,
    purchases: u32,
}

/// How many rows one transaction adds.
#[derive(Debug, Default)]
pub(super) struct Tally(Vec<Moment>);

impl Tally {
    /// No rows.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// One more row, with `at_ms` (unix milliseconds) as its `created_at`.
    pub fn add(&mut self, sale: i64, at_ms: u64, kind: RecordKind) {
        let at_ms = stored_ms(at_ms);
        let (holds, purchases) = match kind {
            RecordKind::Hold => (1, 0),
            RecordKind::Purchase => (0, 1),
        };
        match self.0.last_mut() {
            // All holds of a script's call have the same moment.
            Some(last) if (last.sale, last.at_ms) == (sale, at_ms) => {
                last.holds += holds;
                last.purchases += purchases;
            }
            _ => self.0.push(Moment { sale, at_ms, holds, purchases }),
        }
    }

    /// The statement that adds the tally to the table: a row for each sale. Empty if there are no rows.
    pub fn insert(&self) -> String {
        let mut moments = self.0.clone();
        moments.sort_unstable_by_key(|moment| (moment.sale, moment.at_ms));
        moments.dedup_by(|next, kept| {
            let same = (next.sale, next.at_ms) == (kept.sale, kept.at_ms);
            if same {
                kept.holds += next.holds;
                kept.purchases += next.purchases;
            }
            same
        });
        let mut sql = String::new();
        for moments in moments.chunk_by(|a, b| a.sale == b.sale) {
            let Some(last) = moments.last() else { continue };
            let list = |of: fn(&Moment) -> i64| {
                let mut list = String::new();
                for (at, moment) in moments.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    let _ = write!(list, "{comma}{}", of(moment));
                }
                list
            };
            let into = "INSERT INTO ledger_tallies (sale_id, last_ms, moments, holds, purchases) VALUES";
            let lead = if sql.is_empty() { into } else { "," };
            let _ = write!(
                sql,
                "{lead} ({}, {}, '{{{}}}', '{{{}}}', '{{{}}}')",
                last.sale,
                last.at_ms,
                list(|moment| moment.at_ms),
                list(|moment| i64::from(moment.holds)),
                list(|moment| i64::from(moment.purchases)),
            );
        }
        sql
    }
}

/// A moment as the rows have it.
pub(super) fn stored_ms(at_ms: u64) -> i64 {
    at_ms.min(LAST_MS) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_a_row_for_each_sale() {
        use RecordKind::{Hold, Purchase};
        let mut tally = Tally::default();
        assert_eq!(tally.insert(), "");
        for (sale, at_ms, kind) in
            [(7, 30, Hold), (7, 30, Hold), (5, 9, Purchase), (7, 20, Purchase), (7, 30, Purchase), (5, u64::MAX, Hold)]
        {
            tally.add(sale, at_ms, kind);
        }
        let want = format!(
            "INSERT INTO ledger_tallies (sale_id, last_ms, moments, holds, purchases) VALUES \
             (5, {LAST_MS}, '{{9,{LAST_MS}}}', '{{0,1}}', '{{1,0}}'), (7, 30, '{{20,30}}', '{{0,2}}', '{{1,1}}')"
        );
        assert_eq!(tally.insert(), want);
        tally.clear();
        assert_eq!(tally.insert(), "");
    }
}
