//! Accepting: the one coroutine that takes connections in.
//!
//! Owns the listening socket and the bound on connections: when all places are taken, the connection that has been idle
//! longest gives way, and without one the new connection is refused. Invariants: every connection that the kernel has let in
//! is accepted before the socket is closed; never more than [`spare_connections`] are open above the bound.
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

/// How many connections may have been told to give way and not have ended yet.
const GIVING_WAY_AT_ONCE: usize = 16;
/// How many connections may be told at once, with time to receive it, that there is no room.
const REFUSED_AT_ONCE: usize = 48;
const MIN_REFUSED_AT_ONCE: usize = 4;

/// How many connections may be open for moments above a bound of `max_connections`.
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

/// How long connections that give way may take to end before a new one is refused. Their workers do nothing else meanwhile
/// than finish the turn that they are in.
const GIVING_WAY_TIME: Duration = Duration::from_millis(20);

/// For how long no connection may be refused for want of means until the next such refusal is told of again.
const QUIET_PERIOD: Duration = Duration::from_secs(10);

/// How long handshakes that have begun may take until the socket is closed: a round trip to most places.
const LAST_HANDSHAKES: Duration = Duration::from_millis(200);

/// The acceptor: what its coroutine works with.
pub(super) struct Acceptor<S> {
    pub(super) listener: Watched,
    pub(super) common: Arc<Common<S>>,
    pub(super) sides: Vec<Arc<WorkerServer<S>>>,
    /// The worker that it runs on.
    pub(super) worker: usize,
    /// Set while it waits for the next tick, which clears it.
    pub(super) paused: Arc<AtomicBool>,
    /// Lets everything else that is ready on this worker run first.
    pub(super) turn: Bell,
    /// When it was last told that connections cannot be accepted.
    pub(super) told_until: Option<Instant>,
    /// The tick at which no connection was found that could give way.
    pub(super) full_at_ms: Option<u64>,
}

impl<S: Service> Acceptor<S> {
    /// Accepts until the server closes. Has to be woken by each tick once it does.
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
                    tracing::warn!("cannot accept connections: {e}");
                }
                // No descriptors or no memory is left. Trying at once would starve the connections whose end frees some.
                self.pause();
            }
        }
        let common = self.common.clone();
        // The socket goes first: what comes from here on is refused by the kernel.
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

    /// Gives `socket` to its worker. `Err` if there is nothing left to serve it with.
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

    /// Whether a place is free, or has been made free. May wait for a tick, but not for each connection.
    fn has_room(&mut self) -> bool {
        if self.make_room() {
            return true;
        }
        let now_ms = |this: &Self| this.sides.get(this.worker).map(|side| side.now_ms());
        // The lists are as old as the last tick, and none is made while there is plenty of room.
        if self.full_at_ms.is_none() || self.full_at_ms != now_ms(self) {
            self.pause();
            if self.make_room() {
                return true;
            }
            self.full_at_ms = now_ms(self);
        }
        false
    }

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

    /// Tells `socket` that there is no room, and reads what it has sent, or else its peer would be told of a reset alone.
    fn refuse(&self, socket: OwnedFd, side: Arc<WorkerServer<S>>) -> io::Result<()> {
        self.common.refused.fetch_add(1, Ordering::Relaxed);
        if self.common.refusing.load(Ordering::Relaxed) >= refused_at_once(self.common.max_connections) {
            // Counts for the worker that it runs on: the acceptor's.
            let Some(side) = self.sides.get(self.worker) else { return Ok(()) };
            let (date, answers) = (side.date(), side.answers());
            let (out, scratch) = (&mut Vec::new(), &mut Vec::new());
            Responder { out, scratch, answers, date: &date, keep_alive: false, http_11: true, head_only: false }.full();
            let _ = rustix::net::send(&socket, out, rustix::net::SendFlags::NOSIGNAL);
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

/// A connection on its worker, and its place in the sweep.
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
        tracing::error!("a connection ended by a panic: {}", crate::worker::panic_text(panic.as_ref()));
    }
}

/// A connection that counts, until it is dropped: also when its coroutine panics.
struct Counted<S>(Arc<Common<S>>);

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that is being refused, until it is dropped.
struct Refusing<S>(Arc<Common<S>>);

impl<S> Drop for Refusing<S> {
    fn drop(&mut self) {
        self.0.refusing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that the sweep sees, until this is dropped.
struct Listed<S> {
    side: Arc<WorkerServer<S>>,
    shared: Arc<Shared>,
    key: usize,
}

impl<S> Drop for Listed<S> {
    fn drop(&mut self) {
        self.side.open.lock().try_remove(self.key);
        if self.shared.retire() {
            self.side.common.giving_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
