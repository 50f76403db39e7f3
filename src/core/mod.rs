//! A core: one pinned worker thread of `may` and all that it owns.
//!
//! Owns the placing of coroutines and file descriptors on workers, the bells that reach a core from outside, its
//! ticks, and the cells in which an answer waits for its connection. Invariant: what is placed on a core runs there
//! for ever, since a ready descriptor runs on worker `fd % workers` and a wake-up runs on the waker's worker.
//! Leaves HTTP, Redis and sales to others.

mod bell;
pub mod fd;
mod vital;
mod waiter;
mod watched;

pub use bell::{Bell, Ticker};
pub use vital::{Vitals, panic_text};
pub use waiter::{Ticket, Waiter};
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
pub struct Cores {
    count: usize,
    vitals: &'static Vitals,
}

impl Cores {
    /// Starts `count` pinned workers. Once a process, before any other use of `may`. What is spawned as vital on them is
    /// watched by `vitals`.
    ///
    /// # Errors
    /// There is no memory for their first coroutines.
    pub fn start(count: usize, vitals: Vitals) -> io::Result<Cores> {
        keep_quiet_while_spawning();
        may::config().set_workers(count).set_stack_size(STACK_WORDS).set_worker_pin(true);
        // The workers never end either.
        let cores = Cores { count, vitals: Box::leak(Box::new(vitals)) };
        let (ready, wait) = crossbeam_channel::bounded(count);
        for core in 0..count {
            let ready = ready.clone();
            cores.spawn(core, move || {
                CURRENT.set(Some(core));
                let _ = ready.try_send(());
            })?;
        }
        for _ in 0..count {
            wait.recv().map_err(io::Error::other)?;
        }
        Ok(cores)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All of them.
    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.count
    }

    /// Runs `work` as a coroutine on `core`. `Err` when there is no memory for its stack; `work` is dropped then.
    pub fn spawn(&self, core: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let builder = may::coroutine::Builder::new().stack_size(STACK_WORDS).id(core);
        SPAWNING.set(true);
        // `may` panics where it cannot map a stack. It has touched nothing by then.
        let spawned = panic::catch_unwind(AssertUnwindSafe(|| may::go!(builder, work).map(drop)));
        SPAWNING.set(false);
        spawned.unwrap_or_else(|panic| {
            Err(io::Error::other(format!("cannot make a coroutine: {}", panic_text(panic.as_ref()))))
        })
    }

    /// Runs `work` as [`Cores::spawn`] does. The process cannot do without it: a panic in it is told as the end of `part`.
    ///
    /// # Errors
    /// There is no memory for its stack.
    pub fn spawn_vital(&self, core: usize, part: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let vitals = self.vitals;
        self.spawn(core, move || vitals.watch(part, work))
    }

    /// The core whose worker serves `fd` when it is ready.
    pub fn of_fd(&self, fd: &impl std::os::fd::AsRawFd) -> usize {
        usize::try_from(fd.as_raw_fd()).unwrap_or(0) % self.count
    }
}

/// Lets no panic be printed that [`Cores::spawn`] turns into an error.
fn keep_quiet_while_spawning() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !SPAWNING.get() {
            print(panic);
        }
    }));
}

/// The core that this code runs on; `None` on a plain thread.
pub fn current() -> Option<usize> {
    CURRENT.get()
}

/// Asserts, in debug builds, that this code runs on `core`.
#[inline]
pub fn debug_assert_on(core: usize) {
    debug_assert_eq!(current(), Some(core), "work of core {core} on another thread");
}
