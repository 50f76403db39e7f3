//! Redis: a sale in memory for each state, and the rules of the scripts for epochs.
//!
//! Owns the states. Invariant: a call is decided as the scripts in `lua/` decide it. Leaves out clocks that jump.

use crate::world::{Instance, State};
use flashsale::domain::{
    HoldFacts, HoldNumber, HoldRow, HoldState, Id, Outcome, Record, RecordKind, RecordRef, SaleId, Terms,
};
use flashsale::inventory::Progress;
use flashsale::inventory::memory::{Decision, MemorySale};
use flashsale::keeper::error::KeeperError;
use flashsale::keeper::merge::RebuiltSale;
use flashsale::keeper::sale_store::{Alive, Built, EachHold, FoundState, Look, Owner, SaleStore};
use flashsale::keeper::store::{Condition, Counts};
use flashsale::ledger::LedgerId;
use std::collections::BTreeMap;

/// A Redis server.
#[derive(Default)]
pub struct RedisState {
    /// How often it was started: its identity.
    pub starts: u64,
    pub owner: Option<String>,
    pub states: BTreeMap<SaleId, SaleState>,
    /// States that were built and not opened, by sale, epoch and nonce.
    pub built: BTreeMap<(SaleId, u64, u64), SaleState>,
}

/// A sale's state.
pub struct SaleState {
    pub epoch: u64,
    pub is_open: bool,
    pub ledger: Option<String>,
    /// `None` in a state that was closed where there was none, or whose holds were dropped.
    pub sale: Option<MemorySale>,
    /// What is known of each hold of `sale`, the times of purchases too.
    pub facts: BTreeMap<HoldNumber, HoldFacts>,
    /// The time of the last decision.
    clock_ms: u64,
    /// Holds that the ledger has and that found no place.
    quarantined: u64,
}

/// Why a request was not decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Missing,
    Epoch(u64),
    Closed,
    NotOn,
}

impl RedisState {
    pub fn identity(&self) -> String {
        format!("run-{}", self.starts)
    }

    /// The state that a call under `epoch` is decided in.
    fn selling(&mut self, sale: SaleId, epoch: u64) -> Result<&mut SaleState, Refusal> {
        let state = self.states.get_mut(&sale).ok_or(Refusal::Missing)?;
        if state.epoch != epoch {
            return Err(Refusal::Epoch(state.epoch));
        }
        if state.is_open { Ok(state) } else { Err(Refusal::Closed) }
    }

    /// A shopper's checkout.
    pub fn checkout(
        &mut self,
        (sale, epoch): (SaleId, u64),
        now_ms: u64,
        number: HoldNumber,
        user: Id,
        item: Id,
    ) -> Result<(Outcome, Option<Record>), Refusal> {
        self.decide(sale, epoch, now_ms, |sale, now_ms| sale.checkout(now_ms, number, user, item))
    }

    /// A shopper's purchase.
    pub fn purchase(
        &mut self,
        (sale, epoch): (SaleId, u64),
        now_ms: u64,
        number: HoldNumber,
    ) -> Result<(Outcome, Option<Record>), Refusal> {
        self.decide(sale, epoch, now_ms, |sale, now_ms| sale.purchase(now_ms, number))
    }

    fn decide(
        &mut self,
        sale: SaleId,
        epoch: u64,
        now_ms: u64,
        decide: impl FnOnce(&mut MemorySale, u64) -> Decision,
    ) -> Result<(Outcome, Option<Record>), Refusal> {
        let state = self.selling(sale, epoch)?;
        let now_ms = now_ms.max(state.clock_ms);
        let sale = state.sale.as_mut().expect("what sells has a sale");
        match decide(sale, now_ms) {
            Decision::Decided { outcome, record } => {
                state.clock_ms = now_ms;
                record.iter().for_each(|record| state.note(record));
                Ok((outcome, record))
            }
            Decision::NotOn { .. } => Err(Refusal::NotOn),
            Decision::Duplicate => panic!("a hold's number is given out once"),
        }
    }
}

