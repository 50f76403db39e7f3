//! The state that all lanes of the inventory in Redis share.
//!
//! Owns the reports to the keeper. Invariant: a worker never waits here. Leaves each lane's own state to `state.rs`.

use crate::code::HoldNumbers;
use crate::inventory::{LostCalls, SharedView, Suspicion};
use crate::record::Recorder;
use crossbeam_channel::Sender;
use std::sync::Arc;
use std::time::Duration;

/// The state that all lanes share.
pub struct Shared {
    /// What may be sold, from the keeper.
    pub view: SharedView,
    /// The numbers of the holds that this process takes.
    pub numbers: HoldNumbers,
    /// The way to the ledger.
    pub recorder: Arc<Recorder>,
    /// Whether a purchase is answered only once the ledger has it.
    pub ack_by_ledger: bool,
    /// How long Redis may take for a reply.
    pub timeout: Duration,
    /// Where the workers report suspicions to the keeper.
    pub suspicions: Sender<Suspicion>,
    /// Set where calls were lost, for the keeper.
    pub lost_calls: LostCalls,
}

impl Shared {
    /// Tells the keeper. If the channel is full, the keeper has enough to look into, and what is still wrong is found again.
    pub(super) fn suspect(&self, suspicion: Suspicion) {
        let _ = self.suspicions.try_send(suspicion);
    }
}
