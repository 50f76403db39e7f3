//! Threads and coroutines that the process cannot do without.
//!
//! Owns the report that one of them panicked. Without it, only requests that run into their time limits would show that a
//! driver, the writer or the keeper is gone. Invariant: a panic is reported once, with its message. Leaves ending the process
//! to the receiver.

use crossbeam_channel::{Receiver, Sender};
use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::thread::JoinHandle;

/// The sending side of these reports. Copies report to the same receiver.
#[derive(Clone, Debug)]
pub struct Vitals {
    tell: Sender<String>,
}

impl Vitals {
    /// A watch, and where it tells which part panicked and with what message, in a line.
    pub fn new() -> (Vitals, Receiver<String>) {
        let (tell, told) = crossbeam_channel::unbounded();
        (Vitals { tell }, told)
    }

    /// Runs `work`, and tells of a panic in it as the end of `part`.
    pub fn watch(&self, part: &str, work: impl FnOnce()) {
        if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(work)) {
            let text = panic_text(panic.as_ref());
            let _ = self.tell.send(format!("{part} panicked: {}", text.lines().collect::<Vec<_>>().join(" ")));
        }
    }

    /// Runs `work` in a thread of the name `thread`, and tells of a panic in it as the end of `part`.
    ///
    /// # Errors
    /// The operating system does not give a thread.
    pub fn thread(
        &self,
        thread: &str,
        part: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let vitals = self.clone();
        std::thread::Builder::new().name(thread.into()).spawn(move || vitals.watch(part, work))
    }
}

/// A panic's message.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    text.unwrap_or("no message")
}

#[cfg(test)]
#[path = "vital_tests.rs"]
mod tests;
