//! The messages between the workers, which decide records, and the ledger's writer, which writes them.
//!
//! Owns the messages, the bounded channel, the mailboxes and the recycling of buffers. Invariants: handing over never blocks a
//! worker and never grows: what finds the channel full is refused, for reconciliation to pick up; each answer that comes to a
//! mailbox is delivered once, on its worker. Leaves deciding to the inventory and writing to the ledger's writer.

use crate::domain::{Outcome, Records, SaleId};
use crate::worker::{Bell, Ticket, Waiter};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An answer that waits until the records it travels with are in the ledger.
pub struct Ack {
    /// The connection that waits.
    pub waiter: Arc<Waiter<Outcome>>,
    /// Its request that is answered.
    pub ticket: Ticket,
    /// The answer, once the ledger has the records.
    pub outcome: Outcome,
}

impl Ack {
    /// Delivers the answer, on the waiter's worker: nothing that it says can be lost any more.
    pub fn deliver(self) {
        self.waiter.deliver(self.ticket, self.outcome);
    }

    /// Delivers `unavailable` in place of the answer, on the waiter's worker: the records may never come into the ledger.
    pub fn refuse(self) {
        self.waiter.deliver(self.ticket, Outcome::Unavailable);
    }
}

/// Records on their way to the ledger, with the answers that wait for them.
pub struct Handoff {
    /// The worker that decided them.
    pub worker: usize,
    /// The facts.
    pub records: Records,
    /// The answers that wait for them. If there are any, the handoff goes back to its worker by the worker's [`Mailbox`].
    pub acks: Vec<Ack>,
}

/// Undoes decisions that the ledger did not keep.
pub trait Undo: Send + Sync {
    /// Undoes the decisions that `refused` records, the newest first. The implementation stops deciding, calls `rest` once,
    /// which appends the handoffs that came since, and undoes these too: they may rest on the refused ones.
    fn undo(&self, refused: &mut Vec<Box<Handoff>>, rest: &mut dyn FnMut(&mut Vec<Box<Handoff>>));
}

/// The messages to the writer.
pub enum Message {
    /// Write these.
    Records(Box<Handoff>),
    /// Send a message here once all that was sent before is written, given back or passed on.
    Flush(Sender<()>),
    /// Write all that was sent before, then end.
    Finish,
}

/// Answers that come back to a worker from the writer, once it is known what has become of their records.
///
/// What the ledger did not take needs nothing but the refusal here. An embedded inventory has undone it before: the writer has
/// that done under the inventory's lock (see [`Undo`]). With Redis, only records of an older epoch come back like this, without
/// the records themselves: the keeper gets those.
pub struct Mailbox {
    sender: Sender<(Box<Handoff>, bool)>,
    receiver: Receiver<(Box<Handoff>, bool)>,
    bell: Bell,
}

impl Mailbox {
    /// A mailbox that `bell` announces.
    pub fn new(bell: Bell) -> Mailbox {
        // Its size is bounded by the handoffs in the writer's bounded channel.
        let (sender, receiver) = crossbeam_channel::unbounded();
        Mailbox { sender, receiver, bell }
    }

    /// From the writer: the records of `handoff` are in the ledger (`written`), or it did not take them. Ring afterwards.
    pub fn put(&self, handoff: Box<Handoff>, written: bool) {
        let _ = self.sender.send((handoff, written));
    }

    /// From the writer: rings if there is something to deliver.
    pub fn ring(&self) {
        if !self.receiver.is_empty() {
            self.bell.ring();
        }
    }

    /// Delivers what comes, for ever; emptied handoffs go to `recorder`. To be run as a coroutine on the bell's worker.
    pub fn run(&self, recorder: &Recorder) {
        loop {
            self.bell.wait();
            self.deliver(recorder);
        }
    }

    /// Delivers what has come.
    fn deliver(&self, recorder: &Recorder) {
        while let Ok((mut handoff, written)) = self.receiver.try_recv() {
            for ack in handoff.acks.drain(..) {
                if written { ack.deliver() } else { ack.refuse() }
            }
            recorder.recycle(handoff);
        }
    }
}

