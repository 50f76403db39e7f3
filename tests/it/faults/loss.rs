//! Redis loses something: all of it, its tail, its role or its scripts.

use super::*;
use crate::support::proxy::Proxy;
use crate::support::servers::{Mode, Redis, Stack};

/// Keeps its data, but every crash takes what a real one might have taken: see [`Redis::cut_append_only_file`].
pub(super) const DURABLE: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0"];
/// Begins to copy itself to a replica at once, and not after five seconds.
const COPIED_AT_ONCE: &[&str] = &["--appendonly", "no", "--repl-diskless-sync-delay", "0"];

#[test]
fn wiped() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    // Another instance that gets no requests: it has to notice by itself.
    let idle = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || stack.redis().wipe());
    sells_at(idle.addr(), &history);
    assert!(app.last_words().contains("rebuilding") ^ idle.last_words().contains("rebuilding"), "one rebuilds");
}

#[test]
fn wiped_when_all_is_sold() {
    let mut stack = Stack::new(Mode::Distributed);
    let terms = Terms { items: 10_000, user_limit: 10, ..plenty() };
    let history = History::default();
    let app = with_terms(stack.app(), &terms).start();
    // The instance that rebuilds has to wait for the other one.
    let other = with_terms(stack.app(), &terms).start();
    let sold_out = |shopper: &mut Shopper<'_>| {
        let told = shopper.checkout(&format!("u{}", fastrand::u32(..2000)), "i");
        if let Told::Granted(code) = &told
            && fastrand::bool()
        {
            shopper.purchase(code);
        }
        told != Told::Refused(409, "sold_out".into())
    };
    load(&[app.addr(), other.addr()], 16, &history, sold_out, |_| {});
    assert_eq!(history.codes().len() as u64, terms.items);

    stack.redis().wipe();
    let begun = Instant::now();
    // Whether anything is left is known again in time, and nothing is.
    poll("an answer", Duration::from_secs(2), || match probe(app.addr(), &history).0 {
        Told::Lost(_) => None,
        told => {
            assert_eq!(told, Told::Refused(409, "sold_out".into()), "nothing is left after {:?}", begun.elapsed());
            Some(())
        }
    });
    [&app, &other].iter().for_each(|app| app.says("recovered: epoch", GOING_ON));
    for _ in 0..50 {
        let told = decided(|| probe(app.addr(), &history).0).0;
        assert_eq!(told, Told::Refused(409, "sold_out".into()));
    }
    println!("settled after {:?}", begun.elapsed());
    codes_still_work(&[app.addr(), other.addr()], &history);
    let rows = audit::check(&history, &stack.ledger(), &terms);
    assert_eq!(rows.attempts.len() as u64, terms.items);
}

#[test]
fn users_counts_stay() {
    let mut stack = Stack::new(Mode::Distributed);
    let terms = Terms { user_limit: 3, ..plenty() };
    let app = with_terms(stack.app(), &terms).start();
    let history = History::default();
    let visit =
        |shopper: &mut Shopper<'_>| (0..4).map(|_| decided(|| shopper.checkout("u", "i")).0).collect::<Vec<_>>();
    let told = ask(app.addr(), &history, visit);
    assert_eq!(told[3], Told::Refused(429, "user_limit".into()));
    stack.redis().wipe();
    sells_at(app.addr(), &history);
    let told = decided(|| ask(app.addr(), &history, |s| s.checkout("u", "i"))).0;
    assert_eq!(told, Told::Refused(429, "user_limit".into()));
    audit::check(&history, &stack.ledger(), &terms);
}

#[test]
fn restarted_without_its_last_second() {
    let mut stack = Stack::on_redis(Redis::start_with(DURABLE));
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        let redis = stack.redis();
        redis.kill();
        redis.cut_append_only_file(30_000);
        redis.restart();
    });
}

/// An instance that reaches its Redis, which has a replica, by a proxy.
pub(super) struct Replicated {
    pub(super) stack: Stack,
    pub(super) replica: Redis,
    pub(super) proxy: Proxy,
    pub(super) app: App,
}

impl Replicated {
    pub(super) fn start(terms: &Terms) -> Replicated {
        let mut stack = Stack::on_redis(Redis::start_with(COPIED_AT_ONCE));
        let replica = Redis::start_with(COPIED_AT_ONCE);
        let proxy = Proxy::to(stack.redis().addr());
        let app = with_terms(stack.app().env("REDIS_ADDR", proxy.addr()), terms).start();
        replica.replica_of(stack.redis());
        Replicated { stack, replica, proxy, app }
    }
}

