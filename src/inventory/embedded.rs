//! The embedded inventory: the memory inventory behind one lock, answered once the ledger has it.
//!
//! Owns the running sales of this one process, the gathering of a turn's requests, the sold-out cache of each worker, and
//! the undoing of decisions that the ledger did not take. Invariants: an answer is sent only when its record, and each record
//! that it rests on, is on disk; the writer gets the records in the order in which they were decided; if a decision is undone,
//! so is each later one; the lock is never held across a wait. Leaves SQL to the ledger, and HTTP to the service.

mod unwritten;

use super::memory::{Decision, MemorySale};
use super::sold_out::SoldOutCache;
use super::{Inventory, Progress, SharedView, View};
use crate::code::HoldNumbers;
use crate::domain::{EMBEDDED_EPOCH, Id, Outcome, Record, Request, SaleId, Terms};
use crate::record::{Ack, Counters, Handoff, Recorder, Undo};
use crate::worker::{Bell, Ticket, Waiter, Workers};
use arc_swap::Cache;
use may::io::WaitIoWaker;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use unwritten::Unwritten;

/// The sales that are open, by their start, all behind one lock. A turn takes the lock once and hands its records over
/// before it releases it: so each holder of the lock finds every decision handed over.
#[derive(Clone, Default)]
pub struct Sales(Arc<Mutex<State>>);

/// What the lock guards.
#[derive(Default)]
struct State {
    open: Vec<MemorySale>,
    unwritten: Unwritten,
}

impl Sales {
    /// The terms of the open sales, by their start.
    pub fn terms(&self) -> Vec<Terms> {
        self.0.lock().open.iter().map(|sale| *sale.terms()).collect()
    }

    /// How far an open sale has come by what the ledger has; `None` if it is not open, or while what was decided in it is still on
    /// its way: that can be undone.
    pub fn progress(&self, sale: SaleId, counters: &Counters) -> Option<Progress> {
        let state = self.0.lock();
        // Under the lock, as in `decide`.
        let settled = counters.settled.load(Ordering::Acquire);
        let open = state.open.iter().find(|open| open.terms().sale == sale)?;
        state.unwritten.is_stock_settled(sale, settled).then(|| open.progress())
    }

    /// Opens `sale`.
    pub fn open(&self, sale: MemorySale) {
        let mut state = self.0.lock();
        state.open.push(sale);
        state.open.sort_by_key(|sale| sale.terms().starts_ms);
    }

    /// Forgets the sales that ended before `ms` (unix milliseconds).
    pub fn forget(&self, ms: u64) {
        let ended: Vec<MemorySale> = self.0.lock().open.extract_if(.., |sale| sale.terms().ends_ms < ms).collect();
        // Not under the lock: there may be a million holds to free.
        drop(ended);
    }
}

impl Undo for Sales {
    fn undo(&self, refused: &mut Vec<Box<Handoff>>, rest: &mut dyn FnMut(&mut Vec<Box<Handoff>>)) {
        let mut state = self.0.lock();
        rest(refused);
        refused.iter().rev().for_each(|handoff| undo(&mut state.open, handoff));
    }
}

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
    pub view: SharedView,
    /// The numbers of the holds that this process gives out.
    pub numbers: HoldNumbers,
    /// The way to the ledger.
    pub recorder: Arc<Recorder>,
}

struct Pending {
    waiter: Arc<Waiter<Outcome>>,
    ticket: Ticket,
    request: Request,
}

/// One worker's gathering of requests.
struct WorkerQueue {
    worker: usize,
    waker: WaitIoWaker,
    /// Locked by the worker's own coroutines, never across a wait, and by [`EmbeddedInventory::undecided`].
    waiting: Mutex<Waiting>,
}

/// What a worker's lock guards.
struct Waiting {
    view: Cache<SharedView, Arc<View>>,
    requests: Vec<Pending>,
    /// That no item is free, by the last decision whose records the ledger has.
    sold_out: Option<SoldOutCache>,
}

