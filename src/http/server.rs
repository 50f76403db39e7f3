//! The server: one listening socket and all that is served through it.
//!
//! Owns its parts, its ticks and the steps of its end. Leaves accepting to the acceptor, and each worker's connections to that
//! worker's side.

use super::accept::Acceptor;
use super::answers::STATUSES;
use super::listen::Listener;
use super::service::Service;
use super::side::{Common, Phase, WorkerServer};
use crate::worker::{Bell, Watched, Workers};
use may::io::WaitIoWaker;
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use super::accept::spare_connections;

/// How often it is told, at most, that connections had to give way or were refused.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The server.
pub struct Server<S> {
    common: Arc<Common<S>>,
    sides: Vec<Arc<WorkerServer<S>>>,
    acceptor: AcceptorWaker,
    address: SocketAddr,
    /// What was last told of full places.
    told: Mutex<Told>,
}

struct AcceptorWaker {
    worker: usize,
    waker: WaitIoWaker,
    /// Set while the acceptor waits for the next tick.
    paused: Arc<AtomicBool>,
}

#[derive(Default)]
struct Told {
    at: Option<Instant>,
    gave_way: u64,
    refused: u64,
}

/// What has become of a server's connections. The counts are those since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// How many are open.
    pub open: usize,
    /// How many gave way to new ones, because they had been idle longest.
    pub gave_way: u64,
    /// How many were refused, since all others were busy.
    pub refused: u64,
    /// How many ended by a panic.
    pub panicked: u64,
}

impl<S: Service> Server<S> {
    /// Serves the connections of `listener`, at most `max_connections` at a time. A few more descriptors are open for
    /// moments: [`spare_connections`].
    ///
    /// # Errors
    /// No descriptors or no memory for the acceptor.
    pub fn start(
        workers: Workers,
        listener: Listener,
        service: Arc<S>,
        max_connections: usize,
    ) -> io::Result<Server<S>> {
        let Listener(listener) = listener;
        let address = SocketAddr::try_from(rustix::net::getsockname(&listener)?).map_err(io::Error::other)?;
        let idle = service.idle();
        let common = Arc::new(Common::new(service, workers, max_connections));
        let sides: Vec<_> =
            workers.all().map(|worker| Arc::new(WorkerServer::new(worker, common.clone(), idle))).collect();
        let worker = workers.of_fd(&listener);
        let listener = Watched::new(listener)?;
        let paused = Arc::new(AtomicBool::new(false));
        let waker = AcceptorWaker { worker, waker: listener.waker(), paused: paused.clone() };
        let acceptor = Acceptor {
            listener,
            common: common.clone(),
            sides: sides.clone(),
            worker,
            paused,
            turn: Bell::new(workers, worker)?,
            told_until: None,
            full_at_ms: None,
        };
        workers.spawn_vital(worker, "the acceptor", move || acceptor.run())?;
        Ok(Server { common, sides, acceptor: waker, address, told: Mutex::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A worker's tick, on that worker: ends what is overdue and keeps the date.
    pub fn tick(&self, worker: usize) {
        let Some(side) = self.sides.get(worker) else { return };
        side.tick();
        if worker == self.acceptor.worker {
            let closing = self.common.is_at_least(Phase::Closing) && !self.common.is_at_least(Phase::Ending);
            if self.acceptor.paused.swap(false, Ordering::Relaxed) || closing {
                self.acceptor.waker.wakeup();
            }
            self.tell();
        }
    }

    /// From any thread: serve on, but close each connection after its answer, so that peers go elsewhere.
    pub fn drain(&self) {
        self.common.advance(Phase::Draining);
    }

    /// From any thread: accept what the kernel has let in and nothing more, and end each connection after the answer that it
    /// waits for. The workers notice at their next tick.
    pub fn close(&self) {
        self.common.advance(Phase::Closing);
    }

    /// Whether the server is on its way to the end.
    pub fn is_draining(&self) -> bool {
        self.common.is_at_least(Phase::Draining)
    }

    /// Whether it has closed: it listens no more, and no connection is open.
    pub fn is_closed(&self) -> bool {
        self.common.is_at_least(Phase::Ending) && self.common.connections.load(Ordering::Relaxed) == 0
    }

    /// How many answers of each of [`STATUSES`] were sent, by all workers.
    pub fn answers(&self) -> [u64; STATUSES.len()] {
        let mut sums = [0; STATUSES.len()];
        for side in &self.sides {
            sums.iter_mut().zip(side.answers().counts()).for_each(|(sum, count)| *sum += count);
        }
        sums
    }

    /// What has become of its connections.
    pub fn connections(&self) -> Connections {
        Connections {
            open: self.common.in_use(),
            gave_way: self.common.gave_way.load(Ordering::Relaxed),
            refused: self.common.refused.load(Ordering::Relaxed),
            panicked: self.common.panicked.load(Ordering::Relaxed),
        }
    }

    /// Tells of full places, if something has become of it since that was last told.
    fn tell(&self) {
        let (now, mut told) = (self.connections(), self.told.lock());
        let new = now.gave_way != told.gave_way || now.refused != told.refused;
        if !new || told.at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        tracing::warn!(
            "all {} connections (MAX_CONNECTIONS) are taken on {}: {} idle ones gave way to new ones, {} new ones were refused \
             because no connection was idle",
            self.common.max_connections,
            self.address,
            now.gave_way - told.gave_way,
            now.refused - told.refused,
        );
        *told = Told { at: Some(Instant::now()), gave_way: now.gave_way, refused: now.refused };
    }
}
