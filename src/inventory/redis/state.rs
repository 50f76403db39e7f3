//! A lane's state: the queues, the calls in flight, and the facts by which the worker answers without asking Redis.
//!
//! Owns the order of the calls in flight, which is the order of their replies. Invariant: a worker refuses no request by the
//! clock of a reply that is older than a second. Otherwise a jump of Redis' clock could make it refuse every request, and no
//! call would bring a reply that corrects the clock. Leaves the lock around it to `lane.rs`.

use super::flight::{Checkout, Flight, MAX_FLIGHTS, Pending, Queue};
use crate::domain::{HoldKey, Outcome, Request, Terms};
use crate::inventory::sold_out::SoldOutCache;
use crate::inventory::{Clock, SharedView, View};
use crate::worker::{Ticket, Waiter};
use arc_swap::Cache;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the clock of a reply is used to choose the sale that is on. After that the view's clock is.
const CLOCK_TRUST: Duration = Duration::from_secs(1);

/// What a lane's lock guards.
pub(super) struct State {
    pub(super) view: Cache<SharedView, Arc<View>>,
    pub(super) checkouts: Queue<Checkout>,
    pub(super) purchases: Queue<HoldKey>,
    /// In the order of sending, which is that of the replies.
    pub(super) flights: VecDeque<Flight>,
    /// Redis' clock as last heard, and when.
    clock: Option<(Clock, Instant)>,
    pub(super) sold_out: Option<SoldOutCache>,
    /// The identity of the Redis that the connection was made to.
    greeted: String,
    /// Redis has lost the scripts: they are loaded before the next call.
    pub(super) lacks_scripts: bool,
    /// The connection ended while nothing was in flight, and is being made anew: requests wait for it.
    pub(super) reconnecting: bool,
}

/// A kind of request. Each has a queue of its own.
pub(super) trait Kind: Sized {
    /// The queue in which requests of this kind wait.
    fn queue(state: &mut State) -> &mut Queue<Self>;
}

impl Kind for Checkout {
    fn queue(state: &mut State) -> &mut Queue<Checkout> {
        &mut state.checkouts
    }
}

impl Kind for HoldKey {
    fn queue(state: &mut State) -> &mut Queue<HoldKey> {
        &mut state.purchases
    }
}

impl State {
    /// Nothing waits and nothing is known yet.
    pub(super) fn new(view: SharedView) -> State {
        State {
            view: Cache::new(view),
            checkouts: Queue::new(),
            purchases: Queue::new(),
            flights: VecDeque::with_capacity(MAX_FLIGHTS),
            clock: None,
            sold_out: None,
            greeted: String::new(),
            lacks_scripts: false,
            reconnecting: false,
        }
    }

    /// The connection was made to the Redis of this identity.
    pub(super) fn greet(&mut self, identity: String) {
        self.greeted = identity;
    }

    /// The connection is made: what was known from the last one may not hold for this one, which may lead to another server.
    pub(super) fn begin_connection(&mut self) {
        self.sold_out = None;
        self.clock = None;
        self.lacks_scripts = false;
        self.reconnecting = false;
    }

    /// Whether the sales have moved to another Redis than the one that this connection leads to.
    pub(super) fn is_outdated(&mut self) -> bool {
        let view = self.view.load();
        view.selling && view.identity != self.greeted
    }

    /// The sale that is on at `at`: by the clock of a reply that came a moment ago, or else, or if no sale is on by that
    /// clock, by the keeper's.
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

    /// The answer that needs no call, if there is one.
    pub(super) fn decide(&mut self, request: &Request) -> Option<Outcome> {
        match request {
            Request::Checkout { .. } => {
                let sold_out = self.sold_out?;
                let retry_ms = sold_out.retry_ms(self.view.load().epoch, Instant::now());
                if retry_ms.is_none() {
                    self.sold_out = None;
                }
                retry_ms.map(|retry_ms| Outcome::SoldOut { retry_ms })
            }
            // By the keeper's clock, which it checks each second: the clock of a reply would be corrected by asking
            // alone, and here nothing is asked.
            Request::Purchase { hold } => {
                let view = self.view.load();
                view.check_code(hold.sale, view.clock.ms(Instant::now())).err()
            }
        }
    }

    /// Has a request wait for the next call of its script.
    pub(super) fn push(&mut self, waiter: Arc<Waiter<Outcome>>, ticket: Ticket, request: &Request) {
        match *request {
            Request::Checkout { user, item } => {
                self.checkouts.push(Pending::new(waiter, ticket, Checkout { user, item }));
            }
            Request::Purchase { hold } => self.purchases.push(Pending::new(waiter, ticket, hold)),
        }
    }

    /// How many requests wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.checkouts.len() + self.purchases.len()
    }

    /// How many requests are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.flights.iter().map(Flight::requests).sum()
    }

    /// Sends the requests of a call again that executed nothing, since Redis did not have its script, which is loaded first.
    pub(super) fn reload<R: Kind>(&mut self, requests: Vec<Pending<R>>) {
        // The calls behind the first one are told the same, before the reply to the loading comes.
        let is_loading = self.flights.iter().any(|sent| matches!(sent, Flight::Load { .. }));
        self.lacks_scripts |= !is_loading;
        R::queue(self).reload(requests);
    }

    /// The connection is gone: answers `unavailable` to all that is in flight and all that waits. Says whether calls were lost.
    pub(super) fn refuse_all(&mut self) -> bool {
        let mut lost_calls = false;
        while let Some(flight) = self.flights.pop_front() {
            match flight {
                Flight::Checkouts { call, .. } => self.checkouts.refuse(call.requests),
                Flight::Purchases(call) => self.purchases.refuse(call.requests),
                Flight::Load { .. } => continue,
            }
            lost_calls = true;
        }
        self.checkouts.refuse_waiting();
        self.purchases.refuse_waiting();
        lost_calls
    }
}
