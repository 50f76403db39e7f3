//! [`SaleStore`] on Redis: the keeper's calls, each with its commands and its reply.
//!
//! Owns which commands each call of the trait sends. Invariant: a call whose reply cannot be read is an error, never a
//! guess. Leaves the connection and the scanning of keys to [`super::store`], and building and opening a state to
//! [`super::build`].

use super::error::KeeperError;
use super::merge::RebuiltSale;
use super::sale_store::{Alive, Built, EachHold, FoundState, Look, Owner, SaleStore};
use super::server_check;
use super::store::{CHUNK, Condition, Counts, Store, WIDE_CHUNK, words};
use crate::domain::{RecordRef, SaleId, Terms};
use crate::inventory::redis::scripts::chunk::{self, QueueEntry};
use crate::inventory::redis::scripts::layout::{self, OWNER_KEY, field, queue_key, state_key};
use crate::inventory::redis::scripts::{Refusal, checkout, close, condition, counts, forget, offer, probe, replan};
use crate::inventory::{Progress, identity};
use crate::ledger::LedgerId;
use redis::{Pipeline, Value, cmd, from_redis_value_ref};

/// Late records that one script call decides.
const OFFERED: usize = 200;

/// Whether Redis refused a command for the key's type; `Err` if it refused for another reason.
fn is_wrong_type(reply: &Value) -> Result<bool, KeeperError> {
    match reply {
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(true),
        Value::ServerError(error) => Err(KeeperError::Redis(format!("Redis refuses: {error}"))),
        _ => Ok(false),
    }
}

impl SaleStore for Store {
    fn name(&self) -> &str {
        &self.target.name
    }

    fn reconnect(&mut self) {
        self.connection = None;
    }

    fn check_server(&mut self) -> Result<(), KeeperError> {
        let info: String = self.ask(cmd("INFO").arg("everything"))?;
        let name = self.name();
        if let Some(why) = server_check::refusal(&info) {
            return Err(KeeperError::Unusable { setting: "REDIS_ADDR", why: format!("Redis at {name} {why}") });
        }
        if let Some(what) = server_check::warning(&info) {
            tracing::warn!("Redis at {name} {what}");
        }
        Ok(())
    }

    fn time_ms(&mut self) -> Result<u64, KeeperError> {
        let (seconds, micros): (u64, u64) = self.ask(&cmd("TIME"))?;
        Ok(seconds * 1000 + micros / 1000)
    }

    fn set_ledger(&mut self, id: LedgerId) {
        self.ledger = Some(id.to_string());
    }

