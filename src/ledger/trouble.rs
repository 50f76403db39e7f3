//! What the log is told of a server that refuses for a time: the ledger that takes no records, or a Redis that takes
//! no writes.
//!
//! Owns the one line at the beginning and the one at the end. Invariant: the lines come in pairs, however often the
//! server changes its mind in between: a disk that is nearly full takes a small batch after it refused a large one.
//! Leaves to its owner what was refused, and why.

use std::time::{Duration, Instant};

/// For how long nothing may fail until a time of failures is said to be over.
pub const CALM: Duration = Duration::from_secs(1);

/// A time of failures, if there is one now.
#[derive(Debug)]
pub struct Trouble {
    begins: &'static str,
    ends: &'static str,
    spell: Option<Spell>,
}

#[derive(Debug)]
struct Spell {
    began: Instant,
    failed: Instant,
    /// When something was written first since the last failure.
    written: Option<Instant>,
}

impl Trouble {
    /// None yet. `begins` is logged with the reason, `ends` with how long it took.
    pub fn new(begins: &'static str, ends: &'static str) -> Trouble {
        Trouble { begins, ends, spell: None }
    }

    /// The server refused at `now`, for this reason.
    pub fn failed(&mut self, now: Instant, why: &str) {
        match &mut self.spell {
            Some(spell) => (spell.failed, spell.written) = (now, None),
            None => {
                tracing::error!("{}: {why}", self.begins);
                self.spell = Some(Spell { began: now, failed: now, written: None });
            }
        }
    }

    /// Whether there is one now.
    pub fn is_on(&self) -> bool {
        self.spell.is_some()
    }

    /// The server took what it was given at `now`, or would have.
    pub fn written(&mut self, now: Instant) {
        if let Some(spell) = &mut self.spell {
            spell.written.get_or_insert(now);
        }
    }

    /// How long to wait at most before [`Trouble::settle`] is called again; `None` if it has nothing to say.
    pub fn until_calm(&self, now: Instant) -> Option<Duration> {
        let spell = self.spell.as_ref().filter(|spell| spell.written.is_some())?;
        Some(CALM.saturating_sub(now.saturating_duration_since(spell.failed)))
    }

    /// Says that it is over, once it has been for [`CALM`]. Returns how long it took, from the first failure to the
    /// first success after the last one.
    pub fn settle(&mut self, now: Instant) -> Option<Duration> {
        self.until_calm(now).filter(Duration::is_zero)?;
        let spell = self.spell.take()?;
        let took = spell.written.unwrap_or(spell.failed).saturating_duration_since(spell.began);
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
        let mut trouble = Trouble::new("it begins", "it is over");
        trouble.written(start);
        assert_eq!(trouble.until_calm(start), None);
        assert!(!trouble.is_on());
        trouble.failed(start, "full");
        assert!(trouble.is_on());
        assert_eq!(trouble.settle(start + CALM * 2), None, "nothing was written yet");
        trouble.written(start + ms(1800));
        trouble.failed(start + ms(1900), "full");
        assert_eq!(trouble.settle(start + CALM * 9), None, "it failed again");
        trouble.written(start + ms(1950));
        trouble.written(start + ms(1990));
        assert_eq!(trouble.until_calm(start + ms(2000)), Some(CALM - ms(100)));
        assert_eq!(trouble.settle(start + ms(2000)), None, "a moment ago it failed");
        assert_eq!(trouble.settle(start + ms(1900) + CALM), Some(ms(1950)));
        assert_eq!(trouble.settle(start + CALM * 9), None, "it was said");
        assert!(!trouble.is_on());
    }
}
