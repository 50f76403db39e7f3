//! The keeper of a deployment on Redis and Postgres.
//!
//! Owns the epoch that this instance sells under and the view that its cores see. Invariant: what the view shows as
//! selling was found good, or was opened, under an epoch that this instance is a member of.

use super::calendar::{is_far_enough, next_terms};
use super::store::{Condition, Store};
use crate::config::SaleSettings;
use crate::domain::Terms;
use crate::inventory::{Clock, Gate, Inventory, Suspicion, View};
use crate::ledger::{Epoch, Fence, SaleRow};
use crate::record::{Handoff, Message};
use crossbeam_channel::{Receiver, Sender, select};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks around.
const ROUND: Duration = Duration::from_millis(200);
/// How often it asks the ledger whether the epoch is still the one.
const LEDGER_EVERY: Duration = Duration::from_secs(1);
/// A suspicion is looked into at once, but not more often than this.
const MIN_ROUND: Duration = Duration::from_millis(20);
/// A sale stays in the view this long after its end, since a core's clock is a little behind.
const LINGER_MS: u64 = 2_000;

/// What the keeper works with.
pub struct Parts {
    /// The ledger.
    pub ledger: Box<dyn Fence>,
    /// Redis.
    pub store: Store,
    /// What new sales are like.
    pub settings: SaleSettings,
    /// Where the cores see what to sell.
    pub gate: Gate,
    /// What the cores found odd.
    pub suspicions: Receiver<Suspicion>,
    /// Records of another epoch, from the writer.
    pub stale: Receiver<Box<Handoff>>,
    /// The writer.
    pub writer: Sender<Message>,
}

/// The keeper.
pub struct Keeper {
    pub(super) ledger: Box<dyn Fence>,
    pub(super) store: Store,
    pub(super) settings: SaleSettings,
    pub(super) gate: Gate,
    suspicions: Receiver<Suspicion>,
    pub(super) stale: Receiver<Box<Handoff>>,
    /// One of them that could not be placed yet.
    pub(super) held_back: Vec<Box<Handoff>>,
    pub(super) writer: Sender<Message>,
    /// Who decides, and on how many cores; not there before the first opening.
    pub(super) inventory: Option<(Arc<dyn Inventory>, usize)>,
    pub(super) epoch: Epoch,
    /// The sales that are open under `epoch`, by their start.
    pub(super) open: Vec<Terms>,
    pub(super) selling: bool,
    /// Why it may be that something was lost.
    doubt: Option<String>,
    ledger_seen: Option<Instant>,
    pub(super) upkeep: super::upkeep::Upkeep,
    trouble: Option<String>,
    warned: Option<Terms>,
}

impl Keeper {
    /// A keeper that has opened the running sale and those ahead. `Err` says in one line what is in the way.
    pub fn start(parts: Parts) -> Result<Keeper, String> {
        let mut keeper = Keeper {
            ledger: parts.ledger,
            store: parts.store,
            settings: parts.settings,
            gate: parts.gate,
            suspicions: parts.suspicions,
            stale: parts.stale,
            held_back: Vec::new(),
            writer: parts.writer,
            inventory: None,
            epoch: Epoch { number: 0, identity: String::new() },
            open: Vec::new(),
            selling: false,
            doubt: None,
            ledger_seen: None,
            upkeep: Default::default(),
            trouble: None,
            warned: None,
        };
        keeper.store.check_server()?;
        keeper.epoch = keeper.ledger.epoch().map_err(|e| format!("POSTGRES_DSN: {e}"))?;
        keeper.ledger.join(keeper.epoch.number).map_err(|e| format!("POSTGRES_DSN: {e}"))?;
        // What cannot be settled at once, since another instance is about to open, is tried until the time is up.
        let until = Instant::now() + Duration::from_secs(4);
        loop {
            match keeper.round() {
                Ok(()) if keeper.selling => return Ok(keeper),
                Err(trouble) if Instant::now() > until => return Err(trouble),
                _ => std::thread::sleep(MIN_ROUND),
            }
        }
    }

