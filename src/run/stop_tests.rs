//! The end of a real instance, after a signal and after a panic.

use super::*;
use crate::run::{mailboxes, start_admin, start_embedded, start_mail, start_ticks};
use flashsale::catalog::Catalog;
use flashsale::config::{Backends, Config, PurchaseAck, SaleSettings};
use flashsale::http::listen;
use flashsale::worker::Vitals;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

#[test]
fn the_end_has_time_after_any_drain() {
    for (drain, all) in [(0, 9_500), (5_000, 9_500), (6_000, 10_500), (3_600_000, 3_604_500)] {
        assert_eq!(time_for_all(Duration::from_millis(drain)), Duration::from_millis(all));
    }
}

fn config(data_dir: &std::path::Path) -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        address: any,
        admin_address: any,
        backends: Backends::Embedded { data_dir: data_dir.to_owned() },
        sale: SaleSettings { items: 10, user_limit: 10, sale_ms: 86_400_000, hold_ms: 1_000 },
        workers: 2,
        redis_timeout: Duration::from_secs(1),
        purchase_ack: PurchaseAck::Redis,
        max_connections: 10,
        drain: Duration::from_secs(3600),
        catalog_file: None,
        log: "off".into(),
        misspelt: Vec::new(),
    }
}

fn checkout(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = b"POST /checkout?user_id=u&id=i HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A part panics while the instance drains, which would take an hour: it ends now, with a code that says why, and what was
/// answered is on record.
#[test]
fn a_panic_ends_the_process() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = config(dir.path());
    let (vitals, panics) = Vitals::new();
    let workers = Workers::start(config.workers, vitals.clone()).unwrap();
    let boxes = mailboxes(workers).unwrap();
    let running = start_embedded(&config, dir.path(), (workers, &vitals), &boxes).unwrap();
    let shop = Shop::new(running.inventory.clone(), running.codes.clone(), Catalog::generated(), running.patience);
    let shop = Arc::new(shop);
    start_mail(workers, &boxes, &running.recorder).unwrap();
    let listen = |address| listen::bind(address).unwrap().listen().unwrap();
    let server = Arc::new(Server::start(workers, listen(config.address), shop.clone(), 10).unwrap());
    let admin = start_admin(workers, listen(config.admin_address), &running, &server).unwrap();
    start_ticks(workers, &server, &admin, &running.inventory).unwrap();
    let address = server.address();
    assert!(checkout(address).starts_with("HTTP/1.1 200"));

    let recorder = running.recorder.clone();
    let stop = Stop { workers, running, shop: &shop, server: &server, drain: config.drain, panics };
    let code = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !server.is_draining() {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(checkout(address).starts_with("HTTP/1.1 200"), "it serves on");
            vitals.watch("the keeper", || panic!("a fault"));
        });
        stop.run(Cause::Signal("SIGTERM"))
    });
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(PANICKED)));
    assert_eq!((recorder.counters().written.load(Ordering::Relaxed), recorder.counters().backlog()), (2, 0));
    assert!(TcpStream::connect(address).is_err(), "it listens no more");
}
