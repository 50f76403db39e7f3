//! The log's lines on a sale's course: that it is sold out, and how it ended.
//!
//! Owns which sales this instance follows. Invariant: each line is said once a sale, by each instance that saw the sale
//! while it was on; several instances that sell one stock say the same of it. Leaves the counting to the inventory.

use crate::domain::{Terms, Utc};
use crate::inventory::Progress;
use std::time::Duration;

/// How often the sales are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long after its end a sale is summed up: what was decided at the edge may still be on its way.
const SETTLED_MS: u64 = 2_000;
/// How long after its end a sale that cannot be looked at is given up: its state is cleared away then.
const GIVE_UP_MS: u64 = 60_000;

/// The sales that have begun, until they are summed up.
#[derive(Default)]
pub(super) struct Milestones(Vec<Course>);

struct Course {
    terms: Terms,
    sold_out: bool,
}

impl Milestones {
    /// Logs the milestones that the sales in `open` have reached by `now_ms`. `progress` looks one up, if it can.
    pub(super) fn follow(&mut self, now_ms: u64, open: &[Terms], progress: &mut dyn FnMut(&Terms) -> Option<Progress>) {
        for terms in open.iter().filter(|terms| terms.is_on(now_ms)) {
            if !self.0.iter().any(|course| course.terms.sale == terms.sale) {
                self.0.push(Course { terms: *terms, sold_out: false });
            }
        }
        self.0.retain_mut(|course| {
            let ends_ms = course.terms.ends_ms;
            let ended = now_ms >= ends_ms + SETTLED_MS;
            if !ended && (now_ms >= ends_ms || course.sold_out) {
                return true;
            }
            let Some(progress) = progress(&course.terms) else { return now_ms < ends_ms + GIVE_UP_MS };
            course.tell(&progress, ended);
            !ended
        });
    }
}

impl Course {
    fn tell(&mut self, progress: &Progress, ended: bool) {
        let Course { terms, sold_out } = self;
        if let Some(at_ms) = progress.sold_out_ms
            && !std::mem::replace(sold_out, true)
        {
            let after = Duration::from_millis(at_ms.saturating_sub(terms.starts_ms));
            tracing::info!(
                "{terms} is sold out since {}, {after:?} after its start: none of its {} items is free",
                Utc(at_ms),
                terms.items
            );
        }
        if ended {
            let Progress { taken, purchased, .. } = *progress;
            // At its end a sale has no holds any more.
            let (expired, free) = (taken.saturating_sub(purchased), terms.items.saturating_sub(purchased));
            tracing::info!("{terms} has ended: sold {purchased}, expired {expired}, free {free}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::SaleId;

    #[test]
    fn a_sale_is_looked_at_until_it_is_summed_up() {
        let terms = Terms { sale: SaleId(10), items: 5, user_limit: 1, hold_ms: 1, starts_ms: 10_000, ends_ms: 20_000 };
        let later = Terms { sale: SaleId(20), starts_ms: 20_000, ends_ms: 30_000, ..terms };
        let mut milestones = Milestones::default();
        let mut look = |now_ms: u64, progress: Option<Progress>| {
            let mut asked = Vec::new();
            milestones.follow(now_ms, &[terms, later], &mut |terms| {
                asked.push(terms.sale.0);
                progress
            });
            asked
        };
        let some = |sold_out_ms| Some(Progress { sold_out_ms, taken: 6, purchased: 4 });
        let nothing: [u64; 0] = [];
        assert_eq!(look(9_000, some(None)), nothing);
        assert_eq!(look(10_000, some(None)), [10]);
        assert_eq!(look(11_000, None), [10]);
        assert_eq!(look(12_000, some(Some(11_500))), [10]);
        assert_eq!(look(13_000, some(Some(11_500))), nothing, "it was said");
        assert_eq!(look(20_000, some(None)), [20], "the first one is not settled yet");
        assert_eq!(look(22_000, None), [10, 20]);
        assert_eq!(look(23_000, some(None)), [10, 20]);
        assert_eq!(look(24_000, some(None)), [20], "it was summed up");
        assert_eq!(look(40_000, None), [20]);
        assert_eq!(look(90_001, None), [20], "the last time");
        assert_eq!(look(90_002, None), nothing);
    }
}
