//! A lane: one worker's queue of requests on their way to Redis, and what the worker knows by itself.
//!
//! Owns the batches that wait, the calls that are in flight, the sold-out cache and the clock as last heard. Invariants: a
//! request gets one answer; what rests on a clock is decided here only while that clock was heard a moment ago, since a
//! clock that was wrong once must not prevent its own correction. Leaves to others: the connection and what is sent on it
//! (`protocol.rs`), and the reading of replies (`answer.rs`).

use super::Shared;
use super::scripts::{EXPIRED_A_CALL, MAX_BATCH};
use crate::domain::{HoldNumber, Outcome, Request, Terms};
use crate::inventory::sold_out::SoldOutCache;
use crate::inventory::{Clock, View};
use crate::redis_wire::pipeline::DriverWaker;
use crate::worker::{Ticket, Waiter};
use arc_swap::Cache;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Script calls that are in flight at once. Two to four were best, one was worse: Redis would wait for us.
pub(super) const MAX_FLIGHTS: usize = 4;

/// How often a request may be sent again after an answer that decided nothing: enough for a queue of 120,000
/// expired holds, [`EXPIRED_A_CALL`] a call. The connection's own time limit comes first in practice.
const MAX_TRIES: u16 = 512;

/// How often a request may be sent again because Redis did not have the script. Once is enough unless scripts are
/// flushed all the time.
const MAX_RELOADS: u8 = 3;

/// How long the clock of a reply is used to choose the sale that is on. After that the view's clock is.
const CLOCK_TRUST: Duration = Duration::from_secs(1);

/// A request on its way.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) waiter: Arc<Waiter<Outcome>>,
    pub(super) ticket: Ticket,
    pub(super) request: Request,
    /// How often it was sent again after an answer that decided nothing.
    pub(super) tries: u16,
    /// How often it was sent again because Redis did not have the script.
    pub(super) reloads: u8,
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
    pub(super) sent: Instant,
}

/// What was sent and is not answered yet.
pub(super) enum InFlight {
    /// A call.
    Call(Flight),
    /// The loading of a script that Redis did not have.
    Load(Script, Instant),
}

impl InFlight {
    pub(super) fn sent(&self) -> Instant {
        match self {
            InFlight::Call(flight) => flight.sent,
            InFlight::Load(_, sent) => *sent,
        }
    }

    fn requests(&self) -> usize {
        match self {
            InFlight::Call(flight) => flight.requests.len(),
            InFlight::Load(..) => 0,
        }
    }
}

pub(super) struct State {
    pub(super) view: Cache<super::SharedView, Arc<View>>,
    pub(super) pending: VecDeque<Pending>,
    /// In the order of sending, which is that of the replies.
    pub(super) flights: VecDeque<InFlight>,
    /// Emptied lists for the next flights.
    spare: Vec<Vec<Pending>>,
    /// Redis' clock as last heard, and when.
    pub(super) clock: Option<(Clock, Instant)>,
    pub(super) sold_out: Option<SoldOutCache>,
    /// Which Redis the connection was made to.
    pub(super) greeted: String,
    /// Redis has lost the scripts: they are loaded before the next call.
    pub(super) lacks_scripts: bool,
    /// The connection ended while nothing was in flight, and is being made anew: requests wait for it.
    pub(super) reconnecting: bool,
}

/// One worker's lane. Its state is locked by its own coroutines, never across a wait, and by [`Lane::undecided`].
pub(super) struct Lane {
    pub(super) worker: usize,
    pub(super) shared: Arc<Shared>,
    driver: Arc<DriverWaker>,
    pub(super) state: Mutex<State>,
    /// Whether requests are taken: there is a connection, or one that ended idle is being made anew. Not in the state, so that other threads can look at any time.
    pub(super) connected: AtomicBool,
}

impl State {
    /// Whether the sales have moved to another Redis than the one that this connection leads to.
    pub(super) fn is_outdated(&mut self) -> bool {
        let view = self.view.load();
        view.selling && view.identity != self.greeted
    }

    /// The sale that is on at `at`: by the clock of a reply if one came a moment ago, else by the keeper's.
    pub(super) fn sale_on(&mut self, at: Instant) -> Option<Terms> {
        let fresh = |heard: &Instant| at.saturating_duration_since(*heard) < CLOCK_TRUST;
        let clock = self.clock.filter(|(_, heard)| fresh(heard)).map(|(clock, _)| clock);
        let view = self.view.load();
        let by = |clock: Clock| view.sale_at(clock.ms(at)).copied();
        clock.and_then(by).or_else(|| by(view.clock))
    }

