//! Accepting: the one coroutine that takes connections in.
//!
//! Owns the listening socket and the bound on connections: if all places are taken, the connection that has been idle
//! longest is closed for the new one; if none is idle, the new one is refused. Invariants: each connection whose handshake
//! the kernel has completed is accepted before the socket is closed; at most [`spare_connections`] are open above the bound.
//! Leaves serving to the connections.

use super::connection::Connection;
use super::response::Responder;
use super::service::Service;
use super::side::{Common, Phase, Shared, WorkerServer};
use crate::worker::{Bell, Watched};
use rustix::net::{SocketFlags, sockopt};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many connections may have to give way and not have ended yet.
const GIVING_WAY_AT_ONCE: usize = 16;
/// How many refused connections may be open at once, so that they receive their refusal.
const REFUSED_AT_ONCE: usize = 48;
const MIN_REFUSED_AT_ONCE: usize = 4;

/// How many connections may be open for moments above the bound `max_connections`.
pub const fn spare_connections(max_connections: usize) -> usize {
    GIVING_WAY_AT_ONCE + refused_at_once(max_connections)
}

const fn refused_at_once(max_connections: usize) -> usize {
    match max_connections / 16 {
        few if few < MIN_REFUSED_AT_ONCE => MIN_REFUSED_AT_ONCE,
        many if many > REFUSED_AT_ONCE => REFUSED_AT_ONCE,
        some => some,
    }
}

/// How long to wait for connections that give way to end before a new one is refused. Their workers need no more than the
/// rest of their turn for it.
const GIVING_WAY_TIME: Duration = Duration::from_millis(20);

/// Warn about failed accepts again only after none failed for this long.
const QUIET_PERIOD: Duration = Duration::from_secs(10);

/// How long handshakes that have begun may take before the socket is closed: longer than most round trips.
const LAST_HANDSHAKES: Duration = Duration::from_millis(200);

/// The acceptor. [`Acceptor::run`] is its coroutine.
pub(super) struct Acceptor<S> {
    pub(super) listener: Watched,
    pub(super) common: Arc<Common<S>>,
    pub(super) sides: Vec<Arc<WorkerServer<S>>>,
    /// The worker that its coroutine runs on.
    pub(super) worker: usize,
    /// Set while the acceptor waits for the next tick, which clears it.
    pub(super) paused: Arc<AtomicBool>,
    /// Rung by the acceptor for itself: it runs again after all that is ready on this worker.
    pub(super) turn: Bell,
    /// Until when further failed accepts are not logged.
    pub(super) told_until: Option<Instant>,
    /// The tick at which no connection was idle, in the worker's milliseconds.
    pub(super) full_at_ms: Option<u64>,
}

impl<S: Service> Acceptor<S> {
    /// Accepts until the server closes. While the server closes, each tick must wake the acceptor.
    pub(super) fn run(mut self) {
        let mut closing: Option<Instant> = None;
        loop {
            if closing.is_none() && self.common.is_at_least(Phase::Closing) {
                super::listen::refuse_handshakes(self.listener.fd());
                closing = Some(Instant::now());
            }
            let taken = match rustix::net::accept_with(self.listener.fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
            {
                Ok(socket) => self.take_in(socket),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => Ok(()),
                Err(rustix::io::Errno::AGAIN) if closing.is_some_and(|since| since.elapsed() >= LAST_HANDSHAKES) => {
                    break;
                }
                Err(rustix::io::Errno::AGAIN) => {
                    self.listener.wait();
                    Ok(())
                }
                Err(e) => Err(e.into()),
            };
            if let Err(e) = taken {
                let now = Instant::now();
                if self.told_until.replace(now + QUIET_PERIOD).is_none_or(|until| until < now) {
                    tracing::warn!("cannot accept connections: {e}: new ones wait until others end");
                }
                // No descriptors or no memory is left. Trying again at once would starve the connections whose end frees some.
                self.pause();
            }
        }
        let common = self.common.clone();
        // The socket is closed first: from here on the kernel refuses new connections.
        drop(self);
        common.advance(Phase::Ending);
    }

    /// Waits for the next tick.
    fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
        while self.paused.load(Ordering::Relaxed) {
            self.listener.wait();
        }
    }

