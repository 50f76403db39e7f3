//! The inventory: the part that decides requests, in Redis, or in memory in embedded mode.
//!
//! Owns the trait that the service sees, the view that the keeper publishes for the workers, and the suspicions that the
//! workers report to the keeper. Invariant: a view is replaced as a whole and never changed. Leaves HTTP to the service, and
//! opening sales and the ledger to the keeper.

pub mod embedded;
pub mod memory;
pub mod redis;
mod sold_out;

use crate::domain::{Outcome, Request, SaleId, Terms};
use crate::worker::{Ticket, Waiter};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Decides checkouts and purchases. [`submit`](Inventory::submit) and [`tick`](Inventory::tick) are called on the worker that
/// they are about; no call blocks. An answer that waits for the ledger comes to its waiter by the worker's
/// [`Mailbox`](crate::record::Mailbox), not through the inventory.
pub trait Inventory: Send + Sync + 'static {
    /// Decides now, or has the decision delivered to `waiter` later (`None`), never from within this call.
    fn submit(&self, waiter: &Arc<Waiter<Outcome>>, ticket: Ticket, request: &Request) -> Option<Outcome>;

    /// The tick of `worker`: notices calls that have taken too long, and connections that are to be made anew.
    fn tick(&self, worker: usize);

    /// Whether every worker can have its requests decided. From any thread.
    fn is_ready(&self) -> bool;

    /// How many requests this worker has that are not decided yet. From any thread, when selling has stopped.
    fn undecided(&self, worker: usize) -> usize;
}

/// A reading of the inventory's clock, continued by this machine's monotonic clock.
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

    /// The time that it shows at `at`, unix milliseconds. The inventory reads its clock before its answer arrives, so this
    /// is behind the inventory's clock by the time that the answer took, and never ahead of it. It can show that a moment
    /// has passed. To show that a moment has not come yet, count from the sending of the call instead.
    pub fn ms(&self, at: Instant) -> u64 {
        self.ms.saturating_add(u64::try_from(at.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX))
    }
}

/// What the workers need to know to ask for a decision.
#[derive(Clone, Debug)]
pub struct View {
    /// The epoch in force.
    pub epoch: u64,
    /// Whether anything may be sold: not before the first opening, and not while a loss is suspected.
    pub selling: bool,
    /// Whether the inventory answered the keeper's last look and takes writes. The workers do not use it: it tells health
    /// checks while no request comes.
    pub reachable: bool,
    /// The sales that have been opened and have not ended more than [`ENDED_KEPT_MS`] ago, by their start.
    pub sales: Vec<Terms>,
    /// Up to which moment (unix milliseconds) the ledger was found to have all that was decided in a sale.
    pub confirmed: Vec<(SaleId, u64)>,
    /// Which Redis the epoch was opened on.
    pub identity: String,
    /// The inventory's clock, as the keeper has checked it.
    pub clock: Clock,
}

/// How long after its end a sale's codes are still asked for, in milliseconds: a purchase that is repeated across the end
/// is told what was bought. The HTTP contract promises a minute.
pub const ENDED_KEPT_MS: u64 = 60_000;

/// How far a call lets the inventory's clock be ahead of the view's, in milliseconds. More than the keeper's call for the
/// time may take, so that an honest clock is never held back; less than what would harm a sale.
pub const CLOCK_TOLERANCE_MS: u64 = 3_000;

/// How long a worker answers `sold_out` by itself after one reply: operator actions and a rebuilding elsewhere are seen
/// after that.
pub const SOLD_OUT_TRUST: Duration = Duration::from_secs(1);

