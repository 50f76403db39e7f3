//! The audit itself: each kind of violation is found, and nothing else.

use super::audit::{Terms, violations};
use super::history::{Checkout, History, Redeemed, Told, load};
use super::ledger::{Attempt, Ledger, Purchase, Rows};
use super::servers::{Mode, Stack};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};

const TERMS: Terms = Terms { items: 3, user_limit: 2, sale_seconds: 100, hold_seconds: 10 };

fn told(user: &str, told: Told) -> Checkout {
    Checkout { user: user.into(), item: "i".into(), told, expires_at: 0 }
}

fn got(user: &str, code: &str) -> Checkout {
    told(user, Told::Granted(code.into()))
}

fn lost() -> Told {
    Told::Lost("cut".into())
}

fn row(user: &str, code: &str, at_ms: u64, used: bool) -> Attempt {
    Attempt { code: code.into(), user: user.into(), item: "i".into(), sale: 1000, at_ms, used }
}

fn bought(user: &str, code: &str, at_ms: u64) -> Purchase {
    Purchase { code: code.into(), user: user.into(), item: "i".into(), sale: 1000, at_ms }
}

fn redeemed(code: &str, told: Told) -> Redeemed {
    Redeemed { code: code.into(), told, at: 0.0 }
}

const T: u64 = 1_000_000;

#[test]
fn violations_of_checkouts() {
    let check = |checkouts: &[Checkout], attempts: &[Attempt], want: &[&str]| {
        let rows = Rows { attempts: attempts.to_vec(), purchases: vec![] };
        let found = violations(checkouts, &[], &rows, &TERMS);
        assert_eq!(found.len(), want.len(), "{found:?}");
        want.iter().for_each(|w| assert!(found.iter().any(|f| f.contains(w)), "{w} in {found:?}"));
    };
    check(&[], &[], &[]);
    check(&[got("u", "a")], &[row("u", "a", T, false)], &[]);
    check(&[got("u", "a")], &[], &["no row"]);
    check(&[got("u", "a")], &[row("v", "a", T, false)], &["does not say"]);
    check(&[], &[row("u", "a", T, false)], &["nobody asked"]);
    check(&[told("u", lost())], &[row("u", "a", T, false)], &[]);
    check(&[told("u", lost())], &[], &[]);
    check(&[told("u", lost())], &[row("u", "a", T, false), row("u", "b", T, false)], &["nobody asked"]);
    check(&[told("u", Told::Refused(409, "sold_out".into()))], &[row("u", "a", T, false)], &["nobody asked"]);
    check(&[got("u", "a"), got("u", "a")], &[row("u", "a", T, false)], &["given twice"]);
    check(&[got("u", "a")], &[row("u", "a", T, false), row("u", "a", T, false)], &["two rows"]);
    check(&[got("u", "a")], &[row("u", "a", T - 1, false)], &["not of its sale"]);
    check(&[got("u", "a")], &[row("u", "a", T + 100_000, false)], &["not of its sale"]);
    check(&[got("u", "a")], &[row("u", "a", T, true)], &["used"]);
}

#[test]
fn violations_of_purchases() {
    let check = |purchases: &[Redeemed], used: bool, rows: &[Purchase], want: &[&str]| {
        let rows = Rows { attempts: vec![row("u", "a", T, used)], purchases: rows.to_vec() };
        let found = violations(&[got("u", "a")], purchases, &rows, &TERMS);
        assert_eq!(found.len(), want.len(), "{found:?}");
        want.iter().for_each(|w| assert!(found.iter().any(|f| f.contains(w)), "{w} in {found:?}"));
    };
    let granted = redeemed("a", Told::Granted("i".into()));
    let already = redeemed("a", Told::Already("i".into()));
    let one = [bought("u", "a", T + 1)];
    check(std::slice::from_ref(&granted), true, &one, &[]);
    check(&[granted.clone(), already.clone()], true, &one, &[]);
    check(&[granted.clone(), granted.clone()], true, &one, &["redeemed twice"]);
    check(std::slice::from_ref(&granted), false, &[], &["no row"]);
    check(std::slice::from_ref(&already), false, &[], &["no row"]);
    check(&[redeemed("a", Told::Already("j".into()))], true, &one, &["does not say"]);
    check(&[redeemed("a", lost())], true, &one, &[]);
    check(&[redeemed("a", lost())], false, &[], &[]);
    check(&[], true, &one, &["nobody asked"]);
    check(std::slice::from_ref(&granted), false, &one, &["used"]);
    check(std::slice::from_ref(&granted), true, &[bought("v", "a", T + 1)], &["differ"]);
    check(std::slice::from_ref(&granted), true, &[bought("u", "a", T + 10_000)], &["outside the hold"]);
    check(&[granted, redeemed("b", lost())], true, &[bought("u", "a", T), bought("u", "b", T)], &["no checkout"]);
}

