//! What a server does when it runs out of something: it refuses, and goes on when there is some again.

use crate::support::app::App;
use crate::support::clock;
use crate::support::http::Client;
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::time::Duration;

/// As long as a server that is short of something may need to notice that it no longer is.
const RECOVERY: Duration = Duration::from_secs(10);

fn start(stack: &Stack) -> App {
    stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("SALE_ITEMS", 1_000_000).start()
}

/// Lets the process of `app` have `limit` of `resource` at most.
fn limit(app: &App, resource: Resource, limit: u64) {
    let pid = Pid::from_raw(app.pid().try_into().unwrap());
    let new = Rlimit { current: Some(limit), maximum: Some(limit) };
    prlimit(pid, resource, new).unwrap();
}

fn virtual_bytes(app: &App) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", app.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn descriptors(app: &App) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", app.pid())).unwrap().count() as u64
}

/// A connection that was served once and stays open, or `None`.
fn served(app: &App, user: u64) -> Option<Client> {
    let mut client = app.client();
    let answer = client.send_request("POST", &format!("/checkout?user_id=u{user}&id=i")).ok()?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Some(client)
}

/// A connection that got the answer of a path that is not there, and stays open.
fn greeted(app: &App) -> Option<Client> {
    let mut client = app.client();
    client.send_request("GET", "/").is_ok_and(|answer| answer.status == 404).then_some(client)
}

fn serves_again(app: App) {
    poll("a server that serves again", RECOVERY, || served(&app, u64::MAX));
    let said = app.last_words();
    assert_eq!(said.lines().filter(|line| line.contains("cannot accept connections")).count(), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn no_memory_for_a_connection() {
    let stack = Stack::new(Mode::Embedded);
    let app = start(&stack);
    drop(served(&app, 0));
    limit(&app, Resource::As, virtual_bytes(&app) + (8 << 20));
    let (mut open, mut refused) = (Vec::new(), 0);
    for user in 1.. {
        assert!(user < 5_000, "{} connections fit into 8 MiB", open.len());
        match served(&app, user) {
            Some(client) => open.push(client),
            None => refused += 1,
        }
        if refused == 3 {
            break;
        }
    }
    assert!(open.len() > 10, "{}", open.len());
    let last = open.last_mut().unwrap();
    assert_eq!(last.checkout("again", "i").status, 200, "those that are open go on");
    drop(open);
    serves_again(app);
}

#[test]
fn no_descriptor_for_a_connection() {
    let stack = Stack::new(Mode::Embedded);
    let app = start(&stack);
    drop(served(&app, 0));
    limit(&app, Resource::Nofile, descriptors(&app) + 8);
    // The kernel makes these connections, whether the server can accept them or not.
    let waiting: Vec<_> = (0..40).map(|_| std::net::TcpStream::connect(app.addr()).unwrap()).collect();
    app.says("cannot accept connections", RECOVERY);
    drop(waiting);
    // Those that have waited are accepted and dropped; then there is room.
    serves_again(app);
}

/// Half a request has come on it: it is busy.
fn busy(app: &App) -> Client {
    let mut client = app.client();
    client.send(b"GET / HTTP/1.1\r\n").unwrap();
    client
}

fn finishes(client: &mut Client) -> bool {
    client.send(b"Host: h\r\n\r\n").is_ok() && client.receive().is_ok_and(|answer| answer.status == 404)
}

fn metric(app: &App, name: &str) -> u64 {
    let text = Client::new(app.admin_addr()).get("/metrics").text();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("flashsale_{name} ")));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn all_connections_are_busy() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("MAX_CONNECTIONS", 4).start();
    let mut open: Vec<Client> = (0..4).map(|_| busy(&app)).collect();
    poll("four connections", RECOVERY, || (metric(&app, "connections") == 4).then_some(()));
    for size in [0, 1, 100_000] {
        // Whether it has sent nothing yet, or a request with a long body: it gets the answer, and no reset.
        let mut more = app.client();
        let body = "x".repeat(size);
        let request = format!("POST /checkout HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n{body}");
        more.send(if size == 0 { b"" } else { request.as_bytes() }).unwrap();
        let answer = more.receive().unwrap_or_else(|e| panic!("{size}: {e}"));
        assert_eq!((answer.status, answer.error().as_str()), (503, "unavailable"));
        assert!(answer.retry_after() >= 1);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert!(open.iter_mut().all(finishes), "those that are open go on");
    assert_eq!((metric(&app, "connections_refused_total"), metric(&app, "connections_gave_way_total")), (3, 0));
    open.pop();
    poll("the place that is free", RECOVERY, || greeted(&app));
}

/// A client that was answered and asks no more must not keep others out.
#[test]
fn the_longest_idle_connection_gives_way() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("MAX_CONNECTIONS", 8).start();
    poll("the end of the first look", RECOVERY, || (metric(&app, "connections") == 0).then_some(()));
    let mut working = [busy(&app), busy(&app)];
    // More than a tick lies between any two, so that their order is known.
    let a_tick_passes = || std::thread::sleep(Duration::from_millis(120));
    let mut idle: Vec<Client> = (0..6)
        .map(|_| {
            a_tick_passes();
            greeted(&app).expect("a place")
        })
        .collect();
    a_tick_passes();
    assert_eq!(metric(&app, "connections"), 8);
    // The first of them is used again, so the second is the one that has been idle longest.
    assert_eq!(idle[0].get("/").status, 404);
    let mut new: Vec<Client> = (0..5).map(|n| greeted(&app).unwrap_or_else(|| panic!("a place for {n}"))).collect();
    assert_eq!(idle[0].get("/").status, 404);
    for (n, client) in idle[1..].iter_mut().enumerate() {
        assert!(client.is_closed(), "{}", n + 1);
    }
    assert!(new.iter_mut().all(|client| client.get("/").status == 404));
    assert!(working.iter_mut().all(finishes), "busy ones never give way");
    assert_eq!((metric(&app, "connections_gave_way_total"), metric(&app, "connections_refused_total")), (5, 0));
    let said = app.last_words();
    assert_eq!(
        said.lines().filter(|line| line.contains("idle ones were closed")).count(),
        1,
        "one line a minute: {said}"
    );
}

