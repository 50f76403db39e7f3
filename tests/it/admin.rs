//! What an operator's tools are told, and what they are not.

use crate::support::app::App;
use crate::support::http::{Answer, Client};
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use std::time::Duration;

crate::on_stacks! {
    distributed: paths;
    embedded: paths
}

fn ask(app: &App, method: &str, target: &str) -> Answer {
    Client::new(app.admin_addr()).send_request(method, target).unwrap_or_else(|e| panic!("{method} {target}: {e}"))
}

fn metric(app: &App, name: &str) -> u64 {
    let metrics = ask(app, "GET", "/metrics").text();
    let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("flashsale_{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

fn paths(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().start();
    let health = ask(&app, "GET", "/health");
    assert_eq!((health.status, health.field("status").as_str()), (200, "selling"));
    let metrics = ask(&app, "GET", "/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"), "{metrics:?}");
    for line in metrics.text().lines() {
        assert!(line.starts_with("# ") || line.split(' ').nth(1).is_some_and(|v| v.parse::<u64>().is_ok()), "{line}");
    }
    for target in ["/", "/checkout?user_id=u&id=i", "/purchase?code=1", "/Health", "/health/", "/items/a.svg"] {
        let answer = ask(&app, "GET", target);
        assert_eq!((answer.status, answer.error().as_str()), (404, "not_found"), "{target}");
    }
    for (method, target) in [("POST", "/health"), ("DELETE", "/metrics"), ("PUT", "/health")] {
        let answer = ask(&app, method, target);
        assert_eq!((answer.status, answer.error().as_str()), (405, "method_not_allowed"), "{method} {target}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    for target in ["/health", "/metrics"] {
        // The head of GET, and not a byte behind it: the next answer begins where this one ends.
        let mut client = Client::new(app.admin_addr());
        let both = format!("HEAD {target} HTTP/1.1\r\nHost: h\r\n\r\nGET /none HTTP/1.1\r\nHost: h\r\n\r\n");
        client.send(both.as_bytes()).unwrap();
        let head = client.receive_head().unwrap();
        assert_eq!(head.status, 200);
        assert!(head.header("content-length").unwrap().parse::<usize>().unwrap() > 10);
        assert_eq!(client.receive().unwrap().status, 404);
    }
    assert_eq!(app.client().checkout("u", "i").status, 200);
    poll("its record", Duration::from_secs(5), || (metric(&app, "records_written_total") == 1).then_some(()));
    assert_eq!((metric(&app, "records_waiting"), metric(&app, "selling"), metric(&app, "ledger_refusing")), (0, 1, 0));
}

#[test]
fn nothing_can_be_sold() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().start();
    // Frozen, while no shopper sends a request.
    stack.redis().pause();
    poll("an unhealthy server", Duration::from_secs(10), || (ask(&app, "GET", "/health").status == 503).then_some(()));
    stack.redis().resume();
    poll("a healthy server", Duration::from_secs(10), || (ask(&app, "GET", "/health").status == 200).then_some(()));
    stack.redis().kill();
    let answer = poll("an unhealthy server", Duration::from_secs(10), || {
        let answer = ask(&app, "GET", "/health");
        (answer.status != 200).then_some(answer)
    });
    assert_eq!((answer.status, answer.error().as_str()), (503, "unavailable"));
    assert_eq!(metric(&app, "selling"), 0);
    stack.redis().restart();
    poll("a healthy server", Duration::from_secs(10), || (ask(&app, "GET", "/health").status == 200).then_some(()));
}

#[test]
fn a_ledger_that_is_away() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().start();
    stack.postgres().stop_immediate();
    poll("the keeper's word", Duration::from_secs(10), || (metric(&app, "ledger_refusing") == 1).then_some(()));
    stack.postgres().start_again();
    poll("that it is back", Duration::from_secs(20), || (metric(&app, "ledger_refusing") == 0).then_some(()));

    stack.postgres().stop_immediate();
    assert_eq!(app.client().checkout("u", "i").status, 200);
    poll("the writer's word", Duration::from_secs(10), || (metric(&app, "ledger_refusing") == 1).then_some(()));
    assert_eq!(metric(&app, "records_waiting"), 1);
    assert_eq!(ask(&app, "GET", "/health").status, 200, "Redis decides, and the records wait");
    stack.postgres().start_again();
    poll("the record", Duration::from_secs(20), || {
        ((metric(&app, "ledger_refusing"), metric(&app, "records_waiting")) == (0, 0)).then_some(())
    });
}
