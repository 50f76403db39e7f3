//! One connection: a coroutine on the worker that its descriptor belongs to.
//!
//! Owns the order of requests and answers, the number of open requests, and the time limits of arriving, of an answer and of
//! silence. Invariants:
//! - Answers are sent in the order of their requests. A request that has not arrived completely has no effect.
//! - A request that waits for its answer lets the requests begin that have arrived whole behind it, so that they are decided
//!   in the same batch. At most [`MAX_OPEN`] are open at once.
//! - While a request is open, nothing is done that needs a further byte of the peer: a partial head, the rest of a body,
//!   `100 Continue` and a refusal of bytes that are no request come after the answers to the open requests.
//! - Each request has its own time for its answer, counted from its own beginning.
//!
//! Leaves the bytes to the [`Stream`], and the meaning of a request to the [`Service`].

use super::body::BodySkipper;
use super::request::{self, Body, MAX_HEAD_BYTES, Method, Parse, Reject};
use super::response::Responder;
use super::service::Service;
use super::side::{Shared, WorkerServer};
use super::stream::{Ended, Stream};
use crate::worker::{Begun, Ticket};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long a request may take to arrive, head and body, counted from its first byte.
const ARRIVAL: Duration = Duration::from_secs(10);

/// How many requests of a connection are open at once: as many as make batches large. All of them take about 20 kB, here and in the
/// inventory's queue.
const MAX_OPEN: usize = 64;

/// A request that was begun and is not answered.
struct Open<A> {
    facts: Facts,
    answer: Reply<A>,
}

/// The facts of a request that its answer needs.
struct Facts {
    keep_alive: bool,
    http_11: bool,
    head_only: bool,
}

/// The answer to an open request, or when and under which ticket it comes.
enum Reply<A> {
    Known(A),
    /// `until_ms` is the end of the request's time, in the worker's milliseconds.
    Waits {
        ticket: Ticket,
        until_ms: u64,
    },
}

/// What the unread bytes begin with.
enum Next<A> {
    /// A whole request, which was begun.
    Begun(Open<A>),
    /// A head whose body is not there yet, or is malformed.
    Body { body: Body, expects: bool, head_len: usize },
    /// The beginning of a head, or nothing.
    Partial,
    /// Not a request.
    Reject(Reject),
}

pub(super) struct Connection<S: Service> {
    stream: Stream<S>,
    session: S::Session,
    /// The open requests behind the one that is being answered, in their order.
    behind: VecDeque<Open<S::Answer>>,
}

impl<S: Service> Connection<S> {
    pub(super) fn new(server: Arc<WorkerServer<S>>, shared: Arc<Shared>) -> Connection<S> {
        let session = server.service().session(server.worker(), shared.io.waker());
        let stream = Stream::new(server, shared);
        Connection { stream, session, behind: VecDeque::new() }
    }

    /// Serves until the connection ends.
    pub(super) fn run(mut self) {
        while self.serve().is_ok() {}
    }

    /// Serves the next request, and those that have arrived behind it if it has to wait for its answer. `Err` when there is
    /// no next one.
    fn serve(&mut self) -> Result<(), Ended> {
        let Open { facts, answer } = self.next_request()?;
        match answer {
            Reply::Known(answer) => self.respond(&facts, &answer),
            Reply::Waits { ticket, until_ms } => {
                if facts.keep_alive {
                    self.begin_behind();
                }
                let answer = self.await_answer(ticket, until_ms)?;
                self.respond(&facts, &answer)?;
                self.answer_behind()
            }
        }
    }

    /// Answers the open requests behind the first one.
    fn answer_behind(&mut self) -> Result<(), Ended> {
        while let Some(Open { facts, answer }) = self.behind.pop_front() {
            let answer = match answer {
                Reply::Known(answer) => answer,
                Reply::Waits { ticket, until_ms } => self.await_answer(ticket, until_ms)?,
            };
            self.respond(&facts, &answer)?;
        }
        Ok(())
    }

