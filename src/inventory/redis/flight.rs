//! Requests that wait to be sent to Redis, and the calls that carry them.
//!
//! Owns a queue for each kind of request, and how often a request is sent. Invariants: a request that is given to a queue or a call
//! is sent again, delivered or refused, and dropped only if its connection has given it up before it was sent; a queue keeps the order in which its requests came. Leaves to
//! `protocol.rs` when a call is sent, and to `answer.rs` what its reply means.

use super::scripts::{EXPIRED_CHUNKS, MAX_BATCH};
use crate::domain::{HoldKey, HoldNumber, Id, Outcome, Terms};
use crate::worker::{Ticket, Waiter};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Commands that are in flight before a lane sends no further batch. Two to four were best, one was worse: Redis would wait for us.
pub(super) const MAX_FLIGHTS: usize = 4;

/// How often a request may be sent again after an answer that decided nothing: enough for a queue of 120,000
/// expired holds in as many chunks, [`EXPIRED_CHUNKS`] a call. The connection's own time limit comes first in practice.
const MAX_TRIES: u16 = 2_048;

/// How often a request may be sent again because Redis did not have the script. Once is enough unless scripts are
/// flushed all the time.
const MAX_RELOADS: u8 = 3;

/// Emptied lists that a queue keeps for its next calls.
const MAX_SPARE: usize = 2 * MAX_FLIGHTS;

const _: () = assert!(MAX_TRIES as usize * EXPIRED_CHUNKS >= 120_000);

/// What a checkout asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkout {
    pub(super) user: Id,
    pub(super) item: Id,
}

/// A request that waits for its decision. `R` is what its script is asked: a [`Checkout`], or the [`HoldKey`] of a purchase.
pub(super) struct Pending<R> {
    waiter: Arc<Waiter<Outcome>>,
    ticket: Ticket,
    pub(super) request: R,
    /// How often it was sent again because the script answered *again*, or *not on*.
    tries: u16,
    /// How often it was sent again because Redis did not have the script.
    reloads: u8,
}

impl<R> Pending<R> {
    /// A request of `waiter` that has not been sent yet.
    pub(super) fn new(waiter: Arc<Waiter<Outcome>>, ticket: Ticket, request: R) -> Pending<R> {
        Pending { waiter, ticket, request, tries: 0, reloads: 0 }
    }

    /// Delivers the decision.
    pub(super) fn deliver(self, outcome: Outcome) {
        self.waiter.deliver(self.ticket, outcome);
    }

    /// Whether the connection still waits for the decision.
    fn is_wanted(&self) -> bool {
        self.waiter.is_open(self.ticket)
    }

    /// Where the decision is to be delivered.
    pub(super) fn into_waiter(self) -> (Arc<Waiter<Outcome>>, Ticket) {
        (self.waiter, self.ticket)
    }
}

/// The requests of one kind that wait to be sent.
pub(super) struct Queue<R> {
    waiting: VecDeque<Pending<R>>,
    /// Emptied lists for the next calls, so that none is allocated for each.
    spare: Vec<Vec<Pending<R>>>,
}

impl<R> Queue<R> {
    /// An empty queue.
    pub(super) fn new() -> Queue<R> {
        Queue { waiting: VecDeque::with_capacity(MAX_BATCH), spare: Vec::with_capacity(MAX_SPARE) }
    }

    /// How many requests wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The request that waits longest.
    pub(super) fn first(&self) -> Option<&R> {
        self.waiting.front().map(|pending| &pending.request)
    }

    /// Adds a request behind all others.
    pub(super) fn push(&mut self, pending: Pending<R>) {
        self.waiting.push_back(pending);
    }

    /// Takes the first [`MAX_BATCH`] requests, or all if there are fewer. Forgets those among them that were given up: their clients
    /// have their answers, and no client would learn of the holds.
    pub(super) fn take_batch(&mut self) -> Vec<Pending<R>> {
        let mut batch = self.spare.pop().unwrap_or_default();
        while batch.len() < MAX_BATCH {
            let Some(pending) = self.waiting.pop_front() else { break };
            if pending.is_wanted() {
                batch.push(pending);
            }
        }
        batch
    }

