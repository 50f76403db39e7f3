//! Redis does not answer, or says no.

use super::*;
use crate::support::servers::{Mode, Stack};

/// The processor time that a process has used, and its resident memory in kB.
fn usage(pid: u32) -> (Duration, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let pages: u64 = fields[21].parse().unwrap();
    (Duration::from_millis(ticks * 10), pages * 4)
}

#[test]
fn frozen_for_three_seconds() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).env("REDIS_TIMEOUT_MS", 500).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        stack.redis().pause();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let (told, took) = probe(app.addr(), &history);
            assert_eq!(told, Told::Lost("503 unavailable".into()));
            assert!(took < Duration::from_millis(1500), "an answer took {took:?}");
        }
        stack.redis().resume();
    });
}

#[test]
fn away_costs_nothing() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().env("WORKERS", 2).start();
    for hangs in [true, false] {
        if hangs {
            stack.redis().pause()
        } else {
            stack.redis().kill()
        }
        poll("a refusal", GOING_ON, || (app.client().checkout("u", "i").status == 503).then_some(()));
        let before = usage(app.pid());
        std::thread::sleep(Duration::from_secs(2));
        let after = usage(app.pid());
        let worked = after.0.saturating_sub(before.0);
        assert!(worked < Duration::from_millis(300), "hanging: {hangs}; {worked:?} of work in 2 s of waiting");
        assert!(after.1 < before.1 + 4_000, "hanging: {hangs}; grew from {} to {} kB", before.1, after.1);
        if hangs {
            stack.redis().resume();
            poll("an answer", GOING_ON, || (app.client().checkout("u", "i").status == 200).then_some(()));
        }
    }
}

#[test]
fn out_of_memory() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        stack.redis().run(&["CONFIG", "SET", "maxmemory", "1mb"]);
        poll("a refusal", GOING_ON, || {
            (probe(app.addr(), &history).0 == Told::Lost("503 unavailable".into())).then_some(())
        });
        for _ in 0..20 {
            assert_eq!(probe(app.addr(), &history).0, Told::Lost("503 unavailable".into()));
        }
        stack.redis().run(&["CONFIG", "SET", "maxmemory", "0"]);
    });
    assert!(!app.last_words().contains("rebuilding"), "nothing was lost");
}
