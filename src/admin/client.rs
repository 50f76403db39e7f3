//! A client of the admin listener, for the command line.
//!
//! Owns one request and the reading of its answer. Invariant: a request ends within [`LIMIT`], whatever the other side
//! does. It blocks, so it is for a process that does nothing else. Leaves the settings to `config`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// How long an answer may take in all: shorter than the usual time limits of health checks.
const LIMIT: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

/// An answer of the admin listener.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, without spaces at its ends.
    pub body: String,
}

/// Why there is no answer, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The instance accepted the connection, or did not even do that, and sent no whole answer in [`LIMIT`].
    #[error("{address}: no answer within {} s", LIMIT.as_secs())]
    Timeout {
        /// Where the instance should listen.
        address: SocketAddr,
    },
    /// The connection failed, or what came is not an answer.
    #[error("{address}: {source}")]
    Failed {
        /// Where the instance should listen.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Sends `GET path` to the admin listener at `address`.
///
/// # Errors
/// No answer within [`LIMIT`], or none that can be read.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer, ClientError> {
    exchange(address, path).map_err(|source| match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Timeout { address },
        _ => ClientError::Failed { address, source },
    })
}

fn exchange(address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let until = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_write_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut received = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        received.extend_from_slice(part.get(..count).unwrap_or_default());
        if received.len() as u64 > MAX_ANSWER {
            return Err(std::io::Error::other("the answer is too long"));
        }
    }
    parse(&received).ok_or_else(|| std::io::Error::other("the answer is not one of HTTP"))
}

fn parse(received: &[u8]) -> Option<Answer> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(received).ok()? else { return None };
    let body = String::from_utf8_lossy(received.get(length..)?).trim().to_owned();
    Some(Answer { status: response.code?, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn answers() {
        let body = |status, body: &str| Some(Answer { status, body: body.into() });
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{}\n"), body(200, "{}"));
        assert_eq!(parse(b"HTTP/1.1 503 x\r\n\r\n"), body(503, ""));
        for bad in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0-x\r\n\r\n"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_silent_server_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let why = get(address, "/health").unwrap_err().to_string();
        assert_eq!(why, format!("{address}: no answer within 2 s"));
        drop(listener);
        assert!(get(address, "/health").unwrap_err().to_string().starts_with(&format!("{address}: ")));
    }
}
