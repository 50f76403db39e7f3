//! Embedded: a refusal that rests on what the ledger does not have yet is not told before the ledger has it.

use crate::support::app::App;
use crate::support::clock;
use crate::support::history::{History, load};
use crate::support::process::poll;
use crate::support::servers::{Mode, Stack};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::collections::BTreeMap;
use std::time::Duration;

/// Lets the server's files grow no further than to `size` bytes.
fn limit(app: &App, size: Option<u64>) {
    let pid = Pid::from_raw(app.pid().try_into().unwrap());
    prlimit(pid, Resource::Fsize, Rlimit { current: size, maximum: None }).unwrap();
}

fn counted(words: Vec<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    words.into_iter().for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}

#[test]
fn nothing_is_refused_for_the_sake_of_what_is_undone() {
    let stack = Stack::alone(Mode::Embedded);
    let app = stack.app().env("SALE_ITEMS", 3).env("USER_LIMIT", 1).env("HOLD_SECONDS", 3600);
    let app = app.env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    limit(&app, Some(4096));
    let history = History::default();
    // Three items for sixteen at once, some of them under the same name: in memory the stock is gone again and again.
    load(
        &[app.addr()],
        16,
        &history,
        |shopper| {
            shopper.checkout(&format!("u{}", shopper.number % 8), "i");
            shopper.round < 200
        },
        |_| {},
    );
    let counts = counted(history.words());
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["lost: 503 unavailable"], "{counts:?}");
    limit(&app, None);
    poll("a server that goes on", Duration::from_secs(20), || {
        (app.client().checkout("first", "i").status == 200).then_some(())
    });
    // All is there that was undone, and refusals are told again.
    let history = History::default();
    load(
        &[app.addr()],
        8,
        &history,
        |shopper| {
            shopper.checkout(&format!("v{}", shopper.number % 4), "i");
            shopper.round < 50
        },
        |_| {},
    );
    assert_eq!(history.granted(), 2);
    assert!(counted(history.words()).keys().all(|word| word.starts_with('4')), "{:?}", counted(history.words()));
    let code = history.codes().pop().unwrap();
    let mut client = app.client();
    assert_eq!(client.purchase(&code).status, 200);
    // What is on the disk is told whether the ledger takes anything or not.
    limit(&app, Some(4096));
    assert_eq!(client.checkout("w", "i").error(), "sold_out");
    assert_eq!(client.purchase(&code).error(), "already_purchased");
}
