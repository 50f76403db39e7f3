//! Several instances on one Redis and one Postgres: late, frozen, killed, of other versions, with other settings.

use super::*;
use crate::support::servers::{Mode, Redis, Stack};

#[test]
fn unwritten_records_meet_a_loss() {
    let mut stack = Stack::on_redis(Redis::start_with(&["--appendonly", "yes", "--appendfsync", "no"]));
    let (terms, history) = (plenty(), History::default());
    let (postgres, far, near) = far_and_near(&mut stack, &terms);
    let ledger = stack.ledger();
    under_load(&[&far, &near], &history, &ledger, &terms, || {
        postgres.hold(true);
        // These are with Redis, and on their way to the ledger.
        sells(&history, 200);
        stack.redis().kill();
        stack.redis().cut_append_only_file(40_000);
        stack.redis().restart();
        // The other one goes on without it, in the end by force.
        let begun = Instant::now();
        poll("the other one's sales", GOING_ON * 2, || {
            matches!(probe(near.addr(), &history).0, Told::Granted(_)).then_some(())
        });
        println!("the other one sells after {:.1?}", begun.elapsed());
        assert_eq!(probe(far.addr(), &history).0, Told::Lost("503 unavailable".into()));
        postgres.hold(false);
        sells_at(far.addr(), &history);
        // Redis has lost some of them, and gets them back.
        far.says("late records are settled", GOING_ON);
    });
}

#[test]
fn an_opener_frozen_in_the_middle() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let opener = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    let (mut barrier, mut watch) = (stack.postgres().client(), stack.postgres().client());
    let mut second = None;
    drive(&[opener.addr()], &history, || {
        // A session that does not leave the epoch keeps the opener in the middle of its steps.
        barrier.batch_execute("SELECT pg_advisory_lock_shared(1718812674, 1)").unwrap();
        stack.redis().wipe();
        // By a connection that is there already: the opener is in the middle for two seconds at most.
        let closing = "SELECT number = 1 AND identity = '' FROM ledger_fence";
        poll("an epoch that is being closed", GOING_ON, || {
            watch.query_one(closing, &[]).unwrap().get::<_, bool>(0).then_some(())
        });
        opener.pause();
        let other = second.insert(with_terms(stack.app(), &terms).start());
        sells_at(other.addr(), &history);
        let epoch = fence(&mut stack).0;
        assert!(epoch > 1);
        assert!(barrier.batch_execute("SELECT 1").is_err(), "who could still write under the first epoch is gone");
        opener.resume();
        sells_at(opener.addr(), &history);
        assert_eq!(fence(&mut stack).0, epoch, "the one that was frozen joins the others");
    });
    only_harmless_words(&history, cut_off);
    codes_still_work(&[second.as_ref().unwrap().addr(), opener.addr()], &history);
    audit::check(&history, &ledger, &terms);
}

#[test]
fn an_opener_that_died_before_a_sale_was_in_place() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    let mut client = stack.postgres().client();
    under_load(&[&app], &history, &ledger, &terms, || {
        // One more than those that are opened ahead: noted as opened, and nothing of it in Redis.
        let noted =
            "INSERT INTO sales SELECT (extract(epoch FROM ends_at))::bigint, items, user_limit, hold_ms, ends_at,
            ends_at + (ends_at - starts_at), true FROM sales ORDER BY sale_id DESC LIMIT 1 RETURNING sale_id";
        let sale: i64 = client.query_one(noted, &[]).unwrap().get(0);
        let mut redis = stack.redis().connection();
        poll("the sale's state", GOING_ON, || {
            redis::cmd("EXISTS").arg(format!("{{sale:{sale}}}:state")).query::<bool>(&mut redis).unwrap().then_some(())
        });
    });
    assert_eq!(fence(&mut stack).0, 1, "nothing was in doubt: {}", app.stderr());
    assert!(!app.last_words().contains("selling stops"));
}

#[test]
fn a_frozen_instance_holds_nobody_up() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let opener = with_terms(stack.app(), &terms).start();
    let frozen = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    let addrs = [opener.addr(), frozen.addr()];
    drive(&addrs, &history, || {
        frozen.pause();
        stack.redis().wipe();
        // It cannot let go of the epoch, so its sessions are ended.
        sells_at(opener.addr(), &history);
        opener.says("its sessions are ended", GOING_ON);
        frozen.resume();
        sells_at(frozen.addr(), &history);
    });
    only_harmless_words(&history, cut_off);
    // What it had decided and not written is settled within the same time.
    poll("all rows", GOING_ON, || {
        let rows = ledger.rows();
        let written: HashSet<&str> = rows.attempts.iter().map(|row| row.code.as_str()).collect();
        history.codes().iter().all(|code| written.contains(code.as_str())).then_some(())
    });
    codes_still_work(&addrs, &history);
    audit::check(&history, &ledger, &terms);
    assert_eq!(fence(&mut stack).0, 2);
}

