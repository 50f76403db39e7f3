//! The embedded ledger's files beside other programs: readers take nothing away, and files that were removed or
//! replaced are noticed.

use crate::support::app::{App, Builder};
use crate::support::audit::{self, Terms};
use crate::support::clock;
use crate::support::history::{History, Shopper, Told, load};
use crate::support::http::Client;
use crate::support::ledger::Ledger;
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use rustix::process::Signal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

fn path(stack: &Stack) -> PathBuf {
    match stack.ledger() {
        Ledger::Sqlite(path) => path,
        Ledger::Postgres(_) => panic!("an embedded stack"),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn terms() -> Terms {
    Terms { items: 1_000_000, user_limit: 10, sale_seconds: clock::quiet_sale_seconds(), hold_seconds: 3600 }
}

fn builder(stack: &Stack, terms: &Terms) -> Builder {
    let app = stack.app().env("SALE_ITEMS", terms.items).env("USER_LIMIT", terms.user_limit);
    app.env("SALE_SECONDS", terms.sale_seconds).env("HOLD_SECONDS", terms.hold_seconds)
}

/// Reads the ledger with another process, as an operator does.
fn look(path: &Path, read_only: bool) {
    let mut shell = Command::new("sqlite3");
    if read_only {
        shell.arg("-readonly");
    }
    // Under load a reader may find the file busy for a moment.
    shell.args(["-cmd", ".timeout 5000"]).arg(path).arg("SELECT count(*) FROM purchases");
    let output = shell.output().expect("run sqlite3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What one shopper does: a checkout, and the purchase of every second code.
fn shop(shopper: &mut Shopper<'_>) -> bool {
    let user = format!("u{}-{}-{}", fastrand::u64(..), shopper.number, shopper.round);
    if let Told::Granted(code) = shopper.checkout(&user, "i")
        && shopper.round.is_multiple_of(2)
    {
        shopper.purchase(&code);
    }
    true
}

/// Sells until `more` further requests are granted; `meanwhile` runs half-way.
fn sell(app: &App, history: &History, more: u64, meanwhile: impl FnOnce()) {
    let until = history.granted() + more;
    load(&[app.addr()], 8, history, shop, |stop| {
        let sold = |count: u64| move || (history.granted() >= count).then_some(());
        poll("half of the load", Duration::from_secs(60), sold(until - more / 2));
        meanwhile();
        poll("the load", Duration::from_secs(60), sold(until));
        stop.store(true, Ordering::Relaxed);
    });
}

/// One life of the server with readers before, during and after the load; then it ends and everything is there.
fn life(stack: &Stack, terms: &Terms, history: &History, read_only: bool, end: Signal) {
    let path = path(stack);
    let mut app = builder(stack, terms).start();
    look(&path, read_only);
    sell(&app, history, 100, || look(&path, read_only));
    look(&path, read_only);
    sell(&app, history, 50, || {});
    if end == Signal::TERM {
        assert_eq!(app.terminate(), 0, "{}", app.stderr());
    } else {
        app.kill();
    }
    let rows = audit::check(history, &stack.ledger(), terms);
    assert!(!rows.purchases.is_empty());
}

#[test]
fn the_log_names_the_whole_path() {
    let _stack = Stack::new(Mode::Embedded);
    let app = App::builder().env("DATA_DIR", "./some/where").start();
    app.says("embedded, with its ledger in /", SOON);
    let line = app.stderr();
    assert!(line.contains("/some/where.") && !line.contains("/./"), "{line}");
}

#[test]
fn its_locks_are_held_while_it_runs() {
    let stack = Stack::new(Mode::Embedded);
    let app = builder(&stack, &terms()).start();
    let path = path(&stack);
    let held = |path: &Path| {
        let inode = std::fs::metadata(path).unwrap().ino().to_string();
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let ours = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&"POSIX")
                && words.get(4) == Some(&app.pid().to_string().as_str())
                && words.get(5).and_then(|file| file.rsplit(':').next()) == Some(&inode)
        };
        assert!(locks.lines().any(|line| ours(&line)), "no lock on {} (inode {inode}):\n{locks}", path.display());
    };
    let check = || ["", "-shm"].iter().for_each(|suffix| held(&beside(&path, suffix)));
    check();
    let history = History::default();
    sell(&app, &history, 50, check);
    look(&path, false);
    check();
}

#[test]
fn readers_lose_nothing() {
    let stack = Stack::new(Mode::Embedded);
    let (terms, history) = (terms(), History::default());
    for read_only in [false, true] {
        for end in [Signal::KILL, Signal::TERM] {
            life(&stack, &terms, &history, read_only, end);
        }
    }
}

/// `cargo test --test it -- --ignored two_hundred_lives`
#[test]
#[ignore = "takes minutes"]
fn two_hundred_lives_with_readers() {
    let stack = Stack::alone(Mode::Embedded);
    let (terms, history) = (terms(), History::default());
    for round in 0..200 {
        let end = if round % 2 == 0 { Signal::KILL } else { Signal::TERM };
        life(&stack, &terms, &history, round % 4 < 2, end);
    }
    println!("{} granted, all on record", history.granted());
}

/// Removes or replaces a file of the ledger under a server that sells: it stops granting and says why.
fn damaged(suffix: &str, damage: impl FnOnce(&Path)) {
    let stack = Stack::new(Mode::Embedded);
    let (terms, history) = (terms(), History::default());
    let mut app = builder(&stack, &terms).start();
    let file = beside(&path(&stack), suffix);
    sell(&app, &history, 50, || {});
    damage(&file);
    let mut client = app.client();
    let answer = client.checkout("after", "i");
    assert_eq!((answer.status, answer.error().as_str()), (503, "unavailable"), "{}", answer.text());
    app.says("the ledger does not take records", SOON);
    let log = app.stderr();
    assert!(log.contains(&format!("ledger.db{suffix}")) && log.contains("was removed or replaced"), "{log}");
    assert_eq!(client.checkout("after", "i").status, 503);
    // The orderly end puts into the ledger what was only in the file that has no name any more.
    assert_eq!(app.terminate(), 0, "{}", app.stderr());
    let _app = builder(&stack, &terms).start();
    let rows = audit::check(&history, &stack.ledger(), &terms);
    assert!(rows.attempts.iter().all(|row| row.user != "after"));
}

#[test]
fn a_write_ahead_log_that_is_removed_is_noticed() {
    damaged("-wal", |file| std::fs::remove_file(file).unwrap());
}

#[test]
fn a_log_that_is_removed_after_the_last_item_is_sold_loses_nothing() {
    let stack = Stack::new(Mode::Embedded);
    let terms = Terms { items: 4, ..terms() };
    let mut app = builder(&stack, &terms).start();
    let mut client = app.client();
    let mut buy = |user: &str| {
        let code = client.code(user, "i");
        assert_eq!(client.purchase(&code).status, 200);
        code
    };
    let codes = ["a", "b", "c", "d"].map(&mut buy);
    std::fs::remove_file(beside(&path(&stack), "-wal")).unwrap();
    // Nothing is sold any more, so nothing is written: the removal is noticed all the same.
    let health = || Client::new(app.admin_addr()).get("/health").status;
    poll("a health that tells of it", SOON, || (health() == 503).then_some(()));
    let log = app.stderr();
    assert!(log.contains("ledger.db-wal was removed or replaced"), "{log}");
    app.kill();
    let app = builder(&stack, &terms).start();
    for code in codes {
        assert_eq!(app.client().purchase(&code).error(), "already_purchased");
    }
    assert_eq!(app.client().checkout("e", "i").error(), "sold_out");
}

#[test]
fn a_ledger_that_is_replaced_is_noticed() {
    damaged("", |file| {
        let copy = beside(file, ".copy");
        std::fs::copy(file, &copy).unwrap();
        std::fs::rename(&copy, file).unwrap();
    });
}

#[test]
fn shared_memory_that_is_removed_is_noticed() {
    damaged("-shm", |file| std::fs::remove_file(file).unwrap());
}
