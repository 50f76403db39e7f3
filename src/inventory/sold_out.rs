//! The sold-out cache: a worker answers `sold_out` by itself for as long as a decision says that no item can be free.
//!
//! Owns how long one such decision is used. Invariant: never longer than it is true. Redis reads its clock between the
//! sending of the call and the receipt of its reply, so the time counts from the sending. Leaves to others: which
//! decision says so, and what the refusal looks like.

use crate::inventory::SOLD_OUT_TRUST;
use std::time::{Duration, Instant};

/// What a worker knows of a sale that is sold out.
#[derive(Clone, Copy, Debug)]
pub(super) struct SoldOutCache {
    /// What the decision was made under: it says nothing under another one.
    epoch: u64,
    /// The earliest moment at which an item can be free.
    free_at: Instant,
    /// From this moment on the inventory is asked again.
    until: Instant,
}

impl SoldOutCache {
    /// A call that was sent at `sent` under `epoch` was told that, at `now_ms` by Redis' clock, nothing is free before
    /// `next_ms` (both unix milliseconds).
    pub(super) fn new(epoch: u64, sent: Instant, now_ms: u64, next_ms: u64) -> SoldOutCache {
        // Redis' time is cut to whole milliseconds: up to one of them had passed already.
        let free_at = sent + Duration::from_millis(next_ms.saturating_sub(now_ms).saturating_sub(1));
        SoldOutCache { epoch, free_at, until: free_at.min(sent + SOLD_OUT_TRUST) }
    }

    /// How many milliseconds it takes at `at` until an item can be free; `None` if the inventory has to be asked.
    pub(super) fn retry_ms(&self, epoch: u64, at: Instant) -> Option<u64> {
        let known = self.epoch == epoch && at < self.until;
        known.then(|| u64::try_from((self.free_at - at).as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_refuses_longer_than_is_true() {
        let sent = Instant::now();
        let after = |ms: u64| sent + Duration::from_millis(ms);
        let cache = SoldOutCache::new(3, sent, 10_000, 10_400);
        // The reply may have taken the whole 399 ms: it says nothing about the time after that.
        assert_eq!(cache.retry_ms(3, after(0)), Some(399));
        assert_eq!(cache.retry_ms(3, after(398)), Some(1));
        assert_eq!(cache.retry_ms(3, after(399)), None);
        assert_eq!(cache.retry_ms(4, after(0)), None, "another epoch");
        // However far away the next free item is, Redis is asked again after a second.
        let cache = SoldOutCache::new(3, sent, 10_000, 90_000);
        assert_eq!(cache.retry_ms(3, after(999)), Some(79_000));
        assert_eq!(cache.retry_ms(3, after(1_000)), None);
        for past in [10_000, 9_999, 10_001] {
            assert_eq!(SoldOutCache::new(3, sent, 10_000, past).retry_ms(3, sent), None);
        }
    }
}
