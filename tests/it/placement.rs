//! Everything that belongs to a connection happens on one worker: recorded at each step, under load.

use crate::support::clock;
use crate::support::http::Client;
use crate::support::process::poll;
use crate::support::servers::Redis;
use flashsale::catalog::Catalog;
use flashsale::code::{Codes, HoldNumbers};
use flashsale::domain::{SaleId, Terms};
use flashsale::http::listen;
use flashsale::http::request::Head;
use flashsale::http::response::Responder;
use flashsale::http::server::Server;
use flashsale::http::service::Service;
use flashsale::inventory::redis::{RedisInventory, Shared};
use flashsale::inventory::{Clock, Inventory, LostCalls, Suspicion, View};
use flashsale::keeper::merge::RebuiltSale;
use flashsale::keeper::sale_store::SaleStore;
use flashsale::keeper::store::Store;
use flashsale::record::{self, Message};
use flashsale::redis_wire::endpoint::RedisEndpoint;
use flashsale::service::{Answer, Session, Shop};
use flashsale::worker::{self, Begun, Ticket, Vitals, Workers};
use may::io::WaitIoWaker;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CORES: usize = 2;
const CLIENTS: usize = 24;
const ROUNDS: usize = 100;

type Steps = BTreeMap<usize, BTreeSet<(&'static str, Option<usize>)>>;

/// The real service, which notes on which worker each of its steps ran.
struct Recorded {
    shop: Shop,
    next: AtomicUsize,
    steps: Mutex<Steps>,
}

impl Recorded {
    fn note(&self, connection: usize, step: &'static str) {
        self.steps.lock().unwrap().entry(connection).or_default().insert((step, worker::current()));
    }
}

struct Noted {
    connection: usize,
    inner: Session,
}

impl Service for Recorded {
    type Session = Noted;
    type Answer = (usize, Answer);

    fn session(&self, worker: usize, waker: WaitIoWaker) -> Noted {
        let connection = self.next.fetch_add(1, Ordering::Relaxed);
        self.note(connection, "session");
        assert_eq!(Some(worker), worker::current());
        Noted { connection, inner: self.shop.session(worker, waker) }
    }
    fn begin(&self, session: &mut Noted, head: &Head<'_>) -> Begun<Self::Answer> {
        self.note(session.connection, "begin");
        self.shop.begin(&mut session.inner, head).map(|answer| (session.connection, answer))
    }
    fn poll(&self, session: &mut Noted, ticket: Ticket) -> Option<Self::Answer> {
        self.note(session.connection, "poll");
        self.shop.poll(&mut session.inner, ticket).map(|answer| (session.connection, answer))
    }
    fn give_up(&self, session: &mut Noted, ticket: Ticket) -> Self::Answer {
        (session.connection, self.shop.give_up(&mut session.inner, ticket))
    }
    fn shrink(&self, session: &mut Noted) {
        self.shop.shrink(&mut session.inner);
    }
    fn patience(&self) -> Duration {
        self.shop.patience()
    }
    fn idle(&self) -> Duration {
        self.shop.idle()
    }
    fn render(&self, answer: &Self::Answer, to: &mut Responder<'_>) {
        self.note(answer.0, "render");
        self.shop.render(&answer.1, to);
    }
}

fn open_sale(target: &Arc<RedisEndpoint>) -> View {
    let now = clock::now() as u64;
    let terms = Terms {
        sale: SaleId(now),
        items: 1_000_000,
        user_limit: 1_000_000,
        hold_ms: 600_000,
        starts_ms: now * 1000,
        ends_ms: (now + 3600) * 1000,
    };
    let mut store = Store::new(target.clone(), Duration::from_secs(2));
    let built = store.build(&terms, 1, &RebuiltSale::default(), &mut || Ok(())).unwrap();
    store.open(&built).unwrap();
    let clock = Clock::new(Instant::now(), store.time_ms().unwrap());
    let identity = store.look().unwrap().identity;
    View { epoch: 1, selling: true, sales: vec![terms], identity, clock, ..View::closed() }
}

/// The service on `redis`, and the flag that its workers set where they lose calls. Nothing reads the channel of suspicions, which
/// is full.
fn start(redis: &Redis) -> (Arc<Recorded>, Server<Recorded>, Arc<RedisInventory>, LostCalls) {
    let workers = Workers::start(CORES, Vitals::new().0).unwrap();
    let target = Arc::new(RedisEndpoint::parse(&redis.addr().to_string()).unwrap());
    target.resolve().unwrap();
    let view = Arc::new(arc_swap::ArcSwap::from_pointee(open_sale(&target)));
    let (recorder, inbox) = record::channel(1024);
    std::thread::spawn(move || while let Ok(Message::Records(_)) = inbox.receiver.recv() {});
    let ((suspicions, full), lost_calls) = (crossbeam_channel::bounded(1), LostCalls::default());
    suspicions.send(Suspicion::Epoch(0)).unwrap();
    std::mem::forget(full);
    let shared = Shared {
        view,
        numbers: HoldNumbers::starting_at(1, 0),
        recorder: Arc::new(recorder),
        ack_by_ledger: false,
        timeout: Duration::from_secs(5),
        suspicions,
        lost_calls: lost_calls.clone(),
    };
    let inventory = Arc::new(RedisInventory::start(workers, &target, shared).unwrap());
    let deadline = Instant::now() + Duration::from_secs(5);
    while !inventory.is_ready() {
        assert!(Instant::now() < deadline, "the drivers do not connect");
        std::thread::yield_now();
    }
    let shop = Shop::new(inventory.clone(), Codes::new(&[7; 16]), Catalog::generated(), Duration::from_secs(5));
    let recorded = Arc::new(Recorded { shop, next: AtomicUsize::new(0), steps: Mutex::new(Steps::new()) });
    let listener = listen::bind("127.0.0.1:0".parse().unwrap()).unwrap().listen().unwrap();
    let server = Server::start(workers, listener, recorded.clone(), 1000).unwrap();
    (recorded, server, inventory, lost_calls)
}

#[test]
fn a_connection_stays_on_its_worker() {
    let redis = Redis::start();
    let (recorded, server, inventory, lost_calls) = start(&redis);
    let address = server.address();
    std::thread::scope(|scope| {
        for n in 0..CLIENTS {
            scope.spawn(move || {
                let mut client = Client::new(address);
                for _ in 0..ROUNDS {
                    // In debug builds the drivers assert their worker too: a violation would end one of them, and
                    // answers with it.
                    let code = client.code(&format!("u{n}"), "i");
                    assert_eq!(client.purchase(&code).status, 200);
                }
            });
        }
    });
    let steps = recorded.steps.lock().unwrap();
    assert_eq!(steps.len(), CLIENTS);
    let mut used = BTreeSet::new();
    for (connection, steps) in steps.iter() {
        let workers: BTreeSet<_> = steps.iter().map(|(_, worker)| *worker).collect();
        let kinds: BTreeSet<_> = steps.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(workers.len(), 1, "connection {connection} was on several workers: {steps:?}");
        assert_eq!(kinds, BTreeSet::from(["begin", "poll", "render", "session"]));
        used.extend(workers);
    }
    drop(steps);
    // Client and server share this process' descriptors: connections may get every second number only. A descriptor between
    // them shifts the next ones.
    let mut spare = Vec::new();
    while used != (0..CORES).map(Some).collect() {
        assert!(spare.len() < 64, "only these workers get connections: {used:?}");
        let client = {
            let mut client = Client::new(address);
            client.code(&format!("spare{}", spare.len()), "i");
            client
        };
        spare.push((std::fs::File::open("/dev/null").unwrap(), client));
        used.extend(recorded.steps.lock().unwrap().values().flatten().map(|(_, worker)| *worker));
    }

    // One test for both, since a process starts its workers once.
    assert!(!lost_calls.load(Ordering::Acquire));
    redis.run(&["CLIENT", "PAUSE", "60000"]);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Client::new(address).checkout("lost", "i").status);
        poll("a call", Duration::from_secs(5), || {
            (0..CORES).any(|worker| inventory.undecided(worker) > 0).then_some(())
        });
        drop(redis);
        assert_eq!(waiting.join().unwrap(), 503);
    });
    assert!(lost_calls.load(Ordering::Acquire), "heard of, although the channel of suspicions is full");
}