    /// Waits for the next request and begins it. No other request is open meanwhile.
    fn next_request(&mut self) -> Result<Open<S::Answer>, Ended> {
        debug_assert!(self.behind.is_empty(), "open requests are answered first");
        let mut limited = false;
        let mut body_gone = false;
        loop {
            let next = if self.stream.has_unread() { self.begin_next(body_gone) } else { Next::Partial };
            match next {
                Next::Begun(open) => return Ok(open),
                Next::Body { body, expects, head_len } => {
                    if !limited {
                        self.stream.limit(ARRIVAL);
                        limited = true;
                    }
                    self.skip_body(body, expects, head_len)?;
                    body_gone = true;
                }
                Next::Partial => self.read_head(&mut limited)?,
                Next::Reject(reject) => return self.reject(reject),
            }
        }
    }

    /// Begins the requests that have arrived whole behind one that waits for its answer.
    #[inline(never)]
    fn begin_behind(&mut self) {
        while self.behind.len() < MAX_OPEN - 1 {
            match self.begin_next(false) {
                Next::Begun(open) => {
                    let is_last = !open.facts.keep_alive;
                    self.behind.push_back(open);
                    if is_last {
                        break;
                    }
                }
                Next::Partial if self.stream.read_arrived() => {}
                Next::Partial | Next::Body { .. } | Next::Reject(_) => break,
            }
        }
        if !self.behind.is_empty() {
            self.stream.set_grown();
        }
    }

    /// Begins the request at the front of the unread bytes if it is whole. `body_gone` says that its body was removed.
    // Inlined in both places: its result is some hundred bytes that would be copied several times.
    #[inline(always)]
    fn begin_next(&mut self, body_gone: bool) -> Next<S::Answer> {
        let bytes = self.stream.unread();
        let (request, head_len) = match request::parse(bytes) {
            Parse::Complete { request, head_len } => (request, head_len),
            Parse::Partial => return Next::Partial,
            Parse::Reject(reject) => return Next::Reject(reject),
        };
        let mut length = head_len;
        if request.body != Body::None && !body_gone {
            match BodySkipper::new(request.body).skip(bytes.get(head_len..).unwrap_or_default()) {
                Ok(skipped) if skipped.done => length += skipped.used,
                _ => return Next::Body { body: request.body, expects: request.expect_continue, head_len },
            }
        }
        let facts = Facts {
            keep_alive: request.keep_alive,
            http_11: request.http_11,
            head_only: request.method == Method::Head,
        };
        let server = &self.stream.server;
        let answer = match server.service().begin(&mut self.session, &request) {
            Begun::Answered(answer) => Reply::Known(answer),
            Begun::Waits(ticket) => Reply::Waits { ticket, until_ms: server.deadline_ms(server.service().patience()) },
        };
        self.stream.advance(length);
        Next::Begun(Open { facts, answer })
    }

    /// Writes the answer to a request. `Err` if it is the last one of the connection.
    #[inline(always)]
    fn respond(&mut self, facts: &Facts, answer: &S::Answer) -> Result<(), Ended> {
        let server = &self.stream.server;
        // While the server drains, all requests that have arrived are served before the connection is closed.
        let is_last = server.is_draining() && self.behind.is_empty() && !self.stream.has_unread();
        let keep_alive = facts.keep_alive && !is_last;
        let date = server.date();
        server.service().render(
            answer,
            &mut Responder {
                out: &mut self.stream.buffers.output,
                scratch: &mut self.stream.buffers.scratch,
                answers: server.answers(),
                date: &date,
                keep_alive,
                http_11: facts.http_11,
                head_only: facts.head_only,
            },
        );
        if keep_alive {
            return if self.stream.is_output_full() { self.stream.send() } else { Ok(()) };
        }
        debug_assert!(self.behind.is_empty(), "no request is begun behind the last one");
        self.stream.send()?;
        self.stream.linger();
        Err(Ended)
    }

