//! Changed settings: sales that were opened ahead and have not begun take them.
//!
//! Owns when this instance's settings are applied: once, when it starts, under the openers' lock. Invariants: the ledger has
//! the new terms before Redis; a state whose terms are not the ledger's gets them before it begins, from whichever instance
//! sees it first; the settings of the instance that started last count, and the others plan by them. Leaves start and end of
//! a sale as they were planned, and all terms of a sale that has begun.

use crate::config::SaleSettings;
use crate::domain::Terms;
use crate::ledger::{Ledger, LedgerError, SaleRow};
use std::fmt::Write;

/// A sale that begins sooner than this is left as it is: all instances need to see the change before it begins.
const MARGIN_MS: u64 = 5_000;

/// Whether `terms` have another stock, limit or hold time than `settings`.
fn differs(terms: &Terms, settings: &SaleSettings) -> bool {
    (terms.items, terms.user_limit, terms.hold_ms) != (settings.items, settings.user_limit, settings.hold_ms)
}

/// What changes from `old` to `new`, in words.
fn changes(old: &Terms, new: &Terms) -> String {
    let mut text = String::new();
    for (name, old, new, unit) in [
        ("items", old.items, new.items, ""),
        ("user limit", old.user_limit, new.user_limit, ""),
        ("hold time", old.hold_ms, new.hold_ms, " ms"),
    ] {
        if old != new {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{name} {old} \u{2192} {new}{unit}");
        }
    }
    text
}

/// Gives the sales of `rows` that have not begun at `now_ms` the present `settings`, in the ledger.
pub(super) fn apply<L: Ledger + ?Sized>(
    ledger: &mut L,
    rows: &mut [SaleRow],
    now_ms: u64,
    settings: &SaleSettings,
) -> Result<(), LedgerError> {
    for row in rows.iter_mut().filter(|row| row.terms.starts_ms > now_ms + MARGIN_MS) {
        if !differs(&row.terms, settings) {
            continue;
        }
        let SaleSettings { items, user_limit, hold_ms, .. } = *settings;
        let new = Terms { items, user_limit, hold_ms, ..row.terms };
        if ledger.replan(&new)? {
            tracing::info!("{new} takes the present settings: {}", changes(&row.terms, &new));
            row.terms = new;
        }
    }
    Ok(())
}

/// Takes over the settings of an instance that started later: else both would plan sales by their own.
pub(super) fn follow_newer(settings: &mut SaleSettings, rows: &[SaleRow], now_ms: u64) {
    let Some(last) = rows.iter().map(|row| row.terms).rfind(|terms| terms.starts_ms > now_ms + MARGIN_MS) else {
        return;
    };
    if !differs(&last, settings) {
        return;
    }
    let own = Terms { items: settings.items, user_limit: settings.user_limit, hold_ms: settings.hold_ms, ..last };
    tracing::warn!(
        "an instance with other settings has started later than this one, so sales are planned by its settings: {}",
        changes(&own, &last)
    );
    let Terms { items, user_limit, hold_ms, .. } = last;
    *settings = SaleSettings { items, user_limit, hold_ms, ..*settings };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::SaleId;

    #[test]
    fn changes_in_words() {
        let old = Terms { sale: SaleId(1), items: 5, user_limit: 2, hold_ms: 1000, starts_ms: 1, ends_ms: 2 };
        let new = Terms { items: 7, hold_ms: 500, ..old };
        assert_eq!(changes(&old, &new), "items 5 \u{2192} 7, hold time 1000 \u{2192} 500 ms");
        assert_eq!(changes(&old, &Terms { user_limit: 3, ..old }), "user limit 2 \u{2192} 3");
    }
}
