//! Rows and how they get in, whatever happens on the way.

use super::server::Database;
use super::{AT_MS, SALE, batch, record};
use flashsale::code::{Codes, MAX_INSTANCE};
use flashsale::domain::RecordKind::{Hold, Purchase};
use flashsale::domain::{HoldFacts, HoldKey, HoldNumber, SaleId, Terms};
use flashsale::ledger::postgres::{PostgresLedger, parse_dsn};
use flashsale::ledger::{Append, Fence, HoldRow, Ledger, LedgerError, SharedRecords};
use std::time::{Duration, Instant};

fn holds(ledger: &mut PostgresLedger) -> Vec<HoldRow> {
    let mut rows = Vec::new();
    ledger.holds(SALE, &mut |row| rows.push(row)).unwrap();
    rows
}

/// How many rows of holds and of purchases there are.
fn counts(database: &Database) -> (i64, i64) {
    (database.count("ledger_holds"), database.count("ledger_purchases"))
}

#[test]
fn several_instances_start_at_once() {
    let database = Database::new();
    let keys: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut ledger = database.ledger();
                    (ledger.code_key().unwrap(), ledger.new_instance().unwrap(), ledger.epoch().unwrap())
                })
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|(key, _, epoch)| *key == keys[0].0 && epoch.number == 1 && epoch.identity.is_empty()));
    assert_ne!(keys[0].0, [0; 16]);
    let mut instances: Vec<u64> = keys.iter().map(|(_, instance, _)| *instance).collect();
    instances.sort_unstable();
    assert_eq!(instances, (1..=8).collect::<Vec<_>>());
    database.client().batch_execute(&format!("SELECT setval('instances', {MAX_INSTANCE})")).unwrap();
    let end = database.ledger().new_instance().unwrap_err().to_string();
    assert!(end.contains("SQLSTATE 2200H") && !end.contains('\n'), "{end}");
    assert_ne!(Database::new().ledger().code_key().unwrap(), keys[0].0);
}

#[test]
fn an_instance_whose_rows_are_there_is_passed_over() {
    let database = Database::new();
    let mut ledger = database.ledger();
    let open =
        Terms { sale: SALE, items: 9, user_limit: 9, hold_ms: 1000, starts_ms: AT_MS, ends_ms: 4_000_000_000_000 };
    ledger.plan(&open).unwrap();
    ledger.plan(&Terms { sale: SaleId(5), starts_ms: 5_000, ends_ms: 6_000, ..open }).unwrap();
    let rows = format!(
        "INSERT INTO ledger_holds SELECT sale, (instance << 43) + 77, 'x', 'u', 'i', now(), now()
        FROM (VALUES ({0}, 2::bigint), ({0}, 3), (5, 4)) v (sale, instance)",
        SALE.0
    );
    database.client().batch_execute(&rows).unwrap();
    // As after a restored backup: the rows were written by reconciliation. Those of sales that are over do no harm.
    assert_eq!([0; 3].map(|_| ledger.new_instance().unwrap()), [1, 4, 5]);
}

#[test]
fn a_role_that_may_only_use_the_tables_is_enough() {
    let database = Database::new();
    database.ledger().code_key().unwrap();
    let grants = "CREATE ROLE shop LOGIN; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO shop;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO shop";
    database.client().batch_execute(grants).unwrap();
    let dsn = database.server.dsn(&database.name).replace("user=postgres", "user=shop");
    let mut ledger = PostgresLedger::new(parse_dsn(&dsn).unwrap());
    ledger.new_instance().unwrap();
    assert_eq!(ledger.add_missing(&batch(1, Hold, 0..3)).unwrap(), 3);
    ledger.raise(1, 2).unwrap();
}

#[test]
fn sales_keep_their_first_terms() {
    let database = Database::new();
    let mut ledger = database.ledger();
    let terms = |sale: u64, items| Terms {
        sale: SaleId(sale),
        items,
        user_limit: 3,
        hold_ms: 1500,
        starts_ms: sale * 1000,
        ends_ms: sale * 1000 + 60_001,
    };
    let first = ledger.plan(&terms(200, 10)).unwrap();
    assert_eq!((first.terms, first.opened), (terms(200, 10), false));
    assert_eq!(ledger.plan(&terms(200, 11)).unwrap(), first);
    ledger.plan(&terms(100, 5)).unwrap();
    ledger.mark_opened(SaleId(200)).unwrap();
    assert!(ledger.mark_opened(SaleId(300)).unwrap_err().to_string().contains("not planned"));
    assert!(ledger.plan(&terms(200, 11)).unwrap().opened);
    let sales = |ledger: &mut PostgresLedger, now| -> Vec<u64> {
        ledger.sales(now).unwrap().iter().map(|row| row.terms.sale.0).collect()
    };
    assert_eq!(sales(&mut ledger, 0), [100, 200]);
    assert_eq!(sales(&mut ledger, 160_000), [100, 200]);
    assert_eq!(sales(&mut ledger, 160_001), [200]);
    assert_eq!(sales(&mut ledger, 260_001), Vec::<u64>::new());
}