/// Messages that the channel to the writer holds. A message has one record or hundreds, so this bounds the number of
/// messages only; [`MAX_BACKLOG`] bounds the records, and with them the memory.
pub const CHANNEL_MESSAGES: usize = 1 << 17;
/// Records that wait for the writer at once: about 100 MB with ids of usual length, 90 MB more if all are the longest.
pub const MAX_BACKLOG: u64 = 500_000;
/// Emptied handoffs that are kept for reuse.
const SPARE_HANDOFFS: usize = 256;

/// Counters of the way to the ledger.
#[derive(Default, Debug)]
pub struct Counters {
    /// Records handed to the writer.
    pub handed: AtomicU64,
    /// Records that the writer has put into the ledger.
    pub written: AtomicU64,
    /// Messages with records that the writer is done with, in the order in which they were handed over: in the ledger, or
    /// given back and undone.
    pub settled: AtomicU64,
    /// Records that found the channel full and are left to reconciliation.
    pub overflowed: AtomicU64,
    /// Of those, how many are known to be in the ledger by now.
    pub reconciled: AtomicU64,
    /// Records of an older epoch that the ledger did not take.
    pub stale: AtomicU64,
    /// Whether the ledger refuses records at present, as the writer has found.
    pub refusing: AtomicBool,
    /// Whether the ledger did not answer the keeper, who asks also while there is nothing to write.
    pub away: AtomicBool,
    /// Since when the writer waits for the ledger to take a batch, if it does.
    pub writing: Mutex<Option<Instant>>,
}

/// A ledger that takes longer than this for a batch counts as one that refuses: answers that wait for it are about to be too
/// late.
const STUCK: Duration = Duration::from_secs(2);

/// The sending side, one for all workers.
pub struct Recorder {
    sender: Sender<Message>,
    spare: Receiver<Box<Handoff>>,
    spare_in: Sender<Box<Handoff>>,
    hurry: Sender<()>,
    counters: Arc<Counters>,
}

/// The writer's side.
pub struct Inbox {
    /// The messages of the workers and of the keeper.
    pub receiver: Receiver<Message>,
    /// Where the writer puts emptied handoffs without waiting answers, to be used again.
    pub spare: Sender<Box<Handoff>>,
    /// A message here means that a caller waits for the records that could not be written yet: the writer tries again at once.
    pub hurry: Receiver<()>,
    /// Shared with the sending side.
    pub counters: Arc<Counters>,
}

/// Both sides of a channel of `messages`.
pub fn channel(messages: usize) -> (Recorder, Inbox) {
    let (sender, receiver) = crossbeam_channel::bounded(messages);
    let (spare_in, spare) = crossbeam_channel::bounded(SPARE_HANDOFFS);
    let (hurry, hurried) = crossbeam_channel::bounded(1);
    let counters = Arc::new(Counters::default());
    let recorder = Recorder { sender, spare, spare_in: spare_in.clone(), hurry, counters: counters.clone() };
    (recorder, Inbox { receiver, spare: spare_in, hurry: hurried, counters })
}

impl Counters {
    /// Records that reconciliation has to write, as far as is known.
    pub fn left(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed).saturating_sub(self.reconciled.load(Ordering::Relaxed))
    }

    /// Whether the ledger refuses records at present, or would: it does not answer, or does not come to an end.
    pub fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
            || self.away.load(Ordering::Relaxed)
            || self.writing.lock().is_some_and(|since| since.elapsed() > STUCK)
    }

    /// Records that were handed over and are not in the ledger yet.
    pub fn backlog(&self) -> u64 {
        self.handed.load(Ordering::Relaxed).saturating_sub(self.written.load(Ordering::Relaxed))
    }
}

