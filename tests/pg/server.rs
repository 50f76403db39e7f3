//! A Postgres of the tests' own: started on first use, stopped with its last user.

use flashsale::code::Codes;
use flashsale::ledger::Ledger;
use flashsale::ledger::postgres::{ConnectSettings, PostgresAppend, PostgresLedger, parse_dsn};
use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use tempfile::TempDir;

pub struct Server {
    child: Child,
    pub port: u16,
    pub dir: TempDir,
}

/// `program` as the user that Postgres agrees to run as.
fn command(program: &str) -> Command {
    let path = ["/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/16/bin", "/usr/lib/postgresql/17/bin"];
    let path = path.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
    let path = path.unwrap_or_else(|| PathBuf::from(program));
    if !rustix::process::geteuid().is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(path);
    command
}

pub fn done(command: &mut Command) {
    let out = command.current_dir("/tmp").output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Server {
    /// A server of one's own, with the files of `tls` (certificate and key) if given.
    pub fn start(tls: Option<(&Path, &Path)>) -> Server {
        let dir = tempfile::Builder::new().prefix("pg-test").tempdir_in("/tmp").unwrap();
        let own = |path: &Path| {
            if rustix::process::geteuid().is_root() {
                done(Command::new("chown").arg("postgres").arg(path));
            }
        };
        own(dir.path());
        let data = dir.path().join("data");
        done(command("initdb").args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D"]).arg(&data));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(&data).args(["-k", "", "-h", "127.0.0.1", "-p"]).arg(port.to_string());
        postgres.args(["-c", "max_connections=60", "-c", "fsync=off"]);
        if let Some((certificate, key)) = tls {
            for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
                std::fs::copy(from, data.join(name)).unwrap();
                own(&data.join(name));
            }
            done(Command::new("chmod").arg("600").arg(data.join("server.key")));
            postgres.args(["-c", "ssl=on"]);
        }
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = postgres.current_dir("/tmp").stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let server = Server { child, port, dir };
        super::eventually("postgres starts", || Client::connect(&server.dsn("postgres"), NoTls).is_ok());
        server
    }

    /// The server that tests share.
    pub fn shared() -> Arc<Server> {
        static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start(None));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    pub fn dsn(&self, database: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={database} sslmode=disable", self.port)
    }

    /// The postmaster and all its children.
    pub fn pids(&self) -> Vec<Pid> {
        let file = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid")).unwrap();
        let postmaster: i32 = file.lines().next().unwrap().parse().unwrap();
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        let children = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
        std::iter::once(postmaster).chain(children).filter_map(Pid::from_raw).collect()
    }

    pub fn signal(&self, signal: Signal) {
        // `runuser` stops itself when its child stops.
        let parent = Pid::from_child(&self.child);
        for pid in std::iter::once(parent).chain(self.pids()) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        if let Some(postmaster) = self.pids().first() {
            let _ = kill_process(*postmaster, Signal::QUIT);
        }
        let _ = self.child.wait();
    }
}

/// An empty database of its own on the shared server.
pub struct Database {
    pub server: Arc<Server>,
    pub name: String,
}

impl Database {
    pub fn new() -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (server, name) = (Server::shared(), format!("test{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let mut admin = Client::connect(&server.dsn("postgres"), NoTls).unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        Database { server, name }
    }

    pub fn settings(&self) -> ConnectSettings {
        parse_dsn(&self.server.dsn(&self.name)).unwrap()
    }

    pub fn ledger(&self) -> PostgresLedger {
        PostgresLedger::new(self.settings())
    }

    /// A writer, with the schema there.
    pub fn append(&self) -> PostgresAppend {
        PostgresAppend::new(self.settings(), Codes::new(&self.ledger().code_key().unwrap()))
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.server.dsn(&self.name), NoTls).unwrap()
    }

    pub fn count(&self, table: &str) -> i64 {
        self.client().query_one(&format!("SELECT count(*) FROM {table}"), &[]).unwrap().get(0)
    }
}
