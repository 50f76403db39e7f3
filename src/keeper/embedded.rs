//! The keeper of a process that runs by itself: it opens sales in memory from the rows of its own ledger.
//!
//! Owns opening, and the view of this process. Invariant: a sale that is open holds all that the ledger has of it. Leaves
//! decisions and their undoing to the inventory, and planning to `calendar`.

use super::calendar::{is_by, next_terms, other_settings, plan_ahead};
use super::milestones::Milestones;
use crate::config::SaleSettings;
use crate::domain::{EMBEDDED_EPOCH, Terms};
use crate::inventory::embedded::{Sales, wall_clock_ms};
use crate::inventory::memory::MemorySale;
use crate::inventory::{Clock, ENDED_KEPT_MS, SharedView, View};
use crate::ledger::{Ledger, LedgerError, SaleRow};
use crate::record::Recorder;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks at the clock.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
// A sale stays that long after its end: its codes are still asked for, and what was decided at the edge may still have to
// be undone.
const _: () = assert!(ENDED_KEPT_MS >= 30_000);

/// The keeper.
pub struct Keeper {
    ledger: Box<dyn Ledger>,
    settings: SaleSettings,
    sales: Sales,
    view: SharedView,
    recorder: Arc<Recorder>,
    problem: bool,
    warned: bool,
    milestones: Milestones,
}

impl Keeper {
    /// A keeper that has opened the running sale and those ahead. `recorder` hands decided records to the ledger's writer.
    pub fn start(
        ledger: Box<dyn Ledger>,
        settings: SaleSettings,
        sales: Sales,
        view: SharedView,
        recorder: Arc<Recorder>,
    ) -> Result<Keeper, LedgerError> {
        let milestones = Milestones::default();
        let mut keeper = Keeper { ledger, settings, sales, view, recorder, problem: false, warned: false, milestones };
        keeper.round()?;
        Ok(keeper)
    }

    /// Opens the sales that are due, until a message comes on `stop` or its sender is gone.
    pub fn run(mut self, stop: &Receiver<()>) {
        while stop.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            match self.round() {
                Ok(()) if self.problem => {
                    tracing::info!("sales can be opened again");
                    self.problem = false;
                }
                Err(error) if !self.problem => {
                    tracing::error!("the next sale cannot be opened, which is tried again: {error}");
                    self.problem = true;
                }
                Ok(()) | Err(_) => {}
            }
            let (sales, counters, open) = (&self.sales, self.recorder.counters(), self.sales.terms());
            self.milestones.follow(wall_clock_ms(), &open, &mut |terms| sales.progress(terms.sale, counters));
        }
    }

    fn round(&mut self) -> Result<(), LedgerError> {
        let now_ms = wall_clock_ms();
        let open = self.sales.terms();
        let none_is_old = open.iter().all(|terms| terms.ends_ms + ENDED_KEPT_MS > now_ms);
        if none_is_old && next_terms(&open, now_ms, &self.settings).is_none() {
            return Ok(());
        }
        let opened = self.open_due(now_ms, &open);
        self.sales.forget(now_ms.saturating_sub(ENDED_KEPT_MS));
        // Also if only some of them could be opened: the view has the open ones.
        self.view.store(Arc::new(View {
            epoch: EMBEDDED_EPOCH,
            selling: true,
            reachable: true,
            sales: self.sales.terms(),
            confirmed: Vec::new(),
            identity: String::new(),
            clock: Clock::new(Instant::now(), now_ms),
        }));
        opened
    }

    fn open_due(&mut self, now_ms: u64, open: &[Terms]) -> Result<(), LedgerError> {
        for row in self.due(now_ms)?.iter().filter(|row| !open.contains(&row.terms)) {
            let has_ended = row.terms.ends_ms <= now_ms;
            if has_ended && !(row.opened && row.terms.ends_ms + ENDED_KEPT_MS > now_ms) {
                continue;
            }
            if !row.opened {
                self.ledger.mark_opened(row.terms.sale)?;
            }
            let sale = self.rebuild(&row.terms, now_ms)?;
            self.sales.open(sale);
        }
        Ok(())
    }

    /// The sales that the ledger has, up to those far enough ahead. Plans those that are missing.
    fn due(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, LedgerError> {
        let mut rows = self.ledger.sales(now_ms.saturating_sub(self.settings.sale_ms.max(ENDED_KEPT_MS)))?;
        if self.sales.terms().is_empty() {
            // The start: no sale is open in memory, so one that has not begun can take the present settings.
            super::replan::apply(&mut *self.ledger, &mut rows, now_ms, &self.settings)?;
        }
        plan_ahead(&mut *self.ledger, &mut rows, now_ms, &self.settings)?;
        Ok(rows)
    }

    fn rebuild(&mut self, terms: &Terms, now_ms: u64) -> Result<MemorySale, LedgerError> {
        let mut holds = Vec::new();
        self.ledger.holds(terms.sale, &mut |hold| holds.push(hold))?;
        let found = holds.len();
        // By a clock that is past the end by mistake, a hold that expires with the sale would be over, and the sale's time would
        // stand at its end from then on.
        let sale = MemorySale::open(*terms, holds, now_ms.min(terms.ends_ms.saturating_sub(1)));
        tracing::info!(
            "{terms} is opened: {} items, {} to a user, {found} holds on record",
            terms.items,
            terms.user_limit
        );
        if !is_by(terms, &self.settings) && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!("{}", other_settings(terms, &self.settings));
        }
        if sale.dropped() > 0 {
            tracing::error!("{terms}: {} holds on record found no item left: their codes are void", sale.dropped());
        }
        Ok(sale)
    }
}
