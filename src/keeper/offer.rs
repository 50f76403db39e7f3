//! Records of an older epoch: answered, but not yet in the ledger when the sale was rebuilt.
//!
//! Invariant: a record is in the sale and in the ledger, or kept apart and alarmed; never silently sold, nor silently
//! forgotten. Refuses to know how it came to be late.

use super::distributed::{Keeper, SHORT_WAIT};
use super::merge::HoldFacts;
use super::store::words;
use crate::domain::{HoldNumber, Id, RecordKind, RecordRef, Records, SaleId};
use crate::inventory::redis::scripts::{Refusal, offer};
use crate::ledger::HoldRow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Records that one script call decides.
const CHUNK: usize = 200;
/// How long the openers' lock is kept for records of ended sales, or for such that cannot be placed: the others need it.
const TURN: Duration = Duration::from_millis(500);
/// Why late records of an ended sale are left for the next round.
const GAVE_WAY: &str = "late records of an ended sale wait: the openers' lock is needed";
/// Records that are written at once, about.
const BATCH: usize = 2_000;

impl Keeper {
    /// Offers what the writer passed on to the sale as it is now. What fits is written under the present epoch; the
    /// rest is kept apart.
    pub(super) fn place_stale(&mut self) -> Result<(), String> {
        self.take_stale();
        if self.late.is_empty() {
            return Ok(());
        }
        // If another instance has the lock, they wait for the next round.
        self.with_opening_lock(SHORT_WAIT, |keeper| keeper.place_late(true)).map(drop)
    }

    /// Takes in what the writer has passed on.
    pub(super) fn take_stale(&mut self) {
        while let Ok(handoff) = self.stale.try_recv() {
            self.take_in(&handoff.records);
        }
    }

    /// Places late records, under the openers' lock: those of the open sales, and of the `ended` ones too, as far as they
    /// get within [`TURN`].
    pub(super) fn place_late(&mut self, ended: bool) -> Result<(), String> {
        let begun = Instant::now();
        let (mut sold, mut failed) = (HashMap::new(), Ok(()));
        for _ in 0..self.late.len() {
            let Some(records) = self.late.pop_front() else { break };
            let now_ms = self.store.clock().ms(Instant::now());
            let is_open = self.open.iter().any(|terms| terms.sale == records.sale && terms.ends_ms > now_ms);
            if !is_open && (!ended || begun.elapsed() > TURN) {
                self.late.push_back(records);
                continue;
            }
            // They stay if this fails; a repetition finds what was placed already and changes nothing. One sale's failure
            // keeps no other's waiting.
            if let Err(why) = self.place(&records, &mut sold) {
                self.late.push_back(records);
                failed = failed.and(Err(why));
                if begun.elapsed() > TURN {
                    break;
                }
                continue;
            }
            let count = records.len() as u64;
            self.recorder.counters().written.fetch_add(count, Ordering::Relaxed);
            let (sale, epoch) = (records.sale.named(), records.epoch);
            tracing::info!("late records are settled: {count} of {sale}, decided under epoch {epoch}");
        }
        failed
    }

    /// Puts late records to those of the same sale and epoch: they come in many small batches.
    pub(super) fn take_in(&mut self, records: &Records) {
        let alike =
            |other: &&mut Records| (other.sale, other.epoch) == (records.sale, records.epoch) && other.len() < BATCH;
        match self.late.iter_mut().find(alike) {
            Some(other) => records.iter().filter_map(|r| r.to_owned().ok()).for_each(|record| other.push(&record)),
            None => self.late.push_back(records.clone()),
        }
    }