impl Recorder {
    /// An empty handoff, recycled if there is one.
    pub fn blank(&self, worker: usize, sale: SaleId, epoch: u64) -> Box<Handoff> {
        match self.spare.try_recv() {
            Ok(mut handoff) => {
                handoff.worker = worker;
                handoff.acks.clear();
                handoff.records.reset(sale, epoch);
                handoff
            }
            Err(_) => Box::new(Handoff { worker, records: Records::new(sale, epoch), acks: Vec::new() }),
        }
    }

    /// Takes back a handoff that is not needed, for [`Recorder::blank`].
    pub fn recycle(&self, handoff: Box<Handoff>) {
        let _ = self.spare_in.try_send(handoff);
    }

    /// Hands over without blocking. `Err` gives it back when too much waits already, or the writer is gone.
    pub fn hand_over(&self, handoff: Box<Handoff>) -> Result<(), Box<Handoff>> {
        let count = handoff.records.len() as u64;
        if self.counters.backlog() + count > MAX_BACKLOG {
            return Err(handoff);
        }
        // Counted first: the writer may be done before this thread goes on.
        self.counters.handed.fetch_add(count, Ordering::Relaxed);
        let Err(refused) = self.sender.try_send(Message::Records(handoff)) else { return Ok(()) };
        self.counters.handed.fetch_sub(count, Ordering::Relaxed);
        match refused {
            TrySendError::Full(Message::Records(handoff)) | TrySendError::Disconnected(Message::Records(handoff)) => {
                Err(handoff)
            }
            _ => Ok(()),
        }
    }

    /// Has the writer try again at once, should it be waiting after a failure.
    pub fn hurry(&self) {
        let _ = self.hurry.try_send(());
    }

    /// The channel itself, for plain threads that may block on it.
    pub fn sender(&self) -> &Sender<Message> {
        &self.sender
    }

    /// The counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{HoldNumber, Id, Record, RecordKind};
    use crate::worker::Begun;
    use crate::worker::testing::on_worker;

    #[test]
    fn answers_come_back_by_the_mailbox() {
        on_worker(|workers| {
            let (recorder, _inbox) = channel(4);
            let recorder = Arc::new(recorder);
            let mailbox = Arc::new(Mailbox::new(Bell::new(workers, 0).unwrap()));
            let (taken, used) = (mailbox.clone(), recorder.clone());
            workers.spawn(0, move || taken.run(&used)).unwrap();

            let connection = Bell::new(workers, 0).unwrap();
            let user: Id = "u".parse().unwrap();
            let outcome = Outcome::Purchased { item: user };
            let send = |written: bool| {
                let ask = |_| {
                    let waiter = Arc::new(Waiter::new(0, connection.waker()));
                    let Begun::Waits(ticket) = waiter.ask(|_| None) else { panic!("it waits") };
                    (waiter, ticket)
                };
                let asked: Vec<(Arc<Waiter<Outcome>>, Ticket)> = (0..3).map(ask).collect();
                let mut handoff = recorder.blank(0, SaleId(1), 1);
                assert!(handoff.acks.is_empty() && handoff.records.is_empty());
                let (kind, number) = (RecordKind::Purchase, HoldNumber(1));
                handoff.records.push(&Record { kind, number, user, item: user, at_ms: 1, expires_ms: 0 });
                let ack = |(waiter, ticket): &(Arc<Waiter<Outcome>>, Ticket)| Ack {
                    waiter: waiter.clone(),
                    ticket: *ticket,
                    outcome,
                };
                handoff.acks.extend(asked.iter().map(ack));
                // This connection has given up.
                asked[1].0.close(asked[1].1);
                mailbox.put(handoff, written);
                mailbox.ring();
                // The emptied handoff can be used again, and is not lost with its answers.
                while recorder.spare.is_empty() {
                    connection.wait();
                }
                asked.iter().map(|(waiter, ticket)| waiter.take(*ticket)).collect::<Vec<_>>()
            };
            assert_eq!(send(true), [Some(outcome), None, Some(outcome)]);
            assert_eq!(send(false), [Some(Outcome::Unavailable), None, Some(Outcome::Unavailable)]);
        });
    }
}
