//! Opening sales ahead of their time, and taking in those that others opened.
//!
//! Invariant: what is in `open` was found good, or was opened, under the keeper's epoch. Refuses to settle a doubt: it
//! only raises one.

use super::calendar::{is_by, next_terms, other_settings, plan_ahead};
use super::distributed::{Keeper, SHORT_WAIT};
use super::owner::Owner;
use super::store::Condition;
use crate::domain::Terms;
use crate::inventory::{ENDED_KEPT_MS, View};
use crate::ledger::SaleRow;
use std::sync::Arc;

/// Open sales whose state is looked at regularly, the running one first: a loss is found before anybody asks for them.
const LOOKED_AT: usize = 3;

impl Keeper {
    /// Shows the workers what is open.
    pub(super) fn publish(&mut self, selling: bool) -> Result<(), String> {
        let now_ms = self.store.now_ms()?;
        self.open.retain(|terms| terms.ends_ms + ENDED_KEPT_MS > now_ms);
        let confirmed = self.open.iter().map(|terms| (terms.sale, self.maintenance.confirmed_ms(terms.sale))).collect();
        self.view.store(Arc::new(View {
            epoch: self.epoch.number,
            selling,
            reachable: !self.refusals.is_on(),
            sales: self.open.clone(),
            confirmed,
            identity: self.epoch.identity.clone(),
            clock: self.store.clock(),
        }));
        self.selling = selling;
        Ok(())
    }

    /// Takes in the sales that others opened, and opens those that are missing. `Ok(false)` if another instance is at it.
    pub(super) fn open_due_sales(&mut self) -> Result<bool, String> {
        let now_ms = self.store.now_ms()?;
        let rows = self.rows(now_ms)?;
        let known: Vec<Terms> = rows.iter().map(|row| row.terms).collect();
        self.follow_newer_settings(&rows, now_ms);
        let mut missing = self.epoch.identity.is_empty()
            || self.settings_due
            || *self.store.owner() == Owner::Unclaimed
            || next_terms(&known, now_ms, &self.settings).is_some();
        for (nth, row) in rows.iter().filter(|row| row.terms.ends_ms > now_ms).enumerate() {
            if self.open.contains(&row.terms) {
                if nth < LOOKED_AT {
                    missing |= !self.look_at_state(&row.terms, now_ms)?;
                }
            } else {
                missing |= !row.opened || !self.adopt_sale(&row.terms)?;
            }
        }
        // Those that have just ended, for the codes that are still asked for. One whose state is gone is not missed.
        let ended =
            |row: &&SaleRow| row.opened && (row.terms.ends_ms..row.terms.ends_ms + ENDED_KEPT_MS).contains(&now_ms);
        for row in rows.iter().filter(ended).filter(|row| !self.open.contains(&row.terms)).collect::<Vec<_>>() {
            self.adopt_sale(&row.terms)?;
        }
        let done = !missing || self.with_opening_lock(SHORT_WAIT, |keeper| keeper.open_ahead(now_ms))?;
        self.publish(self.selling)?;
        Ok(done)
    }

    /// Takes in a sale that the ledger knows as opened, if its state is there and has the ledger's terms. If not, it may be
    /// about to be put in place.
    fn adopt_sale(&mut self, terms: &Terms) -> Result<bool, String> {
        let good =
            self.store.condition(terms.sale, self.epoch.number)? == Condition::Good && self.store.has_terms(terms)?;
        if good {
            self.add_open(*terms);
        }
        Ok(good)
    }

    fn add_open(&mut self, terms: Terms) {
        self.warn_of_other_settings(&terms);
        // It may be there already, with the terms that it had before.
        self.open.retain(|other| other.sale != terms.sale);
        self.open.push(terms);
        self.open.sort_by_key(|terms| terms.starts_ms);
    }

