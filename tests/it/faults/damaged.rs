//! A sale's state in Redis that is no state any more: it is rebuilt by itself, whatever has become of its keys.

use super::*;
use crate::support::servers::{Mode, Stack};

/// Does `damage` to the running sale's state and queue, and looks whether sales go on.
fn heals(damage: impl Fn(&Stack, &str, &str)) {
    let stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    buy(app.addr(), &history, 5);
    poll("all rows", GOING_ON, || (ledger.rows().purchases.len() == 5).then_some(()));
    let sale = clock::sale(terms.sale_seconds);
    damage(&stack, &format!("{{sale:{sale}}}:state"), &format!("{{sale:{sale}}}:queue"));
    sells_at(app.addr(), &history);
    buy(app.addr(), &history, 5);
    codes_still_work(&[app.addr()], &history);
    audit::check(&history, &ledger, &terms);
    let type_of = |key: &str| match stack.redis_ref().run(&["TYPE", key]) {
        redis::Value::SimpleString(name) => name,
        other => panic!("{other:?}"),
    };
    let kinds = [type_of(&format!("{{sale:{sale}}}:state")), type_of(&format!("{{sale:{sale}}}:queue"))];
    assert_eq!(kinds, ["hash", "list"]);
}

#[test]
fn a_state_of_another_type() {
    heals(|stack, state, _| {
        stack.redis_ref().run(&["SET", state, "x"]);
    });
}

#[test]
fn a_queue_of_another_type() {
    heals(|stack, _, queue| {
        stack.redis_ref().run(&["SET", queue, "x"]);
    });
}

#[test]
fn both_of_another_type() {
    heals(|stack, state, queue| {
        let redis = stack.redis_ref();
        redis.run(&["DEL", state, queue]);
        redis.run(&["RPUSH", state, "x"]);
        redis.run(&["HSET", queue, "x", "y"]);
    });
}

#[test]
fn numbers_that_are_none() {
    for (field, value) in [("epoch", "x"), ("epoch", "99999999999"), ("free", "many"), ("free", "7"), ("end", "")] {
        println!("{field} = {value:?}");
        heals(|stack, state, _| {
            stack.redis_ref().run(&["HSET", state, field, value]);
        });
    }
}

#[test]
fn the_owners_name_of_another_type() {
    let stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let owner = "{sale:owner}:ledger";
    let redis = stack.redis_ref();
    redis.run(&["DEL", owner]);
    redis.run(&["RPUSH", owner, "x"]);
    let is_string = || matches!(redis.run(&["TYPE", owner]), redis::Value::SimpleString(name) if name == "string");
    poll("an owner", GOING_ON, || is_string().then_some(()));
    sells_at(app.addr(), &history);
    app.says("is of another type: it is replaced", GOING_ON);
}

#[test]
fn a_sale_ahead_of_another_type_that_is_found_at_start() {
    let stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let mut app = with_terms(stack.app(), &terms).start();
    buy(app.addr(), &history, 3);
    assert_eq!(app.terminate(), 0);
    let next = format!("{{sale:{}}}:state", clock::sale(terms.sale_seconds) + terms.sale_seconds);
    let redis = stack.redis_ref();
    assert_eq!(redis.run(&["DEL", &next]), redis::Value::Int(1), "it was opened ahead");
    redis.run(&["SET", &next, "x"]);
    let app = with_terms(stack.app(), &terms).start();
    assert!(matches!(redis.run(&["TYPE", &next]), redis::Value::SimpleString(name) if name == "hash"));
    codes_still_work(&[app.addr()], &history);
    audit::check(&history, &stack.ledger(), &terms);
}

#[test]
fn a_rebuilt_sale_keeps_its_time() {
    let stack = Stack::new(Mode::Distributed);
    let (terms, history) = (Terms { hold_seconds: 30, ..plenty() }, History::default());
    let app = with_terms(stack.app(), &terms).start();
    let Told::Granted(code) = ask(app.addr(), &history, |shopper| shopper.checkout("u", "i")) else {
        panic!("no code: {:?}", history.words())
    };
    let state = format!("{{sale:{}}}:state", clock::sale(terms.sale_seconds));
    // As if Redis' clock had shown this time and had gone back since: the hold was over, and stays so.
    let later_ms = (clock::now() as u64 + 40) * 1000;
    stack.redis_ref().run(&["HSET", &state, "clock", &later_ms.to_string()]);
    let is_over = Told::Refused(400, "invalid_code".into());
    let purchase = || decided(|| ask(app.addr(), &history, |shopper| shopper.purchase(&code))).0;
    assert_eq!(purchase(), is_over);
    stack.redis_ref().run(&["HSET", &state, "epoch", "7"]);
    app.says("recovered: epoch 8", GOING_ON);
    assert_eq!(purchase(), is_over, "after the sale was rebuilt");
    let rebuilt_ms: u64 =
        redis::cmd("HGET").arg(&state).arg("clock").query(&mut stack.redis_ref().connection()).unwrap();
    assert!(rebuilt_ms >= later_ms, "{rebuilt_ms} {later_ms}");
}

/// Its scripts sold in a state that was `open`, and its holds had a field each.
#[test]
fn a_state_of_an_earlier_version() {
    heals(|stack, state, _| {
        stack.redis_ref().run(&["HSET", state, "status", "open"]);
    });
}
