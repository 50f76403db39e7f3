//! Two log lines for each time in which a server refuses: a ledger that takes no records, or a Redis that takes no writes.
//!
//! Owns the line at the beginning and the line at the end. Invariant: the lines come in pairs, even if single calls
//! succeed in between: a disk that is nearly full takes a small batch after it refused a large one. Leaves to its owner
//! what was refused, and why.

use std::time::{Duration, Instant};

/// An outage is over once no call has failed for this long, and one has succeeded.
pub const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// The outage of one server, if there is one now.
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
    /// The first success since the last failure.
    written: Option<Instant>,
}

impl Outage {
    /// No outage yet. `begins` is logged with the reason, `ends` with the length of the outage.
    pub fn new(begins: &'static str, ends: &'static str) -> Outage {
        Outage { begins, ends, ongoing: None }
    }

    /// The server refused at `now`, with the reason `why`.
    pub fn failed(&mut self, now: Instant, why: &str) {
        match &mut self.ongoing {
            Some(ongoing) => (ongoing.failed, ongoing.written) = (now, None),
            None => {
                tracing::error!("{}: {why}", self.begins);
                self.ongoing = Some(Ongoing { began: now, failed: now, written: None });
            }
        }
    }

    /// Whether there is an outage now.
    pub fn is_on(&self) -> bool {
        self.ongoing.is_some()
    }

    /// The server took a write at `now`, or showed that it would take one.
    pub fn written(&mut self, now: Instant) {
        if let Some(ongoing) = &mut self.ongoing {
            ongoing.written.get_or_insert(now);
        }
    }

    /// How long to wait at most before [`Outage::settle`] is called again; `None` if it would log nothing.
    pub fn until_quiet(&self, now: Instant) -> Option<Duration> {
        let ongoing = self.ongoing.as_ref().filter(|ongoing| ongoing.written.is_some())?;
        Some(QUIET_PERIOD.saturating_sub(now.saturating_duration_since(ongoing.failed)))
    }

    /// Logs the end of the outage once [`QUIET_PERIOD`] has passed since the last failure. Returns the outage's length then:
    /// from the first failure to the first success after the last one.
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