#[test]
fn one_dies_inside_the_barrier() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let opener = with_terms(stack.app(), &terms).start();
    let mut other = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    sells_at(other.addr(), &history);
    // What an instance has not written dies with it if Redis loses it too: this one has written what it sold.
    poll("the rows of what it sold", GOING_ON, || {
        (ledger.rows().attempts.len() == history.codes().len()).then_some(())
    });
    drive(&[opener.addr()], &history, || {
        other.pause();
        stack.redis().wipe();
        poll("an epoch that is being closed", GOING_ON, || fence(&mut stack).1.is_empty().then_some(()));
        other.kill();
        sells_at(opener.addr(), &history);
    });
    only_harmless_words(&history, cut_off);
    codes_still_work(&[opener.addr()], &history);
    audit::check(&history, &ledger, &terms);
}

#[test]
fn what_fits_no_more_is_kept_apart() {
    let mut stack = Stack::new(Mode::Distributed);
    let terms = Terms { items: 30, user_limit: 30, ..plenty() };
    let history = History::default();
    let (postgres, far, near) = far_and_near(&mut stack, &terms);
    postgres.hold(true);
    buy(far.addr(), &history, 20);
    stack.redis().wipe();
    sells_at(near.addr(), &history);
    // No other instance, and no server, knows of the twenty: their items are sold once more.
    buy(near.addr(), &history, 30);
    assert_eq!(history.granted(), 40 + 1 + 58);
    far.says("the ledger does not take records", GOING_ON);
    postgres.hold(false);
    let mut client = stack.postgres().client();
    let mut count = |sql: &str| client.query_one(sql, &[]).unwrap().get::<_, i64>(0);
    poll("what does not fit", GOING_ON * 2, || (count("SELECT count(*) FROM quarantined_records") == 40).then_some(()));
    far.says("late records are settled", GOING_ON);
    assert_eq!(count("SELECT count(*) FROM purchases"), 29, "never more than the stock is sold");
    assert_eq!(count("SELECT count(*) FROM quarantined_records WHERE kind = 'purchase'"), 20);
    assert_eq!(count("SELECT count(*) FROM quarantined_records WHERE kind = 'hold'"), 20);
    far.says("quarantined", GOING_ON);
    // All that it had to write was of an epoch that is over; nothing of its own comes after it.
    far.says("the ledger takes records again", GOING_ON);
    assert_eq!(decided(|| probe(far.addr(), &history).0).0, Told::Refused(409, "sold_out".into()));
}

#[test]
fn started_stopped_and_killed_in_any_order() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let ledger = stack.ledger();
    let mut apps: Vec<App> = Vec::new();
    for round in 0..6 {
        apps.push(with_terms(stack.app(), &terms).start());
        let addrs: Vec<SocketAddr> = apps.iter().map(App::addr).collect();
        load(&addrs, SHOPPERS, &history, shop, |stop| {
            sells(&history, 100);
            if round % 2 == 1 {
                // The oldest goes: by a crash, or in good order.
                let mut oldest = apps.remove(0);
                if round % 4 == 1 {
                    oldest.kill()
                } else {
                    assert_eq!(oldest.terminate(), 0, "{}", oldest.stderr())
                }
                sells(&history, 100);
            }
            stop.store(true, Ordering::Relaxed);
        });
        // Any redeems any code.
        let addrs: Vec<SocketAddr> = apps.iter().map(App::addr).collect();
        codes_still_work(&addrs, &history);
    }
    only_harmless_words(&history, cut_off);
    audit::check(&history, &ledger, &terms);
    assert_eq!(fence(&mut stack).0, 1, "nothing was ever in doubt");
}

