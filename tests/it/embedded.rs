//! The embedded mode: what was answered is on the disk, whatever becomes of the process or the disk.

use crate::support::app::{App, Builder};
use crate::support::audit::{self, Terms};
use crate::support::clock;
use crate::support::history::{Checkout, History, Shopper, Told, load};
use crate::support::http::Client;
use crate::support::process::{self, poll};
use crate::support::servers::{Mode, Stack};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the log may take to say what has happened.
const LOGGED: Duration = Duration::from_secs(5);

fn builder(base: Builder, terms: &Terms) -> Builder {
    base.env("SALE_ITEMS", terms.items)
        .env("USER_LIMIT", terms.user_limit)
        .env("SALE_SECONDS", terms.sale_seconds)
        .env("HOLD_SECONDS", terms.hold_seconds)
}

/// Checks out under a name of its own each time, and redeems every second code.
fn shop(shopper: &mut Shopper<'_>, name: &str) {
    let user = format!("{name}-{}-{}", shopper.number, shopper.round);
    if let Told::Granted(code) = shopper.checkout(&user, "i")
        && shopper.round.is_multiple_of(2)
    {
        shopper.purchase(&code);
    }
}

/// The codes that were granted, the redeemed ones first, and those of which nothing else is known.
fn codes(history: &History) -> (Vec<String>, Vec<Checkout>) {
    let purchases = history.purchases();
    let asked: HashSet<&str> = purchases.iter().map(|p| p.code.as_str()).collect();
    let used = purchases.iter().filter(|p| matches!(p.told, Told::Granted(_))).map(|p| p.code.clone()).collect();
    let mut unused = history.checkouts();
    unused.retain(|c| matches!(&c.told, Told::Granted(code) if !asked.contains(code.as_str())));
    (used, unused)
}

#[test]
fn killed_ten_times_under_load() {
    let stack = Stack::alone(Mode::Embedded);
    // The stock is gone before the last kill.
    let sale_seconds = clock::quiet_sale_seconds();
    let terms = Terms { items: 8_000, user_limit: 10, sale_seconds, hold_seconds: 3600 };
    let builder = builder(stack.app(), &terms);
    let history = History::default();
    for kill in 0..10 {
        let mut app = builder.start();
        let (granted, asked) = (history.granted(), history.checkouts().len());
        let step = |shopper: &mut Shopper<'_>| {
            shop(shopper, &format!("u{kill}"));
            true
        };
        load(&[app.addr()], 16, &history, step, |stop| {
            poll("a server at work", Duration::from_secs(30), || {
                let sold_out = || history.checkouts().len() > asked + 5_000;
                (history.granted() >= granted + 1_500 || sold_out()).then_some(())
            });
            app.kill();
            stop.store(true, Ordering::Relaxed);
        });
        let rows = audit::check(&history, &stack.ledger(), &terms);
        assert!(rows.attempts.len() as u64 <= terms.items);
    }
    let app = builder.start();
    let mut client = app.client();
    let (used, unused) = codes(&history);
    assert!(used.len() > 500 && unused.len() > 500, "{} {}", used.len(), unused.len());
    for code in used.iter().step_by(used.len() / 100) {
        assert_eq!(client.purchase(code).error(), "already_purchased");
    }
    for held in unused.iter().step_by(unused.len() / 100) {
        let Told::Granted(code) = &held.told else { continue };
        assert_eq!(client.purchase(code).status, 200, "{held:?}");
        assert_eq!(client.purchase(code).error(), "already_purchased");
    }
    // What is left is sold, and not one more.
    while client.checkout(&format!("last-{}", fastrand::u64(..)), "i").status == 200 {}
    assert_eq!(stack.ledger().rows().attempts.len() as u64, terms.items);
}