    /// Watches over the sales until `stop` is closed or says so.
    pub fn run(mut self, inventory: Arc<dyn Inventory>, cores: usize, stop: &Receiver<()>) {
        self.inventory = Some((inventory, cores));
        loop {
            select! {
                recv(stop) -> _ => return,
                recv(self.suspicions) -> suspicion => {
                    suspicion.into_iter().for_each(|s| self.note(s));
                    std::thread::sleep(MIN_ROUND);
                }
                default(ROUND) => {}
            }
            while let Ok(suspicion) = self.suspicions.try_recv() {
                self.note(suspicion);
            }
            let result = self.round();
            self.report(result);
        }
    }

    fn note(&mut self, suspicion: Suspicion) {
        let doubt = match suspicion {
            // Redis' absence is no loss; what it is like when it is back is looked at each round.
            Suspicion::Away(_) => return,
            Suspicion::Identity(_) => return,
            // Said of a sale that is not open any more, or of an epoch that has been left since.
            Suspicion::State(sale, _) if !self.open.iter().any(|terms| terms.sale == sale) => return,
            Suspicion::Epoch(theirs) if theirs == self.epoch.number => return,
            Suspicion::State(sale, what) => format!("the state of sale {sale} {what}"),
            Suspicion::Epoch(theirs) => format!("Redis is at epoch {theirs}"),
        };
        self.doubt.get_or_insert(doubt);
    }

