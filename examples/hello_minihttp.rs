//! The HTTP floor: a server on `may_minihttp` that answers every request with the same few bytes.
//!
//! Owns nothing else. What a service does beyond this is its own cost; `benches/saturation` compares with it. Listens on
//! `BIND_ADDR:SERVER_PORT` (127.0.0.1:8080) with `WORKERS` threads (one a CPU).

#![allow(missing_docs)]

use may_minihttp::{HttpService, HttpServiceFactory, Request, Response};
use std::io;

struct Hello;

impl HttpService for Hello {
    fn call(&mut self, _request: Request, response: &mut Response) -> io::Result<()> {
        response.header("Content-Type: text/plain");
        response.body("Hello, World!");
        Ok(())
    }
}

struct Factory;

impl HttpServiceFactory for Factory {
    type Service = Hello;

    fn new_service(&self, _id: usize) -> Hello {
        Hello
    }
}

fn main() -> io::Result<()> {
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = setting("WORKERS", "").parse().unwrap_or(cpus);
    may::config().set_workers(workers).set_worker_pin(true);
    let address = format!("{}:{}", setting("BIND_ADDR", "127.0.0.1"), setting("SERVER_PORT", "8080"));
    let server = Factory.start(address)?;
    server.join().map_err(|_| io::Error::other("the server has ended"))
}
