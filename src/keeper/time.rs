//! The time that the keeper waits by.
//!
//! Owns the trait through which the keeper reads the machine's monotonic clock and waits, so that a test can put a virtual
//! clock in its place. Invariant of each implementation: the time does not go back. Leaves to [`super::clock`] what Redis'
//! clock shows.

use std::time::{Duration, Instant};

/// A monotonic clock, and waiting by it.
pub trait TimeSource: Send + Sync {
    /// The present moment. Never goes back.
    fn now(&self) -> Instant;

    /// Returns `duration` later.
    fn sleep(&self, duration: Duration);
}

/// The machine's clock. Waiting blocks the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineTime;

impl TimeSource for MachineTime {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, duration: Duration) {
        std::thread::sleep(duration);
    }
}

/// Whether what was done at `last` is to be done again at `now`, if it is done every so often.
pub(super) fn is_due(last: Option<Instant>, now: Instant, every: Duration) -> bool {
    last.is_none_or(|last| now.saturating_duration_since(last) >= every)
}
