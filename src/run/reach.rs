//! Asking a server that may never answer.
//!
//! Owns the time limit. Name resolution and handshakes have none that holds whatever the other side does, so each
//! question is asked by a thread of its own. Invariant: waiting for an answer ends in time; the thread may be left
//! behind, since the process is about to end then. Leaves the questions, and their texts of errors, to the caller.

use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long the servers may take to be reached at the start, all together. A Postgres of two hosts may need three
/// seconds to find out that the first one is silent.
pub const STARTUP_TIMEOUT: Duration = Duration::from_secs(4);

/// A question that is on its way.
pub struct Asked<T> {
    server: String,
    answer: Receiver<Result<T, String>>,
}

/// Has `question` asked by a thread of its own. The errors of `question` name the server themselves; for the errors that are
/// made here, its name is `server`.
pub fn ask<T: Send + 'static, E: ToString>(
    server: &str,
    question: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<Asked<T>, String> {
    let (tell, answer) = crossbeam_channel::bounded(1);
    let asking = std::thread::Builder::new().name("reach".into()).spawn(move || {
        let _ = tell.try_send(question().map_err(|e| e.to_string()));
    });
    asking.map(|_| Asked { server: server.to_owned(), answer }).map_err(|e| format!("{server}: cannot be asked: {e}"))
}

impl<T> Asked<T> {
    /// The answer, or that there is none by `until`, which is [`STARTUP_TIMEOUT`] after the start.
    pub fn answer(self, until: Instant) -> Result<T, String> {
        self.answer.recv_deadline(until).unwrap_or_else(|e| match e {
            RecvTimeoutError::Timeout => {
                Err(format!("{}: no answer within {} s", self.server, STARTUP_TIMEOUT.as_secs()))
            }
            RecvTimeoutError::Disconnected => Err(format!("{}: asking it failed", self.server)),
        })
    }
}