#[test]
fn holds_keep_their_expiry() {
    let stack = Stack::new(Mode::Embedded);
    let terms = Terms { items: 2, user_limit: 5, sale_seconds: clock::quiet_sale_seconds(), hold_seconds: 5 };
    let builder = builder(stack.app(), &terms);
    let mut app = builder.start();
    let (one, two) = (app.client().code("u", "one"), app.client().code("u", "two"));
    let taken = clock::now();
    app.kill();
    let app = builder.start();
    let mut client = app.client();
    assert_eq!(client.purchase(&one).field("item_id"), "one");
    let refused = client.checkout("v", "i");
    assert_eq!(refused.error(), "sold_out");
    assert!(refused.retry_after() as f64 <= (taken + 5.0 - clock::now()).max(0.0) + 1.1, "{refused:?}");
    let again = poll("the other hold's end", Duration::from_secs(8), || {
        let answer = client.checkout("v", "i");
        (answer.status == 200).then_some(answer)
    });
    assert!(clock::now() >= taken + 4.0, "the hold got its time: {}", again.text());
    assert_eq!(client.purchase(&two).error(), "invalid_code");
}

#[test]
fn one_process_to_a_folder() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().start();
    let failure = stack.app().run_to_failure();
    assert!(failure.code > 0, "{}", failure.stderr);
    let last = failure.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("DATA_DIR") && last.contains("another flashsale"), "{}", failure.stderr);
    assert_eq!(app.client().checkout("u", "i").status, 200, "the first one goes on");
}

#[test]
fn folders_that_cannot_be_used() {
    let dir = process::temp_dir();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let check = |path: &Path| {
        let failure = App::builder().env("DATA_DIR", path.display()).run_to_failure();
        assert!(failure.code > 0 && failure.code != 101, "{}", failure.stderr);
        let last = failure.stderr.lines().last().unwrap_or_default();
        assert!(last.contains("DATA_DIR") && last.contains(path.to_str().unwrap()), "{}", failure.stderr);
    };
    check(&file);
    check(&file.join("below"));
    if let Some(disk) = SmallDisk::mount("1m") {
        // Root may write anywhere, except on a file system that is read-only.
        run("mount", &["-o", "remount,ro", disk.path().to_str().unwrap()]).expect("remount");
        check(&disk.path().join("data"));
    }
}

