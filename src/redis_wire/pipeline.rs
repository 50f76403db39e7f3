//! The one Redis connection of a worker, driven by one coroutine.
//!
//! Owns connecting, logging in, writing, reading, and making a lost connection anew with backoff and jitter.
//! Invariants: replies reach the protocol in the order of its commands; once [`Protocol::lost`] was called, no reply to an
//! earlier command comes; no command is sent twice. Leaves the meaning of commands and replies to the protocol.

use super::endpoint::RedisEndpoint;
use super::resp::{self, MAX_REPLY_BYTES, Reply};
use crate::worker::{Bell, Watched, Workers, fd};
use may::io::WaitIoWaker;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first size of the buffer for replies. A reply that is longer makes it grow, up to [`MAX_REPLY_BYTES`].
const READ_BYTES: usize = 64 << 10;
/// The wait before the second attempt to connect; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(20);
/// The longest wait between two attempts: short enough to sell within a second of Redis' return.
const MAX_BACKOFF: Duration = Duration::from_millis(500);

const _: () = assert!(READ_BYTES < MAX_REPLY_BYTES);

/// A connection that served this long and was idle when the server ended it is made anew at once: servers end idle clients
/// (`timeout`), and so do devices between. One that ends sooner waits its turn.
const SETTLED: Duration = Duration::from_millis(500);

/// The event that says there is something to receive (epoll's EPOLLIN).
const READABLE: usize = 0x1;
/// The events of a connection that has ended (EPOLLERR, EPOLLHUP, EPOLLRDHUP).
const ENDED: usize = 0x8 | 0x10 | 0x2000;

