//! The ledger: the durable record of sales, holds and purchases.
//!
//! Owns the traits that both ledgers implement. Invariant: all calls here block, so only plain threads make them (the
//! writer's and the keeper's), never a worker. Leaves decisions to the inventory.

mod error;
mod identity;
mod migrations;
pub mod outage;
pub mod postgres;
pub mod sqlite;
pub mod writer;

use crate::code::KEY_BYTES;
pub use crate::domain::HoldRow;
use crate::domain::{HoldNumber, Records, SaleId, Terms};
pub use error::LedgerError;
pub use identity::LedgerId;
pub use migrations::TooNew;

/// What the writer thread writes to.
pub trait Append: Send {
    /// Writes all `batches`. A record that the ledger has already is left as it is, so that the same call may be repeated
    /// after an error: it may have written some of them. An implementation connects again by itself, on the next call, after
    /// a connection was lost. `Stale` if the epoch of any batch is not the one in force; some of the records may be written
    /// then. A ledger whose refusals are undone ([`writer::OnFailure::Undo`]) writes all `batches` or none.
    fn append(&mut self, batches: &[&Records]) -> Result<(), LedgerError>;

    /// Writes something that changes nothing in the end, to find out whether the ledger takes records again. Called only if
    /// refused batches are undone: otherwise the writer repeats the refused batch, and its result tells.
    fn probe(&mut self) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Finds out, without writing anything, whether a later start would still find the records that are written. The writer
    /// asks once a second while it has nothing to write, if refused batches are undone.
    fn look(&mut self) -> Result<(), LedgerError> {
        Ok(())
    }
}

/// A sale as the ledger knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaleRow {
    /// The sale's terms, as they were planned.
    pub terms: Terms,
    /// Whether an instance has opened the sale's state in the inventory, or was about to ([`Ledger::mark_opened`]). From then
    /// on a missing state of a sale that has begun is a suspected loss.
    pub opened: bool,
}

/// What the keeper asks of a ledger. All calls block for seconds at most, then fail.
pub trait Ledger: Send {
    /// The key that all codes are minted with, made on the first call ever.
    fn code_key(&mut self) -> Result<[u8; KEY_BYTES], LedgerError>;

    /// The identity of this ledger, different from every other ledger's, made on the first call ever. A copy or a restored
    /// backup has the identity of its original.
    fn identity(&mut self) -> Result<LedgerId, LedgerError>;

    /// A fresh instance number, never given out before.
    fn new_instance(&mut self) -> Result<u64, LedgerError>;

    /// The sales that end after `now_ms`, by their start.
    fn sales(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, LedgerError>;

    /// Plans a sale with `terms`, unless it is planned already. Returns the sale as it is planned now.
    fn plan(&mut self, terms: &Terms) -> Result<SaleRow, LedgerError>;

    /// Gives a planned sale the items, the limit and the hold time of `terms`, unless the ledger has a hold of it. Returns
    /// whether the sale has these terms now.
    fn replan(&mut self, terms: &Terms) -> Result<bool, LedgerError>;

    /// Notes that `sale` is about to be opened in the inventory.
    fn mark_opened(&mut self, sale: SaleId) -> Result<(), LedgerError>;

    /// Calls `each` for every hold of `sale`, in the order of their numbers; for some of them twice if a session was lost in
    /// between. Keeps the openers' lock alive if this instance holds it.
    fn holds(&mut self, sale: SaleId, each: &mut dyn FnMut(HoldRow)) -> Result<(), LedgerError>;
}

/// The epoch in force, and the Redis that it was opened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The epoch's number, from 1.
    pub number: u64,
    /// Run id and replication id of the Redis, from its `INFO`, when the epoch's sales were opened. Empty before the first
    /// opening, and from the moment on at which an instance announces that it closes the epoch: then no instance may sell
    /// under it.
    pub identity: String,
}

/// The fence of a ledger that several instances share: the epoch, its members, and the locks of the opener and of the
/// reconciler. All calls block for seconds at most, then fail.
pub trait Fence: Ledger {
    /// The ledger's clock, in unix milliseconds. The keeper compares Redis' clock with it.
    fn clock_ms(&mut self) -> Result<u64, LedgerError>;

    /// The epoch in force (1 in a new ledger).
    fn epoch(&mut self) -> Result<Epoch, LedgerError>;

    /// Takes this instance's shared lock of `epoch`, and releases the one that it had. A session of its own holds the lock
    /// until [`Fence::leave`], the next `join`, or the session's end.
    fn join(&mut self, epoch: u64) -> Result<(), LedgerError>;

    /// Releases the shared lock. The caller has written all that this instance decided.
    fn leave(&mut self) -> Result<(), LedgerError>;

    /// Whether this instance still holds its shared lock, which is whether the lock's session lives.
    fn is_member(&mut self) -> bool;

