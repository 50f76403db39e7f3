//! Redis' clock and the ledger's: an instance that starts compares them before it believes either.

use super::*;
use crate::support::servers::{Mode, Stack};

/// Starts an instance on a ledger whose clock is an hour behind for the first `wrong` readings. Returns the instance and
/// how often it has read that clock.
fn start(wrong: i64) -> (Stack, App, i64) {
    let mut stack = Stack::new(Mode::Distributed);
    let mut client = stack.postgres().client();
    let behind = format!(
        "CREATE SEQUENCE readings;
         CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$
             SELECT pg_catalog.clock_timestamp()
                 - CASE WHEN nextval('readings') <= {wrong} THEN interval '1 hour' ELSE interval '0' END $$;
         ALTER ROLE postgres SET search_path = public, pg_catalog"
    );
    client.batch_execute(&behind).unwrap();
    let app = with_terms(stack.app(), &plenty()).start();
    let count = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM readings";
    let readings = client.query_one(count, &[]).unwrap().get(0);
    (stack, app, readings)
}

#[test]
fn an_instance_starts_once_redis_clock_and_the_ledgers_agree() {
    let (_stack, app, readings) = start(3);
    assert_eq!(readings, 4, "{}", app.stderr());
    app.says("Redis' clock and the ledger's differ by 3", GOING_ON);
    sells_at(app.addr(), &History::default());
    assert!(!app.last_words().contains("still differ"));
}

#[test]
fn an_instance_goes_by_redis_clock_where_they_do_not_agree() {
    let (_stack, app, readings) = start(i64::MAX);
    assert!(readings > 4, "{readings}: {}", app.stderr());
    app.says("Redis' clock and the ledger's still differ", GOING_ON);
    sells_at(app.addr(), &History::default());
}
