//! What the log is told of a server that refuses for a time: the ledger that takes no records, or a Redis that takes
//! no writes.
//!
//! Owns the one line at the beginning and the one at the end. Invariant: the lines come in pairs, however often the
//! server changes its mind in between: a disk that is nearly full takes a small batch after it refused a large one.
//! Leaves to its owner what was refused, and why.

use std::time::{Duration, Instant};

/// For how long nothing may fail until a time of failures is said to be over.
pub const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// A time of failures, if there is one now.
#[derive(Debug)]
pub struct Outage {
    begins: &'static str,
    ends: &'static str,
    ongoing: Option<Ongoing>,
}

#[derive(Debug)]
struct Ongoing {
    began: Instant,
    failed: Instant,
    /// When something was written first since the last failure.
    written: Option<Instant>,
}

impl Outage {
    /// None yet. `begins` is logged with the reason, `ends` with how long it took.
    pub fn new(begins: &'static str, ends: &'static str) -> Outage {
        Outage { begins, ends, ongoing: None }
    }

    /// The server refused at `now`, for this reason.
    pub fn failed(&mut self, now: Instant, why: &str) {
        match &mut self.ongoing {
            Some(ongoing) => (ongoing.failed, ongoing.written) = (now, None),
            None => {
                tracing::error!("{}: {why}", self.begins);
                self.ongoing = Some(Ongoing { began: now, failed: now, written: None });
            }
        }
    }

    /// Whether there is one now.
    pub fn is_on(&self) -> bool {
        self.ongoing.is_some()
    }

    /// The server took what it was given at `now`, or would have.
    pub fn written(&mut self, now: Instant) {
        if let Some(ongoing) = &mut self.ongoing {
            ongoing.written.get_or_insert(now);
        }
    }

    /// How long to wait at most before [`Outage::settle`] is called again; `None` if it has nothing to say.
    pub fn until_quiet(&self, now: Instant) -> Option<Duration> {
        let ongoing = self.ongoing.as_ref().filter(|ongoing| ongoing.written.is_some())?;
        Some(QUIET_PERIOD.saturating_sub(now.saturating_duration_since(ongoing.failed)))
    }

    /// Says that it is over, once it has been for [`QUIET_PERIOD`]. Returns how long it took, from the first failure to the
    /// first success after the last one.
    pub fn settle(&mut self, now: Instant) -> Option<Duration> {
        self.until_quiet(now).filter(Duration::is_zero)?;
        let ongoing = self.ongoing.take()?;
        let took = ongoing.written.unwrap_or(ongoing.failed).saturating_duration_since(ongoing.began);
        tracing::info!("{}, after {took:.1?}", self.ends);
        Some(took)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_nothing_failed_for_a_while_and_something_was_written() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut outage = Outage::new("it begins", "it is over");
        outage.written(start);
        assert_eq!(outage.until_quiet(start), None);
        assert!(!outage.is_on());
        outage.failed(start, "full");
        assert!(outage.is_on());
        assert_eq!(outage.settle(start + QUIET_PERIOD * 2), None, "nothing was written yet");
        outage.written(start + ms(1800));
        outage.failed(start + ms(1900), "full");
        assert_eq!(outage.settle(start + QUIET_PERIOD * 9), None, "it failed again");
        outage.written(start + ms(1950));
        outage.written(start + ms(1990));
        assert_eq!(outage.until_quiet(start + ms(2000)), Some(QUIET_PERIOD - ms(100)));
        assert_eq!(outage.settle(start + ms(2000)), None, "a moment ago it failed");
        assert_eq!(outage.settle(start + ms(1900) + QUIET_PERIOD), Some(ms(1950)));
        assert_eq!(outage.settle(start + QUIET_PERIOD * 9), None, "it was said");
        assert!(!outage.is_on());
    }
}
