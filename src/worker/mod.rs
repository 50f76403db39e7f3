//! A worker: one pinned thread of `may` and all that it owns.
//!
//! Owns the placing of coroutines and file descriptors on workers, the bells that reach a worker from outside, its ticks,
//! and the waiters in which answers wait for their connection. Invariant: a coroutine or a descriptor that is placed on a
//! worker stays there, since a ready descriptor runs on worker `fd % workers` and a wake-up runs on the waker's worker.
//! Leaves HTTP, Redis and sales to others.

mod bell;
pub mod fd;
#[cfg(test)]
pub(crate) mod testing;
mod vital;
mod waiter;
mod watched;

pub use bell::{Bell, Ticker};
pub use vital::{Vitals, panic_text};
pub use waiter::{Begun, Ticket, Waiter};
pub use watched::Watched;

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};

/// Words of 8 bytes on a coroutine's stack. A request used 3.7 kB and a panic with a backtrace overflows 2,048
/// words; the pages that are never touched cost nothing.
const STACK_WORDS: usize = 4096;

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether this thread is making a coroutine, whose panics are told as errors.
    static SPAWNING: Cell<bool> = const { Cell::new(false) };
}

/// The workers of this process.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    count: usize,
    vitals: &'static Vitals,
}

impl Workers {
    /// Starts `count` pinned workers. Once a process, before any other use of `may`. `vitals` watches the
    /// coroutines that are spawned as vital on them.
    ///
    /// # Errors
    /// There is no memory for their first coroutines.
    pub fn start(count: usize, vitals: Vitals) -> io::Result<Workers> {
        keep_quiet_while_spawning();
        may::config().set_workers(count).set_stack_size(STACK_WORDS).set_worker_pin(true);
        // The workers never end either.
        let workers = Workers { count, vitals: Box::leak(Box::new(vitals)) };
        let (ready, wait) = crossbeam_channel::bounded(count);
        for worker in 0..count {
            let ready = ready.clone();
            workers.spawn(worker, move || {
                CURRENT.set(Some(worker));
                let _ = ready.try_send(());
            })?;
        }
        for _ in 0..count {
            wait.recv().map_err(io::Error::other)?;
        }
        Ok(workers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All of them.
    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.count
    }

    /// Runs `work` as a coroutine on `worker`. `Err` when there is no memory for its stack; `work` is dropped then.
    pub fn spawn(&self, worker: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let builder = may::coroutine::Builder::new().stack_size(STACK_WORDS).id(worker);
        SPAWNING.set(true);
        // `may` panics where it cannot map a stack. It has touched nothing by then.
        let spawned = panic::catch_unwind(AssertUnwindSafe(|| may::go!(builder, work).map(drop)));
        SPAWNING.set(false);
        spawned.unwrap_or_else(|panic| {
            Err(io::Error::other(format!("cannot make a coroutine: {}", panic_text(panic.as_ref()))))
        })
    }

    /// Runs `work` as [`Workers::spawn`] does. The process cannot do without it: a panic in it is reported with the
    /// name `part`.
    ///
    /// # Errors
    /// There is no memory for its stack.
    pub fn spawn_vital(
        &self,
        worker: usize,
        part: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let vitals = self.vitals;
        self.spawn(worker, move || vitals.watch(part, work))
    }

    /// The worker that serves `fd` when it is ready.
    pub fn of_fd(&self, fd: &impl std::os::fd::AsRawFd) -> usize {
        usize::try_from(fd.as_raw_fd()).unwrap_or(0) % self.count
    }
}

/// Lets no panic be printed that [`Workers::spawn`] turns into an error.
fn keep_quiet_while_spawning() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !SPAWNING.get() {
            print(panic);
        }
    }));
}

/// The worker that this code runs on; `None` on a plain thread.
pub fn current() -> Option<usize> {
    CURRENT.get()
}

/// Asserts, in debug builds, that this code runs on `worker`.
#[inline]
pub fn debug_assert_on(worker: usize) {
    debug_assert_eq!(current(), Some(worker), "work of worker {worker} on another thread");
}
