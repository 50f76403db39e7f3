//! [`SaleStore`] on Redis.
//!
//! Owns the smaller calls: who owns the database, the clock, terms, progress, late records, the probe. Leaves reading and closing
//! states to [`super::store`], and building and opening them to [`super::build`].

use super::error::KeeperError;
use super::merge::RebuiltSale;
use super::sale_store::{Alive, Built, EachHold, FoundState, Look, Owner, SaleStore};
use super::store::{Condition, Counts, Store, words};
use crate::domain::{RecordRef, SaleId, Terms};
use crate::inventory::redis::scripts::layout::OWNER_KEY;
use crate::inventory::redis::scripts::layout::{
    self, entry_number, field, hold_field, queue_key, read_record, state_key,
};
use crate::inventory::redis::scripts::{Refusal, offer, probe, replan};
use crate::inventory::{Progress, identity};
use crate::ledger::LedgerId;
use redis::{Pipeline, cmd};

/// Late records that one script call decides.
const OFFERED: usize = 200;

impl Store {
    /// Whether the state of a sale has the ledger's `terms`.
    pub fn has_terms(&mut self, terms: &Terms) -> Result<bool, KeeperError> {
        let found: Vec<Option<String>> = match self.ask(&layout::ask_terms(terms.sale)) {
            // A key of another type has no terms to change. The look at the state's condition finds it.
            Err(KeeperError::Redis(why)) if why.contains("WRONGTYPE") => return Ok(true),
            found => found?,
        };
        Ok(layout::has_terms(&found, terms))
    }

