//! One core's way to Redis.

use super::scripts::{self, MAX_BATCH};
use super::{Shared, answer};
use crate::core::{Ticket, Waiter};
use crate::domain::{HoldKey, HoldNumber, Outcome, Request, SaleId, Terms};
use crate::inventory::{Clock, LATCH_TRUST, Suspicion, View};
use crate::redis::pipeline::{Link, Protocol};
use crate::redis::resp::Reply;
use arc_swap::Cache;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Script calls that are in flight at once. Two to four were best, one was worse: Redis would wait for us.
const MAX_FLIGHTS: usize = 4;

/// How often a request may be sent again after an answer that decided nothing: enough for a queue of 120,000
/// expired holds, 256 a call. The connection's own time limit comes first in practice.
const MAX_TRIES: u16 = 512;

/// A request on its way.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) waiter: Arc<Waiter>,
    pub(super) ticket: Ticket,
    pub(super) request: Request,
    pub(super) tries: u16,
}

/// Which script a call is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Checkout,
    Purchase,
}

/// A script call that waits for its reply.
pub(super) struct Flight {
    pub(super) script: Script,
    pub(super) terms: Terms,
    pub(super) epoch: u64,
    /// The first of the batch's hold numbers (checkouts).
    pub(super) first: HoldNumber,
    pub(super) requests: Vec<Pending>,
    sent: Instant,
}

/// Nothing is free before a time, which is not after the sale's end.
#[derive(Clone, Copy)]
pub(super) struct Latch {
    pub(super) epoch: u64,
    pub(super) next_ms: u64,
    pub(super) seen: Instant,
}

pub(super) struct State {
    pub(super) view: Cache<super::Gate, Arc<View>>,
    pub(super) pending: VecDeque<Pending>,
    flights: VecDeque<Flight>,
    /// Emptied lists for the next flights.
    spare: Vec<Vec<Pending>>,
    /// Redis' clock as last heard; the view's until then.
    pub(super) clock: Option<Clock>,
    pub(super) latch: Option<Latch>,
    /// Which Redis the connection was made to.
    greeted: String,
}

/// One core's lane. Its state is locked by its own coroutines, never across a wait, and by [`Lane::undecided`].
pub(super) struct Lane {
    pub(super) core: usize,
    pub(super) shared: Arc<Shared>,
    link: Arc<Link>,
    state: Mutex<State>,
    /// Whether there is a connection that may be written to. Not in the state, so that other threads can look at any time.
    connected: AtomicBool,
}

impl State {
    /// Whether the sales have moved to another Redis than the one that this connection leads to.
    fn is_outdated(&mut self) -> bool {
        let view = self.view.load();
        view.selling && view.identity != self.greeted
    }

    pub(super) fn now_ms(&mut self, at: Instant) -> u64 {
        let clock = self.clock.unwrap_or(self.view.load().clock);
        clock.ms(at)
    }
}

impl Lane {
    pub(super) fn new(core: usize, shared: Arc<Shared>, link: Arc<Link>) -> Lane {
        let state = State {
            view: Cache::new(shared.gate.clone()),
            pending: VecDeque::with_capacity(MAX_BATCH),
            flights: VecDeque::with_capacity(MAX_FLIGHTS),
            spare: Vec::new(),
            clock: None,
            latch: None,
            greeted: String::new(),
        };
        Lane { core, shared, link, state: Mutex::new(state), connected: AtomicBool::new(false) }
    }

