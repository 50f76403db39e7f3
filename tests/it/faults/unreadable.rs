//! A user's share or a chunk of holds that no script can read: the sale is rebuilt, however good its other fields look.

use super::*;
use crate::support::servers::Mode;

/// How long a hold lasts in these tests.
const HOLD: u64 = 2;

/// A field that a command damages: the share of the user "x", or the chunk of the one hold that there is.
#[derive(Clone, Copy, Debug)]
enum Part {
    Share,
    Chunk,
}

/// Sets the field to `value`, or removes it.
fn damage(stack: &Stack, terms: &Terms, part: Part, value: Option<&str>) {
    let (redis, state) = (stack.redis_ref(), format!("{{sale:{}}}:state", clock::sale(terms.sale_seconds)));
    let fields: Vec<String> = redis::cmd("HKEYS").arg(&state).query(&mut redis.connection()).unwrap();
    let is_meant = |field: &&String| match part {
        Part::Share => *field == "u:x",
        Part::Chunk => field.starts_with('c') && field.contains(':'),
    };
    let field = fields.iter().find(is_meant).unwrap();
    match value {
        Some(value) => redis.run(&["HSET", &state, field, value]),
        None => redis.run(&["HDEL", &state, field]),
    };
}

/// A sale of a few items with one hold, of the user "x", that is in the ledger; and its code.
fn one_hold(stack: &Stack, items: u64) -> (Terms, App, String) {
    let terms = Terms { items, user_limit: 1, hold_seconds: HOLD, ..plenty() };
    let app = with_terms(stack.app(), &terms).start();
    let code = app.client().code("x", "i");
    let ledger = stack.ledger();
    poll("the row", GOING_ON, || (ledger.rows().attempts.len() == 1).then_some(()));
    (terms, app, code)
}

const DAMAGES: [(Part, Option<&str>); 4] =
    [(Part::Share, Some("abc")), (Part::Share, None), (Part::Chunk, Some("x")), (Part::Chunk, None)];

#[test]
fn an_item_comes_back_whatever_its_hold_looks_like() {
    for (part, value) in DAMAGES {
        println!("{part:?} = {value:?}");
        let stack = Stack::new(Mode::Distributed);
        let (terms, app, _) = one_hold(&stack, 1);
        damage(&stack, &terms, part, value);
        let mut client = app.client();
        poll("the item", GOING_ON + Duration::from_secs(HOLD), || {
            (client.checkout("y", "i").status == 200).then_some(())
        });
        app.says("cannot read", GOING_ON);
    }
}

#[test]
fn a_hold_is_redeemed_whatever_its_chunk_looks_like() {
    // The second says that the item has two bytes.
    for value in [Some("x"), Some("40000000000004000000001000!\"xi")] {
        let stack = Stack::new(Mode::Distributed);
        let terms = Terms { hold_seconds: 3600, ..plenty() };
        let app = with_terms(stack.app(), &terms).start();
        let (mut client, ledger) = (app.client(), stack.ledger());
        let code = client.code("x", "i");
        poll("the row", GOING_ON, || (ledger.rows().attempts.len() == 1).then_some(()));
        damage(&stack, &terms, Part::Chunk, value);
        let answer = poll("an answer", GOING_ON, || Some(client.purchase(&code)).filter(|answer| answer.status != 503));
        assert_eq!(answer.status, 200, "{value:?}: {}", answer.text());
    }
}

#[test]
fn a_users_limit_holds_whatever_the_share_looks_like() {
    let stack = Stack::new(Mode::Distributed);
    let (terms, app, code) = one_hold(&stack, 5);
    let mut client = app.client();
    assert_eq!(client.purchase(&code).status, 200);
    damage(&stack, &terms, Part::Share, Some("abc"));
    let answer = poll("an answer", GOING_ON, || Some(client.checkout("x", "i")).filter(|answer| answer.status != 503));
    assert_eq!(answer.status, 429, "{}", answer.text());
}
