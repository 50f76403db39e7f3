//! What a worker's connection to Redis carries: the greeting, the batches, their replies, and the end.
//!
//! Owns the order of what is sent, and what is sent again. Invariants: only a call that executed nothing is sent again; a
//! call whose reply is lost is answered `Unavailable`, since it may have had its effect. Checkouts and purchases take turns: each
//! round sends one call of the checkouts that wait and one of the purchases, so that neither kind waits until the other has none
//! left. Leaves to others: the socket (`redis_wire/pipeline.rs`), and what a reply means (`answer.rs`).

use super::answer;
use super::fault::Fault;
use super::flight::{Call, Flight, MAX_FLIGHTS, Script};
use super::lane::Lane;
use super::scripts::{Header, checkout, purchase};
use super::state::State;
use crate::inventory::{Suspicion, identity};
use crate::redis_wire::pipeline::{ConnectionEnd, Protocol};
use crate::redis_wire::resp::Reply;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A lane's side of its connection.
pub(super) struct ScriptProtocol {
    lane: Arc<Lane>,
    cmd: redis::Cmd,
    checkout_sha: String,
    purchase_sha: String,
    /// Where Redis is, for the log.
    redis: String,
    /// Since when there is no connection, if the log says that there is none.
    lost: Option<Instant>,
}

impl ScriptProtocol {
    /// The protocol of `lane`'s connection to `redis` (`host:port`).
    pub(super) fn new(lane: Arc<Lane>, redis: String) -> ScriptProtocol {
        let (checkout_sha, purchase_sha) = (String::new(), String::new());
        ScriptProtocol { lane, cmd: redis::Cmd::new(), checkout_sha, purchase_sha, redis, lost: None }
    }

    /// Has Redis load both scripts again.
    fn load_scripts(&mut self, state: &mut State, out: &mut Vec<u8>) {
        for (script, text) in [(Script::Checkout, checkout::TEXT), (Script::Purchase, purchase::TEXT)] {
            redis::cmd("SCRIPT").arg("LOAD").arg(text).write_packed_command(out);
            state.flights.push_back(Flight::Load { script, sent: Instant::now() });
        }
        state.lacks_scripts = false;
    }

    /// Notes under which name Redis has loaded a script.
    fn loaded(&mut self, script: Script, reply: Reply<'_>) -> Result<(), Fault> {
        let sha = match script {
            Script::Checkout => &mut self.checkout_sha,
            Script::Purchase => &mut self.purchase_sha,
        };
        *sha = text(reply)?;
        Ok(())
    }

    /// Sends one batch of the checkouts that wait, for the sale that is on.
    fn send_checkouts(&mut self, state: &mut State, out: &mut Vec<u8>) {
        let batch = state.checkouts.take_batch();
        if batch.is_empty() {
            return state.checkouts.recycle(batch);
        }
        let at = Instant::now();
        let on = state.sale_on(at);
        let view = state.view.load();
        let (epoch, latest_ms) = (view.epoch, view.latest_ms(at));
        let (Some(terms), Some(first)) = (on, self.lane.shared.numbers.take_chunks(batch.len() as u64)) else {
            return state.checkouts.refuse(batch);
        };
        let requests = batch.iter().map(|pending| (&pending.request.user, &pending.request.item));
        let header = Header { sha: &self.checkout_sha, sale: terms.sale, epoch, latest_ms };
        checkout::call(&mut self.cmd, &header, first, requests, out);
        state.flights.push_back(Flight::Checkouts { call: Call::new(terms, epoch, at, batch), first });
    }

    /// Sends one batch of the purchases that wait: those of the sale that the first of them asks.
    fn send_purchases(&mut self, state: &mut State, out: &mut Vec<u8>) {
        let Some(sale) = state.purchases.first().map(|hold| hold.sale) else { return };
        let at = Instant::now();
        let view = state.view.load();
        let (terms, epoch, latest_ms) = (view.sale(sale).copied(), view.epoch, view.latest_ms(at));
        let batch = state.purchases.take_batch_of(|hold| hold.sale == sale);
        if batch.is_empty() {
            return state.purchases.recycle(batch);
        }
        let Some(terms) = terms else {
            return state.purchases.refuse(batch);
        };
        let header = Header { sha: &self.purchase_sha, sale, epoch, latest_ms };
        purchase::call(&mut self.cmd, &header, batch.iter().map(|pending| pending.request.number), out);
        state.flights.push_back(Flight::Purchases(Call::new(terms, epoch, at, batch)));
    }
}

