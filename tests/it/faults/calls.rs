//! A worker's calls to Redis: what a slow reply, flushed scripts, an idle close and a lost reply may cost.

use super::*;
use crate::support::servers::{Mode, Redis, Stack};
use redis::cmd;

/// One worker, so that all requests go through one connection.
fn one_worker(app: Builder, terms: &Terms) -> App {
    with_terms(app, terms).env("WORKERS", 1).start()
}

/// What `log` warns of, except of the tests' Redis, which keeps no file.
fn warnings(log: &str) -> Vec<&str> {
    let is_warning = |line: &&str| [" WARN ", " ERROR "].iter().any(|level| line.contains(level));
    log.lines().filter(is_warning).filter(|line| !line.contains("append-only file")).collect()
}

/// Redis' clock, unix milliseconds.
fn redis_ms(redis: &Redis) -> u64 {
    let (seconds, micros): (u64, u64) = cmd("TIME").query(&mut redis.connection()).unwrap();
    seconds * 1000 + micros / 1000
}

/// When the first hold of the queue expires, unix milliseconds by Redis' clock.
fn first_expiry_ms(redis: &Redis, sale: u64) -> u64 {
    let entry: String =
        cmd("LINDEX").arg(format!("{{sale:{sale}}}:queue")).arg(0).query(&mut redis.connection()).unwrap();
    entry.split(':').next().unwrap().parse().unwrap()
}

#[test]
fn a_slow_reply_refuses_no_request_after_the_expiry() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (Terms { items: 1, hold_seconds: 2, ..plenty() }, History::default());
    let proxy = Proxy::to(stack.redis().addr());
    let app = stack.app().env("REDIS_ADDR", proxy.addr()).env("REDIS_TIMEOUT_MS", 2000);
    let app = one_worker(app, &terms);
    let sold_out = Told::Refused(409, "sold_out".into());
    assert!(matches!(probe(app.addr(), &history).0, Told::Granted(_)));
    let expiry_ms = first_expiry_ms(stack.redis(), clock::sale(terms.sale_seconds));
    poll("a moment shortly before the expiry", GOING_ON, || {
        (redis_ms(stack.redis_ref()) + 900 > expiry_ms).then_some(())
    });
    // Decided now, heard 800 ms later: it tells of the time before that alone.
    proxy.delay(Duration::from_millis(800));
    assert_eq!(probe(app.addr(), &history).0, sold_out);
    proxy.delay(Duration::ZERO);
    poll("the expiry", GOING_ON, || (redis_ms(stack.redis_ref()) > expiry_ms).then_some(()));
    let told = probe(app.addr(), &history).0;
    assert!(matches!(told, Told::Granted(_)), "the item is free again: {told:?}");
    audit::check(&history, &stack.ledger(), &terms);
}

#[test]
fn flushed_scripts_cost_no_request() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        for _ in 0..5 {
            stack.redis().run(&["SCRIPT", "FLUSH"]);
            sells(&history, 100);
        }
    });
    let lost: Vec<String> = history.words().into_iter().filter(|word| word.starts_with("lost")).collect();
    assert_eq!(lost, Vec::<String>::new(), "a call that Redis does not know executes nothing");
    assert_eq!(warnings(&app.last_words()), Vec::<&str>::new());
}

/// The ids of the connections that run scripts: the workers'.
fn workers_connections(redis: &Redis) -> Vec<String> {
    let clients: String = cmd("CLIENT").arg("LIST").query(&mut redis.connection()).unwrap();
    let of_workers = clients.lines().filter(|line| ["cmd=evalsha", "cmd=script"].iter().any(|cmd| line.contains(cmd)));
    of_workers.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn an_idle_connection_that_redis_ends_costs_no_request() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = one_worker(stack.app(), &terms);
    assert!(matches!(probe(app.addr(), &history).0, Told::Granted(_)));
    stack.redis().run(&["CONFIG", "SET", "timeout", "1"]);
    for _ in 0..3 {
        let before = workers_connections(stack.redis_ref());
        poll("the end of an idle connection", GOING_ON, || {
            let now = workers_connections(stack.redis_ref());
            before.iter().any(|id| !now.contains(id)).then_some(())
        });
        let told = probe(app.addr(), &history).0;
        assert!(matches!(told, Told::Granted(_)), "nothing was in flight: {told:?}");
    }
    assert_eq!(warnings(&app.last_words()), Vec::<&str>::new());
}

#[test]
fn what_a_repeated_purchase_is_told_outlives_redis() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let proxy = Proxy::to(stack.redis().addr());
    let app = one_worker(stack.app().env("REDIS_ADDR", proxy.addr()), &terms);
    let ledger = stack.ledger();
    let Told::Granted(code) = probe(app.addr(), &history).0 else { panic!("no code") };
    proxy.cut_replies(1);
    let told = ask(app.addr(), &history, |shopper| shopper.purchase(&code));
    assert!(matches!(told, Told::Lost(_)) && proxy.cuts_left() == 0, "{told:?}");
    // The repetition reveals the purchase, of which Redis alone knows by then, and Redis loses it at once.
    let told = decided(|| ask(app.addr(), &history, |shopper| shopper.purchase(&code))).0;
    assert!(matches!(told, Told::Already(_)), "{told:?}");
    stack.redis().wipe();
    let told = decided(|| ask(app.addr(), &history, |shopper| shopper.purchase(&code))).0;
    assert!(matches!(told, Told::Already(_)), "it was told that it is bought: {told:?}");
    audit::check(&history, &ledger, &terms);
}

#[test]
fn holds_expire_after_a_glitch_of_redis_clock() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (Terms { items: 1, hold_seconds: 2, ..plenty() }, History::default());
    let app = one_worker(stack.app(), &terms);
    assert!(matches!(probe(app.addr(), &history).0, Told::Granted(_)));
    let sale = clock::sale(terms.sale_seconds);
    poll("the expiry", GOING_ON, || {
        (redis_ms(stack.redis_ref()) > first_expiry_ms(stack.redis_ref(), sale)).then_some(())
    });
    // What a clock that was ahead by a minute, for longer than a glitch lasts, has left behind.
    let ahead = redis_ms(stack.redis_ref()) + 60_000;
    stack.redis().run(&["HSET", &format!("{{sale:{sale}}}:state"), "clock", &ahead.to_string()]);
    assert!(matches!(probe(app.addr(), &history).0, Told::Granted(_)));
    // Its hold lasts twice as long as it should, not a minute.
    poll("the item", Duration::from_secs(15), || {
        matches!(probe(app.addr(), &history).0, Told::Granted(_)).then_some(())
    });
    assert_eq!(warnings(&app.last_words()), Vec::<&str>::new());
}
