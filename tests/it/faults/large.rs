//! Sales of many rows: however many there are to write or to read, no instance waits longer than it takes to read them.

use super::*;
use crate::support::servers::{Mode, Stack};

/// A day's sale with room for many holds that are not taken through the service.
fn large(items: u64) -> Terms {
    Terms { items, ..plenty() }
}

/// Adds `count` holds, whole chunks, to the running sale's state that its ledger has not got, as a dead instance (500) leaves them.
fn hold_in_redis(stack: &Stack, terms: &Terms, count: u64) {
    const ADD: &str = "
        local state, queue, first, count = KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[2])
        local time = redis.call('TIME')
        local taken = time[1] * 1000 - 10000
        local expires = string.format('%.0f', taken + tonumber(redis.call('HGET', state, 'hold')))
        local head = string.format('%.0f', taken) .. expires
        for chunk = first / 8, (first + count) / 8 - 1 do
          local entries = ''
          for i = 8 * chunk, 8 * chunk + 7 do
            local user = 'x' .. i
            entries = entries .. string.char(32 + #user, 33) .. user .. 'i'
            redis.call('HSET', state, 'u:' .. user, expires .. 1)
          end
          redis.call('HSET', state, 'c500:' .. chunk, head .. entries)
          redis.call('RPUSH', queue, expires .. ':500:' .. chunk .. ':1')
        end
        redis.call('HINCRBY', state, 'free', -count)
        redis.call('HINCRBY', state, 'queue', count / 8)
        for _, field in ipairs({'held', 'taken'}) do redis.call('HINCRBY', state, field, count) end
        return redis.status_reply('OK')";
    let sale = clock::sale(terms.sale_seconds);
    let (state, queue) = (format!("{{sale:{sale}}}:state"), format!("{{sale:{sale}}}:queue"));
    // Some at a time: an instance waits for a second at most.
    for first in (0..count).step_by(20_000) {
        let some = (count - first).min(20_000);
        stack.redis_ref().run(&["EVAL", ADD, "2", &state, &queue, &first.to_string(), &some.to_string()]);
    }
}

/// Adds the same holds to the running sale's ledger.
fn hold_in_ledger(stack: &mut Stack, terms: &Terms, count: i64) {
    let add = "INSERT INTO ledger_holds SELECT $1, 4398046511104000 + i, int8send(i) || int8send(i), 'x' || i, 'i',
        now(), now() + interval '1 hour' FROM generate_series(0::bigint, $2::bigint - 1) AS i";
    let sale = clock::sale(terms.sale_seconds).cast_signed();
    stack.postgres().client().execute(add, &[&sale, &count]).unwrap();
}

fn rows(client: &mut postgres::Client) -> i64 {
    client.query_one("SELECT count(*) FROM ledger_holds", &[]).unwrap().get(0)
}

#[test]
fn a_loss_in_the_midst_of_reconciliation() {
    let mut stack = Stack::alone(Mode::Distributed);
    let (terms, history) = (large(700_000), History::default());
    let apps = [with_terms(stack.app(), &terms).start(), with_terms(stack.app(), &terms).start()];
    apps.iter().for_each(|app| sells_at(app.addr(), &history));
    // More than can be written before the loss. Both stand still meanwhile, so that they find all of it at once.
    apps.iter().for_each(App::pause);
    hold_in_redis(&stack, &terms, 400_000);
    apps.iter().for_each(App::resume);
    let mut client = stack.postgres().client();
    poll("rows that are written", GOING_ON * 6, || (rows(&mut client) > 10_000).then_some(()));
    // An instance that has to open or to rebuild a sale does not wait for it.
    let is_free: bool = client.query_one("SELECT pg_try_advisory_xact_lock(1718812675, 0)", &[]).unwrap().get(0);
    assert!(is_free, "the openers' lock is free while rows are written");
    stack.redis().wipe();
    let begun = Instant::now();
    apps.iter().for_each(|app| sells_at(app.addr(), &history));
    println!("both sell {:.1?} after the loss, with {} rows", begun.elapsed(), rows(&mut client));
    codes_still_work(&apps.each_ref().map(App::addr), &history);
}

