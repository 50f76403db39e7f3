//! What a shopper asks for, and what the inventory decides.
//!
//! Business results are outcomes, not errors. Leaves statuses and texts to the service. Pure.

use super::hold::HoldKey;
use super::id::Id;

/// What a shopper asks for.
#[derive(Clone, Copy, Debug)]
pub enum Request {
    /// Take an item off the stock for `user`.
    Checkout {
        /// The shopper, as the client names him.
        user: Id,
        /// The item that he wants.
        item: Id,
    },
    /// Redeem a hold.
    Purchase {
        /// The hold that the code names.
        hold: HoldKey,
    },
}

/// What the inventory decided. Business results are outcomes, not errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An item was taken off the stock.
    Held {
        /// The new hold.
        hold: HoldKey,
        /// When it expires, unix milliseconds.
        expires_ms: u64,
    },
    /// No item is free.
    SoldOut {
        /// Milliseconds to the next moment at which one can be.
        retry_ms: u64,
    },
    /// The user holds or has purchased as many as the sale allows.
    UserLimit {
        /// Milliseconds: the hold time, or the time to the sale's end if that is shorter or if the user has purchased all of
        /// the limit.
        retry_ms: u64,
    },
    /// The hold was redeemed now.
    Purchased {
        /// The item that was bought.
        item: Id,
    },
    /// The hold had been redeemed before.
    AlreadyPurchased {
        /// The item that was bought then.
        item: Id,
    },
    /// Not a hold of a running sale, or expired.
    InvalidCode,
    /// A genuine code, but its hold was lost with Redis and nothing can be sold for it.
    HoldLost,
    /// No decision is known. The request may have had its effect all the same: a reply of Redis may have been lost.
    Unavailable,
}
