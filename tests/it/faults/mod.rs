//! Faults under load: each test does something bad to the servers while shoppers are at it, and the history of all that
//! they were told is checked against the ledger at the end.

mod away;
mod calls;
mod clocks;
mod damaged;
mod foreign;
mod instances;
mod large;
mod limits;
mod loss;
mod maintenance;
mod network;
mod postgres_away;
mod redis_setup;
mod refused;
mod scarce;
mod sessions;
mod unreadable;

use crate::support::app::{App, Builder};
use crate::support::audit::{self, Terms};
use crate::support::clock;
use crate::support::history::{History, Shopper, Told, load};
use crate::support::ledger::{Ledger, Rows};
use crate::support::process::{local, poll};
use crate::support::proxy::Proxy;
use crate::support::servers::Stack;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How soon sales go on after a fault, by themselves.
const GOING_ON: Duration = Duration::from_secs(5);
/// Shoppers at a time.
const SHOPPERS: usize = 6;

/// A day's sale of more than the test sells, with holds that outlast it.
fn plenty() -> Terms {
    Terms { items: 60_000, user_limit: 20, sale_seconds: clock::quiet_sale_seconds(), hold_seconds: 3600 }
}

fn with_terms(app: Builder, terms: &Terms) -> Builder {
    app.env("SALE_ITEMS", terms.items)
        .env("USER_LIMIT", terms.user_limit)
        .env("SALE_SECONDS", terms.sale_seconds)
        .env("HOLD_SECONDS", terms.hold_seconds)
        .env("WORKERS", 2)
}

/// An instance that reaches Postgres through a proxy of its own, and another one that needs none.
fn far_and_near(stack: &mut Stack, terms: &Terms) -> (Proxy, App, App) {
    let postgres = Proxy::to(local(stack.postgres().port()));
    let dsn = stack.postgres().dsn_at(postgres.addr().port());
    let far = with_terms(stack.app().env("POSTGRES_DSN", dsn), terms).start();
    let near = with_terms(stack.app(), terms).start();
    (postgres, far, near)
}

/// A shopper's step: checks out, purchases half of what he gets, and now and then asks twice.
fn shop(shopper: &mut Shopper<'_>) -> bool {
    // Some pace, so that a history stays small and the servers are not the bottleneck.
    std::thread::sleep(Duration::from_millis(3));
    let user = format!("u{}", fastrand::u32(..4000));
    if let Told::Granted(code) = shopper.checkout(&user, &format!("i{}", fastrand::u32(..9)))
        && fastrand::bool()
    {
        shopper.purchase(&code);
        if fastrand::u32(..10) == 0 {
            shopper.purchase(&code);
        }
    }
    true
}

/// The number of the ledger's epoch, and the identity that it was opened on.
fn fence(stack: &mut Stack) -> (i64, String) {
    let row = stack.postgres().client().query_one("SELECT number, identity FROM ledger_fence", &[]).unwrap();
    (row.get(0), row.get(1))
}

/// Waits until `count` more checkouts and purchases are granted; at most the time that sales may take to go on.
fn sells(history: &History, count: u64) -> Duration {
    let (begun, before) = (Instant::now(), history.granted());
    poll("sales that go on", GOING_ON, || (history.granted() >= before + count).then_some(()));
    begun.elapsed()
}

/// One shopper's visit to `addr`, written down.
fn ask<T: Send>(addr: SocketAddr, history: &History, visit: impl Fn(&mut Shopper<'_>) -> T + Sync) -> T {
    let answer = Mutex::new(None);
    let once = |shopper: &mut Shopper<'_>| {
        *answer.lock().unwrap() = Some(visit(shopper));
        false
    };
    load(&[addr], 1, history, once, |_| {});
    answer.into_inner().unwrap().unwrap()
}

/// One checkout at `addr`, and how long its answer took.
fn probe(addr: SocketAddr, history: &History) -> (Told, Duration) {
    let user = format!("probe {}", fastrand::u64(..));
    let begun = Instant::now();
    let told = ask(addr, history, |shopper| shopper.checkout(&user, "probe"));
    (told, begun.elapsed())
}

