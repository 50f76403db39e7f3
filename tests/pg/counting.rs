//! Whether the ledger has all rows of a sale: the answer is that of a count of all rows, and rows that were counted once are not
//! read again.

use super::server::Database;
use super::{AT_MS, SALE, batch, record};
use flashsale::domain::RecordKind::{self, Hold, Purchase};
use flashsale::domain::{Records, SaleId};
use flashsale::ledger::postgres::{PostgresLedger, parse_dsn};
use flashsale::ledger::{Append, Decided, SharedRecords};
use postgres::Client;

fn decided(upto_ms: u64, (holds, purchases): (u64, u64)) -> Decided {
    Decided { upto_ms, holds, purchases }
}

/// The rows, counted one by one.
fn count(client: &mut Client, sale: SaleId, upto_ms: u64) -> (u64, u64) {
    let count = |client: &mut Client, table: &str| -> u64 {
        let query = format!(
            "SELECT count(*) FROM {table} WHERE sale_id = $1 AND created_at <= to_timestamp($2::bigint / 1000.0)"
        );
        let row = client.query_one(&query, &[&(sale.0 as i64), &(upto_ms as i64)]).unwrap();
        row.get::<_, i64>(0) as u64
    };
    (count(client, "ledger_holds"), count(client, "ledger_purchases"))
}

/// Removes rows, as an operator would. Postgres says so in its counters at once, which it otherwise does within ten seconds.
fn remove(client: &mut Client, statement: &str) {
    client.batch_execute(statement).unwrap();
    client.batch_execute("SELECT pg_stat_force_next_flush()").unwrap();
}

#[test]
fn rows_that_were_counted_are_not_read_again() {
    let database = Database::new();
    let (mut append, mut ledger) = (database.append(), database.ledger());
    append.append(&[&batch(1, Hold, 0..3_000), &batch(1, Purchase, 1_000..2_000)]).unwrap();
    assert!(ledger.has_all(SALE, &decided(AT_MS + 2_999, (3_000, 1_000))).unwrap());
    let mut other = database.client();
    for from in [3_000, 3_100, 3_200] {
        append.append(&[&batch(1, Hold, from..from + 100), &batch(1, Purchase, from..from + 50)]).unwrap();
        let (holds, purchases) = (from + 100, 1_000 + (from - 2_900) / 2);
        // A reader would wait for this lock, longer than the session's `statement_timeout`.
        other.batch_execute("BEGIN; LOCK TABLE ledger_holds, ledger_purchases IN ACCESS EXCLUSIVE MODE").unwrap();
        assert!(ledger.has_all(SALE, &decided(AT_MS + from + 99, (holds, purchases))).unwrap());
        other.batch_execute("ROLLBACK").unwrap();
        for lacking in [(holds + 1, purchases), (holds, purchases + 1)] {
            assert!(!ledger.has_all(SALE, &decided(AT_MS + from + 99, lacking)).unwrap(), "{lacking:?}");
        }
    }
}

#[test]
fn rows_of_every_origin_count_and_removed_ones_do_not() {
    let database = Database::new();
    let (mut append, mut ledger, mut client) = (database.append(), database.ledger(), database.client());
    let check = |ledger: &mut PostgresLedger, upto: u64, want: (u64, u64)| {
        assert!(ledger.has_all(SALE, &decided(AT_MS + upto, want)).unwrap(), "{want:?}");
        for more in [(want.0 + 1, want.1), (want.0, want.1 + 1)] {
            assert!(!ledger.has_all(SALE, &decided(AT_MS + upto, more)).unwrap(), "{more:?}");
        }
    };
    check(&mut ledger, 0, (0, 0));
    append.append(&[&batch(1, Hold, 0..10), &batch(1, Purchase, 5..8)]).unwrap();
    check(&mut ledger, 4, (5, 0));
    check(&mut ledger, 9, (10, 3));
    // An earlier moment than that of the last call.
    check(&mut ledger, 6, (7, 2));
    // Another instance's rows, and another sale's.
    database.append().append(&[&batch(1, Hold, 10..12)]).unwrap();
    let mut other = Records::new(SaleId(7), 1);
    other.push(&record(Hold, 11));
    append.append(&[&other]).unwrap();
    check(&mut ledger, 11, (12, 3));
    // Late ones, which reconciliation adds, and repeated ones.
    assert_eq!(ledger.add_missing(&batch(1, Purchase, 0..2)).unwrap(), 2);
    check(&mut ledger, 12, (12, 5));
    let mut repeated = Records::new(SALE, 1);
    (10..15).for_each(|number| repeated.push_repeated(&record(Hold, number)));
    append.append(&[&repeated]).unwrap();
    check(&mut ledger, 15, (15, 5));
    // A batch that is there in part: it goes through the staging tables.
    append.append(&[&batch(1, Hold, 14..17)]).unwrap();
    check(&mut ledger, 17, (17, 5));
    // An instance of an earlier version keeps no tallies.
    let insert = format!(
        "INSERT INTO ledger_holds VALUES ({}, 17, '', 'u', 'i', to_timestamp({} / 1000.0), now())",
        SALE.0,
        AT_MS + 17
    );
    client.batch_execute(&insert).unwrap();
    check(&mut ledger, 18, (18, 5));
    // Old rows and new ones go, one table's or both.
    for (statement, left) in [
        ("DELETE FROM ledger_holds WHERE hold = 2", (17, 5)),
        ("DELETE FROM ledger_purchases WHERE hold = 7", (17, 4)),
        ("UPDATE ledger_holds SET sale_id = 8 WHERE hold = 16", (16, 4)),
        ("TRUNCATE ledger_purchases", (16, 0)),
        ("TRUNCATE ledger_holds, ledger_purchases", (0, 0)),
    ] {
        remove(&mut client, statement);
        check(&mut ledger, 18, left);
    }
    // Without Postgres' counters no removal is noticed, so all rows are counted each time.
    client.batch_execute(&format!("ALTER DATABASE {} SET track_counts = off", database.name)).unwrap();
    let mut ledger = database.ledger();
    append.append(&[&batch(1, Hold, 20..25)]).unwrap();
    check(&mut ledger, 30, (5, 0));
    client.batch_execute("DELETE FROM ledger_holds WHERE hold = 20").unwrap();
    check(&mut ledger, 31, (4, 0));
}