#[test]
fn violations_of_limits() {
    let check = |taken: &[(&str, u64)], want: &[&str]| {
        let code = |at: usize| format!("c{at}");
        let rows = taken.iter().enumerate().map(|(at, (user, ms))| row(user, &code(at), T + ms, false));
        let checkouts: Vec<_> = taken.iter().enumerate().map(|(at, (user, _))| got(user, &code(at))).collect();
        let rows = Rows { attempts: rows.collect(), purchases: vec![] };
        let found = violations(&checkouts, &[], &rows, &TERMS);
        assert_eq!(found.len(), want.len(), "{found:?}");
        want.iter().for_each(|w| assert!(found.iter().any(|f| f.contains(w)), "{w} in {found:?}"));
    };
    check(&[("u", 0), ("u", 0), ("v", 0)], &[]);
    check(&[("u", 0), ("u", 1), ("u", 2)], &["u had more"]);
    check(&[("u", 0), ("u", 1), ("u", 10_000)], &[]);
    check(&[("u", 0), ("u", 1), ("u", 9_999)], &["u had more"]);
    check(&[("u", 0), ("v", 0), ("w", 0), ("x", 9_999)], &["4 of 3"]);
    check(&[("u", 0), ("v", 0), ("w", 0), ("x", 10_000)], &[]);
}

#[test]
fn load_stops_and_loses_nothing() {
    // No socket accepts: every request is lost, and is written down as such.
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let (history, rounds) = (History::default(), AtomicU64::new(0));
    let step = |shopper: &mut super::history::Shopper<'_>| {
        shopper.checkout("u", "i");
        shopper.purchase("c");
        if rounds.fetch_add(1, Ordering::Relaxed) >= 20 {
            shopper.stop_all();
        }
        shopper.round < 1000
    };
    load(&[closed], 4, &history, step, |_| {});
    assert_eq!(history.checkouts().len() as u64, rounds.load(Ordering::Relaxed));
    assert_eq!(history.checkouts().len(), history.purchases().len());
    assert!(history.words().iter().all(|word| word.starts_with("lost: ")));
    assert_eq!((history.granted(), history.codes().len()), (0, 0));
}

#[test]
fn rows_are_read_from_both_ledgers() {
    let mut stack = Stack::new(Mode::Distributed);
    let made = "CREATE TABLE purchases AS SELECT 'ab' AS code, 'u' AS user_id, CAST(1000 AS bigint) AS sale_id, \
                'i' AS item_id, ";
    let sql = format!("{made} timestamptz 'epoch' + interval '1000.123 s' AS created_at; ");
    let sql = format!("{sql} CREATE TABLE checkout_attempts AS SELECT *, true AS used FROM purchases");
    stack.postgres().client().batch_execute(&sql).unwrap();
    let dir = super::process::temp_dir();
    let embedded = Ledger::Sqlite(dir.path().join("ledger.db"));
    let db = rusqlite::Connection::open(dir.path().join("ledger.db")).unwrap();
    for time in ["'1970-01-01T00:16:40.123Z'", "1000.123"] {
        let sql = format!("{made} {time} AS created_at;");
        let sql = format!("{sql} CREATE TABLE checkout_attempts AS SELECT *, true AS used FROM purchases;");
        db.execute_batch(&format!("DROP TABLE IF EXISTS purchases; DROP TABLE IF EXISTS checkout_attempts; {sql}"))
            .unwrap();
        for ledger in [stack.ledger(), embedded.clone()] {
            let rows = ledger.rows();
            let (user, code, at_ms) = ("u".to_owned(), "ab".to_owned(), 1_000_123);
            let item = "i".to_owned();
            let purchase = Purchase { code, user, item, sale: 1000, at_ms };
            assert_eq!(rows.purchases, std::slice::from_ref(&purchase), "{ledger:?}");
            let Purchase { code, user, item, .. } = purchase;
            assert_eq!(rows.attempts, [Attempt { code, user, item, sale: 1000, at_ms, used: true }], "{ledger:?}");
        }
    }
}
