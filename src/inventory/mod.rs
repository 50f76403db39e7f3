//! The inventory: who decides. Redis, or memory when embedded.
//!
//! Owns the trait that the service sees and the view that the keeper gives to the cores. Refuses to know HTTP, the
//! ledger's kind and how sales come to be opened.

pub mod embedded;
pub mod memory;
pub mod redis;

use crate::core::{Ticket, Waiter};
use crate::domain::{Outcome, Request, SaleId, Terms};
use crate::record::Handoff;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Decides checkouts and purchases. [`submit`](Inventory::submit), [`tick`](Inventory::tick) and
/// [`written`](Inventory::written) are called on the core that they are about; no call blocks.
pub trait Inventory: Send + Sync + 'static {
    /// Decides now, or has the decision delivered to `waiter` later (`None`).
    fn submit(&self, waiter: &Arc<Waiter>, ticket: Ticket, request: &Request) -> Option<Outcome>;

    /// Some time has passed: notice what is overdue.
    fn tick(&self, core: usize);

    /// Answers wait for these records; now they are in the ledger, or it gave them up.
    fn written(&self, core: usize, handoff: Box<Handoff>, ok: bool);

    /// Whether every core can have its requests decided. From any thread.
    fn is_ready(&self) -> bool;

    /// How many requests this core has that are not decided yet. From any thread, when selling has stopped.
    fn undecided(&self, core: usize) -> usize;
}

/// The inventory's clock, carried on by the local monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    at: Instant,
    ms: u64,
}

impl Clock {
    /// The inventory said `ms` (unix milliseconds) at `at`.
    pub fn new(at: Instant, ms: u64) -> Clock {
        Clock { at, ms }
    }

    /// What it would say at `at`. Behind the truth by the way of its last answer, never ahead of it.
    pub fn ms(&self, at: Instant) -> u64 {
        self.ms.saturating_add(u64::try_from(at.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX))
    }
}

/// What the cores need to know to ask for a decision.
#[derive(Clone, Debug)]
pub struct View {
    /// The epoch in force.
    pub epoch: u64,
    /// Whether anything may be sold: not before the first opening, and not while a loss is suspected.
    pub selling: bool,
    /// Whether the inventory answered the keeper when it looked last, and took writes. The cores find out by themselves;
    /// this is for those who ask while nobody shops.
    pub reachable: bool,
    /// The sales that have been opened and have not ended, by their start.
    pub sales: Vec<Terms>,
    /// Which Redis the epoch was opened on.
    pub identity: String,
    /// The inventory's clock.
    pub clock: Clock,
}

/// How long what a core knows by itself (that a sale is sold out) is trusted: operator actions and a rebuilding
/// elsewhere are seen after that.
pub const LATCH_TRUST: Duration = Duration::from_secs(1);

impl View {
    /// Nothing is sold yet.
    pub fn closed() -> View {
        View {
            epoch: 0,
            selling: false,
            reachable: true,
            sales: Vec::new(),
            identity: String::new(),
            clock: Clock::new(Instant::now(), 0),
        }
    }

    /// The sale that is on at `now_ms`.
    pub fn sale_at(&self, now_ms: u64) -> Option<&Terms> {
        self.sales.iter().find(|terms| terms.is_on(now_ms))
    }

    /// An opened sale by its id.
    pub fn sale(&self, id: SaleId) -> Option<&Terms> {
        self.sales.iter().find(|terms| terms.sale == id)
    }

    /// What can be said of a code's sale without asking anybody; the terms if the inventory has to be asked.
    pub fn judge_code(&self, id: SaleId, now_ms: u64) -> Result<&Terms, Outcome> {
        match self.sale(id) {
            Some(terms) if terms.ends_ms <= now_ms => Err(Outcome::InvalidCode),
            Some(terms) => Ok(terms),
            // Sales leave the view when they have ended. A later one, or one that filled a gap, was opened by another
            // instance a moment ago.
            None if self.sale_at(now_ms).is_some_and(|on| id < on.sale) => Err(Outcome::InvalidCode),
            None => Err(Outcome::Unavailable),
        }
    }
}

/// How far a sale has come, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// When the last of its items was taken, unix milliseconds, if none is free.
    pub sold_out_ms: Option<u64>,
    /// Holds that there ever were.
    pub taken: u64,
    /// Those of them that were purchased.
    pub purchased: u64,
}

/// The view, as the keeper publishes it and the cores read it.
pub type Gate = Arc<ArcSwap<View>>;

/// What a core has seen that the keeper should look into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// The state of a sale that was opened is not there, is not whole, or does not sell.
    State(SaleId, &'static str),
    /// Redis carries another epoch.
    Epoch(u64),
    /// The Redis that answers is another one, or was started anew.
    Identity(String),
    /// Redis refused a call, with these words.
    Refused(String),
    /// The connection is gone.
    Away(String),
    /// Calls were sent whose replies did not come: what they decided, if they did, may be with Redis alone.
    LostCalls,
}

/// Which Redis this is, from its `INFO server replication`: the run id changes with a restart and the replication
/// id with a promotion, so both unchanged means that no write was lost. `Err` for a replica.
pub fn identity(info: &str) -> Result<String, String> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if field("role") != Some("master") {
        return Err("this Redis is a replica".into());
    }
    match (field("run_id"), field("master_replid")) {
        (Some(run), Some(replication)) => Ok(format!("{run}/{replication}")),
        _ => Err("Redis does not tell its run id and replication id".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_sales_that_are_not_in_the_view() {
        let terms = |starts_ms: u64, ends_ms: u64| Terms {
            sale: SaleId(starts_ms / 1000),
            items: 1,
            user_limit: 1,
            hold_ms: 1,
            starts_ms,
            ends_ms,
        };
        // Planned by a clock that was ahead; the gap is filled by somebody else at this moment.
        let mut view = View { sales: vec![terms(36_000, 40_000), terms(40_000, 44_000)], ..View::closed() };
        let judge = |view: &View, sale, now_ms| view.judge_code(SaleId(sale), now_ms).map(|terms| terms.sale.0);
        assert_eq!(judge(&view, 7, 7_500), Err(Outcome::Unavailable), "it may be on");
        assert_eq!(judge(&view, 7, 36_500), Err(Outcome::InvalidCode), "it is over");
        assert_eq!(judge(&view, 44, 36_500), Err(Outcome::Unavailable), "it comes later");
        assert_eq!(judge(&view, 36, 36_500), Ok(36));
        assert_eq!(judge(&view, 36, 40_000), Err(Outcome::InvalidCode));
        view.sales.clear();
        assert_eq!(judge(&view, 7, 7_500), Err(Outcome::Unavailable));
    }
}
