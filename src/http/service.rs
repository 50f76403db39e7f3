//! What a server serves: the trait between connections and the meaning of requests.
//!
//! Owns the contract of a request's life: a request is begun once, when its body has arrived, and answered once. Leaves the
//! meaning of a request to the implementations, and reading and sending to the connection.

use super::request::Head;
use super::response::Responder;
use may::io::WaitIoWaker;
use std::time::Duration;

/// Answers requests. No call blocks: an answer that is not there at once is announced by the session's waker.
pub trait Service: Send + Sync + 'static {
    /// The state that a connection keeps between its requests.
    type Session: Send;
    /// An answer that is decided and not written yet.
    type Answer;

    /// The state of a new connection on `worker`. `waker` wakes the connection's coroutine.
    fn session(&self, worker: usize, waker: WaitIoWaker) -> Self::Session;
    /// Takes a request whose body has arrived. `None` if its answer comes later: then the waker is called.
    fn begin(&self, session: &mut Self::Session, head: &Head<'_>) -> Option<Self::Answer>;
    /// After a wake-up: the answer; `None` if it is not there yet.
    fn poll(&self, session: &mut Self::Session) -> Option<Self::Answer>;
    /// Returns the answer to a request that was not answered in time. A later answer to it is dropped.
    fn give_up(&self, session: &mut Self::Session) -> Self::Answer;
    /// How long an answer may take.
    fn patience(&self) -> Duration;
    /// How long a connection may be silent between two requests.
    fn idle(&self) -> Duration;
    /// Writes `answer` to `to`.
    fn render(&self, answer: &Self::Answer, to: &mut Responder<'_>);
}
