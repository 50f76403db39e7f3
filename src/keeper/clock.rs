//! Redis' clock as this instance believes it.
//!
//! Owns the comparison of Redis' clock with this machine's monotonic one. Invariant: a jump ahead is not followed before it
//! has lasted for [`PATIENCE`], or the ledger's clock says the same: until then the time goes on as it did. So a glitch
//! that is shorter than that moves no sale. An instance that starts has no earlier reading: it waits as long for the
//! ledger's clock to agree (`servers.rs`). Leaves to others: a clock that goes back, which `lua/time.lua` slows down.

use crate::inventory::{CLOCK_TOLERANCE_MS, Clock};
use std::time::{Duration, Instant};

/// How long a jump ahead must last before it is followed. A clock that was behind and is corrected stays ahead, so it is
/// followed after this time. A jump that ends sooner was an error of the clock.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How far the clock in the workers' view may be from the believed one, in milliseconds, before the view gets a new reading.
/// The view's clock goes on by this machine's clock, and Redis' clock may be corrected in small steps.
const COPY_TOLERANCE_MS: u64 = 1_000;

// The workers bound Redis' clock by their copy: an honest clock must not come near the bound.
const _: () = assert!(2 * COPY_TOLERANCE_MS < CLOCK_TOLERANCE_MS);

/// Whether a copy of the believed clock is too far from it at `at`, and has to be made anew.
pub(super) fn is_outdated(copy: &Clock, believed: &Clock, at: Instant) -> bool {
    copy.ms(at).abs_diff(believed.ms(at)) > COPY_TOLERANCE_MS
}

/// A reading that is not as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The clock is ahead by so many milliseconds, and is not followed. Said once.
    Ahead(u64),
    /// The clock has gone back by so many milliseconds.
    Back(u64),
    /// A jump ahead by so many milliseconds is followed from now on.
    Followed(u64),
    /// The clock shows again what it would without its jump ahead.
    Over,
}

/// The clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckedClock {
    /// The last reading that was believed.
    believed: Option<Clock>,
    /// Since when the readings are ahead.
    ahead_since: Option<Instant>,
}

impl CheckedClock {
    /// The believed clock; of the year 1970 before the first reading.
    pub fn clock(&self) -> Clock {
        self.believed.unwrap_or_else(|| Clock::new(Instant::now(), 0))
    }

    /// Takes a reading in: at `at` the clock showed `shown_ms` (unix milliseconds). Returns the time as it is believed, and
    /// what is odd. `confirm` is asked whether another clock shows the same, only where this one has jumped ahead.
    pub fn hear(&mut self, at: Instant, shown_ms: u64, confirm: impl FnOnce() -> bool) -> (u64, Option<Step>) {
        let Some(believed) = self.believed else {
            self.believed = Some(Clock::new(at, shown_ms));
            return (shown_ms, None);
        };
        let expected_ms = believed.ms(at);
        let ahead_ms = shown_ms.saturating_sub(expected_ms);
        if ahead_ms > CLOCK_TOLERANCE_MS {
            let since = *self.ahead_since.get_or_insert(at);
            if at.saturating_duration_since(since) < PATIENCE && !confirm() {
                return (expected_ms, (since == at).then_some(Step::Ahead(ahead_ms)));
            }
        }
        let was_ahead = self.ahead_since.take().is_some();
        self.believed = Some(Clock::new(at, shown_ms));
        let back_ms = expected_ms.saturating_sub(shown_ms);
        let step = match (ahead_ms > CLOCK_TOLERANCE_MS, back_ms > CLOCK_TOLERANCE_MS) {
            (true, _) => Some(Step::Followed(ahead_ms)),
            (_, true) => Some(Step::Back(back_ms)),
            _ => was_ahead.then_some(Step::Over),
        };
        (shown_ms, step)
    }

    /// [`CheckedClock::hear`], with a line in the log for what is odd. Returns the time as it is believed, unix milliseconds.
    pub fn take_in(&mut self, at: Instant, shown_ms: u64, confirm: impl FnOnce() -> bool) -> u64 {
        let (now_ms, step) = self.hear(at, shown_ms, confirm);
        match step {
            None => {}
            Some(Step::Ahead(ms)) => {
                tracing::error!(
                    "Redis' clock has jumped ahead by {ms} ms: sales go on by the time before, for ten seconds at most"
                );
            }
            Some(Step::Followed(ms)) => {
                tracing::warn!("Redis' clock was set ahead by {ms} ms: sales follow it from now on");
            }
            Some(Step::Back(ms)) => tracing::warn!(
                "Redis' clock was set back by {ms} ms: the time of sales that are on goes on at half speed until it has caught up"
            ),
            Some(Step::Over) => tracing::info!("Redis' clock shows the right time again"),
        }
        now_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings of (milliseconds on this machine, what Redis shows) and what is made of each.
    fn check(confirms: bool, rows: &[(u64, u64, u64, Option<Step>)]) {
        let (start, mut clock) = (Instant::now(), CheckedClock::default());
        for (at, shown, believed, step) in rows {
            let heard = clock.hear(start + Duration::from_millis(*at), *shown, || confirms);
            assert_eq!(heard, (*believed, *step), "at {at}");
        }
    }

    #[test]
    fn a_clock_that_is_slewed_stays_within_the_workers_bound() {
        let (start, mut clock) = (Instant::now(), CheckedClock::default());
        let mut view = crate::inventory::View::closed();
        for step in 0..1_500 {
            // 8 % faster than this machine's: as fast as chrony corrects a clock.
            let (at, shown_ms) = (start + Duration::from_millis(200 * step), 50_000 + 216 * step);
            assert_eq!(clock.hear(at, shown_ms, || false), (shown_ms, None));
            if is_outdated(&view.clock, &clock.clock(), at) {
                view.clock = clock.clock();
            }
            assert!(shown_ms <= view.latest_ms(at), "step {step}: {shown_ms} {}", view.latest_ms(at));
        }
    }

    #[test]
    fn a_glitch_and_a_correction() {
        let glitch = [
            (0, 50_000, 50_000, None),
            (200, 50_190, 50_190, None),
            (1_000, 110_990, 50_990, Some(Step::Ahead(60_000))),
            (5_000, 114_990, 54_990, None),
            (9_000, 58_995, 58_995, Some(Step::Over)),
            (9_200, 59_195, 59_195, None),
        ];
        check(false, &glitch);
        let lasting = [
            (0, 50_000, 50_000, None),
            (1_000, 111_000, 51_000, Some(Step::Ahead(60_000))),
            (10_900, 120_900, 60_900, None),
            (11_000, 121_000, 121_000, Some(Step::Followed(60_000))),
            (12_000, 122_000, 122_000, None),
            (13_000, 63_000, 63_000, Some(Step::Back(60_000))),
        ];
        check(false, &lasting);
        // Confirmed, it is followed at once; and steps that harm nothing always are.
        check(true, &[(0, 50_000, 50_000, None), (100, 110_100, 110_100, Some(Step::Followed(60_000)))]);
        check(false, &[(0, 50_000, 50_000, None), (100, 52_900, 52_900, None), (200, 51_000, 51_000, None)]);
    }
}
