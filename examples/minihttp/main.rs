//! The real service on another HTTP server: `Shop` mounted on `may_minihttp` instead of `src/http`.
//!
//! Owns the translation between the two. It gives the table of answers of `tests/it/api.rs`, which a test runs against
//! it, and `benches/saturation` measures what our own connection loop gains. What `may_minihttp` 0.1.11 lacks, and this
//! example therefore too: limits on connections and time limits on slow clients; bodies (an unread body is taken for the
//! next request, `chunked` is ignored, a malformed Content-Length panics); `Connection: close`, `HEAD`, HTTP/1.0; more than
//! one open request of a connection; more than 16 header lines; an orderly end; header lines that are not `&'static` (they
//! are leaked here, once each). Not for production.

#![allow(missing_docs)]

mod wiring;

use flashsale::config::Config;
use flashsale::http::answers::Answers;
use flashsale::http::request::{Body, Head, Method};
use flashsale::http::response::Responder;
use flashsale::http::service::Service;
use flashsale::service::{Answer, Session, Shop};
use flashsale::worker::{Begun, Bell, Vitals, Workers};
use may_minihttp::{HttpService, HttpServiceFactory, Request, Response};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

/// One connection. Its coroutine runs on the worker of its descriptor, as `may_minihttp` places it.
struct Connection {
    shop: Arc<Shop>,
    session: Session,
    /// What an answer that comes later wakes.
    bell: Bell,
    out: Vec<u8>,
    scratch: Vec<u8>,
    answers: Answers,
}

impl Connection {
    fn answer(&mut self, head: &Head<'_>) -> Answer {
        let ticket = match self.shop.begin(&mut self.session, head) {
            Begun::Answered(answer) => return answer,
            Begun::Waits(ticket) => ticket,
        };
        loop {
            if let Some(answer) = self.shop.poll(&mut self.session, ticket) {
                return answer;
            }
            self.bell.wait();
        }
    }
}

impl HttpService for Connection {
    fn call(&mut self, request: Request, response: &mut Response) -> io::Result<()> {
        let (path, query) = request.path().split_once('?').unwrap_or((request.path(), ""));
        let method = match request.method() {
            "POST" => Method::Post,
            "GET" => Method::Get,
            other => Method::Other(other),
        };
        let (body, keep_alive, expect_continue) = (Body::None, true, false);
        let answer = self.answer(&Head { method, path, query, http_11: true, keep_alive, body, expect_continue });
        self.out.clear();
        let (out, scratch, date) = (&mut self.out, &mut self.scratch, &[b' '; 29]);
        let mut to =
            Responder { out, scratch, date, keep_alive, http_11: true, head_only: false, answers: &self.answers };
        self.shop.render(&answer, &mut to);
        translate(&self.out, response)
    }
}

/// Takes a whole response of ours apart, for a server that puts it together again.
fn translate(ours: &[u8], response: &mut Response) -> io::Result<()> {
    let odd = || io::Error::other("an odd response");
    let end = ours.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(odd)?;
    let (head, body) = ours.split_at(end);
    let head = std::str::from_utf8(head).map_err(|_| odd())?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or_else(odd)?;
    let (code, reason) = status.split_once(' ').ok_or_else(odd)?;
    response.status_code(code.parse().map_err(|_| odd())?, leaked(reason));
    // The server writes these two itself.
    for line in lines.filter(|line| !line.starts_with("Content-Length:") && !line.starts_with("Date:")) {
        response.header(leaked(line));
    }
    response.body_mut().extend_from_slice(body.get(4..).unwrap_or_default());
    Ok(())
}

/// The same text, kept for ever: `may_minihttp` takes no other. There are as many as values of `Retry-After`.
fn leaked(text: &str) -> &'static str {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, &'static str>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| match known.get(text) {
        Some(kept) => kept,
        None => {
            let kept: &'static str = Box::leak(text.into());
            known.insert(text.to_owned(), kept);
            kept
        }
    })
}

struct Factory {
    shop: Arc<Shop>,
    workers: Workers,
}

impl HttpServiceFactory for Factory {
    type Service = Connection;

    #[expect(clippy::expect_used, reason = "the trait leaves no other way to fail")]
    fn new_service(&self, descriptor: usize) -> Connection {
        let worker = descriptor % self.workers.count();
        let bell = Bell::new(self.workers, worker).expect("a descriptor for the bell");
        let session = self.shop.session(worker, bell.waker());
        Connection {
            shop: self.shop.clone(),
            session,
            bell,
            out: Vec::new(),
            scratch: Vec::new(),
            answers: Answers::default(),
        }
    }
}

fn run() -> Result<(), String> {
    let config = Config::read()?;
    // What panics is printed: this example does not end for it.
    let (vitals, _panics) = Vitals::new();
    let workers = Workers::start(config.workers, vitals).map_err(|e| format!("WORKERS: {e}"))?;
    let shop = wiring::start(&config, workers)?;
    let address = config.address;
    let server = Factory { shop, workers }.start(address).map_err(|e| format!("listening on {address}: {e}"))?;
    server.join().map_err(|_| "the server has ended".into())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("minihttp: {why}");
            ExitCode::FAILURE
        }
    }
}