/// The text of a reply to the greeting, or to the loading of a script.
fn text(reply: Reply<'_>) -> Result<String, Fault> {
    match reply {
        Reply::Bulk(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        Reply::Error(error) => Err(Fault::Refused(error.to_string())),
        _ => Err(Fault::NoText),
    }
}

impl Protocol for ScriptProtocol {
    type Fault = Fault;

    fn greet(&mut self, out: &mut Vec<u8>) -> usize {
        redis::cmd("INFO").arg("server").arg("replication").write_packed_command(out);
        redis::cmd("SCRIPT").arg("LOAD").arg(checkout::TEXT).write_packed_command(out);
        redis::cmd("SCRIPT").arg("LOAD").arg(purchase::TEXT).write_packed_command(out);
        3
    }

    fn greeted(&mut self, nth: usize, reply: Reply<'_>) -> Result<(), Fault> {
        match nth {
            0 => {
                let identity = identity(&text(reply)?)?;
                if identity != self.lane.shared.view.load().identity {
                    self.lane.shared.suspect(Suspicion::Identity);
                    return Err(Fault::OtherRedis);
                }
                self.lane.state.lock().greet(identity);
                Ok(())
            }
            1 => self.loaded(Script::Checkout, reply),
            _ => self.loaded(Script::Purchase, reply),
        }
    }

    fn ready(&mut self) {
        self.lane.state.lock().begin_connection();
        self.lane.connected.store(true, Ordering::Release);
        if let Some(lost) = self.lost.take() {
            let took = lost.elapsed();
            tracing::info!(
                "worker {} is connected to Redis at {} again, after {took:.1?}",
                self.lane.worker,
                self.redis
            );
        }
    }

    fn fill(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let lane = self.lane.clone();
        crate::worker::debug_assert_on(lane.worker);
        let mut state = lane.state.lock();
        if state.is_outdated() {
            return Err(Fault::Moved);
        }
        if state.lacks_scripts {
            self.load_scripts(&mut state, out);
        }
        while state.flights.len() < MAX_FLIGHTS && state.waiting() > 0 {
            self.send_checkouts(&mut state, out);
            self.send_purchases(&mut state, out);
        }
        Ok(())
    }

    fn reply(&mut self, reply: Reply<'_>) -> Result<(), Fault> {
        crate::worker::debug_assert_on(self.lane.worker);
        let mut state = self.lane.state.lock();
        let flight = state.flights.pop_front();
        match flight {
            Some(Flight::Checkouts { call, first }) => answer::checkouts(&self.lane, &mut state, call, first, reply),
            Some(Flight::Purchases(call)) => answer::purchases(&self.lane, &mut state, call, reply),
            Some(Flight::Load { script, .. }) => {
                drop(state);
                self.loaded(script, reply)
            }
            None => Err(Fault::Unasked),
        }
    }

    fn lost(&mut self, why: &ConnectionEnd<Fault>) {
        let mut state = self.lane.state.lock();
        let was_connected = self.lane.connected.swap(false, Ordering::AcqRel);
        state.sold_out = None;
        state.reconnecting = false;
        let lost_calls = state.refuse_all();
        if was_connected {
            self.lost = Some(Instant::now());
            tracing::warn!(
                "the connection of worker {} to Redis at {} ended, its requests are answered 503 until there is another one: \
                 {why}",
                self.lane.worker,
                self.redis
            );
        }
        if lost_calls {
            // Redis may have decided these calls; then their records are in Redis alone.
            self.lane.shared.lost_calls.store(true, Ordering::Release);
        }
        self.lane.shared.suspect(Suspicion::Away);
    }

    fn is_idle(&self) -> bool {
        self.lane.state.lock().flights.is_empty()
    }

    fn ended_idle(&mut self) {
        let mut state = self.lane.state.lock();
        state.sold_out = None;
        state.reconnecting = true;
    }

    fn waiting_since(&self) -> Option<Instant> {
        self.lane.state.lock().flights.front().map(Flight::sent)
    }
}