    /// A reply came at `at` that says `now_ms` (unix milliseconds).
    pub(super) fn hear_clock(&mut self, at: Instant, now_ms: u64) {
        self.clock = Some((Clock::new(at, now_ms), at));
    }

    /// Keeps an emptied list for the next batch.
    pub(super) fn recycle(&mut self, mut list: Vec<Pending>) {
        list.clear();
        if self.spare.len() < 2 * MAX_FLIGHTS {
            self.spare.push(list);
        }
    }

    /// An empty list, recycled if there is one.
    pub(super) fn blank(&mut self) -> Vec<Pending> {
        self.spare.pop().unwrap_or_default()
    }
}

impl Lane {
    pub(super) fn new(worker: usize, shared: Arc<Shared>, driver: Arc<DriverWaker>) -> Lane {
        let state = State {
            view: Cache::new(shared.view.clone()),
            pending: VecDeque::with_capacity(MAX_BATCH),
            flights: VecDeque::with_capacity(MAX_FLIGHTS),
            spare: Vec::new(),
            clock: None,
            sold_out: None,
            greeted: String::new(),
            lacks_scripts: false,
            reconnecting: false,
        };
        Lane { worker, shared, driver, state: Mutex::new(state), connected: AtomicBool::new(false) }
    }

    /// Decides what the worker knows by itself; anything else joins the next call.
    pub(super) fn submit(&self, waiter: &Arc<Waiter<Outcome>>, ticket: Ticket, request: &Request) -> Option<Outcome> {
        crate::worker::debug_assert_on(self.worker);
        let mut state = self.state.lock();
        let state = &mut *state;
        if !self.is_connected() || !state.view.load().selling {
            return Some(Outcome::Unavailable);
        }
        match request {
            Request::Checkout { .. } => {
                if let Some(sold_out) = state.sold_out {
                    let epoch = state.view.load().epoch;
                    if let Some(retry_ms) = sold_out.retry_ms(epoch, Instant::now()) {
                        return Some(Outcome::SoldOut { retry_ms });
                    }
                    state.sold_out = None;
                }
            }
            Request::Purchase { hold } => {
                // By the keeper's clock, which it checks each second: the clock of a reply would be corrected by asking
                // alone, and here nothing is asked.
                let view = state.view.load();
                if let Err(outcome) = view.check_code(hold.sale, view.clock.ms(Instant::now())) {
                    return Some(outcome);
                }
            }
        }
        state.pending.push_back(Pending { waiter: waiter.clone(), ticket, request: *request, tries: 0, reloads: 0 });
        // The first of a turn wakes the driver, which runs after all connections that are ready in this turn. With
        // all flights out, the next reply sends what has gathered.
        if state.pending.len() == 1 && state.flights.len() < MAX_FLIGHTS {
            self.driver.wake();
        }
        None
    }

    /// A tick: lets the driver look at its time limits if there is anything to look at.
    pub(super) fn tick(&self) {
        let waits = {
            let mut state = self.state.lock();
            let waits = !state.flights.is_empty() || !state.pending.is_empty();
            waits || state.reconnecting || !self.is_connected() || state.is_outdated()
        };
        if waits {
            self.driver.wake();
        }
    }

    /// Whether requests can be decided. From any thread.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    /// How many requests are not decided. From any thread, only on a suspected loss or at the end: it takes the lock, so that
    /// a caller that has stopped the selling misses no request that was accepted just before.
    pub(super) fn undecided(&self) -> usize {
        let state = self.state.lock();
        state.pending.len() + state.flights.iter().map(InFlight::requests).sum::<usize>()
    }
}

const _: () = assert!(MAX_TRIES as usize * EXPIRED_A_CALL >= 120_000);

/// Sends a request once more, or gives it up.
pub(super) fn again(mut pending: Pending, state: &mut State) {
    pending.tries += 1;
    if pending.tries > MAX_TRIES {
        pending.waiter.deliver(pending.ticket, Outcome::Unavailable);
    } else {
        state.pending.push_back(pending);
    }
}

/// Sends the requests of a call again that executed nothing, before all others and in their order: Redis did not have
/// its script, which is loaded first.
pub(super) fn load_and_send_again(mut requests: Vec<Pending>, state: &mut State) {
    // The calls behind the first one are told the same, before the reply to the loading comes.
    let loading = state.flights.iter().any(|sent| matches!(sent, InFlight::Load(..)));
    state.lacks_scripts |= !loading;
    for mut pending in requests.drain(..).rev() {
        pending.reloads += 1;
        if pending.reloads > MAX_RELOADS {
            pending.waiter.deliver(pending.ticket, Outcome::Unavailable);
        } else {
            state.pending.push_front(pending);
        }
    }
    state.recycle(requests);
}
