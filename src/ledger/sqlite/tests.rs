use super::*;
use crate::code::Codes;
use crate::domain::{EMBEDDED_EPOCH, HoldKey, Record, RecordKind, Records};
use crate::ledger::Append;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

pub(super) const SALE: SaleId = SaleId(1_700_000_000);
const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];
const T0: u64 = 1_700_000_000_123;

fn terms(sale: u64) -> Terms {
    let starts_ms = sale * 1_000;
    Terms { sale: SaleId(sale), items: 5, user_limit: 2, hold_ms: 300_000, starts_ms, ends_ms: starts_ms + 3_600_000 }
}

/// When the hold `number` was taken, and redeemed.
fn at(number: u64) -> u64 {
    T0 + number % 1_000
}

fn record(kind: RecordKind, number: u64, user: &str) -> Record {
    let at_ms = at(number);
    let expires_ms = if kind == RecordKind::Hold { at_ms + 300_000 } else { 0 };
    let (user, item) = (user.parse().unwrap(), format!("item {number}").parse().unwrap());
    Record { kind, number: HoldNumber(number), user, item, at_ms, expires_ms }
}

pub(super) fn batch(sale: SaleId, rows: &[(RecordKind, u64, &str)]) -> Records {
    let mut records = Records::new(sale, EMBEDDED_EPOCH);
    rows.iter().for_each(|(kind, number, user)| records.push(&record(*kind, *number, user)));
    records
}

pub(super) fn open(dir: &TempDir) -> (SqliteLedger, SqliteAppend) {
    let ledger = SqliteLedger::open(dir.path()).unwrap();
    let appender = ledger.appender(Codes::new(&KEY)).unwrap();
    (ledger, appender)
}

fn holds(ledger: &mut SqliteLedger, sale: SaleId) -> Vec<HoldRow> {
    let mut rows = Vec::new();
    ledger.holds(sale, &mut |row| rows.push(row)).unwrap();
    rows
}

/// How many checkouts and how many purchases there are.
fn counts(ledger: &mut SqliteLedger, sale: SaleId) -> (u64, u64) {
    let rows = holds(ledger, sale);
    let count = |is: fn(&HoldRow) -> bool| rows.iter().filter(|row| is(row)).count() as u64;
    (count(|row| row.facts.has_checkout()), count(|row| row.facts.purchased_ms.is_some()))
}

use RecordKind::{Hold, Purchase};

#[test]
fn what_is_appended_is_read_back_in_order() {
    let dir = TempDir::new().unwrap();
    let (mut ledger, mut appender) = open(&dir);
    let first = batch(SALE, &[(Hold, 9, "ann"), (Hold, 2, "b:'\"\u{1f600}|"), (Purchase, 9, "ann")]);
    let other = batch(SaleId(5), &[(Hold, 2, "other")]);
    // Numbers reach 2^63 - 1, and a purchase may be alone.
    let alone = batch(SALE, &[(Purchase, 4, "dan"), (Hold, i64::MAX as u64, "max")]);
    appender.append(&[&first, &other, &alone]).unwrap();
    // The same again, and mixed with news, changes nothing that is there.
    let again = batch(SALE, &[(Hold, 9, "someone else"), (Purchase, 9, "x"), (Hold, 10, "new")]);
    appender.append(&[&first, &again]).unwrap();

    let row = |number: u64, user: &str, purchased: bool, has_checkout: bool| HoldRow {
        number: HoldNumber(number),
        facts: HoldFacts {
            user: user.parse().unwrap(),
            item: format!("item {number}").parse().unwrap(),
            taken_ms: at(number),
            expires_ms: if has_checkout { at(number) + 300_000 } else { 0 },
            purchased_ms: purchased.then_some(at(number)),
        },
    };
    let big = i64::MAX as u64;
    drop((ledger, appender));
    (ledger, _) = open(&dir);
    let rows = holds(&mut ledger, SALE);
    let want = [
        row(2, "b:'\"\u{1f600}|", false, true),
        row(4, "dan", true, false),
        row(9, "ann", true, true),
        row(10, "new", false, true),
    ];
    assert_eq!(rows.get(..4).unwrap(), want);
    assert_eq!((rows.len(), rows[4].number), (5, HoldNumber(big)));
    assert_eq!(holds(&mut ledger, SaleId(5)).len(), 1);
    assert_eq!(holds(&mut ledger, SaleId(6)), []);
    assert_eq!(counts(&mut ledger, SALE), (4, 2));
    assert_eq!(counts(&mut ledger, SaleId(6)), (0, 0));
}

