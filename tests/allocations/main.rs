//! The workers allocate nothing for a request once they are warm.
//!
//! The service runs in this process: workers, writer and keeper, on real servers. The allocations of one worker's thread are
//! counted while requests are answered: by a connection, the service, a lane with its connection to Redis, and the embedded
//! inventory. Not counted: the threads of the writer and the keeper, and the first requests, in which buffers and queues
//! take their size. Connections do not begin or end meanwhile: each of those takes memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a failed test")]
// Not every tool of the harness is needed here.
#![allow(dead_code)]

#[path = "../it/support"]
mod support {
    pub mod app;
    pub mod clock;
    pub mod http;
    pub mod ledger;
    mod postgres_server;
    pub mod process;
    mod redis_server;
    pub mod servers;
}
#[path = "../../examples/minihttp/wiring.rs"]
mod wiring;

use flashsale::config::{Backends, Config, PurchaseAck, SaleSettings};
use flashsale::http::listen;
use flashsale::http::server::Server;
use flashsale::redis_wire::endpoint::RedisEndpoint;
use flashsale::service::Shop;
use flashsale::worker::{Bell, Ticker, Vitals, Workers};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::clock;
use support::process::poll;
use support::servers::{Postgres, Redis};

/// As long as anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(50);
/// Requests before the count begins.
const WARM: usize = 3_200;
const COUNTED: usize = 3_200;
/// Requests after which the ledger may catch up.
const AT_ONCE: usize = 64;
/// What may be allocated meanwhile because time passes.
const FEW: u64 = 8;

/// How many allocations the thread of `worker` makes while `work` runs.
fn allocations(workers: Workers, worker: usize, work: impl FnOnce()) -> u64 {
    let bell = Arc::new(Bell::new(workers, worker).unwrap());
    let (begin, begun) = crossbeam_channel::bounded(1);
    let (end, ended) = crossbeam_channel::bounded(1);
    let over = Arc::new(AtomicBool::new(false));
    let (rung, is_over) = (bell.clone(), over.clone());
    let count = move || {
        // The counter belongs to the thread, and this coroutine never leaves it: all that runs on the worker meanwhile is
        // counted.
        let counted = allocation_counter::measure(|| {
            let _ = begin.send(());
            // A bell may wake its coroutine once too often.
            while !is_over.load(Ordering::Acquire) {
                rung.wait();
            }
        });
        let _ = end.send(counted.count_total);
    };
    workers.spawn(worker, count).unwrap();
    begun.recv_timeout(DEADLINE).unwrap();
    work();
    over.store(true, Ordering::Release);
    bell.ring();
    ended.recv_timeout(DEADLINE).unwrap()
}

/// The service with its server, and a connection to it.
struct Service {
    workers: Workers,
    stream: TcpStream,
    /// Codes that were granted and not purchased.
    codes: VecDeque<String>,
    users: usize,
    /// Rows that the ledger has in the end.
    granted: i64,
    /// The ledger, where answers do not wait for it.
    ledger: Option<postgres::Client>,
    /// Where more was allocated than may be.
    wrong: Vec<String>,
}

