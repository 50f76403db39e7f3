//! The cell in which an answer waits for the connection that asked.

use may::io::WaitIoWaker;
use parking_lot::Mutex;

/// Names one request of a [`Waiter`], so that an answer which comes too late is not taken for the next one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// Where one connection waits for an answer of type `T`. Used from its own worker alone, so its lock is never contended.
pub struct Waiter<T> {
    worker: usize,
    waker: WaitIoWaker,
    cell: Mutex<Cell<T>>,
}

struct Cell<T> {
    ticket: u64,
    answer: Option<T>,
}

impl<T> Waiter<T> {
    /// A waiter on `worker` whose coroutine `waker` wakes.
    pub fn new(worker: usize, waker: WaitIoWaker) -> Waiter<T> {
        Waiter { worker, waker, cell: Mutex::new(Cell { ticket: 0, answer: None }) }
    }

    /// The worker that it waits on.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// Begins to wait for one more answer.
    pub fn begin(&self) -> Ticket {
        let mut cell = self.cell.lock();
        cell.ticket += 1;
        cell.answer = None;
        Ticket(cell.ticket)
    }

    /// Delivers the answer and wakes the connection; nothing happens if it waits for that ticket no more.
    pub fn deliver(&self, ticket: Ticket, answer: T) {
        super::debug_assert_on(self.worker);
        let mut cell = self.cell.lock();
        if cell.ticket == ticket.0 && cell.answer.is_none() {
            cell.answer = Some(answer);
            drop(cell);
            self.waker.wakeup();
        }
    }

    /// Takes the answer if it is there.
    pub fn take(&self) -> Option<T> {
        let mut cell = self.cell.lock();
        let answer = cell.answer.take();
        if answer.is_some() {
            // No second answer for this ticket.
            cell.ticket += 1;
        }
        answer
    }
}