    /// `Ok(false)` if the sale has yet to be given the ledger's terms.
    fn look_at_state(&mut self, terms: &Terms, now_ms: u64) -> Result<bool, String> {
        let found = self.store.condition(terms.sale, self.epoch.number)?;
        if found == Condition::Good {
            let agrees = self.store.has_terms(terms)?;
            if agrees || terms.starts_ms > now_ms {
                return Ok(agrees);
            }
        }
        let doubt = match found {
            Condition::Good => format!("the state of {terms} in Redis has other terms than the ledger"),
            other => format!("the state of {terms} in Redis {other}"),
        };
        self.doubt.get_or_insert(doubt.clone());
        Err(doubt)
    }

    /// The ledger's sales that have not ended, and those that ended last.
    pub(super) fn rows(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, String> {
        let since = now_ms.saturating_sub(self.settings.sale_ms.max(ENDED_KEPT_MS));
        self.ledger.sales(since).map_err(|e| e.to_string())
    }

    /// Opens all that is missing until the calendar reaches far enough. Under the openers' lock.
    fn open_ahead(&mut self, now_ms: u64) -> Result<(), String> {
        let current = self.ledger.epoch().map_err(|e| e.to_string())?;
        if current.number != self.epoch.number {
            self.doubt.get_or_insert(format!("another instance has raised the epoch to {}", current.number));
            return Err("another instance has raised the epoch".into());
        }
        self.claim()?;
        let mut rows = self.rows(now_ms)?;
        if current.identity.is_empty() {
            if rows.iter().any(|row| row.opened && row.terms.ends_ms > now_ms) {
                // Whoever raised the epoch has not come to opening it.
                return Err(self.doubt.get_or_insert("the epoch was raised but not opened".into()).clone());
            }
            let identity = self.store.identity()?;
            self.ledger.set_identity(current.number, &identity).map_err(|e| e.to_string())?;
            self.epoch.identity = identity;
        } else {
            self.epoch = current;
        }
        if !self.ledger.is_member() {
            self.ledger.join(self.epoch.number).map_err(|e| e.to_string())?;
        }
        plan_ahead(&mut *self.ledger, &mut rows, now_ms, &self.settings).map_err(|e| e.to_string())?;
        if self.settings_due {
            super::replan::apply(&mut *self.ledger, &mut rows, now_ms, &self.settings).map_err(|e| e.to_string())?;
            self.settings_due = false;
        }
        for row in rows.iter().filter(|row| row.terms.ends_ms > now_ms) {
            // The ledger's terms come to Redis here, whichever instance changed them and whatever has become of it.
            if row.opened && row.terms.starts_ms > now_ms && !self.store.has_terms(&row.terms)? {
                self.store.replan(&row.terms, self.epoch.number)?;
            }
            if self.open.contains(&row.terms) {
                continue;
            }
            if row.opened {
                if self.adopt_sale(&row.terms)? {
                    continue;
                }
                // Nobody can have sold in a sale that has not begun: whoever noted it died before he put it in place.
                // The time is asked for after its state was not found: it may have begun since this round did.
                let missing = self.store.condition(row.terms.sale, 0)? == Condition::Missing;
                if !missing || row.terms.starts_ms <= self.store.now_ms()? {
                    return self.look_at_state(&row.terms, now_ms).map(drop);
                }
            } else {
                // Noted first: if this process dies in between, the next one finds a loss and rebuilds from no rows.
                self.ledger.mark_opened(row.terms.sale).map_err(|e| e.to_string())?;
            }
            let built = self.rebuild(&row.terms, self.epoch.number)?;
            // Whoever was frozen until now opens nothing: others have come since.
            let opened = self.ledger.still_opening().map_err(|e| e.to_string()).and_then(|()| self.store.open(&built));
            if opened.is_err() {
                self.store.discard(&built);
                return opened;
            }
            tracing::info!("{} is opened: {} items, {} to a user", row.terms, row.terms.items, row.terms.user_limit);
            self.add_open(row.terms);
        }
        Ok(())
    }

    fn warn_of_other_settings(&mut self, terms: &Terms) {
        if !is_by(terms, &self.settings) && self.warned.is_none() {
            tracing::warn!("{}", other_settings(terms, &self.settings));
            self.warned = Some(*terms);
        }
    }
}