impl SaleState {
    fn closed(epoch: u64, ledger: Option<String>) -> SaleState {
        SaleState { epoch, is_open: false, ledger, sale: None, facts: BTreeMap::new(), clock_ms: 0, quarantined: 0 }
    }

    fn note(&mut self, record: &Record) {
        let Record { number, user, item, at_ms, expires_ms, .. } = *record;
        match record.kind {
            RecordKind::Hold => {
                self.facts.insert(number, HoldFacts { user, item, taken_ms: at_ms, expires_ms, purchased_ms: None });
            }
            RecordKind::Purchase => self.facts.get_mut(&number).expect("it was held").purchased_ms = Some(at_ms),
        }
    }

    pub fn rows(&self) -> impl Iterator<Item = HoldRow> {
        self.facts.iter().map(|(number, facts)| HoldRow { number: *number, facts: *facts })
    }

    /// Puts `facts` to the sale if there is room; says whether there was.
    fn try_add(&mut self, number: HoldNumber, facts: HoldFacts, now_ms: u64) -> bool {
        let sale = self.sale.as_mut().expect("what sells has a sale");
        let terms = *sale.terms();
        let takes = facts.purchased_ms.is_some() || facts.expires_ms > now_ms;
        let has_item = sale.holds().any(|(other, hold)| other == number && hold.state == HoldState::Held);
        let share = sale.users().find(|(user, _)| *user == facts.user).map_or(0, |(_, items)| items);
        if takes && !has_item && (sale.stock(now_ms).free == 0 || share >= terms.user_limit) {
            return false;
        }
        self.facts.insert(number, facts);
        let sale = MemorySale::open(terms, self.rows(), now_ms);
        assert_eq!(sale.dropped(), 0, "there was room");
        self.sale = Some(sale);
        true
    }

    /// As `lua/offer.lua` decides.
    fn offer(&mut self, record: &RecordRef<'_>, now_ms: u64) -> bool {
        let record = record.to_owned().unwrap();
        let Record { number, user, item, at_ms, expires_ms, .. } = record;
        let known = self.facts.get(&number).copied();
        match (record.kind, known) {
            (RecordKind::Hold, Some(known)) if known.expires_ms == 0 => {
                self.facts.insert(number, HoldFacts { taken_ms: at_ms, expires_ms, ..known });
                true
            }
            (RecordKind::Hold, Some(_)) => true,
            (RecordKind::Hold, None) => {
                let terms = *self.sale.as_ref().unwrap().terms();
                let expires_ms = if expires_ms <= now_ms { expires_ms } else { terms.hold_expires_ms(now_ms) };
                self.try_add(number, HoldFacts { user, item, taken_ms: at_ms, expires_ms, purchased_ms: None }, now_ms)
            }
            (RecordKind::Purchase, Some(known)) if known.purchased_ms.is_some() => true,
            (RecordKind::Purchase, known) => {
                let fresh = HoldFacts { user, item, taken_ms: 0, expires_ms: 0, purchased_ms: None };
                let facts = HoldFacts { purchased_ms: Some(at_ms), ..known.unwrap_or(fresh) };
                self.try_add(number, facts, now_ms)
            }
        }
    }
}

/// An instance's way to Redis.
pub struct SimStore {
    pub instance: Instance,
    pub ledger: Option<String>,
}

impl SimStore {
    fn call<T>(&self, name: &'static str, effect: impl FnOnce(&mut State) -> T) -> T {
        self.instance.call(name, effect)
    }
}

impl SaleStore for SimStore {
    fn name(&self) -> &str {
        "simulated"
    }

    fn reconnect(&mut self) {}

    fn check_server(&mut self) -> Result<(), KeeperError> {
        Ok(())
    }

    fn time_ms(&mut self) -> Result<u64, KeeperError> {
        Ok(self.call("time", |state| state.unix_ms()))
    }

    fn set_ledger(&mut self, id: LedgerId) {
        self.ledger = Some(id.to_string());
    }