impl View {
    /// The view before the first opening: no sale, and nothing may be sold.
    pub fn closed() -> View {
        View {
            epoch: 0,
            selling: false,
            reachable: true,
            sales: Vec::new(),
            confirmed: Vec::new(),
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

    /// The latest that the inventory's clock may show at `at`, unix milliseconds: a clock that jumps beyond it is not
    /// followed before the keeper has looked at it.
    pub fn latest_ms(&self, at: Instant) -> u64 {
        self.clock.ms(at).saturating_add(CLOCK_TOLERANCE_MS)
    }

    /// What happened in the sale before this moment (unix milliseconds) was found in the ledger; 0 if it was not looked
    /// for yet.
    pub fn confirmed_ms(&self, id: SaleId) -> u64 {
        self.confirmed.iter().find(|(sale, _)| *sale == id).map_or(0, |(_, upto_ms)| *upto_ms)
    }

    /// The terms of a code's sale. `Err` with the outcome if the view alone decides: the sale is over, or is not open here.
    pub fn check_code(&self, id: SaleId, now_ms: u64) -> Result<&Terms, Outcome> {
        match self.sale(id) {
            Some(terms) if terms.ends_ms + ENDED_KEPT_MS <= now_ms => Err(Outcome::InvalidCode),
            Some(terms) => Ok(terms),
            // Sales leave the view a minute after their end, so an earlier sale is over. Any other one may have been opened by
            // another instance a moment ago, and is not in this view yet.
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

/// The view, as the keeper publishes it and the workers read it.
pub type SharedView = Arc<ArcSwap<View>>;

/// A reply or a connection that is not as it should be, as a worker reports it to the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// The state of a sale that was opened is not there, is not whole, or does not sell.
    State(SaleId, &'static str),
    /// A script failed because it could not read a field of a sale's state. A look at the sale's numbers does not find that: only
    /// a rebuild mends it.
    Unreadable {
        /// The sale.
        sale: SaleId,
        /// The epoch of the state. A state of a later one has been rebuilt since.
        epoch: u64,
        /// The error, in Redis' words.
        why: String,
    },
    /// Redis carries another epoch.
    Epoch(u64),
    /// The Redis that answers is another one, or was started anew.
    Identity,
    /// Redis refused a call, with these words.
    Refused(String),
    /// The connection is gone. No loss follows from that; the report makes the keeper look at Redis at once.
    Away,
}

/// Set by a worker that sent calls and lost their replies: Redis may have decided them, and then their records are in Redis
/// alone. It is a flag, not a [`Suspicion`]: the channel of suspicions may be full, and a worker does not find these calls a
/// second time.
pub type LostCalls = Arc<AtomicBool>;

/// Why a Redis has no identity that an epoch can be opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Only a master decides.
    #[error("this Redis is a replica")]
    Replica,
    /// Its INFO lacks the ids.
    #[error("Redis does not tell its run id and replication id")]
    NotTold,
}

/// Which Redis this is, from its `INFO server replication`: the run id changes with a restart and the replication
/// id with a promotion, so both unchanged means that no write was lost.
///
/// # Errors
/// It is a replica, or its INFO does not have both ids.
pub fn identity(info: &str) -> Result<String, IdentityError> {
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    if field("role") != Some("master") {
        return Err(IdentityError::Replica);
    }
    match (field("run_id"), field("master_replid")) {
        (Some(run), Some(replication)) => Ok(format!("{run}/{replication}")),
        _ => Err(IdentityError::NotTold),
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
        // Planned by a clock that was ahead; another instance fills the gap at this moment.
        let mut view = View { sales: vec![terms(36_000, 40_000), terms(40_000, 44_000)], ..View::closed() };
        let check = |view: &View, sale, now_ms| view.check_code(SaleId(sale), now_ms).map(|terms| terms.sale.0);
        assert_eq!(check(&view, 7, 7_500), Err(Outcome::Unavailable), "it may be on");
        assert_eq!(check(&view, 7, 36_500), Err(Outcome::InvalidCode), "it is over");
        assert_eq!(check(&view, 44, 36_500), Err(Outcome::Unavailable), "it comes later");
        assert_eq!(check(&view, 36, 36_500), Ok(36));
        assert_eq!(check(&view, 36, 40_000), Ok(36), "it has just ended");
        assert_eq!(check(&view, 36, 100_000), Err(Outcome::InvalidCode), "it ended a minute ago");
        view.sales.clear();
        assert_eq!(check(&view, 7, 7_500), Err(Outcome::Unavailable));
    }
}
