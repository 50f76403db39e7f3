//! A core: one pinned worker thread of `may` and all that it owns.
//!
//! Owns the placing of coroutines and file descriptors on workers, the bells that reach a core from outside, its
//! ticks, and the cells in which an answer waits for its connection. Invariant: what is placed on a core runs there
//! for ever, since a ready descriptor runs on worker `fd % workers` and a wake-up runs on the waker's worker.
//! Refuses to know HTTP, Redis and sales.

mod bell;
pub mod fd;
mod waiter;
mod watched;

pub use bell::{Bell, Ticker};
pub use waiter::{Ticket, Waiter};
pub use watched::Watched;

use std::any::Any;
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
}

impl Cores {
    /// Starts `count` pinned workers. Once a process, before any other use of `may`.
    pub fn start(count: usize) -> io::Result<Cores> {
        keep_quiet_while_spawning();
        may::config().set_workers(count).set_stack_size(STACK_WORDS).set_worker_pin(true);
        let cores = Cores { count };
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
        spawned.unwrap_or_else(|panic| Err(io::Error::other(reason(panic.as_ref()))))
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

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    format!("cannot make a coroutine: {}", text.unwrap_or("it panicked"))
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
