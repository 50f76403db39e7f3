//! The real binary, started with a clean environment on free ports of 127.0.0.1.

use super::http::Client;
use super::process::{self, Program, exit_code, local};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Names another program for all tests, that takes the same settings and gives the same answers.
pub const OTHER_BINARY: &str = "FLASHSALE_TEST_BINARY";
/// How long an instance may take until it answers, on a busy machine.
const START: Duration = Duration::from_secs(20);
/// How long it may take to end in an orderly way.
const STOP: Duration = Duration::from_secs(10);

/// The settings of an instance to be started.
#[derive(Clone, Default)]
pub struct Builder {
    env: BTreeMap<String, OsString>,
    files: Option<u64>,
    binary: Option<PathBuf>,
    ports: Option<(u16, u16)>,
}

impl Builder {
    /// Sets a variable.
    pub fn env(mut self, name: &str, value: impl Display) -> Builder {
        self.env.insert(name.to_owned(), value.to_string().into());
        self
    }

    /// Sets a variable to what need not be text.
    pub fn env_bytes(mut self, name: &str, value: &[u8]) -> Builder {
        self.env.insert(name.to_owned(), OsString::from_vec(value.to_vec()));
        self
    }

    /// Lets it open `limit` files at most.
    pub fn files(mut self, limit: u64) -> Builder {
        self.files = Some(limit);
        self
    }

    /// Leaves a variable unset.
    pub fn without(mut self, name: &str) -> Builder {
        self.env.remove(name);
        self
    }

    /// Runs another binary than the one that was built.
    pub fn binary(mut self, path: &Path) -> Builder {
        self.binary = Some(path.to_owned());
        self
    }

    /// Has it use the ports of an earlier instance, which has ended.
    pub fn ports_of(mut self, app: &App) -> Builder {
        self.ports = Some((app.port, app.admin));
        self
    }

    /// Starts it, and waits until it accepts connections and answers.
    pub fn start(&self) -> App {
        for _ in 0..5 {
            let (port, admin) = self.ports.unwrap_or_else(|| (process::free_port(), process::free_port()));
            let dir = process::temp_dir();
            let mut command = self.command(port, admin, dir.path());
            let mut program = Program::start("flashsale", &mut command, None);
            let stderr = Captured::of(&mut program);
            let mut app = App { program, port, admin, stderr, builder: self.clone(), _dir: dir };
            match app.until_ready() {
                Ok(()) => return app,
                // Another program took the port between our look and the server's bind.
                Err(why) if why.contains("in use") => {}
                Err(why) => panic!("flashsale does not start:\n{why}"),
            }
        }
        panic!("flashsale finds its ports taken each time");
    }

    /// Runs one that should refuse to start.
    pub fn run_to_failure(&self) -> Failure {
        let dir = process::temp_dir();
        let mut command = self.command(process::free_port(), process::free_port(), dir.path());
        let mut program = Program::start("flashsale", &mut command, None);
        let stderr = Captured::of(&mut program);
        let begun = Instant::now();
        let status = program.wait(START);
        let elapsed = begun.elapsed();
        Failure { code: exit_code(status), stderr: stderr.finish(), elapsed }
    }

    /// Starts one that cannot go on, and sends it `signal` once it is `waiting`.
    pub fn signal_while_starting(&self, signal: Signal, waiting: impl FnOnce()) -> Failure {
        let dir = process::temp_dir();
        let mut command = self.command(process::free_port(), process::free_port(), dir.path());
        let mut program = Program::start("flashsale", &mut command, None);
        let stderr = Captured::of(&mut program);
        waiting();
        let begun = Instant::now();
        let status = program.end(signal, STOP);
        Failure { code: exit_code(status), elapsed: begun.elapsed(), stderr: stderr.finish() }
    }

    fn command(&self, port: u16, admin: u16, dir: &Path) -> Command {
        let other = std::env::var_os(OTHER_BINARY).map(PathBuf::from);
        let built = Path::new(env!("CARGO_BIN_EXE_flashsale"));
        let binary = self.binary.as_deref().or(other.as_deref()).unwrap_or(built);
        let mut command = match self.files {
            None => process::command(binary, "KILL", None),
            Some(limit) => {
                let prlimit = process::in_path("prlimit").expect("prlimit (of util-linux)");
                let mut command = process::command(&prlimit, "KILL", None);
                command.arg(format!("--nofile={limit}")).arg(binary);
                command
            }
        };
        command.env_clear().current_dir(dir).env("RUST_BACKTRACE", "1").env("BIND_ADDR", "127.0.0.1");
        // No load balancer has to notice an end, unless a test is about that.
        command.env("DRAIN_SECONDS", "0");
        command.env("SERVER_PORT", port.to_string()).env("ADMIN_ADDR", local(admin).to_string());
        command.envs(&self.env);
        command
    }
}

