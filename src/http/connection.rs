//! One connection: a coroutine on the core that its descriptor belongs to.
//!
//! Owns the reading, the order of answers, the time limits of each phase and the closing. Invariant: one request at
//! a time, answers in the order of requests; a request that is not whole has no effect. Refuses to know what a
//! request means: that is the [`Service`]'s.

use super::body::BodySkipper;
use super::request::{self, Body, Head, MAX_HEAD_BYTES, Method, Parse, Reject};
use super::response::Responder;
use super::server::CoreServer;
use crate::core::Watched;
use may::io::WaitIoWaker;
use rustix::net::{SendFlags, Shutdown};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What a connection reads into: a head, and room for the next one or a piece of a body behind it.
const BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;
/// An answer's usual size, with room for a few pipelined ones.
const OUTPUT_BYTES: usize = 1024;
/// Answers of pipelined requests gather up to here, then they go out before the next request is looked at: a peer who
/// asks and never reads costs this and one answer more.
const OUTPUT_LIMIT: usize = 16 << 10;
/// What of the output's memory is kept between answers.
const OUTPUT_KEPT: usize = 2 * OUTPUT_LIMIT;
/// Reads that fill the whole buffer, one after the other, before the connection lets its core go on with others. A peer
/// who sends faster than we parse would never let go by himself.
const READS_IN_A_ROW: usize = 16;

/// How long a request may take to arrive, head and body, from its first byte.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How long a peer may take to receive an answer.
const SENDING: Duration = Duration::from_secs(10);
/// How long what a peer still sends is thrown away after a refusal, so that the refusal reaches him.
const LINGER: Duration = Duration::from_secs(1);
/// How much is thrown away then.
const LINGER_BYTES: usize = 512 << 10;

/// Events as the event loop reports them (epoll's EPOLLIN, and EPOLLERR | EPOLLHUP | EPOLLRDHUP).
const READABLE: usize = 0x1;
const ENDED: usize = 0x8 | 0x10 | 0x2000;

