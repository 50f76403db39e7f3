//! The harness is tested by itself: a test that fails should blame the service, not its own tools.

use super::clock;
use super::http::{Client, checkout_target, encode};
use super::process::{self, poll};
use super::servers::{Mode, Redis, Stack};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// A server that waits for `requests` empty lines on each connection, then writes its next script and closes.
fn scripted(scripts: Vec<(usize, &'static str)>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (requests, script) in scripts {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut seen, mut byte) = (Vec::new(), [0]);
            while seen.windows(4).filter(|w| w == b"\r\n\r\n").count() < requests {
                stream.read_exact(&mut byte).unwrap();
                seen.extend(byte);
            }
            stream.write_all(script.as_bytes()).unwrap();
        }
    });
    addr
}

#[test]
fn client_reads_answers_and_connects_again() {
    let addr = scripted(vec![
        (2, "HTTP/1.1 409 Conflict\r\nA: 1\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nRetry-After: 7\r\n\r\n"),
        (1, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{\"a\":\"b\"}"),
        (1, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"),
        (1, "nonsense\r\n\r\n"),
    ]);
    let mut client = Client::new(addr);
    client.send(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n").unwrap();
    let first = client.receive().unwrap();
    assert_eq!((first.status, first.header("a"), first.text().as_str()), (409, Some("1"), "{}"));
    assert_eq!(client.receive().unwrap().retry_after(), 7);
    assert!(client.is_closed());
    client.receive().expect_err("there is no third answer");
    assert_eq!(client.get("/").field("a"), "b", "a new connection after an error");
    client.send_request("GET", "/").expect_err("the body is cut short, on a new connection after a close");
    client.send_request("GET", "/").expect_err("not HTTP");
}

#[test]
fn client_notices_a_connection_that_stays_open() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut client = Client::new(listener.local_addr().unwrap());
    client.send(b"x").unwrap();
    let (stream, _) = listener.accept().unwrap();
    (&stream).write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\nX").unwrap();
    client.receive().expect_err("it says close and goes on");
}

#[test]
fn targets_are_encoded() {
    assert_eq!(encode("a-Z._~9"), "a-Z._~9");
    assert_eq!(checkout_target("a b&", "é+"), "/checkout?user_id=a%20b%26&id=%C3%A9%2B");
}

#[test]
fn quiet_lengths_have_no_edge_near() {
    for day in [19_999, 20_000, 20_777] {
        for second in (0..86_400).step_by(97) {
            let now = day * 86_400 + second;
            let length = clock::quiet_at(now);
            assert!((300..=length - 300).contains(&(now % length)), "{now} with {length}");
        }
    }
}

#[test]
fn redis_restarts_forgets_and_freezes() {
    let mut redis = Redis::start_durable();
    redis.run(&["SET", "a", "1"]);
    redis.kill();
    assert!(!process::listens(redis.addr().port()));
    redis.restart();
    assert_eq!(redis.run(&["GET", "a"]), redis::Value::BulkString(b"1".to_vec()));

    let replica = Redis::start();
    replica.replica_of(&redis);
    poll("the key on the replica", SOON, || (replica.run(&["DBSIZE"]) == redis::Value::Int(1)).then_some(()));
    replica.promote();
    replica.run(&["SET", "b", "1"]);

    redis.wipe();
    assert_eq!(redis.run(&["DBSIZE"]), redis::Value::Int(0));
    redis.pause();
    let mut frozen = Client::new(redis.addr());
    let begun = Instant::now();
    frozen.send(b"PING\r\n").unwrap();
    frozen.receive().expect_err("a frozen server answers nothing");
    assert!(begun.elapsed() > Duration::from_secs(4));
    redis.resume();
    assert_eq!(redis.run(&["DBSIZE"]), redis::Value::Int(0));
    redis.stop();
    assert!(!process::listens(redis.addr().port()));
}

#[test]
fn postgres_keeps_what_it_committed() {
    let mut stack = Stack::new(Mode::Distributed);
    let postgres = stack.postgres();
    let mut client = postgres.client();
    client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (7)").unwrap();
    postgres.stop_immediate();
    assert!(!process::listens(postgres.port()));
    client.query("SELECT 1", &[]).expect_err("its backend has ended");
    postgres.start_again();
    assert_eq!(postgres.client().query_one("SELECT a FROM t", &[]).unwrap().get::<_, i32>(0), 7);

    postgres.pause();
    let mut frozen = Client::new(process::local(postgres.port()));
    // The request for TLS is the shortest that a server answers at once.
    frozen.send(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    frozen.receive().expect_err("a frozen server answers nothing");
    postgres.resume();
    postgres.client().query_one("SELECT 1", &[]).unwrap();
    assert!(!postgres.log().is_empty());
}

#[test]
fn servers_end_with_their_values() {
    let port = {
        let mut stack = Stack::new(Mode::Distributed);
        let ports = [stack.redis().addr().port(), stack.postgres().port()];
        stack.redis().pause();
        stack.postgres().pause();
        ports
    };
    port.into_iter().for_each(|port| assert!(!process::listens(port), "{port}"));
}

#[test]
fn other_ports_than_those_given_out() {
    let mut ports: Vec<u16> = (0..50).map(|_| process::free_port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 50);
}
