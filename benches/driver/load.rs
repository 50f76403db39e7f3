//! The load: connections that ask, and a look at every answer.
//!
//! Owns the sockets, the moments and the latencies. Invariants: each answer is one of those that the workload expects, or
//! the run fails and shows it; in the open loop a latency counts from the moment at which the request was due, so that a
//! server that stalls is not spared the requests that it kept from being sent. Leaves to others what is asked, of whom, and
//! what the figures mean.

use crate::requests::{self, Requests};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::Timespec;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// An answer that a workload may get.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Its status.
    pub status: u16,
    /// How its body begins.
    pub body: &'static str,
}

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Each connection asks again when it has been answered, `depth` requests at a time.
    Closed { depth: usize },
    /// As `Closed` with depth 1; who gets a code redeems it with the next request.
    Shopping,
    /// A connection for each request.
    OneEach,
    /// Requests are due at a fixed rate (a second), whatever the answers take.
    Open { rate: u32 },
}

/// A load.
pub struct Load<'a> {
    /// Whom to ask.
    pub address: SocketAddr,
    /// Connections of all threads together.
    pub connections: usize,
    /// Threads of the generator.
    pub threads: usize,
    /// How connections are used.
    pub mode: Mode,
    /// What is asked.
    pub requests: &'a Requests,
    /// The index of the first request of the first thread; the other threads begin at equal distances.
    pub from: usize,
    /// For how long requests are sent; all that were sent are answered. `None`: each of the requests once.
    pub duration: Option<Duration>,
    /// The answers that may come.
    pub expected: &'a [Expected],
    /// Whether the codes in the answers are kept.
    pub keep_codes: bool,
}

/// What a load has heard.
pub struct Heard {
    /// From the first request to the end, or to the last answer.
    pub elapsed: Duration,
    /// For each of the expected answers: how many, when the last one came, and their latencies in microseconds.
    pub answers: Vec<Answers>,
    /// The codes, if they were kept: 32 characters each.
    pub codes: Vec<u8>,
}

/// What was heard of one kind of answer.
pub struct Answers {
    /// When the last one came, from the start.
    pub last: Duration,
    /// Latencies, in microseconds.
    pub latency: Histogram<u64>,
}

impl Heard {
    /// Nothing yet, of `kinds` kinds of answers.
    pub fn nothing(kinds: usize) -> Heard {
        let answers = (0..kinds).map(|_| Answers { last: Duration::ZERO, latency: histogram() }).collect();
        Heard { elapsed: Duration::ZERO, answers, codes: Vec::new() }
    }

    /// Adds what was heard afterwards, by a load of the same kinds of answers.
    pub fn then(&mut self, later: &Heard) {
        for (sum, part) in self.answers.iter_mut().zip(&later.answers) {
            if !part.latency.is_empty() {
                sum.last = self.elapsed + part.last;
            }
            sum.latency.add(&part.latency).expect("one shape of histogram");
        }
        self.elapsed += later.elapsed;
        self.codes.extend(&later.codes);
    }

    /// How many answers came.
    pub fn count(&self) -> u64 {
        self.answers.iter().map(|answers| answers.latency.len()).sum()
    }

    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latencies of all answers, in microseconds.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = histogram();
        self.answers.iter().for_each(|answers| all.add(&answers.latency).expect("one shape of histogram"));
        all
    }
}

/// Microseconds up to a minute, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds of a histogram")
}

impl Load<'_> {
    /// Runs the load. The error shows the answer that was not expected, or what went wrong with a connection.
    pub fn run(&self) -> Result<Heard, String> {
        let barrier = Barrier::new(self.threads);
        let heard: Vec<Result<Heard, String>> = std::thread::scope(|scope| {
            let start = |number| {
                let barrier = &barrier;
                scope.spawn(move || Thread::run(self, number, barrier))
            };
            let threads: Vec<_> = (0..self.threads).map(start).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread of the load")).collect()
        });
        let mut all: Option<Heard> = None;
        for one in heard {
            let one = one?;
            match &mut all {
                None => all = Some(one),
                Some(all) => {
                    all.elapsed = all.elapsed.max(one.elapsed);
                    all.codes.extend(&one.codes);
                    for (sum, part) in all.answers.iter_mut().zip(&one.answers) {
                        sum.last = sum.last.max(part.last);
                        sum.latency.add(&part.latency).expect("one shape of histogram");
                    }
                }
            }
        }
        Ok(all.expect("one thread at least"))
    }
}

