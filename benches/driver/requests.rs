//! Requests that are made before the load begins, and the reading of answers.
//!
//! Owns the bytes of both. A generator that formatted each request anew would spend two microseconds on it, on the same
//! CPUs that the service needs. Leaves sockets and figures to others.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Requests that stand one after the other.
#[derive(Default)]
pub struct Requests {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// Users and items that random checkouts name.
const USERS: u32 = 1_000_000;
const ITEMS: u32 = 10_000;

impl Requests {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The request at `at`.
    pub fn get(&self, at: usize) -> &[u8] {
        let from = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[from..self.ends[at]]
    }

    fn push(&mut self, target: &str, more: &str) {
        write!(self.bytes, "POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}\r\n").expect("memory");
        self.ends.push(self.bytes.len());
    }

    /// `count` checkouts of random items by random users of a million. The same `seed` gives the same.
    pub fn checkouts(count: usize, seed: u64) -> Requests {
        Requests::random(count, seed, "")
    }

    /// The same for connections that end after one request.
    pub fn last_checkouts(count: usize, seed: u64) -> Requests {
        Requests::random(count, seed, "Connection: close\r\n")
    }

    fn random(count: usize, seed: u64, more: &str) -> Requests {
        let (mut random, mut all) = (fastrand::Rng::with_seed(seed), Requests::default());
        for _ in 0..count {
            let (user, item) = (random.u32(..USERS), random.u32(..ITEMS));
            all.push(&format!("/checkout?user_id={user}&id={item}"), more);
        }
        all
    }

    /// A checkout by each of `count` users.
    pub fn checkouts_of_each(count: usize) -> Requests {
        let mut all = Requests::default();
        (0..count).for_each(|user| all.push(&format!("/checkout?user_id=user-{user}&id=1"), ""));
        all
    }

    /// A purchase with each of `codes` (32 characters each).
    pub fn purchases(codes: &[u8]) -> Requests {
        let mut all = Requests::default();
        for code in codes.chunks_exact(32) {
            purchase(code.try_into().expect("32 characters"), &mut all.bytes);
            all.ends.push(all.bytes.len());
        }
        all
    }
}

/// Appends the purchase with `code`.
pub fn purchase(code: &[u8; 32], out: &mut Vec<u8>) {
    out.extend_from_slice(b"POST /purchase?code=");
    out.extend_from_slice(code);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
}

/// An answer.
pub struct Answer<'b> {
    pub status: u16,
    pub body: &'b [u8],
    /// Bytes of all of it.
    pub length: usize,
}

/// The answer that `bytes` begin with, if all of it is there.
pub fn parse(bytes: &[u8]) -> Result<Option<Answer<'_>>, String> {
    let odd = |what: &str| format!("{what}: {}", String::from_utf8_lossy(bytes));
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut answer = httparse::Response::new(&mut headers);
    let head = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(odd(&format!("an answer that is no HTTP ({error})"))),
    };
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
    let length = length.ok_or_else(|| odd("an answer without a Content-Length"))?;
    let body = bytes.get(head..head + length);
    Ok(body.map(|body| Answer { status: answer.code.unwrap_or(0), body, length: head + length }))
}

/// The code in the body of a checkout's answer.
pub fn code(body: &[u8]) -> Option<[u8; 32]> {
    body.strip_prefix(b"{\"code\":\"")?.get(..32)?.try_into().ok()
}

/// One request on a connection of its own: the status and the body.
pub fn ask(address: SocketAddr, method: &str, target: &str) -> Result<(u16, String), String> {
    let asked = format!("{method} {target}");
    let explain = |error: std::io::Error| format!("{asked}: {error}");
    let mut stream = TcpStream::connect(address).map_err(explain)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(explain)?;
    write!(stream, "{asked} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").map_err(explain)?;
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(answer) = parse(&bytes)? {
            return Ok((answer.status, String::from_utf8_lossy(answer.body).into_owned()));
        }
        match stream.read(&mut part).map_err(explain)? {
            0 => return Err(format!("{asked}: the connection ends before its answer")),
            count => bytes.extend_from_slice(&part[..count]),
        }
    }
}
