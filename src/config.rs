//! The settings: the only reader of flags and environment variables.
//!
//! Owns their names, defaults and bounds. Invariant: a [`Config`] that exists is whole and consistent; anything else
//! is an error that names the variable. Leaves the form of values, and the search for misspelt names, to the files
//! beside it, and connects to nothing.

mod form;
mod health;
mod misspelt;

pub use health::HealthCheck;

use crate::redis_wire::endpoint::RedisEndpoint;
use clap::{CommandFactory, Parser};
use form::{AnyPath, secret, text, whole};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The settings as they are given, before they are checked together.
#[derive(Parser, Debug)]
#[command(
    name = "flashsale",
    version,
    about = "A flash-sale engine. Without REDIS_ADDR and POSTGRES_DSN it runs by itself and keeps its data in DATA_DIR.",
    after_help = "Every setting is an environment variable too; a flag goes before its variable.\n\n\
        flashsale health asks a running instance for its health: see flashsale health --help"
)]
struct Args {
    /// The port that shoppers use: a port, 1 to 65535
    #[arg(long, env = "SERVER_PORT", value_name = "SERVER_PORT", default_value_t = 8080,
        value_parser = whole("a port", 1..=65_535))]
    server_port: u64,
    /// The address that shoppers use: an IP address, such as 0.0.0.0 or ::1
    #[arg(long, env = "BIND_ADDR", value_name = "BIND_ADDR", default_value = "0.0.0.0",
        value_parser = text("an IP address, such as 0.0.0.0 or ::1", |value| value.parse::<IpAddr>().ok()))]
    bind_addr: IpAddr,
    /// Redis: host:port or redis://[user:password@]host:port/db (with POSTGRES_DSN, or neither)
    #[arg(long, env = "REDIS_ADDR", value_name = "REDIS_ADDR", hide_env_values = true,
        value_parser = secret(REDIS_FORM))]
    redis_addr: Option<String>,
    /// Postgres: a libpq connection string (host=HOST dbname=NAME user=USER) or URL (postgres://user:password@host:port/dbname)
    /// (with REDIS_ADDR, or neither)
    #[arg(long, env = "POSTGRES_DSN", value_name = "POSTGRES_DSN", hide_env_values = true, value_parser = secret(DSN_FORM))]
    postgres_dsn: Option<String>,
    /// The folder of the embedded ledger: a folder, which is made if it is missing
    #[arg(long, env = "DATA_DIR", value_name = "DATA_DIR", default_value = "./data",
        value_parser = AnyPath { expected: "a folder, which is made if it is missing" })]
    data_dir: PathBuf,
    /// Items on sale in each sale: a whole number, 1 to 1000000000000
    #[arg(long, env = "SALE_ITEMS", value_name = "SALE_ITEMS", default_value_t = 10_000,
        value_parser = whole(NUMBER, 1..=MAX_ITEMS))]
    sale_items: u64,
    /// Items that one user may hold and have purchased in a sale: a whole number, 1 to 1000000000000
    #[arg(long, env = "USER_LIMIT", value_name = "USER_LIMIT", default_value_t = 10,
        value_parser = whole(NUMBER, 1..=MAX_ITEMS))]
    user_limit: u64,
    /// How long a sale lasts (sales start at multiples of it): whole seconds, 1 to 31622400
    #[arg(long, env = "SALE_SECONDS", value_name = "SALE_SECONDS", default_value_t = 3600,
        value_parser = whole(SECONDS, 1..=MAX_SECONDS))]
    sale_seconds: u64,
    /// How long a hold lasts: whole seconds, 1 to 31622400
    #[arg(long, env = "HOLD_SECONDS", value_name = "HOLD_SECONDS", default_value_t = 300,
        value_parser = whole(SECONDS, 1..=MAX_SECONDS))]
    hold_seconds: u64,
    /// Worker threads, each pinned to a CPU: a whole number, 1 to 128 [default: the CPUs that this process may use]
    #[arg(long, env = "WORKERS", value_name = "WORKERS", value_parser = whole(NUMBER, 1..=MAX_WORKERS))]
    workers: Option<u64>,
    /// Where health and metrics are served, never on the public port: an IP address and a port, such as 127.0.0.1:8081
    /// or [::1]:8081
    #[arg(long, env = "ADMIN_ADDR", value_name = "ADMIN_ADDR", default_value = "127.0.0.1:8081",
        value_parser = text("an IP address and a port, such as 127.0.0.1:8081 or [::1]:8081", |value| value.parse::<SocketAddr>().ok()))]
    admin_addr: SocketAddr,
    /// How long Redis may take for an answer: whole milliseconds, 50 to 60000
    #[arg(long, env = "REDIS_TIMEOUT_MS", value_name = "REDIS_TIMEOUT_MS", default_value_t = 1000,
        value_parser = whole("whole milliseconds", 50..=60_000))]
    redis_timeout_ms: u64,
    /// Who must have a purchase before it is answered: redis or ledger (the ledger, and Redis)
    #[arg(long, env = "PURCHASE_ACK", value_name = "PURCHASE_ACK", default_value = "redis",
        value_parser = text("redis or ledger", PurchaseAck::named))]
    purchase_ack: PurchaseAck,
    /// Connections that are served at once: a whole number, 1 to 32000
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "MAX_CONNECTIONS", default_value_t = 10_000,
        value_parser = whole(NUMBER, 1..=MAX_CONNECTIONS))]
    max_connections: u64,
    /// How long an instance that is to end serves on, with its health at 503, until load balancers have noticed: whole
    /// seconds, 0 to 3600
    #[arg(long, env = "DRAIN_SECONDS", value_name = "DRAIN_SECONDS", default_value_t = 5,
        value_parser = whole(SECONDS, 0..=MAX_DRAIN_SECONDS))]
    drain_seconds: u64,
    /// The items there are (others are refused): a file with a JSON object {"id","name","image"} a line
    #[arg(long, env = "CATALOG_FILE", value_name = "CATALOG_FILE",
        value_parser = AnyPath { expected: "a file with a JSON object {\"id\",\"name\",\"image\"} a line" })]
    catalog_file: Option<PathBuf>,
    /// What is logged, to stderr: off, error, warn, info, debug, trace, or a filter such as flashsale=debug
    #[arg(long, env = "LOG", value_name = "LOG", default_value = "info",
        value_parser = text("off, error, warn, info, debug, trace, or a filter such as flashsale=debug", log_filter))]
    log: String,
}

