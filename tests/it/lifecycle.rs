//! How an instance ends and comes back: what was answered stays true.

use crate::support::app::{App, Failure};
use crate::support::audit::{self, Terms};
use crate::support::clock;
use crate::support::history::{History, Shopper, Told, load};
use crate::support::http::Client;
use crate::support::process::{self, poll};
use crate::support::servers::{Mode, Stack};
use rustix::process::Signal;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

crate::on_stacks! {
    distributed: sigterm_under_load, sigint_under_load, idle_end, codes_outlive_a_restart;
    embedded: sigterm_under_load, sigint_under_load, idle_end, codes_outlive_a_restart
}

fn sigterm_under_load(mode: Mode) {
    end_under_load(mode, |app| app.terminate());
}

fn sigint_under_load(mode: Mode) {
    end_under_load(mode, |app| app.interrupt());
}

fn end_under_load(mode: Mode, end: impl FnOnce(&mut App) -> i32) {
    let stack = Stack::alone(mode);
    let sale_seconds = clock::quiet_sale_seconds();
    let terms = Terms { items: 1_000_000, user_limit: 1_000_000, sale_seconds, hold_seconds: 3600 };
    let builder = stack
        .app()
        .env("SALE_ITEMS", terms.items)
        .env("USER_LIMIT", terms.user_limit)
        .env("SALE_SECONDS", sale_seconds)
        .env("HOLD_SECONDS", terms.hold_seconds);
    let mut app = builder.start();
    let history = History::default();
    let addr = app.addr();
    let step = |shopper: &mut Shopper<'_>| {
        // Each request has a name of its own, so that a row can be told from another's.
        let user = format!("u{}-{}", shopper.number, shopper.round);
        if let Told::Granted(code) = shopper.checkout(&user, "i") {
            shopper.purchase(&code);
        }
        true
    };
    load(&[addr], 16, &history, step, |stop| {
        poll("a server at work", Duration::from_secs(30), || (history.granted() > 3000).then_some(()));
        let begun = Instant::now();
        let code = end(&mut app);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(code, 0, "{}", app.stderr());
        assert!(begun.elapsed() < Duration::from_secs(10));
    });
    let refused = history.words().into_iter().find(|word| !word.starts_with("lost: "));
    assert_eq!(refused, None, "whoever is refused at the end is told 503, or nothing");
    audit::check(&history, &stack.ledger(), &terms);
}

fn idle_end(mode: Mode) {
    let stack = Stack::new(mode);
    let mut app = stack.app().start();
    // An open connection, even one with half a request on it, does not keep a server from ending.
    let mut idle = app.client();
    assert_eq!(idle.get("/").status, 404);
    let mut half = app.client();
    half.send(b"GET / HTTP/1.1\r\n").unwrap();
    assert_eq!(app.terminate(), 0, "{}", app.stderr());
    assert!(!app.stderr().contains("panicked"), "{}", app.stderr());
    // The keeper waits for the writer's last records, and the writer ends as soon as it has nothing to write.
    assert!(!app.stderr().contains("writer has not ended"), "{}", app.stderr());
}

fn codes_outlive_a_restart(mode: Mode) {
    let stack = Stack::new(mode);
    let builder = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("SALE_ITEMS", 3);
    let mut app = builder.env("HOLD_SECONDS", 3600).start();
    let mut client = app.client();
    let (held, bought) = (client.code("u", "i"), client.code("v", "j"));
    assert_eq!(client.purchase(&bought).status, 200);
    app.restart();
    let mut client = app.client();
    assert_eq!(client.purchase(&bought).error(), "already_purchased");
    assert_eq!(client.purchase(&held).field("item_id"), "i");
    let third = client.code("w", "k");
    assert!(third != held && third != bought);
    assert_eq!(client.checkout("x", "k").error(), "sold_out", "the stock is as it was");
}

/// Postgres is away at the end: the process says how many records it leaves, and the next one writes them.
#[test]
fn what_the_end_leaves_is_reconciled() {
    let mut stack = Stack::new(Mode::Distributed);
    let builder = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("HOLD_SECONDS", 3600);
    let mut app = builder.start();
    stack.postgres().stop_immediate();
    let mut client = app.client();
    let codes: Vec<String> = (0..7).map(|n| client.code(&format!("u{n}"), "i")).collect();
    assert_eq!(client.purchase(&codes[0]).status, 200);
    let begun = Instant::now();
    assert_eq!(app.terminate(), 1, "{}", app.stderr());
    assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
    assert!(app.stderr().contains("8 records are not in the ledger"), "{}", app.stderr());

    stack.postgres().start_again();
    let app = builder.start();
    let ledger = stack.ledger();
    poll("the records of the one before", Duration::from_secs(30), || {
        let rows = ledger.rows();
        (rows.attempts.len() == 7 && rows.purchases.len() == 1).then_some(())
    });
    let mut client = app.client();
    assert_eq!(client.purchase(&codes[0]).error(), "already_purchased");
    assert_eq!(client.purchase(&codes[1]).status, 200);
}

