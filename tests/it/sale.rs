//! Sales under load: never one item more than the stock, no user above the limit, nothing lost in the ledger.

use crate::support::app::App;
use crate::support::audit::{self, Terms};
use crate::support::clock;
use crate::support::history::{History, Shopper, Told, load};
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::Duration;

crate::on_stacks! {
    distributed: a_fight_for_all_items, racers_for_one_code, expired_holds_are_sold_again, holds_come_and_go,
        edges_under_load;
    embedded: a_fight_for_all_items, racers_for_one_code, expired_holds_are_sold_again, holds_come_and_go,
        edges_under_load
}

fn start(stack: &Stack, terms: &Terms) -> App {
    stack
        .app()
        .env("SALE_ITEMS", terms.items)
        .env("USER_LIMIT", terms.user_limit)
        .env("SALE_SECONDS", terms.sale_seconds)
        .env("HOLD_SECONDS", terms.hold_seconds)
        .start()
}

fn a_fight_for_all_items(mode: Mode) {
    let stack = Stack::alone(mode);
    let sale_seconds = clock::quiet_sale_seconds();
    let terms = Terms { items: 10_000, user_limit: 10, sale_seconds, hold_seconds: 3600 };
    let app = start(&stack, &terms);
    let history = History::default();
    let step = |shopper: &mut Shopper<'_>| {
        let user = format!("u{}", fastrand::u32(..1500));
        // Each stays until he hears that nothing is left.
        shopper.checkout(&user, &format!("i{}", shopper.round % 7)) != Told::Refused(409, "sold_out".into())
    };
    load(&[app.addr()], 64, &history, step, |_| {});
    let codes = history.codes();
    assert_eq!(codes.len() as u64, terms.items);

    let next = AtomicUsize::new(0);
    let redeem = |shopper: &mut Shopper<'_>| {
        let code = codes.get(next.fetch_add(1, Ordering::Relaxed));
        code.is_some_and(|code| matches!(shopper.purchase(code), Told::Granted(_)))
    };
    load(&[app.addr()], 64, &history, redeem, |_| {});
    let granted = history.purchases().iter().filter(|p| matches!(p.told, Told::Granted(_))).count();
    assert_eq!(granted as u64, terms.items);
    let unexpected = |word: &String| word != "409 sold_out" && word != "429 user_limit";
    assert_eq!(history.words().into_iter().find(unexpected), None);

    let rows = audit::check(&history, &stack.ledger(), &terms);
    assert_eq!((rows.attempts.len(), rows.purchases.len()), (10_000, 10_000));
    let mut users: HashMap<&str, u64> = HashMap::new();
    rows.purchases.iter().for_each(|p| *users.entry(&p.user).or_default() += 1);
    assert_eq!(users.values().filter(|count| **count > terms.user_limit).count(), 0);
    assert_eq!(app.client().checkout("late", "i").error(), "sold_out");
}

fn racers_for_one_code(mode: Mode) {
    let stack = Stack::new(mode);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let code = app.client().code("u", "lamp");
    let barrier = Barrier::new(100);
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let mut client = app.client();
                // Connected before the start.
                assert_eq!(client.get("/").status, 404);
                barrier.wait();
                let answer = client.purchase(&code);
                answers.lock().unwrap().push(answer);
            });
        }
    });
    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
    for answer in answers.into_inner().unwrap() {
        *statuses.entry(answer.status).or_default() += 1;
        assert_eq!(answer.field("item_id"), "lamp", "{}", answer.text());
        assert!(answer.status == 200 || answer.error() == "already_purchased", "{}", answer.text());
    }
    assert_eq!(statuses, BTreeMap::from([(200, 1), (409, 99)]));
}

