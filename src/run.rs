//! Starting and stopping.
//!
//! Owns which parts the process has: it picks the backends, makes the channels between the parts, and starts them in an
//! order in which each finds those that it needs. Invariant: no shopper is served before sales are open and both ports
//! listen. Leaves the order of the end to `stop`, and all other work to the parts.

mod reach;
mod running;
mod signals;
mod stop;

use crossbeam_channel::{Receiver, select};
use flashsale::admin::Admin;
use flashsale::catalog::Catalog;
use flashsale::code::{Codes, HoldNumbers};
use flashsale::config::{ADMIN_CONNECTIONS, Backends, Config, DSN_FORM, PurchaseAck};
use flashsale::http::listen::{self, Listener};
use flashsale::http::server::Server;
use flashsale::inventory::embedded::{self, EmbeddedInventory};
use flashsale::inventory::redis::{RedisInventory, Shared};
use flashsale::inventory::{Inventory, LostCalls, SharedView, View};
use flashsale::keeper;
use flashsale::keeper::own_work::LocalWork;
use flashsale::ledger::postgres::{ConnectSettings, PostgresAppend, PostgresLedger, parse_dsn};
use flashsale::ledger::sqlite::SqliteLedger;
use flashsale::ledger::writer::{OnFailure, Writer};
use flashsale::ledger::{Append, Ledger};
use flashsale::record::{self, CHANNEL_MESSAGES, Inbox, Mailbox, Recorder};
use flashsale::redis_wire::endpoint::RedisEndpoint;
use flashsale::service::Shop;
use flashsale::worker::{Bell, Ticker, Vitals, Workers};
use reach::{STARTUP_TIMEOUT, ask};
use running::{EndsLast, Running};
use signals::Signals;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use stop::{Cause, Stop};

/// The workers' tick: the grain of all time limits.
const TICK: Duration = Duration::from_millis(50);
/// How long an answer may take that waits for the ledger. A disk may be slow for seconds.
const LEDGER_PATIENCE: Duration = Duration::from_secs(5);
/// How long the instance waits at its start for the workers' connections to Redis. A request without a connection is
/// answered 503.
const WARMUP_TIMEOUT: Duration = Duration::from_secs(1);
/// Suspicions that wait for the keeper. One that finds no room is dropped: the fault shows again in the next request.
const SUSPICIONS: usize = 16;