/// Waits until the instance at `addr` itself sells.
fn sells_at(addr: SocketAddr, history: &History) {
    poll("an instance that sells", GOING_ON, || matches!(probe(addr, history).0, Told::Granted(_)).then_some(()));
}

/// One user's `count` attempts to purchase an item at `addr`.
fn buy(addr: SocketAddr, history: &History, count: usize) {
    ask(addr, history, |shopper| {
        for _ in 0..count {
            if let Told::Granted(code) = decided(|| shopper.checkout("u", "i")).0 {
                decided(|| shopper.purchase(&code));
            }
        }
    });
}

/// Drives shoppers at `apps` while `fault` runs, with sales before and after it; then checks the codes and the whole
/// history.
fn under_load(apps: &[&App], history: &History, ledger: &Ledger, terms: &Terms, fault: impl FnOnce()) -> Rows {
    let addrs: Vec<SocketAddr> = apps.iter().map(|app| app.addr()).collect();
    drive(&addrs, history, fault);
    only_harmless_words(history, |_| false);
    codes_still_work(&addrs, history);
    assert_eq!(audit::refused_good_codes(history), Vec::<String>::new());
    audit::check(history, ledger, terms)
}

/// The load alone: sales, the fault, and sales again by the time that they may take.
fn drive(addrs: &[SocketAddr], history: &History, fault: impl FnOnce()) {
    load(addrs, SHOPPERS, history, shop, |stop: &AtomicBool| {
        sells(history, 300);
        fault();
        let took = sells(history, 100);
        println!("sales went on after {took:.1?}");
        stop.store(true, Ordering::Relaxed);
    });
}

/// Codes from before, during and after the fault: those that were purchased stay so, the others can be purchased.
fn codes_still_work(addrs: &[SocketAddr], history: &History) {
    let purchases = history.purchases();
    let tried: HashSet<&str> = purchases.iter().map(|p| p.code.as_str()).collect();
    let bought: Vec<String> =
        purchases.iter().filter(|p| matches!(p.told, Told::Granted(_))).map(|p| p.code.clone()).collect();
    let fresh: Vec<String> = history.codes().into_iter().filter(|code| !tried.contains(code.as_str())).collect();
    let sample = |codes: &[String], used: bool| -> Vec<(String, bool)> {
        let step = (codes.len() / 200).max(1);
        codes.iter().step_by(step).map(|code| (code.clone(), used)).collect()
    };
    let todo = [sample(&bought, true), sample(&fresh, false)].concat();
    let next = AtomicUsize::new(0);
    let visit = |shopper: &mut Shopper<'_>| {
        let Some((code, used)) = todo.get(next.fetch_add(1, Ordering::Relaxed)) else { return false };
        let (told, lost) = decided(|| shopper.purchase(code));
        let good = match told {
            Told::Granted(_) => !used,
            // An answer that got lost may have been this.
            Told::Already(_) => *used || lost,
            _ => false,
        };
        assert!(good, "{code}: {told:?}, purchased before: {used}");
        true
    };
    load(addrs, addrs.len().max(2), history, visit, |_| {});
}

/// Asks until there is a decision: each worker notices on its own that Redis is another one. The decision, and whether
/// answers were lost before it.
fn decided(mut ask: impl FnMut() -> Told) -> (Told, bool) {
    let mut lost = false;
    poll("a decision", GOING_ON, || match ask() {
        Told::Lost(_) => {
            lost = true;
            None
        }
        told => Some((told, lost)),
    })
}

/// Whatever fails, fails as 503, unless the test `expects` more.
fn only_harmless_words(history: &History, expects: impl Fn(&str) -> bool) {
    let known = ["409 sold_out", "429 user_limit", "400 invalid_code", "lost: 503 unavailable"];
    let odd = |word: &String| !known.contains(&word.as_str()) && !expects(word);
    let odd: Vec<String> = history.words().into_iter().filter(odd).collect();
    assert!(odd.is_empty(), "{} odd answers, such as {:?}", odd.len(), odd.first());
}

/// The answers of instances that were killed.
fn cut_off(word: &str) -> bool {
    word.starts_with("lost: ")
}
