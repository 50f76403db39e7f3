//! One connection: a coroutine on the worker that its descriptor belongs to.
//!
//! Owns the reading, the order of answers, the time limits of each phase and the closing. Invariant: one request at
//! a time, answers in the order of requests; a request that is not whole has no effect. Leaves it to the [`Service`] to
//! know what a request means.

use super::body::BodySkipper;
use super::request::{self, Body, MAX_HEAD_BYTES, Method, Parse, Reject};
use super::response::Responder;
use super::service::Service;
use super::side::{Shared, WorkerServer};
use rustix::buffer::spare_capacity;
use rustix::net::{SendFlags, Shutdown};
use std::sync::Arc;
use std::time::Duration;

/// What a connection reads into: any usual head, and a few pipelined requests.
const BUFFER_BYTES: usize = 4 << 10;
/// What that grows to, doubling, on a connection that needs it: a head, and room for the next one or a piece of a body.
const MAX_BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;
/// An answer's usual size, with room for a few pipelined ones.
const OUTPUT_BYTES: usize = 1024;
/// Answers of pipelined requests gather up to here, then they go out before the next request is looked at: a peer who
/// asks and never reads costs this and one answer more.
const OUTPUT_LIMIT: usize = 16 << 10;
/// What of the output's memory is kept between answers.
const OUTPUT_KEPT: usize = 2 * OUTPUT_LIMIT;
/// Reads that fill the whole buffer, one after the other, before the connection lets its worker go on with others. A peer
/// that sends faster than the server parses would never let go by itself.
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
    server: Arc<WorkerServer<S>>,
    shared: Arc<Shared>,
    session: S::Session,
    input: Vec<u8>,
    /// Where in `input` the bytes begin that are not dealt with.
    start: usize,
    output: Vec<u8>,
    scratch: Vec<u8>,
    events: usize,
    /// How many reads in a row have filled the buffer.
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
        // At the end of the server, what has been sent behind this request is served before the connection is closed.
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

    /// Tells the peer that there is no room for it.
    pub(super) fn refuse(mut self) {
        let date = self.server.date();
        let (out, scratch, answers) = (&mut self.output, &mut self.scratch, self.server.answers());
        Responder { out, scratch, answers, date: &date, keep_alive: false, http_11: true, head_only: false }.full();
        if self.send().is_ok() {
            self.linger();
        }
    }

    /// Reads until a request is there with its body, throws the body away and gives the request to the service.
    fn read_request(&mut self) -> Result<(Begun, Option<S::Answer>), Ended> {
        if self.start == self.input.len() {
            self.empty();
        }
        let (mut limited, mut body_gone) = (false, false);
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
            let parsed = self.input.len();
            loop {
                let arriving = !self.input.is_empty();
                if !limited {
                    self.limit(if arriving { ARRIVAL } else { self.server.service().idle() });
                    limited = arriving;
                }
                self.read_more(arriving)?;
                // A head that comes byte by byte is not parsed as often: at each line's end, and when it has doubled.
                let new = self.input.get(parsed..).unwrap_or_default();
                if self.input.len() >= (2 * parsed).min(MAX_HEAD_BYTES) || new.contains(&b'\n') {
                    break;
                }
            }
        }
    }

    /// Reads once; while nothing of a request has come, the connection is idle.
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

    /// Throws away the body that follows the head.
    fn skip_body(&mut self, body: Body, expects: bool, head_len: usize) -> Result<(), Ended> {
        let mut skipper = BodySkipper::new(body);
        let mut told = !expects;
        loop {
            let from = self.start + head_len;
            let skipped = match skipper.skip(self.input.get(from..).unwrap_or_default()) {
                Ok(skipped) => skipped,
                Err(reject) => return self.reject(reject),
            };
            // The head stays where it is; what follows the skipped bytes moves up to it.
            self.drop_bytes(from, skipped.used);
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
        self.shared.set_deadline(self.server.deadline_ms(time));
    }

    /// Waits for an event, or for the waker.
    fn wait(&mut self) {
        crate::worker::debug_assert_on(self.server.worker());
        self.events |= self.shared.io.wait();
    }

    /// Forgets the bytes of `input`.
    fn empty(&mut self) {
        self.input.clear();
        self.start = 0;
    }

    /// Takes `count` bytes out of `input` at `at`; what follows moves up.
    fn drop_bytes(&mut self, at: usize, count: usize) {
        let left = self.input.len().saturating_sub(count);
        self.input.copy_within(at + count.., at);
        self.input.truncate(left);
    }

    /// Moves what is not dealt with to the front, so that there is room behind it.
    fn compact(&mut self) {
        if self.start > 0 {
            self.drop_bytes(0, self.start);
            self.start = 0;
        }
    }

    /// Makes room behind `input`, which may not grow any further.
    fn grow(&mut self) -> Result<(), Ended> {
        let bytes = (self.input.capacity() * 2).clamp(BUFFER_BYTES, MAX_BUFFER_BYTES);
        let more = bytes.checked_sub(self.input.len()).filter(|more| *more > 0).ok_or(Ended)?;
        self.input.try_reserve_exact(more).map_err(|_| Ended)?;
        self.shared.set_grown();
        Ok(())
    }

    /// Takes the usual size of a buffer again, once the connection has been idle for a while.
    fn shrink(&mut self) {
        if self.input.is_empty() && self.input.capacity() > BUFFER_BYTES && !self.shared.is_grown() {
            self.input = Vec::with_capacity(BUFFER_BYTES);
        }
    }

    /// Lets the worker go on with others until its next tick.
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

    /// Reads once, when there is something to read.
    fn read(&mut self) -> Result<(), Ended> {
        if self.full_reads >= READS_IN_A_ROW {
            self.pause()?;
        }
        let mut looked = false;
        loop {
            while self.events & (READABLE | ENDED) == 0 {
                // A request may have come just before an idle connection ends.
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
                    // The client sends much at once: the connection reads from it in larger pieces.
                    let _ = self.grow();
                    return Ok(());
                }
                Ok(_) => {
                    // The socket is empty: the next bytes are a new event. An end is announced only once.
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
            self.empty();
            if self.read().is_err() {
                return;
            }
            thrown += self.input.len();
        }
    }
}
