//! The embedded inventory: the memory inventory behind one lock, answered once the ledger has it.
//!
//! Owns the running sales of this one process, the gathering of a turn's requests, and the undoing of what the ledger
//! did not take. Invariant: nothing is answered that is not on disk, and the lock is never held across a wait.
//! Refuses to know SQL and HTTP.

use super::memory::{Decision, MemorySale};
use super::{Gate, Inventory};
use crate::code::{MAX_COUNTER, hold_number};
use crate::core::{Bell, Cores, Ticket, Waiter};
use crate::domain::{HoldNumber, Outcome, Record, Request, SaleId};
use crate::record::{Ack, Handoff, Recorder};
use arc_swap::ArcSwap;
use may::io::WaitIoWaker;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The sales that are open, each behind a lock of its own.
pub type Sales = Arc<ArcSwap<Vec<Arc<Mutex<MemorySale>>>>>;

/// This machine's clock, unix milliseconds.
pub fn wall_clock_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// What the embedded inventory is made of.
pub struct Parts {
    /// The sales that are open, from the keeper.
    pub sales: Sales,
    /// What may be sold, from the keeper.
    pub gate: Gate,
    /// This process' instance number.
    pub instance: u64,
    /// The way to the ledger.
    pub recorder: Arc<Recorder>,
}

struct Pending {
    waiter: Arc<Waiter>,
    ticket: Ticket,
    request: Request,
}

/// One core's gathering of requests.
struct Desk {
    core: usize,
    waker: WaitIoWaker,
    pending: Mutex<Vec<Pending>>,
}

/// The embedded inventory.
pub struct EmbeddedInventory {
    parts: Parts,
    counter: AtomicU64,
    desks: Vec<Desk>,
}

impl EmbeddedInventory {
    /// Starts a driver on every core.
    pub fn start(cores: Cores, parts: Parts) -> io::Result<Arc<EmbeddedInventory>> {
        let mut bells = Vec::with_capacity(cores.count());
        let mut desks = Vec::with_capacity(cores.count());
        for core in cores.all() {
            let bell = Bell::new(cores, core)?;
            desks.push(Desk { core, waker: bell.waker(), pending: Mutex::new(Vec::new()) });
            bells.push(bell);
        }
        let inventory = Arc::new(EmbeddedInventory { parts, counter: AtomicU64::new(0), desks });
        for (core, bell) in bells.into_iter().enumerate() {
            let inventory = inventory.clone();
            cores.spawn(core, move || inventory.drive(core, &bell))?;
        }
        Ok(inventory)
    }

    /// Decides the requests of each turn together, and hands them over in one piece.
    fn drive(&self, core: usize, bell: &Bell) {
        let mut batch = Vec::new();
        let Some(desk) = self.desks.get(core) else { return };
        loop {
            bell.wait();
            std::mem::swap(&mut batch, &mut *desk.pending.lock());
            let sales = self.parts.sales.load_full();
            let now_ms = wall_clock_ms();
            while let Some(sale) = batch.first().and_then(|p| self.sale_of(&sales, &p.request, now_ms)) {
                self.decide(desk, &sale, now_ms, &mut batch);
            }
            for pending in batch.drain(..) {
                pending.waiter.deliver(pending.ticket, Outcome::Unavailable);
            }
        }
    }

    fn sale_of(
        &self,
        sales: &[Arc<Mutex<MemorySale>>],
        request: &Request,
        now_ms: u64,
    ) -> Option<Arc<Mutex<MemorySale>>> {
        let wanted = |sale: &MemorySale| match request {
            Request::Checkout { .. } => sale.terms().is_on(now_ms),
            Request::Purchase { hold } => sale.terms().sale == hold.sale,
        };
        sales.iter().find(|sale| wanted(&sale.lock())).cloned()
    }

