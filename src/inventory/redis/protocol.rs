//! What a worker's connection to Redis carries: the greeting, the batches, their replies, and the end.
//!
//! Owns the order of what is sent, and what is sent again. Invariant: only a call that executed nothing is sent again; a
//! call whose reply is lost is answered `Unavailable`, since it may have had its effect. Leaves to others: the socket
//! (`redis/pipeline.rs`), and what a reply means (`answer.rs`).

use super::answer;
use super::lane::{Flight, InFlight, Lane, MAX_FLIGHTS, Pending, Script, State};
use super::scripts::{Header, MAX_BATCH, checkout, purchase};
use crate::domain::{HoldKey, HoldNumber, Request, SaleId};
use crate::inventory::Suspicion;
use crate::redis_wire::pipeline::Protocol;
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
    /// Since when there is no connection, where that was told.
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
            state.flights.push_back(InFlight::Load(script, Instant::now()));
        }
        state.lacks_scripts = false;
    }

    /// Notes under which name Redis has loaded a script.
    fn loaded(&mut self, script: Script, reply: Reply<'_>) -> Result<(), String> {
        let sha = match script {
            Script::Checkout => &mut self.checkout_sha,
            Script::Purchase => &mut self.purchase_sha,
        };
        *sha = bulk_text(reply)?;
        Ok(())
    }

    /// Sends one batch of checkouts for the sale that is on.
    fn send_checkouts(&mut self, state: &mut State, batch: Vec<Pending>, out: &mut Vec<u8>) {
        let at = Instant::now();
        let on = state.sale_on(at);
        let view = state.view.load();
        let (epoch, latest_ms) = (view.epoch, view.latest_ms(at));
        let (Some(terms), Some(first)) = (on, self.lane.shared.numbers.take(batch.len() as u64)) else {
            answer::refuse(batch, state);
            return;
        };
        let requests = batch.iter().enumerate().filter_map(|(i, p)| match &p.request {
            Request::Checkout { user, item } => Some((HoldNumber(first.0 + i as u64), user, item)),
            Request::Purchase { .. } => None,
        });
        let header = Header { sha: &self.checkout_sha, sale: terms.sale, epoch, latest_ms };
        checkout::call(&mut self.cmd, &header, requests, out);
        let flight = Flight { script: Script::Checkout, terms, epoch, first, requests: batch, sent: at };
        state.flights.push_back(InFlight::Call(flight));
    }

    /// Sends one batch of purchases of one sale.
    fn send_purchases(&mut self, state: &mut State, sale: SaleId, batch: Vec<Pending>, out: &mut Vec<u8>) {
        let at = Instant::now();
        let view = state.view.load();
        let (terms, epoch, latest_ms) = (view.sale(sale).copied(), view.epoch, view.latest_ms(at));
        let Some(terms) = terms else {
            answer::refuse(batch, state);
            return;
        };
        let holds = batch.iter().filter_map(|p| match p.request {
            Request::Purchase { hold } => Some(hold.number),
            Request::Checkout { .. } => None,
        });
        let header = Header { sha: &self.purchase_sha, sale, epoch, latest_ms };
        purchase::call(&mut self.cmd, &header, holds, out);
        let first = HoldNumber(0);
        let flight = Flight { script: Script::Purchase, terms, epoch, first, requests: batch, sent: at };
        state.flights.push_back(InFlight::Call(flight));
    }
}

/// Takes what goes out in one call each: checkouts, and the purchases of one sale. The rest stays.
fn take_batches(state: &mut State) -> (Vec<Pending>, Option<SaleId>, Vec<Pending>) {
    let mut checkouts = state.blank();
    let mut purchases = state.blank();
    let mut sale = None;
    for _ in 0..state.pending.len() {
        let Some(pending) = state.pending.pop_front() else { break };
        match pending.request {
            Request::Checkout { .. } if checkouts.len() < MAX_BATCH => checkouts.push(pending),
            Request::Purchase { hold: HoldKey { sale: his, .. } }
                if purchases.len() < MAX_BATCH && *sale.get_or_insert(his) == his =>
            {
                purchases.push(pending);
            }
            _ => state.pending.push_back(pending),
        }
    }
    (checkouts, sale, purchases)
}

