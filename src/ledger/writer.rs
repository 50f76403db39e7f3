//! The writer: one plain thread that puts records into the ledger in large batches.
//!
//! Owns the gathering (how long to linger), the retries, and the word to those who wait. Invariant: a record that was
//! handed over is written, given back to its worker with a refusal, or passed on as stale; never dropped. Refuses to
//! know which ledger it writes to.

use super::outage::Outage;
use super::{Append, LedgerError};
use crate::domain::Records;
use crate::record::{Counters, Handoff, Inbox, Mailbox, Message, Undo};
use crossbeam_channel::{RecvTimeoutError, Sender};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long it waits for more records when nobody waits for these: batches of 10,000 cost half of batches of 1,000.
const LINGER: Duration = Duration::from_millis(20);
/// Enough records to write without waiting for more.
const ENOUGH: usize = 10_000;
/// The first wait after a failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// The longest wait between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How often the writer asks, while it has no records to write, whether the ledger would take them: one that refused may take
/// records again, and one that took them may have lost its files.
const PROBE: Duration = Duration::from_secs(1);

/// What happens to a batch that the ledger cannot take.
#[derive(Clone)]
pub enum OnFailure {
    /// It is tried until it is taken: the decision stands, in Redis.
    Retry,
    /// It is given back, with all that was decided since: the decisions are undone, in memory.
    Undo(Arc<dyn Undo>),
}

/// What the writer is made of.
pub struct Writer<A> {
    /// What it is sent.
    pub inbox: Inbox,
    /// Where it writes.
    pub ledger: A,
    /// Where answers wait, one mailbox per worker.
    pub mailboxes: Arc<Vec<Mailbox>>,
    /// What happens to a batch that the ledger cannot take.
    pub on_failure: OnFailure,
    /// Where records of another epoch go; they are not the writer's to judge.
    pub stale: Sender<Box<Handoff>>,
}

