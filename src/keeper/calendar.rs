//! The calendar: which sale comes next, and which sales are planned ahead.
//!
//! Owns the start and the end of each sale. Invariant: sales that are planned here do not overlap, and leave no gap after a
//! sale that is on. Leaves to the two keepers when a sale is opened, and where it is sold.

use crate::config::SaleSettings;
use crate::domain::{SaleId, Terms};
use crate::ledger::{Ledger, LedgerError, SaleRow};

/// Sales that are opened ahead of the running one, so that the change to the next sale does not need the ledger.
const MIN_AHEAD: usize = 2;
/// With short sales, the last of those that are opened ahead ends at least this much later: a restart of the ledger takes
/// less.
const AHEAD_MS: u64 = 60_000;
/// However short sales are, not more than this many ahead.
const MAX_AHEAD: usize = 64;

const _: () = assert!(MIN_AHEAD <= MAX_AHEAD);

/// The terms of the first sale that is missing in `known` (by their start): from the one that is on at `now_ms`, without a
/// gap, until far enough ahead. `None` if none is missing.
///
/// Sales start at multiples of their length. Where the length was changed, the first sale of the new length is cut: it
/// starts where the one before it ended. A sale that lies further ahead, planned by a clock that was ahead, does not change
/// that: the gap before it is filled.
pub fn next_terms(known: &[Terms], now_ms: u64, settings: &SaleSettings) -> Option<Terms> {
    let (mut from_ms, mut ahead) = (now_ms, 0);
    while let Some(terms) = known.iter().find(|terms| terms.is_on(from_ms)) {
        ahead += usize::from(terms.starts_ms > now_ms);
        if ahead >= MAX_AHEAD || (ahead >= MIN_AHEAD && terms.ends_ms >= now_ms + AHEAD_MS) {
            return None;
        }
        from_ms = terms.ends_ms;
    }
    let ended = known.iter().map(|terms| terms.ends_ms).filter(|ends_ms| *ends_ms <= from_ms).max();
    let next = known.iter().map(|terms| terms.starts_ms).filter(|starts_ms| *starts_ms > from_ms).min();
    let grid_ms = from_ms / settings.sale_ms * settings.sale_ms;
    let (starts_ms, ends_ms) = (grid_ms.max(ended.unwrap_or(0)), grid_ms + settings.sale_ms);
    Some(Terms {
        sale: SaleId(starts_ms / 1000),
        items: settings.items,
        user_limit: settings.user_limit,
        hold_ms: settings.hold_ms,
        starts_ms,
        ends_ms: ends_ms.min(next.unwrap_or(u64::MAX)),
    })
}

/// Plans the sales that are missing in `rows` (all sales that have not ended, and the one that ended last) until far enough
/// ahead.
pub fn plan_ahead<L: Ledger + ?Sized>(
    ledger: &mut L,
    rows: &mut Vec<SaleRow>,
    now_ms: u64,
    settings: &SaleSettings,
) -> Result<(), LedgerError> {
    loop {
        let known: Vec<Terms> = rows.iter().map(|row| row.terms).collect();
        let Some(terms) = next_terms(&known, now_ms, settings) else { return Ok(()) };
        let row = ledger.plan(&terms)?;
        if overlaps(&row.terms, &known) {
            return Err(LedgerError::failed(format!("{} in the ledger overlaps another sale", row.terms)));
        }
        rows.push(row);
        rows.sort_by_key(|row| row.terms.starts_ms);
    }
}

/// Whether a sale is as `settings` have it.
pub fn is_by(terms: &Terms, settings: &SaleSettings) -> bool {
    let SaleSettings { items, user_limit, sale_ms, hold_ms } = *settings;
    (terms.items, terms.user_limit, terms.hold_ms) == (items, user_limit, hold_ms)
        && terms.ends_ms - terms.starts_ms == sale_ms
}

/// A warning that a sale is not as `settings` have it.
pub fn other_settings(terms: &Terms, settings: &SaleSettings) -> String {
    let words = |items: u64, limit: u64, hold_ms: u64, sale_ms: u64| {
        format!("{items} items, {limit} to a user, holds of {} s, {} s long", hold_ms / 1000, sale_ms / 1000)
    };
    format!(
        "{terms} was opened with other settings than this instance's: it has {}; this instance is set to {}, which \
         applies to sales that have not begun (a changed length: to sales that are not opened yet)",
        words(terms.items, terms.user_limit, terms.hold_ms, terms.ends_ms - terms.starts_ms),
        words(settings.items, settings.user_limit, settings.hold_ms, settings.sale_ms),
    )
}

/// Whether `terms` share a moment with any of `known`: then another instance has planned with other settings.
fn overlaps(terms: &Terms, known: &[Terms]) -> bool {
    known.iter().any(|other| terms.starts_ms < other.ends_ms && other.starts_ms < terms.ends_ms)
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
        let check = |known: &[(u64, u64)], now: u64, seconds: u64, want: (u64, u64)| {
            let known: Vec<Terms> = known.iter().map(|(starts, ends)| terms(*starts, *ends)).collect();
            let got = next_terms(&known, now * 1000 + 7, &settings(seconds));
            assert_eq!(got, Some(terms(want.0, want.1)));
            assert!(!overlaps(&got.unwrap(), &known) && known.iter().all(|other| overlaps(other, &known)));
        };
        check(&[], 7205, 3600, (7200, 10800));
        check(&[(7200, 10800)], 7205, 3600, (10800, 14400));
        // After a pause the present sale comes next, not those that passed unopened.
        check(&[(7200, 10800)], 20000, 3600, (18000, 21600));
        // Longer than before: the first one is cut.
        check(&[(7260, 7320)], 7290, 3600, (7320, 10800));
        check(&[(7260, 7320)], 7400, 3600, (7320, 10800));
        // Shorter than before, and not a divisor.
        check(&[(7200, 10800)], 7205, 60, (10800, 10860));
        check(&[(7200, 10800)], 7205, 7, (10800, 10801));
        // A clock that was ahead has planned a sale far away: the gap before it is filled, up to it.
        check(&[(36_000, 39_600), (39_600, 43_200)], 7205, 3600, (7200, 10800));
        check(&[(7200, 10800), (36_000, 39_600)], 7205, 3600, (10800, 14400));
        check(&[(7200, 10800), (12_000, 39_600)], 7205, 3600, (10800, 12_000));
    }

    #[test]
    fn far_enough() {
        let check = |seconds: u64, want: usize| {
            let (now_ms, mut known) = (1_000_000_000, Vec::new());
            while let Some(terms) = next_terms(&known, now_ms, &settings(seconds)) {
                known.push(terms);
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
