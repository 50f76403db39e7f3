//! The inventory in Redis: one lane per worker, which turns the requests of a turn into one script call.
//!
//! Owns the batches, what a worker knows by itself (the sold-out cache, the clock), and the hand-over of records.
//! Invariant: a request gets one answer; a lost connection answers `Unavailable` and repeats nothing, since the
//! effect may have happened. Refuses to know HTTP, the ledger's kind and how sales are opened.

mod answer;
mod lane;
mod protocol;
pub mod scripts;

use super::{Inventory, LostCalls, SharedView, Suspicion};
use crate::code::HoldNumbers;
use crate::domain::{Outcome, Request};
use crate::record::{Handoff, Recorder};
use crate::redis_wire::endpoint::RedisEndpoint;
use crate::redis_wire::pipeline::{DriverWaker, Pipeline};
use crate::worker::{Ticket, Waiter, Workers};
use crossbeam_channel::Sender;
use lane::Lane;
use protocol::ScriptProtocol;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What all lanes share.
pub struct Shared {
    /// What may be sold, from the keeper.
    pub view: SharedView,
    /// The numbers of this life's holds.
    pub numbers: HoldNumbers,
    /// The way to the ledger.
    pub recorder: Arc<Recorder>,
    /// Whether a purchase is answered only once the ledger has it.
    pub ack_by_ledger: bool,
    /// How long Redis may take.
    pub timeout: Duration,
    /// Where the keeper hears of what looks wrong.
    pub suspicions: Sender<Suspicion>,
    /// Set where calls were lost, for the keeper.
    pub lost_calls: LostCalls,
}

impl Shared {
    /// Tells the keeper. Where the channel is full the keeper has enough to look into, and what still is odd is found again.
    fn suspect(&self, suspicion: Suspicion) {
        let _ = self.suspicions.try_send(suspicion);
    }
}

/// The inventory in Redis.
pub struct RedisInventory {
    lanes: Vec<Arc<Lane>>,
    recorder: Arc<Recorder>,
    view: SharedView,
}

impl RedisInventory {
    /// Starts a driver on every worker.
    pub fn start(workers: Workers, target: &Arc<RedisEndpoint>, shared: Shared) -> io::Result<RedisInventory> {
        let (recorder, view) = (shared.recorder.clone(), shared.view.clone());
        let shared = Arc::new(shared);
        let mut lanes = Vec::with_capacity(workers.count());
        for worker in workers.all() {
            let driver = Arc::new(DriverWaker::new(workers, worker)?);
            let lane = Arc::new(Lane::new(worker, shared.clone(), driver.clone()));
            let pipeline = Pipeline {
                workers,
                worker,
                target: target.clone(),
                timeout: shared.timeout,
                driver,
                protocol: ScriptProtocol::new(lane.clone(), target.name.clone()),
            };
            workers.spawn_vital(worker, "the driver of a Redis connection", move || pipeline.run())?;
            lanes.push(lane);
        }
        Ok(RedisInventory { lanes, recorder, view })
    }
}

impl Inventory for RedisInventory {
    fn submit(&self, waiter: &Arc<Waiter<Outcome>>, ticket: Ticket, request: &Request) -> Option<Outcome> {
        match self.lanes.get(waiter.worker()) {
            Some(lane) => lane.submit(waiter, ticket, request),
            None => Some(Outcome::Unavailable),
        }
    }

    fn tick(&self, worker: usize) {
        if let Some(lane) = self.lanes.get(worker) {
            lane.tick();
        }
    }

    fn written(&self, _worker: usize, mut handoff: Box<Handoff>, ok: bool) {
        for ack in handoff.acks.drain(..) {
            ack.waiter.deliver(ack.ticket, if ok { ack.outcome } else { Outcome::Unavailable });
        }
        self.recorder.recycle(handoff);
    }

    fn is_ready(&self) -> bool {
        let view = self.view.load();
        view.sale_at(view.clock.ms(Instant::now())).is_some() && self.lanes.iter().all(|lane| lane.is_connected())
    }

    fn undecided(&self, worker: usize) -> usize {
        self.lanes.get(worker).map_or(0, |lane| lane.undecided())
    }
}