/// A number without a unit.
const NUMBER: &str = "a whole number";
/// A length of time.
const SECONDS: &str = "whole seconds";
/// The form of `REDIS_ADDR`.
const REDIS_FORM: &str = "host:port or redis://[user:password@]host:port/db";
/// The form of `POSTGRES_DSN`. The ledger reads it.
pub const DSN_FORM: &str =
    "a libpq connection string (host=HOST dbname=NAME user=USER) or URL (postgres://user:password@host:port/dbname)";
/// Stock and limits stay exact integers in Lua's doubles, also after additions.
const MAX_ITEMS: u64 = 1_000_000_000_000;
/// A year: a sale's keys live a week longer.
const MAX_SECONDS: u64 = 366 * 24 * 3600;
/// An hour: load balancers check far more often, and a supervisor takes a longer stop for one that hangs.
const MAX_DRAIN_SECONDS: u64 = 3600;
/// The event loops' table holds 128 without allocating, and no machine has needed more yet.
const MAX_WORKERS: u64 = 128;
/// Each connection's stack takes two memory mappings, of which Linux allows 65,530 by default: the 32,740th spawn
/// panics. The rest is for the threads.
const MAX_CONNECTIONS: u64 = 32_000;

const _: () = assert!((MAX_CONNECTIONS + 84) * 2 < 65_530 - 1_000);
const _: () = assert!(MAX_ITEMS < 1 << 52);

