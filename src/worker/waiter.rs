//! The cell in which a decision waits for the connection that asked.

use crate::domain::Outcome;
use may::io::WaitIoWaker;
use parking_lot::Mutex;

/// Names one request of a [`Waiter`], so that an answer which comes too late is not taken for the next one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Where one connection waits for a decision. Used from its own worker alone, so its lock is never contended.
pub struct Waiter {
    worker: usize,
    waker: WaitIoWaker,
    cell: Mutex<Cell>,
}

struct Cell {
    ticket: u64,
    outcome: Option<Outcome>,
}

impl Waiter {
    /// A waiter on `worker` whose coroutine `waker` wakes.
    pub fn new(worker: usize, waker: WaitIoWaker) -> Waiter {
        Waiter { worker, waker, cell: Mutex::new(Cell { ticket: 0, outcome: None }) }
    }

    /// The worker that it waits on.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Begins to wait for one more decision.
    pub fn begin(&self) -> Ticket {
        let mut cell = self.cell.lock();
        cell.ticket += 1;
        cell.outcome = None;
        Ticket(cell.ticket)
    }

    /// Delivers the decision and wakes the connection; nothing happens if it waits for that ticket no more.
    pub fn deliver(&self, ticket: Ticket, outcome: Outcome) {
        super::debug_assert_on(self.worker);
        let mut cell = self.cell.lock();
        if cell.ticket == ticket.0 && cell.outcome.is_none() {
            cell.outcome = Some(outcome);
            drop(cell);
            self.waker.wakeup();
        }
    }

    /// Takes the decision if it is there.
    pub fn take(&self) -> Option<Outcome> {
        let mut cell = self.cell.lock();
        let outcome = cell.outcome.take();
        if outcome.is_some() {
            // No second answer for this ticket.
            cell.ticket += 1;
        }
        outcome
    }
}