    /// The sessions that hold the shared lock of `epoch`, by the ledger's own numbers for them: one for each member other
    /// than this instance, whose earlier sessions are left out too.
    fn members(&mut self, epoch: u64) -> Result<Vec<i32>, LedgerError>;

    /// Waits at most `wait` for the openers' lock, one for all instances. A transaction in a session of its own holds it; the
    /// server ends that session after three idle seconds, so a frozen opener cannot keep others out. `Ok(false)` if another
    /// instance has the lock. The instance that has the lock sees an `urgent` caller: see [`Fence::opening_is_urgent`].
    fn lock_opening(&mut self, wait: std::time::Duration, urgent: bool) -> Result<bool, LedgerError>;

    /// `Ok` if this instance still has the openers' lock. Resets the lock's three idle seconds.
    fn still_opening(&mut self) -> Result<(), LedgerError>;

    /// [`Fence::still_opening`], and whether an urgent caller waits for the lock: work that can wait releases it then.
    fn opening_is_urgent(&mut self) -> Result<bool, LedgerError>;

    /// Releases the openers' lock, if this instance has it.
    fn unlock_opening(&mut self);

    /// Takes the reconcilers' lock, which works as the openers' lock does and is independent of it. `Ok(false)` if another
    /// instance has it, or if this instance had it and has lost it. `Ok(true)` also if this instance has it already; that
    /// resets its three idle seconds.
    fn lock_reconciling(&mut self) -> Result<bool, LedgerError>;

    /// Releases the reconcilers' lock, if this instance has it.
    fn unlock_reconciling(&mut self);

    /// Announces that `epoch` is being closed, by clearing [`Epoch::identity`]: its members stop selling, write the records
    /// that they have, which is still allowed, and leave. `Stale` if the epoch is not in force any more.
    fn announce_closing(&mut self, epoch: u64) -> Result<(), LedgerError>;

    /// Raises the epoch from `from` to `to`, for all instances at once; `Stale` if it is not `from` any more. A transaction
    /// that has begun to write under an older epoch can still commit: see [`Fence::drain`].
    fn raise(&mut self, from: u64, to: u64) -> Result<(), LedgerError>;

    /// Notes the Redis that `epoch` is opened on; `Stale` if a later epoch is in force, or if this one was opened on another
    /// Redis.
    fn set_identity(&mut self, epoch: u64, identity: &str) -> Result<(), LedgerError>;

    /// Waits, at most for `wait`, until no session holds the shared lock of `epoch` or of an older one. `Ok(false)` if some
    /// session still does. Keeps the openers' lock alive if this instance holds it.
    fn drain(&mut self, epoch: u64, wait: std::time::Duration) -> Result<bool, LedgerError>;

    /// Ends all sessions of this database that hold the shared lock of `epoch` or of an older one: those of frozen instances
    /// and of their writers. Postgres undoes what they have not committed. Returns how many sessions were told to end;
    /// [`Fence::drain`] waits for their end.
    fn evict(&mut self, epoch: u64) -> Result<u64, LedgerError>;
}

/// How much of a sale was decided up to a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The moment, unix milliseconds. What was decided in it is counted.
    pub upto_ms: u64,
    /// Holds whose checkout the ledger should have.
    pub holds: u64,
    /// Purchases.
    pub purchases: u64,
}

/// The records of a ledger that several instances share, as the keeper reads and completes them. All calls block for
/// seconds at most, then fail.
pub trait SharedRecords: Ledger {
    /// Whether the ledger has as many rows of `sale` as were `decided`. Its cost does not grow with the rows that an earlier call
    /// has counted, unless rows are missing.
    fn has_all(&mut self, sale: SaleId, decided: &Decided) -> Result<bool, LedgerError>;

    /// Calls `each` for a page of the holds of `sale` whose numbers are above `after`, in their order. Returns the last
    /// number of the page, `None` if it was the last page. A page takes a fraction of a second.
    fn page_of_holds(
        &mut self,
        sale: SaleId,
        after: Option<HoldNumber>,
        each: &mut dyn FnMut(HoldRow),
    ) -> Result<Option<HoldNumber>, LedgerError>;

    /// Writes those of `records` that the ledger lacks, under their epoch. Returns how many they were. `Stale` as in
    /// [`Append`].
    fn add_missing(&mut self, records: &Records) -> Result<u64, LedgerError>;

    /// Puts `records` into quarantine, a table of their own, with the reason: they were answered to a shopper and do not fit
    /// their sale any more. A record that is there already is left as it is.
    fn quarantine(&mut self, records: &Records, reason: &str) -> Result<(), LedgerError>;
}

/// The ledger of a deployment with several instances.
pub trait SharedLedger: Fence + SharedRecords {}

impl<L: Fence + SharedRecords> SharedLedger for L {}
