//! How many rows each transaction adds, by the moment at which they were decided; and the question that these numbers answer.
//!
//! Owns the table `ledger_tallies`, and what a session has counted. The writer puts a tally into the transaction of its rows.
//! So the keeper, once it has counted the rows of a sale up to a moment, adds the tallies of later moments to that count, and does
//! not read the rows again.
//!
//! Invariants:
//! - A tally is committed with its rows or not at all, and each row is in one tally at most. Rows without a tally exist: those of
//!   earlier versions, and those that were written through staging tables. So a count that was continued with tallies is never
//!   above the number of rows; if it is below what is asked for, the rows themselves are counted.
//! - A count is continued only while no row was removed or changed: it is dropped with its session (a server that was restored,
//!   restarted or replaced ends all sessions), and when Postgres' own counters show a removal.
//!
//! Leaves to the keeper which counts Redis has, and what is done about missing rows.

use super::copy::LAST_MS;
use super::failure::Failure;
use super::ledger::{PgTimestamp, number, signed};
use super::session::Wire;
use crate::domain::{RecordKind, SaleId};
use crate::ledger::Decided;
use std::collections::HashMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How long a tally is kept after the last of its moments. A comparison asks for moments that are some seconds old.
const KEPT_MS: u64 = 120_000;
/// How often a session removes the tallies that are older.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

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
fn stored_ms(at_ms: u64) -> i64 {
    at_ms.min(LAST_MS) as i64
}

/// What a session has counted.
#[derive(Default)]
pub(super) struct Counted {
    sales: HashMap<SaleId, Count>,
    /// When this session removed old tallies last.
    pruned: Option<Instant>,
}

/// The ledger has at least so many rows of a sale that were decided up to a moment.
#[derive(Debug)]
struct Count {
    upto_ms: u64,
    holds: u64,
    purchases: u64,
    /// The text of [`SUM`], read before they were counted; `None` if Postgres does not keep these counters.
    removed: Option<String>,
}

impl Count {
    fn covers(&self, decided: &Decided) -> bool {
        self.holds >= decided.holds && self.purchases >= decided.purchases
    }
}

/// The tallies of the sale `$1` after the moment `$2` and up to `$3`, behind a text that changes when rows were removed from
/// either table, or changed. Postgres notes removals a moment after their commit, in counters that it keeps unless
/// `track_counts` is off; TRUNCATE gives a table a new file.
const SUM: &str = "SELECT (SELECT string_agg(concat_ws(' ', pg_relation_filenode(oid), pg_stat_get_tuples_deleted(oid), \
            pg_stat_get_tuples_updated(oid)), ', ' ORDER BY relname) \
        FROM pg_class WHERE oid IN ('ledger_holds'::regclass, 'ledger_purchases'::regclass) \
            AND current_setting('track_counts')::boolean), \
        coalesce(sum(holds), 0)::bigint, coalesce(sum(purchases), 0)::bigint \
    FROM (SELECT unnest(moments) AS at_ms, unnest(holds) AS holds, unnest(purchases) AS purchases \
        FROM ledger_tallies WHERE sale_id = $1 AND last_ms > $2) moments \
    WHERE at_ms > $2 AND at_ms <= $3";

/// All rows of the sale `$1` that were decided up to the moment `$2`.
const COUNT: &str = "SELECT (SELECT count(*) FROM ledger_holds WHERE sale_id = $1 AND created_at <= $2), \
    (SELECT count(*) FROM ledger_purchases WHERE sale_id = $1 AND created_at <= $2)";

/// Whether the ledger has as many rows of `sale` as were `decided`.
pub(super) async fn has_all(wire: &mut Wire, sale: SaleId, decided: &Decided) -> Result<bool, Failure> {
    let (client, id) = (&wire.client, signed(sale.0)?);
    let known = wire.counted.sales.remove(&sale).filter(|known| known.upto_ms <= decided.upto_ms);
    let after = known.as_ref().map_or(i64::MAX, |known| stored_ms(known.upto_ms));
    // Before the rows are counted: a removal that their count does not see yet must change the text later.
    let row = client.query_one(SUM, &[&id, &after, &stored_ms(decided.upto_ms)]).await?;
    let (removed, holds, purchases) = (row.try_get::<_, Option<String>>(0)?, number(&row, 1)?, number(&row, 2)?);
    let upto_ms = decided.upto_ms;
    let continued = known.filter(|known| removed.is_some() && known.removed == removed).map(|known| {
        let (holds, purchases) = (known.holds + holds, known.purchases + purchases);
        Count { upto_ms, holds, purchases, ..known }
    });
    let count = match continued.filter(|count| count.covers(decided)) {
        Some(count) => count,
        None => {
            let row = client.query_one(COUNT, &[&id, &PgTimestamp::of(upto_ms)]).await?;
            Count { upto_ms, holds: number(&row, 0)?, purchases: number(&row, 1)?, removed }
        }
    };
    let has_all = count.covers(decided);
    wire.counted.sales.insert(sale, count);
    prune(wire, upto_ms).await?;
    Ok(has_all)
}

/// Removes old tallies, and forgets counts that no comparison has continued for as long. A role without the right to remove rows
/// leaves them: the table grows by some MB an hour, and the index keeps the sums as quick as before.
async fn prune(wire: &mut Wire, upto_ms: u64) -> Result<(), Failure> {
    if wire.counted.pruned.is_some_and(|at| at.elapsed() < PRUNE_EVERY) {
        return Ok(());
    }
    wire.counted.pruned = Some(Instant::now());
    let before_ms = upto_ms.saturating_sub(KEPT_MS);
    wire.counted.sales.retain(|_, count| count.upto_ms >= before_ms);
    const MAY: &str = "SELECT has_table_privilege('ledger_tallies', 'DELETE')";
    if wire.client.query_one(MAY, &[]).await?.try_get(0)? {
        const PRUNE: &str = "DELETE FROM ledger_tallies WHERE last_ms < $1";
        wire.client.execute(PRUNE, &[&stored_ms(before_ms)]).await?;
    }
    Ok(())
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
