//! What this instance sells at present.
//!
//! Owns the list of the parts of the keeper that regular work and late records may read. Invariant: it is borrowed for one
//! piece of work. Leaves the parts to their owners.

use crate::domain::Terms;
use crate::inventory::Suspicion;
use crate::record::Counters;
use crossbeam_channel::Receiver;

/// The open sales, and the state of this instance's work.
#[derive(Clone, Copy)]
pub(super) struct Present<'a> {
    /// The open sales, by their start.
    pub open: &'a [Terms],
    /// The epoch that they are open under.
    pub epoch: u64,
    /// The counters of the way to the ledger.
    pub counters: &'a Counters,
    /// Where this instance's workers report what they find odd. Work that can wait gives way to it.
    pub suspicions: &'a Receiver<Suspicion>,
}
