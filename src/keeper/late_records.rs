//! Late records: decided and answered under an older epoch, and not in the ledger when the sale was rebuilt.
//!
//! Owns the records until they are placed. Invariant: a late record comes into the sale and the ledger, or is quarantined with an
//! error in the log; it is never dropped. Leaves to the writer how records come to be late.

use super::error::KeeperError;
use super::merge::HoldFacts;
use super::present::Present;
use super::servers::{SHORT_WAIT, Servers};
use crate::domain::{HoldNumber, Id, RecordKind, RecordRef, Records, SaleId};
use crate::ledger::HoldRow;
use crate::record::Handoff;
use crossbeam_channel::Receiver;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Records that are offered in one round trip: the link to Redis may be a slow one, and the instance does not sell before its
/// late records are placed.
const TRIP: usize = 4_000;
/// How long the openers' lock is kept for records of ended sales, or while records cannot be placed: other instances need it.
const TURN: Duration = Duration::from_millis(500);
/// Records that are written at once, about: a batch of this size costs half as much a row as one of a thousand rows.
const BATCH: usize = 10_000;

/// The late records of this instance.
pub(super) struct LateRecords {
    /// From the writer.
    stale: Receiver<Box<Handoff>>,
    /// Those that are not placed yet.
    late: VecDeque<Records>,
}

impl LateRecords {
    /// None yet; they come by `stale`.
    pub(super) fn none(stale: Receiver<Box<Handoff>>) -> LateRecords {
        LateRecords { stale, late: VecDeque::new() }
    }

    /// Whether all are placed that were taken in.
    pub(super) fn is_empty(&self) -> bool {
        self.late.is_empty()
    }

    /// Offers what the writer passed on to the sales as they are now. What fits is written under the present epoch; the rest is
    /// quarantined.
    pub(super) fn place_stale(&mut self, servers: &mut Servers, present: &Present<'_>) -> Result<(), KeeperError> {
        self.take_stale();
        if self.late.is_empty() {
            return Ok(());
        }
        // If another instance has the lock, they wait for the next round.
        servers.locked(SHORT_WAIT, false, |servers| self.place(servers, present, true)).map(drop)
    }

    /// Takes in what the writer has passed on.
    pub(super) fn take_stale(&mut self) {
        while let Ok(handoff) = self.stale.try_recv() {
            self.take_in(&handoff.records);
        }
    }

    /// Takes in what the writer passes on until it ends, at most until `until`. Says whether it has ended.
    pub(super) fn take_last(&mut self, until: Instant) -> bool {
        loop {
            match self.stale.recv_deadline(until) {
                Ok(handoff) => self.take_in(&handoff.records),
                // The channel closes with the writer.
                Err(e) => return e.is_disconnected(),
            }
        }
    }

    /// Places the late records of open sales alone. Under the openers' lock.
    pub(super) fn place_open(&mut self, servers: &mut Servers, present: &Present<'_>) -> Result<(), KeeperError> {
        self.place(servers, present, false)
    }

    /// Places late records, under the openers' lock: those of the open sales and, with `ended`, those of ended sales, as
    /// many as get their turn within [`TURN`].
    fn place(&mut self, servers: &mut Servers, present: &Present<'_>, ended: bool) -> Result<(), KeeperError> {
        let begun = servers.now();
        let is_over = |servers: &Servers| servers.now().saturating_duration_since(begun) > TURN;
        let (mut sold, mut failed) = (HashMap::new(), Ok(()));
        for _ in 0..self.late.len() {
            let Some(records) = self.late.pop_front() else { break };
            let now_ms = servers.clock().ms(servers.now());
            let is_open = present.open.iter().any(|terms| terms.sale == records.sale && terms.ends_ms > now_ms);
            if !is_open && (!ended || is_over(servers)) {
                self.late.push_back(records);
                continue;
            }
            // If this fails, the records stay for a later round, which finds those that were placed and leaves them as they
            // are. The records of other sales do not wait for that.
            if let Err(why) = place_batch(servers, present, &records, &mut sold) {
                self.late.push_back(records);
                failed = failed.and(Err(why));
                if is_over(servers) {
                    break;
                }
                continue;
            }
            let count = records.len() as u64;
            present.counters.written.fetch_add(count, Ordering::Relaxed);
            let (sale, epoch) = (records.sale.named(), records.epoch);
            tracing::info!("late records are settled: {count} of {sale}, decided under epoch {epoch}");
        }
        failed
    }

    /// Appends `records` to those of the same sale and epoch: late records come in many small batches.
    fn take_in(&mut self, records: &Records) {
        let alike =
            |other: &&mut Records| (other.sale, other.epoch) == (records.sale, records.epoch) && other.len() < BATCH;
        match self.late.iter_mut().find(alike) {
            Some(other) => records.iter().filter_map(|r| r.to_owned().ok()).for_each(|record| other.push(&record)),
            None => self.late.push_back(records.clone()),
        }
    }
}

