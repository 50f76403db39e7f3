//! The schema's migrations, from the first version on, with several instances at once.

use super::server::Database;
use super::{SALE, batch};
use flashsale::domain::RecordKind::{Hold, Purchase};
use flashsale::ledger::postgres::{PostgresLedger, parse_dsn};
use flashsale::ledger::{Append, Fence, Ledger, LedgerId, SharedRecords};

/// A database as the first version left it, with rows.
fn first_version() -> Database {
    let database = Database::new();
    let mut client = database.client();
    client.batch_execute(include_str!("../../sql/postgres/0001_initial.sql")).unwrap();
    let rows = "INSERT INTO ledger_code_key (key) VALUES (decode(repeat('07', 16), 'hex'));
        SELECT nextval('instances');
        INSERT INTO sales VALUES (1700000000, 5, 2, 1000, to_timestamp(1700000000), to_timestamp(1700003600), true);
        UPDATE ledger_fence SET number = 3, identity = 'run a';
        INSERT INTO ledger_holds VALUES
            (1700000000, 1, decode(repeat('01', 16), 'hex'), 'ann', 'lamp', now(), now()),
            (1700000000, 2, decode(repeat('02', 16), 'hex'), 'bob', 'lamp', now(), now());
        INSERT INTO ledger_purchases VALUES
            (1700000000, 2, decode(repeat('02', 16), 'hex'), 'bob', 'lamp', now());
        INSERT INTO ledger_misfits VALUES
            ('hold', 1700000000, 9, decode(repeat('09', 16), 'hex'), 'cid', 'lamp', now(), 'why', now())";
    client.batch_execute(rows).unwrap();
    database
}

fn version(database: &Database) -> i64 {
    database.client().query_one("SELECT version FROM ledger_schema", &[]).unwrap().get(0)
}

#[test]
fn the_first_versions_database_is_migrated_by_many_at_once() {
    let database = first_version();
    // A transaction of the first version is open meanwhile.
    let mut old = database.client();
    let begin = "BEGIN; SELECT * FROM ledger_fence;
        INSERT INTO ledger_holds VALUES (1700000000, 3, decode(repeat('03', 16), 'hex'), 'dan', 'lamp', now(), now())";
    old.batch_execute(begin).unwrap();
    let started: Vec<(LedgerId, [u8; 16], u64)> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut ledger = database.ledger();
                    (ledger.identity().unwrap(), ledger.code_key().unwrap(), ledger.new_instance().unwrap())
                })
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    old.batch_execute("COMMIT").unwrap();
    assert!(started.iter().all(|(id, key, _)| *id == started[0].0 && *key == [7; 16]), "{started:?}");
    let mut instances: Vec<u64> = started.iter().map(|(_, _, instance)| *instance).collect();
    instances.sort_unstable();
    assert_eq!(instances, (2..=9).collect::<Vec<_>>());
    assert!(version(&database) >= 2);
    let mut ledger = database.ledger();
    assert_eq!(ledger.epoch().unwrap().number, 3);
    assert_eq!(ledger.sales(0).unwrap().len(), 1);
    let mut rows = Vec::new();
    ledger.holds(SALE, &mut |row| rows.push((row.number.0, row.facts.purchased_ms.is_some()))).unwrap();
    assert_eq!(rows, [(1, false), (2, true), (3, false)]);
    assert_eq!((database.count("quarantined_records"), database.count("purchases")), (1, 1));
    database.append().append(&[&batch(3, Hold, [10]), &batch(3, Purchase, [10])]).unwrap();
    assert_eq!((database.count("checkout_attempts"), database.count("purchases")), (4, 2));
    assert_ne!(Database::new().ledger().identity().unwrap(), started[0].0);
}

/// They could not read the states of this version in Redis.
#[test]
fn instances_of_an_earlier_version_end_before_the_first_of_this_one_starts() {
    for lock in [
        "pg_advisory_lock_shared(1718812674, 3)",
        "pg_advisory_lock_shared(1718812676, 3)",
        "pg_advisory_lock(1718812675, 0)",
    ] {
        let database = first_version();
        let mut old = database.client();
        old.batch_execute(&format!("SELECT {lock}")).unwrap();
        let refused = database.ledger().code_key().unwrap_err().to_string();
        assert!(refused.contains("instances of an earlier version are running"), "{refused}");
        assert_eq!(version(&database), 5, "an earlier version can go on");
        old.batch_execute("SELECT pg_advisory_unlock_all()").unwrap();
        database.ledger().code_key().unwrap();
        assert_eq!(version(&database), 6);
        // From here on a member's lock is no reason: it is one of this version.
        old.batch_execute(&format!("SELECT {lock}")).unwrap();
        database.ledger().code_key().unwrap();
    }
}

