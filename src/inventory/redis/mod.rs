//! The inventory in Redis: one lane per worker, which turns the requests of a turn into one script call.
//!
//! Owns the batches, the facts by which a worker answers without asking Redis (the sold-out cache, the clock), and the
//! hand-over of records. Invariants: a request gets one answer; after a lost connection its calls are answered
//! `Unavailable` and not sent again, since Redis may have decided them. Leaves HTTP to the service, writing records to the
//! ledger's writer, and opening sales to the keeper.
//!
//! A request comes by [`Inventory::submit`] into its worker's lane (`lane.rs`), waits in a queue of the lane's state (`state.rs`),
//! goes out with others in a call (`protocol.rs`, `flight.rs`), and is answered by its reply (`answer.rs`).

mod answer;
mod fault;
mod flight;
mod lane;
mod protocol;
pub mod scripts;
mod shared;
mod state;
#[cfg(test)]
mod tests;

pub use shared::Shared;

use super::{Inventory, SharedView};
use crate::domain::{Outcome, Request};
use crate::redis_wire::endpoint::RedisEndpoint;
use crate::redis_wire::pipeline::{DriverWaker, Pipeline};
use crate::worker::{Ticket, Waiter, Workers};
use lane::Lane;
use protocol::ScriptProtocol;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// The inventory in Redis.
pub struct RedisInventory {
    lanes: Vec<Arc<Lane>>,
    view: SharedView,
}

impl RedisInventory {
    /// Starts a driver on every worker.
    pub fn start(workers: Workers, target: &Arc<RedisEndpoint>, shared: Shared) -> io::Result<RedisInventory> {
        let view = shared.view.clone();
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
        Ok(RedisInventory { lanes, view })
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

    fn is_ready(&self) -> bool {
        let view = self.view.load();
        view.sale_at(view.clock.ms(Instant::now())).is_some() && self.lanes.iter().all(|lane| lane.is_connected())
    }

    fn undecided(&self, worker: usize) -> usize {
        self.lanes.get(worker).map_or(0, |lane| lane.undecided())
    }
}