#[test]
fn the_views_read_as_the_api_speaks() {
    let dir = TempDir::new().unwrap();
    let (ledger, mut appender) = open(&dir);
    appender.append(&[&batch(SALE, &[(Hold, 0, "ann"), (Hold, 1, "bob"), (Purchase, 0, "ann")])]).unwrap();
    let query = |sql: &str| {
        let mut query = ledger.db.prepare(sql).unwrap();
        let columns = query.column_count();
        let rows = query.query_map([], |row| {
            let cells = (0..columns).map(|i| row.get::<_, rusqlite::types::Value>(i));
            let cells = cells.map(|cell| {
                cell.map(|value| match value {
                    rusqlite::types::Value::Integer(n) => n.to_string(),
                    rusqlite::types::Value::Text(text) => text,
                    other => format!("{other:?}"),
                })
            });
            Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
        });
        rows.unwrap().collect::<rusqlite::Result<Vec<_>>>().unwrap()
    };
    let code = |number| Codes::new(&KEY).mint(HoldKey { sale: SALE, number: HoldNumber(number) });
    let (zero, one) = (code(0), code(1));
    assert_eq!(
        query("SELECT code, user_id, sale_id, item_id, created_at, used FROM checkout_attempts ORDER BY created_at"),
        [
            format!("{}|ann|1700000000|item 0|2023-11-14T22:13:20.123Z|1", zero.as_str()),
            format!("{}|bob|1700000000|item 1|2023-11-14T22:13:20.124Z|0", one.as_str()),
        ]
    );
    assert_eq!(
        query("SELECT code, user_id, sale_id, item_id, created_at FROM purchases"),
        [format!("{}|ann|1700000000|item 0|2023-11-14T22:13:20.123Z", zero.as_str())]
    );
    assert_eq!(query("PRAGMA journal_mode"), ["wal"]);
    assert_eq!(query("PRAGMA synchronous"), ["2"]);
    // The rows come in the order of the keys: no sorting of a hundred thousand of them.
    let mut plan = ledger.db.prepare(&format!("EXPLAIN QUERY PLAN {HOLDS}")).unwrap();
    let plan: Vec<String> = plan.query_map([1], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
    assert!(plan.iter().all(|step| !step.contains("TEMP B-TREE") && !step.starts_with("SCAN")), "{plan:?}");
}

#[test]
fn the_key_instances_and_terms_outlive_the_process() {
    let dir = TempDir::new().unwrap();
    let (mut ledger, _) = open(&dir);
    let key = ledger.code_key().unwrap();
    assert_ne!(key, [0; KEY_BYTES]);
    assert_eq!(ledger.new_instance().unwrap(), 1);
    assert_eq!(ledger.plan(&terms(7_200)).unwrap(), SaleRow { terms: terms(7_200), opened: false });
    ledger.plan(&terms(3_600)).unwrap();
    ledger.mark_opened(SaleId(7_200)).unwrap();
    assert!(ledger.mark_opened(SaleId(1)).is_err());
    drop(ledger);
    let (mut ledger, _) = open(&dir);
    assert_eq!(ledger.code_key().unwrap(), key);
    assert_eq!(ledger.new_instance().unwrap(), 2);
    // The first call fixed the terms.
    let other = Terms { items: 99, ..terms(7_200) };
    assert_eq!(ledger.plan(&other).unwrap(), SaleRow { terms: terms(7_200), opened: true });
    let too_many = Terms { items: u64::MAX, ..terms(10_800) };
    assert!(ledger.plan(&too_many).is_err());
    let starts = |ledger: &mut SqliteLedger, now| -> Vec<u64> {
        ledger.sales(now).unwrap().iter().map(|row| row.terms.sale.0).collect()
    };
    assert_eq!(starts(&mut ledger, 0), [3_600, 7_200]);
    assert_eq!(starts(&mut ledger, 7_200_000), [7_200]);
    assert_eq!(starts(&mut ledger, 10_800_000), [0; 0]);
}

#[test]
fn another_epoch_writes_nothing() {
    let dir = TempDir::new().unwrap();
    let (mut ledger, mut appender) = open(&dir);
    let good = batch(SALE, &[(Hold, 1, "ann")]);
    for epoch in [0, 2] {
        let stale = Records::new(SALE, epoch);
        let result = appender.append(&[&good, &stale]);
        assert!(matches!(result, Err(LedgerError::Stale { current: EMBEDDED_EPOCH })));
    }
    assert_eq!(counts(&mut ledger, SALE), (0, 0));
}

#[test]
fn a_full_file_takes_nothing_of_a_batch_and_goes_on_when_there_is_room() {
    let dir = TempDir::new().unwrap();
    let (mut ledger, mut appender) = open(&dir);
    let pages = |appender: &SqliteAppend, pragma: &str| -> i64 {
        appender.connection().unwrap().query_row(pragma, [], |row| row.get(0)).unwrap()
    };
    let limit = pages(&appender, "PRAGMA page_count") + 20;
    pages(&appender, &format!("PRAGMA max_page_count = {limit}"));
    let user = "u".repeat(64);
    let next = |from: u64| {
        let rows: Vec<_> = (from..from + 100).flat_map(|n| [(Hold, n, &user[..]), (Purchase, n, &user[..])]).collect();
        batch(SALE, &rows)
    };
    let mut kept = 0;
    let why = loop {
        match appender.append(&[&next(kept)]) {
            Ok(()) => kept += 100,
            Err(e) => break e,
        }
        assert!(kept < 10_000, "the limit does not work");
    };
    assert!(matches!(why, LedgerError::Failed(_)) && why.to_string().contains("full"), "{why}");
    assert!(appender.append(&[&next(kept)]).is_err());
    assert!(kept > 0);
    assert_eq!(counts(&mut ledger, SALE), (kept, kept));
    pages(&appender, "PRAGMA max_page_count = 100000");
    appender.append(&[&next(kept)]).unwrap();
    assert_eq!(counts(&mut ledger, SALE), (kept + 100, kept + 100));
}

#[test]
fn a_probe_reaches_the_disk_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let (mut ledger, mut appender) = open(&dir);
    assert_eq!(ledger.new_instance().unwrap(), 1);
    let log = || std::fs::metadata(dir.path().join("ledger.db-wal")).unwrap().len();
    for _ in 0..3 {
        let before = log();
        appender.probe().unwrap();
        assert!(log() > before, "nothing was written");
    }
    assert_eq!(ledger.new_instance().unwrap(), 2);
}