#[test]
fn the_quarantine_has_its_new_name_and_instances_of_earlier_versions_go_on() {
    let database = first_version();
    let mut client = database.client();
    // As an operator has set it up: the instances' role may use the tables, and another role migrates.
    let grants = "CREATE ROLE till LOGIN; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO till;
        GRANT SELECT ON ledger_misfits TO public";
    client.batch_execute(grants).unwrap();
    client.batch_execute(include_str!("../../sql/postgres/0002_version_and_identity.sql")).unwrap();
    client.batch_execute(include_str!("../../sql/postgres/0003_reports.sql")).unwrap();
    client.batch_execute("UPDATE ledger_schema SET version = 3; GRANT INSERT ON ledger_schema TO till").unwrap();
    database.ledger().code_key().unwrap();
    assert!(version(&database) >= 4);
    // What instances of versions 1 to 3 say, in their words and with their rights. A repeated call changes nothing.
    client.batch_execute("SET ROLE till").unwrap();
    for _ in 0..2 {
        let insert = "INSERT INTO ledger_misfits (sale_id, reason, kind, hold, code, user_id, item_id, created_at)
            SELECT $1, $2, * FROM unnest($3::text[], $4::bigint[], $5::bytea[], $6::text[], $7::text[],
            ARRAY[now(), now()]) ON CONFLICT DO NOTHING";
        let (sale, kinds, holds) = (1_700_000_000_i64, ["hold", "purchase"].as_slice(), [9_i64, 9].as_slice());
        let (codes, ids) = ([b"x".as_slice(), b"x"], ["u", "u"].as_slice());
        client.execute(insert, &[&sale, &"late", &kinds, &holds, &codes.as_slice(), &ids, &ids]).unwrap();
    }
    client.batch_execute("RESET ROLE").unwrap();
    database.ledger().quarantine(&batch(3, Hold, [9, 10]), "new").unwrap();
    let query = "SELECT string_agg(kind || hold || reason, ' ' ORDER BY hold, kind), bool_and(noted_at <= now()) FROM ";
    for name in ["quarantined_records", "ledger_misfits"] {
        let row = client.query_one(&format!("{query}{name}"), &[]).unwrap();
        assert_eq!((row.get(0), row.get(1)), ("hold9why purchase9late hold10new", true), "{name}");
    }
    let constraints = "SELECT count(*) FROM pg_constraint WHERE conname LIKE '%misfit%'";
    assert_eq!(client.query_one(constraints, &[]).unwrap().get::<_, i64>(0), 0);
}

#[test]
fn reports() {
    let database = first_version();
    // A view of the operator's own stands on ours.
    database.client().batch_execute("CREATE VIEW mine AS SELECT code, used FROM checkout_attempts").unwrap();
    database.ledger().code_key().unwrap();
    let mut client = database.client();
    let mut columns = |view: &str| -> String {
        let query = "SELECT string_agg(attname, ' ' ORDER BY attnum), count(*) FILTER (WHERE col_description(attrelid, attnum) IS NULL)
            FROM pg_attribute WHERE attrelid = to_regclass($1)::oid AND attnum > 0";
        let row = client.query_one(query, &[&view]).unwrap();
        assert_eq!(row.get::<_, i64>(1), 0, "columns of {view} have no comment");
        row.get(0)
    };
    let attempts = "code user_id sale_id item_id created_at used expires_at purchased_at";
    assert_eq!(columns("checkout_attempts"), attempts);
    assert_eq!(columns("purchases"), "code user_id sale_id item_id created_at purchased_at");
    let summary = "sale_id items holds purchases expired users first_purchase_at last_purchase_at";
    assert_eq!(columns("sale_summary"), summary);
    let uncommented = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
        AND relkind IN ('r', 'v', 'S') AND relname <> 'mine' AND obj_description(oid) IS NULL";
    let uncommented: Vec<String> = client.query(uncommented, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(uncommented, Vec::<String>::new());
    let rows = "INSERT INTO sales VALUES (5, 9, 2, 1000, to_timestamp(5), to_timestamp(6), true);
        INSERT INTO ledger_holds VALUES (1700000000, 5, '', 'bob', 'lamp', now(), now() + interval '1 day')";
    client.batch_execute(rows).unwrap();
    let query = "SELECT items, holds, purchases, expired, users, first_purchase_at IS NULL, last_purchase_at = \
        (SELECT max(purchased_at) FROM checkout_attempts c WHERE c.sale_id = s.sale_id) FROM sale_summary s ORDER BY sale_id";
    let rows = client.query(query, &[]).unwrap();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            ([0, 1, 2, 3, 4].map(|at| row.get::<_, i64>(at)), row.get::<_, bool>(5), row.get::<_, Option<bool>>(6))
        })
        .collect();
    assert_eq!(rows, [([9, 0, 0, 0, 0], true, None), ([5, 3, 1, 1, 2], false, Some(true))]);
}

#[test]
fn a_database_that_needs_a_newer_program_is_refused() {
    let database = Database::new();
    let id = database.ledger().identity().unwrap();
    let set = |version: i64, compatible_from: i64| {
        let set = "UPDATE ledger_schema SET version = $1, compatible_from = $2";
        database.client().execute(set, &[&version, &compatible_from]).unwrap();
    };
    set(1000, 999);
    let why = database.ledger().code_key().unwrap_err().to_string();
    assert!(
        why.starts_with(
            "the database has schema version 1000, which needs a flashsale that knows version 999; this one knows "
        ),
        "{why}"
    );
    // A newer program beside this one has only added something.
    set(1000, 1);
    assert_eq!(database.ledger().identity().unwrap(), id);
    assert_eq!(version(&database), 1000);
}

#[test]
fn who_may_not_migrate_says_so() {
    let database = first_version();
    let grants = "CREATE ROLE clerk LOGIN; REVOKE CREATE ON SCHEMA public FROM public;
        GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO clerk";
    database.client().batch_execute(grants).unwrap();
    let dsn = database.server.dsn(&database.name).replace("user=postgres", "user=clerk");
    let why = PostgresLedger::new(parse_dsn(&dsn).unwrap()).code_key().unwrap_err().to_string();
    assert!(why.contains("the schema's migration 0002_") && why.contains("permission denied"), "{why}");
    database.ledger().code_key().unwrap();
}