    /// Decides what the core knows by itself; anything else joins the next call.
    pub(super) fn submit(&self, waiter: &Arc<Waiter>, ticket: Ticket, request: &Request) -> Option<Outcome> {
        crate::core::debug_assert_on(self.core);
        let mut state = self.state.lock();
        let state = &mut *state;
        if !self.is_connected() || !state.view.load().selling {
            return Some(Outcome::Unavailable);
        }
        match request {
            Request::Checkout { .. } => {
                if let Some(latch) = state.latch {
                    let at = Instant::now();
                    let now_ms = state.now_ms(at);
                    let trusted = at.saturating_duration_since(latch.seen) < LATCH_TRUST;
                    if trusted && now_ms < latch.next_ms && latch.epoch == state.view.load().epoch {
                        return Some(Outcome::SoldOut { retry_ms: latch.next_ms - now_ms });
                    }
                    state.latch = None;
                }
            }
            Request::Purchase { hold } => {
                let now_ms = state.now_ms(Instant::now());
                if let Err(outcome) = state.view.load().judge_code(hold.sale, now_ms) {
                    return Some(outcome);
                }
            }
        }
        state.pending.push_back(Pending { waiter: waiter.clone(), ticket, request: *request, tries: 0 });
        // The first of a turn wakes the driver, which runs after all connections that are ready in this turn. With
        // all flights out, the next reply sends what has gathered.
        if state.pending.len() == 1 && state.flights.len() < MAX_FLIGHTS {
            self.link.wake();
        }
        None
    }

    /// A tick: lets the driver look at its time limits if there is anything to look at.
    pub(super) fn tick(&self) {
        let waits = {
            let mut state = self.state.lock();
            !self.is_connected() || !state.flights.is_empty() || !state.pending.is_empty() || state.is_outdated()
        };
        if waits {
            self.link.wake();
        }
    }

    /// Whether requests can be decided. From any thread.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// How many requests are not decided. From any thread, in a doubt or at the end alone: it takes the lock, so that
    /// whoever has stopped the selling misses no request that was let through just before.
    pub(super) fn undecided(&self) -> usize {
        let state = self.state.lock();
        state.pending.len() + state.flights.iter().map(|f| f.requests.len()).sum::<usize>()
    }
}

/// What rides on a lane's connection.
pub(super) struct Rider {
    lane: Arc<Lane>,
    cmd: redis::Cmd,
    checkout_sha: String,
    purchase_sha: String,
}

impl Rider {
    pub(super) fn new(lane: Arc<Lane>) -> Rider {
        Rider { lane, cmd: redis::Cmd::new(), checkout_sha: String::new(), purchase_sha: String::new() }
    }

    /// Sends one batch of checkouts for the sale that is on.
    fn send_checkouts(&mut self, state: &mut State, batch: Vec<Pending>, out: &mut Vec<u8>) {
        let at = Instant::now();
        let now_ms = state.now_ms(at);
        let view = state.view.load();
        let (terms, epoch) = (view.sale_at(now_ms).copied(), view.epoch);
        let (Some(terms), Some(first)) = (terms, self.lane.shared.numbers.take(batch.len() as u64)) else {
            answer::refuse(batch, state);
            return;
        };
        let requests = batch.iter().enumerate().filter_map(|(i, p)| match &p.request {
            Request::Checkout { user, item } => Some((HoldNumber(first.0 + i as u64), user, item)),
            Request::Purchase { .. } => None,
        });
        scripts::call_checkout(&mut self.cmd, (&self.checkout_sha, terms.sale, epoch), requests, out);
        let flight = Flight { script: Script::Checkout, terms, epoch, first, requests: batch, sent: at };
        state.flights.push_back(flight);
    }

    /// Sends one batch of purchases of one sale.
    fn send_purchases(&mut self, state: &mut State, sale: SaleId, batch: Vec<Pending>, out: &mut Vec<u8>) {
        let view = state.view.load();
        let (terms, epoch) = (view.sale(sale).copied(), view.epoch);
        let Some(terms) = terms else {
            answer::refuse(batch, state);
            return;
        };
        let holds = batch.iter().filter_map(|p| match p.request {
            Request::Purchase { hold } => Some(hold.number),
            Request::Checkout { .. } => None,
        });
        scripts::call_purchase(&mut self.cmd, (&self.purchase_sha, sale, epoch), holds, out);
        let first = HoldNumber(0);
        let flight = Flight { script: Script::Purchase, terms, epoch, first, requests: batch, sent: Instant::now() };
        state.flights.push_back(flight);
    }
}