fn expired_holds_are_sold_again(mode: Mode) {
    let stack = Stack::new(mode);
    let terms = Terms { items: 5, user_limit: 5, sale_seconds: clock::quiet_sale_seconds(), hold_seconds: 2 };
    let app = start(&stack, &terms);
    let mut client = app.client();
    let codes: Vec<String> = (0..5).map(|_| client.code("u", "i")).collect();
    for code in &codes[..2] {
        assert_eq!(client.purchase(code).status, 200);
    }
    let refused = client.checkout("v", "i");
    assert_eq!((refused.status, refused.error().as_str()), (409, "sold_out"));
    let retry = refused.retry_after();
    assert!((1..=2).contains(&retry), "{retry}");
    // Retry-After is a promise: who waits that long finds something.
    std::thread::sleep(Duration::from_secs(retry));
    let again = client.code("u", "i");
    assert!(!codes.contains(&again));
    for _ in 0..2 {
        poll("the other expired holds", Duration::from_secs(3), || {
            (client.checkout("u", "i").status == 200).then_some(())
        });
    }
    assert_eq!(client.checkout("x", "i").error(), "sold_out", "what was purchased does not come back");
    for code in &codes[2..] {
        let answer = client.purchase(code);
        assert_eq!((answer.status, answer.error().as_str()), (400, "invalid_code"), "an expired hold");
    }
    assert_eq!(client.purchase(&codes[0]).error(), "already_purchased");
    assert_eq!(client.purchase(&again).status, 200);
}

fn holds_come_and_go(mode: Mode) {
    let stack = Stack::alone(mode);
    let terms = Terms { items: 300, user_limit: 3, sale_seconds: clock::quiet_sale_seconds(), hold_seconds: 1 };
    let app = start(&stack, &terms);
    let history = History::default();
    let step = |shopper: &mut Shopper<'_>| {
        let told = shopper.checkout(&format!("u{}", fastrand::u32(..150)), "i");
        match told {
            Told::Granted(code) if fastrand::u32(..20) == 0 => shopper.purchase(&code),
            other => other,
        };
        true
    };
    load(&[app.addr()], 16, &history, step, |stop| {
        poll("four times the stock, hold after hold", Duration::from_secs(60), || {
            (history.granted() > 4 * terms.items).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
    });
    let expected = ["409 sold_out", "429 user_limit", "400 invalid_code"];
    assert_eq!(history.words().into_iter().find(|word| !expected.contains(&word.as_str())), None);
    audit::check(&history, &stack.ledger(), &terms);
}

fn edges_under_load(mode: Mode) {
    let stack = Stack::alone(mode);
    let terms = Terms { items: 200, user_limit: 5, sale_seconds: 4, hold_seconds: 3 };
    let app = start(&stack, &terms);
    let history = History::default();
    let first = clock::sale(terms.sale_seconds);
    let step = |shopper: &mut Shopper<'_>| {
        let user = format!("u{}", fastrand::u32(..100));
        match shopper.checkout(&user, "i") {
            Told::Granted(code) if fastrand::bool() => shopper.purchase(&code),
            other => other,
        };
        clock::sale(terms.sale_seconds) < first + 4 * terms.sale_seconds
    };
    load(&[app.addr()], 8, &history, step, |_| {});

    // At an edge nothing fails: there is no word but those of business.
    let expected = ["409 sold_out", "429 user_limit", "400 invalid_code"];
    assert_eq!(history.words().into_iter().find(|word| !expected.contains(&word.as_str())), None);
    let rows = audit::check(&history, &stack.ledger(), &terms);
    for sale in (1..4).map(|n| first + n * terms.sale_seconds) {
        let held = rows.attempts.iter().filter(|row| row.sale == sale).count() as u64;
        assert!(held >= terms.items, "sale {sale} held {held} of {}", terms.items);
    }
    for checkout in history.checkouts().iter().filter(|c| matches!(c.told, Told::Granted(_))) {
        let Told::Granted(code) = &checkout.told else { continue };
        let row = rows.attempts.iter().find(|row| &row.code == code).unwrap();
        assert!(checkout.expires_at <= row.sale + terms.sale_seconds, "{checkout:?} {row:?}");
    }
    // Held in the last moments of a sale, redeemed in the next: the sale counts, not the hold time.
    let old = rows.attempts.iter().find(|row| row.sale == first + terms.sale_seconds && !row.used);
    if let Some(old) = old {
        assert_eq!(app.client().purchase(&old.code).error(), "invalid_code", "a code of an ended sale");
    }
    let used = rows.purchases.iter().find(|row| row.sale == first + terms.sale_seconds).expect("a purchase");
    let again = app.client().purchase(&used.code);
    assert_eq!((again.error().as_str(), again.field("item_id")), ("already_purchased", used.item.clone()));
}
