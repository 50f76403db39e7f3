//! Merging the holds that the ledger and Redis each have of a sale.
//!
//! Owns the merge by hold number, in which purchased takes precedence over expired, and expired over held, and the fitting
//! of holds into the stock and the users' limits. Invariant: all purchases stay, and held and purchased items are no more
//! than the stock unless the purchases alone are. Does no I/O. Leaves reading and writing to `rebuild`.

pub use crate::domain::{HoldFacts, HoldState};
use crate::domain::{HoldNumber, Id, Record, RecordKind, Terms};
use std::collections::{BTreeMap, HashMap};

/// A sale, rebuilt.
#[derive(Debug, Default)]
pub struct RebuiltSale {
    /// All holds by their number.
    pub holds: BTreeMap<u64, (HoldFacts, HoldState)>,
    /// Holds that found no item left; they are not in `holds`.
    pub quarantined: Vec<(u64, HoldFacts)>,
    /// How many hold an item.
    pub held: u64,
    /// How many were redeemed. Above the stock only if more was sold than there was.
    pub purchased: u64,
    /// The earliest that the sale's clock may show, unix milliseconds: what is recorded has happened.
    pub clock_ms: u64,
}

impl RebuiltSale {
    /// Ends the process if the counts are not those of the holds, or hold more items than `terms` allow: an instance would sell by
    /// them. Purchases above the stock are possible, where the ledger tells of them, and then nothing is held.
    pub fn assert_sums(&self, terms: &Terms) {
        let count = |state| self.holds.values().filter(|(_, found)| *found == state).count() as u64;
        let sums = (count(HoldState::Held), count(HoldState::Purchased));
        assert_eq!(sums, (self.held, self.purchased), "{terms}: a rebuilt sale counts the holds that it has");
        assert!(
            self.held == 0 || self.held + self.purchased <= terms.items,
            "{terms}: a rebuilt sale holds {} items and has sold {}, of {}",
            self.held,
            self.purchased,
            terms.items
        );
    }
}

/// The facts of a hold that Redis has, without those that the ledger has.
pub fn lacking(number: u64, known: &HoldFacts, has_checkout: bool, has_purchase: bool) -> impl Iterator<Item = Record> {
    let HoldFacts { user, item, taken_ms, expires_ms, purchased_ms } = *known;
    let record =
        move |kind, at_ms, expires_ms| Record { kind, number: HoldNumber(number), user, item, at_ms, expires_ms };
    let hold = (!has_checkout && known.has_checkout()).then(|| record(RecordKind::Hold, taken_ms, expires_ms));
    let purchase = purchased_ms.filter(|_| !has_purchase).map(|at_ms| record(RecordKind::Purchase, at_ms, 0));
    hold.into_iter().chain(purchase)
}

/// What both sides remember, and what the ledger lacks.
#[derive(Debug, Default)]
pub struct HoldMerge {
    known: BTreeMap<u64, HoldFacts>,
    /// Facts that only Redis has: to be written.
    pub missing: Vec<Record>,
    /// The time that the sale had reached in Redis, unix milliseconds; 0 if no state says it. It may be later than all that
    /// is recorded: holds have expired by it.
    pub reached_ms: u64,
}

impl HoldMerge {
    /// Adds what the ledger has of a hold. Before anything of Redis.
    pub fn ledger(&mut self, number: u64, known: HoldFacts) {
        self.known.insert(number, known);
    }

    /// Adds what Redis has of a hold. `has_checkout` says whether the ledger has the checkout's row.
    pub fn redis(&mut self, number: u64, known: HoldFacts, has_checkout: bool) {
        let entry = self.known.get(&number).copied();
        let has_purchase = entry.is_some_and(|entry| entry.purchased_ms.is_some());
        self.missing.extend(lacking(number, &known, has_checkout, has_purchase));
        let purchased_ms = entry.and_then(|entry| entry.purchased_ms).or(known.purchased_ms);
        // The later expiry: a hold that was put back got more time.
        let expires_ms = entry.map_or(0, |entry| entry.expires_ms).max(known.expires_ms);
        self.known.insert(number, HoldFacts { expires_ms, purchased_ms, ..known });
    }

