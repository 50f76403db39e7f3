//! How long a peer may take: to send a request, to receive an answer, to say nothing.

use crate::support::app::App;
use crate::support::clock;
use crate::support::http::{Client, read};
use crate::support::servers::{Mode, Stack};
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Longer than any of the limits that are tested here.
const PATIENCE: Duration = Duration::from_secs(20);

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    stream
}

fn is_waiting(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Sends a byte whenever nothing has come for a while, until the server ends the connection; what came until then.
fn drip(stream: &mut TcpStream) -> Vec<u8> {
    let (begun, mut came) = (Instant::now(), Vec::new());
    loop {
        assert!(begun.elapsed() < PATIENCE, "still open");
        let mut bytes = [0; 1024];
        match read(stream, &mut bytes) {
            Ok(0) => return came,
            Ok(count) => came.extend(&bytes[..count]),
            Err(e) if is_waiting(&e) => {
                if stream.write_all(b"x").is_err() {
                    return came;
                }
            }
            Err(_) => return came,
        }
    }
}

fn lasts(what: &str, seconds: Range<f64>, work: impl FnOnce()) {
    let begun = Instant::now();
    work();
    let took = begun.elapsed().as_secs_f64();
    assert!(seconds.contains(&took), "{what} lasted {took} s");
}

/// A head whose end never comes, however busily it is sent.
fn an_endless_head(app: &App) {
    let mut stream = connect(app.addr());
    lasts("a head", 9.5..13.0, || {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX: ").unwrap();
        assert_eq!(drip(&mut stream), b"", "what is no request is not answered");
    });
}

/// The body has only what the head has left of the time.
fn an_endless_body(app: &App) {
    let mut stream = connect(app.addr());
    lasts("a head and a body", 9.5..13.0, || {
        stream.write_all(b"POST /checkout?user_id=body&id=i HTTP/1.1\r\nHost: h\r\n").unwrap();
        // Half of the time goes by.
        std::thread::sleep(Duration::from_secs(5));
        stream.write_all(b"Content-Length: 60000\r\n\r\n").unwrap();
        assert_eq!(drip(&mut stream), b"", "a request that is not whole is not answered");
    });
}

/// Asks on and on and never reads.
fn a_peer_who_never_reads(app: &App) {
    let mut stream = connect(app.addr());
    let requests = b"GET /items/a.svg HTTP/1.1\r\nHost: h\r\n\r\n".repeat(100);
    let begun = Instant::now();
    let mut full: Option<Instant> = None;
    let ended = loop {
        assert!(begun.elapsed() < PATIENCE, "still open");
        match stream.write(&requests) {
            Ok(_) => full = None,
            Err(e) if is_waiting(&e) => drop(full.get_or_insert_with(Instant::now)),
            Err(_) => break Instant::now(),
        }
    };
    let waited = ended - full.expect("all buffers were full");
    assert!((7.0..13.0).contains(&waited.as_secs_f64()), "it lasted {waited:?}");
}

/// There are few places for tools, and a probe must find one.
fn a_silent_tool(app: &App) {
    let mut client = Client::new(app.admin_addr());
    assert_eq!(client.get("/health").status, 200);
    lasts("a tool's silence", 4.5..8.0, || {
        let begun = Instant::now();
        while !client.is_closed() {
            assert!(begun.elapsed() < PATIENCE, "still open");
        }
    });
}

#[test]
fn time_limits() {
    let stack = Stack::alone(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let mut shopper = app.client();
    assert_eq!(shopper.checkout("u", "i").status, 200);
    std::thread::scope(|scope| {
        for wait in [an_endless_head, an_endless_body, a_peer_who_never_reads, a_silent_tool] {
            let app = &app;
            scope.spawn(move || wait(app));
        }
    });
    // A shopper may be silent for longer, and the body that never came has bought nothing.
    assert_eq!(shopper.get("/").status, 404);
    assert_eq!(stack.ledger().rows().attempts.len(), 1);
}
