//! The sales that are open: opening them ahead of their time, and taking in those that other instances opened.
//!
//! Owns the list of open sales and the settings that new ones are planned by. Invariant: a sale in the list was found good, or was
//! opened, under the epoch of this instance. Leaves to [`super::recovery`] what follows from a state that is not as it should be:
//! it only reports a [`KeeperError::SuspectedLoss`].

use super::calendar::{is_by, next_terms, other_settings, plan_ahead};
use super::error::KeeperError;
use super::membership::Membership;
use super::owner;
use super::rebuild::rebuild;
use super::replan;
use super::sale_store::Owner;
use super::servers::{SHORT_WAIT, Servers};
use super::store::Condition;
use super::time::is_due;
use crate::config::SaleSettings;
use crate::domain::{SaleId, Terms};
use crate::inventory::ENDED_KEPT_MS;
use crate::ledger::SaleRow;
use std::time::{Duration, Instant};

/// How often it is looked whether sales are to be opened, and whether those that are open are still there.
const OPEN_EVERY: Duration = Duration::from_secs(1);
/// Open sales whose state is looked at regularly, the running one first: a loss is found before a shopper asks for them.
const LOOKED_AT: usize = 3;

/// The open sales.
pub(super) struct OpenSales {
    /// By their start.
    open: Vec<Terms>,
    settings: SaleSettings,
    /// Whether the sales opened ahead are still to be given this instance's settings.
    settings_due: bool,
    /// Whether a sale with other settings has been warned of.
    warned: bool,
    /// When all that was due had been opened last.
    opened: Option<Instant>,
}

impl OpenSales {
    /// None yet; new ones are planned by `settings`.
    pub(super) fn none(settings: SaleSettings) -> OpenSales {
        OpenSales { open: Vec::new(), settings, settings_due: true, warned: false, opened: None }
    }

    /// The open sales by their start, with those that ended a moment ago.
    pub(super) fn open(&self) -> &[Terms] {
        &self.open
    }

    /// These are the open sales now.
    pub(super) fn replace(&mut self, open: Vec<Terms>) {
        self.open = open;
    }

    /// Drops the sales whose codes are not asked for any more at `now_ms`.
    pub(super) fn drop_ended(&mut self, now_ms: u64) {
        self.open.retain(|terms| terms.ends_ms + ENDED_KEPT_MS > now_ms);
    }

    /// Whether `sale` is open at `now_ms`, or has ended so recently that its codes are still asked for.
    pub(super) fn is_asked_for(&self, sale: SaleId, now_ms: u64) -> bool {
        self.open.iter().any(|terms| terms.sale == sale && terms.ends_ms + ENDED_KEPT_MS > now_ms)
    }