    /// Says once what is wrong, and once that it is over.
    fn report(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!("all is well again");
                }
            }
            Err(trouble) => {
                if self.trouble.is_none() {
                    tracing::warn!("{trouble}");
                }
                self.trouble = Some(trouble);
            }
        }
    }

    /// Looks at Redis and, every second, at the ledger; settles what is in doubt; opens what is due.
    fn round(&mut self) -> Result<(), String> {
        let identity = self.store.identity()?;
        if !self.epoch.identity.is_empty() && identity != self.epoch.identity {
            self.doubt.get_or_insert("Redis was started anew, or is another one".into());
        }
        let due = self.ledger_seen.is_none_or(|seen| seen.elapsed() >= LEDGER_EVERY);
        if due && self.doubt.is_none() {
            self.look_at_ledger()?;
        }
        if let Some(doubt) = self.doubt.clone() {
            self.stop_selling(&doubt);
            self.recover()?;
            self.doubt = None;
        }
        if due {
            self.open_due_sales()?;
            self.ledger_seen = Some(Instant::now());
        }
        if self.doubt.is_none() && !self.selling {
            self.selling = true;
            self.publish()?;
        }
        self.take_care()
    }

    fn look_at_ledger(&mut self) -> Result<(), String> {
        if !self.ledger.is_member() {
            // The session is gone, with Postgres or without. Redis fences us meanwhile: whoever raises the epoch
            // closes the states there first.
            self.ledger.join(self.epoch.number).map_err(|e| e.to_string())?;
        }
        let current = self.ledger.epoch().map_err(|e| e.to_string())?;
        if current.number != self.epoch.number {
            self.doubt.get_or_insert(format!("the ledger is at epoch {}", current.number));
        }
        Ok(())
    }

    fn stop_selling(&mut self, doubt: &str) {
        if self.selling {
            tracing::error!(epoch = self.epoch.number, "selling stops until this is settled: {doubt}");
        }
        self.selling = false;
        self.gate.rcu(|view| View { selling: false, ..View::clone(view) });
    }

    /// Shows the cores what is open.
    pub(super) fn publish(&mut self) -> Result<(), String> {
        let at = Instant::now();
        let now_ms = self.store.now_ms()?;
        self.open.retain(|terms| terms.ends_ms + LINGER_MS > now_ms);
        self.gate.store(Arc::new(View {
            epoch: self.epoch.number,
            selling: self.selling,
            sales: self.open.clone(),
            identity: self.epoch.identity.clone(),
            clock: Clock::new(at, now_ms),
        }));
        Ok(())
    }

    /// Takes in the sales that others opened, and opens those that are missing.
    fn open_due_sales(&mut self) -> Result<(), String> {
        let now_ms = self.store.now_ms()?;
        let rows = self.rows(now_ms)?;
        let known: Vec<Terms> = rows.iter().map(|row| row.terms).collect();
        let unopened = self.epoch.identity.is_empty();
        if unopened
            || !is_far_enough(&known, now_ms)
            || rows.iter().any(|row| !row.opened && row.terms.ends_ms > now_ms)
        {
            self.with_opening_lock(|keeper| keeper.open_ahead(now_ms))?;
            return self.publish();
        }
        for row in rows.iter().filter(|row| row.terms.ends_ms > now_ms) {
            if !self.open.contains(&row.terms) {
                self.adopt_sale(row)?;
            }
        }
        self.publish()
    }

    /// A sale that the ledger knows as opened: its state has to be there.
    fn adopt_sale(&mut self, row: &SaleRow) -> Result<(), String> {
        match self.store.condition(row.terms.sale, self.epoch.number)? {
            Condition::Good => {
                self.warn_of_other_settings(&row.terms);
                self.open.push(row.terms);
                self.open.sort_by_key(|terms| terms.starts_ms);
                Ok(())
            }
            other => {
                let doubt = format!("the state of sale {} is not as it was left: {other:?}", row.terms.sale);
                self.doubt.get_or_insert(doubt.clone());
                Err(doubt)
            }
        }
    }

    /// The ledger's sales that have not ended, and the one that ended last.
    pub(super) fn rows(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, String> {
        let since = now_ms.saturating_sub(self.settings.sale_ms);
        self.ledger.sales(since).map_err(|e| e.to_string())
    }

    /// Opens all that is missing until the calendar reaches far enough. Under the openers' lock.
    fn open_ahead(&mut self, now_ms: u64) -> Result<(), String> {
        let current = self.ledger.epoch().map_err(|e| e.to_string())?;
        if current.number != self.epoch.number {
            self.doubt.get_or_insert(format!("the ledger is at epoch {}", current.number));
            return Err("another instance has raised the epoch".into());
        }
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
        loop {
            let known: Vec<Terms> = rows.iter().map(|row| row.terms).collect();
            if is_far_enough(&known, now_ms) {
                break;
            }
            let terms = next_terms(known.last(), now_ms, &self.settings);
            let row = self.ledger.plan(&terms).map_err(|e| e.to_string())?;
            if known.last().is_some_and(|last| row.terms.starts_ms < last.ends_ms) {
                return Err(format!("sale {} in the ledger overlaps the one before it", row.terms.sale));
            }
            rows.push(row);
        }
        for row in rows.iter().filter(|row| row.terms.ends_ms > now_ms) {
            if self.open.contains(&row.terms) {
                continue;
            }
            if row.opened {
                self.adopt_sale(row)?;
                continue;
            }
            // Noted first: if this process dies in between, the next one finds a loss and rebuilds from no rows.
            self.ledger.mark_opened(row.terms.sale).map_err(|e| e.to_string())?;
            self.rebuild(&row.terms, self.epoch.number)?;
            self.store.open(&row.terms, self.epoch.number)?;
            self.warn_of_other_settings(&row.terms);
            tracing::info!(sale = row.terms.sale.0, items = row.terms.items, "opened");
            self.open.push(row.terms);
        }
        Ok(())
    }

    fn warn_of_other_settings(&mut self, terms: &Terms) {
        let same = terms.items == self.settings.items
            && terms.user_limit == self.settings.user_limit
            && terms.hold_ms == self.settings.hold_ms
            && terms.ends_ms - terms.starts_ms == self.settings.sale_ms;
        if !same && self.warned.is_none() {
            tracing::warn!(
                sale = terms.sale.0,
                items = terms.items,
                user_limit = terms.user_limit,
                hold_ms = terms.hold_ms,
                length_ms = terms.ends_ms - terms.starts_ms,
                "a sale was opened with other settings than this instance's; they apply from the first sale not opened yet"
            );
            self.warned = Some(*terms);
        }
    }
}