impl Service {
    fn start(workers: Workers, backends: Backends, items: u64, ledger: Option<postgres::Client>) -> Service {
        let sale_ms = clock::quiet_sale_seconds() * 1000;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            address: nowhere,
            admin_address: nowhere,
            backends,
            sale: SaleSettings { items, user_limit: 10, sale_ms, hold_ms: 3_600_000 },
            workers: workers.count(),
            redis_timeout: DEADLINE,
            purchase_ack: PurchaseAck::Redis,
            max_connections: 100,
            drain: Duration::ZERO,
            catalog_file: None,
            log: String::new(),
            misspelt: Vec::new(),
        };
        let shop: Arc<Shop> = wiring::start(&config, workers).unwrap();
        let listener = listen::bind(nowhere).unwrap().listen().unwrap();
        let server = Arc::new(Server::start(workers, listener, shop, 100).unwrap());
        for worker in workers.all() {
            let (ticker, ticked) = (Ticker::new(workers, worker, TICK).unwrap(), server.clone());
            let tick = move || loop {
                ticker.wait();
                ticked.tick(worker);
            };
            workers.spawn(worker, tick).unwrap();
        }
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Service { workers, stream, codes: VecDeque::new(), users: 0, granted: 0, ledger, wrong: Vec::new() }
    }

    /// Sends `requests` together and takes as many answers, whose bodies are JSON. Returns them as text.
    fn ask(&mut self, requests: &[String]) -> String {
        self.stream.write_all(requests.concat().as_bytes()).unwrap();
        let (mut text, mut part) = (String::new(), [0; 16 << 10]);
        while text.matches("HTTP/1.1 ").count() < requests.len() || !text.ends_with('}') {
            let count = self.stream.read(&mut part).unwrap();
            assert!(count > 0, "the connection ended: {text}");
            text.push_str(std::str::from_utf8(&part[..count]).unwrap());
        }
        text
    }

    /// Checks out `count` times, `depth` at a time; all get an answer of `status`.
    fn checkouts(&mut self, count: usize, depth: usize, status: u16) {
        for _ in 0..count / depth {
            let requests: Vec<String> = (0..depth)
                .map(|_| {
                    self.users += 1;
                    format!("POST /checkout?user_id=u{}&id=lamp HTTP/1.1\r\nHost: h\r\n\r\n", self.users)
                })
                .collect();
            let text = self.ask(&requests);
            assert_eq!(text.matches(&format!("HTTP/1.1 {status}")).count(), depth, "{text}");
            self.granted += if status == 200 { depth as i64 } else { 0 };
            self.codes.extend(text.split("{\"code\":\"").skip(1).map(|rest| rest[..32].to_owned()));
        }
    }

    /// Waits until the ledger has a row for all that was granted.
    fn until_written(&mut self) {
        let granted = self.granted;
        if let Some(ledger) = &mut self.ledger {
            let count = "SELECT (SELECT count(*) FROM checkout_attempts) + (SELECT count(*) FROM purchases)";
            let mut rows = || ledger.query_one(count, &[]).unwrap().get::<_, i64>(0);
            poll("all rows", DEADLINE, || (rows() == granted).then_some(()));
        }
    }

    /// Purchases `count` times, `depth` at a time.
    fn purchases(&mut self, count: usize, depth: usize) {
        for _ in 0..count / depth {
            let codes = self.codes.drain(..depth);
            let requests: Vec<String> =
                codes.map(|code| format!("POST /purchase?code={code} HTTP/1.1\r\nHost: h\r\n\r\n")).collect();
            let text = self.ask(&requests);
            assert_eq!(text.matches("HTTP/1.1 200").count(), depth, "{text}");
            self.granted += depth as i64;
        }
    }

    /// At most `most` allocations are made while `work` runs for [`COUNTED`] requests, after it has run for [`WARM`]. `work`
    /// asks a few requests at a time, and the ledger has their rows before the next ones: a writer that is behind has the
    /// records of many calls, and a worker then takes memory for more.
    fn check(&mut self, what: &str, most: u64, mut work: impl FnMut(&mut Service, usize)) {
        let mut run = |service: &mut Service, count: usize| {
            for _ in 0..count / AT_ONCE {
                work(service, AT_ONCE);
                service.until_written();
            }
        };
        run(self, WARM);
        let made = allocations(self.workers, 0, || run(self, COUNTED));
        eprintln!("{what}: {made} allocations for {COUNTED} requests");
        if made > most {
            self.wrong.push(format!("{what}: {made}"));
        }
    }
}

/// One test: a process starts its workers once.
#[test]
fn no_allocation_per_request() {
    let (vitals, _) = Vitals::new();
    let workers = Workers::start(1, vitals).unwrap();
    let (made, wait) = crossbeam_channel::bounded(1);
    let one = move || drop(made.send(Box::new(1)));
    let counted = allocations(workers, 0, || {
        workers.spawn(0, one).unwrap();
        wait.recv_timeout(DEADLINE).unwrap();
    });
    assert!(counted > 0, "what another coroutine of the worker allocates is counted");
    let (redis, postgres, folder) = (Redis::start(), Postgres::start(), support::process::temp_dir());
    let distributed = || Backends::Distributed {
        redis: Arc::new(RedisEndpoint::parse(&redis.addr().to_string()).unwrap()),
        postgres_dsn: postgres.dsn(),
    };
    let embedded = |name: &str| Backends::Embedded { data_dir: folder.path().join(name) };

    let mut wrong = Vec::new();
    for (name, backends) in [("embedded", embedded("plenty")), ("distributed", distributed())] {
        let ledger = (name == "distributed").then(|| postgres.client());
        let mut service = Service::start(workers, backends, 1_000_000, ledger);
        for depth in [1, 16] {
            let what = |kind: &str| format!("{name}, {kind}, {depth} at a time");
            // In embedded mode the sale itself is in the memory of this process: its tables grow with its holds.
            let tables = if name == "embedded" { COUNTED as u64 / 2 } else { FEW };
            service.check(&what("sell"), tables, |service, count| service.checkouts(count, depth, 200));
            service.check(&what("purchase"), FEW, |service, count| service.purchases(count, depth));
        }
        wrong.append(&mut service.wrong);
    }
    let mut service = Service::start(workers, embedded("few"), 1, None);
    service.checkouts(1, 1, 200);
    for depth in [1, 16] {
        let what = format!("embedded, sold out, {depth} at a time");
        service.check(&what, FEW, |service, count| service.checkouts(count, depth, 409));
    }
    wrong.append(&mut service.wrong);
    assert_eq!(wrong, Vec::<String>::new());
}