/// A request that comes late, on a connection that is still open, is refused, and its client may send it again.
#[test]
fn nothing_is_decided_at_the_end() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    // A record that cannot be written keeps the process from ending at once.
    stack.postgres().stop_immediate();
    assert_eq!(app.client().checkout("u", "i").status, 200);
    let mut late: Vec<Client> = (0..100).map(|_| app.client()).collect();
    let [first, last] = ["POST /checkout?user_id=late&id=i HTTP/1.1\r\n", "Host: h\r\n\r\n"];
    late.iter_mut().for_each(|client| client.send(first.as_bytes()).unwrap());
    // The kernel may have them before the server does: it takes in what has come until this answer.
    assert_eq!(app.client().get("/").status, 404);
    process::signal(app.pid(), Signal::TERM);
    let mut before = 0;
    let answer = poll("a refusal", Duration::from_secs(9), || {
        let mut client = late.pop().expect("another connection");
        // One whose first half had not been read by then was idle, and is closed.
        let answer = client.send(last.as_bytes()).and_then(|()| client.receive()).ok()?;
        std::thread::sleep(Duration::from_millis(90));
        before += u32::from(answer.status == 200 || answer.status == 429);
        (answer.status != 200 && answer.status != 429).then_some(answer)
    });
    assert_eq!((answer.status, answer.error().as_str()), (503, "unavailable"));
    assert!(answer.retry_after() >= 1 && before > 0, "{before} were decided before");
    assert_eq!(answer.header("connection"), Some("close"));
}

/// Nothing is sold yet, so there is nothing to be finished: a signal ends the process at once.
#[test]
fn a_signal_while_starting() {
    let check = |ended: Failure, name: &str| {
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert!(ended.elapsed < Duration::from_secs(1), "{:?}", ended.elapsed);
        let last = ended.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(name) && last.contains("while starting"), "{}", ended.stderr);
    };
    let dir = process::temp_dir();
    let catalog = dir.path().join("catalog");
    rustix::fs::mkfifoat(rustix::fs::CWD, &catalog, rustix::fs::Mode::RWXU).unwrap();
    let mut writer: Option<File> = None;
    let reads = || {
        // A pipe can be opened like this as soon as another process reads from it.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().try_into().unwrap();
        writer = Some(poll("a reader of the catalogue", Duration::from_secs(10), || {
            File::options().write(true).custom_flags(flags).open(&catalog).ok()
        }));
    };
    let app = App::builder().env("CATALOG_FILE", catalog.display());
    check(app.signal_while_starting(Signal::TERM, reads), "SIGTERM");

    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let dsn = format!("host=127.0.0.1 port={} user=u dbname=d", silent.local_addr().unwrap().port());
    let port = process::free_port();
    let app = App::builder().env("REDIS_ADDR", silent.local_addr().unwrap()).env("POSTGRES_DSN", dsn);
    let mut asked = None;
    let asks = || {
        asked = silent.accept().ok();
        assert!(!process::listens(port), "nobody is let in before he can be served");
    };
    check(app.env("SERVER_PORT", port).signal_while_starting(Signal::INT, asks), "SIGINT");
}

#[test]
fn the_first_lines_addresses_can_be_used() {
    let stack = Stack::new(Mode::Embedded);
    if TcpListener::bind(("::1", 0)).is_err() {
        eprintln!("not tested: there is no IPv6 here");
        return;
    }
    let app = stack.app().env("BIND_ADDR", "::").env("ADMIN_ADDR", "127.0.0.1:0").start();
    let said = poll("the first line", Duration::from_secs(5), || {
        app.stderr().lines().find(|line| line.contains("selling on")).map(str::to_owned)
    });
    assert!(said.contains(&format!("'http://[::1]:{}/checkout", app.addr().port())), "{said}");
    let admin = said.split("metrics on ").nth(1).unwrap().split(": ").next().unwrap();
    assert_eq!(Client::new(admin.parse().unwrap()).get("/health").status, 200, "{said}");
}
