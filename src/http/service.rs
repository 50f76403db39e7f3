//! What a server serves: the trait between connections and the meaning of requests.
//!
//! Owns the contract of a request's life: begun once, when its body has arrived, and answered once. Leaves to the
//! implementations what a request means, and to the connection when it is read and when its answer is sent.

use super::request::Head;
use super::response::Responder;
use may::io::WaitIoWaker;
use std::time::Duration;

/// What answers requests. It never blocks: what it cannot answer at once it announces with the session's waker.
pub trait Service: Send + Sync + 'static {
    /// What a connection keeps between requests.
    type Session: Send;
    /// What there is to say to a request.
    type Answer;

    /// A new connection on `worker`, whose coroutine `waker` wakes.
    fn session(&self, worker: usize, waker: WaitIoWaker) -> Self::Session;
    /// Takes a request whose body has arrived. `None`: the answer will come, and the waker with it.
    fn begin(&self, session: &mut Self::Session, head: &Head<'_>) -> Option<Self::Answer>;
    /// After a wake-up: the answer, if it is there.
    fn poll(&self, session: &mut Self::Session) -> Option<Self::Answer>;
    /// The time for an answer is over.
    fn give_up(&self, session: &mut Self::Session) -> Self::Answer;
    /// How long an answer may take.
    fn patience(&self) -> Duration;
    /// How long a connection may be silent between two requests.
    fn idle(&self) -> Duration;
    /// Writes an answer.
    fn render(&self, answer: &Self::Answer, to: &mut Responder<'_>);
}