/// The commands that are sent on a connection, and the receiver of their replies. All calls come from the driver.
pub trait Protocol: Send + 'static {
    /// Why the protocol ends a connection.
    type Fault: fmt::Display;

    /// Appends the commands that a new connection begins with, after logging in. Returns how many.
    fn greet(&mut self, out: &mut Vec<u8>) -> usize;

    /// The `nth` greeting command's reply. `Err` refuses the connection.
    fn greeted(&mut self, nth: usize, reply: Reply<'_>) -> Result<(), Self::Fault>;

    /// All greeting commands are answered. From now on the driver calls [`Protocol::fill`] each time that it wakes.
    fn ready(&mut self);

    /// Appends the commands that are to be sent now, if any. `Err` ends the connection.
    fn fill(&mut self, out: &mut Vec<u8>) -> Result<(), Self::Fault>;

    /// The reply to the oldest command that is not answered yet. `Err` ends the connection.
    fn reply(&mut self, reply: Reply<'_>) -> Result<(), Self::Fault>;

    /// The connection is gone, or could not be made: commands that are not answered never will be.
    fn lost(&mut self, why: &ConnectionEnd<Self::Fault>);

    /// Whether every command is answered.
    fn is_idle(&self) -> bool;

    /// The server ended the connection while no command was unanswered. The driver connects again at once; until then it
    /// does not call [`Protocol::fill`].
    fn ended_idle(&mut self);

    /// Since when the oldest command waits for its reply.
    fn waiting_since(&self) -> Option<Instant>;
}

/// Wakes a worker's driver, from its own worker.
pub struct DriverWaker {
    /// The driver waits on it while it has no socket.
    bell: Bell,
    /// Of the socket while there is one, else of the bell.
    waker: Mutex<WaitIoWaker>,
}

impl DriverWaker {
    /// A waker of the driver that lives on `worker`.
    pub fn new(workers: Workers, worker: usize) -> io::Result<DriverWaker> {
        let bell = Bell::new(workers, worker)?;
        let waker = Mutex::new(bell.waker());
        Ok(DriverWaker { bell, waker })
    }

    /// Lets the driver run: there is something to send, or time has passed. The event loop runs a coroutine that was woken
    /// only after all descriptors that are ready in the same turn.
    pub fn wake(&self) {
        self.waker.lock().wakeup();
    }
}

/// A worker's driver.
pub struct Pipeline<P> {
    /// The workers.
    pub workers: Workers,
    /// The worker that the driver runs on.
    pub worker: usize,
    /// Where Redis is.
    pub target: Arc<RedisEndpoint>,
    /// How long a reply, or a connection, may take.
    pub timeout: Duration,
    /// Wakes the driver.
    pub driver: Arc<DriverWaker>,
    /// The protocol whose commands it sends.
    pub protocol: P,
}

/// How a connection ended, or why it could not be made. `F` is the protocol's [`Fault`](Protocol::Fault).
#[derive(Debug, thiserror::Error)]
pub enum ConnectionEnd<F> {
    /// It could not be made.
    #[error("{0}")]
    NotMade(io::Error),
    /// Redis refused the password or the database, in these words.
    #[error("{0}")]
    LoginRefused(String),
    /// Redis closed it.
    #[error("Redis closed the connection")]
    Closed,
    /// It broke while something was sent.
    #[error("sending: {0}")]
    Sending(io::Error),
    /// It broke while something was received.
    #[error("receiving: {0}")]
    Receiving(io::Error),
    /// What Redis sent is no RESP2.
    #[error("a malformed reply")]
    Malformed,
    /// No reply came for this long.
    #[error("no reply within {0:?}")]
    Silent(Duration),
    /// The protocol ended it.
    #[error("{0}")]
    Fault(F),
}

impl<F> ConnectionEnd<F> {
    /// Whether Redis, or something on the way, ended it.
    fn is_by_peer(&self) -> bool {
        matches!(self, ConnectionEnd::Closed | ConnectionEnd::Sending(_) | ConnectionEnd::Receiving(_))
    }
}

struct Socket {
    io: Watched,
    /// Commands that the socket has not taken yet.
    unsent: Vec<u8>,
    /// The buffer for replies, whose first `filled` bytes are not parsed yet.
    received: Vec<u8>,
    filled: usize,
}

impl<P: Protocol> Pipeline<P> {
    /// Drives the connection for ever. To be run as a coroutine on its worker; [`DriverWaker::wake`] has to come from a tick
    /// of the worker, or no time limit is noticed.
    pub fn run(mut self) {
        let mut attempt = 0usize;
        let mut backoff = MIN_BACKOFF;
        loop {
            let end = match self.connect(attempt) {
                Ok(mut socket) => {
                    *self.driver.waker.lock() = socket.io.waker();
                    let (greeted, end) = self.serve(&mut socket);
                    *self.driver.waker.lock() = self.driver.bell.waker();
                    if greeted.is_some() {
                        backoff = MIN_BACKOFF;
                    }
                    let settled = greeted.is_some_and(|greeted| greeted.elapsed() >= SETTLED);
                    if settled && end.is_by_peer() && socket.is_idle() && self.protocol.is_idle() {
                        tracing::debug!(worker = self.worker, "an idle connection to Redis ended: {end}");
                        self.protocol.ended_idle();
                        continue;
                    }
                    end
                }
                Err(e) => ConnectionEnd::NotMade(e),
            };
            *self.driver.waker.lock() = self.driver.bell.waker();
            self.protocol.lost(&end);
            attempt = attempt.wrapping_add(1);
            self.pause(backoff);
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    fn pause(&self, backoff: Duration) {
        // Half of it is random, so that many workers and instances do not come back in step.
        let until = Instant::now() + backoff / 2 + backoff.mul_f64(fastrand::f64() / 2.0);
        while Instant::now() < until {
            self.driver.bell.wait();
        }
    }

    fn connect(&self, attempt: usize) -> io::Result<Socket> {
        let address = self.target.address(attempt).ok_or_else(|| io::Error::other("no address"))?;
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let raw = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let raw = fd::place(raw, self.worker, self.workers.count())?;
        sockopt::set_tcp_nodelay(&raw, true)?;
        match rustix::net::connect(&raw, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(e) => return Err(e.into()),
        }
        let io = Watched::new(raw)?;
        *self.driver.waker.lock() = io.waker();
        let begun = Instant::now();
        loop {
            if let Err(e) = sockopt::socket_error(io.fd())? {
                return Err(e.into());
            }
            if rustix::net::getpeername(io.fd()).is_ok() {
                return Ok(Socket { io, unsent: Vec::new(), received: vec![0; READ_BYTES], filled: 0 });
            }
            if begun.elapsed() > self.timeout {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took too long"));
            }
            io.wait();
        }
    }

    /// Serves a connection until it ends. Says when the greeting was completed, if it was, and how the connection ended.
    fn serve(&mut self, socket: &mut Socket) -> (Option<Instant>, ConnectionEnd<P::Fault>) {
        let begun = Instant::now();
        let logins = self.target.log_in(&mut socket.unsent);
        let expected = logins + self.protocol.greet(&mut socket.unsent);
        let (mut answered, mut greeted) = (0, None);
        loop {
            if greeted.is_some()
                && let Err(fault) = self.protocol.fill(&mut socket.unsent)
            {
                return (greeted, ConnectionEnd::Fault(fault));
            }
            if let Err(e) = socket.send() {
                return (greeted, ConnectionEnd::Sending(e));
            }
            let events = socket.io.wait();
            let handled = socket.receive(events, |reply| {
                if greeted.is_some() {
                    return self.protocol.reply(reply).map_err(ConnectionEnd::Fault);
                }
                match reply {
                    Reply::Error(error) if answered < logins => {
                        return Err(ConnectionEnd::LoginRefused(error.to_string()));
                    }
                    _ if answered >= logins => {
                        self.protocol.greeted(answered - logins, reply).map_err(ConnectionEnd::Fault)?;
                    }
                    _ => {}
                }
                answered += 1;
                if answered == expected {
                    greeted = Some(Instant::now());
                    self.protocol.ready();
                }
                Ok(())
            });
            if let Err(end) = handled {
                return (greeted, end);
            }
            let since = if greeted.is_some() { self.protocol.waiting_since() } else { Some(begun) };
            if since.is_some_and(|since| since.elapsed() > self.timeout) {
                return (greeted, ConnectionEnd::Silent(self.timeout));
            }
        }
    }
}

impl Socket {
    /// Whether nothing is left to send and no reply has begun to come.
    fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.filled == 0
    }

    /// Sends what the socket takes. The rest waits for the next wake-up.
    fn send(&mut self) -> io::Result<()> {
        let mut sent = 0;
        while let Some(rest) = self.unsent.get(sent..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(self.io.fd(), rest, SendFlags::NOSIGNAL) {
                Ok(n) => sent += n,
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.unsent.drain(..sent);
        Ok(())
    }

    /// Receives what `events` announce and gives each whole reply to `each`.
    fn receive<F>(
        &mut self,
        events: usize,
        mut each: impl FnMut(Reply<'_>) -> Result<(), ConnectionEnd<F>>,
    ) -> Result<(), ConnectionEnd<F>> {
        if events & (READABLE | ENDED) == 0 {
            return Ok(());
        }
        loop {
            let room = self.received.get_mut(self.filled..).unwrap_or_default();
            let space = room.len();
            let count = match rustix::io::read(self.io.fd(), room) {
                Ok(0) => return Err(ConnectionEnd::Closed),
                Ok(n) => n,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(ConnectionEnd::Receiving(e.into())),
            };
            self.filled += count;
            self.parse(&mut each)?;
            // A short read has emptied the socket: the next bytes are a new event. An end that was announced with
            // the bytes is not announced again.
            if count < space && events & ENDED == 0 {
                return Ok(());
            }
        }
    }

    fn parse<F>(
        &mut self,
        each: &mut impl FnMut(Reply<'_>) -> Result<(), ConnectionEnd<F>>,
    ) -> Result<(), ConnectionEnd<F>> {
        let mut used = 0;
        let filled = self.received.get(..self.filled).unwrap_or_default();
        while let Some((reply, length)) =
            resp::parse(filled.get(used..).unwrap_or_default()).map_err(|_| ConnectionEnd::Malformed)?
        {
            used += length;
            each(reply)?;
        }
        self.received.copy_within(used..self.filled, 0);
        self.filled -= used;
        if self.filled == self.received.len() {
            // The parser refuses a reply that is longer than MAX_REPLY_BYTES, which bounds this.
            self.received.resize(self.received.len() * 2, 0);
        }
        Ok(())
    }
}
