//! Many requests of one connection at once: decided together, answered in order.

use crate::support::app::App;
use crate::support::clock;
use crate::support::http::Client;
use crate::support::process::poll;
use crate::support::servers::{Mode, Redis, Stack};
use std::time::Duration;

crate::on_stacks! {
    distributed: in_order;
    embedded: in_order
}

/// As many as a connection has open at once.
const MANY: usize = 64;
/// As long as an instance may need until it sells again.
const RECOVERY: Duration = Duration::from_secs(10);

fn checkouts() -> String {
    let one = |n| format!("POST /checkout?user_id=u{n}&id=i{n} HTTP/1.1\r\nHost: h\r\n\r\n");
    (0..MANY).map(one).collect()
}

/// Sends `requests` at once, and takes the statuses of the answers, with the text that `field` of each one's body has.
fn ask(client: &mut Client, requests: &str, field: &str) -> (Vec<u16>, Vec<String>) {
    client.send(requests.as_bytes()).unwrap();
    (0..MANY).map(|_| client.receive().unwrap()).map(|answer| (answer.status, answer.field(field))).unzip()
}

/// Checks out and purchases many items, each with one call to `ask`.
fn buys_in_order(app: &App) {
    let mut client = app.client();
    let (statuses, codes) = ask(&mut client, &checkouts(), "code");
    assert_eq!(statuses, [200; MANY]);
    let purchase = |code: &String| format!("POST /purchase?code={code} HTTP/1.1\r\nHost: h\r\n\r\n");
    let purchases: String = codes.iter().map(purchase).collect();
    let items: Vec<String> = (0..MANY).map(|n| format!("i{n}")).collect();
    assert_eq!(ask(&mut client, &purchases, "item_id"), (vec![200; MANY], items.clone()));
    // Again, with a forged code in the middle, whose answer waits for none.
    let forged = purchases.replace(&codes[7], &"0".repeat(32));
    let (statuses, again) = ask(&mut client, &forged, "item_id");
    for n in (0..MANY).filter(|n| *n != 7) {
        assert_eq!((statuses[n], &again[n]), (409, &items[n]));
    }
    assert_eq!(statuses[7], 400);
}

fn in_order(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    buys_in_order(&app);
    poll("the rows", RECOVERY, || (stack.ledger().rows().purchases.len() == MANY).then_some(()));
}

#[test]
fn answers_that_wait_for_the_ledger() {
    let stack = Stack::new(Mode::Distributed);
    let sale_seconds = clock::quiet_sale_seconds();
    let app = stack.app().env("SALE_SECONDS", sale_seconds).env("PURCHASE_ACK", "ledger").start();
    buys_in_order(&app);
    assert_eq!(stack.ledger().rows().purchases.len(), MANY);
}

/// How many script calls Redis has run.
fn script_calls(redis: &Redis) -> u64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut redis.connection()).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    line.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
}

#[test]
fn one_call_decides_many() {
    let stack = Stack::new(Mode::Distributed);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let mut client = app.client();
    assert_eq!(client.checkout("first", "i").status, 200);
    let before = script_calls(stack.redis_ref());
    let (statuses, _) = ask(&mut client, &checkouts(), "code");
    assert_eq!(statuses, [200; MANY]);
    let calls = script_calls(stack.redis_ref()) - before;
    // They may arrive in a few pieces, and the keeper has calls of its own.
    assert!(calls <= MANY as u64 / 4, "{calls} calls for {MANY} requests");
}

/// Redis is silent: each open request gets its refusal, and the sale goes on afterwards.
#[test]
fn open_requests_are_refused_where_redis_is_silent() {
    let mut stack = Stack::new(Mode::Distributed);
    let sale_seconds = clock::quiet_sale_seconds();
    let app = stack.app().env("SALE_SECONDS", sale_seconds).env("REDIS_TIMEOUT_MS", 1000).start();
    let mut client = app.client();
    assert_eq!(client.checkout("first", "i").status, 200);
    stack.redis().pause();
    let (statuses, errors) = ask(&mut client, &checkouts(), "error");
    stack.redis().resume();
    assert_eq!(statuses, [503; MANY]);
    assert!(errors.iter().all(|error| error == "unavailable"), "{errors:?}");
    poll("a sale that goes on", RECOVERY, || (client.checkout("last", "i").status == 200).then_some(()));
}
