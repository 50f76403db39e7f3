//! The ledger: the durable record of sales, holds and purchases.
//!
//! Owns the traits that both ledgers implement. Refuses to know the inventory, HTTP and coroutines: all calls
//! here block, so they belong to plain threads (the writer's and the keeper's), never to a worker.

mod identity;
mod migrations;
pub mod outage;
pub mod postgres;
pub mod sqlite;
pub mod writer;

use crate::code::KEY_BYTES;
pub use crate::domain::HoldRow;
use crate::domain::{HoldNumber, Records, SaleId, Terms};
pub use identity::LedgerId;
pub use migrations::TooNew;
use std::error::Error;

/// Why the ledger did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The records were decided under another epoch than the ledger's, and are not written.
    #[error("the ledger's epoch is {current}")]
    Stale {
        /// The epoch that is in force.
        current: u64,
    },
    /// The ledger cannot be reached or refused. A write may have happened; writing it again is harmless.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
}

impl LedgerError {
    /// The ledger failed because of `why`: an error, or a text that says it.
    pub fn failed(why: impl Into<Box<dyn Error + Send + Sync>>) -> LedgerError {
        LedgerError::Failed(why.into())
    }

    /// The ledger failed because of `source`, during or about `what`.
    pub fn about(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> LedgerError {
        LedgerError::failed(About { what: what.into(), source: source.into() })
    }
}

/// An error, and what it is about.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct About {
    what: String,
    source: Box<dyn Error + Send + Sync>,
}

/// What the writer thread writes to.
pub trait Append: Send {
    /// Writes all `batches`. A record that the ledger has already is left as it is, so that the same call may be repeated
    /// after an error: it may have written some of them. An implementation connects again by itself, on the next call,
    /// after a connection was lost. `Stale` if the epoch of any batch is not the one in force. A ledger whose refusals are
    /// undone ([`writer::OnFailure::Undo`]) writes all `batches` or none.
    fn append(&mut self, batches: &[&Records]) -> Result<(), LedgerError>;

    /// Writes something that changes nothing in the end, to find out whether the ledger takes records again. Only asked where a
    /// batch that was refused is given back: else that batch is tried again, and says it.
    fn probe(&mut self) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Finds out whether what is written would still be found later, without writing anything. The writer asks once a second
    /// while it has nothing to write, where a batch that is refused is given back.
    fn look(&mut self) -> Result<(), LedgerError> {
        Ok(())
    }
}

/// A sale as the ledger knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaleRow {
    /// Its terms.
    pub terms: Terms,
    /// Whether its state has been opened in the inventory at some time: from then on a missing state is a loss.
    pub opened: bool,
}

/// What the keeper asks of a ledger. All calls block for seconds at most, then fail.
pub trait Ledger: Send {
    /// The key that all codes are minted with, made on the first call ever.
    fn code_key(&mut self) -> Result<[u8; KEY_BYTES], LedgerError>;

    /// What tells this ledger from every other one, made on the first call ever. A copy or a restored backup has it too.
    fn identity(&mut self) -> Result<LedgerId, LedgerError>;

    /// A fresh instance number, never given out before.
    fn new_instance(&mut self) -> Result<u64, LedgerError>;

    /// The sales that end after `now_ms`, by their start.
    fn sales(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, LedgerError>;

    /// Fixes a sale's terms. Returns those in force: `terms`, or those of whoever was first.
    fn plan(&mut self, terms: &Terms) -> Result<SaleRow, LedgerError>;

    /// Gives a planned sale the items, the limit and the hold time of `terms`, unless a hold of it is on record. Says
    /// whether it has them now.
    fn replan(&mut self, terms: &Terms) -> Result<bool, LedgerError>;

    /// Notes that `sale` is about to be opened in the inventory.
    fn mark_opened(&mut self, sale: SaleId) -> Result<(), LedgerError>;

    /// Calls `each` for every hold of `sale`, in the order of their numbers; where a session was lost in between, for some
    /// of them twice. Keeps the openers' lock, where it is held.
    fn holds(&mut self, sale: SaleId, each: &mut dyn FnMut(HoldRow)) -> Result<(), LedgerError>;
}

/// The number in force and the Redis it was opened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The epoch.
    pub number: u64,
    /// What `INFO` said of the Redis (run id and replication id) when its sales were opened; empty before the first
    /// opening, and from the moment on at which somebody closes it: then nobody may sell under it.
    pub identity: String,
}

/// The fence of a ledger that several instances share: the epoch, its members, and the locks of the opener and of the reconciler.
/// All calls block for seconds at most, then fail.
pub trait Fence: Ledger {
    /// The ledger's clock, unix milliseconds: another opinion on the time.
    fn clock_ms(&mut self) -> Result<u64, LedgerError>;

    /// The epoch in force (1 in a new ledger).
    fn epoch(&mut self) -> Result<Epoch, LedgerError>;

