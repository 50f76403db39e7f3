//! Postgres: the rows, the fence, and the sessions that hold its locks.
//!
//! Owns what is committed and who holds which lock. Invariant: a session's locks go when it ends, and a transaction that has not
//! committed by then leaves nothing. Leaves out failures of Postgres itself.

use crate::world::{Instance, State};
use flashsale::domain::{HoldFacts, HoldNumber, HoldRow, Record, RecordKind, Records, SaleId, Terms};
use flashsale::ledger::{Decided, Epoch, Fence, Ledger, LedgerError, LedgerId, SaleRow, SharedRecords};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often a lock that is taken is tried again.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// How often draining looks.
const DRAIN_POLL: Duration = Duration::from_millis(10);

/// What is committed, and the sessions.
pub struct LedgerState {
    pub sales: BTreeMap<SaleId, SaleRow>,
    pub holds: BTreeMap<(SaleId, HoldNumber), Record>,
    pub purchases: BTreeMap<(SaleId, HoldNumber), Record>,
    pub quarantined: BTreeSet<(SaleId, HoldNumber, RecordKind)>,
    pub epoch: Epoch,
    /// The sessions that hold the shared lock of an epoch: instance, epoch, the session's number.
    pub members: Vec<(usize, u64, i32)>,
    pub opener: Option<usize>,
    pub reconciler: Option<usize>,
    /// Who waits for the openers' lock since it cannot sell.
    urgent: BTreeSet<usize>,
    sessions: i32,
    /// Who raised the epoch, each time.
    pub raised_by: Vec<usize>,
}

impl Default for LedgerState {
    fn default() -> LedgerState {
        LedgerState {
            sales: BTreeMap::new(),
            holds: BTreeMap::new(),
            purchases: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            epoch: Epoch { number: 1, identity: String::new() },
            members: Vec::new(),
            opener: None,
            reconciler: None,
            urgent: BTreeSet::new(),
            sessions: 0,
            raised_by: Vec::new(),
        }
    }
}

impl LedgerState {
    /// Ends all sessions of `instance`.
    pub fn end_sessions(&mut self, instance: usize) {
        self.members.retain(|(member, ..)| *member != instance);
        self.urgent.remove(&instance);
        self.opener = self.opener.filter(|opener| *opener != instance);
        self.reconciler = self.reconciler.filter(|reconciler| *reconciler != instance);
    }

    /// Writes what is missing of `records`; says how many were new. The caller holds the shared lock of their epoch.
    pub fn write(&mut self, records: &Records) -> u64 {
        let mut new = 0;
        for record in records.iter() {
            let record = record.to_owned().unwrap();
            let table = match record.kind {
                RecordKind::Hold => &mut self.holds,
                RecordKind::Purchase => &mut self.purchases,
            };
            table.entry((records.sale, record.number)).or_insert_with(|| {
                new += 1;
                record
            });
        }
        new
    }

    pub fn check_epoch(&self, epoch: u64) -> Result<(), LedgerError> {
        let current = self.epoch.number;
        if epoch == current { Ok(()) } else { Err(LedgerError::Stale { current }) }
    }

    fn rows(&self, sale: SaleId) -> Vec<HoldRow> {
        let mut rows = BTreeMap::new();
        for (_, hold) in self.holds.range((sale, HoldNumber(0))..=(sale, HoldNumber(u64::MAX))) {
            let Record { number, user, item, at_ms, expires_ms, .. } = *hold;
            let facts = HoldFacts { user, item, taken_ms: at_ms, expires_ms, purchased_ms: None };
            rows.insert(number, HoldRow { number, facts });
        }
        for (_, purchase) in self.purchases.range((sale, HoldNumber(0))..=(sale, HoldNumber(u64::MAX))) {
            let Record { number, user, item, at_ms, .. } = *purchase;
            let facts = HoldFacts { user, item, taken_ms: at_ms, expires_ms: 0, purchased_ms: None };
            rows.entry(number).or_insert(HoldRow { number, facts }).facts.purchased_ms = Some(at_ms);
        }
        rows.into_values().collect()
    }
}

/// An instance's way to Postgres.
pub struct SimLedger(pub Instance);