#[test]
fn two_versions() {
    let stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    // Another version: a comment in its scripts differs, and so do their digests.
    let mut binary = std::fs::read(env!("CARGO_BIN_EXE_flashsale")).unwrap();
    let comments = [&b"-- Takes an item"[..], b"-- Redeems a batch"];
    for comment in comments {
        let places: Vec<usize> = (0..binary.len()).filter(|at| binary[*at..].starts_with(comment)).collect();
        assert!(!places.is_empty(), "the script is in the binary");
        places.into_iter().for_each(|at| binary[at + 3] = b'_');
    }
    let folder = crate::support::process::temp_dir();
    let path = folder.path().join("flashsale");
    std::fs::write(&path, binary).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut next = None;
    under_load(&[&app], &history, &stack.ledger(), &terms, || {
        let next = next.insert(with_terms(stack.app(), &terms).binary(&path).start());
        sells_at(next.addr(), &history);
        sells_at(app.addr(), &history);
        // Its scripts are forgotten with the first one's.
        stack.redis_ref().run(&["SCRIPT", "FLUSH"]);
        sells_at(next.addr(), &history);
        sells_at(app.addr(), &history);
    });
    // Each redeems the other's codes.
    drive(&[next.as_ref().unwrap().addr(), app.addr()], &history, || {});
    codes_still_work(&[next.as_ref().unwrap().addr(), app.addr()], &history);
    audit::check(&history, &stack.ledger(), &terms);
    assert!(!next.unwrap().last_words().contains("rebuilding"));
    assert!(!app.last_words().contains("rebuilding"));
}

#[test]
fn other_settings() {
    let stack = Stack::new(Mode::Distributed);
    let terms = Terms { items: 5, user_limit: 2, ..plenty() };
    let (history, app) = (History::default(), with_terms(stack.app(), &terms).start());
    let other = Terms { items: 50, user_limit: 9, hold_seconds: 60, ..terms };
    let other = with_terms(stack.app(), &other).start();
    other.says("other settings than this instance's", GOING_ON);
    let visit =
        |shopper: &mut Shopper<'_>| (0..3).map(|_| decided(|| shopper.checkout("u", "i")).0).collect::<Vec<_>>();
    let told = ask(other.addr(), &history, visit);
    assert_eq!(told[2], Told::Refused(429, "user_limit".into()), "the terms are the sale's");
    for nth in 0..3 {
        let told =
            ask(if nth == 0 { app.addr() } else { other.addr() }, &history, |s| s.checkout(&format!("v{nth}"), "i"));
        assert!(matches!(told, Told::Granted(_)));
    }
    assert_eq!(ask(other.addr(), &history, |s| s.checkout("w", "i")), Told::Refused(409, "sold_out".into()));
    let expires: Vec<u64> = history.checkouts().iter().map(|c| c.expires_at).filter(|at| *at > 0).collect();
    assert!(expires.iter().max().unwrap() - expires.iter().min().unwrap() < 20, "one hold time: {expires:?}");
    audit::check(&history, &stack.ledger(), &terms);
}

#[test]
fn the_settings_of_the_newest_start_apply_to_sales_that_have_not_begun() {
    let mut stack = Stack::new(Mode::Distributed);
    let old = Terms { items: 5, user_limit: 2, ..plenty() };
    let app = with_terms(stack.app(), &old).start();
    let new = Terms { items: 50, user_limit: 9, hold_seconds: 60, ..old };
    let other = with_terms(stack.app(), &new).start();
    let mut client = stack.postgres().client();
    let mut planned = |later: bool| {
        let query = "SELECT items, user_limit, hold_ms FROM sales WHERE (starts_at > now()) = $1 ORDER BY sale_id";
        let rows = client.query(query, &[&later]).unwrap();
        rows.iter().map(|row| [row.get::<_, i64>(0), row.get(1), row.get(2)]).collect::<Vec<_>>()
    };
    poll("new terms in the ledger", GOING_ON, || (planned(true) == [[50, 9, 60_000]; 2]).then_some(()));
    assert_eq!(planned(false), [[5, 2, 3_600_000]], "what has begun keeps its terms");
    let next = format!("{{sale:{}}}:state", clock::sale(old.sale_seconds) + old.sale_seconds);
    let mut redis = stack.redis().connection();
    let mut state = || {
        let fields = &["items", "free", "limit", "hold"][..];
        redis::cmd("HMGET").arg(&next).arg(fields).query::<Vec<u64>>(&mut redis).unwrap()
    };
    poll("new terms in Redis", GOING_ON, || (state() == [50, 50, 9, 60_000]).then_some(()));
    // As if the instance that changed them had died between the ledger and Redis.
    stack.redis_ref().run(&["HSET", &next, "items", "5", "free", "5", "limit", "2"]);
    poll("the ledger's terms in Redis", GOING_ON, || (state() == [50, 50, 9, 60_000]).then_some(()));
    app.says("has started later than this one", GOING_ON);
    other.says("items 5 → 50, user limit 2 → 9, hold time 3600000 → 60000 ms", GOING_ON);
    // No instance changes them back, and no loss was suspected.
    assert_eq!(planned(true), [[50, 9, 60_000]; 2]);
    assert_eq!(fence(&mut stack).0, 1);
    assert_eq!(app.last_words().matches("has started later than this one").count(), 1);
    assert!(!other.last_words().contains("has started later than this one"));
}