/// Which servers must have a purchase before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurchaseAck {
    /// Redis alone.
    Redis,
    /// The ledger too.
    Ledger,
}

impl PurchaseAck {
    fn named(name: &str) -> Option<PurchaseAck> {
        match name {
            "redis" => Some(PurchaseAck::Redis),
            "ledger" => Some(PurchaseAck::Ledger),
            _ => None,
        }
    }
}

/// Where decisions and records go.
pub enum Backends {
    /// Memory and SQLite.
    Embedded {
        /// The ledger's folder.
        data_dir: PathBuf,
    },
    /// Redis and Postgres.
    Distributed {
        /// Redis.
        redis: Arc<RedisEndpoint>,
        /// Postgres, as given.
        postgres_dsn: String,
    },
}

/// The terms of the sales that this instance plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaleSettings {
    /// The stock: items on sale.
    pub items: u64,
    /// The most items that one user may hold and have purchased.
    pub user_limit: u64,
    /// How long a sale lasts, in milliseconds.
    pub sale_ms: u64,
    /// How long a hold lasts, in milliseconds.
    pub hold_ms: u64,
}

/// The settings, checked.
pub struct Config {
    /// The address of the public listener.
    pub address: SocketAddr,
    /// The address of the admin listener: health and metrics.
    pub admin_address: SocketAddr,
    /// Where decisions and records go.
    pub backends: Backends,
    /// The terms of the sales that this instance plans.
    pub sale: SaleSettings,
    /// The number of worker threads.
    pub workers: usize,
    /// How long Redis may take for an answer.
    pub redis_timeout: Duration,
    /// Which servers must have a purchase before it is answered.
    pub purchase_ack: PurchaseAck,
    /// The most connections that are served at once.
    pub max_connections: usize,
    /// How long an instance that was told to end serves on.
    pub drain: Duration,
    /// The file with the operator's items; `None` if every id is an item.
    pub catalog_file: Option<PathBuf>,
    /// The log filter, checked.
    pub log: String,
    /// Environment variables that are not read, each with the setting whose name is nearly the same.
    pub misspelt: Vec<(String, String)>,
}

impl Config {
    /// Reads flags and environment. `--help` and `--version` print and end the process, and so does an argument that clap
    /// refuses, with status 2.
    pub fn read() -> Result<Config, String> {
        let args = Args::try_parse().unwrap_or_else(|e| refuse(e));
        Config::check(args)
    }

