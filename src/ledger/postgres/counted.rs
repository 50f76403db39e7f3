//! What a session has counted of the rows of each sale. It ends with its session: a server that was restored, restarted or replaced
//! ends all sessions, and its rows are counted anew. Leaves counting to `counting`.

use crate::domain::SaleId;
use crate::ledger::Decided;
use std::collections::HashMap;
use std::time::Instant;

/// What a session has counted.
#[derive(Default)]
pub(super) struct Counted {
    pub sales: HashMap<SaleId, Count>,
    /// When this session removed old tallies last.
    pub pruned: Option<Instant>,
}

/// The ledger has at least so many rows of a sale that were decided up to a moment.
#[derive(Debug)]
pub(super) struct Count {
    pub upto_ms: u64,
    pub holds: u64,
    pub purchases: u64,
    /// The text that changes when rows are removed, read before they were counted; `None` if Postgres does not keep these counters.
    pub removed: Option<String>,
    /// The last moment of the tallies that there were when that text was read first, as the tallies have it.
    pub trusted_after: i64,
}

impl Count {
    /// Whether there are as many rows as were `decided`.
    pub fn covers(&self, decided: &Decided) -> bool {
        self.holds >= decided.holds && self.purchases >= decided.purchases
    }
}
