//! Responses as bytes.
//!
//! Owns status lines, the headers that every response has, and their order. Invariant: each response is counted once, by
//! its status. Leaves the contents of bodies to the services.

use super::answers::Answers;
use super::request::Reject;

/// An HTTP date, as `Date` carries it (RFC 9110, section 5.6.7).
pub type HttpDate = [u8; 29];

/// Writes one response into a connection's output.
pub struct Responder<'a> {
    /// The buffer that the response is appended to.
    pub out: &'a mut Vec<u8>,
    /// Reused memory for the body: its length has to be written before it.
    pub scratch: &'a mut Vec<u8>,
    /// The counters in which the response is counted.
    pub answers: &'a Answers,
    /// The value of the header `Date`.
    pub date: &'a HttpDate,
    /// Whether the connection stays open after this response.
    pub keep_alive: bool,
    /// Whether the request was of HTTP/1.1, where a connection stays open by default.
    pub http_11: bool,
    /// Whether the request was `HEAD`: all headers, no body.
    pub head_only: bool,
}

/// One more header line.
#[derive(Clone, Copy, Debug)]
pub enum ExtraHeader {
    /// `Retry-After`, in seconds.
    RetryAfter(u64),
    /// Whole lines, each with its CRLF.
    Lines(&'static str),
    /// Nothing.
    None,
}

impl ExtraHeader {
    /// `Retry-After` of one or two seconds, at random: recoveries take about this long, and the clients of an outage should
    /// not all return in the same second. The random number comes from the thread's own generator: no allocation, no lock.
    pub fn retry_soon() -> ExtraHeader {
        ExtraHeader::RetryAfter(fastrand::u64(1..=2))
    }
}

impl Responder<'_> {
    /// A JSON response; `body` appends its text.
    pub fn json(&mut self, status: u16, extra: ExtraHeader, body: impl FnOnce(&mut Vec<u8>)) {
        self.scratch.clear();
        body(self.scratch);
        self.head(status, "application/json", extra, self.scratch.len());
        self.finish();
    }

    /// A response of another type.
    pub fn text(&mut self, status: u16, content_type: &str, extra: ExtraHeader, body: &str) {
        self.scratch.clear();
        self.scratch.extend_from_slice(body.as_bytes());
        self.head(status, content_type, extra, body.len());
        self.finish();
    }

    /// 204: neither a body nor the headers that describe one.
    pub fn no_content(&mut self, extra: ExtraHeader) {
        self.answers.count(204);
        self.out.extend_from_slice(status_line(204).as_bytes());
        self.out.extend_from_slice(b"Date: ");
        self.end_of_head(extra);
    }

    /// A refusal: `{"error":…,"message":…}`. Neither text may contain a character that JSON escapes.
    pub fn refuse(&mut self, status: u16, extra: ExtraHeader, error: &str, message: &str) {
        self.json(status, extra, |body| {
            for part in ["{\"error\":\"", error, "\",\"message\":\"", message, "\"}"] {
                body.extend_from_slice(part.as_bytes());
            }
        });
    }

    /// The answer to a connection above the bound, before its request is read.
    pub fn full(&mut self) {
        self.refuse(503, ExtraHeader::retry_soon(), "unavailable", "too many connections at once");
    }

    /// The answer to bytes that are not a request.
    pub fn reject(&mut self, reject: Reject) {
        self.refuse(reject.status(), ExtraHeader::None, reject.word(), &reject.to_string());
    }

    fn head(&mut self, status: u16, content_type: &str, extra: ExtraHeader, length: usize) {
        self.answers.count(status);
        let mut digits = itoa::Buffer::new();
        let out = &mut *self.out;
        out.extend_from_slice(status_line(status).as_bytes());
        for part in ["Content-Type: ", content_type, "\r\nContent-Length: ", digits.format(length), "\r\nDate: "] {
            out.extend_from_slice(part.as_bytes());
        }
        self.end_of_head(extra);
    }

    /// Appends the date and the lines behind it.
    fn end_of_head(&mut self, extra: ExtraHeader) {
        let mut digits = itoa::Buffer::new();
        let out = &mut *self.out;
        out.extend_from_slice(self.date);
        out.extend_from_slice(b"\r\n");
        match extra {
            ExtraHeader::None => {}
            ExtraHeader::Lines(lines) => out.extend_from_slice(lines.as_bytes()),
            ExtraHeader::RetryAfter(seconds) => {
                out.extend_from_slice(b"Retry-After: ");
                out.extend_from_slice(digits.format(seconds).as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(match (self.keep_alive, self.http_11) {
            (true, true) => b"\r\n",
            (true, false) => b"Connection: keep-alive\r\n\r\n",
            (false, _) => b"Connection: close\r\n\r\n",
        });
    }

    fn finish(&mut self) {
        if !self.head_only {
            self.out.extend_from_slice(self.scratch);
        }
    }
}

fn status_line(status: u16) -> &'static str {
    match status {
        200 => "HTTP/1.1 200 OK\r\n",
        204 => "HTTP/1.1 204 No Content\r\n",
        400 => "HTTP/1.1 400 Bad Request\r\n",
        404 => "HTTP/1.1 404 Not Found\r\n",
        405 => "HTTP/1.1 405 Method Not Allowed\r\n",
        409 => "HTTP/1.1 409 Conflict\r\n",
        413 => "HTTP/1.1 413 Content Too Large\r\n",
        417 => "HTTP/1.1 417 Expectation Failed\r\n",
        429 => "HTTP/1.1 429 Too Many Requests\r\n",
        431 => "HTTP/1.1 431 Request Header Fields Too Large\r\n",
        501 => "HTTP/1.1 501 Not Implemented\r\n",
        503 => "HTTP/1.1 503 Service Unavailable\r\n",
        505 => "HTTP/1.1 505 HTTP Version Not Supported\r\n",
        _ => "HTTP/1.1 500 Internal Server Error\r\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_bodies() {
        let check = |keep_alive, http_11, head_only, want: &str| {
            let (mut out, mut scratch) = (Vec::new(), Vec::new());
            let (answers, date) = (&Answers::default(), b"Thu, 01 Jan 1970 00:00:00 GMT");
            let mut r =
                Responder { out: &mut out, scratch: &mut scratch, answers, date, keep_alive, http_11, head_only };
            r.refuse(409, ExtraHeader::RetryAfter(7), "sold_out", "x");
            assert_eq!(answers.counts().iter().sum::<u64>(), 1);
            let start = "HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\
                         Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nRetry-After: 7\r\n";
            assert_eq!(String::from_utf8(out).unwrap(), format!("{start}{want}"));
        };
        let body = r#"{"error":"sold_out","message":"x"}"#;
        check(true, true, false, &format!("\r\n{body}"));
        check(true, false, false, &format!("Connection: keep-alive\r\n\r\n{body}"));
        check(false, true, false, &format!("Connection: close\r\n\r\n{body}"));
        check(true, true, true, "\r\n");
    }
}
