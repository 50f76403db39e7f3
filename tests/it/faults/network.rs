//! The way to Redis is bad.

use super::*;
use crate::support::proxy::Proxy;
use crate::support::servers::{Mode, Stack};

fn behind_a_proxy(terms: &Terms) -> (Stack, Proxy, App) {
    let mut stack = Stack::new(Mode::Distributed);
    let proxy = Proxy::to(stack.redis().addr());
    let app = with_terms(stack.app().env("REDIS_ADDR", proxy.addr()), terms).env("REDIS_TIMEOUT_MS", 500);
    let app = app.start();
    (stack, proxy, app)
}

#[test]
fn replies_cut_in_the_middle() {
    let (terms, history) = (plenty(), History::default());
    let (stack, proxy, app) = behind_a_proxy(&terms);
    under_load(&[&app], &history, &stack.ledger(), &terms, || {
        proxy.cut_replies(10);
        poll("ten replies that are cut", GOING_ON * 2, || (proxy.cuts_left() == 0).then_some(()));
    });
    let lost = history.words().iter().filter(|word| word.starts_with("lost: 503")).count();
    assert!(lost >= 10, "{lost} answers were lost with ten replies");
}

#[test]
fn what_a_lost_answer_took_comes_back() {
    let (terms, history) = (Terms { items: 30, user_limit: 30, hold_seconds: 3, ..plenty() }, History::default());
    let (stack, proxy, app) = behind_a_proxy(&terms);
    let take = |shopper: &mut Shopper<'_>| match shopper.checkout("u", "i") {
        Told::Granted(code) => shopper.purchase(&code),
        told => told,
    };
    for _ in 0..3 {
        proxy.cut_replies(1);
        // A worker that still connects anew refuses; the first decision is the one whose answer is lost.
        poll("a lost answer", GOING_ON, || {
            assert!(matches!(ask(app.addr(), &history, take), Told::Lost(_)));
            (proxy.cuts_left() == 0).then_some(())
        });
        sells_at(app.addr(), &history);
    }
    // Each item is sold once, those of the lost answers and of the probes too when their time is over.
    poll("the last item", Duration::from_secs(20), || {
        ask(app.addr(), &history, take);
        (stack.ledger().rows().purchases.len() as u64 == terms.items).then_some(())
    });
    let told = decided(|| ask(app.addr(), &history, take)).0;
    assert_eq!(told, Told::Refused(409, "sold_out".into()));
    audit::check(&history, &stack.ledger(), &terms);
}

#[test]
fn slow_replies() {
    let (terms, history) = (plenty(), History::default());
    let (stack, proxy, app) = behind_a_proxy(&terms);
    under_load(&[&app], &history, &stack.ledger(), &terms, || {
        proxy.delay(Duration::from_millis(100));
        let (told, took) = probe(app.addr(), &history);
        assert!(matches!(told, Told::Granted(_)) && took >= Duration::from_millis(100), "{told:?} after {took:?}");
        // Too slow to be waited for.
        proxy.delay(Duration::from_millis(900));
        std::thread::sleep(Duration::from_millis(600));
        for _ in 0..5 {
            let (told, took) = probe(app.addr(), &history);
            assert_eq!(told, Told::Lost("503 unavailable".into()));
            assert!(took < Duration::from_millis(1500), "an answer took {took:?}");
        }
        proxy.delay(Duration::ZERO);
    });
}