    /// Whether it is time to look for sales that are to be opened.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        is_due(self.opened, now, OPEN_EVERY)
    }

    /// Takes in the sales that others opened, and opens those that are missing. `Ok(false)` if another instance is opening sales.
    pub(super) fn open_due(
        &mut self,
        servers: &mut Servers,
        membership: &mut Membership,
        database: &Owner,
    ) -> Result<bool, KeeperError> {
        let epoch = membership.epoch.number;
        let now_ms = servers.now_ms()?;
        let rows = self.rows(servers, now_ms)?;
        let known: Vec<Terms> = rows.iter().map(|row| row.terms).collect();
        if !self.settings_due {
            replan::follow_newer(&mut self.settings, &rows, now_ms);
        }
        let mut missing = !membership.is_open()
            || self.settings_due
            || *database == Owner::Unclaimed
            || next_terms(&known, now_ms, &self.settings).is_some();
        for (nth, row) in rows.iter().filter(|row| row.terms.ends_ms > now_ms).enumerate() {
            if self.open.contains(&row.terms) {
                if nth < LOOKED_AT {
                    missing |= !look_at_state(servers, epoch, &row.terms, now_ms)?;
                }
            } else {
                missing |= !row.opened || !self.adopt(servers, epoch, &row.terms)?;
            }
        }
        // Those that have just ended, for the codes that are still asked for. If the state of one of them is gone, nothing
        // follows.
        let ended =
            |row: &&SaleRow| row.opened && (row.terms.ends_ms..row.terms.ends_ms + ENDED_KEPT_MS).contains(&now_ms);
        for row in rows.iter().filter(ended) {
            if !self.open.contains(&row.terms) {
                self.adopt(servers, epoch, &row.terms)?;
            }
        }
        let done = !missing
            || servers.locked(SHORT_WAIT, false, |servers| self.open_ahead(servers, membership, database, now_ms))?;
        if done {
            self.opened = Some(servers.now());
        }
        Ok(done)
    }

    /// Takes in a sale that the ledger knows as opened, if its state is there and has the ledger's terms. If not, another instance
    /// may be about to put it in place.
    fn adopt(&mut self, servers: &mut Servers, epoch: u64, terms: &Terms) -> Result<bool, KeeperError> {
        let good = servers.store.condition(terms.sale, epoch)? == Condition::Good && servers.store.has_terms(terms)?;
        if good {
            self.add(*terms);
        }
        Ok(good)
    }

    fn add(&mut self, terms: Terms) {
        if !is_by(&terms, &self.settings) && !self.warned {
            tracing::warn!("{}", other_settings(&terms, &self.settings));
            self.warned = true;
        }
        // It may be there already, with the terms that it had before.
        self.open.retain(|other| other.sale != terms.sale);
        self.open.push(terms);
        self.open.sort_by_key(|terms| terms.starts_ms);
    }

    /// The ledger's sales that have not ended, and those that ended last.
    pub(super) fn rows(&self, servers: &mut Servers, now_ms: u64) -> Result<Vec<SaleRow>, KeeperError> {
        let since = now_ms.saturating_sub(self.settings.sale_ms.max(ENDED_KEPT_MS));
        Ok(servers.ledger.sales(since)?)
    }

    /// Opens all that is missing until the calendar reaches far enough. Under the openers' lock.
    fn open_ahead(
        &mut self,
        servers: &mut Servers,
        membership: &mut Membership,
        database: &Owner,
        now_ms: u64,
    ) -> Result<(), KeeperError> {
        let mut rows = self.enter_epoch(servers, membership, database, now_ms)?;
        plan_ahead(&mut *servers.ledger, &mut rows, now_ms, &self.settings)?;
        if self.settings_due {
            replan::apply(&mut *servers.ledger, &mut rows, now_ms, &self.settings)?;
            self.settings_due = false;
        }
        let epoch = membership.epoch.number;
        for row in rows.iter().filter(|row| row.terms.ends_ms > now_ms) {
            // The ledger's terms come to Redis here, also if the instance that changed them has died.
            if row.opened && row.terms.starts_ms > now_ms && !servers.store.has_terms(&row.terms)? {
                let latest_ms = servers.latest_ms();
                servers.store.replan(&row.terms, epoch, latest_ms)?;
            }
            if !self.open.contains(&row.terms) {
                self.open_one(servers, epoch, row, now_ms)?;
            }
        }
        Ok(())
    }

    /// Makes sure that there is an epoch to open sales under, and that this instance is a member of it. Returns the ledger's sales.
    fn enter_epoch(
        &mut self,
        servers: &mut Servers,
        membership: &mut Membership,
        database: &Owner,
        now_ms: u64,
    ) -> Result<Vec<SaleRow>, KeeperError> {
        let current = servers.ledger.epoch()?;
        if current.number != membership.epoch.number {
            let why = format!("another instance has raised the epoch to {}", current.number);
            return Err(KeeperError::SuspectedLoss(why));
        }
        owner::claim(servers, database)?;
        let rows = self.rows(servers, now_ms)?;
        if current.identity.is_empty() {
            if rows.iter().any(|row| row.opened && row.terms.ends_ms > now_ms) {
                // The instance that raised the epoch lost the openers' lock before it opened the epoch.
                return Err(KeeperError::SuspectedLoss("the epoch was raised but not opened".into()));
            }
            let identity = owner::look(servers)?.identity;
            servers.ledger.set_identity(current.number, &identity)?;
            membership.epoch.identity = identity;
        } else {
            membership.epoch = current;
        }
        if !servers.ledger.is_member() {
            servers.ledger.join(membership.epoch.number)?;
        }
        Ok(rows)
    }

    /// Opens a sale that is not in the list, or takes it in.
    fn open_one(&mut self, servers: &mut Servers, epoch: u64, row: &SaleRow, now_ms: u64) -> Result<(), KeeperError> {
        let terms = row.terms;
        if row.opened {
            if self.adopt(servers, epoch, &terms)? {
                return Ok(());
            }
            // No instance has sold anything in a sale that has not begun. The instance that marked it as opened died before
            // it put the state in place. The time is asked for after its state was not found: it may have begun since this
            // round did.
            let missing = servers.store.condition(terms.sale, 0)? == Condition::Missing;
            if !missing || terms.starts_ms <= servers.now_ms()? {
                return look_at_state(servers, epoch, &terms, now_ms).map(drop);
            }
        } else {
            // Marked first: if this process dies before the state is in place, another instance finds the state missing and
            // builds it.
            servers.ledger.mark_opened(terms.sale)?;
        }
        let built = rebuild(servers, &terms, epoch)?;
        // An instance that was frozen until now opens nothing: others have come since.
        let opened = servers.still_opening().and_then(|()| servers.store.open(&built));
        if opened.is_err() {
            servers.store.discard(&built);
            return opened;
        }
        tracing::info!("{terms} is opened: {} items, {} to a user", terms.items, terms.user_limit);
        self.add(terms);
        Ok(())
    }
}

/// `Ok(false)` if the sale has yet to be given the ledger's terms.
fn look_at_state(servers: &mut Servers, epoch: u64, terms: &Terms, now_ms: u64) -> Result<bool, KeeperError> {
    let found = servers.store.condition(terms.sale, epoch)?;
    if found == Condition::Good {
        let agrees = servers.store.has_terms(terms)?;
        if agrees || terms.starts_ms > now_ms {
            return Ok(agrees);
        }
    }
    Err(KeeperError::SuspectedLoss(match found {
        Condition::Good => format!("the state of {terms} in Redis has other terms than the ledger"),
        other => format!("the state of {terms} in Redis {other}"),
    }))
}
