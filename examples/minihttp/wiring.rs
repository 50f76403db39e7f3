//! The parts of the service behind HTTP, put together as `src/run.rs` does it.
//!
//! Owns the order of the start. Leaves out what an example does not need: health, metrics and an orderly end.

use flashsale::catalog::Catalog;
use flashsale::code::{Codes, HoldNumbers};
use flashsale::config::{Backends, Config, PurchaseAck};
use flashsale::inventory::embedded::{self, EmbeddedInventory};
use flashsale::inventory::redis::{RedisInventory, Shared};
use flashsale::inventory::{Inventory, LostCalls, SharedView, View};
use flashsale::keeper;
use flashsale::keeper::own_work::LocalWork;
use flashsale::ledger::postgres::{PostgresAppend, PostgresLedger, parse_dsn};
use flashsale::ledger::sqlite::SqliteLedger;
use flashsale::ledger::writer::{OnFailure, Writer};
use flashsale::ledger::{Append, Ledger};
use flashsale::record::{self, CHANNEL_MESSAGES, Handoff, Inbox, Mailbox, Recorder};
use flashsale::redis_wire::endpoint::RedisEndpoint;
use flashsale::service::Shop;
use flashsale::worker::{Bell, Ticker, Workers};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(50);
/// How long the servers and the sale may take at the start.
const START: Duration = Duration::from_secs(10);

type Mailboxes = Arc<Vec<Mailbox>>;

