//! A service whose answers come when a test says so, on the real server.
//!
//! Owns the one worker of the process, the service and its servers. Invariant: all that a test does on the worker runs between
//! two turns of its connections. Leaves what is checked to the tests.

use crate::http::Client;
use flashsale::http::listen;
use flashsale::http::request::Head;
use flashsale::http::response::{ExtraHeader, Responder};
use flashsale::http::server::Server;
use flashsale::http::service::Service;
use flashsale::worker::{Begun, Bell, Ticker, Ticket, Vitals, Waiter, Workers};
use may::io::WaitIoWaker;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// Longer than anything here takes.
pub const DEADLINE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);
/// The body of an answer at a path that begins with `/big`.
const BIG: usize = 64 << 10;

pub fn poll(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < until, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// The process' one worker, and the coroutine on it that runs what tests send it.
struct Worker {
    workers: Workers,
    work: crossbeam_channel::Sender<Work>,
    bell: Arc<Bell>,
}

static WORKER: LazyLock<Worker> = LazyLock::new(|| {
    let (vitals, _) = Vitals::new();
    let workers = Workers::start(1, vitals).unwrap();
    let (work, to_do) = crossbeam_channel::unbounded::<Work>();
    let bell = Arc::new(Bell::new(workers, 0).unwrap());
    let rung = bell.clone();
    workers
        .spawn(0, move || {
            loop {
                rung.wait();
                to_do.try_iter().for_each(|work| work());
            }
        })
        .unwrap();
    Worker { workers, work, bell }
});

/// Runs `work` on the worker, and waits for it.
pub fn on_worker<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = crossbeam_channel::bounded(1);
    WORKER.work.send(Box::new(move || drop(done.send(work())))).unwrap();
    WORKER.bell.ring();
    wait.recv_timeout(DEADLINE).unwrap()
}

/// Runs `work` while the worker does nothing, so that the server reads at once what is sent meanwhile.
pub fn while_worker_stands_still(work: impl FnOnce()) {
    let (go_on, wait) = crossbeam_channel::bounded::<()>(1);
    let (stands, standing) = crossbeam_channel::bounded(1);
    let stand = move || {
        let _ = stands.send(());
        let _ = wait.recv_timeout(DEADLINE);
    };
    WORKER.work.send(Box::new(stand)).unwrap();
    WORKER.bell.ring();
    standing.recv_timeout(DEADLINE).unwrap();
    work();
    go_on.send(()).unwrap();
}

/// A request that waits for its answer.
pub struct Asked {
    pub path: String,
    waiter: Arc<Waiter<String>>,
    ticket: Ticket,
}

impl Asked {
    /// Answers with the path, or with `answer`.
    pub fn answer(self, answer: Option<&str>) {
        let answer = answer.map_or_else(|| self.path.clone(), str::to_owned);
        on_worker(move || self.waiter.deliver(self.ticket, answer));
    }
}

/// Answers all of `asked` in this order, in one turn.
pub fn answer_all(asked: Vec<Asked>) {
    on_worker(move || asked.into_iter().for_each(|one| one.waiter.deliver(one.ticket, one.path)));
}

/// The service. A path that begins with `/now` is answered at once, and each other one when a test says so.
pub struct ScriptedService {
    patience: Duration,
    begun: Mutex<Vec<String>>,
    waiting: Mutex<Vec<Asked>>,
    shrunk: AtomicUsize,
}

impl ScriptedService {
    /// The paths of the requests that were begun, in their order.
    pub fn begun(&self) -> Vec<String> {
        self.begun.lock().unwrap().clone()
    }

    /// Takes the requests that wait, once there are `count`.
    pub fn waiting(&self, count: usize) -> Vec<Asked> {
        poll(&format!("{count} requests that wait"), || self.waiting.lock().unwrap().len() >= count);
        std::mem::take(&mut *self.waiting.lock().unwrap())
    }

    /// How often a session was told to give memory back.
    pub fn shrunk(&self) -> usize {
        self.shrunk.load(Ordering::Relaxed)
    }
}

impl Service for ScriptedService {
    type Session = Arc<Waiter<String>>;
    type Answer = String;

    fn session(&self, worker: usize, waker: WaitIoWaker) -> Self::Session {
        Arc::new(Waiter::new(worker, waker))
    }

    fn begin(&self, waiter: &mut Self::Session, head: &Head<'_>) -> Begun<String> {
        let path = head.path.to_owned();
        self.begun.lock().unwrap().push(path.clone());
        waiter.ask(|ticket| {
            if path.starts_with("/now") {
                return Some(path);
            }
            self.waiting.lock().unwrap().push(Asked { path, waiter: waiter.clone(), ticket });
            None
        })
    }

    fn poll(&self, waiter: &mut Self::Session, ticket: Ticket) -> Option<String> {
        waiter.take(ticket)
    }

    fn give_up(&self, waiter: &mut Self::Session, ticket: Ticket) -> String {
        waiter.close(ticket);
        String::new()
    }

    fn shrink(&self, waiter: &mut Self::Session) {
        waiter.shrink();
        self.shrunk.fetch_add(1, Ordering::Relaxed);
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn idle(&self) -> Duration {
        DEADLINE
    }

    fn render(&self, answer: &String, to: &mut Responder<'_>) {
        match answer.as_str() {
            "" => to.text(503, "text/plain", ExtraHeader::None, "given up"),
            big if big.starts_with("/big") => to.text(200, "text/plain", ExtraHeader::None, &"x".repeat(BIG)),
            path => to.text(200, "text/plain", ExtraHeader::None, path),
        }
    }
}

/// A server with a service of its own.
pub struct Place {
    pub service: Arc<ScriptedService>,
    pub server: Arc<Server<ScriptedService>>,
}

impl Place {
    /// A server where an answer may take `patience`.
    pub fn new(patience: Duration) -> Place {
        let (begun, waiting, shrunk) = (Mutex::default(), Mutex::default(), AtomicUsize::new(0));
        let service = Arc::new(ScriptedService { patience, begun, waiting, shrunk });
        let listener = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap().listen().unwrap();
        let server = Arc::new(Server::start(WORKER.workers, listener, service.clone(), 100).unwrap());
        let (ticker, ticked) = (Ticker::new(WORKER.workers, 0, TICK).unwrap(), server.clone());
        WORKER
            .workers
            .spawn(0, move || {
                loop {
                    ticker.wait();
                    ticked.tick(0);
                }
            })
            .unwrap();
        Place { service, server }
    }

    pub fn client(&self) -> Client {
        Client::new(self.server.address())
    }

    /// A client that has sent `requests`, all of which the server finds at its first read.
    pub fn sent(&self, requests: &str) -> Client {
        let mut client = self.client();
        while_worker_stands_still(|| client.send(requests.as_bytes()).unwrap());
        client
    }
}
