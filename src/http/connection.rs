//! One connection: a coroutine on the worker that its descriptor belongs to.
//!
//! Owns reading, the order of answers, the time limit of each phase and closing. Invariants: one request at a time, answers
//! in the order of requests; a request that has not arrived completely has no effect. Leaves the meaning of a request to
//! the [`Service`].

use super::body::BodySkipper;
use super::request::{self, Body, MAX_HEAD_BYTES, Method, Parse, Reject};
use super::response::Responder;
use super::service::Service;
use super::side::{Shared, WorkerServer};
use rustix::buffer::spare_capacity;
use rustix::net::{SendFlags, Shutdown};
use std::sync::Arc;
use std::time::Duration;

/// The usual size of the buffer that a connection reads into: any usual head, and a few pipelined requests.
const BUFFER_BYTES: usize = 4 << 10;
/// The size up to which that buffer doubles if a connection needs it: the longest head, and as much behind it.
const MAX_BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;
/// The usual size of the buffer for answers: a few pipelined ones.
const OUTPUT_BYTES: usize = 1024;
/// Answers of pipelined requests gather up to this many bytes, then they are sent before the next request is parsed: a peer
/// that sends and never reads costs this much memory and one answer more.
const OUTPUT_LIMIT: usize = 16 << 10;
/// The most bytes of the output's memory that are kept between answers.
const OUTPUT_KEPT: usize = 2 * OUTPUT_LIMIT;
/// How many reads in a row may fill the whole buffer before the connection pauses until the next tick. Without a bound, a
/// peer that sends faster than the server parses would occupy the worker.
const READS_IN_A_ROW: usize = 16;

/// How long a request may take to arrive, head and body, counted from its first byte.
const ARRIVAL: Duration = Duration::from_secs(10);
/// How long a peer may take to receive an answer.
const SENDING: Duration = Duration::from_secs(10);
/// How long the connection reads and drops what a peer still sends after a refusal, so that the refusal reaches the peer.
const LINGER: Duration = Duration::from_secs(1);
/// The most bytes that are dropped then.
const LINGER_BYTES: usize = 512 << 10;

/// Events as the event loop reports them (epoll's EPOLLIN, and EPOLLERR | EPOLLHUP | EPOLLRDHUP).
const READABLE: usize = 0x1;
const ENDED: usize = 0x8 | 0x10 | 0x2000;

/// The facts of a request that its answer needs.
struct Begun {
    head_len: usize,
    keep_alive: bool,
    http_11: bool,
    head_only: bool,
}

/// The connection ends: it was closed, failed or ran into a time limit. The cause makes no difference.
struct Ended;

pub(super) struct Connection<S: Service> {
    server: Arc<WorkerServer<S>>,
    shared: Arc<Shared>,
    session: S::Session,
    input: Vec<u8>,
    /// The index in `input` of the first byte that was not dealt with.
    start: usize,
    output: Vec<u8>,
    scratch: Vec<u8>,
    events: usize,
    /// How many reads in a row have filled the whole buffer.
    full_reads: usize,
}