    /// `known` keeps what is known of ended sales from one call to the next.
    fn place(&mut self, late: &Records, known: &mut HashMap<SaleId, Sold>) -> Result<(), String> {
        let (mut fit, mut misfit) = (Records::new(late.sale, self.epoch.number), Records::new(late.sale, late.epoch));
        let all: Vec<RecordRef<'_>> = late.iter().collect();
        let mut has_ended = false;
        for chunk in all.chunks(CHUNK) {
            let offered = if has_ended { None } else { self.offer(late.sale, chunk)? };
            has_ended = offered.is_none();
            let marks = match offered {
                Some(marks) => marks,
                None => match known.entry(late.sale) {
                    Entry::Occupied(mut sold) => sold.get_mut().judge(chunk),
                    Entry::Vacant(place) => place.insert(self.sold(late.sale)?).judge(chunk),
                },
            };
            for (record, fits) in chunk.iter().zip(marks) {
                let Ok(record) = record.to_owned() else { continue };
                if fits { fit.push(&record) } else { misfit.push(&record) }
            }
            self.ledger.still_opening().map_err(|e| e.to_string())?;
        }
        if !fit.is_empty() {
            self.ledger.add_missing(&fit).map_err(|e| e.to_string())?;
        }
        if !misfit.is_empty() {
            let (sale, count) = (late.sale.named(), misfit.len());
            tracing::error!(
                "{count} records of {sale} were answered under epoch {} and do not fit any more: kept apart in \
                 ledger_misfits, for an operator to settle",
                late.epoch
            );
            self.ledger.quarantine(&misfit, "decided under an older epoch").map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// Whether each record fits. `None` if the sale has ended.
    fn offer(&mut self, sale: SaleId, records: &[RecordRef<'_>]) -> Result<Option<Vec<bool>>, String> {
        let Some(terms) = self.open.iter().find(|terms| terms.sale == sale).copied() else { return Ok(None) };
        self.store.take_back(&terms, self.epoch.number)?;
        let call = offer::call(sale, self.epoch.number, self.store.latest_ms(), records.iter().copied());
        let reply: Vec<u8> = self.store.ask(&call)?;
        match offer::read(&reply, records.len()) {
            Some(Ok(fits)) => Ok(Some(fits)),
            Some(Err(Refusal::NotOn(_))) => Ok(None),
            _ => Err(format!("{} cannot take late records now: Redis says {}", sale.named(), words(&reply))),
        }
    }

    /// All purchases that are known of a sale that has ended. Its state may be gone, or be one that no instance rebuilt.
    /// Reads in steps, and lets go of the openers' lock when it is needed to sell: the records wait for the next round.
    fn sold(&mut self, sale: SaleId) -> Result<Sold, String> {
        let rows = self.ledger.sales(sale.0.saturating_mul(1000)).map_err(|e| e.to_string())?;
        let terms = rows.iter().find(|row| row.terms.sale == sale).map(|row| row.terms);
        let (items, user_limit) = terms.map_or((0, 0), |terms| (terms.items, terms.user_limit));
        let mut sold = Sold { items, user_limit, purchased: HashSet::new(), users: HashMap::new() };
        // Redis before the ledger: what another instance clears away meanwhile is in the ledger by then.
        let mut next = self.store.counts(sale)?.map(|_| 0);
        while let Some(cursor) = next {
            let each = &mut |number, known: HoldFacts| {
                if known.purchased_ms.is_some() {
                    sold.add(HoldNumber(number), known.user);
                }
            };
            let (cursor, _) = self.store.some_holds(sale, cursor, each)?;
            next = (cursor != 0).then_some(cursor);
            self.gives_way()?;
        }
        let mut after = None;
        loop {
            let each = &mut |row: HoldRow| {
                if row.purchased_ms.is_some() {
                    sold.add(row.number, row.user);
                }
            };
            after = self.ledger.page_of_holds(sale, after, each).map_err(|e| e.to_string())?;
            if after.is_none() {
                return Ok(sold);
            }
            self.gives_way()?;
        }
    }

    /// `Err` if the openers' lock is gone, or an instance that cannot sell needs it: this one, or another.
    fn gives_way(&mut self) -> Result<(), String> {
        let urgent = self.ledger.opening_is_urgent().map_err(|e| e.to_string())?;
        if urgent || !self.suspicions.is_empty() { Err(GAVE_WAY.into()) } else { Ok(()) }
    }
}

/// The purchases of a sale that has ended. Its holds are history: they fit in any number.
struct Sold {
    items: u64,
    user_limit: u64,
    purchased: HashSet<HoldNumber>,
    /// How many each user has purchased.
    users: HashMap<Id, u64>,
}

impl Sold {
    fn add(&mut self, number: HoldNumber, user: Id) {
        if self.purchased.insert(number) {
            *self.users.entry(user).or_default() += 1;
        }
    }

    /// Whether each record fits, as [`Keeper::offer`] says it. What fits counts for those that come after: the stock
    /// and the user's limit bind a late purchase as they bind one that is offered while the sale is on.
    fn judge(&mut self, records: &[RecordRef<'_>]) -> Vec<bool> {
        records.iter().map(|record| self.fits(record)).collect()
    }

    fn fits(&mut self, record: &RecordRef<'_>) -> bool {
        if record.kind == RecordKind::Hold || self.purchased.contains(&record.number) {
            return true;
        }
        let Ok(user) = Id::from_bytes(record.user) else { return false };
        let his = self.users.get(&user).copied().unwrap_or_default();
        let fits = (self.purchased.len() as u64) < self.items && his < self.user_limit;
        if fits {
            self.add(record.number, user);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Record;

    #[test]
    fn a_late_purchase_is_bound_by_the_stock_and_by_the_users_limit() {
        let mut sold = Sold { items: 4, user_limit: 2, purchased: HashSet::new(), users: HashMap::new() };
        sold.add(HoldNumber(1), "a".parse().unwrap());
        let mut late = Records::new(SaleId(1), 1);
        let item = "i".parse().unwrap();
        let mut push = |kind, number, user: &str| {
            let user = user.parse().unwrap();
            late.push(&Record { kind, number: HoldNumber(number), user, item, at_ms: 1, expires_ms: 0 });
        };
        use RecordKind::{Hold, Purchase};
        for (kind, number, user) in [
            (Purchase, 1, "a"),
            (Purchase, 2, "a"),
            (Purchase, 3, "a"),
            (Hold, 3, "a"),
            (Purchase, 4, "b"),
            (Purchase, 4, "b"),
            (Purchase, 5, "b"),
            (Purchase, 6, "c"),
        ] {
            push(kind, number, user);
        }
        let marks = sold.judge(&late.iter().collect::<Vec<_>>());
        assert_eq!(
            marks,
            [true, true, false, true, true, true, true, false],
            "3 is above a's limit, 6 above the stock"
        );
    }
}