/// The row's tally stays, and is of a later moment than the first count.
#[test]
fn a_row_that_was_removed_before_the_first_count_does_not_count_later() {
    let database = Database::new();
    let (mut append, mut client) = (database.append(), database.client());
    append.append(&[&batch(1, Hold, 0..10)]).unwrap();
    remove(&mut client, "DELETE FROM ledger_holds WHERE hold = 8");
    let mut ledger = database.ledger();
    for (upto, rows) in [(5, 6), (9, 9)] {
        assert!(ledger.has_all(SALE, &decided(AT_MS + upto, (rows, 0))).unwrap());
        assert!(!ledger.has_all(SALE, &decided(AT_MS + upto, (rows + 1, 0))).unwrap(), "up to {upto}");
    }
}

#[test]
fn the_answer_is_that_of_a_count_of_all_rows() {
    let given = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let database = Database::new();
    let (mut writers, mut keepers) = ([database.append(), database.append()], [database.ledger(), database.ledger()]);
    let mut client = database.client();
    let (mut now, mut next) = (0u64, 0u64);
    for step in 0..300 {
        now += random.u64(0..20);
        let kind = if random.bool() { Hold } else { Purchase };
        let mut records = |random: &mut fastrand::Rng, kind: RecordKind| {
            let mut records = Records::new(SALE, 1);
            for _ in 0..random.u64(1..6) {
                next += 1;
                let at_ms = AT_MS + now.saturating_sub(random.u64(0..30));
                records.push(&flashsale::domain::Record { at_ms, ..record(kind, next) });
            }
            records
        };
        match random.u32(0..10) {
            0..6 => {
                let batches = [records(&mut random, kind), records(&mut random, kind)];
                let writer = random.usize(0..2);
                writers[writer].append(&[&batches[0], &batches[1]]).unwrap();
                if random.u32(0..5) == 0 {
                    // Once more: nothing of it is new.
                    writers[1 - writer].append(&[&batches[0]]).unwrap();
                }
            }
            6 | 7 => {
                let late = records(&mut random, kind);
                assert_eq!(keepers[0].add_missing(&late).unwrap(), late.len() as u64);
            }
            8 => {
                let table = if kind == Hold { "ledger_holds" } else { "ledger_purchases" };
                remove(&mut client, &format!("DELETE FROM {table} WHERE hold % 17 = {}", random.u32(0..17)));
            }
            _ => {
                let keeper = random.usize(0..2);
                keepers[keeper] = database.ledger();
            }
        }
        let upto_ms = AT_MS + now.saturating_sub(random.u64(0..15));
        let (holds, purchases) = count(&mut client, SALE, upto_ms);
        let near = |random: &mut fastrand::Rng, rows: u64| (rows + random.u64(0..3)).saturating_sub(1);
        let asked = (near(&mut random, holds), near(&mut random, purchases));
        let want = holds >= asked.0 && purchases >= asked.1;
        let keeper = &mut keepers[random.usize(0..2)];
        let told = keeper.has_all(SALE, &decided(upto_ms, asked)).unwrap();
        assert_eq!(told, want, "step {step}: asked for {asked:?} up to {upto_ms}, there are {holds}, {purchases}");
    }
}

#[test]
fn a_tally_is_kept_for_a_while_whatever_the_role_may_do() {
    let database = Database::new();
    let (mut append, mut client) = (database.append(), database.client());
    append.append(&[&batch(1, Hold, [1, 2])]).unwrap();
    append.append(&[&batch(1, Hold, [150_000])]).unwrap();
    let grants = "CREATE ROLE teller LOGIN; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO teller";
    client.batch_execute(grants).unwrap();
    let dsn = database.server.dsn(&database.name).replace("user=postgres", "user=teller");
    let mut teller = PostgresLedger::new(parse_dsn(&dsn).unwrap());
    let late = decided(AT_MS + 150_000, (3, 0));
    assert!(teller.has_all(SALE, &late).unwrap());
    assert_eq!(database.count("ledger_tallies"), 2, "this role may not remove rows");
    assert!(database.ledger().has_all(SALE, &late).unwrap());
    assert_eq!(database.count("ledger_tallies"), 1, "what is older than two minutes is of no more use");
    // Lost with a crash, as all that is not logged.
    client.batch_execute("TRUNCATE ledger_tallies").unwrap();
    append.append(&[&batch(1, Hold, [150_001])]).unwrap();
    assert!(teller.has_all(SALE, &decided(AT_MS + 150_001, (4, 0))).unwrap());
}
