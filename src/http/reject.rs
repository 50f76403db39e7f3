//! Why a request is refused before a service sees it: the status, the name and the words of each refusal.
//!
//! Leaves to the parsers which request is refused, and to `connection.rs` that the connection is closed afterwards.

use std::fmt;

/// Why a request is refused before its target is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// 400, with the reason in a few words.
    BadRequest(&'static str),
    /// 413: the body is longer than [`MAX_BODY_BYTES`](super::request::MAX_BODY_BYTES).
    BodyTooLarge,
    /// 417: an `Expect` other than `100-continue`.
    ExpectationFailed,
    /// 431: the head is longer than [`MAX_HEAD_BYTES`](super::request::MAX_HEAD_BYTES), or has more than [`MAX_HEADERS`](super::request::MAX_HEADERS) lines.
    HeadTooLarge,
    /// 501: a transfer coding other than `chunked`.
    NotImplemented,
    /// 505: neither HTTP/1.0 nor HTTP/1.1.
    VersionNotSupported,
}

impl Reject {
    /// The status code of the answer.
    pub fn status(self) -> u16 {
        match self {
            Reject::BadRequest(_) => 400,
            Reject::BodyTooLarge => 413,
            Reject::ExpectationFailed => 417,
            Reject::HeadTooLarge => 431,
            Reject::NotImplemented => 501,
            Reject::VersionNotSupported => 505,
        }
    }

    /// The stable name of the error, for programs.
    pub fn word(self) -> &'static str {
        match self {
            Reject::BadRequest(_) => "invalid_request",
            Reject::BodyTooLarge => "body_too_large",
            Reject::ExpectationFailed => "expectation_failed",
            Reject::HeadTooLarge => "head_too_large",
            Reject::NotImplemented => "not_implemented",
            Reject::VersionNotSupported => "version_not_supported",
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reject::BadRequest(why) => why,
            Reject::BodyTooLarge => "the request body is too large",
            Reject::ExpectationFailed => "the only expectation that is supported is 100-continue",
            Reject::HeadTooLarge => "the request head is too large",
            Reject::NotImplemented => "the only transfer coding that is supported is chunked",
            Reject::VersionNotSupported => "only HTTP/1.0 and HTTP/1.1 are supported",
        })
    }
}

impl std::error::Error for Reject {}
