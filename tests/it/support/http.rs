//! A minimal blocking HTTP/1.1 client that hides nothing: bytes can be sent and received as they are.
//!
//! Never repeats a request by itself, since a test must know which requests were sent. Refuses to know the service.

use serde_json::Value;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// How long a connect, a write or a read may take: longer than any answer of the server.
const TIMEOUT: Duration = Duration::from_secs(20);

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The header fields in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of the only header field of that name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice in {self:?}");
        value
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; panics if it is something else.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("not JSON ({e}): {} {}", self.status, self.text()))
    }

    /// The text of the JSON body's field `name`, or nothing.
    pub fn field(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_default().to_owned()
    }

    /// The word that a refusal gives as its reason.
    pub fn error(&self) -> String {
        self.field("error")
    }

    /// The seconds of Retry-After; panics if there is none.
    pub fn retry_after(&self) -> u64 {
        let value = self.header("retry-after").unwrap_or_else(|| panic!("no Retry-After: {self:?}"));
        value.parse().unwrap_or_else(|e| panic!("Retry-After {value}: {e}"))
    }
}

/// Reads what there is. A process that was stopped and goes on is told of an interruption, where a read has a time limit
/// (signal(7)).
pub fn read(mut from: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A client with one connection, made at the first request and again after an error or a close.
pub struct Client {
    addr: SocketAddr,
    stream: Option<TcpStream>,
    unread: Vec<u8>,
}

impl Client {
    /// A client of the server at `addr`. Connects when first used.
    pub fn new(addr: SocketAddr) -> Client {
        Client { addr, stream: None, unread: Vec::new() }
    }

    /// Sends a POST and waits for the answer; panics if there is none.
    pub fn post(&mut self, target: &str) -> Answer {
        self.send_request("POST", target).unwrap_or_else(|e| panic!("POST {target}: {e}"))
    }

    /// Sends a GET and waits for the answer; panics if there is none.
    pub fn get(&mut self, target: &str) -> Answer {
        self.send_request("GET", target).unwrap_or_else(|e| panic!("GET {target}: {e}"))
    }

    /// Checks out; ids are percent-encoded here.
    pub fn checkout(&mut self, user: &str, item: &str) -> Answer {
        self.post(&checkout_target(user, item))
    }

    /// Purchases.
    pub fn purchase(&mut self, code: &str) -> Answer {
        self.post(&format!("/purchase?code={code}"))
    }

    /// Checks out and returns the code; panics unless it was granted.
    pub fn code(&mut self, user: &str, item: &str) -> String {
        let answer = self.checkout(user, item);
        assert_eq!(answer.status, 200, "checkout of {item:?} by {user:?}: {}", answer.text());
        answer.field("code")
    }

    /// Sends a request without a body and waits for the answer. After an error it is not known whether it was served.
    pub fn send_request(&mut self, method: &str, target: &str) -> io::Result<Answer> {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.addr);
        self.send(request.as_bytes())?;
        self.receive()
    }

    /// Sends `bytes` as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.addr, TIMEOUT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_write_timeout(Some(TIMEOUT))?;
            self.unread.clear();
            self.stream = Some(stream);
        }
        let sent = self.stream.as_mut().expect("just made").write_all(bytes);
        self.drop_on_error(sent)
    }

    /// Waits for one answer.
    pub fn receive(&mut self) -> io::Result<Answer> {
        let answer = self.read_answer();
        self.drop_on_error(answer)
    }

    /// Waits for the head of one answer, which has no body behind it: the one to a HEAD.
    pub fn receive_head(&mut self) -> io::Result<Answer> {
        let head = self.read_head();
        let (answer, end) = self.drop_on_error(head)?;
        self.unread.drain(..end);
        Ok(answer)
    }

    /// Says that no more requests come, as FIN does. Answers can still be received.
    pub fn finish(&mut self) {
        let stream = self.stream.as_ref().expect("a connection");
        stream.shutdown(Shutdown::Write).expect("shut the sending half down");
    }

    /// Whether the server closes the connection now, without a further byte.
    pub fn is_closed(&mut self) -> bool {
        let Some(stream) = self.stream.as_mut() else { return true };
        if !self.unread.is_empty() {
            return false;
        }
        let mut byte = [0];
        match read(stream, &mut byte) {
            Ok(0) => true,
            Ok(_) => {
                self.unread.extend(byte);
                false
            }
            Err(e) => matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        }
    }

    fn drop_on_error<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.stream = None;
            self.unread.clear();
        }
        result
    }

    fn read_head(&mut self) -> io::Result<(Answer, usize)> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more()?;
        };
        let head = String::from_utf8(self.unread[..end].to_vec()).map_err(io::Error::other)?;
        let answer = parse_head(&head).ok_or_else(|| io::Error::other(format!("a bad head: {head:?}")))?;
        Ok((answer, end))
    }

    fn read_answer(&mut self) -> io::Result<Answer> {
        let (mut answer, end) = self.read_head()?;
        let length = answer.header("content-length").map_or(Ok(0), str::parse::<usize>).map_err(io::Error::other)?;
        while self.unread.len() < end + length {
            self.read_more()?;
        }
        answer.body = self.unread[end..end + length].to_vec();
        self.unread.drain(..end + length);
        if answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            // Whatever comes next on this connection, the next request needs another one.
            self.expect_close(&answer)?;
        }
        Ok(answer)
    }

    /// A server that says it closes has to do so: a client that waits for the end would hang.
    fn expect_close(&mut self, answer: &Answer) -> io::Result<()> {
        if !self.is_closed() {
            return Err(io::Error::other(format!("still open after Connection: close of {answer:?}")));
        }
        self.stream = None;
        Ok(())
    }

    fn read_more(&mut self) -> io::Result<()> {
        let stream = self.stream.as_mut().ok_or(ErrorKind::NotConnected)?;
        let mut chunk = [0; 4096];
        match read(stream, &mut chunk)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            n => {
                self.unread.extend_from_slice(&chunk[..n]);
                Ok(())
            }
        }
    }
}

fn parse_head(head: &str) -> Option<Answer> {
    let mut lines = head.strip_suffix("\r\n\r\n")?.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect::<Option<_>>()?;
    Some(Answer { status, headers, body: Vec::new() })
}

/// The request target of a checkout.
pub fn checkout_target(user: &str, item: &str) -> String {
    format!("/checkout?user_id={}&id={}", encode(user), encode(item))
}

/// Percent-encodes all but letters, digits and `-._~`.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