fn bulk_text(reply: Reply<'_>) -> Result<String, String> {
    match reply {
        Reply::Bulk(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        Reply::Error(text) => Err(String::from_utf8_lossy(text).into_owned()),
        _ => Err("Redis answered the greeting with something other than text".into()),
    }
}

impl Protocol for ScriptProtocol {
    fn greet(&mut self, out: &mut Vec<u8>) -> usize {
        redis::cmd("INFO").arg("server").arg("replication").write_packed_command(out);
        redis::cmd("SCRIPT").arg("LOAD").arg(checkout::TEXT).write_packed_command(out);
        redis::cmd("SCRIPT").arg("LOAD").arg(purchase::TEXT).write_packed_command(out);
        3
    }

    fn greeted(&mut self, nth: usize, reply: Reply<'_>) -> Result<(), String> {
        match nth {
            0 => {
                let identity = super::super::identity(&bulk_text(reply)?)?;
                let expected = self.lane.shared.view.load().identity.clone();
                if identity != expected {
                    self.lane.shared.suspect(Suspicion::Identity(identity));
                    return Err("Redis was started anew or is another one".into());
                }
                self.lane.state.lock().greeted = identity;
            }
            1 => self.loaded(Script::Checkout, reply)?,
            _ => self.loaded(Script::Purchase, reply)?,
        }
        Ok(())
    }

    fn ready(&mut self) {
        let mut state = self.lane.state.lock();
        state.sold_out = None;
        // It may be another server, whose clock differs.
        state.clock = None;
        state.lacks_scripts = false;
        state.reconnecting = false;
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

    fn fill(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let lane = self.lane.clone();
        crate::worker::debug_assert_on(lane.worker);
        let mut state = lane.state.lock();
        if state.is_outdated() {
            return Err("the sales have moved to another Redis".into());
        }
        if state.lacks_scripts {
            self.load_scripts(&mut state, out);
        }
        while state.flights.len() < MAX_FLIGHTS && !state.pending.is_empty() {
            let (checkouts, sale, purchases) = take_batches(&mut state);
            match checkouts.is_empty() {
                true => state.recycle(checkouts),
                false => self.send_checkouts(&mut state, checkouts, out),
            }
            match sale {
                None => state.recycle(purchases),
                Some(sale) => self.send_purchases(&mut state, sale, purchases, out),
            }
        }
        Ok(())
    }

    fn reply(&mut self, reply: Reply<'_>) -> Result<(), String> {
        crate::worker::debug_assert_on(self.lane.worker);
        let mut state = self.lane.state.lock();
        let answered = state.flights.pop_front();
        match answered {
            Some(InFlight::Call(flight)) => answer::answer(&self.lane, &mut state, flight, reply),
            Some(InFlight::Load(script, _)) => {
                drop(state);
                self.loaded(script, reply)
            }
            None => Err("Redis sent a reply without a request".into()),
        }
    }

    fn lost(&mut self, why: &str) {
        let mut state = self.lane.state.lock();
        let was_connected = self.lane.connected.swap(false, Ordering::AcqRel);
        state.sold_out = None;
        state.reconnecting = false;
        let mut lost_calls = false;
        for sent in std::mem::take(&mut state.flights) {
            if let InFlight::Call(flight) = sent {
                lost_calls = true;
                answer::refuse(flight.requests, &mut state);
            }
        }
        let waiting: Vec<Pending> = state.pending.drain(..).collect();
        answer::refuse(waiting, &mut state);
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
            // What they decided, if they did, is with Redis alone.
            self.lane.shared.lost_calls.store(true, Ordering::Release);
        }
        self.lane.shared.suspect(Suspicion::Away(why.to_owned()));
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
        self.lane.state.lock().flights.front().map(InFlight::sent)
    }
}