impl<S: Service> Connection<S> {
    pub(super) fn new(server: Arc<WorkerServer<S>>, shared: Arc<Shared>) -> Connection<S> {
        let session = server.service().session(server.worker(), shared.io.waker());
        Connection {
            server,
            shared,
            session,
            input: Vec::with_capacity(BUFFER_BYTES),
            start: 0,
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
        // While the server drains, all requests that have arrived are served before the connection is closed.
        let last = self.server.is_draining() && self.start == self.input.len();
        let keep_alive = begun.keep_alive && !last;
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

    /// Waits for the service's answer. Earlier answers are sent first.
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

    /// Refuses the connection: all places are taken.
    pub(super) fn refuse(mut self) {
        let date = self.server.date();
        let out = &mut self.output;
        let scratch = &mut self.scratch;
        let answers = self.server.answers();
        Responder { out, scratch, answers, date: &date, keep_alive: false, http_11: true, head_only: false }.full();
        if self.send().is_ok() {
            self.linger();
        }
    }

    /// Reads until a request and its body have arrived, drops the body and gives the request to the service.
    fn read_request(&mut self) -> Result<(Begun, Option<S::Answer>), Ended> {
        if self.start == self.input.len() {
            self.empty();
        }
        let mut limited = false;
        let mut body_gone = false;
        loop {
            let bytes = self.input.get(self.start..).unwrap_or_default();
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
                    let body = request.body;
                    let expects = request.expect_continue;
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
            // No whole request is there: send the answers so far.
            self.send()?;
            self.compact();
            let parsed = self.input.len();
            loop {
                let arriving = !self.input.is_empty();
                if !limited {
                    self.limit(if arriving { ARRIVAL } else { self.server.service().idle() });
                    limited = arriving;
                }
                self.read_more(arriving)?;
                // A head that comes byte by byte is not parsed at each byte: at each line's end, and when it has doubled.
                let new = self.input.get(parsed..).unwrap_or_default();
                if self.input.len() >= (2 * parsed).min(MAX_HEAD_BYTES) || new.contains(&b'\n') {
                    break;
                }
            }
        }
    }

    /// Reads once. The connection counts as idle meanwhile if no byte of a request has come.
    fn read_more(&mut self, arriving: bool) -> Result<(), Ended> {
        if arriving {
            return self.read();
        }
        self.shared.set_idle();
        self.read()?;
        if self.shared.set_busy() {
            self.shared.set_used();
            Ok(())
        } else {
            Err(Ended)
        }
    }

    /// Reads and drops the body that follows the head.
    fn skip_body(&mut self, body: Body, expects: bool, head_len: usize) -> Result<(), Ended> {
        let mut skipper = BodySkipper::new(body);
        let mut continued = !expects;
        loop {
            let from = self.start + head_len;
            let skipped = match skipper.skip(self.input.get(from..).unwrap_or_default()) {
                Ok(skipped) => skipped,
                Err(reject) => return self.reject(reject),
            };
            // The head stays where it is; the bytes behind the skipped ones move up to it.
            self.drop_bytes(from, skipped.used);
            if skipped.done {
                return Ok(());
            }
            if !continued {
                continued = true;
                self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            // Earlier answers are sent now: this request's body may never come.
            self.send()?;
            self.compact();
            self.read()?;
        }
    }

    /// Answers that what the peer sent is not a request, and ends.
    fn reject<T>(&mut self, reject: Reject) -> Result<T, Ended> {
        let date = self.server.date();
        let out = &mut self.output;
        let scratch = &mut self.scratch;
        let answers = self.server.answers();
        Responder { out, scratch, answers, date: &date, keep_alive: false, http_11: true, head_only: false }
            .reject(reject);
        self.send()?;
        self.linger();
        Err(Ended)
    }

    /// Sets the time limit of the phase that begins now.
    fn limit(&self, time: Duration) {
        self.shared.set_deadline(self.server.deadline_ms(time));
    }

    /// Waits for an event of the socket, or for a wake-up.
    fn wait(&mut self) {
        crate::worker::debug_assert_on(self.server.worker());
        self.events |= self.shared.io.wait();
    }

    /// Forgets the bytes of `input`.
    fn empty(&mut self) {
        self.input.clear();
        self.start = 0;
    }

    /// Removes `count` bytes from `input` at `at`; the bytes behind them move up.
    fn drop_bytes(&mut self, at: usize, count: usize) {
        let left = self.input.len().saturating_sub(count);
        self.input.copy_within(at + count.., at);
        self.input.truncate(left);
    }

    /// Moves the bytes that were not dealt with to the front, so that there is room behind them.
    fn compact(&mut self) {
        if self.start > 0 {
            self.drop_bytes(0, self.start);
            self.start = 0;
        }
    }

    /// Makes room behind `input`. `Err` if it has its greatest size, or if there is no memory.
    fn grow(&mut self) -> Result<(), Ended> {
        let bytes = (self.input.capacity() * 2).clamp(BUFFER_BYTES, MAX_BUFFER_BYTES);
        let more = bytes.checked_sub(self.input.len()).filter(|more| *more > 0).ok_or(Ended)?;
        self.input.try_reserve_exact(more).map_err(|_| Ended)?;
        self.shared.set_grown();
        Ok(())
    }

    /// Gives a grown buffer back, once the connection has been idle for a while.
    fn shrink(&mut self) {
        if self.input.is_empty() && self.input.capacity() > BUFFER_BYTES && !self.shared.is_grown() {
            self.input = Vec::with_capacity(BUFFER_BYTES);
        }
    }

    /// Pauses until the next tick, so that the worker serves others.
    fn pause(&mut self) -> Result<(), Ended> {
        self.full_reads = 0;
        self.shared.set_paused();
        while self.shared.is_paused() {
            if self.shared.is_over() {
                return Err(Ended);
            }
            self.wait();
        }
        Ok(())
    }

    /// Waits until there is something to read, and reads once.
    fn read(&mut self) -> Result<(), Ended> {
        if self.full_reads >= READS_IN_A_ROW {
            self.pause()?;
        }
        let mut looked = false;
        loop {
            while self.events & (READABLE | ENDED) == 0 {
                // A request may have come just before an idle connection is ended: look at the socket once more.
                if self.shared.is_over() && (looked || !self.shared.is_idle()) {
                    return Err(Ended);
                }
                if self.shared.is_over() {
                    looked = true;
                    break;
                }
                self.wait();
                self.shrink();
            }
            if self.input.len() == self.input.capacity() {
                self.grow()?;
            }
            match rustix::io::read(self.shared.io.fd(), spare_capacity(&mut self.input)) {
                Ok(0) => return Err(Ended),
                Ok(_) if self.input.len() == self.input.capacity() => {
                    self.full_reads += 1;
                    // The client sends much at once: read in larger pieces.
                    let _ = self.grow();
                    return Ok(());
                }
                Ok(_) => {
                    // The socket is empty: the next bytes are a new event. The end of the connection is only one event,
                    // so it stays noted.
                    self.events &= !READABLE;
                    self.full_reads = 0;
                    return Ok(());
                }
                Err(rustix::io::Errno::AGAIN) => self.events = 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Err(Ended),
            }
        }
    }

    /// Sends all of `output`, within [`SENDING`] if the socket is full.
    fn send(&mut self) -> Result<(), Ended> {
        if self.output.is_empty() {
            return Ok(());
        }
        let mut sent = 0;
        let mut limited = false;
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

    /// Ends the sending side, then reads and drops what still comes: closing with unread bytes would reset the connection,
    /// and the peer would lose the answer (RFC 9112, section 9.6).
    fn linger(&mut self) {
        if rustix::net::shutdown(self.shared.io.fd(), Shutdown::Write).is_err() {
            return;
        }
        self.limit(LINGER);
        let mut dropped = 0;
        while dropped < LINGER_BYTES {
            self.empty();
            if self.read().is_err() {
                return;
            }
            dropped += self.input.len();
        }
    }
}