#[test]
fn failed_over_and_back() {
    let (terms, history) = (plenty(), History::default());
    let Replicated { mut stack, replica, proxy, app } = Replicated::start(&terms);
    let ledger = stack.ledger();
    let addr = app.addr();
    under_load(&[&app], &history, &ledger, &terms, || {
        // From here on the replica misses what the master decides.
        replica.promote();
        sells(&history, 200);
        proxy.switch(replica.addr());
        sells(&history, 200);
        // And back, with nothing lost this time.
        stack.redis().replica_of(&replica);
        sells(&history, 100);
        stack.redis().promote();
        proxy.switch(stack.redis().addr());
        sells_at(addr, &history);
    });
}

#[test]
fn demoted_under_open_connections() {
    let (terms, history) = (plenty(), History::default());
    let Replicated { mut stack, replica, proxy, app } = Replicated::start(&terms);
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        // As with a service's name or a floating address: open connections are not cut.
        replica.promote();
        proxy.point(replica.addr());
        stack.redis().replica_of(&replica);
    });
    app.says("recovered: epoch", GOING_ON);
}

#[test]
fn two_masters_and_connections_to_both() {
    let (terms, history) = (plenty(), History::default());
    let Replicated { mut stack, replica, proxy, app } = Replicated::start(&terms);
    sells_at(app.addr(), &history);
    // The old master lives on, and clients that are connected to it stay connected.
    replica.promote();
    proxy.point(replica.addr());
    let other = with_terms(stack.app().env("REDIS_ADDR", proxy.addr()), &terms).start();
    sells_at(other.addr(), &history);
    sells_at(app.addr(), &history);
    let mut client = stack.postgres().client();
    let mut epoch = || client.query_one("SELECT number FROM ledger_fence", &[]).unwrap().get::<_, i64>(0);
    let settled = epoch();
    // Workers that get no requests leave the old master as well.
    poll("the old master alone", GOING_ON, || {
        let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut stack.redis_ref().connection()).unwrap();
        (clients.lines().count() == 1).then_some(())
    });
    // Longer than the keepers take to look around.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        let told = [app.addr(), other.addr()].map(|addr| decided(|| probe(addr, &history).0).0);
        assert!(told.iter().all(|told| matches!(told, Told::Granted(_))), "{told:?}");
    }
    assert_eq!(epoch(), settled, "they do not close each other's epoch");
    audit::check(&history, &stack.ledger(), &terms);
}

#[test]
fn pointed_at_the_promoted_replica() {
    let mut stack = Stack::on_redis(Redis::start_with(COPIED_AT_ONCE));
    let replica = Redis::start_with(COPIED_AT_ONCE);
    let (terms, history) = (plenty(), History::default());
    let mut app = with_terms(stack.app(), &terms).start();
    replica.replica_of(stack.redis());
    drive(&[app.addr()], &history, || replica.promote());
    stack.redis().kill();
    let _ = app.terminate();
    let app = with_terms(stack.app().env("REDIS_ADDR", replica.addr()), &terms).start();
    under_load(&[&app], &history, &stack.ledger(), &terms, || {});
}

#[test]
fn without_its_scripts() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        stack.redis().run(&["SCRIPT", "FLUSH"]);
    });
    assert!(!app.last_words().contains("rebuilding"), "scripts are merely loaded");
}

#[test]
fn purchases_that_the_ledger_acknowledged_outlive_everything_else() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let mut app = with_terms(stack.app(), &terms).env("PURCHASE_ACK", "ledger").start();
    load(&[app.addr()], SHOPPERS, &history, shop, |stop| {
        sells(&history, 300);
        // The instance with all that it had not written, and Redis with all that it knew.
        app.kill();
        stack.redis().kill();
        stop.store(true, Ordering::Relaxed);
    });
    stack.redis().restart();
    let app = with_terms(stack.app(), &terms).env("PURCHASE_ACK", "ledger").start();
    let bought: HashSet<String> = stack.ledger().rows().purchases.into_iter().map(|row| row.code).collect();
    let told = history.purchases().into_iter().filter(|p| matches!(p.told, Told::Granted(_) | Told::Already(_)));
    let told: Vec<String> = told.map(|p| p.code).collect();
    assert!(told.len() > 50, "{}", told.len());
    let missing: Vec<&String> = told.iter().filter(|code| !bought.contains(*code)).collect();
    assert_eq!(missing, Vec::<&String>::new());
    for code in told.iter().step_by(told.len() / 20) {
        let told = decided(|| ask(app.addr(), &history, |shopper| shopper.purchase(code))).0;
        assert!(matches!(told, Told::Already(_)), "{told:?}");
    }
}