/// What was gathered for one transaction.
#[derive(Default)]
struct Batch {
    handoffs: Vec<Box<Handoff>>,
    rows: usize,
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
    /// What its thread does. It ends after [`Message::Finish`], when all that came before is written.
    pub fn run(mut self) {
        let mut outage = Outage::new("the ledger does not take records", "the ledger takes records again");
        let mut asked = Instant::now();
        loop {
            let Some(mut batch) = self.gather(&outage) else { return };
            // Also while there are answers without records: in a sale that is sold out nothing else may come for an hour.
            if self.gives_back() && batch.rows == 0 && (batch.handoffs.is_empty() || asked.elapsed() >= PROBE) {
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

    /// Waits for records, then takes what is there, and lingers for more unless an answer waits. Comes back with
    /// nothing when it is time to say that `outage` is over, or to find out.
    fn gather(&self, outage: &Outage) -> Option<Batch> {
        let mut batch = Batch::default();
        let probe = self.gives_back().then_some(PROBE);
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

    /// The next message for `batch`, which is written at `until` at the latest; `None` if it is to be written now.
    fn next(&self, batch: &Batch, until: Instant) -> Option<Message> {
        // Not only while it waits: a thread that comes late to each message, as on a busy machine, always finds another.
        if batch.rows >= ENOUGH || Instant::now() >= until {
            return None;
        }
        if batch.awaited || self.gives_back() {
            self.inbox.receiver.try_recv().ok()
        } else {
            self.inbox.receiver.recv_deadline(until).ok()
        }
    }

    /// Whether what the ledger refuses is given back. Then the writer has to ask the ledger: a batch that was refused is not
    /// tried again, and no new batch may come, since a server that refuses is not healthy.
    fn gives_back(&self) -> bool {
        matches!(self.on_failure, OnFailure::Undo(_))
    }

    /// Asks the ledger whether it would take records: with a write during `outage`, otherwise with a look.
    fn ask(&mut self, outage: &mut Outage) {
        let answer = if outage.is_on() { self.ledger.probe() } else { self.ledger.look() };
        match answer {
            Ok(()) => outage.written(Instant::now()),
            Err(e) => outage.failed(Instant::now(), &e.to_string()),
        }
    }

    /// Writes `batch`, or gives it up.
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
                    // It took none of them, but it answers.
                    outage.written(Instant::now());
                    self.pass_on_stale(handoffs, current);
                }
                Err(LedgerError::Failed(why)) => {
                    outage.failed(Instant::now(), &why.to_string());
                    self.inbox.counters.refusing.store(true, Ordering::Relaxed);
                    if let OnFailure::Undo(decider) = &self.on_failure {
                        self.take_back(decider.as_ref(), batch);
                        return self.settle(&mut batch.handoffs, false);
                    }
                    // Whoever closes the epoch does not wait for long.
                    if self.inbox.hurry.recv_timeout(backoff) == Err(RecvTimeoutError::Disconnected) {
                        std::thread::sleep(backoff);
                    }
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
        }
    }

    /// Has `batch` undone, with all that is in the channel.
    fn take_back(&self, decider: &dyn Undo, batch: &mut Batch) {
        let mut others = Vec::new();
        decider.take_back(&mut batch.handoffs, &mut |refused| {
            while let Ok(message) = self.inbox.receiver.try_recv() {
                match message {
                    Message::Records(handoff) => refused.push(handoff),
                    other => others.push(other),
                }
            }
        });
        others.into_iter().for_each(|message| batch.add(message));
    }

    /// Hands back what was written or refused, and rings for it.
    fn settle(&self, handoffs: &mut Vec<Box<Handoff>>, written: bool) {
        let counters: &Counters = &self.inbox.counters;
        for handoff in handoffs.drain(..) {
            // After what it states is in the ledger, or undone in memory: then others may rest on that.
            counters.settled.fetch_add(1, Ordering::Release);
            if written {
                counters.written.fetch_add(handoff.records.len() as u64, Ordering::Relaxed);
            } else {
                counters.handed.fetch_sub(handoff.records.len() as u64, Ordering::Relaxed);
            }
            if handoff.acks.is_empty() {
                let _ = self.inbox.spare.try_send(handoff);
            } else if let Some(mailbox) = self.mailboxes.get(handoff.worker) {
                mailbox.put(handoff, written);
            }
        }
        self.mailboxes.iter().filter(|m| m.has_mail()).for_each(|m| m.bell().ring());
    }

    /// Answers those who wait for `handoff`: what becomes of its records will not be known in time.
    fn refuse(&self, handoff: &mut Handoff) {
        if handoff.acks.is_empty() {
            return;
        }
        let (worker, acks) = (handoff.worker, std::mem::take(&mut handoff.acks));
        if let Some(mailbox) = self.mailboxes.get(worker) {
            let records = Records::new(handoff.records.sale, handoff.records.epoch);
            mailbox.put(Box::new(Handoff { worker, records, acks }), false);
            mailbox.bell().ring();
        }
    }

    fn pass_on_stale(&self, handoffs: &mut Vec<Box<Handoff>>, current: u64) {
        let mut count = 0;
        for mut handoff in handoffs.extract_if(.., |h| h.records.epoch != current) {
            count += handoff.records.len() as u64;
            self.refuse(&mut handoff);
            let _ = self.stale.send(handoff);
        }
        tracing::warn!(
            "{count} records were decided under another epoch than the one in force, {current}: the keeper places them"
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
        assert!(writer.next(&batch, Instant::now()).is_none(), "there always is another one, on a busy machine");
        assert!(writer.next(&batch, far).is_some());
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(writer.next(&batch, soon).is_none() && Instant::now() >= soon, "nobody waits for it, so it waits");
        batch.awaited = true;
        assert!(writer.next(&batch, far).is_none(), "an answer waits");
        batch = Batch { rows: ENOUGH, ..Batch::default() };
        send();
        assert!(writer.next(&batch, far).is_none(), "there are enough");
    }
}
