//! Holds: the facts that are known of one, and the state that it is in.
//!
//! Owns the two types that the ledger, Redis and the keeper exchange. Invariant: values only, without I/O and clocks. Leaves
//! merging the facts of two sources to the keeper.

use super::Id;

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