/// What answers requests. It never blocks: what it cannot answer at once it announces with the session's waker.
pub trait Service: Send + Sync + 'static {
    /// What a connection keeps between requests.
    type Session: Send;
    /// What there is to say to a request.
    type Answer;

    /// A new connection on `core`, whose coroutine `waker` wakes.
    fn session(&self, core: usize, waker: WaitIoWaker) -> Self::Session;
    /// Takes a request whose body has arrived. `None`: the answer will come, and the waker with it.
    fn begin(&self, session: &mut Self::Session, head: &Head<'_>) -> Option<Self::Answer>;
    /// After a wake-up: the answer, if it is there.
    fn poll(&self, session: &mut Self::Session) -> Option<Self::Answer>;
    /// The time for an answer is over.
    fn give_up(&self, session: &mut Self::Session) -> Self::Answer;
    /// How long an answer may take.
    fn patience(&self) -> Duration;
    /// How long a connection may be silent between two requests.
    fn idle(&self) -> Duration;
    /// Writes an answer.
    fn render(&self, answer: &Self::Answer, to: &mut Responder<'_>);
}

/// What the core's sweep sees of a connection.
pub(super) struct Shared {
    pub(super) io: Watched,
    /// When the present phase is over, in the core's milliseconds; 0 once it is.
    deadline_ms: AtomicU64,
    /// Whether it waits for a request of which nothing has come yet.
    idle: AtomicBool,
    /// Whether it waits for the next tick, to let others run.
    paused: AtomicBool,
}

impl Shared {
    pub(super) fn new(io: Watched) -> Shared {
        let (idle, paused) = (AtomicBool::new(false), AtomicBool::new(false));
        Shared { io, deadline_ms: AtomicU64::new(u64::MAX), idle, paused }
    }

    /// On the core's tick: wakes a connection whose time is over or that let others run, and idle ones when `draining`.
    pub(super) fn sweep(&self, now_ms: u64, draining: bool) {
        let mut over = self.deadline_ms.load(Ordering::Relaxed) <= now_ms;
        over |= draining && self.idle.load(Ordering::Relaxed);
        if over {
            self.deadline_ms.store(0, Ordering::Relaxed);
        }
        let paused = self.paused.load(Ordering::Relaxed);
        if paused {
            self.paused.store(false, Ordering::Relaxed);
        }
        if paused || over {
            self.io.waker().wakeup();
        }
    }

    fn is_over(&self) -> bool {
        self.deadline_ms.load(Ordering::Relaxed) == 0
    }
}

/// What is kept of a request's head once the service has it.
struct Begun {
    head_len: usize,
    keep_alive: bool,
    http_11: bool,
    head_only: bool,
}

/// Why a connection ends. There is nothing to do about any of it.
struct Ended;

pub(super) struct Connection<S: Service> {
    pub(super) server: Arc<CoreServer<S>>,
    pub(super) shared: Arc<Shared>,
    session: S::Session,
    input: Vec<u8>,
    /// Where the bytes begin that are not dealt with, and where they end.
    start: usize,
    end: usize,
    output: Vec<u8>,
    scratch: Vec<u8>,
    events: usize,
    /// How many reads in a row have filled the buffer.
    full_reads: usize,
}

impl<S: Service> Connection<S> {
    pub(super) fn new(server: Arc<CoreServer<S>>, shared: Arc<Shared>) -> Connection<S> {
        let session = server.service().session(server.core(), shared.io.waker());
        Connection {
            server,
            shared,
            session,
            input: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            output: Vec::with_capacity(OUTPUT_BYTES),
            scratch: Vec::with_capacity(OUTPUT_BYTES),
            events: 0,
            full_reads: 0,
        }
    }

    /// Serves until the connection ends.
    pub(super) fn run(mut self) {
        while self.serve_one().is_ok() {}
    }

    /// Serves the next request. `Err` when there is no next one.
    fn serve_one(&mut self) -> Result<(), Ended> {
        let (begun, answer) = self.read_request()?;
        let answer = match answer {
            Some(answer) => answer,
            None => self.await_answer()?,
        };
        self.start += begun.head_len;
        let keep_alive = begun.keep_alive && !self.server.is_draining();
        let date = self.server.date();
        self.server.service().render(
            &answer,
            &mut Responder {
                out: &mut self.output,
                scratch: &mut self.scratch,
                answers: self.server.answers(),
                date: &date,
                keep_alive,
                http_11: begun.http_11,
                head_only: begun.head_only,
            },
        );
        if keep_alive {
            return if self.output.len() > OUTPUT_LIMIT { self.send() } else { Ok(()) };
        }
        self.send()?;
        self.linger();
        Err(Ended)
    }

    /// Waits for the service's answer. What was answered before it goes out first.
    fn await_answer(&mut self) -> Result<S::Answer, Ended> {
        let sent = self.send();
        self.limit(self.server.service().patience());
        loop {
            if let Some(answer) = self.server.service().poll(&mut self.session) {
                return sent.map(|()| answer);
            }
            if self.shared.is_over() {
                return Ok(self.server.service().give_up(&mut self.session));
            }
            self.wait();
        }
    }

    /// Reads until a request is there with its body, throws the body away and gives the request to the service.
    fn read_request(&mut self) -> Result<(Begun, Option<S::Answer>), Ended> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        let (mut limited, mut body_gone) = (false, false);
        loop {
            let bytes = self.input.get(self.start..self.end).unwrap_or_default();
            match request::parse(bytes) {
                Parse::Complete { request, head_len } if body_gone || request.body == Body::None => {
                    let begun = Begun {
                        head_len,
                        keep_alive: request.keep_alive,
                        http_11: request.http_11,
                        head_only: request.method == Method::Head,
                    };
                    return Ok((begun, self.server.service().begin(&mut self.session, &request)));
                }
                Parse::Complete { request, head_len } => {
                    let (body, expects) = (request.body, request.expect_continue);
                    if !limited {
                        self.limit(ARRIVAL);
                        limited = true;
                    }
                    self.skip_body(body, expects, head_len)?;
                    body_gone = true;
                    continue;
                }
                Parse::Reject(reject) => return self.reject(reject),
                Parse::Partial => {}
            }
            // Nothing more to answer for now.
            self.send()?;
            self.compact();
            let arriving = self.start != self.end;
            // What has been sent before the end was known is still answered.
            if self.server.is_draining() && !arriving && self.events & READABLE == 0 {
                return Err(Ended);
            }
            if !limited {
                self.limit(if arriving { ARRIVAL } else { self.server.service().idle() });
                limited = arriving;
            }
            self.shared.idle.store(!arriving, Ordering::Relaxed);
            self.read()?;
            self.shared.idle.store(false, Ordering::Relaxed);
        }
    }

    /// Throws away the body that follows the head.
    fn skip_body(&mut self, body: Body, expects: bool, head_len: usize) -> Result<(), Ended> {
        let mut skipper = BodySkipper::new(body);
        let mut told = !expects;
        loop {
            let from = self.start + head_len;
            let skipped = match skipper.skip(self.input.get(from..self.end).unwrap_or_default()) {
                Ok(skipped) => skipped,
                Err(reject) => return self.reject(reject),
            };
            // The head stays where it is; what follows the skipped bytes moves up to it.
            self.input.copy_within(from + skipped.used..self.end, from);
            self.end -= skipped.used;
            if skipped.done {
                return Ok(());
            }
            if !told {
                told = true;
                self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            // Earlier requests' answers do not wait for this one's body, which may never come.
            self.send()?;
            self.compact();
            self.read()?;
        }
    }

    /// Says what is wrong with what the peer sent, and ends.
    fn reject<T>(&mut self, reject: Reject) -> Result<T, Ended> {
        let date = self.server.date();
        let (out, scratch, answers) = (&mut self.output, &mut self.scratch, self.server.answers());
        Responder { out, scratch, answers, date: &date, keep_alive: false, http_11: true, head_only: false }
            .reject(reject);
        self.send()?;
        self.linger();
        Err(Ended)
    }

    /// Begins a phase that may take `time`.
    fn limit(&self, time: Duration) {
        self.shared.deadline_ms.store(self.server.deadline_ms(time), Ordering::Relaxed);
    }

    /// Waits for an event, or for the waker.
    fn wait(&mut self) {
        crate::core::debug_assert_on(self.server.core());
        self.events |= self.shared.io.wait();
    }

    /// Moves what is not dealt with to the front, so that there is room behind it.
    fn compact(&mut self) {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Lets the core go on with others until its next tick.
    fn pause(&mut self) -> Result<(), Ended> {
        self.full_reads = 0;
        self.shared.paused.store(true, Ordering::Relaxed);
        while self.shared.paused.load(Ordering::Relaxed) {
            if self.shared.is_over() {
                return Err(Ended);
            }
            self.wait();
        }
        Ok(())
    }

    /// Reads once, when there is something to read.
    fn read(&mut self) -> Result<(), Ended> {
        if self.full_reads >= READS_IN_A_ROW {
            self.pause()?;
        }
        loop {
            while self.events & (READABLE | ENDED) == 0 {
                if self.shared.is_over() {
                    return Err(Ended);
                }
                self.wait();
            }
            let room = self.input.get_mut(self.end..).filter(|room| !room.is_empty()).ok_or(Ended)?;
            let space = room.len();
            match rustix::io::read(self.shared.io.fd(), room) {
                Ok(0) => return Err(Ended),
                Ok(count) => {
                    self.end += count;
                    self.full_reads += 1;
                    if count < space {
                        // The socket is empty: the next bytes are a new event. An end is announced only once.
                        self.events &= !READABLE;
                        self.full_reads = 0;
                    }
                    return Ok(());
                }
                Err(rustix::io::Errno::AGAIN) => self.events = 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Err(Ended),
            }
        }
    }

    /// Sends all that is written, within [`SENDING`] if it has to wait.
    fn send(&mut self) -> Result<(), Ended> {
        if self.output.is_empty() {
            return Ok(());
        }
        let (mut sent, mut limited) = (0, false);
        while let Some(rest) = self.output.get(sent..).filter(|rest| !rest.is_empty()) {
            match rustix::net::send(self.shared.io.fd(), rest, SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    if !limited {
                        self.limit(SENDING);
                        limited = true;
                    }
                    self.wait();
                    if self.shared.is_over() {
                        return Err(Ended);
                    }
                }
                Err(_) => return Err(Ended),
            }
        }
        self.output.clear();
        if self.output.capacity() > OUTPUT_KEPT {
            self.output = Vec::with_capacity(OUTPUT_BYTES);
        }
        Ok(())
    }

    /// Ends the sending side and throws away what still comes: closing with unread bytes would reset the connection,
    /// and the answer with it (RFC 9112, section 9.6).
    fn linger(&mut self) {
        if rustix::net::shutdown(self.shared.io.fd(), Shutdown::Write).is_err() {
            return;
        }
        self.limit(LINGER);
        let mut thrown = 0;
        while thrown < LINGER_BYTES {
            (self.start, self.end) = (0, 0);
            if self.read().is_err() {
                return;
            }
            thrown += self.end;
        }
    }
}
