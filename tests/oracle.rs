//! The oracle of the scripts: the memory inventory, the obvious version of every decision, and the real scripts on a
//! real Redis are led through the same requests at the same times and must agree on every outcome and on the state.
//!
//! `JUDGE_CASES` is how many random sequences are played; a failure prints the seed, and `JUDGE_SEED` repeats it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a failed test")]
// Not every tool of the shared harness is needed here.
#![allow(dead_code)]

#[path = "oracle/bench.rs"]
mod bench;
#[path = "oracle/case.rs"]
mod case;
#[path = "oracle/directed.rs"]
mod directed;
#[path = "oracle/duel.rs"]
mod duel;
#[path = "oracle/offers.rs"]
mod offers;
#[path = "it/support/process.rs"]
mod process;
#[path = "it/support/redis_server.rs"]
mod redis_server;
#[path = "oracle/state.rs"]
mod state;

use bench::Bench;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use std::fmt::{Debug, Display};

/// Sequences in an ordinary run: some seconds.
const CASES: u32 = 6_000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Plays random cases on one Redis; a failure says how to repeat it, and the shortest case that fails.
fn compare<C: Debug + Display>(
    cases: impl Strategy<Value = C>,
    share: u32,
    play: impl Fn(&mut Bench, &C) -> Result<(), String>,
) {
    let seed = from_env("JUDGE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let count = from_env("JUDGE_CASES").map_or(CASES, |count| u32::try_from(count).expect("JUDGE_CASES"));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    // The seed is printed; no file is kept.
    let config =
        Config { cases: count / share, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let bench = RefCell::new(Bench::start());
    let played = runner.run(&cases, |case| play(&mut bench.borrow_mut(), &case).map_err(TestCaseError::fail));
    match played {
        Ok(()) => println!("{} cases, JUDGE_SEED={seed}; {}", count / share, bench.borrow().tally()),
        Err(TestError::Fail(why, case)) => {
            panic!("JUDGE_SEED={seed} JUDGE_CASES={count} repeats this.\n{why}\nthe shortest case found:\n{case}")
        }
        Err(TestError::Abort(why)) => panic!("JUDGE_SEED={seed}: {why}"),
    }
}

#[test]
fn scripts_and_memory_agree() {
    compare(case::cases(), 1, duel::play);
}

#[test]
fn offers_are_decided_as_the_obvious_version_does() {
    compare(offers::cases(), 3, offers::play);
}
