//! What regular work does by itself: the ledger gets what Redis holds, and what has ended is cleared away.

use super::*;
use crate::support::servers::{Mode, Stack};

#[test]
fn a_dead_instances_records_are_written() {
    let stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let mut app = with_terms(stack.app(), &terms).start();
    // Killed in the midst of it, with records on their way.
    load(&[app.addr()], SHOPPERS, &history, shop, |stop| {
        sells(&history, 500);
        app.kill();
        stop.store(true, Ordering::Relaxed);
    });
    let app = with_terms(stack.app(), &terms).start();
    codes_still_work(&[app.addr()], &history);
    audit::check(&history, &stack.ledger(), &terms);
    assert!(!app.last_words().contains("rebuilding"));
}

#[test]
fn what_is_missing_is_written_while_sales_go_on() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    drive(&[app.addr()], &history, || {
        // As if an instance had died with them.
        let mut client = stack.postgres().client();
        poll("rows to lose", GOING_ON, || {
            let both = ["ledger_purchases", "ledger_holds"];
            let lost =
                both.map(|table| client.execute(&format!("DELETE FROM {table} WHERE hold % 3 = 0"), &[]).unwrap());
            lost.iter().all(|rows| *rows > 0).then_some(())
        });
        poll("what was missing", GOING_ON * 4, || {
            assert!(sells(&history, 10) < GOING_ON);
            app.stderr().contains("written to the ledger by reconciliation").then_some(())
        });
    });
    audit::check(&history, &ledger, &terms);
}

#[test]
fn an_ended_sale_is_settled_however_late() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let mut app = with_terms(stack.app(), &terms).start();
    let code = app.client().code("u", "lamp");
    assert_eq!(app.client().purchase(&code).status, 200);
    assert_eq!(app.terminate(), 0);
    // As if its records had never been written, the sale had been three days ago, and no instance had run since.
    let sale = clock::sale(terms.sale_seconds);
    let old = sale - 3 * 86_400;
    let mut ledger = stack.postgres().client();
    ledger
        .batch_execute(&format!(
            "DELETE FROM ledger_purchases; DELETE FROM ledger_holds; DELETE FROM sales WHERE sale_id <> {sale};
             UPDATE sales SET sale_id = {old}, starts_at = to_timestamp({old}), ends_at = to_timestamp({})",
            old + 3600
        ))
        .unwrap();
    let (state, queue) = (format!("{{sale:{sale}}}:state"), format!("{{sale:{sale}}}:queue"));
    let (old_state, old_queue) = (format!("{{sale:{old}}}:state"), format!("{{sale:{old}}}:queue"));
    stack.redis().run(&["RENAME", &state, &old_state]);
    stack.redis().run(&["RENAME", &queue, &old_queue]);
    let end = ((old + 3600) * 1000).to_string();
    stack.redis().run(&["HSET", &old_state, "start", &(old * 1000).to_string(), "end", &end]);
    let app = with_terms(stack.app(), &terms).start();
    let mut redis = stack.redis().connection();
    poll("the old sale to be cleared away", GOING_ON * 4, || {
        let left: u64 = redis::cmd("EXISTS").arg(&old_state).arg(&old_queue).query(&mut redis).unwrap();
        (left == 0).then_some(())
    });
    let rows = stack.ledger().rows();
    let told: Vec<_> = rows.attempts.iter().map(|row| (row.sale, row.user.as_str(), row.used)).collect();
    assert_eq!((told, rows.purchases.len()), (vec![(old, "u", true)], 1), "{}", app.stderr());
    sells_at(app.addr(), &history);
}

#[test]
fn a_dead_instances_records_are_written_at_once() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let near = with_terms(stack.app(), &terms).start();
    let mut dead = with_terms(stack.app(), &terms).start();
    let mut barrier = stack.postgres().client();
    // Its writer comes to nothing, so what it answers is with Redis alone.
    barrier.batch_execute("BEGIN; LOCK TABLE ledger_purchases, ledger_holds IN SHARE MODE").unwrap();
    buy(dead.addr(), &history, 5);
    assert_eq!(stack.ledger().rows().attempts.len(), 0);
    dead.kill();
    barrier.batch_execute("ROLLBACK").unwrap();
    // Sooner than reconciliation comes by its clock: all the time that Redis could lose these.
    poll("all rows", Duration::from_secs(4), || {
        let rows = stack.ledger().rows();
        (rows.attempts.len() == 5 && rows.purchases.len() == 5).then_some(())
    });
    near.says("written to the ledger by reconciliation", GOING_ON);
    audit::check(&history, &stack.ledger(), &terms);
}