#[test]
fn rows_are_written_once_and_read_back() {
    let database = Database::new();
    let (mut append, mut ledger) = (database.append(), database.ledger());
    append.append(&[]).unwrap();
    append.append(&[&batch(1, Hold, [1, 2]), &batch(1, Purchase, [2, 3])]).unwrap();
    // The same again, and with something new in it.
    append.append(&[&batch(1, Hold, [1, 2]), &batch(1, Purchase, [2, 3])]).unwrap();
    append.append(&[&batch(1, Hold, [2, 4]), &batch(1, Purchase, [4, 4])]).unwrap();
    assert_eq!(counts(&database), (3, 3));
    let row = |number: u64, checkout: bool, purchased: bool| HoldRow {
        number: HoldNumber(number),
        facts: HoldFacts {
            user: record(Hold, number).user,
            item: record(Hold, number).item,
            taken_ms: AT_MS + number,
            expires_ms: if checkout { AT_MS + number + 300_000 } else { 0 },
            purchased_ms: purchased.then_some(AT_MS + number),
        },
    };
    let want = [row(1, true, false), row(2, true, true), row(3, false, true), row(4, true, true)];
    assert_eq!(holds(&mut ledger), want);

    let code = Codes::new(&ledger.code_key().unwrap()).mint(HoldKey { sale: SALE, number: HoldNumber(2) });
    let mut client = database.client();
    let query =
        "SELECT code, user_id, sale_id, item_id, created_at::text, used FROM checkout_attempts ORDER BY created_at";
    let rows = client.query(query, &[]).unwrap();
    assert_eq!(rows.iter().map(|row| row.get(5)).collect::<Vec<bool>>(), [false, true, true]);
    assert_eq!((rows[1].get(0), rows[1].get(2)), (code.as_str(), SALE.0 as i64));
    assert_eq!((rows[1].get(1), rows[1].get(3)), ("user 2", record(Hold, 2).item.as_str()));
    let query = "SELECT code FROM purchases WHERE user_id = 'user 2' AND item_id <> '' AND sale_id > 0 AND
        created_at = to_timestamp(1700000001.236)";
    assert_eq!(client.query_one(query, &[]).unwrap().get::<_, &str>(0), code.as_str());
}

#[test]
fn a_repeated_purchase_does_not_roll_back_the_rows_of_others() {
    let database = Database::new();
    let (mut append, mut ledger) = (database.append(), database.ledger());
    append.append(&[&batch(1, Hold, [1]), &batch(1, Purchase, [1])]).unwrap();
    // The answer to a retry states the hold and the purchase again; the second retry repeats what this batch has first.
    let mut retried = batch(1, Purchase, [2]);
    for number in [1, 2] {
        retried.push_repeated(&record(Hold, number));
        retried.push_repeated(&record(Purchase, number));
    }
    append.append(&[&batch(1, Hold, 2..=20), &retried]).unwrap();
    assert_eq!(counts(&database), (20, 2));
    // A COPY that is rolled back leaves its rows' places in the table unused.
    let places = |table: &str| -> Vec<String> {
        let query = format!("SELECT ctid::text AS place FROM {table} ORDER BY {table}.ctid");
        database.client().query(&query, &[]).unwrap().iter().map(|row| row.get(0)).collect()
    };
    let dense = |rows: usize| (1..=rows).map(|at| format!("(0,{at})")).collect::<Vec<_>>();
    assert_eq!(places("ledger_holds"), dense(20), "holds were written and rolled back");
    assert_eq!(places("ledger_purchases"), dense(2), "purchases were written and rolled back");
    // Only repeated records, of which the ledger lacks some.
    let mut lost = batch(1, Hold, []);
    (19..=22).for_each(|number| lost.push_repeated(&record(Hold, number)));
    append.append(&[&lost]).unwrap();
    assert_eq!(counts(&database), (22, 2));
    ledger.raise(1, 2).unwrap();
    assert!(matches!(append.append(&[&lost]), Err(LedgerError::Stale { current: 2 })));
}