    /// Takes this instance's shared lock of `epoch`, letting go of the one it had. Held by a session of its own until
    /// [`Fence::leave`], the next `join`, or the session's end.
    fn join(&mut self, epoch: u64) -> Result<(), LedgerError>;

    /// Lets go of the shared lock. The ledger's word that this instance has written all that it decided.
    fn leave(&mut self) -> Result<(), LedgerError>;

    /// Whether this instance's shared lock is still held (its session lives).
    fn is_member(&mut self) -> bool;

    /// The sessions that hold the shared lock of `epoch`, by the ledger's own numbers for them: one for each member other
    /// than this instance, whose earlier sessions are left out too.
    fn members(&mut self, epoch: u64) -> Result<Vec<i32>, LedgerError>;

    /// Waits at most `wait` for the openers' lock, one for all instances, in a transaction of a session of its own which
    /// the server ends when it is left idle for three seconds: a stopped opener cannot keep others out.
    /// `Ok(false)` if another has it. An `urgent` caller is seen by the one that has it: see [`Fence::opening_is_urgent`].
    fn lock_opening(&mut self, wait: std::time::Duration, urgent: bool) -> Result<bool, LedgerError>;

    /// Whether the openers' lock is still this instance's; resets the idle clock.
    fn still_opening(&mut self) -> Result<(), LedgerError>;

    /// [`Fence::still_opening`], and whether an urgent caller waits for the lock: work that can wait lets it go then.
    fn opening_is_urgent(&mut self) -> Result<bool, LedgerError>;

    /// Lets go of the openers' lock.
    fn unlock_opening(&mut self);

    /// Takes the reconcilers' lock, which is as the openers' lock and independent of it. `Ok(false)` if another instance
    /// has it, or if this one had it and has lost it. `Ok(true)` also where this one has it already; resets the idle clock then.
    fn lock_reconciling(&mut self) -> Result<bool, LedgerError>;

    /// Lets go of the reconcilers' lock.
    fn unlock_reconciling(&mut self);

    /// Announces that `epoch` is being closed, by forgetting the Redis that it was opened on: its members stop selling,
    /// write what they have, which stays allowed, and leave. `Stale` if it is not in force any more.
    fn announce_closing(&mut self, epoch: u64) -> Result<(), LedgerError>;

    /// Raises the epoch from `from` to `to`, visible to all at once; `Stale` if it is not `from` any more. Whoever has
    /// begun to write under an older one by then can still commit: see [`Fence::drain`].
    fn raise(&mut self, from: u64, to: u64) -> Result<(), LedgerError>;

    /// Notes the Redis that `epoch` is opened on; `Stale` if the epoch has moved on, or was opened on another one.
    fn set_identity(&mut self, epoch: u64, identity: &str) -> Result<(), LedgerError>;

    /// Waits until nobody holds the shared lock of `epoch` or of an older one, at most `wait`. `Ok(false)` if somebody
    /// still does. Keeps the openers' lock, where it is held.
    fn drain(&mut self, epoch: u64, wait: std::time::Duration) -> Result<bool, LedgerError>;

    /// Ends the sessions of this database that hold the shared lock of `epoch` or of an older one, whoever has them:
    /// frozen instances and writers. What they had not committed is undone. Returns how many were told to end;
    /// [`Fence::drain`] waits.
    fn evict(&mut self, epoch: u64) -> Result<u64, LedgerError>;
}

/// What a ledger that several instances share is asked about records, beside the writer. All calls block for seconds at most, then
/// fail.
pub trait SharedRecords: Ledger {
    /// How many checkouts and how many purchases of `sale` the ledger has that were decided up to `upto_ms` (unix
    /// milliseconds).
    fn counts(&mut self, sale: SaleId, upto_ms: u64) -> Result<(u64, u64), LedgerError>;

    /// Calls `each` for a page of the holds of `sale` whose numbers are above `after`, in their order. Returns the last
    /// number of the page, `None` if it was the last page. A page takes a fraction of a second.
    fn page_of_holds(
        &mut self,
        sale: SaleId,
        after: Option<HoldNumber>,
        each: &mut dyn FnMut(HoldRow),
    ) -> Result<Option<HoldNumber>, LedgerError>;

    /// Writes what is missing of `records` under their epoch, row by row where others are there already.
    /// Returns how many rows were new. `Stale` as in [`Append`].
    fn add_missing(&mut self, records: &Records) -> Result<u64, LedgerError>;

    /// Puts `records` into quarantine, a table of their own, with the reason: they were answered to a shopper and do not fit
    /// their sale any more. A record that is there already is left as it is.
    fn quarantine(&mut self, records: &Records, reason: &str) -> Result<(), LedgerError>;
}

/// The ledger of a deployment with several instances.
pub trait SharedLedger: Fence + SharedRecords {}

impl<L: Fence + SharedRecords> SharedLedger for L {}
