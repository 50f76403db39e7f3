//! A lane: one worker's way to Redis.
//!
//! Owns the lock around the lane's state, and the waking of the driver that sends the waiting requests. Invariant: a request that is
//! submitted gets one answer. Leaves to others: the state (`state.rs`), the connection and what is sent on it (`protocol.rs`), and
//! the reading of replies (`answer.rs`).

use super::flight::MAX_FLIGHTS;
use super::shared::Shared;
use super::state::State;
use crate::domain::{Outcome, Request};
use crate::redis_wire::pipeline::DriverWaker;
use crate::worker::{Ticket, Waiter};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// One worker's lane. Its state is locked by its own coroutines, never across a wait, and by [`Lane::undecided`].
pub(super) struct Lane {
    pub(super) worker: usize,
    pub(super) shared: Arc<Shared>,
    driver: Arc<DriverWaker>,
    pub(super) state: Mutex<State>,
    /// Whether requests are taken: there is a connection, or one that ended idle is being made anew. Not in the state, so that
    /// other threads can look at any time.
    pub(super) connected: AtomicBool,
}

impl Lane {
    pub(super) fn new(worker: usize, shared: Arc<Shared>, driver: Arc<DriverWaker>) -> Lane {
        let state = Mutex::new(State::new(shared.view.clone()));
        Lane { worker, shared, driver, state, connected: AtomicBool::new(false) }
    }

    /// Decides what the worker knows by itself; anything else joins the next call.
    pub(super) fn submit(&self, waiter: &Arc<Waiter<Outcome>>, ticket: Ticket, request: &Request) -> Option<Outcome> {
        crate::worker::debug_assert_on(self.worker);
        let mut state = self.state.lock();
        if !self.is_connected() || !state.view.load().selling {
            return Some(Outcome::Unavailable);
        }
        let decided = state.decide(request);
        if decided.is_some() {
            return decided;
        }
        state.push(waiter.clone(), ticket, request);
        // The first request of a turn wakes the driver, which runs after all connections that are ready in this turn. While
        // enough calls are in flight, the driver sends the waiting requests when the next reply comes.
        if state.waiting() == 1 && state.flights.len() < MAX_FLIGHTS {
            self.driver.wake();
        }
        None
    }

    /// A tick: lets the driver look at its time limits if there is anything to look at.
    pub(super) fn tick(&self) {
        let waits = {
            let mut state = self.state.lock();
            let waits = !state.flights.is_empty() || state.waiting() > 0;
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
        state.waiting() + state.in_flight()
    }
}