/// How a start failed.
pub struct Failure {
    /// The exit code, or minus the signal.
    pub code: i32,
    /// What it wrote to stderr.
    pub stderr: String,
    /// How long it took, from the start or the signal.
    pub elapsed: Duration,
}

/// Runs the binary with `args` alone, as from a shell, and returns what it printed.
pub fn run_with_args(args: &[&str]) -> Output {
    let dir = process::temp_dir();
    let mut command = process::command(Path::new(env!("CARGO_BIN_EXE_flashsale")), "KILL", None);
    command.env_clear().args(args).current_dir(dir.path()).output().expect("run flashsale")
}

/// A running instance.
pub struct App {
    program: Program,
    port: u16,
    admin: u16,
    stderr: Captured,
    builder: Builder,
    _dir: TempDir,
}

impl App {
    /// An instance with no settings but its ports.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it sells.
    pub fn addr(&self) -> SocketAddr {
        local(self.port)
    }

    /// Where its operator looks.
    pub fn admin_addr(&self) -> SocketAddr {
        local(self.admin)
    }

    /// A fresh client of it.
    pub fn client(&self) -> Client {
        Client::new(self.addr())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// What it has written to stderr: all of it once it has ended, and before that whatever its log's thread has come to.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has written `what` to stderr: a line may follow its cause, as a thread of its own writes the log.
    pub fn says(&self, what: &str, limit: Duration) {
        process::poll(&format!("the words {what:?}"), limit, || self.stderr().contains(what).then_some(()));
    }

    /// Ends it in an orderly way; all that it has written to stderr.
    pub fn last_words(mut self) -> String {
        assert_eq!(self.terminate(), 0, "an orderly end");
        self.stderr()
    }

    /// Ends it in an orderly way (SIGTERM); its exit code. Panics if that takes longer than it may.
    pub fn terminate(&mut self) -> i32 {
        self.end(Signal::TERM)
    }

    /// Ends it as Ctrl-C does (SIGINT); its exit code.
    pub fn interrupt(&mut self) -> i32 {
        self.end(Signal::INT)
    }

    /// Ends it in an orderly way, which takes `drain` seconds longer; its exit code.
    pub fn end_after(&mut self, drain: u64) -> i32 {
        let status = self.program.end(Signal::TERM, STOP + Duration::from_secs(drain));
        self.stderr.finish();
        exit_code(status)
    }

    /// Sends it `signal`, unless it has ended, and waits for its end; its exit code.
    pub fn end(&mut self, signal: Signal) -> i32 {
        let status = self.program.end(signal, STOP);
        self.stderr.finish();
        exit_code(status)
    }

    /// Ends it as a crash would (SIGKILL).
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Freezes it.
    pub fn pause(&self) {
        self.program.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.program.signal(Signal::CONT);
    }

    /// Ends this instance in an orderly way and starts another with the same settings.
    pub fn restart(&mut self) {
        assert_eq!(self.terminate(), 0, "an orderly end");
        *self = self.builder.start();
    }

    /// Waits for the first answer. A server opens its sale before it listens, so a client that is answered can buy.
    fn until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if let Some(status) = self.program.ended() {
                return Err(format!("ended with {}: {}", exit_code(status), self.stderr.finish()));
            }
            if process::listens(self.port) && Client::new(self.addr()).send_request("GET", "/").is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("no answer within {START:?}: {}", self.stderr()))
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of flashsale on port {}:\n{}---", self.port, self.stderr());
        }
    }
}

/// The text of a pipe, read by a thread of its own so that the writer never waits.
struct Captured {
    text: Arc<Mutex<String>>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Captured {
    fn of(program: &mut Program) -> Captured {
        let pipe = program.take_stderr().expect("a piped stderr");
        let text = Arc::new(Mutex::new(String::new()));
        let into = Arc::clone(&text);
        let reader = std::thread::spawn(move || {
            let mut lines = BufReader::new(pipe);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let mut text = into.lock().unwrap_or_else(|e| e.into_inner());
                text.push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Captured { text, reader: Mutex::new(Some(reader)) }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// All of it, once the program has ended.
    fn finish(&self) -> String {
        if let Some(reader) = self.reader.lock().unwrap_or_else(|e| e.into_inner()).take() {
            let _ = reader.join();
        }
        self.text()
    }
}