#[test]
fn after_an_error_the_connection_is_made_anew() {
    let dir = TempDir::new().unwrap();
    let (mut ledger, mut appender) = open(&dir);
    let records = batch(SALE, &[(Hold, 1, "ann"), (Purchase, 1, "ann")]);
    // A purchase cannot be written, a hold can: neither may stay.
    let refuse = "CREATE TRIGGER no BEFORE INSERT ON ledger_purchases BEGIN SELECT RAISE(ABORT, 'broken'); END";
    ledger.db.execute_batch(refuse).unwrap();
    for _ in 0..2 {
        let why = appender.append(&[&records]).unwrap_err().to_string();
        assert!(why.contains("broken"), "{why}");
        assert!(appender.connection().is_none());
        assert_eq!(counts(&mut ledger, SALE), (0, 0));
    }
    ledger.db.execute_batch("DROP TRIGGER no").unwrap();
    appender.append(&[&records]).unwrap();
    assert_eq!(counts(&mut ledger, SALE), (1, 1));
}

#[test]
fn the_write_ahead_log_stays_small() {
    let dir = TempDir::new().unwrap();
    let (_ledger, mut appender) = open(&dir);
    let user = "u".repeat(64);
    // In batches as the writer makes them at most, and faster than any sale.
    for turn in 0..50 {
        let rows: Vec<_> = (turn * 10_000..(turn + 1) * 10_000).map(|number| (Hold, number, &user[..])).collect();
        appender.append(&[&batch(SALE, &rows)]).unwrap();
    }
    let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
    let bound = u64::from(BACKSTOP_PAGES) * 4_200 + (4 << 20);
    assert!(size("ledger.db-wal") < bound, "{}", size("ledger.db-wal"));
    assert!(size("ledger.db") > bound / 3 * 2, "too little was written for this test to mean anything");
}