    /// Waits for the answer under `ticket`, until `until_ms` at most. Earlier answers are sent first.
    fn await_answer(&mut self, ticket: Ticket, until_ms: u64) -> Result<S::Answer, Ended> {
        loop {
            if let Some(answer) = self.stream.server.service().poll(&mut self.session, ticket) {
                return Ok(answer);
            }
            // The time of the requests behind may be over at the same tick: none of them waits for another one.
            if until_ms <= self.stream.server.now_ms() {
                return Ok(self.stream.server.service().give_up(&mut self.session, ticket));
            }
            if self.stream.buffers.output.is_empty() {
                self.stream.shared.set_deadline(until_ms);
                self.stream.wait();
            } else {
                // It may wait itself, and the answer may come meanwhile.
                self.stream.send()?;
            }
        }
    }

    /// Refuses the connection: all places are taken.
    pub(super) fn refuse(mut self) {
        self.respond_and_end(|to| to.full());
    }

    /// Answers that what the peer sent is not a request, and ends.
    fn reject<T>(&mut self, reject: Reject) -> Result<T, Ended> {
        self.respond_and_end(|to| to.reject(reject));
        Err(Ended)
    }

    /// Sends an answer that belongs to no request, and ends the connection.
    fn respond_and_end(&mut self, write: impl FnOnce(&mut Responder<'_>)) {
        let date = self.stream.server.date();
        let out = &mut self.stream.buffers.output;
        let scratch = &mut self.stream.buffers.scratch;
        let answers = self.stream.server.answers();
        write(&mut Responder {
            out,
            scratch,
            answers,
            date: &date,
            keep_alive: false,
            http_11: true,
            head_only: false,
        });
        if self.stream.send().is_ok() {
            self.stream.linger();
        }
    }

    /// Reads until the unread bytes may be a whole head. The answers so far are sent first.
    fn read_head(&mut self, limited: &mut bool) -> Result<(), Ended> {
        self.stream.send()?;
        self.stream.compact();
        let parsed = self.stream.unread().len();
        loop {
            let is_arriving = self.stream.has_unread();
            if !*limited {
                self.stream.limit(if is_arriving { ARRIVAL } else { self.stream.server.service().idle() });
                *limited = is_arriving;
            }
            self.read_more(is_arriving)?;
            // A head that comes byte by byte is not parsed at each byte: at each line's end, and when it has doubled.
            let bytes = self.stream.unread();
            let new = bytes.get(parsed..).unwrap_or_default();
            if bytes.len() >= (2 * parsed).min(MAX_HEAD_BYTES) || new.contains(&b'\n') {
                return Ok(());
            }
        }
    }

    /// Reads once. The connection counts as idle meanwhile if no byte of a request has come.
    fn read_more(&mut self, is_arriving: bool) -> Result<(), Ended> {
        if is_arriving {
            return self.stream.read(&mut |_| {});
        }
        self.stream.shared.set_idle();
        let (session, behind) = (&mut self.session, &mut self.behind);
        self.stream.read(&mut |service| {
            service.shrink(session);
            *behind = VecDeque::new();
        })?;
        if self.stream.shared.set_busy() {
            self.stream.shared.set_used();
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
            let skipped = match skipper.skip(self.stream.unread().get(head_len..).unwrap_or_default()) {
                Ok(skipped) => skipped,
                Err(reject) => return self.reject(reject),
            };
            // The head stays where it is; the bytes behind the skipped ones move up to it.
            self.stream.remove(head_len, skipped.used);
            if skipped.done {
                return Ok(());
            }
            if !continued {
                continued = true;
                self.stream.buffers.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            // Earlier answers are sent now: this request's body may never come.
            self.stream.send()?;
            self.stream.compact();
            self.stream.read(&mut |_| {})?;
        }
    }
}
