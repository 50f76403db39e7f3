//! The writer: one plain thread that puts records into the ledger in large batches.
//!
//! Owns the gathering (how long to linger), the retries, and telling the workers the result. Invariant: each record that
//! was handed over is written, or given back to its worker with a refusal, or passed on as stale; none is dropped. Leaves
//! to the ledger how records are written, and to the keeper what becomes of stale ones.

use super::outage::Outage;
use super::{Append, LedgerError};
use crate::domain::Records;
use crate::record::{Counters, Handoff, Inbox, Mailbox, Message, Undo};
use crossbeam_channel::{RecvTimeoutError, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long the writer waits for more records if no answer waits for these: in batches of 10,000, a record costs half as
/// much as in batches of 1,000.
const LINGER: Duration = Duration::from_millis(20);
/// With this many records, the writer writes without waiting for more.
const ENOUGH: usize = 10_000;
/// The wait after the first failure; each further failure doubles it, up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// The longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How often the writer asks, while it has no records to write, whether the ledger would take some: a ledger that refused
/// may take records again, and a ledger that took them may have lost its files.
const PROBE: Duration = Duration::from_secs(1);

/// What happens to a batch that the ledger cannot take.
#[derive(Clone)]
pub enum OnFailure {
    /// The writer repeats it until the ledger takes it: the decision stands, in Redis.
    Retry,
    /// The batch and all that was decided since are undone, in memory, and answered with a refusal.
    Undo(Arc<dyn Undo>),
}

/// The writer's parts. [`Writer::run`] is its thread.
pub struct Writer<A> {
    /// The channel with the records to write.
    pub inbox: Inbox,
    /// The ledger that it writes to.
    pub ledger: A,
    /// Where written and refused handoffs with waiting answers go: one mailbox a worker.
    pub mailboxes: Arc<Vec<Mailbox>>,
    /// What happens to a batch that the ledger cannot take.
    pub on_failure: OnFailure,
    /// Where records of another epoch go: the keeper decides what becomes of them.
    pub stale: Sender<Box<Handoff>>,
}

/// What was gathered for one call of the ledger.
#[derive(Default)]
struct Batch {
    handoffs: Vec<Box<Handoff>>,
    /// Records in all handoffs.
    rows: usize,
    /// Whether an answer, or the sender of a flush, waits for this batch.
    awaited: bool,
    flushes: Vec<Sender<()>>,
    finish: bool,
}

impl Batch {
    fn add(&mut self, message: Message) {
        match message {
            Message::Records(handoff) => {
                self.rows += handoff.records.len();
                self.awaited |= !handoff.acks.is_empty();
                self.handoffs.push(handoff);
            }
            Message::Flush(done) => {
                self.flushes.push(done);
                self.awaited = true;
            }
            Message::Finish => {
                self.finish = true;
                self.awaited = true;
            }
        }
    }
}

impl<A: Append + 'static> Writer<A> {
    /// The writer's thread. It ends after [`Message::Finish`], once all that was sent before is written.
    pub fn run(mut self) {
        let refuses = if self.undoes() {
            "the ledger does not take records: their requests are answered 503"
        } else {
            "the ledger does not take records: the writer keeps them and tries again"
        };
        let mut outage = Outage::new(refuses, "the ledger takes records again");
        let mut asked = Instant::now();
        loop {
            let Some(mut batch) = self.gather(&outage) else { return };
            // A handoff may have no records, only refusals that wait for earlier records. Writing such a batch asks nothing of
            // the ledger, and a sold-out sale may send no other for an hour.
            if self.undoes() && batch.rows == 0 && (batch.handoffs.is_empty() || asked.elapsed() >= PROBE) {
                asked = Instant::now();
                self.ask(&mut outage);
            }
            self.write(&mut batch, &mut outage);
            outage.settle(Instant::now());
            self.inbox.counters.refusing.store(outage.is_on(), Ordering::Relaxed);
            for done in batch.flushes {
                let _ = done.try_send(());
            }
            if batch.finish {
                return;
            }
        }
    }

    /// Waits for records, then takes all that is in the channel, and lingers for more unless an answer waits. Returns an
    /// empty batch when it is time to log the end of `outage`, or to ask the ledger; `None` once all senders are gone.
    fn gather(&self, outage: &Outage) -> Option<Batch> {
        let mut batch = Batch::default();
        let probe = self.undoes().then_some(PROBE);
        let first = match outage.until_quiet(Instant::now()).or(probe) {
            None => self.inbox.receiver.recv().ok(),
            Some(wait) => match self.inbox.receiver.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => return Some(batch),
                first => first.ok(),
            },
        };
        batch.add(first?);
        let until = Instant::now() + LINGER;
        while let Some(message) = self.next(&batch, until) {
            batch.add(message);
        }
        Some(batch)
    }

    /// The next message for `batch`, which is written at `until` at the latest; `None` if it must be written now.
    fn next(&self, batch: &Batch, until: Instant) -> Option<Message> {
        // Checked before each message: on a busy machine the writer may find another message each time that it runs.
        if batch.rows >= ENOUGH || Instant::now() >= until {
            return None;
        }
        if batch.awaited || self.undoes() {
            self.inbox.receiver.try_recv().ok()
        } else {
            self.inbox.receiver.recv_deadline(until).ok()
        }
    }

    /// Whether what the ledger refuses is undone. Then the writer has to ask the ledger whether it takes records again: a
    /// refused batch is not repeated, and load balancers send no requests to an instance that is not healthy.
    fn undoes(&self) -> bool {
        matches!(self.on_failure, OnFailure::Undo(_))
    }

    /// Asks the ledger whether it would take records: by [`Append::probe`] during `outage`, otherwise by [`Append::look`].
    fn ask(&mut self, outage: &mut Outage) {
        let answer = if outage.is_on() { self.ledger.probe() } else { self.ledger.look() };
        match answer {
            Ok(()) => outage.written(Instant::now()),
            Err(e) => outage.failed(Instant::now(), &e.to_string()),
        }
    }

    /// Writes `batch`, or has it undone. Returns once each handoff is settled or passed on as stale.
    fn write(&mut self, batch: &mut Batch, outage: &mut Outage) {
        let mut backoff = MIN_BACKOFF;
        loop {
            let handoffs = &mut batch.handoffs;
            let records: Vec<&Records> = handoffs.iter().map(|h| &h.records).filter(|r| !r.is_empty()).collect();
            let nothing = records.is_empty();
            *self.inbox.counters.writing.lock() = Some(Instant::now());
            let result = if nothing { Ok(()) } else { self.ledger.append(&records) };
            *self.inbox.counters.writing.lock() = None;
            match result {
                Ok(()) => {
                    if !nothing {
                        outage.written(Instant::now());
                    }
                    return self.settle(handoffs, true);
                }
                Err(LedgerError::Stale { current }) => {
                    // The ledger took none of them, but it works.
                    outage.written(Instant::now());
                    self.pass_on_stale(handoffs, current);
                }
                Err(LedgerError::Failed(why)) => {
                    outage.failed(Instant::now(), &why.to_string());
                    self.inbox.counters.refusing.store(true, Ordering::Relaxed);
                    if let OnFailure::Undo(decider) = &self.on_failure {
                        self.undo(decider.as_ref(), batch);
                        return self.settle(&mut batch.handoffs, false);
                    }
                    // A hurry signal ends the wait: the keeper has to close the epoch within seconds.
                    if self.inbox.hurry.recv_timeout(backoff) == Err(RecvTimeoutError::Disconnected) {
                        std::thread::sleep(backoff);
                    }
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    /// Has `batch` undone, with all that is in the channel.
    fn undo(&self, decider: &dyn Undo, batch: &mut Batch) {
        let mut others = Vec::new();
        decider.undo(&mut batch.handoffs, &mut |refused| {
            while let Ok(message) = self.inbox.receiver.try_recv() {
                match message {
                    Message::Records(handoff) => refused.push(handoff),
                    other => others.push(other),
                }
            }
        });
        others.into_iter().for_each(|message| batch.add(message));
    }

    /// Sends handoffs that were written or refused back to their workers if answers wait for them, and rings those workers;
    /// recycles the others.
    fn settle(&self, handoffs: &mut Vec<Box<Handoff>>, written: bool) {
        let counters: &Counters = &self.inbox.counters;
        for handoff in handoffs.drain(..) {
            // Counted after the write or the undoing: a worker that sees this count relies on the records being in the
            // ledger, or undone in memory.
            counters.settled.fetch_add(1, Ordering::Release);
            if written {
                counters.written.fetch_add(handoff.records.len() as u64, Ordering::Relaxed);
            } else {
                let before = counters.handed.fetch_sub(handoff.records.len() as u64, Ordering::Relaxed);
                debug_assert!(before >= handoff.records.len() as u64, "records are counted before they are sent");
            }
            if handoff.acks.is_empty() {
                let _ = self.inbox.spare.try_send(handoff);
            } else if let Some(mailbox) = self.mailboxes.get(handoff.worker) {
                mailbox.put(handoff, written);
            }
        }
        self.mailboxes.iter().for_each(Mailbox::ring);
    }

    /// Refuses the answers that wait for the records of `handoff`: the keeper places these later than an answer can wait.
    fn refuse(&self, handoff: &mut Handoff) {
        if handoff.acks.is_empty() {
            return;
        }
        let worker = handoff.worker;
        let acks = std::mem::take(&mut handoff.acks);
        if let Some(mailbox) = self.mailboxes.get(worker) {
            let records = Records::new(handoff.records.sale, handoff.records.epoch);
            mailbox.put(Box::new(Handoff { worker, records, acks }), false);
            mailbox.ring();
        }
    }

    /// Passes on the handoffs of another epoch than `current`.
    fn pass_on_stale(&self, handoffs: &mut Vec<Box<Handoff>>, current: u64) {
        let mut count = 0;
        for mut handoff in handoffs.extract_if(.., |h| h.records.epoch != current) {
            count += handoff.records.len() as u64;
            self.refuse(&mut handoff);
            let _ = self.stale.send(handoff);
        }
        tracing::warn!(
            "{count} records were decided under an epoch that is over (the ledger's is {current}): they are not written, the keeper \
             offers them to the sale"
        );
        self.inbox.counters.stale.fetch_add(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::code::Codes;
    use crate::domain::{EMBEDDED_EPOCH, SaleId};
    use crate::ledger::sqlite::SqliteLedger;

    #[test]
    fn a_batch_waits_for_more_but_not_longer_than_it_may() {
        let dir = tempfile::TempDir::new().unwrap();
        let ledger = SqliteLedger::open(dir.path()).unwrap().appender(Codes::new(&[7; 16])).unwrap();
        let (recorder, inbox) = crate::record::channel(4);
        let (mailboxes, on_failure) = (Arc::new(Vec::new()), OnFailure::Retry);
        let (stale, _stale) = crossbeam_channel::unbounded();
        let writer = Writer { inbox, ledger, mailboxes, on_failure, stale };
        let send = || {
            let handoff = recorder.blank(0, SaleId(1_700_000_000), EMBEDDED_EPOCH);
            recorder.sender().send(Message::Records(handoff)).unwrap();
        };
        let far = Instant::now() + Duration::from_secs(3600);
        let mut batch = Batch::default();
        send();
        assert!(writer.next(&batch, Instant::now()).is_none(), "the time is over, although a message is there");
        assert!(writer.next(&batch, far).is_some());
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(writer.next(&batch, soon).is_none() && Instant::now() >= soon, "no answer waits for it, so it lingers");
        batch.awaited = true;
        assert!(writer.next(&batch, far).is_none(), "an answer waits");
        batch = Batch { rows: ENOUGH, ..Batch::default() };
        send();
        assert!(writer.next(&batch, far).is_none(), "there are enough");
    }
}
