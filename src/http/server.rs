//! The listening socket and each core's set of connections.
//!
//! Owns accepting, the bound on connections, each core's date and sweep, and the draining at the end. Refuses to
//! know what is served.

use super::answers::{Answers, STATUSES};
use super::connection::{Connection, Service, Shared};
use super::response::HttpDate;
use crate::core::{Cores, Watched};
use may::io::WaitIoWaker;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use slab::Slab;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// For how long no connection may be refused for want of means until the next such refusal is told of again.
const SPELL: Duration = Duration::from_secs(10);

/// Said to a connection that is one too many, without reading from it.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 64\r\n\
    Retry-After: 1\r\nConnection: close\r\n\r\n{\"error\":\"unavailable\",\"message\":\"too many connections at once\"}";

/// What all cores share.
struct Common<S> {
    service: Arc<S>,
    cores: Cores,
    began: Instant,
    connections: AtomicUsize,
    max_connections: usize,
    draining: AtomicBool,
}

/// A core's side of the server.
pub struct CoreServer<S> {
    core: usize,
    common: Arc<Common<S>>,
    open: Mutex<Slab<Arc<Shared>>>,
    date: Mutex<(u64, HttpDate)>,
    /// Milliseconds since the server began, as of the last tick: time limits need no more precision, and a request
    /// does not have to ask for the time.
    now_ms: AtomicU64,
    answers: Answers,
}

/// The server.
pub struct Server<S> {
    common: Arc<Common<S>>,
    cores: Vec<Arc<CoreServer<S>>>,
    acceptor: AcceptorWaker,
    address: SocketAddr,
}

struct AcceptorWaker {
    core: usize,
    waker: WaitIoWaker,
    /// Set when a connection could not be taken in: the next tick clears it, and it is tried again.
    paused: Arc<AtomicBool>,
}

/// A socket that has its address, and lets nobody in.
#[derive(Debug)]
pub struct Bound(OwnedFd);

/// A socket that lets connections in.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// Binds a socket to `address`: a port that is taken is known before anything runs.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket =
        rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(Bound(socket))
}

impl Bound {
    /// Has the kernel let connections in. Fails where another one listens at the same address: two may be bound to it.
    pub fn listen(self) -> io::Result<Listener> {
        rustix::net::listen(&self.0, BACKLOG)?;
        Ok(Listener(self.0))
    }
}