#[test]
fn rebuilt_through_a_slow_link() {
    let mut stack = Stack::alone(Mode::Distributed);
    let (terms, history) = (large(200_000), History::default());
    let link = Proxy::to(stack.redis().addr());
    let app = with_terms(stack.app().env("REDIS_ADDR", link.addr()), &terms).start();
    sells_at(app.addr(), &history);
    hold_in_ledger(&mut stack, &terms, 100_000);
    link.delay(Duration::from_millis(25));
    stack.redis().wipe();
    let begun = Instant::now();
    sells_at(app.addr(), &history);
    println!("sells {:.1?} after the loss", begun.elapsed());
    let state = format!("{{sale:{}}}:state", clock::sale(terms.sale_seconds));
    let held: u64 = redis::cmd("HGET").arg(&state).arg("held").query(&mut stack.redis().connection()).unwrap();
    assert!(held > 100_000, "{held} holds were rebuilt");
    codes_still_work(&[app.addr()], &history);
}

#[test]
fn rows_are_written_while_more_are_looked_for() {
    let mut stack = Stack::alone(Mode::Distributed);
    let (terms, history) = (large(300_000), History::default());
    let app = with_terms(stack.app(), &terms).start();
    sells_at(app.addr(), &history);
    hold_in_ledger(&mut stack, &terms, 200_000);
    hold_in_redis(&stack, &terms, 200_000);
    // The sale's time is that of its last decision: now it is later than all of these rows.
    sells_at(app.addr(), &history);
    let mut client = stack.postgres().client();
    let lost = client.execute("DELETE FROM ledger_holds WHERE user_id LIKE 'x%' AND hold % 400 = 0", &[]).unwrap();
    assert_eq!(lost, 500);
    app.says("records that only Redis had were written", GOING_ON * 6);
    let look =
        "SELECT count(*), count(DISTINCT xmin::text) FROM ledger_holds WHERE user_id LIKE 'x%' AND hold % 400 = 0";
    let row = client.query_one(look, &[]).unwrap();
    let (rows, transactions): (i64, i64) = (row.get(0), row.get(1));
    println!("{rows} rows in {transactions} transactions");
    assert_eq!(rows, 500);
    assert!(transactions > 1, "the first rows do not wait for the last");
}

#[test]
fn late_records_through_a_slow_link() {
    let mut stack = Stack::alone(Mode::Distributed);
    let (terms, history) = (large(200_000), History::default());
    let (link, postgres) = (Proxy::to(stack.redis().addr()), Proxy::to(local(stack.postgres().port())));
    let dsn = stack.postgres().dsn_at(postgres.addr().port());
    let far = stack.app().env("POSTGRES_DSN", dsn).env("REDIS_ADDR", link.addr());
    let far = with_terms(far, &terms).start();
    let near = with_terms(stack.app(), &terms).start();
    postgres.hold(true);
    let take = |shopper: &mut Shopper<'_>| {
        let user = format!("u{}-{}", shopper.number, shopper.round);
        assert!(matches!(shopper.checkout(&user, "i"), Told::Granted(_)));
        shopper.round < 999
    };
    load(&[far.addr()], 20, &history, take, |_| {});
    link.delay(Duration::from_millis(25));
    stack.redis().wipe();
    sells_at(near.addr(), &history);
    postgres.hold(false);
    let begun = Instant::now();
    sells_at(far.addr(), &history);
    println!("sells {:.1?} after it reaches Postgres again, with {} codes", begun.elapsed(), history.codes().len());
    far.says("late records are settled", GOING_ON);
    poll("all rows", GOING_ON * 2, || (stack.ledger().rows().attempts.len() == history.codes().len()).then_some(()));
    codes_still_work(&[near.addr(), far.addr()], &history);
    audit::check(&history, &stack.ledger(), &terms);
}