impl Waiting {
    fn new(view: &SharedView) -> Waiting {
        Waiting { view: Cache::new(view.clone()), requests: Vec::new(), sold_out: None }
    }

    /// The refusal of `request` that needs no decision, if there is one. `clock` is read only while a sale is known to be
    /// sold out.
    fn refusal(&mut self, request: &Request, clock: impl FnOnce() -> Instant) -> Option<Outcome> {
        let view = self.view.load();
        if !view.selling {
            return Some(Outcome::Unavailable);
        }
        match request {
            Request::Checkout { .. } => {
                let retry_ms = self.sold_out?.retry_ms(EMBEDDED_EPOCH, clock());
                if retry_ms.is_none() {
                    self.sold_out = None;
                }
                retry_ms.map(|retry_ms| Outcome::SoldOut { retry_ms })
            }
            Request::Purchase { hold } => view.check_code(hold.sale, wall_clock_ms()).err(),
        }
    }
}

/// The embedded inventory.
pub struct EmbeddedInventory {
    parts: Parts,
    queues: Vec<WorkerQueue>,
}

impl EmbeddedInventory {
    /// Starts a driver on every worker.
    pub fn start(workers: Workers, parts: Parts) -> io::Result<Arc<EmbeddedInventory>> {
        let mut bells = Vec::with_capacity(workers.count());
        let mut queues = Vec::with_capacity(workers.count());
        for worker in workers.all() {
            let bell = Bell::new(workers, worker)?;
            queues.push(WorkerQueue { worker, waker: bell.waker(), waiting: Mutex::new(Waiting::new(&parts.view)) });
            bells.push(bell);
        }
        let inventory = Arc::new(EmbeddedInventory { parts, queues });
        for (worker, bell) in bells.into_iter().enumerate() {
            let inventory = inventory.clone();
            workers.spawn_vital(worker, "the driver of a worker's requests", move || inventory.drive(worker, &bell))?;
        }
        Ok(inventory)
    }

    /// Decides the requests of each turn together.
    fn drive(&self, worker: usize, bell: &Bell) {
        let Some(queue) = self.queues.get(worker) else { return };
        let (mut batch, mut told) = (Vec::new(), Vec::new());
        loop {
            bell.wait();
            std::mem::swap(&mut batch, &mut queue.waiting.lock().requests);
            self.decide(queue, &mut batch, &mut told);
            told.drain(..).for_each(Ack::deliver);
        }
    }

    /// Decides `batch` in its order. Answers that need not wait for the ledger are left in `told`.
    fn decide(&self, queue: &WorkerQueue, batch: &mut Vec<Pending>, told: &mut Vec<Ack>) {
        let counters = self.parts.recorder.counters();
        let mut state = self.parts.sales.0.lock();
        // Under the lock: what the writer was refused is undone before it counts as settled.
        let (settled, refusing) = (counters.settled.load(Ordering::Acquire), counters.is_refusing());
        let (now, now_ms) = (Instant::now(), wall_clock_ms());
        let mut handoff: Option<Box<Handoff>> = None;
        for Pending { waiter, ticket, request } in batch.drain(..) {
            let Decided { sale, outcome, fact } = self.decide_one(&mut state.open, now_ms, &request);
            let ack = Ack { waiter, ticket, outcome };
            if fact.is_none() && state.unwritten.is_settled(sale, &request, &outcome, settled, refusing) {
                if let Outcome::SoldOut { retry_ms } = outcome {
                    queue.waiting.lock().sold_out = Some(SoldOutCache::new(EMBEDDED_EPOCH, now, 0, retry_ms));
                }
                told.push(ack);
                continue;
            }
            // Whatever states or reveals a fact, or rests on one that is still on its way, waits for it: the writer writes in
            // the order of handing over. A handoff is of one sale; at an edge there may be two in a turn.
            if let Some(other) = handoff.take_if(|handoff| handoff.records.sale != sale) {
                self.hand_over(&mut state, other, told);
            }
            let handoff = handoff.get_or_insert_with(|| self.parts.recorder.blank(queue.worker, sale, EMBEDDED_EPOCH));
            if let Some(record) = fact {
                state.unwritten.note(sale, &record);
                handoff.records.push(&record);
            }
            handoff.acks.push(ack);
        }
        // Under the lock, so that the writer gets the records in the order in which they were decided.
        if let Some(handoff) = handoff {
            self.hand_over(&mut state, handoff, told);
        }
    }

