//! Redis as the keeper sees it.
//!
//! Owns the trait, so that the protocol of opening and recovery runs against a fake as well. Invariant of every
//! implementation: unless a call's text says otherwise, it is atomic, changes nothing under an epoch that is not in force in
//! the state, and fails with [`KeeperError::Redis`] where it may not have been executed. Leaves to the keeper when anything
//! of it happens.

use super::error::KeeperError;
use super::merge::{HoldFacts, RebuiltSale};
use super::store::{Condition, Counts};
use crate::domain::{RecordRef, SaleId, Terms};
use crate::inventory::Progress;
use crate::ledger::LedgerId;

/// Called for each hold with its number.
pub type EachHold<'a> = &'a mut dyn FnMut(u64, HoldFacts);
/// Called after each piece of a long work; its error ends the work.
pub type Alive<'a> = &'a mut dyn FnMut() -> Result<(), KeeperError>;

/// The states of sales. Each call blocks for seconds at most, then fails.
pub trait SaleStore: Send {
    /// Where it is, for messages.
    fn name(&self) -> &str;

    /// Makes the connection anew on the next call, to the address that the name has then.
    fn reconnect(&mut self);

    /// Refuses a server that the service cannot rely on, with [`KeeperError::Unusable`]. Warns of one that may lose its latest
    /// writes.
    fn check_server(&mut self) -> Result<(), KeeperError>;

    /// The server's clock, unix milliseconds.
    fn time_ms(&mut self) -> Result<u64, KeeperError>;

    /// From now on the store is asked on behalf of this ledger.
    fn set_ledger(&mut self, id: LedgerId);

    /// Which server this is, and whose the database is. Not of a replica.
    fn look(&mut self) -> Result<Look, KeeperError>;

    /// Names this ledger as the owner of the database, unless another one is named there.
    fn take_ownership(&mut self) -> Result<(), KeeperError>;

    /// All states, those of other ledgers too.
    fn states(&mut self) -> Result<Vec<FoundState>, KeeperError>;

    /// What the state of `sale` is like for a caller that sells under `epoch`.
    fn condition(&mut self, sale: SaleId, epoch: u64) -> Result<Condition, KeeperError>;

    /// Whether the state of a sale has these terms.
    fn has_terms(&mut self, terms: &Terms) -> Result<bool, KeeperError>;

    /// Gives the state of a sale that has not begun these terms. `Ok(false)` if it has begun, or is not open under `epoch`. The clock
    /// is not believed beyond `latest_ms`.
    fn replan(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<bool, KeeperError>;

    /// Stops the sale from selling under an epoch older than `epoch`, whether there is a state or not.
    fn close(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError>;

    /// Drops the holds of the state that was closed for `epoch`. The ledger has all of them.
    fn forget(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError>;

    /// The time that a sale has reached, unix milliseconds, also where its state is closed; 0 where no state says it.
    fn reached_ms(&mut self, terms: &Terms) -> Result<u64, KeeperError>;

    /// How much `sale` has decided; `None` if there is no state of this ledger that can be read. What is decided after this call
    /// is later than `upto_ms` of its result.
    fn counts(&mut self, sale: SaleId) -> Result<Option<Counts>, KeeperError>;

    /// How far a sale has come; `None` if it has no state.
    fn progress(&mut self, terms: &Terms) -> Result<Option<Progress>, KeeperError>;

    /// Calls `each` for every hold of `sale`, for some twice, and `alive` after each piece. Says whether all could be read. For a
    /// state that does not sell: the pieces are large.
    fn holds(&mut self, sale: SaleId, each: EachHold<'_>, alive: Alive<'_>) -> Result<bool, KeeperError>;

    /// A piece of [`SaleStore::holds`], for a state that sells: from `cursor` on, which is 0 at first. Returns the next cursor, 0 at
    /// the end, and whether all of the piece could be read.
    fn some_holds(&mut self, sale: SaleId, cursor: u64, each: EachHold<'_>) -> Result<(u64, bool), KeeperError>;

    /// Returns to the stock of an open sale the items of all holds that have expired. The clock is not believed beyond `latest_ms`.
    fn expire_due(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<(), KeeperError>;

    /// Offers an open sale records that were decided under an older epoch, all of them in one round trip: whether each of them is in
    /// the state now. `None` if the sale has ended, also if it ends in between. Not atomic as a whole: where it fails or the sale
    /// ends, some of the records may be in the state, and a repetition finds them there.
    fn offer(
        &mut self,
        sale: SaleId,
        epoch: u64,
        latest_ms: u64,
        records: &[RecordRef<'_>],
    ) -> Result<Option<Vec<bool>>, KeeperError>;

    /// Builds the state of a sale for `epoch` beside the one that is there. `alive` is called after each piece.
    fn build(
        &mut self,
        terms: &Terms,
        epoch: u64,
        rebuilt: &RebuiltSale,
        alive: Alive<'_>,
    ) -> Result<Built, KeeperError>;

    /// Puts a state in place that was built. Fails where a newer epoch is there, or where this epoch sells already.
    fn open(&mut self, built: &Built) -> Result<(), KeeperError>;

    /// Removes a state that was built and will not be opened. It expires by itself if this fails.
    fn discard(&mut self, built: &Built);

    /// Tries whether the server takes what a decision writes: its words if it refuses. What the attempt might leave behind
    /// expires at `until_s`, unix seconds.
    fn probe(&mut self, until_s: u64) -> Result<Option<String>, KeeperError>;

    /// Removes the state of `sale`.
    fn unlink(&mut self, sale: SaleId) -> Result<(), KeeperError>;
}

/// What [`SaleStore::look`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Run id and replication id of the server.
    pub identity: String,
    /// Whose the database is.
    pub owner: Owner,
}

/// A state in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundState {
    /// The sale.
    pub sale: SaleId,
    /// The sale's end, unix milliseconds.
    pub ends_ms: u64,
    /// The ledger that it was built for; `None` if an earlier version built it.
    pub ledger: Option<String>,
}

/// A state that was built and not opened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The sale.
    pub terms: Terms,
    /// The epoch that it was built for.
    pub epoch: u64,
    /// Tells it from what other builders built for the same sale and epoch.
    pub nonce: u64,
}

/// Whose a Redis database is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// It names no ledger: it is new, was emptied, or was used by an earlier version only.
    Unclaimed,
    /// This ledger.
    Ours,
    /// The ledger of this identity.
    Other(String),
}
