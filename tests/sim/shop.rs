//! The shoppers and the writer of each instance.
//!
//! Owns the requests that are under way, the records that are not written, and what was promised to shoppers. Invariant: an instance
//! asks Redis only while its view sells, under the epoch of its view, and on a connection to the server of its view. A purchase is acknowledged when the ledger has it, as with
//! `PURCHASE_ACK=ledger`.

use crate::redis::Refusal;
use crate::world::{Instance, State};
use crossbeam_channel::{Receiver, Sender};
use flashsale::domain::{HoldNumber, Id, Outcome, RecordKind, Records, SaleId};
use flashsale::inventory::{SharedView, Suspicion, View};
use flashsale::keeper::own_work::OwnWork;
use flashsale::record::{Counters, Handoff};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often shoppers and writers act.
pub const TICK: Duration = Duration::from_millis(5);
/// Shoppers.
pub const USERS: u64 = 200;
/// How long a request is on its way to Redis at most, in ticks.
const LATENCY: u64 = 6;
/// How long a transaction of the writer takes at most, in ticks: now and then longer than an opener waits.
const QUICK: u64 = 12;
const SLOW: u64 = 500;

/// What an instance's workers and its writer have under way.
pub struct Shop {
    pub view: SharedView,
    suspect: Sender<Suspicion>,
    /// For the keeper.
    pub suspicions: Receiver<Suspicion>,
    pass_on: Sender<Box<Handoff>>,
    /// For the keeper.
    pub stale: Receiver<Box<Handoff>>,
    pub counters: Arc<Counters>,
    /// Requests on their way to Redis.
    calls: Vec<Call>,
    /// Records that wait for the writer.
    queue: VecDeque<Records>,
    /// The writer's transaction.
    pub writing: Option<Writing>,
    /// Numbers of holds that were given out.
    numbers: u64,
}

/// A transaction that is not committed: it holds the shared lock of its epoch.
pub struct Writing {
    pub records: Records,
    commits: Duration,
}

struct Call {
    arrives: Duration,
    sale: SaleId,
    epoch: u64,
    /// The server that the instance's connection leads to.
    server: String,
    request: Request,
}

enum Request {
    Checkout(Id),
    Purchase(HoldNumber),
}

/// What was promised to shoppers.
#[derive(Default)]
pub struct Promises {
    /// Codes that were given out, and the instance that gave each.
    pub codes: BTreeMap<(SaleId, HoldNumber), usize>,
    /// Purchases that were acknowledged.
    pub purchases: Vec<(SaleId, HoldNumber)>,
}

impl Promises {
    fn acknowledge(&mut self, written: &Records) {
        let purchases = written.iter().filter(|record| record.kind == RecordKind::Purchase);
        self.purchases.extend(purchases.map(|record| (written.sale, record.number)));
    }
}

impl State {
    /// A hold that is on record keeps its code until it expires, unless it is quarantined.
    fn check_purchase(&mut self, sale: SaleId, number: HoldNumber, outcome: Outcome) {
        let key = (sale, number);
        let is_kept = self.ledger.holds.get(&key).is_some_and(|hold| hold.expires_ms > self.unix_ms())
            && !self.ledger.quarantined.contains(&(sale, number, RecordKind::Hold));
        if is_kept && !matches!(outcome, Outcome::Purchased { .. } | Outcome::AlreadyPurchased { .. }) {
            let now = self.now;
            self.violations
                .push(format!("at {now:?} the code of {number:?}, which is on record, was answered {outcome:?}"));
        }
    }
}

impl Shop {
    pub fn new() -> Shop {
        let (suspect, suspicions) = crossbeam_channel::bounded(16);
        let (pass_on, stale) = crossbeam_channel::unbounded();
        Shop {
            view: Arc::new(arc_swap::ArcSwap::from_pointee(View::closed())),
            suspect,
            suspicions,
            pass_on,
            stale,
            counters: Arc::default(),
            calls: Vec::new(),
            queue: VecDeque::new(),
            writing: None,
            numbers: 0,
        }
    }

    /// The process is gone.
    pub fn forget(&mut self) {
        self.calls.clear();
        self.queue.clear();
        self.writing = None;
    }

    /// The writer's session is ended if it holds a lock of `epoch` or of an older one. The records are tried again.
    pub fn roll_back(&mut self, epoch: u64) -> bool {
        let old = self.writing.take_if(|writing| writing.records.epoch <= epoch);
        let rolled_back = old.is_some();
        old.into_iter().for_each(|writing| self.queue.push_front(writing.records));
        rolled_back
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.writing.is_none()
    }
}

/// What happens at `instance` in a tick.
pub fn tick(state: &mut State, instance: usize) {
    send(state, instance);
    let arrived: Vec<Call> = {
        let now = state.now;
        state.shops[instance].calls.extract_if(.., |call| call.arrives <= now).collect()
    };
    arrived.into_iter().for_each(|call| decide(state, instance, call));
    write(state, instance);
}

