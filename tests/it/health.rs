//! Health follows decisions: while Redis is connected and refuses them, an instance is unhealthy and its log says why.

use crate::support::app::App;
use crate::support::http::Client;
use crate::support::process::poll;
use crate::support::servers::{Mode, Redis, Stack};
use std::time::Duration;

/// How soon an instance notices, at most.
const SOON: Duration = Duration::from_secs(10);

fn ask(app: &App, target: &str) -> (u16, String) {
    let answer = Client::new(app.admin_addr()).send_request("GET", target).unwrap();
    (answer.status, answer.text())
}

fn metric(app: &App, name: &str) -> u64 {
    let metrics = ask(app, "/metrics").1;
    let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("flashsale_{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

fn until_health_is(app: &App, status: u16) {
    poll(&format!("health {status}"), SOON, || (ask(app, "/health").0 == status).then_some(()));
}

/// Has Redis refuse by `refuse` and decide again by `heal`, once with a shopper who finds out and once without.
fn check(stack: &mut Stack, words: &str, refuse: &[&[&str]], heal: &[&[&str]]) {
    let app = stack.app().start();
    assert_eq!(app.client().checkout("u", "i").status, 200);
    for shopper in [true, false] {
        let before = metric(&app, "http_responses_total{status=\"503\"}");
        refuse.iter().for_each(|command| drop(stack.redis().run(command)));
        if shopper {
            poll("a refusal", SOON, || (app.client().checkout("u", "i").status == 503).then_some(()));
        }
        until_health_is(&app, 503);
        assert_eq!(metric(&app, "selling"), 0, "{words}");
        assert_eq!(metric(&app, "http_responses_total{status=\"503\"}") > before, shopper, "{words}");
        // No shopper sends a request: a load balancer sends none to an unhealthy instance.
        heal.iter().for_each(|command| drop(stack.redis().run(command)));
        until_health_is(&app, 200);
        assert_eq!(metric(&app, "selling"), 1, "{words}");
        assert_eq!(app.client().checkout("v", "i").status, 200, "{words}");
    }
    let said = app.last_words();
    let begins = "Redis refuses writes, so checkouts and purchases are answered 503: ";
    assert_eq!(said.matches(begins).count(), 2, "once for each outage: {said}");
    assert_eq!(said.matches(words).count(), 2, "once for each outage: {said}");
    assert_eq!(said.matches("Redis takes writes again, after ").count(), 2, "{said}");
    assert!(!said.contains("0.0ns"), "{said}");
    let warnings: Vec<&str> = said.lines().filter(|line| line.contains(" WARN ") && !line.contains("append")).collect();
    assert_eq!(warnings, Vec::<&str>::new(), "the refusal is said once");
}

#[test]
fn no_memory_left() {
    let mut stack = Stack::new(Mode::Distributed);
    let set = |value| ["CONFIG", "SET", "maxmemory", value];
    check(&mut stack, "OOM command not allowed", &[&set("1mb")], &[&set("0")]);
}

#[test]
fn too_few_replicas() {
    let mut stack = Stack::new(Mode::Distributed);
    let set = |value| ["CONFIG", "SET", "min-replicas-to-write", value];
    check(&mut stack, "NOREPLICAS Not enough good replicas", &[&set("1")], &[&set("0")]);
}

#[test]
fn a_failed_snapshot() {
    let mut stack = Stack::on_redis(Redis::start_with(&["--appendonly", "no", "--enable-protected-configs", "yes"]));
    let folder: Vec<String> =
        redis::cmd("CONFIG").arg("GET").arg("dir").query(&mut stack.redis().connection()).unwrap();
    // Nothing can be written to a folder of the kernel's.
    let refuse: [&[&str]; 3] =
        [&["CONFIG", "SET", "save", "3600 1"], &["CONFIG", "SET", "dir", "/proc/sys"], &["BGSAVE"]];
    let heal: [&[&str]; 2] = [&["CONFIG", "SET", "dir", &folder[1]], &["BGSAVE"]];
    check(&mut stack, "MISCONF", &refuse, &heal);
}

#[test]
fn a_command_that_is_not_allowed() {
    let mut stack = Stack::new(Mode::Distributed);
    let within = "The user executing the script can't run this command";
    for (command, words) in [("rpush", within), ("evalsha", "NOPERM")] {
        let set = |sign: &str| ["ACL".to_owned(), "SETUSER".into(), "default".into(), format!("{sign}{command}")];
        let (refuse, heal) = (set("-"), set("+"));
        let [refuse, heal] = [&refuse, &heal].map(|words| words.each_ref().map(String::as_str));
        check(&mut stack, words, &[&refuse], &[&heal]);
    }
}
