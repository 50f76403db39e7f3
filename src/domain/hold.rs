//! Holds: how one is named, the facts that are known of one, and the state that it is in.
//!
//! Owns the types that the ledger, Redis and the keeper exchange. Invariant: values only, without I/O and clocks. Leaves
//! merging the facts of two sources to the keeper.

use super::id::Id;
use super::sale::SaleId;

/// A hold's number, unique over all instances: the instance in the high bits, a counter below.
///
/// Never above `i64::MAX`, since both ledgers keep it as a signed 64-bit integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldNumber(pub u64);

/// What a code names: one hold of one sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldKey {
    /// The sale that the hold was taken in.
    pub sale: SaleId,
    /// The hold's number.
    pub number: HoldNumber,
}

/// All that a source (the ledger, Redis) knows of one hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldFacts {
    /// The user who took it.
    pub user: Id,
    /// The item that was taken off the stock.
    pub item: Id,
    /// When it was taken, unix milliseconds; the purchase's time where only the purchase is known.
    pub taken_ms: u64,
    /// When it expires, unix milliseconds; 0 where only the purchase is known.
    pub expires_ms: u64,
    /// When it was redeemed, unix milliseconds.
    pub purchased_ms: Option<u64>,
}

impl HoldFacts {
    /// Whether the checkout is known, and not only the purchase. Where it is not, no row of the checkout may be invented.
    pub fn has_checkout(&self) -> bool {
        self.expires_ms > 0
    }
}

/// The state of a hold, ordered by which one counts where two sources tell of the same hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldState {
    /// The item is off the stock until the hold expires or is redeemed.
    Held,
    /// The item went back to the stock. The hold is kept, to tell an expired code from a lost one.
    Expired,
    /// The item is sold.
    Purchased,
}

/// All that the ledger knows of one hold: the checkout's row, the purchase's row, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldRow {
    /// The hold's number.
    pub number: HoldNumber,
    /// The facts in the two rows.
    pub facts: HoldFacts,
}
