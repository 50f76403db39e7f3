//! What the log is told of a ledger that does not take records.
//!
//! Owns the one line at the beginning and the one at the end. Invariant: the lines come in pairs, however often the
//! ledger changes its mind in between: a disk that is nearly full takes a small batch after it refused a large one.
//! Refuses to know what is written and why it failed.

use std::time::{Duration, Instant};

/// For how long nothing may fail until a time of failures is said to be over.
pub const CALM: Duration = Duration::from_secs(1);

/// A time of failures, if there is one now.
#[derive(Debug, Default)]
pub struct Trouble(Option<Spell>);

#[derive(Debug)]
struct Spell {
    began: Instant,
    failed: Instant,
    /// Whether something was written since the last failure.
    written: bool,
}

impl Trouble {
    /// The ledger refused at `now`, for this reason.
    pub fn failed(&mut self, now: Instant, why: &str) {
        match &mut self.0 {
            Some(spell) => (spell.failed, spell.written) = (now, false),
            None => {
                tracing::error!("the ledger does not take records: {why}");
                self.0 = Some(Spell { began: now, failed: now, written: false });
            }
        }
    }

    /// Whether there is one now.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The ledger took records, or could have.
    pub fn written(&mut self) {
        if let Some(spell) = &mut self.0 {
            spell.written = true;
        }
    }

    /// How long to wait at most before [`Trouble::settle`] is called again; `None` if it has nothing to say.
    pub fn until_calm(&self, now: Instant) -> Option<Duration> {
        let spell = self.0.as_ref().filter(|spell| spell.written)?;
        Some(CALM.saturating_sub(now.saturating_duration_since(spell.failed)))
    }

    /// Says that it is over, once it has been for [`CALM`]. Returns how long it took, from the first failure to the last.
    pub fn settle(&mut self, now: Instant) -> Option<Duration> {
        self.until_calm(now).filter(Duration::is_zero)?;
        let spell = self.0.take()?;
        let took = spell.failed.saturating_duration_since(spell.began);
        tracing::info!("the ledger takes records again, after {took:.1?} of failures");
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
        let mut trouble = Trouble::default();
        trouble.written();
        assert_eq!(trouble.until_calm(start), None);
        assert!(!trouble.is_on());
        trouble.failed(start, "full");
        assert!(trouble.is_on());
        assert_eq!(trouble.settle(start + CALM * 2), None, "nothing was written yet");
        trouble.written();
        trouble.failed(start + ms(1900), "full");
        assert_eq!(trouble.settle(start + CALM * 9), None, "it failed again");
        trouble.written();
        assert_eq!(trouble.until_calm(start + ms(2000)), Some(CALM - ms(100)));
        assert_eq!(trouble.settle(start + ms(2000)), None, "a moment ago it failed");
        assert_eq!(trouble.settle(start + ms(1900) + CALM), Some(ms(1900)));
        assert_eq!(trouble.settle(start + CALM * 9), None, "it was said");
        assert!(!trouble.is_on());
    }
}