    /// The same of those that `belong` to one batch. The others stay, in their order.
    pub(super) fn take_batch_of(&mut self, belong: impl Fn(&R) -> bool) -> Vec<Pending<R>> {
        let mut batch = self.spare.pop().unwrap_or_default();
        for _ in 0..self.waiting.len() {
            let Some(pending) = self.waiting.pop_front() else { break };
            if batch.len() == MAX_BATCH || !belong(&pending.request) {
                self.waiting.push_back(pending);
            } else if pending.is_wanted() {
                batch.push(pending);
            }
        }
        batch
    }

    /// Sends a request once more after a reply that did not decide it, or refuses it after too many.
    pub(super) fn again(&mut self, mut pending: Pending<R>) {
        pending.tries += 1;
        if pending.tries > MAX_TRIES {
            pending.deliver(Outcome::Unavailable);
        } else {
            self.waiting.push_back(pending);
        }
    }

    /// The sale that was asked is not on. The requests ask the one that is, each once: the second time they are refused.
    pub(super) fn ask_another_sale(&mut self, mut requests: Vec<Pending<R>>) {
        for pending in requests.drain(..) {
            if pending.tries == 0 {
                self.again(pending);
            } else {
                pending.deliver(Outcome::Unavailable);
            }
        }
        self.recycle(requests);
    }

    /// Sends requests once more after Redis did not have their script, before all others and in their order. Refuses those for
    /// which that has happened too often.
    pub(super) fn reload(&mut self, mut requests: Vec<Pending<R>>) {
        for mut pending in requests.drain(..).rev() {
            pending.reloads += 1;
            if pending.reloads > MAX_RELOADS {
                pending.deliver(Outcome::Unavailable);
            } else {
                self.waiting.push_front(pending);
            }
        }
        self.recycle(requests);
    }

    /// Answers `unavailable` to all of `requests`.
    pub(super) fn refuse(&mut self, mut requests: Vec<Pending<R>>) {
        requests.drain(..).for_each(|pending| pending.deliver(Outcome::Unavailable));
        self.recycle(requests);
    }

    /// Answers `unavailable` to all that wait.
    pub(super) fn refuse_waiting(&mut self) {
        self.waiting.drain(..).for_each(|pending| pending.deliver(Outcome::Unavailable));
    }

    /// Keeps a list for the next batch. All requests in it are answered or given to a queue.
    pub(super) fn recycle(&mut self, list: Vec<Pending<R>>) {
        debug_assert!(list.is_empty(), "requests that would get no answer");
        if self.spare.len() < MAX_SPARE {
            self.spare.push(list);
        }
    }
}

/// A script call that waits for its reply.
pub(super) struct Call<R> {
    pub(super) terms: Terms,
    pub(super) epoch: u64,
    pub(super) sent: Instant,
    pub(super) requests: Vec<Pending<R>>,
}

impl<R> Call<R> {
    /// A call sent at `sent` under `epoch`, of the script that decides `requests` in the sale of `terms`.
    pub(super) fn new(terms: Terms, epoch: u64, sent: Instant, requests: Vec<Pending<R>>) -> Call<R> {
        debug_assert!((1..=MAX_BATCH).contains(&requests.len()), "{} requests in a call", requests.len());
        Call { terms, epoch, sent, requests }
    }
}

/// The scripts that a lane calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Checkout,
    Purchase,
}

/// A command that was sent and has no reply yet.
pub(super) enum Flight {
    /// A call of the checkout script. The holds get numbers in a row from `first`.
    Checkouts { call: Call<Checkout>, first: HoldNumber },
    /// A call of the purchase script.
    Purchases(Call<HoldKey>),
    /// The loading of a script that Redis did not have.
    Load { script: Script, sent: Instant },
}

impl Flight {
    /// When it was sent.
    pub(super) fn sent(&self) -> Instant {
        match self {
            Flight::Checkouts { call, .. } => call.sent,
            Flight::Purchases(call) => call.sent,
            Flight::Load { sent, .. } => *sent,
        }
    }

    /// How many requests wait for its reply.
    pub(super) fn requests(&self) -> usize {
        match self {
            Flight::Checkouts { call, .. } => call.requests.len(),
            Flight::Purchases(call) => call.requests.len(),
            Flight::Load { .. } => 0,
        }
    }
}