#[test]
fn malformed_rows_are_left_out() {
    let database = Database::new();
    database.append().append(&[&batch(1, Hold, [5, 6, 7])]).unwrap();
    let sale = SALE.0;
    let odd = format!(
        "INSERT INTO ledger_holds VALUES ({sale}, -1, '', 'u', 'i', now(), now()), ({sale}, 1, '', '', 'i', now(), now()),
            ({sale}, 2, '', 'u', repeat('x', 65), now(), now()), ({sale}, 3, '', 'u', 'i', 'infinity', now()),
            ({sale}, 4, '', 'u', 'i', now(), '-infinity');
         INSERT INTO ledger_purchases VALUES ({sale}, 5, '', 'u', 'i', 'infinity'), ({sale}, 9, '', E'a\\tb', 'i', now())"
    );
    database.client().batch_execute(&odd).unwrap();
    let numbers: Vec<u64> = holds(&mut database.ledger()).iter().map(|row| row.number.0).collect();
    assert_eq!(numbers, [6, 7]);
}

#[test]
fn many_rows_stream_in_order() {
    let database = Database::new();
    let mut append = database.append();
    append.append(&[&batch(1, Purchase, (0..30_000).filter(|n| n % 3 == 0))]).unwrap();
    append.append(&[&batch(1, Hold, (0..30_000).rev().filter(|n| n % 5 != 0))]).unwrap();
    let mut ledger = database.ledger();
    let numbers: Vec<u64> = holds(&mut ledger).iter().map(|row| row.number.0).collect();
    assert!(numbers.is_sorted());
    assert_eq!(numbers.len(), (0..30_000).filter(|n| n % 3 == 0 || n % 5 != 0).count());
    assert_eq!(counts(&database), (24_000, 10_000));
}

#[test]
fn stale_batches_write_nothing() {
    let database = Database::new();
    let (mut append, mut ledger) = (database.append(), database.ledger());
    append.append(&[&batch(1, Hold, [1])]).unwrap();
    ledger.raise(1, 2).unwrap();
    let check = |result: Result<(), LedgerError>| match result {
        Err(LedgerError::Stale { current: 2 }) => {}
        other => panic!("{other:?}"),
    };
    check(append.append(&[&batch(1, Hold, [2])]));
    check(append.append(&[&batch(2, Hold, [3]), &batch(1, Hold, [4])]));
    check(append.append(&[&batch(1, Hold, [5]), &batch(2, Hold, [6])]));
    check(append.append(&[&batch(3, Hold, [7])]));
    check(ledger.add_missing(&batch(1, Hold, [8])).map(drop));
    check(ledger.raise(1, 2));
    check(ledger.set_identity(1, "x"));
    assert_eq!(database.count("ledger_holds"), 1);
    append.append(&[&batch(2, Hold, [2])]).unwrap();
    assert_eq!(database.count("ledger_holds"), 2);
}

#[test]
fn what_is_missing_is_added_and_what_does_not_fit_is_quarantined_once() {
    let database = Database::new();
    let mut ledger = database.ledger();
    database.append().append(&[&batch(1, Hold, [1, 3])]).unwrap();
    assert_eq!(ledger.add_missing(&batch(1, Hold, 0..5)).unwrap(), 3);
    assert_eq!(ledger.add_missing(&batch(1, Hold, 0..5)).unwrap(), 0);
    assert_eq!(ledger.add_missing(&batch(1, Purchase, [4, 4, 9])).unwrap(), 2);
    for reason in ["first", "again"] {
        ledger.quarantine(&batch(7, Hold, [1, 2]), reason).unwrap();
        ledger.quarantine(&batch(7, Purchase, [2]), reason).unwrap();
    }
    let query = "SELECT kind, hold, user_id, reason, code = (SELECT code FROM ledger_holds h WHERE h.hold = m.hold)
        FROM quarantined_records m ORDER BY kind, hold";
    let rows = database.client().query(query, &[]).unwrap();
    let rows: Vec<(&str, i64, &str, &str, bool)> =
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect();
    assert_eq!(
        rows,
        [
            ("hold", 1, "user 1", "first", true),
            ("hold", 2, "user 2", "first", true),
            ("purchase", 2, "user 2", "first", true)
        ]
    );
}

/// `cargo test --release --test pg -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let database = Database::new();
    let mut append = database.append();
    for rows in [1_000u64, 10_000, 50_000] {
        let rounds = 200_000 / rows;
        let base = rows * 1_000_000;
        let batches: Vec<_> = (0..rounds).map(|i| batch(1, Hold, base + i * rows..base + (i + 1) * rows)).collect();
        let began = Instant::now();
        batches.iter().for_each(|batch| append.append(&[batch]).unwrap());
        let plain = began.elapsed();
        let mut ledger = database.ledger();
        let began = Instant::now();
        batches.iter().for_each(|batch| assert_eq!(ledger.add_missing(batch).unwrap(), 0));
        let again = began.elapsed();
        let speed = |took: Duration| (rounds * rows) as f64 / took.as_secs_f64() / 1000.0;
        println!(
            "{rows:>6} rows a batch: {:.0} k rows/s, all there already: {:.0} k rows/s",
            speed(plain),
            speed(again)
        );
    }
}
