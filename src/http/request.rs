//! The head of a request: bytes -> [`Parse::Complete`], [`Parse::Partial`] or [`Parse::Reject`].
//!
//! Owns the limits on a head and every rule by which two HTTP parsers could disagree about where a request ends (RFC 9110
//! and 9112): an ambiguous request is refused, never repaired. Invariants: parsing allocates nothing, never panics and looks
//! at each header once; a prefix of a request that is accepted is [`Parse::Partial`]. Leaves the tokens to `httparse`, and
//! routes and parameters to the services.

pub use super::reject::Reject;
use super::target::{is_host, split_target};
use std::mem::MaybeUninit;

/// The longest head in bytes, with the empty line at its end and any before its start. A storefront's cookies alone can
/// pass 8 KiB; by default nginx accepts 32 KiB, HAProxy 15.
pub const MAX_HEAD_BYTES: usize = 16 << 10;

/// The most header lines of a request. Browsers behind two proxies send about 30; HAProxy accepts 101 by default.
pub const MAX_HEADERS: usize = 100;

/// The longest request body in bytes, without the chunked coding. No request needs a body: it is read and dropped.
pub const MAX_BODY_BYTES: u64 = 65536;

// A header line has at least four bytes ("a:" and its line end), so MAX_HEADERS of them fit a head.
const _: () = assert!(MAX_HEADERS * 4 < MAX_HEAD_BYTES);

/// The result of parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parse<'b> {
    /// A whole head.
    Complete {
        /// The head.
        request: Head<'b>,
        /// How many bytes the head takes; the body, or the next request, begins there.
        head_len: usize,
    },
    /// The beginning of a head: read more and parse again from the first byte.
    Partial,
    /// Not a request. Answer and close: it is not known where the next request would begin.
    Reject(Reject),
}

/// A request's head, borrowed from the bytes it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'b> {
    /// The method.
    pub method: Method<'b>,
    /// The target up to the `?`, still percent-encoded. Starts with `/`, but for the `*` of `OPTIONS`, the host of `CONNECT`
    /// and a URI of a foreign scheme.
    pub path: &'b str,
    /// What follows the first `?`, still percent-encoded; empty if there is none.
    pub query: &'b str,
    /// Whether the version is HTTP/1.1; otherwise it is 1.0.
    pub http_11: bool,
    /// Whether the client wants the connection to stay open after the answer.
    pub keep_alive: bool,
    /// The body that follows the head.
    pub body: Body,
    /// Whether the client waits for `100 Continue` before it sends the body. Never true without a body to come.
    pub expect_continue: bool,
}

/// A request's method. Case matters: `get` is not `GET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method<'b> {
    /// `GET`.
    Get,
    /// `HEAD`.
    Head,
    /// `POST`.
    Post,
    /// Any other token.
    Other(&'b str),
}

/// How long a request's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Neither `Content-Length` nor `Transfer-Encoding`: no body.
    None,
    /// This many bytes, at most [`MAX_BODY_BYTES`].
    Length(u64),
    /// In chunks, whose last one is the end.
    Chunked,
}

/// Parses the head at the beginning of `buf`, and ignores the bytes behind it.
pub fn parse(buf: &[u8]) -> Parse<'_> {
    match parse_head(buf) {
        Ok(Some((request, head_len))) => Parse::Complete { request, head_len },
        Ok(None) => Parse::Partial,
        Err(reject) => Parse::Reject(reject),
    }
}

fn parse_head(buf: &[u8]) -> Result<Option<(Head<'_>, usize)>, Reject> {
    let window = buf.get(..MAX_HEAD_BYTES).unwrap_or(buf);
    let Some(text) = skip_empty_lines(window)? else { return Ok(None) };
    let mut lines = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let status = parsed.parse_with_uninit_headers(text, &mut lines).map_err(|error| refusal(error, text))?;
    let httparse::Status::Complete(len) = status else {
        refuse_bare_lf(text)?;
        return if window.len() < MAX_HEAD_BYTES { Ok(None) } else { Err(Reject::HeadTooLarge) };
    };
    refuse_bare_lf(text.get(..len).unwrap_or(text))?;
    let http_11 = parsed.version == Some(1);
    let method = parsed.method.unwrap_or_default();
    let (path, query) = split_target(method, parsed.path.unwrap_or_default())?;
    let mut fields = Fields::default();
    for line in parsed.headers.iter() {
        fields.take(line.name.as_bytes(), line.value)?;
    }
    let method = match method {
        "POST" => Method::Post,
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        other => Method::Other(other),
    };
    let body = fields.body(http_11)?;
    let request = Head {
        method,
        path,
        query,
        http_11,
        keep_alive: !fields.close && (http_11 || fields.keep_alive),
        body,
        // RFC 9110, 10.1.1: ignored on HTTP/1.0. Without a body there is nothing to wait for.
        expect_continue: fields.expects && http_11 && !matches!(body, Body::None | Body::Length(0)),
    };
    Ok(Some((request, window.len() - text.len() + len)))
}