    fn check(args: Args) -> Result<Config, String> {
        let backends = match (args.redis_addr.as_deref(), args.postgres_dsn) {
            (None, None) => Backends::Embedded { data_dir: args.data_dir },
            (Some(_), None) => return Err("REDIS_ADDR is set but POSTGRES_DSN is not: set both, or neither".into()),
            (None, Some(_)) => return Err("POSTGRES_DSN is set but REDIS_ADDR is not: set both, or neither".into()),
            (Some(redis), Some(postgres_dsn)) => Backends::Distributed {
                redis: Arc::new(
                    RedisEndpoint::parse(redis).map_err(|e| format!("REDIS_ADDR: {e}; expected {REDIS_FORM}"))?,
                ),
                postgres_dsn,
            },
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = args.workers.map_or(cpus, |workers| workers as usize);
        let max_connections = args.max_connections as usize;
        check_descriptors(workers, max_connections)?;
        let address = SocketAddr::new(args.bind_addr, u16::try_from(args.server_port).unwrap_or(u16::MAX));
        check_ports(address, args.admin_addr)?;
        Ok(Config {
            address,
            admin_address: args.admin_addr,
            backends,
            sale: SaleSettings {
                items: args.sale_items,
                user_limit: args.user_limit,
                sale_ms: args.sale_seconds * 1000,
                hold_ms: args.hold_seconds * 1000,
            },
            workers,
            redis_timeout: Duration::from_millis(args.redis_timeout_ms),
            purchase_ack: args.purchase_ack,
            max_connections,
            drain: Duration::from_secs(args.drain_seconds),
            catalog_file: args.catalog_file,
            log: args.log,
            misspelt: misspelt_variables(),
        })
    }
}

/// Refuses one port for both listeners. Two sockets can be bound to one port: only listening would fail, when the sales are
/// open already.
fn check_ports(public: SocketAddr, admin: SocketAddr) -> Result<(), String> {
    let overlap = public.ip() == admin.ip() || public.ip().is_unspecified() || admin.ip().is_unspecified();
    if overlap && public.port() == admin.port() {
        return Err(format!("ADMIN_ADDR: {admin} is taken by SERVER_PORT and BIND_ADDR, {public}"));
    }
    Ok(())
}

/// The variables in the environment whose names are nearly one of the settings'.
fn misspelt_variables() -> Vec<(String, String)> {
    let command = Args::command();
    let ours: Vec<&str> = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let there = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    misspelt::misspelt(&ours, there).into_iter().map(|(name, ours)| (name, ours.to_owned())).collect()
}

/// The levels that a filter may have.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// `filter` without blanks around its parts; `None` unless each part is a level or names a module of this program. The
/// library accepts any word as the name of a module, and would then silently log nothing for it.
fn log_filter(filter: &str) -> Option<String> {
    let parts: Vec<&str> = filter.split(',').map(str::trim).collect();
    let is_good = |part: &&str| {
        let is_level = LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level));
        let module_ends = |rest: &str| rest.is_empty() || rest.starts_with("::") || rest.starts_with(['=', '[']);
        let is_ours = part.strip_prefix("flashsale").is_some_and(module_ends);
        is_level || (is_ours && (part.contains('[') || !part.contains(char::is_whitespace)))
    };
    let filter = parts.join(",");
    let good = parts.iter().all(is_good) && tracing_subscriber::EnvFilter::try_new(&filter).is_ok();
    good.then_some(filter)
}

/// Connections of tools that look at health and metrics at once.
pub const ADMIN_CONNECTIONS: usize = 64;
/// Descriptors of this process that are neither connections nor a worker's: files, listeners, the ledger's sessions, and the
/// connections that the two servers have above their bounds for moments (84 at most).
const OTHER_DESCRIPTORS: usize = 128;
/// Descriptors of a worker: its event loop's two, bells, a timer, its connection to Redis, and some that stay open for
/// moments while a descriptor is sought whose home worker it is.
const WORKER_DESCRIPTORS: usize = 8;

fn check_descriptors(workers: usize, connections: usize) -> Result<(), String> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let needed = (connections + ADMIN_CONNECTIONS + OTHER_DESCRIPTORS + workers * WORKER_DESCRIPTORS) as u64;
    if limit.current.is_none_or(|have| have >= needed) {
        return Ok(());
    }
    // The soft limit is a default that a process may raise up to the hard one.
    let raised = rustix::process::Rlimit { current: limit.maximum.map(|hard| hard.min(needed)), ..limit };
    let enough = limit.maximum.is_none_or(|hard| hard >= needed);
    if enough && rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).is_ok() {
        return Ok(());
    }
    Err(format!(
        "MAX_CONNECTIONS, WORKERS: {connections} connections and {workers} workers need {needed} open files, and the \
         limit (ulimit -n) is lower"
    ))
}

/// Prints clap's message and ends the process. An error is one line, and names the variable.
fn refuse(error: clap::Error) -> ! {
    if !error.use_stderr() {
        error.exit();
    }
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or("error: wrong settings");
    eprintln!("flashsale: {}", first.strip_prefix("error: ").unwrap_or(first));
    std::process::exit(2);
}