    fn look(&mut self) -> Result<Look, KeeperError> {
        let ours = &self.ledger;
        Ok(self.call("look", |state| {
            let owner = match &state.redis.owner {
                None => Owner::Unclaimed,
                owner if owner == ours => Owner::Ours,
                Some(other) => Owner::Other(other.clone()),
            };
            Look { identity: state.redis.identity(), owner }
        }))
    }

    fn take_ownership(&mut self) -> Result<(), KeeperError> {
        let ours = self.ledger.clone();
        self.call("take ownership", |state| {
            state.redis.owner = state.redis.owner.take().or(ours);
        });
        Ok(())
    }

    fn states(&mut self) -> Result<Vec<FoundState>, KeeperError> {
        Ok(self.call("states", |state| {
            let found = state.redis.states.iter().filter_map(|(sale, state)| {
                let ends_ms = state.sale.as_ref()?.terms().ends_ms;
                Some(FoundState { sale: *sale, ends_ms, ledger: state.ledger.clone() })
            });
            found.collect()
        }))
    }

    fn condition(&mut self, sale: SaleId, epoch: u64) -> Result<Condition, KeeperError> {
        Ok(self.call("condition", |state| match state.redis.states.get(&sale) {
            None => Condition::Missing,
            Some(found) if found.epoch != epoch => Condition::Epoch(found.epoch),
            Some(found) if !found.is_open => Condition::Closed,
            Some(_) => Condition::Good,
        }))
    }

    fn has_terms(&mut self, terms: &Terms) -> Result<bool, KeeperError> {
        Ok(self.call("has terms", |state| {
            state
                .redis
                .states
                .get(&terms.sale)
                .and_then(|found| found.sale.as_ref())
                .is_some_and(|s| s.terms() == terms)
        }))
    }

    fn replan(&mut self, terms: &Terms, _: u64, _: u64) -> Result<bool, KeeperError> {
        panic!("no settings are changed: {terms}")
    }

    fn close(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        let ledger = self.ledger.clone();
        self.call("close", |state| match state.redis.states.get_mut(&terms.sale) {
            Some(found) if found.epoch >= epoch => {
                Err(KeeperError::redis(format!("{terms} cannot be closed for epoch {epoch}: E {}", found.epoch)))
            }
            Some(found) => {
                (found.epoch, found.is_open) = (epoch, false);
                Ok(())
            }
            None => {
                state.redis.states.insert(terms.sale, SaleState::closed(epoch, ledger));
                Ok(())
            }
        })
    }

    fn forget(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        self.call("forget", |state| match state.redis.states.get_mut(&terms.sale) {
            Some(found) if found.epoch == epoch && !found.is_open => {
                *found = SaleState::closed(epoch, found.ledger.take());
                Ok(())
            }
            _ => Err(KeeperError::redis(format!("{terms} is not closed for epoch {epoch}"))),
        })
    }

    fn reached_ms(&mut self, terms: &Terms) -> Result<u64, KeeperError> {
        Ok(self.call("reached", |state| state.redis.states.get(&terms.sale).map_or(0, |found| found.clock_ms)))
    }

    fn counts(&mut self, sale: SaleId) -> Result<Option<Counts>, KeeperError> {
        Ok(self.call("counts", |state| {
            let found = state.redis.states.get_mut(&sale).filter(|found| found.sale.is_some())?;
            let upto_ms = found.clock_ms;
            found.clock_ms += u64::from(found.is_open);
            let taken = found.facts.values().filter(|facts| facts.has_checkout()).count() as u64 + found.quarantined;
            let purchased = found.facts.values().filter(|facts| facts.purchased_ms.is_some()).count() as u64;
            Some(Counts { upto_ms, taken, purchased })
        }))
    }

    fn progress(&mut self, terms: &Terms) -> Result<Option<Progress>, KeeperError> {
        Ok(self.call("progress", |state| Some(state.redis.states.get(&terms.sale)?.sale.as_ref()?.progress())))
    }