/// A file system of its own, in memory.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, with a message, where this process may not mount anything.
    fn mount(size: &str) -> Option<SmallDisk> {
        let dir = process::temp_dir();
        let options = format!("size={size},mode=0777");
        match run("mount", &["-t", "tmpfs", "-o", &options, "flashsale-test", dir.path().to_str().unwrap()]) {
            Ok(()) => Some(SmallDisk(dir)),
            Err(why) => {
                eprintln!("not tested: a small disk cannot be mounted here: {why}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("filler")).expect("make the filler");
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("remove the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: on a panic, the server may still have its files open.
        let _ = run("umount", &["-l", self.path().to_str().unwrap_or_default()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// Asks one by one until nothing is granted any more: a batch of one finds room where a large one did not.
fn use_up_the_room(app: &App, history: &History) {
    let (_, unused) = codes(history);
    let refused = AtomicUsize::new(0);
    let one = |shopper: &mut Shopper<'_>| {
        let round = usize::try_from(shopper.round).unwrap();
        let Some(Checkout { told: Told::Granted(code), .. }) = unused.get(round) else {
            panic!("granted for ever: {:?}", history.words().last());
        };
        let told = [shopper.purchase(code), shopper.checkout(&format!("one-{round}"), "i")];
        if told.iter().all(|told| matches!(told, Told::Lost(_))) {
            refused.fetch_add(1, Ordering::Relaxed);
        } else {
            refused.store(0, Ordering::Relaxed);
        }
        refused.load(Ordering::Relaxed) < 20
    };
    load(&[app.addr()], 1, history, one, |_| {});
}

/// The status of `/health`, and whether the metrics say that the ledger refuses.
fn health(app: &App) -> (u16, String) {
    let mut operator = Client::new(app.admin_addr());
    let metrics = operator.get("/metrics").text();
    let refusing = metrics.lines().find_map(|line| line.strip_prefix("flashsale_ledger_refusing "));
    (operator.get("/health").status, refusing.unwrap_or("nothing").to_owned())
}

#[test]
fn a_full_disk() {
    let Some(disk) = SmallDisk::mount("24m") else { return };
    let stack = Stack::alone(Mode::Embedded);
    let sale_seconds = clock::quiet_sale_seconds();
    let terms = Terms { items: 1_000_000, user_limit: 10, sale_seconds, hold_seconds: 3600 };
    let data = disk.path().join("data");
    let app = builder(stack.app(), &terms).env("DATA_DIR", data.display()).start();
    let ledger = crate::support::ledger::Ledger::Sqlite(data.join("ledger.db"));
    let history = History::default();
    assert_eq!(health(&app), (200, "0".into()));
    let (before, used) = (app.client().code("before", "i"), app.client().code("used", "i"));
    assert_eq!(app.client().purchase(&used).status, 200);
    let step = |shopper: &mut Shopper<'_>| {
        shop(shopper, "u");
        true
    };
    let refused = || history.words().iter().filter(|word| *word == "lost: 503 unavailable").count();
    load(&[app.addr()], 16, &history, step, |stop| {
        poll("a server at work", Duration::from_secs(30), || (history.granted() > 2_000).then_some(()));
        disk.fill();
        // What SQLite has room for inside its files it still writes.
        poll("refusals", Duration::from_secs(60), || (refused() > 2_000).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    use_up_the_room(&app, &history);
    let mut client = app.client();
    let answer = client.checkout("full", "i");
    assert_eq!((answer.status, answer.error().as_str()), (503, "unavailable"));
    assert!(answer.retry_after() >= 1);
    assert_eq!(client.purchase(&before).status, 503);
    assert_eq!(client.purchase(&before).status, 503, "it was not redeemed");
    assert_eq!(client.purchase(&used).error(), "already_purchased", "it is on the disk");
    app.says("the ledger does not take records", LOGGED);
    assert!(app.stderr().contains("full"), "{}", app.stderr());

    poll("an unhealthy server", Duration::from_secs(5), || (health(&app) == (503, "1".into())).then_some(()));
    // It looks for room by itself, once a second, and is not taken in by the little that is left.
    let full = Instant::now();
    while full.elapsed() < Duration::from_millis(2_500) {
        assert_eq!(health(&app), (503, "1".into()));
    }

    disk.make_room();
    // By itself: a load balancer that looks at its health sends no shoppers meanwhile.
    poll("a healthy server", Duration::from_secs(20), || (health(&app) == (200, "0".into())).then_some(()));
    assert_eq!(client.checkout("after", "i").status, 200);
    app.says("the ledger takes records again", LOGGED);
    assert_eq!(client.purchase(&before).status, 200);
    let granted = history.granted();
    let last = |shopper: &mut Shopper<'_>| {
        shop(shopper, "late");
        shopper.round < 30
    };
    load(&[app.addr()], 16, &history, last, |_| {});
    assert!(history.granted() > granted + 400, "{granted} {}", history.granted());
    // Besides the load, six requests of this test's own client were written.
    let (mut checkouts, mut purchases) = (history.checkouts(), history.purchases());
    let rows = ledger.rows();
    for row in rows.attempts.iter().filter(|row| ["before", "used", "after"].contains(&row.user.as_str())) {
        let (user, item, told) = (row.user.clone(), row.item.clone(), Told::Granted(row.code.clone()));
        checkouts.push(Checkout { user, item, told, expires_at: 0 });
    }
    for code in [before, used] {
        purchases.push(crate::support::history::Redeemed { code, told: Told::Granted("i".into()), at: 0.0 });
    }
    // Nothing that was refused came back: it was undone, and is not on the disk.
    assert_eq!(audit::violations(&checkouts, &purchases, &rows, &terms), Vec::<String>::new());
    let written: HashSet<&str> = rows.attempts.iter().map(|row| row.user.as_str()).collect();
    let lost = checkouts.iter().find(|c| matches!(c.told, Told::Lost(_)) && written.contains(c.user.as_str()));
    assert!(lost.is_none(), "{lost:?}");
    let said = app.last_words();
    for line in ["the ledger does not take records", "the ledger takes records again"] {
        assert_eq!(said.matches(line).count(), 1, "{said}");
    }
}

#[test]
fn a_size_limit() {
    let stack = Stack::new(Mode::Embedded);
    let terms =
        Terms { items: 1_000_000, user_limit: 10, sale_seconds: clock::quiet_sale_seconds(), hold_seconds: 3600 };
    let app = builder(stack.app(), &terms).start();
    let limit = |current: Option<u64>| {
        let pid = Pid::from_raw(app.pid().try_into().unwrap());
        prlimit(pid, Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    };
    limit(Some(400_000));
    let history = History::default();
    let refused = || history.words().iter().filter(|word| *word == "lost: 503 unavailable").count();
    let step = |shopper: &mut Shopper<'_>| {
        shop(shopper, "u");
        true
    };
    load(&[app.addr()], 8, &history, step, |stop| {
        poll("refusals", Duration::from_secs(60), || (refused() > 500).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    app.says("the ledger does not take records", LOGGED);
    limit(None);
    poll("a server that goes on", Duration::from_secs(20), || {
        (app.client().checkout("after", "i").status == 200).then_some(())
    });
    let written: HashSet<String> = stack.ledger().rows().attempts.into_iter().map(|row| row.code).collect();
    assert!(history.codes().iter().all(|code| written.contains(code)), "what was granted is on the disk");
}

#[test]
fn a_folder_that_is_removed_under_it() {
    let stack = Stack::new(Mode::Embedded);
    let data = process::temp_dir();
    let folder = data.path().join("data");
    let app = stack.app().env("DATA_DIR", folder.display()).env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    assert_eq!(app.client().checkout("u", "i").status, 200);
    let moved = data.path().join("moved");
    std::fs::rename(&folder, &moved).unwrap();
    assert_eq!(app.client().checkout("u", "i").status, 503, "nobody would find it");
    app.says("removed or replaced", LOGGED);
    std::fs::rename(&moved, &folder).unwrap();
    poll("a server that goes on", Duration::from_secs(10), || {
        (app.client().checkout("u", "i").status == 200).then_some(())
    });
}

#[test]
fn a_clock_that_was_ahead() {
    let stack = Stack::new(Mode::Embedded);
    let data = process::temp_dir();
    let length = clock::quiet_sale_seconds();
    let builder = || stack.app().env("DATA_DIR", data.path().display()).env("SALE_SECONDS", length);
    assert_eq!(builder().start().terminate(), 0);
    // As if it had been days later then.
    let ledger = rusqlite::Connection::open(data.path().join("ledger.db")).unwrap();
    let later =
        "UPDATE sales SET sale_id = sale_id + ?1, starts_at = starts_at + 1000 * ?1, ends_at = ends_at + 1000 * ?1";
    assert_eq!(ledger.execute(later, [24 * length.cast_signed()]).unwrap(), 3);
    drop(ledger);
    let app = builder().start();
    assert_eq!(app.client().checkout("u", "i").status, 200, "{}", app.stderr());
}

#[test]
fn changed_settings_apply_to_sales_that_have_not_begun() {
    let data = process::temp_dir();
    let old = Terms { items: 5, user_limit: 2, sale_seconds: clock::quiet_sale_seconds(), hold_seconds: 300 };
    let base = || App::builder().env("DATA_DIR", data.path().display());
    let mut app = builder(base(), &old).start();
    assert_eq!(app.terminate(), 0);
    let new = Terms { items: 50, hold_seconds: 60, ..old };
    let mut app = builder(base(), &new).start();
    app.says("items 5 → 50, hold time 300000 → 60000 ms", LOGGED);
    assert_eq!(app.terminate(), 0);
    let ledger = rusqlite::Connection::open(data.path().join("ledger.db")).unwrap();
    let mut rows = ledger.prepare("SELECT items, user_limit, hold_ms FROM sales ORDER BY sale_id").unwrap();
    let rows: Vec<[i64; 3]> =
        rows.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?])).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows, [[5, 2, 300_000], [50, 2, 60_000], [50, 2, 60_000]], "what has begun keeps its terms");
}
