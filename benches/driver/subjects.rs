//! The programs that are measured: how each is started, and that it answers as it should.
//!
//! Owns their settings and the check that precedes every sample. Leaves the load to others.

use crate::requests::ask;
use crate::servers::{self, Program, Servers, client, free_port, local};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// What a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The service on Redis and Postgres.
    Service,
    /// The same with `PURCHASE_ACK=ledger`.
    LedgerAck,
    /// The service by itself.
    Embedded,
    /// `examples/minihttp`: the service on `may_minihttp`.
    Minihttp,
    /// `examples/plain_axum.rs`.
    Axum,
    /// `examples/hello_minihttp.rs`.
    Hello,
}

/// A program that is measured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// As it stands in the tables.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What is run.
    pub binary: PathBuf,
}

/// A sale's terms.
#[derive(Clone, Copy)]
pub struct Sale {
    pub items: u64,
    pub user_limit: u64,
}

/// More than any load takes.
pub const PLENTY: u64 = 1_000_000_000;

/// A running subject.
pub struct Running {
    program: Program,
    pub address: SocketAddr,
    kind: Kind,
    folder: TempDir,
}

/// A sale's length that keeps its edges hours away from now.
fn quiet_sale_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let quiet = |seconds: &u64| (3_600..seconds - 7_200).contains(&(now % seconds));
    (300_000u64..).step_by(1_000).find(quiet).expect("a length")
}

impl Subject {
    /// Starts it on the sample's servers, waits for its first answer, and checks what it answers.
    pub fn start(&self, servers: &Servers, sale: Sale, workers: Option<usize>) -> Result<Running, String> {
        let (port, folder) = (free_port(), servers::folder());
        let mut command = servers::command(&self.binary, "KILL", None);
        command.env_clear().current_dir(folder.path());
        command.env("SERVER_PORT", port.to_string()).env("BIND_ADDR", "127.0.0.1").env("LOG", "warn");
        command.env("ADMIN_ADDR", local(free_port()).to_string());
        command.env("SALE_ITEMS", sale.items.to_string()).env("USER_LIMIT", sale.user_limit.to_string());
        command.env("SALE_SECONDS", quiet_sale_seconds().to_string()).env("HOLD_SECONDS", "3600");
        if let Some(workers) = workers {
            command.env("WORKERS", workers.to_string());
        }
        if self.kind == Kind::Embedded {
            command.env("DATA_DIR", folder.path().join("data"));
        } else {
            command.env("REDIS_ADDR", local(servers.redis().port()).to_string()).env("POSTGRES_DSN", servers.dsn());
        }
        if self.kind == Kind::LedgerAck {
            command.env("PURCHASE_ACK", "ledger");
        }
        let mut program = Program::start(&mut command, folder.path().join("log"));
        let address = local(port);
        program.until(&self.name, || ask(address, "GET", "/").is_ok());
        let running = Running { program, address, kind: self.kind, folder };
        running
            .check()
            .map_err(|wrong| format!("{} answers wrongly: {wrong}\n{}", self.name, running.program.said()))?;
        Ok(running)
    }
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// A checkout, its purchase, the purchase again, and a code that is none.
    fn check(&self) -> Result<(), String> {
        if self.kind == Kind::Hello {
            return self.expect("/checkout?user_id=checker&id=lamp", 200, "Hello, World!").map(drop);
        }
        let held = self.expect("/checkout?user_id=checker&id=lamp", 200, "{\"code\":\"")?;
        let code = held.get(9..41).unwrap_or_default();
        if !held.contains("\",\"expires_at\":") || !code.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("a checkout's body is {held}"));
        }
        let purchase = format!("/purchase?code={code}");
        self.expect(&purchase, 200, "{\"success\":true,\"item_id\":\"lamp\",\"item_name\":\"")?;
        let again = self.expect(&purchase, 409, "{\"error\":\"already_purchased\",")?;
        if !again.contains("\"item_id\":\"lamp\"") {
            return Err(format!("a second purchase's body is {again}"));
        }
        self.expect(&format!("/purchase?code={}", "0".repeat(32)), 400, "{\"error\":\"invalid_code\",").map(drop)
    }

    /// One request that must be answered so.
    pub fn expect(&self, target: &str, status: u16, body: &str) -> Result<String, String> {
        match ask(self.address, "POST", target)? {
            (got, text) if got == status && text.starts_with(body) => Ok(text),
            (got, text) => Err(format!("POST {target} should be {status} {body}…, and is {got} {text}")),
        }
    }

    /// Waits until the ledger has `granted` rows of `table` (`checkout_attempts` or `purchases`); not more than
    /// `extra` above, which is how many requests were sent whose answers are not known.
    pub fn rows(&self, servers: &Servers, table: &str, granted: u64, extra: u64) -> Result<(), String> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let rows = self.count(servers, table)?;
            if (granted..=granted + extra).contains(&rows) {
                return Ok(());
            }
            if rows > granted + extra || Instant::now() > until {
                return Err(format!("{granted} were granted, and {table} has {rows} rows"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn count(&self, servers: &Servers, table: &str) -> Result<u64, String> {
        let statement = |table: &str| format!("SELECT count(*) FROM {table}");
        if self.kind == Kind::Embedded {
            let ledger = rusqlite::Connection::open(self.folder.path().join("data/ledger.db"));
            let rows = ledger.and_then(|ledger| ledger.query_row(&statement(table), [], |row| row.get::<_, i64>(0)));
            return rows.map(|rows| rows as u64).map_err(|e| format!("the embedded ledger: {e}"));
        }
        let table = match (self.kind, table) {
            (Kind::Axum, "purchases") => "plain_purchases",
            (Kind::Axum, _) => "plain_holds",
            _ => table,
        };
        let row = client(&servers.dsn()).query_one(&statement(table), &[]).map_err(|e| format!("Postgres: {e}"))?;
        Ok(row.get::<_, i64>(0) as u64)
    }
}
