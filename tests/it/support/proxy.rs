//! A TCP proxy that stands between an instance and a server, and does to their connection what networks do.

use super::http;
use super::process::local;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often a quiet connection looks whether something has changed.
const TICK: Duration = Duration::from_millis(10);

/// What the proxy does to the connections.
struct Weather {
    target: Mutex<SocketAddr>,
    /// Connections of an older generation end.
    generation: AtomicU64,
    held: AtomicBool,
    delay_ms: AtomicU64,
    /// How many script replies are still to be cut in the middle.
    cuts: AtomicU64,
    over: AtomicBool,
}

/// A proxy on a port of its own. Ends with its value.
pub struct Proxy {
    addr: SocketAddr,
    weather: Arc<Weather>,
}

impl Proxy {
    /// A proxy that leads to `target` and changes nothing.
    pub fn to(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(local(0)).expect("bind the proxy");
        let addr = listener.local_addr().expect("its address");
        let weather = Arc::new(Weather {
            target: Mutex::new(target),
            generation: AtomicU64::new(0),
            held: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let inside = weather.clone();
        std::thread::spawn(move || accept(&listener, &inside));
        Proxy { addr, weather }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends all connections; new ones lead to `target`.
    pub fn switch(&self, target: SocketAddr) {
        self.point(target);
        self.weather.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// New connections lead to `target`; those that are open stay.
    pub fn point(&self, target: SocketAddr) {
        *self.weather.target.lock().unwrap() = target;
    }

    /// Passes nothing on, in either direction, until told otherwise; nothing is lost.
    pub fn hold(&self, held: bool) {
        self.weather.held.store(held, Ordering::SeqCst);
    }

    /// Passes replies on later.
    pub fn delay(&self, by: Duration) {
        self.weather.delay_ms.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Passes half of the next `count` replies of scripts on, and ends each one's connection.
    pub fn cut_replies(&self, count: u64) {
        self.weather.cuts.store(count, Ordering::SeqCst);
    }

    /// How many of them have not come yet.
    pub fn cuts_left(&self) -> u64 {
        self.weather.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.weather.over.store(true, Ordering::SeqCst);
        // The acceptor looks up once it is called on.
        let _ = TcpStream::connect(self.addr);
    }
}

fn accept(listener: &TcpListener, weather: &Arc<Weather>) {
    while let Ok((client, _)) = listener.accept() {
        if weather.over.load(Ordering::SeqCst) {
            return;
        }
        let generation = weather.generation.load(Ordering::SeqCst);
        let target = *weather.target.lock().unwrap();
        let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else { continue };
        let pairs = [(client.try_clone(), server.try_clone(), false), (Ok(server), Ok(client), true)];
        for (from, to, replies) in pairs {
            let (Ok(from), Ok(to), weather) = (from, to, weather.clone()) else { continue };
            std::thread::spawn(move || {
                pump(&from, &to, &weather, generation, replies);
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
            });
        }
    }
}

/// Passes on what comes from `from` until either end closes or the weather changes.
fn pump(from: &TcpStream, mut to: &TcpStream, weather: &Weather, generation: u64, replies: bool) {
    let _ = (from.set_read_timeout(Some(TICK)), to.set_nodelay(true));
    let mut chunk = vec![0; 64 << 10];
    let ended = || weather.generation.load(Ordering::SeqCst) != generation || weather.over.load(Ordering::SeqCst);
    while !ended() {
        if weather.held.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            continue;
        }
        let count = match http::read(from, &mut chunk) {
            Ok(0) => return,
            Ok(count) => count,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        // What was read before the hold began waits here.
        while weather.held.load(Ordering::SeqCst) && !ended() {
            std::thread::sleep(TICK);
        }
        let mut passed = &chunk[..count];
        if replies {
            std::thread::sleep(Duration::from_millis(weather.delay_ms.load(Ordering::SeqCst)));
            let decided = passed.windows(4).position(|w| w == b"\r\nK ");
            let take = |left: u64| left.checked_sub(1);
            if let Some(at) = decided
                && weather.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
            {
                passed = &passed[..at + 6];
                let _ = to.write_all(passed);
                return;
            }
        }
        if to.write_all(passed).is_err() {
            return;
        }
    }
}
