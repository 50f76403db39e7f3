//! Redis and Postgres of this run alone: on free ports, in a temporary folder.
//!
//! Owns their start and their end. Invariant: what is started here ends with its value, and with this process. Redis is
//! new for each sample and Postgres gets a new database, so that samples do not depend on those before them.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The user that runs Postgres where this runs as root, which Postgres refuses.
const OWNER: &str = "postgres";
const PATIENCE: Duration = Duration::from_secs(30);

/// A port of 127.0.0.1 that is free.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// `port` on this machine.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A fresh folder that every user may read.
pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("flashsale-load-").tempdir().expect("a temporary folder");
    run(Command::new("chmod").arg("755").arg(folder.path()));
    folder
}

/// Where `program` is, in PATH.
pub fn in_path(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{program} is missing: benches/saturation installs it"))
}

/// A command that gets `signal` when this process ends, as `user` if there is one.
pub fn command(program: &Path, signal: &str, user: Option<&str>) -> Command {
    let setpriv = in_path("setpriv");
    let mut command = Command::new(&setpriv);
    if let Some(user) = user {
        // Two steps: a change of user clears the signal.
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(&setpriv);
    }
    command.args(["--pdeathsig", signal]).arg(program).stdin(Stdio::null());
    command
}

/// Runs `command` to its end; panics with what it said if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", said(&output.stdout), said(&output.stderr));
    said(&output.stdout)
}

/// A running program.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `command`; what it prints goes to `log`.
    pub fn start(command: &mut Command, log: PathBuf) -> Program {
        let file = File::create(&log).expect("a log file");
        command.stdout(file.try_clone().expect("a log file")).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        Program { child, log }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `up` says so; panics with the log if the program ends or takes too long.
    pub fn until(&mut self, what: &str, mut up: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !up() {
            let ended = self.child.try_wait().expect("a child");
            if ended.is_some() || Instant::now() > until {
                panic!("{what} does not start ({ended:?}):\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Redis with an append-only file, as tuning.md advises.
pub struct Redis {
    program: Program,
    port: u16,
    _folder: TempDir,
}

impl Redis {
    fn start() -> Redis {
        let (port, folder) = (free_port(), folder());
        let mut command = command(&in_path("redis-server"), "KILL", None);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--dir"]).arg(folder.path());
        command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--daemonize", "no"]);
        let mut program = Program::start(&mut command, folder.path().join("log"));
        program.until("redis-server", || connect(port).is_ok());
        Redis { program, port, _folder: folder }
    }

    /// A connection to it.
    pub fn connection(&self) -> redis::Connection {
        connect(self.port).expect("a connection to Redis")
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }
}

fn connect(port: u16) -> redis::RedisResult<redis::Connection> {
    let mut connection = redis::Client::open(format!("redis://{}", local(port)))?.get_connection()?;
    redis::cmd("PING").query::<String>(&mut connection)?;
    Ok(connection)
}

/// A Postgres with its defaults, and further arguments.
struct Postgres {
    program: Program,
    port: u16,
    _folder: TempDir,
}

impl Postgres {
    fn start(more: &[&str]) -> Postgres {
        let (port, folder) = (free_port(), folder());
        let owner = rustix::process::geteuid().is_root().then_some(OWNER);
        if let Some(owner) = owner {
            run(Command::new("chown").arg(owner).arg(folder.path()));
        }
        let data = folder.path().join("data");
        let mut initdb = command(&postgres("initdb"), "KILL", owner);
        run(initdb
            .args(["--auth=trust", "--encoding=UTF8", "--locale=C", "-U", OWNER, "-D"])
            .arg(&data)
            .current_dir("/"));
        let mut server = command(&postgres("postgres"), "QUIT", owner);
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c"]);
        server.arg(format!("unix_socket_directories={}", folder.path().display())).args(more).current_dir("/");
        let mut program = Program::start(&mut server, folder.path().join("log"));
        program.until("postgres", || postgres::Client::connect(&dsn(port, "postgres"), postgres::NoTls).is_ok());
        Postgres { program, port, _folder: folder }
    }

    fn run(&self, statement: &str) {
        let mut client = client(&dsn(self.port, "postgres"));
        client.batch_execute(statement).unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A killed postmaster would leave its children to find out: they get a moment to end by themselves.
        if let Some(pid) = rustix::process::Pid::from_raw(self.program.pid() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let until = Instant::now() + PATIENCE;
        while self.program.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn dsn(port: u16, database: &str) -> String {
    format!("host=127.0.0.1 port={port} user={OWNER} dbname={database}")
}

/// One of Postgres' programs, of the newest version there is.
pub fn postgres(name: &str) -> PathBuf {
    let homes =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = homes.filter(|home| home.join("bin").join(name).is_file()).max_by_key(version);
    newest.map_or_else(|| in_path(name), |home| home.join("bin").join(name))
}

/// A connection to the database of `dsn`.
pub fn client(dsn: &str) -> postgres::Client {
    postgres::Client::connect(dsn, postgres::NoTls).unwrap_or_else(|e| panic!("no connection to {dsn}: {e}"))
}

/// Both servers.
pub struct Servers {
    redis: Redis,
    postgres: Postgres,
    samples: u32,
}

impl Servers {
    /// Starts both. Postgres does not wait for the disk if this is but a `test`.
    pub fn start(test: bool) -> Servers {
        let more: &[&str] = if test { &["-c", "fsync=off"] } else { &[] };
        Servers { redis: Redis::start(), postgres: Postgres::start(more), samples: 0 }
    }

    /// An empty Redis and an empty database, for the next sample. Nothing of the last one may run any more.
    pub fn renew(&mut self) {
        self.redis = Redis::start();
        if self.samples > 0 {
            self.postgres.run(&format!("DROP DATABASE sample_{} WITH (FORCE)", self.samples));
        }
        self.samples += 1;
        self.postgres.run(&format!("CREATE DATABASE sample_{}", self.samples));
        self.postgres.run("CHECKPOINT");
    }

    /// Redis.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Postgres' process.
    pub fn postgres_pid(&self) -> u32 {
        self.postgres.program.pid()
    }

    /// The sample's database.
    pub fn dsn(&self) -> String {
        dsn(self.postgres.port, &format!("sample_{}", self.samples))
    }
}