/// Why the process did not start, in a line.
pub enum Failure {
    /// A setting is wrong: another start with the same settings fails as well.
    Setting(String),
    /// A server, a port, a file or the operating system refused: another start may succeed.
    Start(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Failure {
        Failure::Start(why)
    }
}

/// Runs until a signal, or until a part panics that it cannot do without. `Err` is why it could not start.
pub fn run(config: Config) -> Result<ExitCode, Failure> {
    let signals = Signals::listen()?;
    // Logging never blocks a worker: a thread of its own writes, and what it cannot keep up with is dropped.
    let (log, _flush) = tracing_appender::non_blocking(std::io::stderr());
    let filter =
        tracing_subscriber::EnvFilter::try_new(&config.log).map_err(|e| Failure::Setting(format!("LOG: {e}")))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(log).with_ansi(false).init();

    for (name, setting) in &config.misspelt {
        tracing::warn!(
            "the environment variable {name} is not a setting and is not read; the setting is called {setting}"
        );
    }
    let catalog = match &config.catalog_file {
        None => Catalog::generated(),
        Some(path) => Catalog::from_file(path).map_err(|e| Failure::Setting(format!("CATALOG_FILE: {e}")))?,
    };
    let cannot = |names: &str, address: SocketAddr, e| format!("{names}: cannot listen on {address}: {e}");
    let no_port = |e: std::io::Error| cannot("SERVER_PORT, BIND_ADDR", config.address, e);
    let no_admin_port = |e: std::io::Error| cannot("ADMIN_ADDR", config.admin_address, e);
    let port = listen::bind(config.address).map_err(no_port)?;
    let admin_port = listen::bind(config.admin_address).map_err(no_admin_port)?;
    let (vitals, panics) = Vitals::new();
    let workers = Workers::start(config.workers, vitals.clone()).map_err(|e| format!("WORKERS: {e}"))?;
    let mailboxes = mailboxes(workers).map_err(|e| format!("starting: {e}"))?;
    let running = match config.backends {
        Backends::Embedded { ref data_dir } => start_embedded(&config, data_dir, (workers, &vitals), &mailboxes)?,
        Backends::Distributed { ref redis, ref postgres_dsn } => {
            start_distributed(&config, redis.clone(), postgres_dsn, (workers, &vitals), &mailboxes)?
        }
    };
    let until = Instant::now() + WARMUP_TIMEOUT;
    while !running.inventory.is_ready() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let shop = Shop::new(running.inventory.clone(), running.codes.clone(), catalog, running.patience);
    let shop = Arc::new(shop);
    start_mail(workers, &mailboxes, &running.recorder).map_err(|e| format!("starting: {e}"))?;
    // Both ports listen before the first request is served.
    let admin_listener = admin_port.listen().map_err(no_admin_port)?;
    let listener = port.listen().map_err(no_port)?;
    // The next line may sell: from here on the end is an orderly one.
    signals.selling();
    let server = Server::start(workers, listener, shop.clone(), config.max_connections).map_err(no_port)?;
    let server = Arc::new(server);
    let admin = start_admin(workers, admin_listener, &running, &server).map_err(no_admin_port)?;
    start_ticks(workers, &server, &admin, &running.inventory).map_err(|e| format!("starting: {e}"))?;
    announce(&config, &running, server.address(), admin.address());
    let cause = select! {
        recv(signals.first()) -> name => Cause::Signal(name.unwrap_or("no signal can be heard")),
        recv(panics) -> what => what.map_or(Cause::Signal("no panic can be heard"), Cause::Panicked),
    };
    let stop = Stop { workers, running, shop: &shop, server: &server, drain: config.drain, panics };
    Ok(stop.run(cause))
}

fn mailboxes(workers: Workers) -> std::io::Result<Arc<Vec<Mailbox>>> {
    workers.all().map(|worker| Bell::new(workers, worker).map(Mailbox::new)).collect::<Result<_, _>>().map(Arc::new)
}

fn start_writer<A: Append + 'static>(
    vitals: &Vitals,
    inbox: Inbox,
    ledger: A,
    mailboxes: &Arc<Vec<Mailbox>>,
    on_failure: OnFailure,
) -> Result<(JoinHandle<()>, Receiver<Box<record::Handoff>>), String> {
    // Unbounded, so that the writer never waits for the keeper. It holds no more than came through the bounded channel to the
    // writer while the keeper was busy.
    let (stale, from_writer) = crossbeam_channel::unbounded();
    let writer = Writer { inbox, ledger, mailboxes: mailboxes.clone(), on_failure, stale };
    let thread = vitals.thread("ledger-writer", "the ledger's writer", move || writer.run());
    Ok((thread.map_err(|e| format!("starting the ledger's writer: {e}"))?, from_writer))
}

fn numbers(instance: u64) -> Result<HoldNumbers, String> {
    HoldNumbers::new(instance).map_err(|e| format!("starting: the system gives no random bytes: {e}"))
}

fn view() -> SharedView {
    Arc::new(arc_swap::ArcSwap::from_pointee(View::closed()))
}