/// A connection's room for answers: 16 pipelined ones of about 250 bytes, twice.
const INPUT: usize = 16 << 10;
/// How long the last answers may take.
const LAST: Duration = Duration::from_secs(5);

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    filled: usize,
    /// Requests that wait for their answers, and since when.
    waiting: usize,
    since: Instant,
    /// The code to be redeemed next.
    code: Option<[u8; 32]>,
}

struct Thread<'a> {
    load: &'a Load<'a>,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    start: Instant,
    next: usize,
    left: usize,
    out: Vec<u8>,
    heard: Heard,
    idle: Vec<usize>,
}

fn explain(what: &str) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{what}: {error}")
}

impl<'a> Thread<'a> {
    fn run(load: &'a Load<'a>, number: usize, barrier: &Barrier) -> Result<Heard, String> {
        let prepared = Thread::prepare(load, number);
        barrier.wait();
        let mut thread = prepared?;
        thread.start = Instant::now();
        match load.mode {
            Mode::Open { rate } => thread.open_loop(number, rate)?,
            _ => thread.closed_loop()?,
        }
        Ok(thread.heard)
    }

    fn prepare(load: &'a Load<'a>, number: usize) -> Result<Thread<'a>, String> {
        let share = |all: usize| all * (number + 1) / load.threads - all * number / load.threads;
        let mut thread = Thread {
            load,
            epoll: epoll::create(CreateFlags::CLOEXEC).map_err(|e| format!("epoll: {e}"))?,
            connections: Vec::new(),
            start: Instant::now(),
            next: (load.from + load.requests.len() * number / load.threads) % load.requests.len().max(1),
            left: if load.duration.is_none() { share(load.requests.len()) } else { usize::MAX },
            out: Vec::new(),
            heard: Heard::nothing(load.expected.len()),
            idle: Vec::new(),
        };
        for at in 0..share(load.connections) {
            let stream = thread.connect(at)?;
            let (input, since) = (vec![0; INPUT], thread.start);
            thread.connections.push(Connection { stream, input, filled: 0, waiting: 0, since, code: None });
        }
        Ok(thread)
    }

    fn connect(&self, at: usize) -> Result<TcpStream, String> {
        let stream = TcpStream::connect(self.load.address).map_err(explain("connecting"))?;
        stream.set_nonblocking(true).map_err(explain("a socket"))?;
        stream.set_nodelay(true).map_err(explain("a socket"))?;
        epoll::add(&self.epoll, &stream, EventData::new_u64(at as u64), EventFlags::IN)
            .map_err(|e| format!("epoll: {e}"))?;
        Ok(stream)
    }

    fn closed_loop(&mut self) -> Result<(), String> {
        let mut open = 0;
        for at in 0..self.connections.len() {
            open += usize::from(self.ask(at, Instant::now())?);
        }
        let mut events = Vec::with_capacity(256);
        while open > 0 {
            self.wait(&mut events, Duration::from_millis(100))?;
            if let Some(duration) = self.load.duration.filter(|duration| self.start.elapsed() >= *duration) {
                // No more requests; those on their way are answered.
                self.left = 0;
                if self.start.elapsed() > duration + LAST {
                    return Err(format!("{open} connections were not answered within {LAST:?}"));
                }
            }
            for event in events.drain(..) {
                let at = event.data.u64() as usize;
                if self.listen(at)? {
                    let now = Instant::now();
                    if self.load.mode == Mode::OneEach {
                        self.connections[at].stream = self.connect(at)?;
                    }
                    open -= usize::from(!self.ask(at, now)?);
                }
            }
        }
        self.heard.elapsed = self.heard.answers.iter().map(|answers| answers.last).max().unwrap_or_default();
        Ok(())
    }

    fn open_loop(&mut self, number: usize, rate: u32) -> Result<(), String> {
        let gap = Duration::from_secs(1) * self.load.threads as u32 / rate;
        let mut due = self.start + gap * number as u32 / self.load.threads as u32;
        let end = self.start + self.load.duration.expect("an open loop has an end");
        let mut waiting = 0usize;
        self.idle = (0..self.connections.len()).collect();
        let mut events = Vec::with_capacity(256);
        loop {
            let now = Instant::now();
            while due <= now && due < end && !self.idle.is_empty() {
                let at = self.idle.pop().expect("an idle connection");
                self.ask(at, due)?;
                waiting += 1;
                due += gap;
            }
            if due >= end && waiting == 0 {
                self.heard.elapsed = end - self.start;
                return Ok(());
            }
            if now > end + LAST {
                return Err(format!("{waiting} requests of the open loop were not answered within {LAST:?}"));
            }
            let pause = if self.idle.is_empty() || due >= end { LAST } else { due.saturating_duration_since(now) };
            self.wait(&mut events, pause)?;
            for event in events.drain(..) {
                let at = event.data.u64() as usize;
                if self.listen(at)? {
                    waiting -= 1;
                    self.idle.push(at);
                }
            }
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, at_most: Duration) -> Result<(), String> {
        let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(format!("epoll: {error}")),
        }
    }

    /// Sends the next requests. `false`: there are none left.
    fn ask(&mut self, at: usize, since: Instant) -> Result<bool, String> {
        self.out.clear();
        let connection = &mut self.connections[at];
        let depth = match self.load.mode {
            Mode::Closed { depth } => depth.min(self.left),
            _ => 1.min(self.left),
        };
        if depth == 0 {
            return Ok(false);
        }
        if let Some(code) = connection.code.take() {
            requests::purchase(&code, &mut self.out);
        } else {
            for _ in 0..depth {
                self.out.extend_from_slice(self.load.requests.get(self.next));
                self.next = (self.next + 1) % self.load.requests.len();
                self.left -= 1;
            }
        }
        (connection.waiting, connection.since) = (depth, since);
        match connection.stream.write(&self.out) {
            Ok(sent) if sent == self.out.len() => Ok(true),
            Ok(sent) => Err(format!("only {sent} of {} bytes could be sent", self.out.len())),
            Err(error) => Err(format!("sending: {error}")),
        }
    }

    /// Reads what is there. `true`: all that was asked for is answered.
    fn listen(&mut self, at: usize) -> Result<bool, String> {
        let connection = &mut self.connections[at];
        match connection.stream.read(&mut connection.input[connection.filled..]) {
            Ok(0) => return Err("the server has closed a connection".into()),
            Ok(count) => connection.filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(format!("receiving: {error}")),
        }
        let now = Instant::now();
        let mut used = 0;
        while let Some(answer) = requests::parse(&connection.input[used..connection.filled])? {
            let expected = self
                .load
                .expected
                .iter()
                .position(|e| e.status == answer.status && answer.body.starts_with(e.body.as_bytes()));
            let Some(kind) = expected.filter(|_| connection.waiting > 0) else {
                let all = String::from_utf8_lossy(&connection.input[used..connection.filled]);
                return Err(format!("an answer that this workload does not expect: {all}"));
            };
            let answers = &mut self.heard.answers[kind];
            answers.latency.saturating_record((now - connection.since).as_micros() as u64);
            answers.last = now - self.start;
            if self.load.keep_codes || self.load.mode == Mode::Shopping {
                let code = requests::code(answer.body);
                if self.load.keep_codes {
                    self.heard.codes.extend(code.iter().flatten());
                }
                connection.code = code.filter(|_| self.load.mode == Mode::Shopping);
            }
            connection.waiting -= 1;
            used += answer.length;
        }
        connection.input.copy_within(used..connection.filled, 0);
        connection.filled -= used;
        Ok(connection.waiting == 0)
    }
}
