//! Why a connection to Redis is of no more use to its lane.

use crate::inventory::IdentityError;

/// Why a lane ends its connection, or refuses a new one. Its requests are answered `unavailable`, and another connection is made.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The epoch was opened on another Redis, or on this one before it was started anew. The keeper is told.
    #[error("Redis was started anew or is another one")]
    OtherRedis,
    /// This Redis has no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The keeper has opened the sales on another Redis than the one that this connection leads to.
    #[error("the sales have moved to another Redis")]
    Moved,
    /// The keeper has opened a later epoch than this Redis knows: the connection leads to one that was left behind.
    #[error("Redis carries an older epoch")]
    OlderEpoch,
    /// Redis refused a command, in these words, so that only another connection can help.
    #[error("{0}")]
    Refused(String),
    /// A reply to the greeting that is no text.
    #[error("Redis answered the greeting with something other than text")]
    NoText,
    /// A reply that no command waits for.
    #[error("Redis sent a reply without a request")]
    Unasked,
    /// A reply to a call that is neither text nor an error.
    #[error("Redis sent a reply of another kind than a script's")]
    NotOfAScript,
    /// A text that the script does not give.
    #[error("Redis sent a reply that no script gives")]
    UnknownReply,
    /// A reply in which one request's decision cannot be read.
    #[error("a script's reply has a mark that no script gives")]
    UnknownMark,
}
