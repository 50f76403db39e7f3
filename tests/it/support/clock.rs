//! Sales start at multiples of their length: lengths that keep the next edge away from a test, or bring it near.

use super::process::poll;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// No test takes longer than this between its look at the clock and its last request.
const QUIET_SECONDS: u64 = 300;

/// Unix time in seconds.
pub fn now() -> f64 {
    since_epoch().as_secs_f64()
}

/// The sale that is on now, for a given length: its start in unix seconds.
pub fn sale(sale_seconds: u64) -> u64 {
    since_epoch().as_secs() / sale_seconds * sale_seconds
}

/// When the sale that is on now ends, in unix seconds.
pub fn sale_end(sale_seconds: u64) -> u64 {
    sale(sale_seconds) + sale_seconds
}

/// A length of about a day with which no sale ends in the next minutes.
pub fn quiet_sale_seconds() -> u64 {
    quiet_at(since_epoch().as_secs())
}

/// The same at a given moment.
pub fn quiet_at(now: u64) -> u64 {
    let quiet = |length: &u64| (QUIET_SECONDS..length - QUIET_SECONDS).contains(&(now % length));
    (80_000..=86_400).rev().find(quiet).expect("some length has no edge now")
}

/// A length with which the sale that is on ends in so many seconds. There is one at most moments: where the seconds in question
/// have no divisor below 1,000, this waits for others.
pub fn sale_seconds_ending_in(seconds: std::ops::Range<u64>) -> u64 {
    let found = || length_ending_in(&seconds, since_epoch().as_secs());
    poll("a moment at which some length ends then", Duration::from_secs(60), found)
}

fn length_ending_in(seconds: &std::ops::Range<u64>, now: u64) -> Option<u64> {
    (seconds.end..1000).find(|length| seconds.contains(&(length - now % length)))
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970")
}
