//! Sessions with Postgres that end in silence, while Postgres itself is well: neither side is told.

use super::*;
use crate::support::http::Client;
use crate::support::servers::{Mode, Stack};

fn metric(app: &App, name: &str) -> u64 {
    let metrics = Client::new(app.admin_addr()).send_request("GET", "/metrics").unwrap().text();
    let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("flashsale_{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

/// Has `end` end the sessions, then sells one item, in five rounds. `ledger_refusing` stays 0 until its record is there.
fn check(app: App, mut end: impl FnMut()) {
    for round in 1..=5 {
        end();
        assert_eq!(app.client().checkout(&format!("u{round}"), "i").status, 200);
        poll("the record", Duration::from_secs(5), || {
            assert_eq!(metric(&app, "ledger_refusing"), 0, "round {round}: {}", app.stderr());
            (metric(&app, "records_written_total") == round).then_some(())
        });
        // Long enough for the keeper to have used each of its sessions.
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            assert_eq!(metric(&app, "ledger_refusing"), 0, "round {round}: {}", app.stderr());
        }
    }
    let said = app.last_words();
    let alarms = |line: &&str| line.contains(" ERROR ") || (line.contains(" WARN ") && !line.contains("append-only"));
    assert_eq!(said.lines().filter(alarms).collect::<Vec<_>>(), Vec::<&str>::new());
    // The instance itself has joined its epoch again, each time.
    assert!(!said.contains("an instance has left"), "{said}");
}

#[test]
fn idle_ones_that_postgres_ends() {
    let mut stack = Stack::new(Mode::Distributed);
    let mut client = stack.postgres().client();
    client.batch_execute("ALTER ROLE postgres SET idle_session_timeout = '700ms'").unwrap();
    let app = stack.app().start();
    check(app, || {
        // The writer's last word to its session was this.
        poll("the end of the writer's session", Duration::from_secs(10), || {
            let look =
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flashsale' AND query = 'COMMIT'";
            let left: i64 = stack.postgres().client().query_one(look, &[]).unwrap().get(0);
            (left == 0).then_some(())
        });
    });
}

#[test]
fn all_of_them_ended_by_an_administrator() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().start();
    check(app, || {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'flashsale'";
        let ended: i64 = stack.postgres().client().query_one(end, &[]).unwrap().get(0);
        assert!(ended >= 2, "{ended}");
    });
}

#[test]
fn all_of_them_forgotten_by_a_router() {
    let mut stack = Stack::new(Mode::Distributed);
    let target = local(stack.postgres().port());
    let router = Proxy::to(target);
    let dsn = stack.postgres().dsn_at(router.addr().port());
    let app = stack.app().env("POSTGRES_DSN", dsn).start();
    check(app, || router.switch(target));
}
