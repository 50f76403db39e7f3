//! The decisions that the ledger does not have yet, and the refusals that rest on them.
//!
//! A refusal can rest on a fact that the ledger is about to refuse: "sold out" on holds that are undone a moment later. Owns
//! the question whether a refusal may be told at once, or has to travel behind the facts that it rests on. Invariant: a
//! refusal that is told at once rests on nothing that can still be undone; at times a refusal waits although it need not,
//! since facts are remembered by the slot that their subject falls into. Costs 66 kB and no allocation. Leaves deciding to
//! the sale in memory, and keeping order to the writer.

use crate::domain::{HoldNumber, Id, Outcome, Record, RecordKind, Request, SaleId};

/// Slots for users, and for holds: more than there are facts on their way at once, usually.
const SLOTS: usize = 4096;
/// Slots for sales.
const SALES: usize = 256;

/// The numbers of the messages to the writer whose facts a refusal can rest on. The first message has the number 1.
pub struct Unwritten {
    /// How many messages the writer was handed.
    handed: u64,
    /// The last message with a fact.
    last: u64,
    /// By sale: the last message with a fact that the stock rests on.
    stock: Box<[u64; SALES]>,
    /// By user: the last message with a fact that the user's share rests on.
    users: Box<[u64; SLOTS]>,
    /// By hold: the last message with its purchase.
    purchases: Box<[u64; SLOTS]>,
}

impl Default for Unwritten {
    fn default() -> Unwritten {
        let (stock, users, purchases) = (Box::new([0; SALES]), Box::new([0; SLOTS]), Box::new([0; SLOTS]));
        Unwritten { handed: 0, last: 0, stock, users, purchases }
    }
}

impl Unwritten {
    /// The writer was handed a message.
    pub fn handed_over(&mut self) {
        self.handed += 1;
    }

    /// `record` goes with the next message.
    ///
    /// A purchase counts for the stock and for the user's share too, although it moves no item: `Retry-After` rests on it.
    /// A held item comes back when its hold expires. A purchased one does not, unless the purchase is undone.
    pub fn note(&mut self, sale: SaleId, record: &Record) {
        let next = self.handed + 1;
        self.last = next;
        if record.kind == RecordKind::Purchase {
            set(&mut *self.purchases, hold_hash(sale, record.number), next);
        }
        set(&mut *self.stock, sale.0, next);
        set(&mut *self.users, user_hash(sale, &record.user), next);
    }

    /// Whether all that was decided in `sale` is written or undone, as far as the stock and what is sold rest on it.
    pub fn is_stock_settled(&self, sale: SaleId, settled: u64) -> bool {
        get(&*self.stock, sale.0) <= settled
    }

    /// Whether `outcome` of `request`, which records nothing, rests on nothing that can still be undone: the writer is done
    /// with the first `settled` messages, and what it could not write of them is undone in memory. `refusing` says that the
    /// ledger refuses, or is stuck: then all that is on its way counts.
    pub fn is_settled(&self, sale: SaleId, request: &Request, outcome: &Outcome, settled: u64, refusing: bool) -> bool {
        let basis = match (outcome, request) {
            (Outcome::SoldOut { .. } | Outcome::UserLimit { .. }, _) if refusing => self.last,
            (Outcome::SoldOut { .. }, _) => get(&*self.stock, sale.0),
            (Outcome::UserLimit { .. }, Request::Checkout { user, .. }) => get(&*self.users, user_hash(sale, user)),
            (Outcome::AlreadyPurchased { .. }, Request::Purchase { hold }) => {
                get(&*self.purchases, hold_hash(sale, hold.number))
            }
            // Those rest on the clock, or on there being no fact.
            (Outcome::InvalidCode | Outcome::HoldLost | Outcome::Unavailable, _) => 0,
            _ => self.last,
        };
        basis <= settled
    }
}

