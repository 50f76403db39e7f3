//! The bytes of one connection: its socket, what was read and what is to be sent, its waits and its time limits.
//!
//! Owns reading, sending, pausing, lingering before the close, and the memory of the buffers. Invariants: at most
//! [`MAX_BUFFER_BYTES`] of input are kept; nothing is read while a send waits; a peer that sends faster than its requests are
//! served pauses after [`READS_IN_A_ROW`] reads. Leaves to the connection what the bytes mean, and when answers are sent.

use super::buffers::{Buffers, INPUT_BYTES, OUTPUT_BYTES};
use super::request::MAX_HEAD_BYTES;
use super::side::{Shared, WorkerServer};
use rustix::buffer::spare_capacity;
use rustix::net::{SendFlags, Shutdown};
use std::sync::Arc;
use std::time::Duration;

/// The size up to which the buffer that a connection reads into doubles if a connection needs it: the longest head, and as much behind it.
const MAX_BUFFER_BYTES: usize = 2 * MAX_HEAD_BYTES;
/// Answers of pipelined requests gather up to this many bytes, then they are sent before the next answer is written: a peer
/// that sends and never reads costs this much memory and one answer more.
const OUTPUT_LIMIT: usize = 16 << 10;
/// The most bytes of the output's memory that are kept between answers.
const OUTPUT_KEPT: usize = 2 * OUTPUT_LIMIT;
/// How many reads in a row may fill the whole buffer before the connection pauses until the next tick. Without a bound, a
/// peer that sends faster than the server parses would occupy the worker.
const READS_IN_A_ROW: usize = 16;

/// How long a peer may take to receive an answer.
const SENDING: Duration = Duration::from_secs(10);
/// How long the connection reads and drops what a peer still sends after a refusal, so that the refusal reaches the peer.
const LINGER: Duration = Duration::from_secs(1);
/// The most bytes that are dropped then.
const LINGER_BYTES: usize = 512 << 10;

/// Events as the event loop reports them (epoll's EPOLLIN, and EPOLLERR | EPOLLHUP | EPOLLRDHUP).
const READABLE: usize = 0x1;
const ENDED: usize = 0x8 | 0x10 | 0x2000;

/// The connection ends: it was closed, failed or ran into a time limit. The cause makes no difference.
pub(super) struct Ended;

/// What one attempt to read came to.
#[derive(PartialEq, Eq)]
enum Received {
    Bytes,
    Nothing,
    End,
}

pub(super) struct Stream<S> {
    pub(super) server: Arc<WorkerServer<S>>,
    pub(super) shared: Arc<Shared>,
    pub(super) buffers: Buffers,
    /// The index in the input of the first byte that was not dealt with.
    start: usize,
    /// What the event loop has reported, as far as it still holds.
    events: usize,
    /// How many reads in a row have filled the whole buffer.
    full_reads: usize,
    /// Whether the connection has more memory than usual.
    grown: bool,
}

impl<S> Stream<S> {
    pub(super) fn new(server: Arc<WorkerServer<S>>, shared: Arc<Shared>) -> Stream<S> {
        let buffers = server.spare.take();
        Stream { server, shared, buffers, start: 0, events: 0, full_reads: 0, grown: false }
    }

    /// The bytes that were read and not dealt with.
    pub(super) fn unread(&self) -> &[u8] {
        self.buffers.input.get(self.start..).unwrap_or_default()
    }

    pub(super) fn has_unread(&self) -> bool {
        self.start < self.buffers.input.len()
    }

