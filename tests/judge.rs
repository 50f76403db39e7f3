//! The judge of the scripts: the memory inventory, the obvious version of every decision, and the real scripts on a
//! real Redis are led through the same requests at the same times and must agree on every outcome and on the state.
//!
//! `JUDGE_CASES` is how many random sequences are played; a failure prints the seed, and `JUDGE_SEED` repeats it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a failed test")]
// Not every tool of the shared harness is needed here.
#![allow(dead_code)]

#[path = "judge/bench.rs"]
mod bench;
#[path = "judge/case.rs"]
mod case;
#[path = "judge/directed.rs"]
mod directed;
#[path = "judge/duel.rs"]
mod duel;
#[path = "it/support/process.rs"]
mod process;
#[path = "it/support/redis_server.rs"]
mod redis_server;
#[path = "judge/state.rs"]
mod state;

use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use std::cell::RefCell;

/// Sequences in an ordinary run: some fifteen seconds.
const CASES: u32 = 6_000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

#[test]
fn scripts_and_memory_agree() {
    let seed = from_env("JUDGE_SEED").unwrap_or_else(|| fastrand::u64(..));
    let cases = from_env("JUDGE_CASES").map_or(CASES, |cases| u32::try_from(cases).expect("JUDGE_CASES"));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    // The seed is printed instead of a file being kept.
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let bench = RefCell::new(bench::Bench::start());
    let played = runner.run(&case::cases(), |case| {
        let result = duel::play(&mut bench.borrow_mut(), &case);
        result.map_err(proptest::test_runner::TestCaseError::fail)
    });
    match played {
        Ok(()) => println!("{cases} sequences, seed {seed}; {}", bench.borrow().tally()),
        Err(TestError::Fail(why, case)) => {
            panic!("JUDGE_SEED={seed} JUDGE_CASES={cases} repeats this.\n{why}\nthe shortest sequence found:\n{case}")
        }
        Err(TestError::Abort(why)) => panic!("JUDGE_SEED={seed}: {why}"),
    }
}