    /// Gives the state of a sale the ledger's `terms`. `Ok(false)` if it has begun, or is not open under `epoch`.
    pub fn replan(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<bool, KeeperError> {
        let reply: Vec<u8> = self.ask(&replan::call(terms, epoch, latest_ms))?;
        Ok(replan::read(&reply) == Some(Ok(())))
    }

    /// How far a sale has come; `None` if it has no state.
    pub fn progress(&mut self, terms: &Terms) -> Result<Option<Progress>, KeeperError> {
        let (state, queue) = (state_key(terms.sale), queue_key(terms.sale));
        let fields = &[field::FREE, field::CLOCK, field::TAKEN, field::PURCHASED][..];
        type Found = (Option<u64>, Option<u64>, Option<u64>, Option<u64>);
        let found: Found = self.ask(cmd("HMGET").arg(&state).arg(fields))?;
        let (Some(free), Some(clock_ms), Some(taken), Some(purchased)) = found else { return Ok(None) };
        let mut progress = Progress { sold_out_ms: None, taken, purchased };
        if free == 0 {
            // The hold at the queue's end was taken last.
            let newest: Option<Vec<u8>> = self.ask(cmd("LINDEX").arg(queue).arg(-1))?;
            let hold: Option<Vec<u8>> = match newest.as_deref().and_then(entry_number) {
                Some(number) => self.ask(cmd("HGET").arg(&state).arg(hold_field(number)))?,
                None => None,
            };
            let taken_ms = hold.and_then(|hold| read_record(&hold)).map(|known| known.taken_ms);
            progress.sold_out_ms = Some(taken_ms.unwrap_or(clock_ms));
        }
        Ok(Some(progress))
    }

    /// Tries whether Redis takes what a decision writes: `Some` with its words if it refuses.
    pub fn probe(&mut self, until_s: u64) -> Result<Option<String>, KeeperError> {
        self.run(|connection| {
            let digest = probe::load().query::<String>(connection);
            let called = digest.and_then(|digest| probe::call(&digest, until_s).exec(connection));
            match called {
                // Redis said no, and the connection is in order.
                Err(refusal) if refusal.code().is_some() => {
                    let words = [refusal.code(), refusal.detail()];
                    Ok(Some(words.into_iter().flatten().collect::<Vec<_>>().join(" ")))
                }
                done => done.map(|()| None),
            }
        })
    }
    fn look_at_owner(&mut self) -> Result<Look, KeeperError> {
        let mut pipe = Pipeline::new();
        pipe.cmd("INFO").arg("server").arg("replication").cmd("GET").arg(OWNER_KEY);
        let (info, owner): (String, Option<String>) = match self.run(|connection| pipe.query(connection)) {
            // No instance has written that: the next claim replaces it.
            Err(KeeperError::Redis(why)) if why.contains("WRONGTYPE") => {
                (self.ask(cmd("INFO").arg("server").arg("replication"))?, None)
            }
            answer => answer?,
        };
        let identity = identity(&info).map_err(|e| {
            // A replica: new connections may lead to its master.
            self.reconnect();
            KeeperError::Redis(format!("Redis at {}: {e}", self.name()))
        })?;
        let owner = match (owner, &self.ledger) {
            (None, _) => Owner::Unclaimed,
            (Some(owner), Some(ours)) if owner != *ours => Owner::Other(owner),
            (Some(_), _) => Owner::Ours,
        };
        Ok(Look { identity, owner })
    }

    fn offer_records(
        &mut self,
        sale: SaleId,
        epoch: u64,
        latest_ms: u64,
        records: &[RecordRef<'_>],
    ) -> Result<Option<Vec<bool>>, KeeperError> {
        let mut pipe = Pipeline::new();
        for chunk in records.chunks(OFFERED) {
            pipe.add_command(offer::call(sale, epoch, latest_ms, chunk.iter().copied()));
        }
        let replies: Vec<Vec<u8>> = self.run(|connection| pipe.query(connection))?;
        let mut all = Vec::with_capacity(records.len());
        for (chunk, reply) in records.chunks(OFFERED).zip(&replies) {
            match offer::read(reply, chunk.len()) {
                Some(Ok(fits)) => all.extend(fits),
                Some(Err(Refusal::NotOn(_))) => return Ok(None),
                _ => {
                    let (sale, words) = (sale.named(), words(reply));
                    return Err(KeeperError::Redis(format!("{sale} cannot take late records now: Redis says {words}")));
                }
            }
        }
        Ok(Some(all))
    }
}

impl SaleStore for Store {
    fn name(&self) -> &str {
        Store::name(self)
    }
    fn reconnect(&mut self) {
        Store::reconnect(self);
    }
    fn check_server(&mut self) -> Result<(), KeeperError> {
        Store::check_server(self)
    }
    fn time_ms(&mut self) -> Result<u64, KeeperError> {
        let (seconds, micros): (u64, u64) = self.ask(&cmd("TIME"))?;
        Ok(seconds * 1000 + micros / 1000)
    }
    fn set_ledger(&mut self, id: LedgerId) {
        self.ledger = Some(id.to_string());
    }
    fn look(&mut self) -> Result<Look, KeeperError> {
        self.look_at_owner()
    }
    fn take_ownership(&mut self) -> Result<(), KeeperError> {
        let Some(ours) = self.ledger.clone() else { return Ok(()) };
        if !matches!(self.ask::<String>(cmd("TYPE").arg(OWNER_KEY))?.as_str(), "string" | "none") {
            tracing::warn!("the key {OWNER_KEY} in Redis is of another type: it is replaced");
            self.run(|connection| cmd("UNLINK").arg(OWNER_KEY).exec(connection))?;
        }
        self.run(|connection| cmd("SET").arg(OWNER_KEY).arg(ours).arg("NX").exec(connection))
    }
    fn states(&mut self) -> Result<Vec<FoundState>, KeeperError> {
        Store::states(self)
    }
    fn condition(&mut self, sale: SaleId, epoch: u64) -> Result<Condition, KeeperError> {
        Store::condition(self, sale, epoch)
    }
    fn has_terms(&mut self, terms: &Terms) -> Result<bool, KeeperError> {
        Store::has_terms(self, terms)
    }
    fn replan(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<bool, KeeperError> {
        Store::replan(self, terms, epoch, latest_ms)
    }
    fn close(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        Store::close(self, terms, epoch)
    }
    fn forget(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        Store::forget(self, terms, epoch)
    }
    fn reached_ms(&mut self, terms: &Terms) -> Result<u64, KeeperError> {
        Store::reached_ms(self, terms)
    }
    fn counts(&mut self, sale: SaleId) -> Result<Option<Counts>, KeeperError> {
        Store::counts(self, sale)
    }
    fn progress(&mut self, terms: &Terms) -> Result<Option<Progress>, KeeperError> {
        Store::progress(self, terms)
    }
    fn holds(&mut self, sale: SaleId, each: EachHold<'_>, alive: Alive<'_>) -> Result<bool, KeeperError> {
        Store::holds(self, sale, each, alive)
    }
    fn some_holds(&mut self, sale: SaleId, cursor: u64, each: EachHold<'_>) -> Result<(u64, bool), KeeperError> {
        Store::some_holds(self, sale, cursor, each)
    }
    fn expire_due(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<(), KeeperError> {
        Store::expire_due(self, terms, epoch, latest_ms)
    }
    fn offer(
        &mut self,
        sale: SaleId,
        epoch: u64,
        latest_ms: u64,
        records: &[RecordRef<'_>],
    ) -> Result<Option<Vec<bool>>, KeeperError> {
        self.offer_records(sale, epoch, latest_ms, records)
    }
    fn build(
        &mut self,
        terms: &Terms,
        epoch: u64,
        rebuilt: &RebuiltSale,
        alive: Alive<'_>,
    ) -> Result<Built, KeeperError> {
        Store::build(self, terms, epoch, rebuilt, alive)
    }
    fn open(&mut self, built: &Built) -> Result<(), KeeperError> {
        Store::open(self, built)
    }
    fn discard(&mut self, built: &Built) {
        Store::discard(self, built);
    }
    fn probe(&mut self, until_s: u64) -> Result<Option<String>, KeeperError> {
        Store::probe(self, until_s)
    }
    fn unlink(&mut self, sale: SaleId) -> Result<(), KeeperError> {
        Store::unlink(self, sale)
    }
}
