//! How an instance ends: what load balancers and clients see of it, and what each signal does.

use crate::support::app::{App, Builder};
use crate::support::clock;
use crate::support::http::Client;
use crate::support::process::{self, poll};
use crate::support::servers::{Mode, Stack};
use rustix::process::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

crate::on_stacks! {
    distributed: draining;
    embedded: draining
}

/// As long as a process may need to notice a signal.
const NOTICED: Duration = Duration::from_secs(5);
/// For how long a second signal is the first one, sent twice.
const REPEATED: Duration = Duration::from_millis(1_100);

fn builder(stack: &Stack) -> Builder {
    stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("USER_LIMIT", 1_000_000)
}

fn health(app: &App) -> u16 {
    Client::new(app.admin_addr()).get("/health").status
}

fn until_unhealthy(app: &App) {
    poll("health that says that it ends", NOTICED, || (health(app) == 503).then_some(()));
}

/// A draining instance serves on, and closes each connection after its answer.
fn draining(mode: Mode) {
    let stack = Stack::new(mode);
    let mut app = builder(&stack).env("DRAIN_SECONDS", 300).start();
    let mut idle = app.client();
    let code = idle.code("u", "i");
    assert_eq!(health(&app), 200);
    assert_eq!(app.client().send_request("OPTIONS", "/").unwrap().status, 204);
    process::signal(app.pid(), Signal::TERM);
    until_unhealthy(&app);
    let told = Client::new(app.admin_addr()).get("/health");
    assert_eq!((told.status, told.error().as_str()), (503, "draining"));
    // A connection that was idle, and a new one.
    let bought = idle.purchase(&code);
    assert_eq!((bought.status, bought.header("connection")), (200, Some("close")), "{}", bought.text());
    let held = app.client().checkout("v", "i");
    assert_eq!((held.status, held.header("connection")), (200, Some("close")), "{}", held.text());
    assert_eq!(app.client().send_request("OPTIONS", "/").unwrap().status, 503);
    // What has been sent together is answered together.
    let mut pipelined = app.client();
    let request = "POST /checkout?user_id=w&id=i HTTP/1.1\r\nHost: h\r\n\r\n";
    pipelined.send(request.repeat(3).as_bytes()).unwrap();
    let answers: Vec<_> = (0..3).map(|_| pipelined.receive().unwrap()).collect();
    assert!(answers.iter().all(|answer| answer.status == 200));
    let closes: Vec<_> = answers.iter().map(|answer| answer.header("connection")).collect();
    assert_eq!(closes, [None, None, Some("close")]);
    assert_eq!(Client::new(app.admin_addr()).get("/metrics").status, 200);

    std::thread::sleep(REPEATED);
    process::signal(app.pid(), Signal::TERM);
    assert_eq!(app.terminate(), 1, "a later signal ends it at once");
    assert!(app.stderr().contains("SIGTERM while stopping: ended at once"), "{}", app.stderr());
}

#[test]
fn every_signal_ends_in_order() {
    let stack = Stack::new(Mode::Embedded);
    for (signal, name) in
        [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT"), (Signal::HUP, "SIGHUP"), (Signal::QUIT, "SIGQUIT")]
    {
        if signal == Signal::HUP && is_ignored(1) {
            // These tests were started by `nohup`, and the instance would be, too.
            continue;
        }
        let mut app = builder(&stack).env("DRAIN_SECONDS", 1).start();
        assert_eq!(app.client().checkout("u", "i").status, 200);
        // GNU timeout sends it twice. Only this one is sent: of two signals that are pending at the same time the service may
        // name either.
        process::signal(app.pid(), signal);
        assert_eq!(app.end(signal), 0, "{name}: {}", app.stderr());
        let said = app.stderr();
        assert!(said.contains(&format!("{name}: stopping")), "{name}: {said}");
        assert!(said.contains("records are in the ledger"), "{name}: {said}");
    }
}

/// Whether this process, and so each that it starts, ignores the signal of this number.
fn is_ignored(signal: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (signal - 1)) != 0
}

/// Started by `nohup`, it outlives its terminal.
#[test]
fn an_ignored_hangup_stays_ignored() {
    let stack = Stack::new(Mode::Embedded);
    let dir = process::temp_dir();
    let script = dir.path().join("flashsale");
    let text = format!("#!/bin/sh\ntrap '' HUP\nexec {}\n", env!("CARGO_BIN_EXE_flashsale"));
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut app = builder(&stack).env("DRAIN_SECONDS", 300).binary(&script).start();
    process::signal(app.pid(), Signal::HUP);
    process::signal(app.pid(), Signal::HUP);
    // The next signal is heard as the first one.
    process::signal(app.pid(), Signal::INT);
    app.says("SIGINT: stopping", NOTICED);
    assert!(!app.stderr().contains("SIGHUP"), "{}", app.stderr());
    app.kill();
}

/// What became of a connection: `None` if it was refused, and otherwise whether it was answered.
fn knock(app: &App, request: &[u8]) -> Option<Result<(), String>> {
    let mut stream = match TcpStream::connect(app.addr()) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => return None,
        other => other.unwrap(),
    };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = Vec::new();
    let told = stream.write_all(request).and_then(|()| stream.read_to_end(&mut answer));
    if answer.starts_with(b"HTTP/1.1 2") { Some(Ok(())) } else { Some(Err(format!("{told:?} {answer:?}"))) }
}

/// Each connection that the kernel has completed is answered.
#[test]
fn no_connection_is_reset() {
    let stack = Stack::alone(Mode::Embedded);
    for round in 0..10 {
        let mut app = builder(&stack).env("SALE_ITEMS", 1_000_000).start();
        let served = AtomicUsize::new(0);
        let request = format!("POST /checkout?user_id=u{round}&id=i HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let lost: Vec<String> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        let mut lost = Vec::new();
                        while let Some(told) = knock(&app, request.as_bytes()) {
                            served.fetch_add(1, Ordering::Relaxed);
                            lost.extend(told.err());
                        }
                        lost
                    })
                })
                .collect();
            poll("a server at work", Duration::from_secs(30), || (served.load(Ordering::Relaxed) > 500).then_some(()));
            process::signal(app.pid(), Signal::TERM);
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        assert!(lost.is_empty(), "round {round}: {} of {served:?} were let in and not answered: {lost:?}", lost.len());
        assert_eq!(app.terminate(), 0, "{}", app.stderr());
    }
}
