//! What a server serves: the trait between connections and the meaning of requests.
//!
//! Owns the contract of a request's life: a request is begun once, when its body has arrived, and answered once. A connection
//! may have several requests open, each under a ticket of its own; nothing here says in which order they are answered.
//! Leaves the meaning of a request to the implementations, and reading, sending, the order of answers and the number of open
//! requests to the connection.

use super::request::Head;
use super::response::Responder;
use crate::worker::{Begun, Ticket};
use may::io::WaitIoWaker;
use std::time::Duration;

/// Answers requests. No call blocks: an answer that is not there at once is announced by the session's waker.
pub trait Service: Send + Sync + 'static {
    /// The state of a connection.
    type Session: Send;
    /// An answer that is decided and not written yet.
    type Answer;

    /// The state of a new connection on `worker`. `waker` wakes the connection's coroutine.
    fn session(&self, worker: usize, waker: WaitIoWaker) -> Self::Session;
    /// Takes a request whose body has arrived, and answers it, or says under which ticket the answer comes later. A session
    /// has as many tickets open as the connection begins requests before it takes their answers.
    fn begin(&self, session: &mut Self::Session, head: &Head<'_>) -> Begun<Self::Answer>;
    /// The answer under `ticket`, once; `None` if it is not there yet. After a `None`, the waker is called when an answer
    /// comes, be it this one or another one of the session.
    fn poll(&self, session: &mut Self::Session, ticket: Ticket) -> Option<Self::Answer>;
    /// Returns the answer to a request that was not answered in time. A later answer under `ticket` is dropped.
    fn give_up(&self, session: &mut Self::Session, ticket: Ticket) -> Self::Answer;
    /// The connection has been idle for a while: memory that many open requests needed is given back.
    fn shrink(&self, session: &mut Self::Session);
    /// How long an answer may take.
    fn patience(&self) -> Duration;
    /// How long a connection may be silent between two requests.
    fn idle(&self) -> Duration;
    /// Writes `answer` to `to`.
    fn render(&self, answer: &Self::Answer, to: &mut Responder<'_>);
}
