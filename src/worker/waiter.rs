//! Where the answers of one connection wait until the connection takes them.
//!
//! Owns the tickets under which answers are on their way, and the answers that have come. Invariants: a ticket gets one answer
//! at most, and none once it is closed; the connection's coroutine is woken once at most until it looks again and
//! finds nothing. Leaves to others what an answer is, how many tickets are open at once, and how long an answer may take.

use may::io::WaitIoWaker;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names one request of a [`Waiter`], so that an answer which comes too late is not taken for another one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// What became of a request that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun<T> {
    /// It is answered.
    Answered(T),
    /// Its answer comes later, under this ticket.
    Waits(Ticket),
}

impl<T> Begun<T> {
    /// The same with `change` applied to the answer.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Begun<U> {
        match self {
            Begun::Answered(answer) => Begun::Answered(change(answer)),
            Begun::Waits(ticket) => Begun::Waits(ticket),
        }
    }
}

/// Where one connection waits for answers of type `T`. Used from its own worker alone, so its lock is never contended.
pub struct Waiter<T> {
    worker: usize,
    waker: WaitIoWaker,
    /// The next ticket. Not under the lock: a request that is answered at once does not take it.
    next: AtomicU64,
    ring: Mutex<Ring<T>>,
}

impl<T> Waiter<T> {
    /// A waiter on `worker` whose coroutine `waker` wakes.
    pub fn new(worker: usize, waker: WaitIoWaker) -> Waiter<T> {
        Waiter { worker, waker, next: AtomicU64::new(0), ring: Mutex::new(Ring::new()) }
    }

    /// The worker that it waits on.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Asks for one more answer. `submit` returns it at once, or has it delivered under the ticket that it is given: from
    /// a later moment on the same worker, not from within the call.
    #[inline]
    pub fn ask(&self, submit: impl FnOnce(Ticket) -> Option<T>) -> Begun<T> {
        super::debug_assert_on(self.worker);
        let ticket = self.next.load(Ordering::Relaxed);
        if let Some(answer) = submit(Ticket(ticket)) {
            return Begun::Answered(answer);
        }
        self.next.store(ticket + 1, Ordering::Relaxed);
        self.ring.lock().open(ticket);
        Begun::Waits(Ticket(ticket))
    }

    /// Delivers the answer that `ticket` waits for, and wakes the connection. Nothing happens if the ticket is closed or has
    /// its answer.
    pub fn deliver(&self, ticket: Ticket, answer: T) {
        super::debug_assert_on(self.worker);
        debug_assert!(
            ticket.0 < self.next.load(Ordering::Relaxed),
            "an answer is delivered after its request was begun"
        );
        let wakes = self.ring.lock().deliver(ticket.0, answer);
        if wakes {
            self.waker.wakeup();
        }
    }

    /// Takes the answer under `ticket` and closes the ticket. `None` if the answer is not there yet: the connection is
    /// woken when one comes, under this ticket or under another one.
    pub fn take(&self, ticket: Ticket) -> Option<T> {
        self.ring.lock().take(ticket.0)
    }

    /// Whether `ticket` waits for its answer.
    pub fn is_open(&self, ticket: Ticket) -> bool {
        self.ring.lock().is_open(ticket.0)
    }

    /// Closes `ticket`: an answer that comes under it from now on is dropped.
    pub fn close(&self, ticket: Ticket) {
        self.ring.lock().close(ticket.0);
    }

    /// Gives back the memory that many open tickets needed.
    pub fn shrink(&self) {
        self.ring.lock().slots.shrink_to(USUAL_SLOTS);
    }
}

/// The tickets that a waiter usually has open at once. Memory for more is taken when it is needed.
const USUAL_SLOTS: usize = 1;

/// The tickets from the oldest open one to the newest one, each with its slot.
struct Ring<T> {
    /// The number of the ticket that the first slot belongs to.
    oldest: u64,
    slots: VecDeque<Slot<T>>,
    /// Whether the coroutine was woken since it last found nothing.
    woken: bool,
}

enum Slot<T> {
    /// The answer has not come yet.
    Open,
    Delivered(T),
    /// The answer was taken, or is not wanted any more.
    Closed,
}

impl<T> Ring<T> {
    fn new() -> Ring<T> {
        Ring { oldest: 0, slots: VecDeque::with_capacity(USUAL_SLOTS), woken: false }
    }

    /// Opens `ticket`, which follows the newest one.
    fn open(&mut self, ticket: u64) {
        debug_assert_eq!(ticket, self.oldest + self.slots.len() as u64, "tickets are opened in their order");
        self.slots.push_back(Slot::Open);
    }

    fn is_open(&mut self, ticket: u64) -> bool {
        matches!(self.slot(ticket), Some(Slot::Open))
    }

    fn slot(&mut self, ticket: u64) -> Option<&mut Slot<T>> {
        // A ticket that is older than the oldest open one has no slot any more.
        let place = usize::try_from(ticket.checked_sub(self.oldest)?).ok()?;
        self.slots.get_mut(place)
    }

    /// Keeps `answer` for `ticket`, if that is open. Returns whether the coroutine has to be woken.
    fn deliver(&mut self, ticket: u64, answer: T) -> bool {
        match self.slot(ticket) {
            Some(slot @ Slot::Open) => *slot = Slot::Delivered(answer),
            _ => return false,
        }
        !std::mem::replace(&mut self.woken, true)
    }

    fn take(&mut self, ticket: u64) -> Option<T> {
        let answer = match self.slot(ticket) {
            Some(slot @ Slot::Delivered(_)) => std::mem::replace(slot, Slot::Closed),
            _ => Slot::Open,
        };
        if let Slot::Delivered(answer) = answer {
            self.forget_closed();
            return Some(answer);
        }
        self.woken = false;
        None
    }

    fn close(&mut self, ticket: u64) {
        if let Some(slot) = self.slot(ticket) {
            *slot = Slot::Closed;
        }
        self.forget_closed();
    }

    fn forget_closed(&mut self) {
        while let Some(Slot::Closed) = self.slots.front() {
            self.slots.pop_front();
            self.oldest += 1;
        }
    }
}

#[cfg(test)]
#[path = "waiter_tests.rs"]
mod tests;