    fn decide_one(&self, open: &mut [MemorySale], now_ms: u64, request: &Request) -> Decided {
        let asked = open.iter_mut().find(|sale| match request {
            Request::Checkout { .. } => sale.terms().is_on(now_ms),
            Request::Purchase { hold } => sale.terms().sale == hold.sale,
        });
        let refused = |sale: SaleId, outcome: Outcome| Decided { sale, outcome, fact: None };
        let Some(sale) = asked else { return refused(SaleId(0), Outcome::Unavailable) };
        let terms = *sale.terms();
        let decision = match *request {
            Request::Checkout { user, item } => checkout(sale, &self.parts.numbers, now_ms, (user, item)),
            Request::Purchase { hold } => sale.purchase(now_ms, hold.number),
        };
        match decision {
            Decision::Decided { outcome, record } => Decided { sale: terms.sale, outcome, fact: record },
            // No number is left, or none that is free was found.
            Decision::NotOn { .. } | Decision::Duplicate => refused(terms.sale, Outcome::Unavailable),
        }
    }

    /// Hands over, or undoes at once what finds the channel full.
    fn hand_over(&self, state: &mut State, handoff: Box<Handoff>, told: &mut Vec<Ack>) {
        match self.parts.recorder.hand_over(handoff) {
            Ok(()) => state.unwritten.handed_over(),
            Err(mut refused) => {
                undo(&mut state.open, &refused);
                told.extend(refused.acks.drain(..).map(|ack| Ack { outcome: Outcome::Unavailable, ..ack }));
                self.parts.recorder.recycle(refused);
            }
        }
    }
}

/// How many numbers that are taken already one checkout passes over. A look takes less than a microsecond.
const NUMBERS_TRIED: usize = 256;

/// A checkout under the next number that the sale does not know yet. The numbers of a life start at random, so a number is taken
/// only where the ledger was restored to an earlier time and this life started inside the numbers of a later one. Then many
/// in a row may be taken: what one checkout has passed over is gone, and the next checkout goes on behind it.
fn checkout(sale: &mut MemorySale, numbers: &HoldNumbers, now_ms: u64, (user, item): (Id, Id)) -> Decision {
    for _ in 0..NUMBERS_TRIED {
        let Some(number) = numbers.peek() else { break };
        let decision = sale.checkout(now_ms, number, user, item);
        // Only now, and under the lock: a refusal uses up no number.
        match decision {
            Decision::Duplicate => numbers.take(1),
            Decision::Decided { outcome: Outcome::Held { .. }, .. } => {
                numbers.take(1);
                return decision;
            }
            _ => return decision,
        };
    }
    Decision::Duplicate
}

/// What became of a request.
struct Decided {
    /// The sale that was asked.
    sale: SaleId,
    /// The answer.
    outcome: Outcome,
    /// What the ledger must keep before the answer is sent.
    fact: Option<Record>,
}

/// Takes back what `handoff` records, the newest first. A sale that is forgotten needs nothing.
fn undo(sales: &mut [MemorySale], handoff: &Handoff) {
    let Some(sale) = sales.iter_mut().find(|sale| sale.terms().sale == handoff.records.sale) else { return };
    let records: Vec<Record> = handoff.records.iter().filter_map(|r| r.to_owned().ok()).collect();
    records.iter().rev().for_each(|record| sale.undo(record));
}

