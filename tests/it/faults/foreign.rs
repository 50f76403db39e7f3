//! Two ledgers on one Redis database: the second deployment is turned away, and the first one notices nothing.

use super::*;
use crate::support::servers::{Mode, Postgres, Stack};

const OWNER_KEY: &str = "{sale:owner}:ledger";

fn identity(postgres: &Postgres) -> String {
    postgres.client().query_one("SELECT id FROM ledger_identity", &[]).unwrap().get(0)
}

/// An instance on `stack`'s Redis, and on another Postgres.
fn stranger(stack: &Stack, postgres: &Postgres, terms: &Terms) -> Builder {
    with_terms(stack.app().env("POSTGRES_DSN", postgres.dsn()), terms)
}

#[test]
fn another_deployment_is_turned_away() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    buy(app.addr(), &history, 3);
    let other = Postgres::start();
    // Also one whose sales have other ids.
    for sale_seconds in [terms.sale_seconds, terms.sale_seconds - 1] {
        let failure = stranger(&stack, &other, &Terms { sale_seconds, ..terms }).run_to_failure();
        assert_eq!(failure.code, 1, "{}", failure.stderr);
        let ours = identity(stack.postgres());
        for words in ["REDIS_ADDR", "POSTGRES_DSN", &ours, &identity(&other)] {
            assert!(failure.stderr.contains(words), "{words}: {}", failure.stderr);
        }
        assert!(failure.elapsed < Duration::from_secs(4), "{:?}", failure.elapsed);
    }
    buy(app.addr(), &history, 3);
    assert_eq!(rows_of(&other), 0, "nothing of the first one's is written to the second one's ledger");
    audit::check(&history, &stack.ledger(), &terms);
    assert_eq!(fence(&mut stack).0, 1);
    assert!(!app.last_words().contains("selling stops"));
}

fn rows_of(postgres: &Postgres) -> i64 {
    postgres.client().query_one("SELECT count(*) FROM ledger_holds", &[]).unwrap().get(0)
}

#[test]
fn a_database_is_claimed_again_after_a_loss() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ours = identity(stack.postgres());
    let mut redis = stack.redis().connection();
    let mut owner = || redis::cmd("GET").arg(OWNER_KEY).query::<Option<String>>(&mut redis).unwrap();
    assert_eq!(owner().as_deref(), Some(ours.as_str()));
    under_load(&[&app], &history, &stack.ledger(), &terms, || stack.redis_ref().wipe());
    assert_eq!(owner().as_deref(), Some(ours.as_str()));
    // The key alone: nothing is in doubt.
    stack.redis_ref().run(&["DEL", OWNER_KEY]);
    poll("the key", GOING_ON, || (owner().as_deref() == Some(ours.as_str())).then_some(()));
    assert_eq!(fence(&mut stack).0, 2);
    sells_at(app.addr(), &history);
}

#[test]
fn an_instance_whose_redis_is_given_away_stops() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    buy(app.addr(), &history, 3);
    let (ours, theirs) = (identity(stack.postgres()), "0".repeat(32));
    stack.redis().run(&["SET", OWNER_KEY, &theirs]);
    let refused = Told::Lost("503 unavailable".into());
    poll("an instance that stops", GOING_ON, || (probe(app.addr(), &history).0 == refused).then_some(()));
    app.says(&theirs, GOING_ON);
    stack.redis().run(&["SET", OWNER_KEY, &ours]);
    sells_at(app.addr(), &history);
    assert_eq!(fence(&mut stack).0, 1, "nothing was lost: {}", app.stderr());
    codes_still_work(&[app.addr()], &history);
}

/// States that name no ledger, with and without a restart of Redis since their epoch was opened.
fn states_of_an_earlier_version(was_restarted: bool) {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let mut app = with_terms(stack.app(), &terms).start();
    buy(app.addr(), &history, 3);
    assert_eq!(app.terminate(), 0);
    let keys: Vec<String> = redis::cmd("KEYS").arg("{sale:*}:state").query(&mut stack.redis().connection()).unwrap();
    assert!(keys.len() >= 3, "{keys:?}");
    let as_before = || {
        stack.redis_ref().run(&["DEL", OWNER_KEY]);
        keys.iter().for_each(|key| drop(stack.redis_ref().run(&["HDEL", key, "ledger"])));
    };
    as_before();
    let other = Postgres::start();
    let failure = stranger(&stack, &other, &terms).run_to_failure();
    assert!(failure.code == 1 && failure.stderr.contains("unknown ledger"), "{}", failure.stderr);
    if was_restarted {
        // The same as a new run id, for an instance that starts.
        stack.postgres().client().execute("UPDATE ledger_fence SET identity = 'another/one'", &[]).unwrap();
    }
    let app = with_terms(stack.app(), &terms).start();
    codes_still_work(&[app.addr()], &history);
    audit::check(&history, &stack.ledger(), &terms);
    assert_eq!(app.last_words().contains("rebuilding"), was_restarted);
}

#[test]
fn states_of_an_earlier_version_are_adopted_by_their_own_ledger() {
    states_of_an_earlier_version(false);
}

#[test]
fn states_of_an_earlier_version_are_adopted_after_redis_was_restarted() {
    states_of_an_earlier_version(true);
}

#[test]
fn a_redis_that_is_given_to_another_ledger_serves_it() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let mut app = with_terms(stack.app(), &terms).start();
    buy(app.addr(), &history, 3);
    let mut barrier = stack.postgres().client();
    barrier.batch_execute("BEGIN; LOCK TABLE ledger_purchases, ledger_holds IN SHARE MODE").unwrap();
    buy(app.addr(), &history, 3);
    app.kill();
    barrier.batch_execute("ROLLBACK").unwrap();
    let other = Postgres::start();
    assert_eq!(stranger(&stack, &other, &terms).run_to_failure().code, 1);
    stack.redis().run(&["SET", OWNER_KEY, &identity(&other)]);
    let new = stranger(&stack, &other, &terms).start();
    let second = History::default();
    buy(new.addr(), &second, 3);
    let ledger = Ledger::Postgres(other.dsn());
    poll("all rows", GOING_ON, || (ledger.rows().purchases.len() == 3).then_some(()));
    // Comparisons have come by, and found nothing to add.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ledger.rows().attempts.len(), 3, "{}", new.stderr());
    audit::check(&second, &ledger, &terms);
}