impl<S: Service> Server<S> {
    /// Serves the connections of `listener`, at most `max_connections` at a time.
    pub fn start(cores: Cores, listener: Listener, service: Arc<S>, max_connections: usize) -> io::Result<Server<S>> {
        let Listener(listener) = listener;
        let address = SocketAddr::try_from(rustix::net::getsockname(&listener)?).map_err(io::Error::other)?;
        let common = Arc::new(Common {
            service,
            cores,
            began: Instant::now(),
            connections: AtomicUsize::new(0),
            max_connections,
            draining: AtomicBool::new(false),
        });
        let sides: Vec<_> = cores
            .all()
            .map(|core| {
                Arc::new(CoreServer {
                    core,
                    common: common.clone(),
                    open: Mutex::new(Slab::new()),
                    date: Mutex::new((0, [b' '; 29])),
                    now_ms: AtomicU64::new(0),
                    answers: Answers::default(),
                })
            })
            .collect();
        sides.iter().for_each(|side| side.update_date());
        let core = cores.of_fd(&listener);
        let io = Watched::new(listener)?;
        let paused = Arc::new(AtomicBool::new(false));
        let acceptor = AcceptorWaker { core, waker: io.waker(), paused: paused.clone() };
        let (accepting, targets) = (common.clone(), sides.clone());
        cores.spawn(core, move || accept_all(&io, &accepting, &targets, &paused))?;
        Ok(Server { common, cores: sides, acceptor, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A core's tick, on that core: ends what is overdue and keeps the date.
    pub fn tick(&self, core: usize) {
        let Some(side) = self.cores.get(core) else { return };
        side.update_date();
        side.sweep();
        let draining = self.common.draining.load(Ordering::Relaxed);
        if core == self.acceptor.core && (self.acceptor.paused.swap(false, Ordering::Relaxed) || draining) {
            self.acceptor.waker.wakeup();
        }
    }

    /// From any thread: accept nothing more, and end each connection after the answer that it waits for. The cores
    /// notice at their next tick.
    pub fn drain(&self) {
        self.common.draining.store(true, Ordering::Relaxed);
    }

    /// How many answers of each of [`STATUSES`] were sent, by all workers.
    pub fn answers(&self) -> [u64; STATUSES.len()] {
        let mut sums = [0; STATUSES.len()];
        for core in &self.cores {
            sums.iter_mut().zip(core.answers.counts()).for_each(|(sum, count)| *sum += count);
        }
        sums
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.common.connections.load(Ordering::Relaxed)
    }
}

fn accept_all<S: Service>(
    listener: &Watched,
    common: &Arc<Common<S>>,
    cores: &[Arc<CoreServer<S>>],
    paused: &AtomicBool,
) {
    let mut told_until = None;
    while !common.draining.load(Ordering::Relaxed) {
        let taken = match rustix::net::accept_with(listener.fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => take_in(socket, common, cores),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => Ok(()),
            Err(rustix::io::Errno::AGAIN) => {
                listener.wait();
                Ok(())
            }
            Err(e) => Err(e.into()),
        };
        if let Err(e) = taken {
            let now = Instant::now();
            if told_until.replace(now + SPELL).is_none_or(|until| until < now) {
                tracing::warn!("cannot accept connections: {e}");
            }
            // No descriptors or no memory is left. Trying at once would starve those whose end frees some.
            paused.store(true, Ordering::Relaxed);
            while paused.load(Ordering::Relaxed) {
                listener.wait();
            }
        }
    }
}

/// Gives `socket` to its core. `Err` if there is nothing left to serve it with.
fn take_in<S: Service>(socket: OwnedFd, common: &Arc<Common<S>>, cores: &[Arc<CoreServer<S>>]) -> io::Result<()> {
    if common.connections.load(Ordering::Relaxed) >= common.max_connections {
        let _ = rustix::net::send(&socket, FULL, rustix::net::SendFlags::NOSIGNAL);
        if let Some(side) = crate::core::current().and_then(|core| cores.get(core)) {
            side.answers.count(503);
        }
        return Ok(());
    }
    let core = common.cores.of_fd(&socket);
    let Some(side) = cores.get(core).cloned() else { return Ok(()) };
    if sockopt::set_tcp_nodelay(&socket, true).is_err() {
        return Ok(());
    }
    common.connections.fetch_add(1, Ordering::Relaxed);
    let counted = Counted(common.clone());
    common.cores.spawn(core, move || {
        let _counted = counted;
        let Ok(io) = Watched::new(socket) else { return };
        let shared = Arc::new(Shared::new(io));
        let key = side.open.lock().insert(shared.clone());
        let _listed = Listed(side.clone(), key);
        Connection::new(side.clone(), shared).run();
    })
}

/// A connection that counts, until it is dropped: also when its coroutine panics.
struct Counted<S>(Arc<Common<S>>);

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that the sweep sees, until this is dropped.
struct Listed<S>(Arc<CoreServer<S>>, usize);

impl<S> Drop for Listed<S> {
    fn drop(&mut self) {
        self.0.open.lock().try_remove(self.1);
    }
}

impl<S> CoreServer<S> {
    pub(super) fn core(&self) -> usize {
        self.core
    }

    pub(super) fn service(&self) -> &S {
        &self.common.service
    }

    /// Where this core's answers are counted.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    pub(super) fn is_draining(&self) -> bool {
        self.common.draining.load(Ordering::Relaxed)
    }

    pub(super) fn date(&self) -> HttpDate {
        self.date.lock().1
    }

    /// The end of a phase that begins now. Never 0, which says that it is over.
    pub(super) fn deadline_ms(&self, time: Duration) -> u64 {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.now_ms.load(Ordering::Relaxed).saturating_add(time).max(1)
    }

    fn sweep(&self) {
        let now_ms = u64::try_from(self.common.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.now_ms.store(now_ms, Ordering::Relaxed);
        let draining = self.is_draining();
        for (_, connection) in self.open.lock().iter() {
            connection.sweep(now_ms, draining);
        }
    }

    fn update_date(&self) {
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut date = self.date.lock();
        if date.0 != seconds
            && let Ok(text) = <HttpDate>::try_from(httpdate::fmt_http_date(now).as_bytes())
        {
            *date = (seconds, text);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_that_are_bound_to_a_port_listens() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&first.0).unwrap()).unwrap();
        let second = bind(address).unwrap();
        let _listens = first.listen().unwrap();
        assert_eq!(second.listen().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
