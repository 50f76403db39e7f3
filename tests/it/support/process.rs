//! Programs that a test starts: their ports, their signals, their end.
//!
//! Invariant: what is started here ends with its [`Program`], on a panic too, and with the thread that started it
//! should the whole test run be killed. So start and restart servers from the test's own thread, never from one that
//! ends earlier. Refuses to know what the programs do.

use std::collections::HashSet;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at.
const TICK: Duration = Duration::from_millis(10);

/// Waits until `done` gives a value; panics after `limit` with `what`.
pub fn poll<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(TICK);
    }
}

/// A port of 127.0.0.1 that was free a moment ago and that this test run has not given out before.
pub fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind port 0");
        let port = listener.local_addr().expect("local address").port();
        if GIVEN.lock().unwrap_or_else(|e| e.into_inner()).insert(port) {
            return port;
        }
    }
}

/// The address of `port` on this machine.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Whether a process listens on `port`.
pub fn listens(port: u16) -> bool {
    TcpStream::connect_timeout(&local(port), Duration::from_secs(1)).is_ok()
}

/// The full path of `program`, looked for in PATH.
pub fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command for `program` that gets `signal` (a name such as `KILL`) when the thread that started it ends, as
/// `user` if there is one. The wrappers replace themselves, so that the child's pid is the program's.
pub fn command(program: &Path, signal: &str, user: Option<&str>) -> Command {
    let Some(setpriv) = in_path("setpriv") else {
        assert!(user.is_none(), "setpriv (of util-linux) is needed to start {} as another user", program.display());
        return Command::new(program);
    };
    let mut command = Command::new(&setpriv);
    if let Some(user) = user {
        // Two steps: a change of user clears the parent-death signal.
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]).arg(&setpriv);
    }
    command.args(["--pdeathsig", signal]).arg(program);
    command
}

/// Sends `signal` to the process `pid`; one that is gone is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The process `pid` and all its descendants.
pub fn family(pid: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in parentheses may hold anything: the parent is the second word after the last one.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        at += 1;
    }
    found
}

/// A running program. Ends with a SIGKILL when dropped.
pub struct Program {
    name: String,
    child: Child,
}

impl Program {
    /// Starts `command`; what it prints goes to the file `log`, or, with `None`, its stderr to a pipe.
    pub fn start(name: &str, command: &mut Command, log: Option<&Path>) -> Program {
        command.stdin(Stdio::null());
        match log {
            Some(path) => {
                let out = File::options().create(true).append(true).open(path).expect("open the log file");
                command.stderr(out.try_clone().expect("duplicate the log file")).stdout(out);
            }
            None => {
                command.stdout(Stdio::null()).stderr(Stdio::piped());
            }
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name} ({command:?}): {e}"));
        Program { name: name.to_owned(), child }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The pipe of its stderr, once.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal_: Signal) {
        signal(self.pid(), signal_);
    }

    /// Waits until it has ended; panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        poll(&what, limit, || self.ended())
    }

    /// Sends it `signal` and waits for its end.
    pub fn end(&mut self, signal: Signal, limit: Duration) -> ExitStatus {
        if let Some(status) = self.ended() {
            return status;
        }
        self.signal(signal);
        self.wait(limit)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            // A stopped process takes a SIGKILL as well.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The exit status as a test wants to compare it: the code, or minus the signal.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
}

/// A fresh folder for one server or program.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("flashsale-test-").tempdir().expect("make a temporary folder")
}