    /// Decides those of `batch` that are about `sale`, and leaves the others.
    fn decide(&self, desk: &Desk, sale: &Mutex<MemorySale>, now_ms: u64, batch: &mut Vec<Pending>) {
        let mut state = sale.lock();
        let (id, on) = (state.terms().sale, state.terms().is_on(now_ms));
        let mut handoff = self.parts.recorder.blank(desk.core, id, crate::ledger::sqlite::EPOCH);
        batch.retain(|pending| {
            let outcome = match self.decide_one(&mut state, now_ms, (id, on), &pending.request) {
                None => return true,
                Some((outcome, record)) => {
                    record.iter().for_each(|record| handoff.records.push(record));
                    outcome
                }
            };
            // Whatever reveals a record waits for it, also when it is another request's that is still on its way:
            // the writer writes in the order of handing over.
            let reveals =
                matches!(outcome, Outcome::Held { .. } | Outcome::Purchased { .. } | Outcome::AlreadyPurchased { .. });
            if reveals {
                handoff.acks.push(Ack { waiter: pending.waiter.clone(), ticket: pending.ticket, outcome });
            } else {
                pending.waiter.deliver(pending.ticket, outcome);
            }
            false
        });
        if handoff.acks.is_empty() {
            self.parts.recorder.give_back(handoff);
            return;
        }
        // Under the lock, so that the writer gets the records in the order in which they were decided.
        if let Err(refused) = self.parts.recorder.hand_over(handoff) {
            undo(&mut state, &refused);
            drop(state);
            self.give_up(refused);
        }
    }

    /// The decision and its record; `None` if the request is about another sale.
    fn decide_one(
        &self,
        state: &mut MemorySale,
        now_ms: u64,
        (id, on): (SaleId, bool),
        request: &Request,
    ) -> Option<(Outcome, Option<Record>)> {
        let decision = match *request {
            Request::Checkout { user, item } if on => match self.number() {
                Some(number) => state.checkout(now_ms, number, user, item),
                None => return Some((Outcome::Unavailable, None)),
            },
            Request::Purchase { hold } if hold.sale == id => state.purchase(now_ms, hold.number),
            _ => return None,
        };
        Some(match decision {
            Decision::Decided { outcome, record } => (outcome, record),
            Decision::NotOn { now_ms }
                if now_ms >= state.terms().ends_ms && matches!(request, Request::Purchase { .. }) =>
            {
                (Outcome::InvalidCode, None)
            }
            Decision::NotOn { .. } | Decision::Duplicate => (Outcome::Unavailable, None),
        })
    }

    fn number(&self) -> Option<HoldNumber> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        hold_number(self.parts.instance, Some(counter).filter(|c| *c <= MAX_COUNTER)?)
    }

    fn give_up(&self, mut handoff: Box<Handoff>) {
        for ack in handoff.acks.drain(..) {
            ack.waiter.deliver(ack.ticket, Outcome::Unavailable);
        }
        self.parts.recorder.give_back(handoff);
    }
}

/// Takes back what `handoff` records, the newest first.
fn undo(state: &mut MemorySale, handoff: &Handoff) {
    let records: Vec<Record> = handoff.records.iter().filter_map(|r| r.to_owned().ok()).collect();
    records.iter().rev().for_each(|record| state.undo(record));
}

impl Inventory for EmbeddedInventory {
    fn submit(&self, waiter: &Arc<Waiter>, ticket: Ticket, request: &Request) -> Option<Outcome> {
        let Some(desk) = self.desks.get(waiter.core()) else { return Some(Outcome::Unavailable) };
        let view = self.parts.gate.load();
        if !view.selling {
            return Some(Outcome::Unavailable);
        }
        if let Request::Purchase { hold } = request
            && let Err(outcome) = view.judge_code(hold.sale, wall_clock_ms())
        {
            return Some(outcome);
        }
        let mut pending = desk.pending.lock();
        pending.push(Pending { waiter: waiter.clone(), ticket, request: *request });
        if pending.len() == 1 {
            desk.waker.wakeup();
        }
        None
    }

    fn tick(&self, _core: usize) {}

    fn written(&self, _core: usize, mut handoff: Box<Handoff>, ok: bool) {
        if !ok {
            let sales = self.parts.sales.load();
            if let Some(sale) = sales.iter().find(|sale| sale.lock().terms().sale == handoff.records.sale) {
                undo(&mut sale.lock(), &handoff);
            }
            return self.give_up(handoff);
        }
        for ack in handoff.acks.drain(..) {
            ack.waiter.deliver(ack.ticket, ack.outcome);
        }
        self.parts.recorder.give_back(handoff);
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn undecided(&self, core: usize) -> usize {
        self.desks.get(core).map_or(0, |desk| desk.pending.lock().len())
    }
}
