//! Wake-ups from outside a worker: bells (eventfd) and ticks (timerfd).
//!
//! Owns both descriptors and the waits on them. Invariant: a ring or a tick that comes while the coroutine runs ends its next
//! wait. Leaves to the user what the coroutine then does.

use super::{Watched, Workers, fd};
use may::io::WaitIoWaker;
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::time::Duration;

/// Wakes one coroutine of a worker: from a plain thread with [`Bell::ring`], from the worker itself with a waker.
#[derive(Debug)]
pub struct Bell {
    worker: usize,
    io: Watched,
}

impl Bell {
    /// A bell whose waiting coroutine lives on `worker`.
    pub fn new(workers: Workers, worker: usize) -> io::Result<Bell> {
        let raw = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let io = Watched::new(fd::place(raw, worker, workers.count())?)?;
        Ok(Bell { worker, io })
    }

    /// Wakes the waiting coroutine, or its next wait. From any thread; one system call.
    pub fn ring(&self) {
        // It fails only when the counter is full, and then the bell has been rung often enough.
        let _ = rustix::io::write(self.io.fd(), &1u64.to_ne_bytes());
    }

    /// A waker for use on the bell's own worker, without a system call.
    pub fn waker(&self) -> WaitIoWaker {
        self.io.waker()
    }

    /// Waits, in the one coroutine that the bell belongs to, until it was rung since the last wait.
    ///
    /// The counter is never read: the descriptor is edge-triggered, so each ring is an event of its own.
    pub fn wait(&self) {
        super::debug_assert_on(self.worker);
        self.io.wait();
    }
}

/// A worker's periodic tick.
#[derive(Debug)]
pub struct Ticker {
    io: Watched,
}

impl Ticker {
    /// Ticks every `period`, for a coroutine on `worker`.
    pub fn new(workers: Workers, worker: usize, period: Duration) -> io::Result<Ticker> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let raw = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let every = Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: every, it_value: every };
        rustix::time::timerfd_settime(&raw, TimerfdTimerFlags::empty(), &spec)?;
        Ok(Ticker { io: Watched::new(fd::place(raw, worker, workers.count())?)? })
    }

    /// Waits for the next tick. Ticks that were missed count as one.
    pub fn wait(&self) {
        loop {
            // Reading is what starts the next period.
            if rustix::io::read(self.io.fd(), &mut [0; 8]).is_ok() {
                return;
            }
            self.io.wait();
        }
    }
}