fn set(slots: &mut [u64], hash: u64, to: u64) {
    let count = slots.len() as u64;
    if let Some(slot) = slots.get_mut((hash % count) as usize) {
        *slot = to;
    }
}

fn get(slots: &[u64], hash: u64) -> u64 {
    slots.get((hash % slots.len() as u64) as usize).copied().unwrap_or(u64::MAX)
}

/// Numbers rise by one, so that holds of the same time fall into slots of their own.
fn hold_hash(sale: SaleId, number: HoldNumber) -> u64 {
    sale.0.wrapping_add(number.0)
}

/// FNV-1a.
fn user_hash(sale: SaleId, user: &Id) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    user.as_bytes().iter().fold(sale.0 ^ 0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::HoldKey;

    const SALE: SaleId = SaleId(3600);

    fn record(kind: RecordKind, number: u64, user: &str) -> Record {
        let user: Id = user.parse().unwrap();
        Record { kind, number: HoldNumber(number), user, item: user, at_ms: 1_000, expires_ms: 0 }
    }

    #[test]
    fn a_refusal_rests_on_its_own_facts() {
        let mut unwritten = Unwritten::default();
        let checkout = |user: &str| Request::Checkout { user: user.parse().unwrap(), item: "i".parse().unwrap() };
        let purchase = |number| Request::Purchase { hold: HoldKey { sale: SALE, number: HoldNumber(number) } };
        let (sold_out, limit) = (Outcome::SoldOut { retry_ms: 1 }, Outcome::UserLimit { retry_ms: 1 });
        let already = Outcome::AlreadyPurchased { item: "i".parse().unwrap() };
        assert!(unwritten.is_settled(SALE, &checkout("ann"), &sold_out, 0, true));
        // Message 1: a hold. Message 2: another user's hold.
        unwritten.note(SALE, &record(RecordKind::Hold, 1, "ann"));
        unwritten.handed_over();
        unwritten.note(SALE, &record(RecordKind::Hold, 2, "bob"));
        unwritten.handed_over();
        // What is settled, and the oldest settled message at which each may be told.
        let from = |unwritten: &Unwritten, sale, request: &Request, outcome: &Outcome, refusing| {
            (0..9).find(|settled| unwritten.is_settled(sale, request, outcome, *settled, refusing)).unwrap()
        };
        assert_eq!(from(&unwritten, SALE, &checkout("cid"), &sold_out, false), 2);
        assert_eq!(from(&unwritten, SaleId(7200), &checkout("bob"), &sold_out, false), 0, "another sale's stock");
        assert_eq!(from(&unwritten, SALE, &checkout("ann"), &limit, false), 1);
        assert_eq!(from(&unwritten, SALE, &checkout("bob"), &limit, false), 2);
        assert_eq!(from(&unwritten, SALE, &checkout("cid"), &limit, false), 0, "other users' holds");
        assert_eq!(from(&unwritten, SALE, &purchase(1), &already, false), 0);
        assert_eq!(from(&unwritten, SALE, &purchase(2), &already, false), 0);
        for outcome in [sold_out, limit] {
            assert_eq!(from(&unwritten, SALE, &checkout("bob"), &outcome, true), 2, "all that is on its way");
        }
        for outcome in [Outcome::InvalidCode, Outcome::HoldLost, Outcome::Unavailable] {
            assert_eq!(from(&unwritten, SALE, &purchase(1), &outcome, true), 0);
        }
        // Message 3: a purchase. Undone, it is a hold again: the time that these refusals name would be wrong.
        unwritten.note(SALE, &record(RecordKind::Purchase, 1, "ann"));
        assert_eq!(from(&unwritten, SALE, &checkout("cid"), &sold_out, false), 3);
        assert_eq!(from(&unwritten, SALE, &checkout("ann"), &limit, false), 3);
        assert_eq!(from(&unwritten, SALE, &checkout("bob"), &limit, false), 2);
        assert_eq!(from(&unwritten, SALE, &purchase(1), &already, false), 3);
    }
}