    fn look(&mut self) -> Result<Look, KeeperError> {
        let mut pipe = Pipeline::new();
        pipe.cmd("INFO").arg("server").arg("replication").cmd("GET").arg(OWNER_KEY);
        let (info, owner): (String, Option<String>) = match self.run(|connection| pipe.query(connection)) {
            // The owner's key has another type, which no instance writes: the next claim replaces it.
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

    fn take_ownership(&mut self) -> Result<(), KeeperError> {
        let Some(ours) = self.ledger.clone() else { return Ok(()) };
        if !matches!(self.ask::<String>(cmd("TYPE").arg(OWNER_KEY))?.as_str(), "string" | "none") {
            tracing::warn!("the key {OWNER_KEY} in Redis is of another type: it is replaced");
            self.run(|connection| cmd("UNLINK").arg(OWNER_KEY).exec(connection))?;
        }
        self.run(|connection| cmd("SET").arg(OWNER_KEY).arg(ours).arg("NX").exec(connection))
    }

    fn states(&mut self) -> Result<Vec<FoundState>, KeeperError> {
        let mut states = Vec::new();
        for sale in self.sales_with_states()? {
            let fields = &[field::END, field::LEDGER][..];
            let found: Vec<Option<String>> = self.ask(cmd("HMGET").arg(state_key(sale)).arg(fields))?;
            if let Some(ends_ms) = found.first().and_then(|text| text.as_deref()?.parse().ok()) {
                states.push(FoundState { sale, ends_ms, ledger: found.get(1).cloned().flatten() });
            }
        }
        Ok(states)
    }

    fn condition(&mut self, sale: SaleId, epoch: u64) -> Result<Condition, KeeperError> {
        let mut pipe = Pipeline::new();
        pipe.atomic().ignore_errors();
        condition::ask(sale).into_iter().for_each(|command| {
            pipe.add_command(command);
        });
        let found: Vec<Value> = self.run(|connection| pipe.query(connection))?;
        let [fields, length] = found.as_slice() else {
            return Err(KeeperError::redis("Redis answers a transaction with another"));
        };
        if is_wrong_type(fields)? || is_wrong_type(length)? {
            return Ok(Condition::Damaged);
        }
        let fields: Vec<Option<Vec<u8>>> =
            from_redis_value_ref(fields).map_err(|e| KeeperError::Redis(e.to_string()))?;
        let length: u64 = from_redis_value_ref(length).map_err(|e| KeeperError::Redis(e.to_string()))?;
        Ok(condition::read(&fields, length, epoch, self.ledger.as_deref()))
    }

    fn has_terms(&mut self, terms: &Terms) -> Result<bool, KeeperError> {
        let found: Vec<Option<String>> = match self.ask(&layout::ask_terms(terms.sale)) {
            // A key of another type has no terms to change. The look at the state's condition finds it.
            Err(KeeperError::Redis(why)) if why.contains("WRONGTYPE") => return Ok(true),
            found => found?,
        };
        Ok(layout::has_terms(&found, terms))
    }

    fn replan(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<bool, KeeperError> {
        let reply: Vec<u8> = self.ask(&replan::call(terms, epoch, latest_ms))?;
        Ok(replan::read(&reply) == Some(Ok(())))
    }

    fn close(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        let reply: Vec<u8> = self.ask(&close::call(terms, epoch, self.ledger.as_deref()))?;
        match close::read(&reply) {
            Some(Ok(())) => Ok(()),
            _ => Err(KeeperError::Redis(format!(
                "{terms} cannot be closed for epoch {epoch}: Redis says {}",
                words(&reply)
            ))),
        }
    }

    fn forget(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        let reply: Vec<u8> = self.ask(&forget::call(terms, epoch, self.ledger.as_deref()))?;
        match forget::read(&reply) {
            Some(Ok(())) => Ok(()),
            _ => Err(KeeperError::Redis(format!(
                "{terms} is not closed for epoch {epoch}: Redis says {}",
                words(&reply)
            ))),
        }
    }

    fn reached_ms(&mut self, terms: &Terms) -> Result<u64, KeeperError> {
        if self.ask::<String>(cmd("TYPE").arg(state_key(terms.sale)))? != "hash" {
            return Ok(0);
        }
        let text: Option<Vec<u8>> = self.ask(cmd("HGET").arg(state_key(terms.sale)).arg(field::CLOCK))?;
        let reached_ms = text.and_then(|text| std::str::from_utf8(&text).ok()?.parse::<u64>().ok());
        // No script and no rebuild writes a later time.
        Ok(reached_ms.filter(|at_ms| *at_ms <= terms.ends_ms).unwrap_or(0))
    }

    fn counts(&mut self, sale: SaleId) -> Result<Option<Counts>, KeeperError> {
        if self.ask::<String>(cmd("TYPE").arg(state_key(sale)))? != "hash" {
            return Ok(None);
        }
        let found: Vec<Option<String>> = self.ask(&counts::call(sale, self.ledger.as_deref()))?;
        let (ledger, counts) = counts::read(&found);
        Ok(counts.filter(|_| !self.is_foreign(ledger)))
    }

    fn progress(&mut self, terms: &Terms) -> Result<Option<Progress>, KeeperError> {
        let (state, queue) = (state_key(terms.sale), queue_key(terms.sale));
        let fields = &[field::FREE, field::CLOCK, field::TAKEN, field::PURCHASED][..];
        type Found = (Option<u64>, Option<u64>, Option<u64>, Option<u64>);
        let found: Found = self.ask(cmd("HMGET").arg(&state).arg(fields))?;
        let (Some(free), Some(clock_ms), Some(taken), Some(purchased)) = found else { return Ok(None) };
        let mut progress = Progress { sold_out_ms: None, taken, purchased };
        if free == 0 {
            // The hold at the queue's end was taken last.
            let newest: Option<Vec<u8>> = self.ask(cmd("LINDEX").arg(queue).arg(-1))?;
            let holds = match newest.as_deref().and_then(QueueEntry::read).map(|entry| entry.last()) {
                Some(id) => {
                    let fields = [id.field(), id.marks_field()];
                    let found: (Option<Vec<u8>>, Option<Vec<u8>>) = self.ask(cmd("HMGET").arg(&state).arg(&fields))?;
                    let (holds, marks) = (found.0.unwrap_or_default(), found.1.unwrap_or_default());
                    chunk::read(id, &holds, &marks).unwrap_or_default()
                }
                None => Vec::new(),
            };
            let taken_ms = holds.iter().map(|(_, known)| known.taken_ms).max();
            progress.sold_out_ms = Some(taken_ms.unwrap_or(clock_ms));
        }
        Ok(Some(progress))
    }

    fn holds(&mut self, sale: SaleId, each: EachHold<'_>, alive: Alive<'_>) -> Result<bool, KeeperError> {
        let (mut cursor, mut whole) = (0u64, true);
        loop {
            let (next, readable) = self.scan_holds(sale, cursor, WIDE_CHUNK, each)?;
            whole &= readable;
            if next == 0 {
                return Ok(whole);
            }
            alive()?;
            cursor = next;
        }
    }

    fn some_holds(&mut self, sale: SaleId, cursor: u64, each: EachHold<'_>) -> Result<(u64, bool), KeeperError> {
        self.scan_holds(sale, cursor, CHUNK, each)
    }

    fn expire_due(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<(), KeeperError> {
        let call = checkout::expire_due(terms.sale, epoch, latest_ms);
        loop {
            // What the script refuses is for the caller's own call to find.
            let reply: Vec<u8> = self.ask(&call)?;
            let now_ms = checkout::read(&reply, 0).and_then(Result::ok).map(|decided| decided.now_ms);
            let head: Option<Vec<u8>> = self.ask(cmd("LINDEX").arg(queue_key(terms.sale)).arg(0))?;
            let expires_ms = head.as_deref().and_then(QueueEntry::read).map(|entry| entry.expires_ms);
            let due = now_ms.zip(expires_ms).is_some_and(|(now_ms, expires_ms)| expires_ms <= now_ms);
            if !due {
                return Ok(());
            }
        }
    }

    fn offer(
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

    fn unlink(&mut self, sale: SaleId) -> Result<(), KeeperError> {
        self.ask(cmd("UNLINK").arg(state_key(sale)).arg(queue_key(sale)))
    }
}