impl Inventory for EmbeddedInventory {
    fn submit(&self, waiter: &Arc<Waiter<Outcome>>, ticket: Ticket, request: &Request) -> Option<Outcome> {
        crate::worker::debug_assert_on(waiter.worker());
        let Some(queue) = self.queues.get(waiter.worker()) else { return Some(Outcome::Unavailable) };
        let mut waiting = queue.waiting.lock();
        if let Some(refusal) = waiting.refusal(request, Instant::now) {
            return Some(refusal);
        }
        waiting.requests.push(Pending { waiter: waiter.clone(), ticket, request: *request });
        if waiting.requests.len() == 1 {
            queue.waker.wakeup();
        }
        None
    }

    fn tick(&self, _worker: usize) {}

    fn is_ready(&self) -> bool {
        // Nothing is decided that the ledger does not take, nor without a sale that is on.
        let on = self.parts.view.load().sale_at(wall_clock_ms()).is_some();
        on && !self.parts.recorder.counters().is_refusing()
    }

    fn undecided(&self, worker: usize) -> usize {
        self.queues.get(worker).map_or(0, |queue| queue.waiting.lock().requests.len())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::domain::{HoldKey, HoldNumber, Records};
    use crate::inventory::memory::Stock;

    const TERMS: Terms =
        Terms { sale: SaleId(1), items: 2, user_limit: 2, hold_ms: 100, starts_ms: 1_000, ends_ms: 2_000 };

    fn decide(sales: &Sales, sale: SaleId, work: impl FnOnce(&mut MemorySale) -> Decision) -> Box<Handoff> {
        let mut records = Records::new(sale, EMBEDDED_EPOCH);
        let mut state = sales.0.lock();
        let sale = state.open.iter_mut().find(|open| open.terms().sale == sale).unwrap();
        if let Decision::Decided { record: Some(record), .. } = work(sale) {
            records.push(&record);
        }
        Box::new(Handoff { worker: 0, records, acks: Vec::new() })
    }

    #[test]
    fn a_worker_refuses_by_itself_while_no_item_can_be_free() {
        let view: SharedView = Arc::new(arc_swap::ArcSwap::from_pointee(View::closed()));
        let (mut waiting, at) = (Waiting::new(&view), Instant::now());
        let user = "u".parse().unwrap();
        let checkout = Request::Checkout { user, item: user };
        let purchase = Request::Purchase { hold: HoldKey { sale: SaleId(1), number: HoldNumber(1) } };
        assert_eq!(waiting.refusal(&checkout, || at), Some(Outcome::Unavailable), "nothing is sold yet");
        let ends_ms = wall_clock_ms() + 60_000;
        let sale = Terms { starts_ms: 1_000, ends_ms, ..TERMS };
        view.store(Arc::new(View { selling: true, sales: vec![sale], ..View::closed() }));
        assert_eq!(waiting.refusal(&checkout, || at), None);
        waiting.sold_out = Some(SoldOutCache::new(EMBEDDED_EPOCH, at, 0, 400));
        assert_eq!(waiting.refusal(&checkout, || at), Some(Outcome::SoldOut { retry_ms: 399 }));
        assert_eq!(waiting.refusal(&purchase, || at), None, "a hold can be redeemed all the same");
        assert_eq!(waiting.refusal(&checkout, || at + std::time::Duration::from_millis(399)), None);
    }

    #[test]
    fn a_sale_has_come_as_far_as_the_ledger_knows() {
        let (sales, counters) = (Sales::default(), Counters::default());
        sales.open(MemorySale::open(Terms { items: 1, ..TERMS }, [], 0));
        let user = "u".parse().unwrap();
        let mut state = sales.0.lock();
        let decision = state.open[0].checkout(1_000, HoldNumber(1), user, user);
        let Decision::Decided { record: Some(record), .. } = decision else { panic!("{decision:?}") };
        state.unwritten.note(SaleId(1), &record);
        state.unwritten.handed_over();
        drop(state);
        assert_eq!(sales.progress(SaleId(1), &counters), None, "the ledger may refuse it");
        counters.settled.store(1, Ordering::Release);
        let progress = Progress { sold_out_ms: Some(1_000), taken: 1, purchased: 0 };
        assert_eq!(sales.progress(SaleId(1), &counters), Some(progress));
    }

    #[test]
    fn a_checkout_passes_over_the_numbers_that_are_taken() {
        let terms = Terms { items: 2_000, user_limit: 2_000, ..TERMS };
        let (mut sale, user) = (MemorySale::open(terms, [], 0), "u".parse().unwrap());
        let buy = |start: u64| {
            let numbers = HoldNumbers::starting_at(1, start);
            move |sale: &mut MemorySale| match checkout(sale, &numbers, 1_000, (user, user)) {
                Decision::Decided { outcome: Outcome::Held { hold, .. }, .. } => Some(hold.number),
                _ => None,
            }
        };
        let before = buy(10);
        let taken: Vec<HoldNumber> = (0..600).map(|_| before(&mut sale).unwrap()).collect();
        // A life that starts inside the numbers of another one.
        let life = buy(400);
        let number = life(&mut sale).unwrap();
        assert!(!taken.contains(&number));
        assert_eq!(before(&mut sale).map(|number| number.0), Some(number.0 + 1));
        // Where more are taken than one checkout passes over, a later one goes on behind them.
        let life = buy(10);
        let tries = (0..9).find(|_| life(&mut sale).is_some());
        assert_eq!(tries, Some(2));
    }

    #[test]
    fn what_the_ledger_refuses_is_undone_newest_first_with_all_that_came_after() {
        let sales = Sales::default();
        let later = Terms { sale: SaleId(2), starts_ms: 2_000, ends_ms: 3_000, ..TERMS };
        [later, TERMS].into_iter().for_each(|terms| sales.open(MemorySale::open(terms, [], 0)));
        assert_eq!(sales.terms(), [TERMS, later]);
        let user: crate::domain::Id = "u".parse().unwrap();
        let take = |sale: SaleId, now: u64, number: u64| {
            decide(&sales, sale, |sale| sale.checkout(now, HoldNumber(number), user, user))
        };
        take(SaleId(1), 1_000, 1);
        let mut refused = vec![
            decide(&sales, SaleId(1), |sale| sale.purchase(1_050, HoldNumber(1))),
            take(SaleId(1), 1_060, 2),
            take(SaleId(2), 2_000, 3),
        ];
        let mut after = vec![decide(&sales, SaleId(1), |sale| sale.purchase(1_070, HoldNumber(2)))];
        sales.undo(&mut refused, &mut |refused| {
            assert!(sales.0.is_locked(), "nothing is decided while the rest is gathered");
            refused.append(&mut after);
        });
        assert_eq!(refused.len(), 4, "all of them get their answer");
        let mut state = sales.0.lock();
        let open = &mut state.open;
        assert_eq!(open[0].stock(1_070), Stock { free: 1, held: 1, purchased: 0 });
        assert_eq!(open[1].stock(2_000), Stock { free: 2, held: 0, purchased: 0 });
        let again = open[0].purchase(1_080, HoldNumber(1));
        assert!(matches!(again, Decision::Decided { outcome: Outcome::Purchased { .. }, .. }), "{again:?}");
        drop(state);
        sales.forget(2_001);
        assert_eq!(sales.terms(), [later]);
        // Of a sale that is gone.
        let hold = HoldKey { sale: SaleId(1), number: HoldNumber(1) };
        sales.undo(
            &mut vec![Box::new(Handoff { worker: 0, records: Records::new(hold.sale, EMBEDDED_EPOCH), acks: vec![] })],
            &mut |_| {},
        );
    }
}
