//! A stock that sells out across a fault: whatever is lost, no item is sold twice and no promise is broken.

use super::loss::{DURABLE, Replicated};
use super::*;
use crate::support::servers::{Mode, Redis, Stack};

/// How long it may take until all is sold and known to be.
const SOLD_OUT: Duration = Duration::from_secs(20);

fn scarce(items: u64) -> Terms {
    Terms { items, user_limit: 20, ..plenty() }
}

/// Shoppers purchase all that they can get, without a pause. When two thirds are gone `fault` happens; ends when each
/// instance says that nothing is left.
fn sell_out(addrs: &[SocketAddr], history: &History, terms: &Terms, fault: impl FnOnce()) {
    let step = |shopper: &mut Shopper<'_>| {
        match shopper.checkout(&format!("u{}", fastrand::u32(..4000)), "i") {
            // For as long as it takes: some faults last.
            Told::Granted(code) => poll("a decision", SOLD_OUT, || {
                std::thread::sleep(Duration::from_millis(5));
                (!matches!(shopper.purchase(&code), Told::Lost(_))).then_some(())
            }),
            // No server answers, or no item is free: a pause keeps the history small.
            _ => std::thread::sleep(Duration::from_millis(5)),
        };
        true
    };
    load(addrs, 8, history, step, |stop| {
        // A checkout and a purchase each.
        poll("sales", SOLD_OUT, || (history.granted() > terms.items * 4 / 3).then_some(()));
        fault();
        for addr in addrs {
            let sold_out = Told::Refused(409, "sold_out".into());
            poll("the last item", SOLD_OUT, || (probe(*addr, history).0 == sold_out).then_some(()));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// All that was promised is in the ledger, within the stock, and nothing is in quarantine.
fn all_is_kept(stack: &mut Stack, history: &History, terms: &Terms) {
    let rows = audit::check(history, &stack.ledger(), terms);
    assert!(rows.purchases.len() as u64 <= terms.items, "{} of {}", rows.purchases.len(), terms.items);
    assert_eq!(quarantined(stack), 0);
    assert_eq!(audit::refused_good_codes(history), Vec::<String>::new());
}

fn quarantined(stack: &mut Stack) -> i64 {
    stack.postgres().client().query_one("SELECT count(*) FROM quarantined_records", &[]).unwrap().get(0)
}

#[test]
fn wiped_with_two_instances_one_of_them_far_from_postgres() {
    let mut stack = Stack::alone(Mode::Distributed);
    let (terms, history) = (scarce(3_000), History::default());
    let (postgres, far, near) = far_and_near(&mut stack, &terms);
    // It has records on their way at any time.
    postgres.delay(Duration::from_millis(60));
    sell_out(&[near.addr(), far.addr()], &history, &terms, || stack.redis().wipe());
    all_is_kept(&mut stack, &history, &terms);
}

#[test]
fn wiped_while_postgres_is_away() {
    let mut stack = Stack::alone(Mode::Distributed);
    let (terms, history) = (scarce(2_000), History::default());
    let (postgres, far, near) = far_and_near(&mut stack, &terms);
    sell_out(&[near.addr(), far.addr()], &history, &terms, || {
        stack.postgres().stop_immediate();
        postgres.hold(true);
        // What they sell now is with Redis, and with them. Little is left then, so what is forgotten is sold again at once.
        poll("nearly all of it", SOLD_OUT, || (history.granted() > 2 * terms.items - 100).then_some(()));
        stack.redis().wipe();
        stack.postgres().start_again();
        // One of them comes back when the other has closed the epoch already, and no lock shows that it has something to
        // write.
        poll("an epoch that is being closed", GOING_ON, || fence(&mut stack).1.is_empty().then_some(()));
        postgres.hold(false);
    });
    all_is_kept(&mut stack, &history, &terms);
}

#[test]
fn written_late_by_the_one_who_rebuilds() {
    let mut stack = Stack::alone(Mode::Distributed);
    let (terms, history) = (scarce(2_000), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let mut client = stack.postgres().client();
    sell_out(&[app.addr()], &history, &terms, || {
        // Its writer is stuck, and its keeper is not.
        client.batch_execute("BEGIN; LOCK TABLE ledger_purchases, ledger_holds IN SHARE MODE").unwrap();
        sells(&history, 300);
        stack.redis().wipe();
        app.says("rebuilding", GOING_ON);
        app.says("its sessions are ended", GOING_ON * 2);
        client.batch_execute("ROLLBACK").unwrap();
    });
    all_is_kept(&mut stack, &history, &terms);
}

#[test]
fn restarted_without_its_last_second() {
    let mut stack = Stack::on_redis(Redis::start_with(DURABLE));
    let (terms, history) = (scarce(2_000), History::default());
    let apps = [with_terms(stack.app(), &terms).start(), with_terms(stack.app(), &terms).start()];
    sell_out(&apps.each_ref().map(App::addr), &history, &terms, || {
        let redis = stack.redis();
        redis.kill();
        redis.cut_append_only_file(40_000);
        redis.restart();
    });
    all_is_kept(&mut stack, &history, &terms);
}

#[test]
fn failed_over() {
    let (terms, history) = (scarce(2_000), History::default());
    let Replicated { mut stack, replica, proxy, app } = Replicated::start(&terms);
    sell_out(&[app.addr()], &history, &terms, || {
        // From here on the replica misses what the master decides.
        replica.promote();
        sells(&history, 200);
        proxy.switch(replica.addr());
    });
    all_is_kept(&mut stack, &history, &terms);
}

#[test]
fn rebuilt_where_memory_is_short() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (Terms { hold_seconds: 3600, ..scarce(9_000) }, History::default());
    let app = with_terms(stack.app(), &terms).start();
    let take = |shopper: &mut Shopper<'_>| {
        shopper.checkout(&format!("u{}-{}", shopper.number, shopper.round), &"i".repeat(60));
        shopper.round < 999
    };
    load(&[app.addr()], 8, &history, take, |_| {});
    let before = history.codes().len();
    assert!(before >= 7_990, "{before}");
    // There is no room for a second state beside the first, and a reason to build one.
    let info: String = redis::cmd("INFO").arg("memory").query(&mut stack.redis().connection()).unwrap();
    let used: u64 = info.lines().find_map(|l| l.strip_prefix("used_memory:")).unwrap().trim().parse().unwrap();
    stack.redis().run(&["CONFIG", "SET", "maxmemory", &(used + 700_000).to_string()]);
    let state = format!("{{sale:{}}}:state", clock::sale(terms.sale_seconds));
    stack.redis().run(&["HSET", &state, "epoch", "7"]);
    sells_at(app.addr(), &history);
    stack.redis().run(&["CONFIG", "SET", "maxmemory", "0"]);
    codes_still_work(&[app.addr()], &history);
    audit::check(&history, &stack.ledger(), &terms);
}

#[test]
fn late_purchases_of_an_ended_sale_are_counted() {
    let mut stack = Stack::new(Mode::Distributed);
    // Long enough for all of this, and then it has to end.
    let sale_seconds = clock::sale_seconds_ending_in(15..18);
    let terms = Terms { items: 300, user_limit: 300, sale_seconds, hold_seconds: 60 };
    let history = History::default();
    let sale = clock::sale(terms.sale_seconds);
    let (postgres, far, near) = far_and_near(&mut stack, &terms);
    postgres.hold(true);
    buy(far.addr(), &history, 300);
    stack.redis().wipe();
    sells_at(near.addr(), &history);
    // No other instance, and no server, knows of the 300, so most of them are sold once more; not all, so that some of the
    // late ones fit.
    buy(near.addr(), &history, 249);
    let end = sale + terms.sale_seconds;
    poll("the sale's end", Duration::from_secs(25), || (clock::now() > end as f64 + 0.5).then_some(()));
    // And the state is gone too.
    stack.redis().run(&["DEL", &format!("{{sale:{sale}}}:state"), &format!("{{sale:{sale}}}:queue")]);
    postgres.hold(false);
    far.says("late records are settled", GOING_ON * 3);
    let count = |sql: &str, stack: &mut Stack| {
        stack.postgres().client().query_one(sql, &[&sale.cast_signed()]).unwrap().get::<_, i64>(0)
    };
    poll("all late records", GOING_ON * 2, || {
        let quarantined =
            count("SELECT count(*) FROM quarantined_records WHERE kind = 'purchase' AND sale_id = $1", &mut stack);
        let sold = count("SELECT count(*) FROM purchases WHERE sale_id = $1", &mut stack);
        (sold + quarantined == 549).then_some(())
    });
    assert_eq!(count("SELECT count(*) FROM purchases WHERE sale_id = $1", &mut stack), 300);
}