    /// Gives `socket` to its worker, or refuses it. `Err` if no memory is left for its coroutine.
    fn take_in(&mut self, socket: OwnedFd) -> io::Result<()> {
        let worker = self.common.workers.of_fd(&socket);
        let Some(side) = self.sides.get(worker).cloned() else { return Ok(()) };
        if sockopt::set_tcp_nodelay(&socket, true).is_err() {
            return Ok(());
        }
        if !self.has_room() {
            return self.refuse(socket, side);
        }
        self.common.connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.common.clone());
        self.common.workers.spawn(worker, move || {
            let _counted = counted;
            let common = side.common.clone();
            contain(&common, || {
                if let Some((connection, _listed)) = open(side, socket) {
                    connection.run();
                }
            });
        })
    }

    /// Whether a place is free, or was made free. Waits for a tick if no connection is idle, at most once a tick.
    fn has_room(&mut self) -> bool {
        if self.make_room() {
            return true;
        }
        let now_ms = |this: &Self| this.sides.get(this.worker).map(|side| side.now_ms());
        // The lists of idle connections are as old as the last tick, and are not made while there is plenty of room.
        if self.full_at_ms.is_none() || self.full_at_ms != now_ms(self) {
            self.pause();
            if self.make_room() {
                return true;
            }
            self.full_at_ms = now_ms(self);
        }
        false
    }

    /// Whether a place is free, after idle connections were told to give way as far as needed.
    fn make_room(&self) -> bool {
        let begun = Instant::now();
        while self.common.giving_way.load(Ordering::Relaxed) >= GIVING_WAY_AT_ONCE {
            if begun.elapsed() >= GIVING_WAY_TIME {
                return false;
            }
            self.turn.ring();
            self.turn.wait();
        }
        while self.common.in_use() >= self.common.max_connections {
            let longest = self.sides.iter().filter_map(|side| Some((side.longest_idle()?, side)));
            let Some((_, side)) = longest.min_by_key(|(since, _)| *since) else { return false };
            side.end_longest_idle();
        }
        true
    }

    /// Sends a refusal to `socket`, and reads what its peer has sent: closing with unread bytes would reset the connection,
    /// and the refusal would be lost.
    fn refuse(&self, socket: OwnedFd, side: Arc<WorkerServer<S>>) -> io::Result<()> {
        self.common.refused.fetch_add(1, Ordering::Relaxed);
        if self.common.refusing.load(Ordering::Relaxed) >= refused_at_once(self.common.max_connections) {
            // The answer counts for the worker that this runs on, the acceptor's.
            let Some(side) = self.sides.get(self.worker) else { return Ok(()) };
            let mut out = Vec::new();
            let mut responder = Responder {
                out: &mut out,
                scratch: &mut Vec::new(),
                answers: side.answers(),
                date: &side.date(),
                keep_alive: false,
                http_11: true,
                head_only: false,
            };
            responder.full();
            let _ = rustix::net::send(&socket, &out, rustix::net::SendFlags::NOSIGNAL);
            let _ = rustix::io::read(&socket, &mut [0; 4096]);
            return Ok(());
        }
        self.common.refusing.fetch_add(1, Ordering::Relaxed);
        let counted = Refusing(self.common.clone());
        self.common.workers.spawn(side.worker(), move || {
            let _counted = counted;
            let common = side.common.clone();
            contain(&common, || {
                let Some((connection, _listed)) = open(side, socket) else { return };
                connection.refuse();
            });
        })
    }
}

/// A connection on its worker, and its entry among those that the worker's tick looks at.
fn open<S: Service>(side: Arc<WorkerServer<S>>, socket: OwnedFd) -> Option<(Connection<S>, Listed<S>)> {
    let shared = Arc::new(Shared::new(Watched::new(socket).ok()?));
    let key = side.open.lock().insert(shared.clone());
    let listed = Listed { side: side.clone(), shared: shared.clone(), key };
    Some((Connection::new(side, shared), listed))
}

/// Runs a connection's `work`. A panic ends this connection and no other.
fn contain<S>(common: &Common<S>, work: impl FnOnce()) {
    if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(work)) {
        common.panicked.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            "the code of a connection panicked, and the connection is closed: {}",
            crate::worker::panic_text(panic.as_ref())
        );
    }
}

/// Counts as an open connection until it is dropped, also by a panic of the connection's coroutine.
struct Counted<S>(Arc<Common<S>>);

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        let before = self.0.connections.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "each connection is counted before it ends");
    }
}

/// Counts as a connection that is being refused until it is dropped.
struct Refusing<S>(Arc<Common<S>>);

impl<S> Drop for Refusing<S> {
    fn drop(&mut self) {
        let before = self.0.refusing.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "each refusal is counted before it ends");
    }
}

/// An entry among the connections that the worker's tick looks at, until it is dropped.
struct Listed<S> {
    side: Arc<WorkerServer<S>>,
    shared: Arc<Shared>,
    key: usize,
}

impl<S> Drop for Listed<S> {
    fn drop(&mut self) {
        self.side.open.lock().try_remove(self.key);
        if self.shared.retire() {
            let before = self.side.common.giving_way.fetch_sub(1, Ordering::Relaxed);
            debug_assert!(before > 0, "each connection that gives way is counted before it ends");
        }
    }
}