fn spawn_keeper(vitals: &Vitals, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, String> {
    vitals.thread("keeper", "the keeper", work).map_err(|e| format!("starting the keeper: {e}"))
}

fn start_embedded(
    config: &Config,
    data_dir: &Path,
    (workers, vitals): (Workers, &Vitals),
    mailboxes: &Arc<Vec<Mailbox>>,
) -> Result<Running, String> {
    let absolute = std::path::absolute(data_dir);
    let data_dir = &absolute.map_err(|e| format!("DATA_DIR: {}: {e}", data_dir.display()))?;
    let mut ledger = SqliteLedger::open(data_dir).map_err(|e| e.to_string())?;
    let failed = |e: flashsale::ledger::LedgerError| format!("DATA_DIR: {}: {e}", data_dir.display());
    let codes = Codes::new(&ledger.code_key().map_err(failed)?);
    let instance = ledger.new_instance().map_err(failed)?;
    let appender = ledger.appender(codes.clone()).map_err(failed)?;
    let (recorder, inbox) = record::channel(CHANNEL_MESSAGES);
    let recorder = Arc::new(recorder);
    let (sales, view) = (embedded::Sales::default(), view());
    let undo = OnFailure::Undo(Arc::new(sales.clone()));
    let (writer, _) = start_writer(vitals, inbox, appender, mailboxes, undo)?;
    let (opened, sold) = (sales.clone(), recorder.clone());
    let keeper = keeper::embedded::Keeper::start(Box::new(ledger), config.sale, opened, view.clone(), sold);
    let keeper = keeper.map_err(failed)?;
    let parts = embedded::Parts { sales, view: view.clone(), numbers: numbers(instance)?, recorder: recorder.clone() };
    let inventory = EmbeddedInventory::start(workers, parts).map_err(|e| format!("starting: {e}"))?;
    let (stop_keeper, stop) = crossbeam_channel::bounded(1);
    Ok(Running {
        inventory,
        view,
        codes,
        patience: LEDGER_PATIENCE,
        recorder,
        writer,
        keeper: spawn_keeper(vitals, move || keeper.run(&stop))?,
        ends_last: EndsLast::Writer,
        stop_keeper,
        what: format!("embedded, with its ledger in {}", data_dir.display()),
    })
}

/// Both servers, once each has answered, with the codes that all instances share and this one's number.
fn reach_both(
    target: &Arc<RedisEndpoint>,
    settings: &ConnectSettings,
    where_ledger: &str,
) -> Result<(PostgresLedger, Codes, u64), String> {
    let until = Instant::now() + STARTUP_TIMEOUT;
    let no_redis = |e: String| format!("REDIS_ADDR: {e}");
    let no_ledger = |e: String| format!("POSTGRES_DSN: {e}");
    let (asked, mut ledger) = (target.clone(), PostgresLedger::new(settings.clone()));
    // The connection's own limit is later than the one here, whose message is clearer.
    let redis = ask(&target.name, move || asked.reach(STARTUP_TIMEOUT * 2)).map_err(no_redis)?;
    let name = where_ledger.to_owned();
    let keyed = ask(where_ledger, move || match ledger.code_key() {
        Ok(key) => Ok((ledger, Codes::new(&key))),
        Err(e) => Err(format!("{name}: {e}")),
    });
    let keyed = keyed.map_err(no_ledger)?;
    redis.answer(until).map_err(no_redis)?;
    let (mut ledger, codes) = keyed.answer(until).map_err(no_ledger)?;
    // Only now: there are a million numbers, and a start that fails for want of Redis should not use one up.
    let name = where_ledger.to_owned();
    let numbered = ask(where_ledger, move || match ledger.new_instance() {
        Ok(instance) => Ok((ledger, instance)),
        Err(e) => Err(format!("{name}: {e}")),
    });
    let (ledger, instance) = numbered.and_then(|asked| asked.answer(until)).map_err(no_ledger)?;
    Ok((ledger, codes, instance))
}

fn start_distributed(
    config: &Config,
    target: Arc<RedisEndpoint>,
    postgres_dsn: &str,
    (workers, vitals): (Workers, &Vitals),
    mailboxes: &Arc<Vec<Mailbox>>,
) -> Result<Running, Failure> {
    let wrong = |e| Failure::Setting(format!("POSTGRES_DSN: {e}; expected {DSN_FORM}"));
    let settings = parse_dsn(postgres_dsn).map_err(wrong)?;
    let where_ledger = settings.describe();
    let (ledger, codes, instance) = reach_both(&target, &settings, &where_ledger)?;
    let (recorder, inbox) = record::channel(CHANNEL_MESSAGES);
    let recorder = Arc::new(recorder);
    let appender = PostgresAppend::new(settings, codes.clone());
    let (writer, stale) = start_writer(vitals, inbox, appender, mailboxes, OnFailure::Retry)?;
    let (view, ack_by_ledger) = (view(), config.purchase_ack == PurchaseAck::Ledger);
    let (suspicions, heard) = crossbeam_channel::bounded(SUSPICIONS);
    let lost_calls = LostCalls::default();
    let keeper = keeper::distributed::Keeper::start(keeper::distributed::Parts {
        ledger: Box::new(ledger),
        store: Box::new(keeper::store::Store::new(target.clone(), config.redis_timeout.min(Duration::from_secs(2)))),
        time: Arc::new(keeper::time::MachineTime),
        settings: config.sale,
        view: view.clone(),
        suspicions: heard,
        lost_calls: lost_calls.clone(),
        stale,
        own: Box::new(LocalWork::starting(recorder.clone())),
    })
    .map_err(|e| e.to_string())?;
    let shared = Shared {
        view: view.clone(),
        numbers: numbers(instance)?,
        recorder: recorder.clone(),
        ack_by_ledger,
        timeout: config.redis_timeout,
        suspicions,
        lost_calls,
    };
    let inventory = RedisInventory::start(workers, &target, shared).map_err(|e| format!("starting: {e}"))?;
    let inventory: Arc<dyn Inventory> = Arc::new(inventory);
    let (stop_keeper, stop) = crossbeam_channel::bounded(1);
    let own = LocalWork::serving(recorder.clone(), inventory.clone(), workers.count());
    Ok(Running {
        inventory,
        view,
        codes,
        patience: if ack_by_ledger { config.redis_timeout + LEDGER_PATIENCE } else { config.redis_timeout },
        recorder,
        writer,
        keeper: spawn_keeper(vitals, move || keeper.run(Box::new(own), &stop))?,
        ends_last: EndsLast::Keeper,
        stop_keeper,
        what: format!("Redis at {}, ledger in {where_ledger}", target.name),
    })
}

fn start_admin(
    workers: Workers,
    listener: Listener,
    running: &Running,
    server: &Arc<Server<Shop>>,
) -> std::io::Result<Arc<Server<Admin>>> {
    let (public, answering, draining) = (server.clone(), server.clone(), server.clone());
    let admin = Admin {
        view: running.view.clone(),
        inventory: running.inventory.clone(),
        recorder: running.recorder.clone(),
        connections: Box::new(move || public.connections()),
        answers: Box::new(move || answering.answers()),
        is_draining: Box::new(move || draining.is_draining()),
    };
    Server::start(workers, listener, Arc::new(admin), ADMIN_CONNECTIONS).map(Arc::new)
}

fn start_ticks(
    workers: Workers,
    server: &Arc<Server<Shop>>,
    admin: &Arc<Server<Admin>>,
    inventory: &Arc<dyn Inventory>,
) -> std::io::Result<()> {
    for worker in workers.all() {
        let ticker = Ticker::new(workers, worker, TICK)?;
        let (server, admin, inventory) = (server.clone(), admin.clone(), inventory.clone());
        workers.spawn_vital(worker, "a worker's tick", move || {
            loop {
                ticker.wait();
                server.tick(worker);
                admin.tick(worker);
                inventory.tick(worker);
            }
        })?;
    }
    Ok(())
}

/// Starts the mail on each worker: it brings the answers that waited for the ledger to the connections that wait for them.
fn start_mail(workers: Workers, mailboxes: &Arc<Vec<Mailbox>>, recorder: &Arc<Recorder>) -> std::io::Result<()> {
    for worker in workers.all() {
        let (mailboxes, recorder) = (mailboxes.clone(), recorder.clone());
        workers.spawn_vital(worker, "a worker's mail", move || {
            if let Some(mailbox) = mailboxes.get(worker) {
                mailbox.run(&recorder);
            }
        })?;
    }
    Ok(())
}

fn announce(config: &Config, running: &Running, address: SocketAddr, admin: SocketAddr) {
    let here = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    tracing::info!(
        "selling on {address} with {} workers, health and metrics on {admin}: {}. \
         Try: curl -X POST 'http://{}/checkout?user_id=me&id=1'",
        config.workers,
        running.what,
        SocketAddr::new(here, address.port()),
    );
}
