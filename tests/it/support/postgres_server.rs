//! A Postgres of one's own: a copy of a freshly made cluster, on a free port, ended with its value.

use super::process::{self, Program, poll};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
/// The user that runs the servers when the tests run as root, which Postgres refuses.
const OWNER: &str = "postgres";

/// A running (or stopped) Postgres with an empty database `flashsale`.
pub struct Postgres {
    program: Option<Program>,
    port: u16,
    args: Vec<String>,
    dir: TempDir,
}

impl Postgres {
    /// Starts one that does not wait for the disk: fast, and as safe as the machine's own power.
    pub fn start() -> Postgres {
        Postgres::start_with(&["-c", "fsync=off"])
    }

    /// Starts one with further arguments.
    pub fn start_with(args: &[&str]) -> Postgres {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut postgres = Postgres { program: None, port: 0, args, dir: process::temp_dir() };
        run(Command::new("cp").arg("-a").arg(template()).arg(postgres.data()));
        give_away(postgres.dir.path());
        for _ in 0..5 {
            postgres.port = process::free_port();
            if postgres.try_launch() {
                return postgres;
            }
        }
        panic!("postgres does not start:\n{}", postgres.log());
    }

    /// Where it listens, as `POSTGRES_DSN` takes it.
    pub fn dsn(&self) -> String {
        self.dsn_at(self.port)
    }

    /// The same by way of another port: a proxy's.
    pub fn dsn_at(&self, port: u16) -> String {
        format!("host=127.0.0.1 port={port} user={OWNER} dbname=flashsale")
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A fresh connection; panics if there is none to be had.
    pub fn client(&self) -> postgres::Client {
        connect(&self.dsn()).unwrap_or_else(|e| panic!("no connection to Postgres: {e}\n{}", self.log()))
    }

    /// Ends it at once, without a checkpoint (SIGQUIT): what a crash leaves behind.
    pub fn stop_immediate(&mut self) {
        if let Some(mut program) = self.program.take() {
            program.end(Signal::QUIT, PATIENCE);
        }
    }

    /// Starts it again on the same port and folder.
    pub fn start_again(&mut self) {
        self.stop_immediate();
        assert!(self.try_launch(), "postgres does not start again:\n{}", self.log());
    }

    /// Freezes all its processes: connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    fn signal_all(&self, signal: Signal) {
        let postmaster = self.program.as_ref().expect("a running Postgres").pid();
        // The postmaster comes first, so that it starts no further process meanwhile.
        process::family(postmaster).into_iter().for_each(|pid| process::signal(pid, signal));
    }

    fn try_launch(&mut self) -> bool {
        let mut command = process::command(&bin("postgres"), "QUIT", owner());
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=32MB", "-c", "log_timezone=UTC"]);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.dir.path().display())).args(&self.args);
        command.current_dir(self.dir.path());
        let mut program = Program::start("postgres", &mut command, Some(&self.dir.path().join("log")));
        let dsn = self.dsn();
        let up = poll("an answer of postgres", PATIENCE, || {
            if program.ended().is_some() {
                return Some(false);
            }
            connect(&dsn).is_ok().then_some(true)
        });
        self.program = up.then_some(program);
        up
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What the server has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(program) = &self.program {
            // A stopped process cannot end its children, and a killed one leaves them to find out for themselves.
            process::family(program.pid()).into_iter().for_each(|pid| process::signal(pid, Signal::CONT));
            program.signal(Signal::QUIT);
        }
        if let Some(mut program) = self.program.take() {
            for _ in 0..500 {
                if program.ended().is_some() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn connect(dsn: &str) -> Result<postgres::Client, postgres::Error> {
    let mut config: postgres::Config = dsn.parse()?;
    config.connect_timeout(Duration::from_secs(2)).connect(postgres::NoTls)
}

fn owner() -> Option<&'static str> {
    process::is_root().then_some(OWNER)
}

/// Lets the servers' user own `dir` (when that is another than ours).
fn give_away(dir: &Path) {
    if let Some(owner) = owner() {
        run(Command::new("chown").arg(owner).arg(dir));
    }
}

/// The full path of one of Postgres' programs, of the newest version there is.
fn bin(name: &str) -> PathBuf {
    let version = |path: &Path| path.file_name().and_then(|n| n.to_str()?.parse::<u32>().ok());
    let mut homes: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    homes.sort_by_key(|path| version(path));
    homes
        .into_iter()
        .rev()
        .map(|home| home.join("bin").join(name))
        .find(|path| path.is_file())
        .or_else(|| process::in_path(name))
        .unwrap_or_else(|| panic!("postgresql's {name} is needed: see tests/run"))
}

/// A cluster to copy, made once per build folder: initdb takes longer than all else that a start does.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let version = Command::new(bin("postgres")).arg("--version").output().expect("postgres --version").stdout;
        let version: String = String::from_utf8_lossy(&version).chars().filter(char::is_ascii_digit).collect();
        let keep = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let made = keep.join(format!("postgres-{version}"));
        if made.is_dir() {
            return made;
        }
        // The servers' user may be unable to reach the build folder: made elsewhere, then copied and put in place at once.
        let dir = process::temp_dir();
        give_away(dir.path());
        make_cluster(&dir.path().join("data"));
        std::fs::create_dir_all(keep).expect("make the build's temporary folder");
        let staged = tempfile::Builder::new().prefix("postgres-").tempdir_in(keep).expect("make a folder");
        run(Command::new("cp").arg("-a").arg(dir.path().join("data")).arg(staged.path()));
        // Another process may have been faster: its folder is as good.
        if let Err(e) = std::fs::rename(staged.path().join("data"), &made) {
            assert!(made.is_dir(), "cannot keep {}: {e}", made.display());
        }
        made
    })
}

fn make_cluster(data: &Path) {
    let mut initdb = process::command(&bin("initdb"), "KILL", owner());
    initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C", "--wal-segsize=1"]);
    run(initdb.args(["-U", OWNER, "-D"]).arg(data).current_dir("/"));
    let mut single = process::command(&bin("postgres"), "KILL", owner());
    single.args(["--single", "-F", "-D"]).arg(data).arg("postgres").current_dir("/");
    let mut child = single
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("start postgres --single");
    let mut input = child.stdin.take().expect("its stdin");
    std::io::Write::write_all(&mut input, b"CREATE DATABASE flashsale\n").expect("write to it");
    drop(input);
    assert!(child.wait().expect("wait for it").success(), "postgres --single failed");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