#[test]
fn one_process_a_folder() {
    let dir = TempDir::new().unwrap();
    let below = dir.path().join("made/on the way");
    let ledger = SqliteLedger::open(&below).unwrap();
    assert_eq!(std::fs::metadata(&below).unwrap().permissions().mode() & 0o777, 0o700);
    let in_use = |path: &Path| {
        let why = SqliteLedger::open(path).unwrap_err();
        let text = why.to_string();
        assert!(matches!(why, OpenError::InUse { .. }), "{text}");
        assert!(text.contains("DATA_DIR") && text.contains("another flashsale uses it"), "{text}");
        assert!(text.contains("made/on the way"), "{text}");
    };
    in_use(&below);
    let appender = ledger.appender(Codes::new(&KEY)).unwrap();
    drop(ledger);
    // The writer may finish after the keeper.
    in_use(&below);
    drop(appender);
    SqliteLedger::open(&below).unwrap();
}

#[test]
fn the_first_versions_file_is_migrated_with_its_rows() {
    let dir = TempDir::new().unwrap();
    let old = Connection::open(dir.path().join("ledger.db")).unwrap();
    old.execute_batch(include_str!("../../../sql/sqlite/0001_initial.sql")).unwrap();
    let rows = "INSERT INTO code_key VALUES (1, zeroblob(16)); UPDATE instances SET last = 4;
        INSERT INTO sales VALUES (1700000000, 5, 2, 300000, 1700000000000, 1700003600000, 1);
        INSERT INTO ledger_holds VALUES (1700000000, 1, zeroblob(16), 'ann', 'lamp', 1700000000123, 1700000300123);
        INSERT INTO ledger_purchases VALUES (1700000000, 1, zeroblob(16), 'ann', 'lamp', 1700000000124)";
    old.execute_batch(rows).unwrap();
    drop(old);
    let version = |ledger: &SqliteLedger| -> i64 {
        ledger.db.query_row("SELECT schema_version FROM meta", [], |row| row.get(0)).unwrap()
    };
    let (mut ledger, mut appender) = open(&dir);
    assert!(version(&ledger) >= 2);
    assert_eq!(ledger.code_key().unwrap(), [0; KEY_BYTES]);
    assert_eq!(ledger.new_instance().unwrap(), 5);
    assert_eq!(ledger.sales(0).unwrap().len(), 1);
    appender.append(&[&batch(SALE, &[(Hold, 2, "bob")])]).unwrap();
    assert_eq!(counts(&mut ledger, SALE), (2, 1));
    let id = ledger.identity().unwrap();
    drop((ledger, appender));
    let (mut ledger, _) = open(&dir);
    assert_eq!(ledger.identity().unwrap(), id);
    assert_ne!(open(&TempDir::new().unwrap()).0.identity().unwrap(), id);
    // A later version that has only added something is none of ours to refuse.
    ledger.db.execute_batch("UPDATE meta SET schema_version = 1000").unwrap();
    drop(ledger);
    assert_eq!(version(&open(&dir).0), 1000);
}

#[test]
fn what_is_not_a_ledger_is_refused() {
    let refused = |prepare: &dyn Fn(&Path), want: &str| {
        let dir = TempDir::new().unwrap();
        prepare(dir.path());
        let why = SqliteLedger::open(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(why.starts_with("DATA_DIR") && why.contains(want), "{why}");
        assert!(why.contains(dir.path().to_str().unwrap()), "{why}");
    };
    let sql = |path: &Path, text: &str| Connection::open(path.join("ledger.db")).unwrap().execute_batch(text).unwrap();
    refused(&|path| sql(path, "CREATE TABLE x (y)"), "is not a flashsale ledger");
    refused(&|path| std::fs::write(path.join("ledger.db"), [1; 5_000]).unwrap(), "not a database");
    refused(&|path| std::fs::create_dir(path.join("ledger.db")).unwrap(), "cannot be opened");
    refused(&|path| std::fs::create_dir(path.join("lock")).unwrap(), "cannot be used");
    refused(&|path| sql(path, "CREATE TABLE meta (y)"), "is not a flashsale ledger");
    let newer = |path: &Path| {
        drop(SqliteLedger::open(path).unwrap());
        sql(path, "UPDATE meta SET schema_version = 1000, compatible_from = 999");
    };
    refused(&newer, "has schema version 1000, which needs a flashsale that knows version 999; this one knows ");
    // The folder is a file, or below one.
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    for path in [dir.path().join("file"), dir.path().join("file/below")] {
        let why = SqliteLedger::open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(why.contains("cannot be used") && why.contains(path.to_str().unwrap()), "{why}");
    }
}
