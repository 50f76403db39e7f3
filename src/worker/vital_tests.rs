//! Parts that panic: each is told of, and nothing else ends with it.

use super::*;
use crate::domain::{HoldNumber, Record, RecordKind, Records, SaleId};
use crate::http::listen;
use crate::http::request::Head;
use crate::http::response::{ExtraHeader, Responder};
use crate::http::server::Server;
use crate::http::service::Service;
use crate::ledger::writer::{OnFailure, Writer};
use crate::ledger::{Append, LedgerError};
use crate::record::{self, Message};
use crate::redis_wire::endpoint::RedisEndpoint;
use crate::redis_wire::pipeline::{ConnectionEnd, DriverWaker, Pipeline, Protocol};
use crate::redis_wire::resp::Reply;
use crate::worker::{Begun, Ticket, Workers};
use may::io::WaitIoWaker;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const TOLD: Duration = Duration::from_secs(10);

#[test]
fn a_panic_is_told_in_one_line() {
    let (vitals, told) = Vitals::new();
    vitals.watch("a part", || {});
    vitals.watch("a part", || panic!("first\nsecond"));
    let thread = vitals.thread("x", "a thread", || std::panic::panic_any(7)).unwrap();
    thread.join().unwrap();
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["a part panicked: first second", "a thread panicked: no message"]);
}

/// A ledger with a fault.
struct Faulty;

impl Append for Faulty {
    fn append(&mut self, _: &[&Records]) -> Result<(), LedgerError> {
        panic!("a fault in the ledger")
    }
}

#[test]
fn a_writer_that_panics_is_told() {
    let (vitals, told) = Vitals::new();
    let (recorder, inbox) = record::channel(4);
    let (stale, _stale) = crossbeam_channel::unbounded();
    let writer = Writer { inbox, ledger: Faulty, mailboxes: Arc::default(), on_failure: OnFailure::Retry, stale };
    let thread = vitals.thread("ledger-writer", "the ledger's writer", move || writer.run()).unwrap();
    let mut handoff = recorder.blank(0, SaleId(1), 1);
    let (user, item) = ("u".parse().unwrap(), "i".parse().unwrap());
    let (kind, number) = (RecordKind::Hold, HoldNumber(1));
    handoff.records.push(&Record { kind, number, user, item, at_ms: 1, expires_ms: 2 });
    recorder.sender().send(Message::Records(handoff)).unwrap();
    assert_eq!(told.recv_timeout(TOLD).unwrap(), "the ledger's writer panicked: a fault in the ledger");
    thread.join().unwrap();
    assert!(recorder.sender().send(Message::Finish).is_err(), "the end does not wait for it");
}

/// A protocol with a fault, on a connection that is made.
struct FaultyProtocol;

impl Protocol for FaultyProtocol {
    type Fault = Infallible;

    fn greet(&mut self, _: &mut Vec<u8>) -> usize {
        panic!("a fault in the protocol")
    }
    fn greeted(&mut self, _: usize, _: Reply<'_>) -> Result<(), Infallible> {
        Ok(())
    }
    fn ready(&mut self) {}
    fn fill(&mut self, _: &mut Vec<u8>) -> Result<(), Infallible> {
        Ok(())
    }
    fn reply(&mut self, _: Reply<'_>) -> Result<(), Infallible> {
        Ok(())
    }
    fn lost(&mut self, _: &ConnectionEnd<Infallible>) {}
    fn is_idle(&self) -> bool {
        true
    }
    fn ended_idle(&mut self) {}
    fn waiting_since(&self) -> Option<Instant> {
        None
    }
}

/// A service with a fault at one path.
struct FaultyService;

impl Service for FaultyService {
    type Session = ();
    type Answer = ();

    fn session(&self, _: usize, _: WaitIoWaker) {}
    fn begin(&self, (): &mut (), head: &Head<'_>) -> Begun<()> {
        assert!(head.path != "/fault", "a fault in the service");
        Begun::Answered(())
    }
    fn poll(&self, (): &mut (), _: Ticket) -> Option<()> {
        None
    }
    fn give_up(&self, (): &mut (), _: Ticket) {}
    fn shrink(&self, (): &mut ()) {}
    fn patience(&self) -> Duration {
        TOLD
    }
    fn idle(&self) -> Duration {
        TOLD
    }
    fn render(&self, (): &(), to: &mut Responder<'_>) {
        to.json(200, ExtraHeader::None, |_| {});
    }
}

fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TOLD)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// One test for all that needs workers: a process starts them once.
#[test]
fn coroutines_that_panic() {
    let (vitals, told) = Vitals::new();
    let workers = Workers::start(2, vitals).unwrap();

    // A connection's panic is its own, and is counted.
    let listener = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().listen().unwrap();
    let server = Server::start(workers, listener, Arc::new(FaultyService), 100).unwrap();
    for round in 1..=5 {
        assert!(ask(server.address(), "/").starts_with("HTTP/1.1 200"));
        assert_eq!(ask(server.address(), "/fault"), "");
        assert!(ask(server.address(), "/").starts_with("HTTP/1.1 200"));
        assert_eq!(server.connections().panicked, round);
    }
    let until = Instant::now() + TOLD;
    while server.connections().open > 0 {
        assert!(Instant::now() < until, "{:?}", server.connections());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(told.is_empty(), "no vital part panicked");

    // A driver's is not.
    let redis = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let target = Arc::new(RedisEndpoint::parse(&redis.local_addr().unwrap().to_string()).unwrap());
    // It is looked up; an answer never comes.
    target.reach(Duration::from_millis(50)).unwrap_err();
    let driver = Arc::new(DriverWaker::new(workers, 1).unwrap());
    let pipeline = Pipeline { workers, worker: 1, target, timeout: TOLD, driver, protocol: FaultyProtocol };
    workers.spawn_vital(1, "a driver", move || pipeline.run()).unwrap();
    assert_eq!(told.recv_timeout(TOLD).unwrap(), "a driver panicked: a fault in the protocol");
    assert!(ask(server.address(), "/").starts_with("HTTP/1.1 200"), "its worker goes on");
}