    /// The first `count` unread bytes are dealt with.
    pub(super) fn advance(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.buffers.input.len(), "only bytes that were read are dealt with");
    }

    /// Removes `count` unread bytes from `at` on; the bytes behind them move up.
    pub(super) fn remove(&mut self, at: usize, count: usize) {
        self.drop_bytes(self.start + at, count);
    }

    /// Moves the unread bytes to the front, so that there is room behind them.
    pub(super) fn compact(&mut self) {
        if !self.has_unread() {
            self.buffers.input.clear();
        } else if self.start > 0 {
            self.drop_bytes(0, self.start);
        }
        self.start = 0;
    }

    fn drop_bytes(&mut self, at: usize, count: usize) {
        let left = self.buffers.input.len().saturating_sub(count);
        self.buffers.input.copy_within(at + count.., at);
        self.buffers.input.truncate(left);
    }

    /// Sets the time limit of the phase that begins now.
    pub(super) fn limit(&self, time: Duration) {
        self.shared.set_deadline(self.server.deadline_ms(time));
    }

    /// Waits for an event of the socket, or for a wake-up.
    pub(super) fn wait(&mut self) {
        crate::worker::debug_assert_on(self.server.worker());
        // Buffers that have grown stay until the connection has been idle for a while, so that a busy one does not grow them
        // again and again.
        let needs_buffers = self.grown || self.has_unread() || !self.buffers.output.is_empty();
        if needs_buffers {
            self.events |= self.shared.io.wait();
            return;
        }
        self.start = 0;
        self.server.spare.give_back(std::mem::take(&mut self.buffers));
        self.events |= self.shared.io.wait();
        self.buffers = self.server.spare.take();
    }

    /// The connection has taken more memory than usual: it is given back once the connection has been idle for a while.
    pub(super) fn set_grown(&mut self) {
        self.grown = true;
        self.shared.set_grown();
    }

    /// Makes room behind `input`. `Err` if it has its greatest size, or if there is no memory.
    fn grow(&mut self) -> Result<(), Ended> {
        let bytes = (self.buffers.input.capacity() * 2).clamp(INPUT_BYTES, MAX_BUFFER_BYTES);
        let more = bytes.checked_sub(self.buffers.input.len()).filter(|more| *more > 0).ok_or(Ended)?;
        self.buffers.input.try_reserve_exact(more).map_err(|_| Ended)?;
        self.set_grown();
        Ok(())
    }

    /// Gives memory back, once the connection has been idle for a while; `rest` gives back what the caller has.
    fn shrink(&mut self, rest: &mut dyn FnMut(&S)) {
        if !self.grown || self.shared.is_grown() || !self.buffers.input.is_empty() {
            return;
        }
        self.grown = false;
        if self.buffers.input.capacity() > INPUT_BYTES {
            self.buffers.input = Vec::with_capacity(INPUT_BYTES);
        }
        if self.buffers.output.is_empty() && self.buffers.output.capacity() > OUTPUT_BYTES {
            self.buffers.output = Vec::with_capacity(OUTPUT_BYTES);
        }
        if self.buffers.scratch.capacity() > OUTPUT_BYTES {
            self.buffers.scratch = Vec::with_capacity(OUTPUT_BYTES);
        }
        rest(self.server.service());
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

    /// Reads once, and waits until there is something to read. `rest` is called with the service when the connection has been
    /// idle for a while and has more memory than usual.
    pub(super) fn read(&mut self, rest: &mut dyn FnMut(&S)) -> Result<(), Ended> {
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
                self.shrink(rest);
            }
            if self.buffers.input.len() == self.buffers.input.capacity() {
                self.grow()?;
            }
            match self.receive() {
                Received::Bytes => return Ok(()),
                Received::Nothing => {}
                Received::End => return Err(Ended),
            }
        }
    }

    /// Reads once if the socket is known to have more, and does not wait. Returns whether bytes came. An end that is found
    /// here is found again by the next [`Stream::read`].
    pub(super) fn read_arrived(&mut self) -> bool {
        if self.events & READABLE == 0 || self.full_reads >= READS_IN_A_ROW {
            return false;
        }
        self.compact();
        if self.buffers.input.len() == self.buffers.input.capacity() && self.grow().is_err() {
            return false;
        }
        self.receive() == Received::Bytes
    }

    /// Reads once into the room behind `input`, of which there must be some.
    #[inline]
    fn receive(&mut self) -> Received {
        loop {
            return match rustix::io::read(self.shared.io.fd(), spare_capacity(&mut self.buffers.input)) {
                Ok(0) => Received::End,
                Ok(_) if self.buffers.input.len() == self.buffers.input.capacity() => {
                    self.full_reads += 1;
                    // The client sends much at once: read in larger pieces.
                    let _ = self.grow();
                    Received::Bytes
                }
                Ok(_) => {
                    // The socket is empty: the next bytes are a new event. The end of the connection is only one event,
                    // so it stays noted.
                    self.events &= !READABLE;
                    self.full_reads = 0;
                    Received::Bytes
                }
                Err(rustix::io::Errno::AGAIN) => {
                    self.events = 0;
                    Received::Nothing
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => Received::End,
            };
        }
    }

    /// Whether so much output has gathered that it is sent before more is added.
    pub(super) fn is_output_full(&self) -> bool {
        self.buffers.output.len() > OUTPUT_LIMIT
    }

    /// Sends all of `output`, within [`SENDING`] if the socket is full.
    #[inline]
    pub(super) fn send(&mut self) -> Result<(), Ended> {
        if self.buffers.output.is_empty() { Ok(()) } else { self.send_output() }
    }

    fn send_output(&mut self) -> Result<(), Ended> {
        let mut sent = 0;
        let mut limited = false;
        while let Some(rest) = self.buffers.output.get(sent..).filter(|rest| !rest.is_empty()) {
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
        self.buffers.output.clear();
        if self.buffers.output.capacity() > OUTPUT_KEPT {
            self.buffers.output = Vec::with_capacity(OUTPUT_BYTES);
        } else if self.buffers.output.capacity() > OUTPUT_BYTES {
            self.set_grown();
        }
        Ok(())
    }

    /// Ends the sending side, then reads and drops what still comes: closing with unread bytes would reset the connection,
    /// and the peer would lose the answer (RFC 9112, section 9.6).
    pub(super) fn linger(&mut self) {
        if rustix::net::shutdown(self.shared.io.fd(), Shutdown::Write).is_err() {
            return;
        }
        self.limit(LINGER);
        let mut dropped = 0;
        while dropped < LINGER_BYTES {
            self.buffers.input.clear();
            self.start = 0;
            if self.read(&mut |_| {}).is_err() {
                return;
            }
            dropped += self.buffers.input.len();
        }
    }
}

impl<S> Drop for Stream<S> {
    fn drop(&mut self) {
        self.server.spare.give_back(std::mem::take(&mut self.buffers));
    }
}
