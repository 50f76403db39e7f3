//! The minute after a sale's end: what was purchased stays so, and is told to the buyer who asks again.

use crate::support::app::{App, Builder};
use crate::support::clock;
use crate::support::http::Client;
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use std::time::Duration;

crate::on_stacks! {
    distributed: a_purchase_repeated_across_the_end, the_wait_of_a_user_who_has_purchased_the_limit;
    embedded: a_purchase_repeated_across_the_end, the_wait_of_a_user_who_has_purchased_the_limit
}

const PATIENCE: Duration = Duration::from_secs(20);

/// An instance in a sale that ends in some seconds, with a code that is purchased and one that is not; when it has ended.
struct Ended {
    stack: Stack,
    builder: Builder,
    app: App,
    purchased: String,
    held: String,
}

impl Ended {
    fn sale(mode: Mode) -> Ended {
        let stack = Stack::new(mode);
        // Neither is the end near when the sale begins to be used, nor is the one after it before the test is over.
        let sale_seconds = clock::sale_seconds_ending_in(6..9);
        let builder = stack.app().env("SALE_SECONDS", sale_seconds).env("HOLD_SECONDS", 60).env("WORKERS", 2);
        let app = builder.start();
        let end = clock::sale_end(sale_seconds);
        let mut client = app.client();
        let (purchased, held) = (client.code("u", "lamp"), client.code("u", "lamp"));
        assert_eq!(client.purchase(&purchased).status, 200);
        assert!(clock::now() < end as f64, "the machine is too slow for this sale");
        poll("the sale's end", PATIENCE, || (clock::now() > end as f64 + 0.2).then_some(()));
        Ended { stack, builder, app, purchased, held }
    }

    fn check(&self, app: &App) {
        // A connection to each worker.
        for mut client in [app.client(), app.client()] {
            let again = decided(&mut client, &self.purchased);
            assert_eq!((again.0, again.1.as_str(), again.2.as_str()), (409, "already_purchased", "lamp"));
            let held = decided(&mut client, &self.held);
            assert_eq!((held.0, held.1.as_str()), (400, "invalid_code"));
        }
        // What is held from now on is of the next sale.
        let code = app.client().code("v", "chair");
        assert_eq!(app.client().purchase(&code).status, 200);
    }
}

/// Status, error and item of a purchase, as soon as there is a decision.
fn decided(client: &mut Client, code: &str) -> (u16, String, String) {
    poll("a decision", PATIENCE, || {
        let answer = client.purchase(code);
        let item = if answer.status == 409 { answer.field("item_id") } else { String::new() };
        (answer.status != 503).then(|| (answer.status, answer.error(), item))
    })
}

fn a_purchase_repeated_across_the_end(mode: Mode) {
    let mut ended = Ended::sale(mode);
    ended.check(&ended.app);
    // The next instance to start knows it too.
    ended.app.restart();
    ended.check(&ended.app);
    if mode == Mode::Distributed {
        // So does one that finds nothing in Redis, and one that has been there.
        let other = ended.builder.start();
        ended.stack.redis().wipe();
        ended.check(&ended.app);
        ended.check(&other);
    }
}

fn the_wait_of_a_user_who_has_purchased_the_limit(mode: Mode) {
    let stack = Stack::new(mode);
    let sale_seconds = clock::quiet_sale_seconds();
    let app = stack
        .app()
        .env("USER_LIMIT", 1)
        .env("SALE_SECONDS", sale_seconds)
        .env("HOLD_SECONDS", 2)
        .env("WORKERS", 1)
        .start();
    let mut client = app.client();
    let code = client.code("u", "i");
    let refused = client.checkout("u", "i");
    assert_eq!((refused.status, refused.retry_after()), (429, 2), "a hold that is not purchased comes back");
    assert_eq!(client.purchase(&code).status, 200);
    // In Redis it is known as soon as the hold time is over, in memory at once.
    let retry = poll("the wait until the next sale", PATIENCE, || {
        let refused = client.checkout("u", "i");
        assert_eq!(refused.status, 429);
        Some(refused.retry_after()).filter(|retry| *retry > 2)
    });
    let left = clock::sale_end(sale_seconds) as f64 - clock::now();
    assert!((retry as f64 - left).abs() < 5.0, "{retry} of {left}");
}