fn not_held<T>() -> Result<T, LedgerError> {
    Err(LedgerError::failed("the openers' lock is not held"))
}

impl SimLedger {
    fn call<T>(&self, name: &'static str, effect: impl FnOnce(&mut LedgerState) -> T) -> T {
        self.0.call(name, |state| effect(&mut state.ledger))
    }

    fn me(&self) -> usize {
        self.0.number
    }
}

impl Ledger for SimLedger {
    fn code_key(&mut self) -> Result<[u8; 16], LedgerError> {
        Ok([7; 16])
    }

    fn identity(&mut self) -> Result<LedgerId, LedgerError> {
        Ok("0123456789abcdef0123456789abcdef".parse().unwrap())
    }

    fn new_instance(&mut self) -> Result<u64, LedgerError> {
        Ok(self.me() as u64)
    }

    fn sales(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, LedgerError> {
        Ok(self
            .call("sales", |ledger| ledger.sales.values().filter(|row| row.terms.ends_ms > now_ms).copied().collect()))
    }

    fn plan(&mut self, terms: &Terms) -> Result<SaleRow, LedgerError> {
        let planned = SaleRow { terms: *terms, opened: false };
        Ok(self.call("plan", |ledger| *ledger.sales.entry(terms.sale).or_insert(planned)))
    }

    fn replan(&mut self, terms: &Terms) -> Result<bool, LedgerError> {
        panic!("no settings are changed: {terms}")
    }

    fn mark_opened(&mut self, sale: SaleId) -> Result<(), LedgerError> {
        self.call("mark opened", |ledger| ledger.sales.get_mut(&sale).unwrap().opened = true);
        Ok(())
    }

    fn holds(&mut self, sale: SaleId, each: &mut dyn FnMut(HoldRow)) -> Result<(), LedgerError> {
        self.call("rows", |ledger| ledger.rows(sale).into_iter().for_each(each));
        Ok(())
    }
}

impl Fence for SimLedger {
    fn clock_ms(&mut self) -> Result<u64, LedgerError> {
        Ok(self.0.call("clock", |state| state.unix_ms()))
    }

    fn epoch(&mut self) -> Result<Epoch, LedgerError> {
        Ok(self.call("epoch", |ledger| ledger.epoch.clone()))
    }

    fn join(&mut self, epoch: u64) -> Result<(), LedgerError> {
        let me = self.me();
        self.call("join", |ledger| {
            ledger.members.retain(|(member, ..)| *member != me);
            ledger.sessions += 1;
            ledger.members.push((me, epoch, ledger.sessions));
        });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), LedgerError> {
        let me = self.me();
        self.call("leave", |ledger| ledger.members.retain(|(member, ..)| *member != me));
        Ok(())
    }

    fn is_member(&mut self) -> bool {
        let me = self.me();
        self.call("is member", |ledger| ledger.members.iter().any(|(member, ..)| *member == me))
    }

    fn members(&mut self, epoch: u64) -> Result<Vec<i32>, LedgerError> {
        let me = self.me();
        Ok(self.call("members", |ledger| {
            let others = ledger.members.iter().filter(|(member, of, _)| *member != me && *of == epoch);
            others.map(|(.., session)| *session).collect()
        }))
    }

    fn lock_opening(&mut self, wait: Duration, urgent: bool) -> Result<bool, LedgerError> {
        let me = self.me();
        let taken = self.0.poll("lock opening", wait, LOCK_POLL, |state| {
            let ledger = &mut state.ledger;
            if ledger.opener.is_some_and(|opener| opener != me) {
                if urgent {
                    ledger.urgent.insert(me);
                }
                return None;
            }
            ledger.opener = Some(me);
            Some(())
        });
        self.0.look(|state| state.ledger.urgent.remove(&me));
        Ok(taken.is_some())
    }

    fn still_opening(&mut self) -> Result<(), LedgerError> {
        let me = self.me();
        if self.call("still opening", |ledger| ledger.opener == Some(me)) { Ok(()) } else { not_held() }
    }

    fn opening_is_urgent(&mut self) -> Result<bool, LedgerError> {
        self.still_opening()?;
        Ok(self.0.look(|state| !state.ledger.urgent.is_empty()))
    }

