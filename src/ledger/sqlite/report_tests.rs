//! The views, as reports use them.

use super::tests::{batch, open};
use super::*;
use crate::domain::RecordKind::{Hold, Purchase};
use crate::ledger::Append;
use rusqlite::types::Value;
use tempfile::TempDir;

const SALE: SaleId = SaleId(1_700_000_000);

/// All rows, the cells of each between bars.
fn query(db: &Connection, sql: &str) -> Vec<String> {
    let mut query = db.prepare(sql).unwrap();
    let columns = query.column_count();
    let rows = query.query_map([], |row| {
        let cells = (0..columns).map(|at| {
            Ok(match row.get::<_, Value>(at)? {
                Value::Integer(n) => n.to_string(),
                Value::Text(text) => text,
                other => format!("{other:?}"),
            })
        });
        Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
    });
    rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
}

#[test]
fn columns_keep_their_names_and_order() {
    let dir = TempDir::new().unwrap();
    let (ledger, _) = open(&dir);
    let columns = |view: &str| query(&ledger.db, &format!("SELECT name FROM pragma_table_info('{view}')")).join(" ");
    let attempts = "code user_id sale_id item_id created_at used expires_at purchased_at";
    assert_eq!(columns("checkout_attempts"), attempts);
    assert_eq!(columns("purchases"), "code user_id sale_id item_id created_at purchased_at");
    let summary = "sale_id items holds purchases expired users first_purchase_at last_purchase_at";
    assert_eq!(columns("sale_summary"), summary);
}

#[test]
fn a_sale_in_one_row() {
    let dir = TempDir::new().unwrap();
    let (mut ledger, mut appender) = open(&dir);
    for (sale, items) in [(SALE.0, 7), (SALE.0 + 3600, 8)] {
        let starts_ms = sale * 1000;
        let ends_ms = starts_ms + 3_600_000;
        let terms = Terms { sale: SaleId(sale), items, user_limit: 2, hold_ms: 300_000, starts_ms, ends_ms };
        ledger.plan(&terms).unwrap();
    }
    let rows = [(Hold, 0, "ann"), (Hold, 1, "bob"), (Hold, 2, "ann"), (Hold, 3, "cid")];
    appender.append(&[&batch(SALE, &rows), &batch(SALE, &[(Purchase, 1, "bob"), (Purchase, 2, "ann")])]).unwrap();
    // All of these expired years ago; one is made to live.
    ledger.db.execute("UPDATE ledger_holds SET expires_at = 9999999999999 WHERE hold = 3", []).unwrap();
    let (first, last) = ("2023-11-14T22:13:20.124Z", "2023-11-14T22:13:20.125Z");
    let want = [format!("1700000000|7|4|2|1|3|{first}|{last}"), "1700003600|8|0|0|0|0|Null|Null".into()];
    assert_eq!(query(&ledger.db, "SELECT * FROM sale_summary ORDER BY sale_id"), want);
    assert_eq!(
        query(
            &ledger.db,
            "SELECT user_id, expires_at, purchased_at FROM checkout_attempts WHERE used ORDER BY user_id"
        ),
        [format!("ann|2023-11-14T22:18:20.125Z|{last}"), format!("bob|2023-11-14T22:18:20.124Z|{first}")]
    );
    assert_eq!(query(&ledger.db, "SELECT count(*) FROM checkout_attempts WHERE purchased_at IS NULL"), ["2"]);
    assert_eq!(query(&ledger.db, "SELECT min(purchased_at) FROM purchases"), [first]);
}

#[test]
fn joins_by_code_use_an_index() {
    let dir = TempDir::new().unwrap();
    let (ledger, mut appender) = open(&dir);
    let rows: Vec<_> = (0..10_000u64).flat_map(|n| [(Hold, n, "ann"), (Purchase, n, "ann")]).collect();
    let rows: Vec<_> = rows.into_iter().filter(|(kind, n, _)| *kind == Hold || n % 10 > 0).collect();
    appender.append(&[&batch(SALE, &rows)]).unwrap();
    for (sql, count) in [
        ("SELECT count(*) FROM checkout_attempts a JOIN purchases p ON p.code = a.code", 9_000),
        ("SELECT count(p.code) FROM checkout_attempts a LEFT JOIN purchases p USING (code)", 9_000),
        ("SELECT count(a.used) FROM purchases p LEFT JOIN checkout_attempts a ON a.code = p.code", 9_000),
        (
            "SELECT count(*) FROM checkout_attempts a WHERE NOT EXISTS (SELECT 1 FROM purchases p WHERE p.code = a.code)",
            1_000,
        ),
        ("SELECT count(*) FROM checkout_attempts a JOIN purchases p USING (code) WHERE a.sale_id = 1700000000", 9_000),
    ] {
        let plan = query(&ledger.db, &format!("EXPLAIN QUERY PLAN {sql}"));
        assert!(plan.iter().any(|step| step.contains("AUTOMATIC") && step.contains("code=?")), "{sql}: {plan:#?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{sql}: {plan:#?}");
        assert_eq!(query(&ledger.db, sql), [count.to_string()], "{sql}");
    }
    // A sale's rows are found by the key, in the view as in the table.
    let plan = query(&ledger.db, "EXPLAIN QUERY PLAN SELECT * FROM checkout_attempts WHERE sale_id = 1700000000");
    assert!(plan.iter().any(|step| step.contains("SEARCH h USING PRIMARY KEY (sale_id=?)")), "{plan:#?}");
    let code = query(&ledger.db, "SELECT code FROM purchases LIMIT 1 OFFSET 5000").remove(0);
    assert_eq!(query(&ledger.db, &format!("SELECT used FROM checkout_attempts WHERE code = '{code}'")), ["1"]);
}
