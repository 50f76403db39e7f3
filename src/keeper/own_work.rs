//! What this instance itself has under way: requests that are not decided, and records that are not written.
//!
//! Owns the trait through which the keeper waits for both before it leaves an epoch. Invariant: a wait ends at the
//! moment that the caller names, whatever the servers do. Leaves deciding to the inventory and writing
//! to the ledger's writer.

use crate::inventory::Inventory;
use crate::record::{Counters, Message, Recorder};
use std::sync::Arc;
use std::time::Instant;

/// The work of this instance that a recovery waits for.
pub trait OwnWork: Send {
    /// How many requests of this instance are not decided yet. Counts down to 0 once selling has stopped.
    fn undecided(&self) -> usize;

    /// Waits until the writer is done with all that it was given before: written, given back or passed on as stale. `false` if it
    /// is not done at `until`.
    fn flush(&self, until: Instant) -> bool;

    /// The counters of the way to the ledger.
    fn counters(&self) -> &Counters;
}

/// The work of this process.
pub struct LocalWork {
    recorder: Arc<Recorder>,
    /// The inventory, and its number of workers. `None` before the instance serves.
    inventory: Option<(Arc<dyn Inventory>, usize)>,
}

impl LocalWork {
    /// Of a process that decides nothing yet.
    pub fn starting(recorder: Arc<Recorder>) -> LocalWork {
        LocalWork { recorder, inventory: None }
    }

    /// Of a process whose `inventory` decides on so many workers.
    pub fn serving(recorder: Arc<Recorder>, inventory: Arc<dyn Inventory>, workers: usize) -> LocalWork {
        LocalWork { recorder, inventory: Some((inventory, workers)) }
    }
}

impl OwnWork for LocalWork {
    fn undecided(&self) -> usize {
        self.inventory
            .as_ref()
            .map_or(0, |(inventory, workers)| (0..*workers).map(|worker| inventory.undecided(worker)).sum())
    }

    fn flush(&self, until: Instant) -> bool {
        self.recorder.hurry();
        let (done, wait) = crossbeam_channel::bounded(1);
        let left = until.saturating_duration_since(Instant::now());
        self.recorder.sender().send_timeout(Message::Flush(done), left).is_ok() && wait.recv_deadline(until).is_ok()
    }

    fn counters(&self) -> &Counters {
        self.recorder.counters()
    }
}
