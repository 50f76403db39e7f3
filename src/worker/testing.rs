//! Tests of code that runs on a worker.
//!
//! Owns the workers of the test process: `may` has one set of them in a process, so all tests ask for the same number.

use super::{Vitals, Workers, panic_text};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How many workers a test process has.
pub(crate) const WORKERS: usize = 2;
/// Words of 8 bytes on the stack of a test: unoptimised code and the words of a failed assertion need more than a worker's own work.
const STACK_WORDS: usize = 1 << 16;

/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `test` as a coroutine on worker 0, and fails as it fails.
pub(crate) fn on_worker(test: impl FnOnce(Workers) + Send + 'static) {
    let workers = Workers::start(WORKERS, Vitals::new().0).unwrap();
    let (done, ended) = crossbeam_channel::bounded(1);
    let work = move || {
        let _ = done.send(catch_unwind(AssertUnwindSafe(|| test(workers))));
    };
    let builder = may::coroutine::Builder::new().stack_size(STACK_WORDS).id(0);
    may::go!(builder, work).map(drop).unwrap();
    if let Err(panic) = ended.recv_timeout(LIMIT).expect("the test ends") {
        // What is printed on a worker's thread does not come into this test's output.
        panic!("{}", panic_text(panic.as_ref()));
    }
}