    fn holds(&mut self, sale: SaleId, each: EachHold<'_>, alive: Alive<'_>) -> Result<bool, KeeperError> {
        self.some_holds(sale, 0, each)?;
        alive()?;
        Ok(true)
    }

    fn some_holds(&mut self, sale: SaleId, _: u64, each: EachHold<'_>) -> Result<(u64, bool), KeeperError> {
        self.call("holds", |state| {
            for (number, facts) in state.redis.states.get(&sale).iter().flat_map(|found| &found.facts) {
                each(number.0, *facts);
            }
        });
        Ok((0, true))
    }

    fn expire_due(&mut self, terms: &Terms, _: u64, _: u64) -> Result<(), KeeperError> {
        self.call("expire", |state| {
            let now_ms = state.unix_ms();
            if let Some(sale) = state.redis.states.get_mut(&terms.sale).and_then(|found| found.sale.as_mut()) {
                sale.stock(now_ms);
            }
        });
        Ok(())
    }

    fn offer(
        &mut self,
        sale: SaleId,
        epoch: u64,
        _: u64,
        records: &[RecordRef<'_>],
    ) -> Result<Option<Vec<bool>>, KeeperError> {
        self.call("offer", |state| {
            let now_ms = state.unix_ms();
            let found = state.redis.selling(sale, epoch).map_err(|why| KeeperError::redis(format!("{why:?}")))?;
            let now_ms = now_ms.max(found.clock_ms);
            found.clock_ms = now_ms;
            Ok(Some(records.iter().map(|record| found.offer(record, now_ms)).collect()))
        })
    }

    fn build(
        &mut self,
        terms: &Terms,
        epoch: u64,
        rebuilt: &RebuiltSale,
        alive: Alive<'_>,
    ) -> Result<Built, KeeperError> {
        let ledger = self.ledger.clone();
        let built = self.call("build", |state| {
            let facts: BTreeMap<_, _> =
                rebuilt.holds.iter().map(|(number, (facts, _))| (HoldNumber(*number), *facts)).collect();
            let now_ms = state.unix_ms().max(rebuilt.clock_ms);
            let rows = facts.iter().map(|(number, facts)| HoldRow { number: *number, facts: *facts });
            let sale = MemorySale::open(*terms, rows, now_ms);
            assert_eq!(sale.dropped(), 0, "what is built fits the stock");
            let quarantined = rebuilt.quarantined.len() as u64;
            let clock_ms = rebuilt.clock_ms;
            let nonce = state.random.u64(..);
            let fresh = SaleState { epoch, is_open: true, ledger, sale: Some(sale), facts, clock_ms, quarantined };
            state.redis.built.insert((terms.sale, epoch, nonce), fresh);
            Built { terms: *terms, epoch, nonce }
        });
        alive()?;
        Ok(built)
    }

    fn open(&mut self, built: &Built) -> Result<(), KeeperError> {
        let Built { terms, epoch, nonce } = built;
        self.call("open", |state| {
            let redis = &mut state.redis;
            let refused =
                |why: &str| Err(KeeperError::redis(format!("{terms} was not opened under epoch {epoch}: {why}")));
            match redis.states.get(&terms.sale) {
                Some(there) if there.epoch > *epoch => return refused("a newer epoch is there"),
                Some(there) if there.epoch == *epoch && there.is_open => return refused("it sells already"),
                _ => {}
            }
            let Some(fresh) = redis.built.remove(&(terms.sale, *epoch, *nonce)) else { return refused("not built") };
            redis.states.insert(terms.sale, fresh);
            Ok(())
        })
    }

    fn discard(&mut self, built: &Built) {
        self.call("discard", |state| state.redis.built.remove(&(built.terms.sale, built.epoch, built.nonce)));
    }

    fn probe(&mut self, _: u64) -> Result<Option<String>, KeeperError> {
        self.call("probe", |_| Ok(None))
    }

    fn unlink(&mut self, sale: SaleId) -> Result<(), KeeperError> {
        self.call("unlink", |state| state.redis.states.remove(&sale));
        Ok(())
    }
}
