//! The keeper of a process that runs by itself: it opens sales in memory from the rows of its own ledger.
//!
//! Owns the list of open sales. Invariant: a sale that is in the list holds all that the ledger has of it.

use super::calendar::{is_far_enough, next_terms};
use crate::config::SaleSettings;
use crate::domain::Terms;
use crate::inventory::embedded::{Sales, wall_clock_ms};
use crate::inventory::memory::MemorySale;
use crate::inventory::{Clock, Gate, View};
use crate::ledger::{Ledger, LedgerError, sqlite};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it looks at the clock.
const ROUND: Duration = Duration::from_millis(500);
/// A sale stays this long after its end: what was decided at the edge may still have to be undone.
const LINGER_MS: u64 = 30_000;

/// The keeper.
pub struct Keeper {
    ledger: Box<dyn Ledger>,
    settings: SaleSettings,
    sales: Sales,
    gate: Gate,
    trouble: bool,
}

impl Keeper {
    /// A keeper that has opened the running sale and those ahead.
    pub fn start(
        ledger: Box<dyn Ledger>,
        settings: SaleSettings,
        sales: Sales,
        gate: Gate,
    ) -> Result<Keeper, LedgerError> {
        let mut keeper = Keeper { ledger, settings, sales, gate, trouble: false };
        keeper.round()?;
        Ok(keeper)
    }

    /// Opens what is due until `stop` is closed.
    pub fn run(mut self, stop: &Receiver<()>) {
        while stop.recv_timeout(ROUND) == Err(RecvTimeoutError::Timeout) {
            match self.round() {
                Ok(()) => self.trouble = false,
                Err(error) if !self.trouble => {
                    tracing::error!("cannot open the next sale: {error}");
                    self.trouble = true;
                }
                Err(_) => {}
            }
        }
    }

    fn round(&mut self) -> Result<(), LedgerError> {
        let now_ms = wall_clock_ms();
        let open: Vec<Terms> = self.sales.load().iter().map(|sale| *sale.lock().terms()).collect();
        if !open.is_empty() && is_far_enough(&open, now_ms) && open.iter().all(|t| t.ends_ms + LINGER_MS > now_ms) {
            return Ok(());
        }
        let since = now_ms.saturating_sub(self.settings.sale_ms);
        let mut rows = self.ledger.sales(since)?;
        loop {
            let known: Vec<Terms> = rows.iter().map(|row| row.terms).collect();
            if is_far_enough(&known, now_ms) {
                break;
            }
            rows.push(self.ledger.plan(&next_terms(known.last(), now_ms, &self.settings))?);
        }
        let mut sales: Vec<_> = self.sales.load().iter().cloned().collect();
        for row in rows.iter().filter(|row| row.terms.ends_ms > now_ms && !open.contains(&row.terms)) {
            if !row.opened {
                self.ledger.mark_opened(row.terms.sale)?;
            }
            let mut holds = Vec::new();
            self.ledger.holds(row.terms.sale, &mut |hold| holds.push(hold))?;
            let found = holds.len();
            let sale = MemorySale::open(row.terms, holds, now_ms);
            tracing::info!(sale = row.terms.sale.0, items = row.terms.items, holds = found, "opened");
            if sale.dropped() > 0 {
                tracing::error!(sale = row.terms.sale.0, holds = sale.dropped(), "holds found no item left");
            }
            sales.push(Arc::new(Mutex::new(sale)));
        }
        sales.retain(|sale| sale.lock().terms().ends_ms + LINGER_MS > now_ms);
        sales.sort_by_key(|sale| sale.lock().terms().starts_ms);
        let terms = sales.iter().map(|sale| *sale.lock().terms()).collect();
        self.sales.store(Arc::new(sales));
        self.gate.store(Arc::new(View {
            epoch: sqlite::EPOCH,
            selling: true,
            sales: terms,
            identity: String::new(),
            clock: Clock::new(Instant::now(), now_ms),
        }));
        Ok(())
    }
}