/// Places `late`. `known` keeps what is known of ended sales from one call to the next.
fn place_batch(
    servers: &mut Servers,
    present: &Present<'_>,
    late: &Records,
    known: &mut HashMap<SaleId, Sold>,
) -> Result<(), KeeperError> {
    let (mut fit, mut unfit) = (Records::new(late.sale, present.epoch), Records::new(late.sale, late.epoch));
    let all: Vec<RecordRef<'_>> = late.iter().collect();
    let mut has_ended = false;
    if let Some(terms) = present.open.iter().find(|terms| terms.sale == late.sale) {
        let latest_ms = servers.latest_ms();
        servers.store.expire_due(terms, present.epoch, latest_ms)?;
    }
    for chunk in all.chunks(TRIP) {
        let offered = if has_ended { None } else { offer(servers, present, late.sale, chunk)? };
        has_ended = offered.is_none();
        let fits = match offered {
            Some(fits) => fits,
            None => match known.entry(late.sale) {
                Entry::Occupied(mut sold) => sold.get_mut().check(chunk),
                Entry::Vacant(place) => place.insert(sold(servers, present, late.sale)?).check(chunk),
            },
        };
        for (record, fits) in chunk.iter().zip(fits) {
            let Ok(record) = record.to_owned() else { continue };
            if fits { fit.push(&record) } else { unfit.push(&record) }
        }
        servers.still_opening()?;
    }
    assert_eq!(fit.len() + unfit.len(), late.len(), "each late record is placed or quarantined");
    if !fit.is_empty() {
        servers.ledger.add_missing(&fit)?;
    }
    if !unfit.is_empty() {
        let (sale, count) = (late.sale.named(), unfit.len());
        tracing::error!(
            "{count} records of {sale} were answered under epoch {} and do not fit any more: they are in quarantined_records, \
             for an operator to settle",
            late.epoch
        );
        servers.ledger.quarantine(&unfit, "decided under an older epoch")?;
    }
    Ok(())
}

/// Whether each record fits the sale as it is now; the state has those that do. `None` if the sale has ended.
fn offer(
    servers: &mut Servers,
    present: &Present<'_>,
    sale: SaleId,
    records: &[RecordRef<'_>],
) -> Result<Option<Vec<bool>>, KeeperError> {
    if !present.open.iter().any(|terms| terms.sale == sale) {
        return Ok(None);
    }
    let latest_ms = servers.latest_ms();
    let fits = servers.store.offer(sale, present.epoch, latest_ms, records)?;
    assert!(fits.as_ref().is_none_or(|fits| fits.len() == records.len()), "an answer for each record that was offered");
    Ok(fits)
}

/// All purchases that are known of a sale that has ended. Its state may be gone, or be one that no instance rebuilt.
/// Reads in steps, and fails when the openers' lock is needed to sell: the records wait for the next round.
fn sold(servers: &mut Servers, present: &Present<'_>, sale: SaleId) -> Result<Sold, KeeperError> {
    let rows = servers.ledger.sales(sale.0.saturating_mul(1000))?;
    let terms = rows.iter().find(|row| row.terms.sale == sale).map(|row| row.terms);
    let (items, user_limit) = terms.map_or((0, 0), |terms| (terms.items, terms.user_limit));
    let mut sold = Sold { items, user_limit, purchased: HashSet::new(), users: HashMap::new() };
    // Redis before the ledger: what another instance clears away meanwhile is in the ledger by then.
    let mut next = servers.store.counts(sale)?.map(|_| 0);
    while let Some(cursor) = next {
        let each = &mut |number, known: HoldFacts| {
            if known.purchased_ms.is_some() {
                sold.add(HoldNumber(number), known.user);
            }
        };
        let (cursor, _) = servers.store.some_holds(sale, cursor, each)?;
        next = (cursor != 0).then_some(cursor);
        give_way(servers, present)?;
    }
    let mut after = None;
    loop {
        let each = &mut |row: HoldRow| {
            if row.facts.purchased_ms.is_some() {
                sold.add(row.number, row.facts.user);
            }
        };
        after = servers.ledger.page_of_holds(sale, after, each)?;
        if after.is_none() {
            return Ok(sold);
        }
        give_way(servers, present)?;
    }
}

/// Fails if the openers' lock is gone, or an instance that cannot sell needs it: this one, or another.
fn give_way(servers: &mut Servers, present: &Present<'_>) -> Result<(), KeeperError> {
    let urgent = servers.ledger.opening_is_urgent()?;
    if urgent || !present.suspicions.is_empty() { Err(KeeperError::GaveWay) } else { Ok(()) }
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

    /// Whether each record fits. One that does counts for those that come after: the stock and the user's limit bind a late
    /// purchase as they bind one that is offered while the sale is on.
    fn check(&mut self, records: &[RecordRef<'_>]) -> Vec<bool> {
        records.iter().map(|record| self.fits(record)).collect()
    }

    fn fits(&mut self, record: &RecordRef<'_>) -> bool {
        if record.kind == RecordKind::Hold || self.purchased.contains(&record.number) {
            return true;
        }
        let Ok(user) = Id::from_bytes(record.user) else { return false };
        let share = self.users.get(&user).copied().unwrap_or_default();
        let fits = (self.purchased.len() as u64) < self.items && share < self.user_limit;
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
        let fits = sold.check(&late.iter().collect::<Vec<_>>());
        let want = [true, true, false, true, true, true, true, false];
        assert_eq!(fits, want, "3 is above a's limit, 6 above the stock");
    }
}