/// Shoppers send requests.
fn send(state: &mut State, instance: usize) {
    let view = state.shops[instance].view.load_full();
    let Some(terms) = view.sale_at(state.unix_ms()).filter(|_| view.selling) else { return };
    if view.identity != state.redis.identity() {
        // A worker ends a connection that leads to another server than its view's.
        return;
    }
    let random = &mut state.random;
    let request = match random.u32(..20) {
        0..2 => Request::Checkout(format!("user {}", random.u64(..USERS)).parse().unwrap()),
        2 if !state.promises.codes.is_empty() => {
            let nth = random.usize(..state.promises.codes.len());
            Request::Purchase(state.promises.codes.keys().nth(nth).unwrap().1)
        }
        _ => return,
    };
    let arrives = state.now + TICK * (1 + random.u64(..LATENCY)) as u32;
    state.shops[instance].calls.push(Call {
        arrives,
        sale: terms.sale,
        epoch: view.epoch,
        server: view.identity.clone(),
        request,
    });
}

/// Redis decides a request, and the instance hears of it.
fn decide(state: &mut State, instance: usize, call: Call) {
    let now_ms = state.unix_ms();
    let Call { sale, epoch, request, server, .. } = call;
    if server != state.redis.identity() {
        // The connection is gone with the server.
        return;
    }
    let decided = match request {
        Request::Checkout(user) => {
            let shop = &mut state.shops[instance];
            shop.numbers += 1;
            let number = HoldNumber(((instance as u64 + 1) << 40) + shop.numbers);
            let item = "a thing".parse().unwrap();
            state.redis.checkout((sale, epoch), now_ms, number, user, item)
        }
        Request::Purchase(number) => state.redis.purchase((sale, epoch), now_ms, number),
    };
    match decided {
        Ok((outcome, record)) => {
            if let Outcome::Held { hold, .. } = outcome {
                state.promises.codes.insert((sale, hold.number), instance);
            }
            if let Request::Purchase(number) = request {
                state.check_purchase(sale, number, outcome);
            }
            if let Some(record) = record {
                let mut records = Records::new(sale, epoch);
                records.push(&record);
                let shop = &mut state.shops[instance];
                shop.counters.handed.fetch_add(1, Ordering::Relaxed);
                shop.queue.push_back(records);
            }
        }
        Err(refusal) => {
            let suspicion = match refusal {
                Refusal::Missing => Suspicion::State(sale, "is missing"),
                Refusal::Closed => Suspicion::State(sale, "is closed"),
                Refusal::Epoch(theirs) => Suspicion::Epoch(theirs),
                Refusal::NotOn => return,
            };
            let _ = state.shops[instance].suspect.try_send(suspicion);
        }
    }
}

/// The writer begins a transaction, or commits the one that it has begun.
fn write(state: &mut State, instance: usize) {
    let State { shops, ledger, random, now, promises, slow_writers, violations, .. } = state;
    let shop = &mut shops[instance];
    if let Some(writing) = shop.writing.take_if(|writing| writing.commits <= *now) {
        ledger.write(&writing.records);
        shop.counters.written.fetch_add(writing.records.len() as u64, Ordering::Relaxed);
        promises.acknowledge(&writing.records);
    }
    if shop.writing.is_some() {
        return;
    }
    let Some(mut records) = shop.queue.pop_front() else { return };
    while let Some(more) = shop.queue.front().filter(|more| (more.sale, more.epoch) == (records.sale, records.epoch)) {
        more.iter().for_each(|record| records.push(&record.to_owned().unwrap()));
        shop.queue.pop_front();
    }
    if ledger.check_epoch(records.epoch).is_err() {
        if !*slow_writers {
            let number = records.iter().next().map(|record| record.number);
            violations.push(format!("at {now:?} records of instance {instance} are late, {number:?} first"));
        }
        let _ = shop.pass_on.send(Box::new(Handoff { worker: 0, records, acks: Vec::new() }));
        return;
    }
    let ticks = if *slow_writers && random.u32(..10) == 0 { SLOW } else { QUICK };
    shop.writing = Some(Writing { records, commits: *now + TICK * (1 + random.u64(..ticks)) as u32 });
}

/// The keeper's view of an instance's work.
pub struct SimWork {
    pub instance: Instance,
    pub counters: Arc<Counters>,
}

impl OwnWork for SimWork {
    fn undecided(&self) -> usize {
        let me = self.instance.number;
        self.instance.call("undecided", |state| state.shops[me].calls.len())
    }

    fn flush(&self, until: Instant) -> bool {
        let (me, left) = (self.instance.number, self.instance.left(until));
        let idle = |state: &mut State| state.shops[me].is_idle().then_some(());
        self.instance.poll("flush", left, Duration::from_millis(2), idle).is_some()
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }
}
