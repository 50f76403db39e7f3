//! The settings: the only reader of flags and environment variables.
//!
//! Owns their names, defaults and bounds. Invariant: a [`Config`] that exists is whole and consistent; anything else
//! is an error that names the variable. Refuses to connect to anything.

use crate::redis::target::Target;
use clap::{CommandFactory, Parser};
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
    after_help = "Every setting is an environment variable too; a flag goes before its variable."
)]
struct Args {
    /// The port that shoppers use
    #[arg(long, env = "SERVER_PORT", value_name = "SERVER_PORT", default_value_t = 8080,
        value_parser = clap::value_parser!(u16).range(1..))]
    server_port: u16,
    /// The address that shoppers use
    #[arg(long, env = "BIND_ADDR", value_name = "BIND_ADDR", default_value = "0.0.0.0")]
    bind_addr: IpAddr,
    /// Redis: host:port or redis://[user:password@]host:port/db (with POSTGRES_DSN, or neither)
    #[arg(long, env = "REDIS_ADDR", value_name = "REDIS_ADDR", hide_env_values = true)]
    redis_addr: Option<String>,
    /// Postgres: a libpq connection string or URL (with REDIS_ADDR, or neither)
    #[arg(long, env = "POSTGRES_DSN", value_name = "POSTGRES_DSN", hide_env_values = true)]
    postgres_dsn: Option<String>,
    /// The folder of the embedded ledger
    #[arg(long, env = "DATA_DIR", value_name = "DATA_DIR", default_value = "./data")]
    data_dir: PathBuf,
    /// Items on sale in each sale
    #[arg(long, env = "SALE_ITEMS", value_name = "SALE_ITEMS", default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=MAX_ITEMS))]
    sale_items: u64,
    /// Items that one user may hold and have purchased in a sale
    #[arg(long, env = "USER_LIMIT", value_name = "USER_LIMIT", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=MAX_ITEMS))]
    user_limit: u64,
    /// Seconds that a sale lasts; sales start at multiples of it
    #[arg(long, env = "SALE_SECONDS", value_name = "SALE_SECONDS", default_value_t = 3600,
        value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
    sale_seconds: u64,
    /// Seconds that a hold lasts
    #[arg(long, env = "HOLD_SECONDS", value_name = "HOLD_SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(u64).range(1..=MAX_SECONDS))]
    hold_seconds: u64,
    /// Worker threads, each pinned to a core [default: the CPUs that this process may use]
    #[arg(long, env = "WORKERS", value_name = "WORKERS", value_parser = clap::value_parser!(u16).range(1..=MAX_WORKERS))]
    workers: Option<u16>,
    /// Where health and metrics are served: never on the public port
    #[arg(long, env = "ADMIN_ADDR", value_name = "ADMIN_ADDR", default_value = "127.0.0.1:8081")]
    admin_addr: SocketAddr,
    /// Milliseconds that Redis may take for an answer
    #[arg(long, env = "REDIS_TIMEOUT_MS", value_name = "REDIS_TIMEOUT_MS", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(50..=60_000))]
    redis_timeout_ms: u64,
    /// Who must have a purchase before it is answered: redis, or the ledger too
    #[arg(long, env = "PURCHASE_ACK", value_name = "PURCHASE_ACK", default_value = "redis")]
    purchase_ack: PurchaseAck,
    /// Connections that are served at once
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "MAX_CONNECTIONS", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1..=MAX_CONNECTIONS))]
    max_connections: u32,
    /// A file of items, a JSON object {"id","name","image"} a line; others are then refused
    #[arg(long, env = "CATALOG_FILE", value_name = "CATALOG_FILE")]
    catalog_file: Option<PathBuf>,
    /// What is logged, to stderr: off, error, warn, info, debug, trace, or a filter such as flashsale=debug
    #[arg(long, env = "LOG", value_name = "LOG", default_value = "info")]
    log: String,
}

/// Stock and limits stay integers in Lua's doubles, with room to add.
const MAX_ITEMS: u64 = 1_000_000_000_000;
/// A year: a sale's keys live a week longer.
const MAX_SECONDS: u64 = 366 * 24 * 3600;
/// The event loops' table holds 128 without allocating; nobody has asked for more.
const MAX_WORKERS: i64 = 128;
/// Each connection's stack takes two memory mappings, of which Linux allows 65,530 by default: the 32,740th spawn
/// panics. What is left is for the threads.
const MAX_CONNECTIONS: i64 = 32_000;

const _: () = assert!(MAX_CONNECTIONS * 2 < 65_530 - 1_000);
const _: () = assert!(MAX_ITEMS < 1 << 52);

/// Who must have a purchase before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PurchaseAck {
    /// Redis alone.
    Redis,
    /// The ledger too.
    Ledger,
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
        redis: Arc<Target>,
        /// Postgres, as given.
        postgres_dsn: String,
    },
}

/// What the sales of this instance are like, where none has been opened yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaleSettings {
    /// Items on sale.
    pub items: u64,
    /// Items to a user.
    pub user_limit: u64,
    /// How long a sale lasts, in milliseconds.
    pub sale_ms: u64,
    /// How long a hold lasts, in milliseconds.
    pub hold_ms: u64,
}