    fn unlock_opening(&mut self) {
        let me = self.me();
        self.call("unlock opening", |ledger| ledger.opener = ledger.opener.filter(|opener| *opener != me));
    }

    fn lock_reconciling(&mut self) -> Result<bool, LedgerError> {
        let me = self.me();
        Ok(self.call("lock reconciling", |ledger| *ledger.reconciler.get_or_insert(me) == me))
    }

    fn unlock_reconciling(&mut self) {
        let me = self.me();
        self.call("unlock reconciling", |ledger| ledger.reconciler = ledger.reconciler.filter(|other| *other != me));
    }

    fn announce_closing(&mut self, epoch: u64) -> Result<(), LedgerError> {
        self.call("announce closing", |ledger| {
            ledger.check_epoch(epoch)?;
            ledger.epoch.identity.clear();
            Ok(())
        })
    }

    fn raise(&mut self, from: u64, to: u64) -> Result<(), LedgerError> {
        let me = self.me();
        self.call("raise", |ledger| {
            ledger.check_epoch(from)?;
            assert!(to > from, "an epoch is raised");
            ledger.epoch = Epoch { number: to, identity: String::new() };
            ledger.raised_by.push(me);
            Ok(())
        })
    }

    fn set_identity(&mut self, epoch: u64, identity: &str) -> Result<(), LedgerError> {
        self.call("set identity", |ledger| {
            ledger.check_epoch(epoch)?;
            if !ledger.epoch.identity.is_empty() && ledger.epoch.identity != identity {
                return Err(LedgerError::Stale { current: epoch });
            }
            identity.clone_into(&mut ledger.epoch.identity);
            Ok(())
        })
    }

    fn drain(&mut self, epoch: u64, wait: Duration) -> Result<bool, LedgerError> {
        let is_free = |state: &mut State| {
            let members = state.ledger.members.iter().map(|(_, of, _)| *of);
            let writers = state.shops.iter().filter_map(|shop| Some(shop.writing.as_ref()?.records.epoch));
            members.chain(writers).all(|of| of > epoch).then_some(())
        };
        Ok(self.0.poll("drain", wait, DRAIN_POLL, is_free).is_some())
    }

    fn evict(&mut self, epoch: u64) -> Result<u64, LedgerError> {
        Ok(self.0.call("evict", |state| {
            let before = state.ledger.members.len();
            state.ledger.members.retain(|(_, of, _)| *of > epoch);
            let writers = state.shops.iter_mut().map(|shop| usize::from(shop.roll_back(epoch))).sum::<usize>();
            (before - state.ledger.members.len() + writers) as u64
        }))
    }
}

impl SharedRecords for SimLedger {
    fn has_all(&mut self, sale: SaleId, decided: &Decided) -> Result<bool, LedgerError> {
        Ok(self.call("counts of rows", |ledger| {
            let count = |table: &BTreeMap<(SaleId, HoldNumber), Record>| {
                table.iter().filter(|((of, _), record)| *of == sale && record.at_ms <= decided.upto_ms).count() as u64
            };
            count(&ledger.holds) >= decided.holds && count(&ledger.purchases) >= decided.purchases
        }))
    }

    fn page_of_holds(
        &mut self,
        sale: SaleId,
        after: Option<HoldNumber>,
        each: &mut dyn FnMut(HoldRow),
    ) -> Result<Option<HoldNumber>, LedgerError> {
        self.call("page of rows", |ledger| {
            ledger.rows(sale).into_iter().filter(|row| after.is_none_or(|after| row.number > after)).for_each(each);
        });
        Ok(None)
    }

    fn add_missing(&mut self, records: &Records) -> Result<u64, LedgerError> {
        self.call("add missing", |ledger| {
            ledger.check_epoch(records.epoch)?;
            Ok(ledger.write(records))
        })
    }

    fn quarantine(&mut self, records: &Records, _: &str) -> Result<(), LedgerError> {
        self.call("quarantine", |ledger| {
            ledger.quarantined.extend(records.iter().map(|record| (records.sale, record.number, record.kind)));
        });
        Ok(())
    }
}
