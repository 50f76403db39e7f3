//! A Redis of one's own: started on a free port in a temporary folder, ended with its value.

use super::process::{self, Program, poll};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);

/// A running (or stopped) Redis.
pub struct Redis {
    program: Option<Program>,
    port: u16,
    args: Vec<String>,
    dir: TempDir,
}

impl Redis {
    /// Starts one that keeps nothing on disk.
    pub fn start() -> Redis {
        Redis::start_with(&["--appendonly", "no"])
    }

    /// Starts one that keeps its data in an append-only file, synced at every write.
    pub fn start_durable() -> Redis {
        Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// Starts one with further arguments.
    pub fn start_with(args: &[&str]) -> Redis {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut redis = Redis { program: None, port: 0, args, dir: process::temp_dir() };
        // Another program may take the port between our look and the server's bind.
        for _ in 0..5 {
            redis.port = process::free_port();
            if redis.try_launch() {
                return redis;
            }
        }
        panic!("redis-server does not start:\n{}", redis.log());
    }

    /// Where it listens, as `REDIS_ADDR` takes it.
    pub fn addr(&self) -> SocketAddr {
        process::local(self.port)
    }

    /// A fresh connection; panics if there is none to be had.
    pub fn connection(&self) -> redis::Connection {
        self.try_connection().unwrap_or_else(|e| panic!("no connection to Redis: {e}\n{}", self.log()))
    }

    fn try_connection(&self) -> redis::RedisResult<redis::Connection> {
        let client = redis::Client::open(format!("redis://{}", self.addr()))?;
        let connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(connection)
    }

    /// Runs one command and returns what Redis says to it.
    pub fn run(&self, words: &[&str]) -> redis::Value {
        let (name, args) = words.split_first().expect("a command");
        redis::cmd(name).arg(args).query(&mut self.connection()).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// Forgets all keys. Scripts stay loaded.
    pub fn wipe(&self) {
        self.run(&["FLUSHALL"]);
    }

    /// Makes it a replica of `master`, and waits until they are linked.
    pub fn replica_of(&self, master: &Redis) {
        self.run(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
        poll("the replica's link to its master", PATIENCE, || {
            let info: String = redis::cmd("INFO").arg("replication").query(&mut self.connection()).ok()?;
            info.contains("master_link_status:up").then_some(())
        });
    }

    /// Makes it a master.
    pub fn promote(&self) {
        self.run(&["REPLICAOF", "NO", "ONE"]);
    }

    /// Ends it in an orderly way (SIGTERM).
    pub fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Ends it as a power cut would (SIGKILL).
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Cuts the last `bytes` off the append-only file of a stopped one, as a power cut takes what was not synced.
    pub fn cut_append_only_file(&self, bytes: u64) {
        assert!(self.program.is_none(), "a stopped Redis");
        let folder = self.dir.path().join("appendonlydir");
        let files = std::fs::read_dir(&folder).expect("the append-only folder");
        let path = files
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.to_string_lossy().ends_with(".incr.aof"))
            .expect("an append-only file");
        let file = std::fs::File::options().write(true).open(path).expect("open it");
        let length = file.metadata().expect("its length").len();
        assert!(length > 2 * bytes, "{length} bytes are too few to cut {bytes} off");
        file.set_len(length - bytes).expect("cut it");
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut program) = self.program.take() {
            program.end(signal, PATIENCE);
        }
    }

    /// Freezes it: its connections stay open and nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        self.program.as_ref().expect("a running Redis").signal(signal);
    }

    /// Starts it again on the same port and folder, after [`Redis::stop`], [`Redis::kill`] or while it still runs.
    pub fn restart(&mut self) {
        self.stop();
        assert!(self.try_launch(), "redis-server does not start again:\n{}", self.log());
    }

    fn try_launch(&mut self) -> bool {
        let program = process::in_path("redis-server").expect("redis-server is needed: see tests/run");
        let mut command = process::command(&program, "KILL", None);
        command.args(["--bind", "127.0.0.1", "--save", "", "--daemonize", "no", "--port"]);
        command.arg(self.port.to_string()).arg("--dir").arg(self.dir.path()).args(&self.args);
        let mut program = Program::start("redis-server", &mut command, Some(&self.dir.path().join("log")));
        let up = poll("an answer of redis-server", PATIENCE, || {
            if program.ended().is_some() {
                return Some(false);
            }
            let pong = self.try_connection().and_then(|mut c| redis::cmd("PING").query::<String>(&mut c));
            pong.is_ok().then_some(true)
        });
        // Another Redis on this port may have answered, while this one could not bind and is about to end.
        let ours = up && self.process_id() == Some(program.pid());
        self.program = ours.then_some(program);
        ours
    }

    fn process_id(&self) -> Option<u32> {
        let info: String = redis::cmd("INFO").arg("server").query(&mut self.try_connection().ok()?).ok()?;
        info.lines().find_map(|line| line.strip_prefix("process_id:"))?.trim().parse().ok()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}
