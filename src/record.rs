//! The way of a record from the worker that decided it to the ledger's writer, and back.
//!
//! Owns the messages, the bounded channel and the recycling of buffers. Invariant: handing over never blocks a worker
//! and never grows: what finds the channel full is refused, for reconciliation to pick up. Refuses to know who
//! decides and who writes.

use crate::domain::{Outcome, Records, SaleId};
use crate::worker::{Bell, Ticket, Waiter};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An answer that waits until the records it travels with are in the ledger.
pub struct Ack {
    /// Who waits.
    pub waiter: Arc<Waiter<Outcome>>,
    /// For which of its requests.
    pub ticket: Ticket,
    /// The answer, once the ledger has the records.
    pub outcome: Outcome,
}

/// Records on their way to the ledger, with the answers that wait for them.
pub struct Handoff {
    /// The worker that decided them.
    pub worker: usize,
    /// The facts.
    pub records: Records,
    /// Who waits for them; they go back to the worker when there is any.
    pub acks: Vec<Ack>,
}

/// Undoes decisions that the ledger did not keep.
pub trait Undo: Send + Sync {
    /// Undoes what `refused` states, the newest first. `rest` adds to it what was handed over since: it is called once,
    /// while nothing more can be decided, since what was decided meanwhile may build on what is undone.
    fn undo(&self, refused: &mut Vec<Box<Handoff>>, rest: &mut dyn FnMut(&mut Vec<Box<Handoff>>));
}

/// What the writer is sent.
pub enum Message {
    /// Write these.
    Records(Box<Handoff>),
    /// Say when all that was sent before is written, given back or passed on.
    Flush(Sender<()>),
    /// Write what is there, then end.
    Finish,
}

/// Handoffs that come back to a worker from the writer.
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

    /// From the writer: `handoff` is in the ledger, or was given up. Ring afterwards.
    pub fn put(&self, handoff: Box<Handoff>, written: bool) {
        let _ = self.sender.send((handoff, written));
    }

    /// Whether something waits to be taken.
    pub fn has_mail(&self) -> bool {
        !self.receiver.is_empty()
    }

    /// The bell.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// On the worker: the next one that came back.
    pub fn take(&self) -> Option<(Box<Handoff>, bool)> {
        self.receiver.try_recv().ok()
    }
}

/// Messages that the channel to the writer holds. A message may be one record, so this alone would fill in a second
/// of small batches, or hold gigabytes of large ones: records are what is bounded.
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

/// A ledger that takes longer than this for a batch is as good as one that refuses: the answers run out of time.
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
    /// What is to be written.
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