/// Starts what decides and what records, and waits until it sells.
pub fn start(config: &Config, workers: Workers) -> Result<Arc<Shop>, String> {
    let mailboxes: Result<Vec<Mailbox>, _> =
        workers.all().map(|worker| Bell::new(workers, worker).map(Mailbox::new)).collect();
    let mailboxes = Arc::new(mailboxes.map_err(text)?);
    let Started { inventory, codes, recorder } = match &config.backends {
        Backends::Embedded { data_dir } => start_embedded(config, data_dir, workers, &mailboxes)?,
        Backends::Distributed { redis, postgres_dsn } => {
            start_distributed(config, redis, postgres_dsn, workers, &mailboxes)?
        }
    };
    for worker in workers.all() {
        let (ticker, ticked) = (Ticker::new(workers, worker, TICK).map_err(text)?, inventory.clone());
        let tick = move || loop {
            ticker.wait();
            ticked.tick(worker);
        };
        workers.spawn(worker, tick).map_err(text)?;
        let (mailboxes, recorder) = (mailboxes.clone(), recorder.clone());
        let bring_mail = move || {
            if let Some(mailbox) = mailboxes.get(worker) {
                mailbox.run(&recorder);
            }
        };
        workers.spawn(worker, bring_mail).map_err(text)?;
    }
    let until = Instant::now() + START;
    while !inventory.is_ready() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let catalog = match &config.catalog_file {
        None => Catalog::generated(),
        Some(path) => Catalog::from_file(path).map_err(text)?,
    };
    Ok(Arc::new(Shop::new(inventory, codes, catalog, config.redis_timeout)))
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

/// Repeats `attempt` while it fails, for [`START`] at most: a busy Postgres may take seconds for a session.
fn patiently<T, E: ToString>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, String> {
    let until = Instant::now() + START;
    loop {
        match attempt() {
            Err(error) if Instant::now() > until => return Err(error.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(value) => return Ok(value),
        }
    }
}

fn view() -> SharedView {
    Arc::new(arc_swap::ArcSwap::from_pointee(View::closed()))
}

fn start_writer<A: Append + 'static>(
    inbox: Inbox,
    ledger: A,
    mailboxes: &Mailboxes,
    on_failure: OnFailure,
) -> crossbeam_channel::Receiver<Box<Handoff>> {
    let (stale, from_writer) = crossbeam_channel::unbounded();
    let writer = Writer { inbox, ledger, mailboxes: mailboxes.clone(), on_failure, stale };
    std::thread::spawn(move || writer.run());
    from_writer
}

/// Runs the keeper on a thread of its own, until the process ends.
fn keep(work: impl FnOnce(&crossbeam_channel::Receiver<()>) + Send + 'static) {
    std::thread::spawn(move || {
        let (_never, stop) = crossbeam_channel::bounded(1);
        work(&stop);
    });
}

/// What was started.
struct Started {
    inventory: Arc<dyn Inventory>,
    codes: Codes,
    recorder: Arc<Recorder>,
}

fn start_embedded(config: &Config, folder: &Path, workers: Workers, mailboxes: &Mailboxes) -> Result<Started, String> {
    let mut ledger = SqliteLedger::open(folder).map_err(text)?;
    let codes = Codes::new(&ledger.code_key().map_err(text)?);
    let instance = ledger.new_instance().map_err(text)?;
    let appender = ledger.appender(codes.clone()).map_err(text)?;
    let numbers = HoldNumbers::new(instance).map_err(text)?;
    let (recorder, inbox) = record::channel(CHANNEL_MESSAGES);
    let recorder = Arc::new(recorder);
    let (sales, view) = (embedded::Sales::default(), view());
    start_writer(inbox, appender, mailboxes, OnFailure::Undo(Arc::new(sales.clone())));
    let (opened, sold) = (sales.clone(), recorder.clone());
    let keeper = keeper::embedded::Keeper::start(Box::new(ledger), config.sale, opened, view.clone(), sold);
    let keeper = keeper.map_err(text)?;
    let parts = embedded::Parts { sales, view, numbers, recorder: recorder.clone() };
    let inventory = EmbeddedInventory::start(workers, parts).map_err(text)?;
    keep(move |stop| keeper.run(stop));
    Ok(Started { inventory, codes, recorder })
}

fn start_distributed(
    config: &Config,
    redis: &Arc<RedisEndpoint>,
    postgres_dsn: &str,
    workers: Workers,
    mailboxes: &Mailboxes,
) -> Result<Started, String> {
    let settings = parse_dsn(postgres_dsn).map_err(text)?;
    let mut ledger = PostgresLedger::new(settings.clone());
    let codes = Codes::new(&patiently(|| ledger.code_key())?);
    let instance = patiently(|| ledger.new_instance())?;
    let numbers = HoldNumbers::new(instance).map_err(text)?;
    let (recorder, inbox) = record::channel(CHANNEL_MESSAGES);
    let (recorder, view) = (Arc::new(recorder), view());
    let stale = start_writer(inbox, PostgresAppend::new(settings, codes.clone()), mailboxes, OnFailure::Retry);
    let (suspicions, heard) = crossbeam_channel::bounded(16);
    let lost_calls = LostCalls::default();
    let keeper = keeper::distributed::Keeper::start(keeper::distributed::Parts {
        ledger: Box::new(ledger),
        store: Box::new(keeper::store::Store::new(redis.clone(), config.redis_timeout)),
        time: Arc::new(keeper::time::MachineTime),
        settings: config.sale,
        view: view.clone(),
        suspicions: heard,
        lost_calls: lost_calls.clone(),
        stale,
        own: Box::new(LocalWork::starting(recorder.clone())),
    })
    .map_err(text)?;
    let shared = Shared {
        view,
        numbers,
        recorder: recorder.clone(),
        ack_by_ledger: config.purchase_ack == PurchaseAck::Ledger,
        timeout: config.redis_timeout,
        suspicions,
        lost_calls,
    };
    let inventory: Arc<dyn Inventory> = Arc::new(RedisInventory::start(workers, redis, shared).map_err(text)?);
    let own = LocalWork::serving(recorder.clone(), inventory.clone(), workers.count());
    keep(move |stop| keeper.run(Box::new(own), stop));
    Ok(Started { inventory, codes, recorder })
}