/// Removes up to two empty lines, which some clients send after a body (RFC 9112, 2.2). `None` if more must be read.
fn skip_empty_lines(buf: &[u8]) -> Result<Option<&[u8]>, Reject> {
    let mut rest = buf;
    for _ in 0..2 {
        rest = rest.strip_prefix(b"\r\n").unwrap_or(rest);
    }
    match rest {
        [] => Ok(None),
        [b'\r'] if buf.len() < 5 => Ok(None),
        [b'\r' | b'\n', ..] => Err(Reject::BadRequest("the request does not begin with a method")),
        _ => Ok(Some(rest)),
    }
}

/// Refuses a bare LF. `httparse` takes it for a line end, and so may end a head where a proxy in front does not.
fn refuse_bare_lf(head: &[u8]) -> Result<(), Reject> {
    // Without an early exit, the compiler compares many bytes at once.
    let is_bare = |found, (before, byte): (&u8, &u8)| found | ((*byte == b'\n') & (*before != b'\r'));
    if head.iter().zip(head.iter().skip(1)).fold(false, is_bare) {
        return Err(Reject::BadRequest("a line ends with LF alone"));
    }
    Ok(())
}

fn refusal(error: httparse::Error, text: &[u8]) -> Reject {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => Reject::HeadTooLarge,
        Error::Version if is_other_version(text) => Reject::VersionNotSupported,
        Error::Version => Reject::BadRequest("the request line does not end with a HTTP version"),
        Error::HeaderName => Reject::BadRequest("a header's name is malformed"),
        Error::HeaderValue => Reject::BadRequest("a header's value is malformed"),
        Error::NewLine => Reject::BadRequest("a line end is malformed"),
        Error::Token | Error::Status => Reject::BadRequest("the request line is malformed"),
    }
}

/// Whether the request line's third word is, or begins like, `HTTP/` digit `.` digit: a version that is not supported.
fn is_other_version(text: &[u8]) -> bool {
    let word = text.split(|b| *b == b' ').nth(2).and_then(|word| word.strip_prefix(b"HTTP/"));
    match word {
        Some([major] | [major, b'.']) => major.is_ascii_digit(),
        Some([major, b'.', minor] | [major, b'.', minor, b'\r', ..]) => {
            major.is_ascii_digit() && minor.is_ascii_digit()
        }
        _ => false,
    }
}

/// The headers that matter, gathered one after the other.
#[derive(Default)]
struct Fields {
    host: bool,
    length: Option<u64>,
    coding: Option<bool>,
    close: bool,
    keep_alive: bool,
    expects: bool,
}

impl Fields {
    // The length first: it alone rules out most of the headers that do not matter.
    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), Reject> {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            6 if name.eq_ignore_ascii_case(b"expect") => self.expect(value),
            10 if name.eq_ignore_ascii_case(b"connection") => {
                self.connection(value);
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.host {
            return Err(Reject::BadRequest("Host is given twice"));
        }
        if !is_host(value) {
            return Err(Reject::BadRequest("Host is malformed"));
        }
        self.host = true;
        Ok(())
    }

    fn expect(&mut self, value: &[u8]) -> Result<(), Reject> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Reject::ExpectationFailed);
        }
        self.expects = true;
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) {
        for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.length.is_some() {
            return Err(Reject::BadRequest("Content-Length is given twice"));
        }
        let digit = |sum: u64, b: &u8| -> Option<u64> {
            let digit = if b.is_ascii_digit() { u64::from(b - b'0') } else { return None };
            // A number of any length is a body that is too large, not a malformed one.
            Some(sum.saturating_mul(10).saturating_add(digit))
        };
        // Without any digit it is not a number.
        let length = if value.is_empty() { None } else { value.iter().try_fold(0, digit) };
        self.length = Some(length.ok_or(Reject::BadRequest("Content-Length is not a number"))?);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Reject> {
        if self.coding.is_some() {
            return Err(Reject::BadRequest("Transfer-Encoding is given twice"));
        }
        self.coding = Some(value.eq_ignore_ascii_case(b"chunked"));
        Ok(())
    }

    /// The body's length, which is known once all headers were seen.
    fn body(&self, http_11: bool) -> Result<Body, Reject> {
        if http_11 && !self.host {
            return Err(Reject::BadRequest("Host is missing"));
        }
        match (self.coding, self.length) {
            (Some(_), Some(_)) => Err(Reject::BadRequest("both Transfer-Encoding and Content-Length are given")),
            (Some(_), None) if !http_11 => Err(Reject::BadRequest("HTTP/1.0 has no Transfer-Encoding")),
            (Some(false), None) => Err(Reject::NotImplemented),
            (Some(true), None) => Ok(Body::Chunked),
            (None, Some(length)) if length > MAX_BODY_BYTES => Err(Reject::BodyTooLarge),
            (None, Some(length)) => Ok(Body::Length(length)),
            (None, None) => Ok(Body::None),
        }
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