/// More new connections at once than may give way at once, one after the other and all together.
#[test]
fn many_give_way() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("MAX_CONNECTIONS", 100).start();
    let mut open: Vec<Client> = (0..100).map(|n| greeted(&app).unwrap_or_else(|| panic!("a place for {n}"))).collect();
    for n in 0..150 {
        open.push(greeted(&app).unwrap_or_else(|| panic!("a place for {n} more")));
    }
    std::thread::scope(|scope| {
        for _ in 0..90 {
            scope.spawn(|| greeted(&app).expect("a place"));
        }
    });
    let gave_way = metric(&app, "connections_gave_way_total");
    assert!(gave_way >= 150, "{gave_way}");
    assert_eq!(metric(&app, "connections_refused_total"), 0);
    poll("no more than allowed", RECOVERY, || (descriptors(&app) < 200).then_some(()));
    // Clients that close while they are being chosen: each is counted once, so that the bound stays what it is.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..100).for_each(|_| drop(app.client().send(b""))));
        }
        (0..300).for_each(|_| drop(app.client().send_request("GET", "/")));
    });
    drop(open);
    poll("no connection", RECOVERY, || (metric(&app, "connections") == 0).then_some(()));
    let mut working: Vec<Client> = (0..100).map(|_| busy(&app)).collect();
    poll("all places taken", RECOVERY, || (metric(&app, "connections") == 100).then_some(()));
    assert_eq!(app.client().get("/").status, 503, "one more than there are places");
    assert!(working.iter_mut().all(finishes));
}
