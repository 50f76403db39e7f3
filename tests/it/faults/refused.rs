//! A Redis that cannot be relied on is refused at start, with the reason.

use super::*;
use crate::support::process::local;
use crate::support::servers::{Mode, Redis, Stack};
use std::io::{BufRead, BufReader, Write};

#[test]
fn unfit_servers() {
    let stack = Stack::new(Mode::Distributed);
    let check = |addr: SocketAddr, why: &str| {
        let failure = stack.app().env("REDIS_ADDR", addr).run_to_failure();
        assert_eq!(failure.code, 1, "{}", failure.stderr);
        assert!(failure.stderr.contains(why) && failure.stderr.contains("REDIS_ADDR"), "{why}: {}", failure.stderr);
        assert!(failure.elapsed < Duration::from_secs(5), "{why}: after {:?}", failure.elapsed);
    };
    check(Redis::start_with(&["--maxmemory-policy", "allkeys-lru"]).addr(), "maxmemory-policy allkeys-lru");
    check(Redis::start_with(&["--cluster-enabled", "yes"]).addr(), "cluster mode");
    let replica = Redis::start();
    replica.replica_of(stack.redis_ref());
    check(replica.addr(), "replica");
    check(old_redis(), "version 6.2.14; 7 or later");
}

/// A server that says what an old Redis says of itself, and +OK to all else.
fn old_redis() -> SocketAddr {
    let listener = std::net::TcpListener::bind(local(0)).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(10) {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let info = "redis_version:6.2.14\r\nredis_mode:standalone\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n\
                    run_id:a\r\nmaster_replid:b\r\n";
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                // A command is "*<count>", then a length and a word each.
                while let Some(Ok(head)) = lines.next() {
                    let count: usize = head.trim_start_matches('*').parse().unwrap_or(0);
                    let words: Vec<String> = lines.by_ref().take(2 * count).map_while(Result::ok).collect();
                    let reply = if words.get(1).is_some_and(|word| word == "INFO") {
                        format!("${}\r\n{info}\r\n", info.len())
                    } else {
                        "+OK\r\n".to_owned()
                    };
                    if stream.write_all(reply.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}