/// Takes what goes out in one call each: checkouts, and the purchases of one sale. The rest stays.
fn take_batches(state: &mut State) -> (Vec<Pending>, Option<SaleId>, Vec<Pending>) {
    let mut checkouts = state.spare.pop().unwrap_or_default();
    let mut purchases = state.spare.pop().unwrap_or_default();
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

impl State {
    /// Keeps an emptied list for the next batch.
    pub(super) fn recycle(&mut self, mut list: Vec<Pending>) {
        list.clear();
        if self.spare.len() < 2 * MAX_FLIGHTS {
            self.spare.push(list);
        }
    }
}

impl Protocol for Rider {
    fn greet(&mut self, out: &mut Vec<u8>) -> usize {
        redis::cmd("INFO").arg("server").arg("replication").write_packed_command(out);
        redis::cmd("SCRIPT").arg("LOAD").arg(scripts::CHECKOUT).write_packed_command(out);
        redis::cmd("SCRIPT").arg("LOAD").arg(scripts::PURCHASE).write_packed_command(out);
        3
    }

    fn greeted(&mut self, nth: usize, reply: Reply<'_>) -> Result<(), String> {
        let text = match reply {
            Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Reply::Error(text) => return Err(String::from_utf8_lossy(text).into_owned()),
            _ => return Err("an unexpected reply to the greeting".into()),
        };
        match nth {
            0 => {
                let identity = super::super::identity(&text)?;
                let expected = self.lane.shared.gate.load().identity.clone();
                if identity != expected {
                    self.lane.shared.suspect(Suspicion::Identity(identity));
                    return Err("Redis was started anew or is another one".into());
                }
                self.lane.state.lock().greeted = identity;
            }
            1 => self.checkout_sha = text,
            _ => self.purchase_sha = text,
        }
        Ok(())
    }

    fn ready(&mut self) {
        let mut state = self.lane.state.lock();
        state.latch = None;
        // It may be another server, whose clock differs.
        state.clock = None;
        self.lane.connected.store(true, Ordering::Release);
    }

    fn fill(&mut self, out: &mut Vec<u8>) -> Result<(), String> {
        let lane = self.lane.clone();
        crate::core::debug_assert_on(lane.core);
        let mut state = lane.state.lock();
        if state.is_outdated() {
            return Err("another Redis is in force".into());
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
        crate::core::debug_assert_on(self.lane.core);
        let mut state = self.lane.state.lock();
        let Some(flight) = state.flights.pop_front() else { return Err("a reply that nobody asked for".into()) };
        answer::answer(&self.lane, &mut state, flight, reply)
    }

    fn lost(&mut self, why: &str) {
        let mut state = self.lane.state.lock();
        let was_connected = self.lane.connected.swap(false, Ordering::AcqRel);
        state.latch = None;
        for flight in std::mem::take(&mut state.flights) {
            answer::refuse(flight.requests, &mut state);
        }
        let waiting: Vec<Pending> = state.pending.drain(..).collect();
        answer::refuse(waiting, &mut state);
        if was_connected {
            tracing::warn!(core = self.lane.core, "the connection to Redis is gone: {why}");
        }
        self.lane.shared.suspect(Suspicion::Away(why.to_owned()));
    }

    fn waiting_since(&self) -> Option<Instant> {
        self.lane.state.lock().flights.front().map(|f| f.sent)
    }
}

const _: () = assert!(MAX_TRIES as usize * 256 >= 120_000);

/// Sends a request once more, or gives it up.
pub(super) fn again(mut pending: Pending, state: &mut State) {
    pending.tries += 1;
    if pending.tries > MAX_TRIES {
        pending.waiter.deliver(pending.ticket, Outcome::Unavailable);
    } else {
        state.pending.push_back(pending);
    }
}