/// The settings, checked.
pub struct Config {
    /// Where shoppers connect.
    pub address: SocketAddr,
    /// Health and metrics.
    pub admin_address: SocketAddr,
    /// Where decisions and records go.
    pub backends: Backends,
    /// What sales are like.
    pub sale: SaleSettings,
    /// How many worker threads.
    pub workers: usize,
    /// How long Redis may take.
    pub redis_timeout: Duration,
    /// Who must have a purchase before it is answered.
    pub purchase_ack: PurchaseAck,
    /// Connections served at once.
    pub max_connections: usize,
    /// The operator's items.
    pub catalog_file: Option<PathBuf>,
    /// What is logged, as a filter that has been checked.
    pub log: String,
}

impl Config {
    /// Reads flags and environment. `--help` and `--version` print and end the process, and so does what clap itself
    /// refuses, with status 2.
    pub fn read() -> Result<Config, String> {
        let args = Args::try_parse().unwrap_or_else(|e| refuse(e));
        Config::check(args)
    }

    fn check(args: Args) -> Result<Config, String> {
        let empty = |name: &str| format!("{name} is set but empty");
        let backends = match (args.redis_addr.as_deref(), args.postgres_dsn) {
            (Some(""), _) => return Err(empty("REDIS_ADDR")),
            (_, Some(dsn)) if dsn.is_empty() => return Err(empty("POSTGRES_DSN")),
            (None, None) => Backends::Embedded { data_dir: args.data_dir },
            (Some(_), None) => return Err("REDIS_ADDR is set but POSTGRES_DSN is not: set both, or neither".into()),
            (None, Some(_)) => return Err("POSTGRES_DSN is set but REDIS_ADDR is not: set both, or neither".into()),
            (Some(redis), Some(postgres_dsn)) => Backends::Distributed {
                redis: Arc::new(Target::parse(redis).map_err(|e| format!("REDIS_ADDR: {e}"))?),
                postgres_dsn,
            },
        };
        check_log(&args.log).map_err(|e| format!("LOG: {e}"))?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = args.workers.map_or(cpus, usize::from);
        let max_connections = args.max_connections as usize;
        check_descriptors(workers, max_connections)?;
        let address = SocketAddr::new(args.bind_addr, args.server_port);
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
            catalog_file: args.catalog_file,
            log: args.log,
        })
    }
}

/// Two sockets can be bound to one port: only listening would tell, when the sales are open already.
fn check_ports(public: SocketAddr, admin: SocketAddr) -> Result<(), String> {
    let overlap = public.ip() == admin.ip() || public.ip().is_unspecified() || admin.ip().is_unspecified();
    if overlap && public.port() == admin.port() && public.port() != 0 {
        return Err(format!("ADMIN_ADDR: {admin} is taken by SERVER_PORT and BIND_ADDR, {public}"));
    }
    Ok(())
}

/// The levels that a filter may have.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter takes any word for the name of a module, and would then log nothing of what was asked for.
fn check_log(filter: &str) -> Result<(), String> {
    tracing_subscriber::EnvFilter::try_new(filter).map_err(|e| e.to_string())?;
    for part in filter.split(',').map(str::trim).filter(|part| !part.contains(['=', '[', ']', '{', '}'])) {
        if !LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level)) && !part.starts_with("flashsale") {
            let levels = LEVELS.join(", ");
            return Err(format!("{part:?} is neither a level ({levels}) nor a filter such as flashsale=debug"));
        }
    }
    Ok(())
}

/// Connections of tools that look at health and metrics at once.
pub const ADMIN_CONNECTIONS: usize = 64;
/// Descriptors of this process that are neither connections nor a worker's: files, listeners, the ledger's sessions.
const OTHER_DESCRIPTORS: usize = 128;
/// Descriptors of a worker: its event loop's two, bells, a timer, its connection to Redis; and as numbers of its residue
/// are looked for, some that stay free between them.
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

/// The settings that are not text; clap does not say which. A path may be anything.
fn not_text() -> Vec<String> {
    let path = std::any::TypeId::of::<PathBuf>();
    let command = Args::command();
    let texts = command.get_arguments().filter(|arg| arg.get_value_parser().type_id() != path);
    let variables = texts.filter_map(|arg| arg.get_env()?.to_str());
    let mut found: Vec<String> = variables
        .filter(|name| std::env::var_os(name).is_some_and(|value| value.to_str().is_none()))
        .map(str::to_owned)
        .collect();
    let mut last = String::new();
    for word in std::env::args_os().skip(1) {
        let text = word.to_string_lossy().into_owned();
        let flag = text.split('=').next().unwrap_or_default().to_owned();
        let named = flag.starts_with("--");
        if word.to_str().is_none() {
            found.push(if named { flag.clone() } else { last });
        }
        last = flag;
    }
    found
}

/// Prints what clap has to say. An error is one line, and names the variable.
fn refuse(error: clap::Error) -> ! {
    if !error.use_stderr() {
        error.exit();
    }
    if error.kind() == clap::error::ErrorKind::InvalidUtf8 {
        eprintln!("flashsale: {}: not UTF-8", not_text().join(", "));
        std::process::exit(2);
    }
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or("error: wrong settings");
    eprintln!("flashsale: {}", first.strip_prefix("error: ").unwrap_or(first));
    std::process::exit(2);
}
