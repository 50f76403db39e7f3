//! Which sales there are: pure.

use crate::config::SaleSettings;
use crate::domain::{SaleId, Terms};

/// Sales that are opened ahead of the running one, so that an edge needs neither ledger nor luck.
const MIN_AHEAD: usize = 2;
/// With short sales, how far ahead is opened at least: a restart of the ledger takes less.
const AHEAD_MS: u64 = 60_000;
/// However short sales are, not more than this many ahead.
const MAX_AHEAD: usize = 64;

const _: () = assert!(MIN_AHEAD <= MAX_AHEAD);

/// The terms of the sale after `last`, or of the one that is on at `now_ms` if that has ended.
///
/// Sales start at multiples of their length. Where the length was changed, the first sale of the new length is cut:
/// it starts where the last one of the old length ended.
pub fn next_terms(last: Option<&Terms>, now_ms: u64, settings: &SaleSettings) -> Terms {
    let ended_ms = last.map_or(0, |terms| terms.ends_ms);
    let grid_ms = ended_ms.max(now_ms) / settings.sale_ms * settings.sale_ms;
    let starts_ms = grid_ms.max(ended_ms);
    Terms {
        sale: SaleId(starts_ms / 1000),
        items: settings.items,
        user_limit: settings.user_limit,
        hold_ms: settings.hold_ms,
        starts_ms,
        ends_ms: grid_ms + settings.sale_ms,
    }
}

/// Whether `known` (by their start) reach far enough beyond `now_ms`.
pub fn is_far_enough(known: &[Terms], now_ms: u64) -> bool {
    let Some(last) = known.last().filter(|last| last.ends_ms > now_ms) else { return false };
    let ahead = known.iter().filter(|terms| terms.starts_ms > now_ms).count();
    ahead >= MAX_AHEAD || (ahead >= MIN_AHEAD && last.ends_ms >= now_ms + AHEAD_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seconds: u64) -> SaleSettings {
        SaleSettings { items: 5, user_limit: 2, sale_ms: seconds * 1000, hold_ms: 1000 }
    }

    #[test]
    fn the_next_sale() {
        let terms = |starts: u64, ends: u64| Terms {
            sale: SaleId(starts),
            items: 5,
            user_limit: 2,
            hold_ms: 1000,
            starts_ms: starts * 1000,
            ends_ms: ends * 1000,
        };
        let check = |last: Option<(u64, u64)>, now: u64, seconds: u64, want: (u64, u64)| {
            let last = last.map(|(starts, ends)| terms(starts, ends));
            assert_eq!(next_terms(last.as_ref(), now * 1000 + 7, &settings(seconds)), terms(want.0, want.1));
        };
        check(None, 7205, 3600, (7200, 10800));
        check(Some((7200, 10800)), 7205, 3600, (10800, 14400));
        // After a pause the present one comes next, not those that nobody saw.
        check(Some((7200, 10800)), 20000, 3600, (18000, 21600));
        // Longer than before: the first one is cut.
        check(Some((7260, 7320)), 7290, 3600, (7320, 10800));
        check(Some((7260, 7320)), 7400, 3600, (7320, 10800));
        // Shorter than before, and not a divisor.
        check(Some((7200, 10800)), 7205, 60, (10800, 10860));
        check(Some((7200, 10800)), 7205, 7, (10800, 10801));
    }

    #[test]
    fn far_enough() {
        let check = |seconds: u64, want: usize| {
            let (now_ms, mut known) = (1_000_000_000, Vec::new());
            while !is_far_enough(&known, now_ms) {
                known.push(next_terms(known.last(), now_ms, &settings(seconds)));
            }
            assert_eq!(known.len(), want, "{seconds}");
            assert!(known.windows(2).all(|pair| pair[0].ends_ms == pair[1].starts_ms));
        };
        check(3600, 3);
        check(30, 3);
        check(10, 6);
        check(1, 60);
    }
}
