//! Whether the ledger has all rows of a sale, without reading them again each time.
//!
//! Owns the questions to the table `ledger_tallies` and its pruning. Once the keeper has counted the rows of a sale up to a moment, it
//! adds the tallies of later moments to that count, and does not read the rows again.
//!
//! Invariants:
//! - A count that was continued with tallies is never above the number of rows; if it is below what is asked for, the rows
//!   themselves are counted.
//! - A count is continued only while no row was removed or changed: it is dropped with its session, and when Postgres' own counters
//!   show a removal. It is continued only with tallies that came after the counters were read first.
//!
//! Leaves to the keeper which counts Redis has, and what is done about missing rows.

use super::counted::Count;
use super::failure::Failure;
use super::session::Wire;
use super::tally::stored_ms;
use super::values::{PgTimestamp, number, signed};
use crate::domain::SaleId;
use crate::ledger::Decided;
use std::time::{Duration, Instant};

/// How long a tally is kept after the last of its moments. A comparison asks for moments that are some seconds old.
const KEPT_MS: u64 = 120_000;
/// How often a session removes the tallies that are older.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The tallies of the sale `$1` after the moment `$2` and up to `$3`, behind a text that changes when rows were removed from
/// either table, or changed; and the last moment of all tallies of the sale. Postgres notes removals a moment after their commit, in counters that it keeps unless
/// `track_counts` is off; TRUNCATE gives a table a new file.
const SUM: &str = "SELECT (SELECT string_agg(concat_ws(' ', pg_relation_filenode(oid), pg_stat_get_tuples_deleted(oid), \
            pg_stat_get_tuples_updated(oid)), ', ' ORDER BY relname) \
        FROM pg_class WHERE oid IN ('ledger_holds'::regclass, 'ledger_purchases'::regclass) \
            AND current_setting('track_counts')::boolean), \
        coalesce(sum(holds), 0)::bigint, coalesce(sum(purchases), 0)::bigint, \
        (SELECT max(last_ms) FROM ledger_tallies WHERE sale_id = $1) \
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
    let known = known.filter(|known| removed.is_some() && known.removed == removed);
    // A tally that is there already may be of a row that was removed before. One that comes later is of a row that is there, as
    // long as the text does not change.
    let newest = row.try_get::<_, Option<i64>>(3)?.unwrap_or(i64::MIN);
    let trusted_after = known.as_ref().map_or(newest, |known| known.trusted_after);
    let known = known.filter(|known| stored_ms(known.upto_ms) >= trusted_after);
    let continued = known.map(|known| {
        let (holds, purchases) = (known.holds + holds, known.purchases + purchases);
        Count { upto_ms, holds, purchases, ..known }
    });
    let count = match continued.filter(|count| count.covers(decided)) {
        Some(count) => count,
        None => {
            let row = client.query_one(COUNT, &[&id, &PgTimestamp::of(upto_ms)]).await?;
            Count { upto_ms, holds: number(&row, 0)?, purchases: number(&row, 1)?, removed, trusted_after }
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