    /// The time that the sale has come to, by what is recorded and by what Redis says. New holds must not expire before
    /// those that are there.
    fn latest(&self, terms: &Terms) -> u64 {
        let moments = self.known.values().map(|known| {
            let renewed =
                if known.expires_ms < terms.ends_ms { known.expires_ms.saturating_sub(terms.hold_ms) } else { 0 };
            known.taken_ms.max(known.purchased_ms.unwrap_or(0)).max(renewed)
        });
        moments.max().unwrap_or(0).max(self.reached_ms)
    }

    /// The sale at `now_ms`: all purchases, and the oldest holds that the rest of the stock and the users' limits allow.
    pub fn rebuild(self, terms: &Terms, now_ms: u64) -> RebuiltSale {
        let clock_ms = self.latest(terms);
        let purchased = self.known.values().filter(|k| k.purchased_ms.is_some()).count() as u64;
        let mut rebuilt = RebuiltSale { purchased, clock_ms, ..RebuiltSale::default() };
        // By a clock that is behind the clock of the Redis before, an expired hold would be valid again, although its item
        // may have been sold since.
        let now_ms = now_ms.max(clock_ms);
        let room = terms.items.saturating_sub(rebuilt.purchased);
        // What each user has purchased, then also what the user holds: a hold that an earlier rebuild had no room for must not
        // come back beside the one that took its share.
        let mut users: HashMap<Id, u64> = HashMap::new();
        for known in self.known.values().filter(|known| known.purchased_ms.is_some()) {
            *users.entry(known.user).or_default() += 1;
        }
        // Numbers start at a random place in each life of an instance, so they are no order of age.
        let mut by_age: Vec<_> = self.known.into_iter().collect();
        by_age.sort_unstable_by_key(|(number, known)| (known.taken_ms, *number));
        for (number, known) in by_age {
            let place = match known.purchased_ms {
                Some(_) => HoldState::Purchased,
                None if known.expires_ms <= now_ms => HoldState::Expired,
                None if rebuilt.held < room && users.get(&known.user).is_none_or(|n| *n < terms.user_limit) => {
                    rebuilt.held += 1;
                    *users.entry(known.user).or_default() += 1;
                    HoldState::Held
                }
                None => {
                    rebuilt.quarantined.push((number, known));
                    continue;
                }
            };
            if place == HoldState::Expired {
                // No mark in Redis says so, only the time: by an earlier one the hold would live, without an item.
                rebuilt.clock_ms = rebuilt.clock_ms.max(known.expires_ms);
            }
            rebuilt.holds.insert(number, (known, place));
        }
        rebuilt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::SaleId;

    fn known(expires_ms: u64, purchased_ms: Option<u64>) -> HoldFacts {
        let id: Id = "x".parse().unwrap();
        HoldFacts { user: id, item: id, taken_ms: 1, expires_ms, purchased_ms }
    }

    #[test]
    fn purchased_beats_expired_beats_held() {
        let terms = Terms { sale: SaleId(0), items: 2, user_limit: 9, hold_ms: 10, starts_ms: 0, ends_ms: 1000 };
        // What the ledger knows (with or without the checkout), what Redis knows, the place at 50.
        let check = |ledger: Option<(HoldFacts, bool)>, redis: Option<HoldFacts>, want: HoldState, missing: usize| {
            let mut union = HoldMerge::default();
            if let Some((known, _)) = ledger {
                union.ledger(7, known);
            }
            if let Some(known) = redis {
                union.redis(7, known, ledger.is_some_and(|(_, has_checkout)| has_checkout));
            }
            assert_eq!(union.missing.len(), missing, "{ledger:?} {redis:?}");
            let rebuilt = union.rebuild(&terms, 50);
            assert_eq!(rebuilt.holds.get(&7).map(|h| h.1), Some(want), "{ledger:?} {redis:?}");
            let sums = (u64::from(want == HoldState::Held), u64::from(want == HoldState::Purchased));
            assert_eq!((rebuilt.held, rebuilt.purchased), sums);
        };
        let (held, expired, sold) = (known(60, None), known(50, None), known(60, Some(20)));
        check(Some((held, true)), None, HoldState::Held, 0);
        check(None, Some(held), HoldState::Held, 1);
        check(Some((held, true)), Some(held), HoldState::Held, 0);
        check(Some((expired, true)), None, HoldState::Expired, 0);
        check(None, Some(expired), HoldState::Expired, 1);
        check(Some((held, true)), Some(sold), HoldState::Purchased, 1);
        check(Some((sold, true)), Some(held), HoldState::Purchased, 0);
        check(Some((sold, false)), Some(held), HoldState::Purchased, 1);
        check(Some((known(0, Some(20)), false)), None, HoldState::Purchased, 0);
        check(None, Some(sold), HoldState::Purchased, 2);
        // No row is invented for a checkout that neither source knows.
        check(None, Some(known(0, Some(20))), HoldState::Purchased, 1);
        check(Some((known(0, Some(20)), false)), Some(known(0, Some(20))), HoldState::Purchased, 0);
        check(Some((expired, true)), Some(known(50, Some(20))), HoldState::Purchased, 1);
    }

    #[test]
    fn a_clock_that_is_behind() {
        let terms = Terms { sale: SaleId(0), items: 1, user_limit: 9, hold_ms: 10, starts_ms: 0, ends_ms: 1000 };
        let mut union = HoldMerge::default();
        union.ledger(1, HoldFacts { taken_ms: 50, ..known(60, None) });
        union.ledger(2, HoldFacts { taken_ms: 61, ..known(71, None) });
        let rebuilt = union.rebuild(&terms, 55);
        assert_eq!((rebuilt.holds[&1].1, rebuilt.holds[&2].1), (HoldState::Expired, HoldState::Held));
        assert_eq!((rebuilt.clock_ms, rebuilt.quarantined.len()), (61, 0));
    }

    #[test]
    fn a_time_that_nothing_is_recorded_of() {
        let terms = Terms { sale: SaleId(0), items: 1, user_limit: 9, hold_ms: 10, starts_ms: 0, ends_ms: 1000 };
        let mut union = HoldMerge { reached_ms: 60, ..HoldMerge::default() };
        union.redis(1, known(60, None), true);
        let rebuilt = union.rebuild(&terms, 55);
        assert_eq!((rebuilt.holds[&1].1, rebuilt.clock_ms), (HoldState::Expired, 60));
    }

    #[test]
    fn what_does_not_fit() {
        let terms = Terms { sale: SaleId(0), items: 3, user_limit: 9, hold_ms: 10, starts_ms: 0, ends_ms: 1000 };
        let mut union = HoldMerge::default();
        [1, 2, 3, 4].into_iter().for_each(|n| union.ledger(n, known(60, None)));
        union.ledger(5, known(60, Some(10)));
        let rebuilt = union.rebuild(&terms, 50);
        assert_eq!((rebuilt.held, rebuilt.purchased), (2, 1));
        assert_eq!(rebuilt.quarantined.iter().map(|q| q.0).collect::<Vec<_>>(), [3, 4]);
    }
    #[test]
    fn a_users_limit_binds_holds_and_purchases_together() {
        let terms = Terms { sale: SaleId(0), items: 9, user_limit: 2, hold_ms: 10, starts_ms: 0, ends_ms: 1000 };
        let mut union = HoldMerge::default();
        union.ledger(1, known(60, None));
        union.ledger(2, known(60, None));
        union.ledger(3, known(60, Some(20)));
        union.ledger(4, known(40, None));
        let rebuilt = union.rebuild(&terms, 50);
        assert_eq!((rebuilt.held, rebuilt.purchased), (1, 1));
        assert_eq!(rebuilt.quarantined.iter().map(|q| q.0).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn the_newest_holds_find_no_item_whatever_their_numbers() {
        let terms = Terms { sale: SaleId(0), items: 1, user_limit: 9, hold_ms: 10, starts_ms: 0, ends_ms: 1000 };
        let mut union = HoldMerge::default();
        // The older hold is of a life of an instance whose numbers are higher.
        union.ledger(9, HoldFacts { taken_ms: 20, ..known(60, None) });
        union.ledger(3, HoldFacts { taken_ms: 21, ..known(60, None) });
        let rebuilt = union.rebuild(&terms, 50);
        assert_eq!(rebuilt.quarantined.iter().map(|q| q.0).collect::<Vec<_>>(), [3]);
    }
}
