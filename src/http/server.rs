//! The server: one listening socket and the connections that are accepted from it.
//!
//! Owns the start of the server's parts, the calls of its ticks, and the steps from one phase to the next. Invariant: any
//! thread may ask for a later phase, and no call leads back to an earlier one. Leaves accepting to the acceptor, and each
//! worker's connections to that worker's side.

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

/// The shortest time between two log lines about connections that gave way or were refused.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// The server. It serves until [`Server::close`], then ends its connections.
pub struct Server<S> {
    common: Arc<Common<S>>,
    sides: Vec<Arc<WorkerServer<S>>>,
    acceptor: AcceptorWaker,
    address: SocketAddr,
    /// What the last log line about full places said.
    logged: Mutex<Logged>,
}

struct AcceptorWaker {
    worker: usize,
    waker: WaitIoWaker,
    /// Set while the acceptor waits for the next tick.
    paused: Arc<AtomicBool>,
}

#[derive(Default)]
struct Logged {
    at: Option<Instant>,
    gave_way: u64,
    refused: u64,
}

/// The connections of a server: those that are open, and counts since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// How many are open now.
    pub open: usize,
    /// How many idle ones were closed for new ones.
    pub gave_way: u64,
    /// How many were refused because all places were taken and none was idle.
    pub refused: u64,
    /// How many were closed because their code panicked.
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
        Ok(Server { common, sides, acceptor: waker, address, logged: Mutex::default() })
    }

    /// The address on which the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A worker's tick, on that worker: wakes connections whose time is over so that they end, and updates the date.
    pub fn tick(&self, worker: usize) {
        let Some(side) = self.sides.get(worker) else { return };
        side.tick();
        if worker == self.acceptor.worker {
            let closing = self.common.is_at_least(Phase::Closing) && !self.common.is_at_least(Phase::Ending);
            if self.acceptor.paused.swap(false, Ordering::Relaxed) || closing {
                self.acceptor.waker.wakeup();
            }
            self.log_full();
        }
    }

    /// For any thread: serve on, but close each connection after its answer, so that clients connect to other instances.
    pub fn drain(&self) {
        self.common.advance(Phase::Draining);
    }

    /// For any thread: accept the connections whose handshakes have begun and no more, and end each connection after the
    /// answer that it waits for. The workers notice at their next tick.
    pub fn close(&self) {
        self.common.advance(Phase::Closing);
    }

    /// Whether [`Server::drain`] or [`Server::close`] was called.
    pub fn is_draining(&self) -> bool {
        self.common.is_at_least(Phase::Draining)
    }

    /// Whether the server has closed: it does not listen, and no connection is open.
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

    /// The open connections, and the counts since the start.
    pub fn connections(&self) -> Connections {
        Connections {
            open: self.common.in_use(),
            gave_way: self.common.gave_way.load(Ordering::Relaxed),
            refused: self.common.refused.load(Ordering::Relaxed),
            panicked: self.common.panicked.load(Ordering::Relaxed),
        }
    }

    /// Logs that all places are taken, if connections gave way or were refused since the last such line.
    fn log_full(&self) {
        let now = self.connections();
        let mut logged = self.logged.lock();
        let new = now.gave_way != logged.gave_way || now.refused != logged.refused;
        if !new || logged.at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            return;
        }
        tracing::warn!(
            "all {} connections (MAX_CONNECTIONS) on {} are taken: {} idle ones were closed for new ones, {} new ones were \
             refused because none was idle",
            self.common.max_connections,
            self.address,
            now.gave_way - logged.gave_way,
            now.refused - logged.refused,
        );
        *logged = Logged { at: Some(Instant::now()), gave_way: now.gave_way, refused: now.refused };
    }
}
