//! The workloads, and a round of one of them: a sample of each of its programs.
//!
//! Owns what is asked in each, the answers that may come, and the figures of a sample. Invariant: a figure is given only if
//! every answer was one that the workload expects and the ledger has a row for each that was granted.

use crate::load::{Expected, Heard, Load, Mode, histogram};
use crate::machine;
use crate::requests::Requests;
use crate::servers::Servers;
use crate::subjects::{Kind, PLENTY, Running, Sale, Subject};
use hdrhistogram::Histogram;
use std::time::Duration;

/// What shoppers ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Checkouts that all get an item.
    Sell,
    /// Checkouts when nothing is left.
    SoldOut,
    /// Checkouts of users who have their share.
    UserLimit,
    /// Purchases, each code once.
    Purchase,
    /// 10,000 items: checkouts, and a purchase by each who got one, until all is sold and on.
    Mixed,
}

/// A workload and the programs that take it, ours first.
pub struct Workload {
    pub name: &'static str,
    pub ask: Ask,
    pub mode: Mode,
    pub connections: usize,
    pub subjects: Vec<Subject>,
}

/// How long and how often.
#[derive(Clone, Copy)]
pub struct Extent {
    pub threads: usize,
    pub workers: Option<usize>,
    pub rounds: usize,
    pub seconds: f64,
    /// Codes of a sample of purchases.
    pub codes: usize,
    /// Only the answers are checked, with a few hundred requests; the figures mean nothing.
    pub test: bool,
}

/// The figures of one sample.
pub struct Sample {
    /// Answers a second.
    pub rate: f64,
    /// The same of each slice.
    pub rates: Vec<f64>,
    /// Latencies, in microseconds.
    pub latency: Histogram<u64>,
    /// CPU microseconds a request: load generator, subject, Redis, Postgres.
    pub cpu: [f64; 4],
    /// Of *mixed*.
    pub sale: Option<SaleFigures>,
    /// The share of all CPUs that the machine's owner gave to others meanwhile.
    pub stolen: f64,
}

/// How a sale went that sold out.
pub struct SaleFigures {
    /// Milliseconds until the last item was taken.
    pub sold_out_ms: f64,
    /// The latencies of what was granted, in microseconds.
    pub granted: Histogram<u64>,
}

const HELD: Expected = Expected { status: 200, body: "{\"code\":\"" };
const SOLD_OUT: Expected = Expected { status: 409, body: "{\"error\":\"sold_out\"" };
const USER_LIMIT: Expected = Expected { status: 429, body: "{\"error\":\"user_limit\"" };
const BOUGHT: Expected = Expected { status: 200, body: "{\"success\":true,\"item_id\":\"" };
const HELLO: Expected = Expected { status: 200, body: "Hello, World!" };

/// The shop of *mixed*.
const SALE_ITEMS: u64 = 10_000;
/// Users who have their share, in *user limit*.
const FULL_USERS: usize = 1_000;
/// Different requests of a load: enough that Redis does not see one user again at once.
const RING: usize = 200_000;
/// The same where only answers are checked.
const FEW: usize = 400;
/// Each sample begins with so much load that is not counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// Connections that prepare a sample.
const PREPARING: usize = 100;
/// How long a program has the load before the next one has it: shorter than the changes of a shared machine's speed.
const SLICE: Duration = Duration::from_millis(250);
const LONG_SLICE: Duration = Duration::from_secs(1);
/// How long after the last answer the program's work for it may take: the service writes rows 20 ms later.
const WRITTEN_AFTER: Duration = Duration::from_millis(40);
/// Bytes of a code.
const CODE: usize = 32;

impl Ask {
    fn sale(self) -> Sale {
        match self {
            Ask::Sell | Ask::Purchase => Sale { items: PLENTY, user_limit: PLENTY },
            Ask::SoldOut => Sale { items: 1, user_limit: PLENTY },
            Ask::UserLimit => Sale { items: PLENTY, user_limit: 1 },
            // One is bought by the check.
            Ask::Mixed => Sale { items: SALE_ITEMS + 1, user_limit: 10 },
        }
    }

    fn expected(self, kind: Kind) -> &'static [Expected] {
        match self {
            _ if kind == Kind::Hello => &[HELLO],
            Ask::Sell => &[HELD],
            Ask::SoldOut => &[SOLD_OUT],
            Ask::UserLimit => &[USER_LIMIT],
            Ask::Purchase => &[BOUGHT],
            Ask::Mixed => &[HELD, BOUGHT, SOLD_OUT, USER_LIMIT],
        }
    }
}

/// A round: a sample of each of a workload's programs.
///
/// The programs run side by side, each on servers of its own, and take the load in turn, in slices: what changes on the
/// machine from one second to the next meets all of them alike. The order turns around with each slice.
impl Workload {
    /// Takes a sample of each program. There are servers for each.
    ///
    /// # Errors
    /// The answer that was not expected, or a ledger that has other rows than those that were granted.
    pub fn round(&self, servers: &mut [Servers], extent: Extent) -> Result<Vec<Sample>, String> {
        let slices = self.slices(extent);
        let mut sides = Vec::new();
        for (subject, servers) in self.subjects.iter().zip(servers) {
            let side = Side::start(self, subject, servers, extent, slices);
            sides.push(side.map_err(|wrong| format!("{}, {}: {wrong}", self.name, subject.name))?);
        }
        for slice in 0..slices {
            let order: Vec<usize> = (0..sides.len()).collect();
            let order = if slice % 2 == 0 { order } else { order.into_iter().rev().collect() };
            for at in order {
                let side = &mut sides[at];
                side.slice(slice, slices).map_err(|wrong| format!("{}, {}: {wrong}", self.name, side.subject.name))?;
            }
        }
        let end = |side: Side<'_>| {
            let name = side.subject.name.as_str();
            side.end().map_err(|wrong| format!("{}, {name}: {wrong}", self.name))
        };
        sides.into_iter().map(end).collect()
    }

    /// How many slices a sample has.
    fn slices(&self, extent: Extent) -> usize {
        let slice = match self.mode {
            Mode::Closed { .. } | Mode::OneEach => SLICE,
            // A sale's end must be within one, and a stall of the open loop too.
            Mode::Shopping | Mode::Open { .. } => LONG_SLICE,
        };
        if extent.test { 1 } else { ((extent.seconds / slice.as_secs_f64()).round() as usize).max(1) }
    }
}

/// A program of a round, and what it has done so far.
struct Side<'a> {
    workload: &'a Workload,
    subject: &'a Subject,
    servers: &'a Servers,
    extent: Extent,
    running: Running,
    /// What is asked: one for all slices, or one for each where each request is asked once.
    requests: Vec<Requests>,
    /// Rows that the ledger must have.
    holds: u64,
    purchases: u64,
    /// What the slices heard, together.
    heard: Heard,
    /// Answers a second in each slice.
    rates: Vec<f64>,
    /// CPU seconds of the slices: load generator, program, Redis, Postgres; and what was stolen of them.
    cpu: [f64; 4],
    stolen: f64,
}

impl<'a> Side<'a> {
    /// Starts the program on empty servers and brings the sale to where the workload begins.
    fn start(
        workload: &'a Workload,
        subject: &'a Subject,
        servers: &'a mut Servers,
        extent: Extent,
        slices: usize,
    ) -> Result<Side<'a>, String> {
        servers.renew();
        let running = subject.start(servers, workload.ask.sale(), extent.workers)?;
        let heard = Heard::nothing(workload.ask.expected(subject.kind).len());
        let mut side = Side {
            workload,
            subject,
            servers,
            extent,
            running,
            requests: Vec::new(),
            // The check has bought one.
            holds: 1,
            purchases: 1,
            heard,
            rates: Vec::new(),
            cpu: [0.0; 4],
            stolen: 0.0,
        };
        side.requests = side.prepare(slices)?;
        if !matches!(workload.ask, Ask::Purchase | Ask::Mixed) && !extent.test {
            let warm = side.load(&side.requests[0], 0, Some(WARM_UP)).run()?;
            side.grant(&warm);
        }
        if !extent.test {
            machine::settle(&side.pids());
        }
        Ok(side)
    }

    /// What the load asks. The sale is brought to where it begins.
    fn prepare(&mut self, slices: usize) -> Result<Vec<Requests>, String> {
        match self.workload.ask {
            Ask::SoldOut if self.subject.kind != Kind::Hello => {
                self.running.expect("/checkout?user_id=late&id=lamp", 409, SOLD_OUT.body)?;
            }
            Ask::UserLimit => {
                let requests = Requests::checkouts_of_each(FULL_USERS);
                self.hold(&requests, false)?;
                return Ok(vec![requests]);
            }
            Ask::Purchase => {
                let codes = self.hold(&Requests::checkouts(self.extent.codes, 1), true)?.codes;
                let bytes = (codes.len() / CODE).div_ceil(slices) * CODE;
                return Ok(codes.chunks(bytes).map(Requests::purchases).collect());
            }
            _ => {}
        }
        let one_each = self.workload.mode == Mode::OneEach;
        let make = if one_each { Requests::last_checkouts } else { Requests::checkouts };
        Ok(vec![make(if self.extent.test { FEW } else { RING }, 1)])
    }

    /// Checkouts that are all granted, before the load.
    fn hold(&mut self, requests: &Requests, keep_codes: bool) -> Result<Heard, String> {
        let mode = Mode::Closed { depth: 1 };
        let load = Load { connections: PREPARING, mode, expected: &[HELD], keep_codes, ..self.load(requests, 0, None) };
        let heard = load.run()?;
        self.holds += heard.count();
        Ok(heard)
    }

    fn load<'l>(&'l self, requests: &'l Requests, from: usize, duration: Option<Duration>) -> Load<'l> {
        Load {
            address: self.running.address,
            connections: self.workload.connections,
            threads: self.extent.threads,
            mode: self.workload.mode,
            requests,
            from,
            duration,
            expected: self.workload.ask.expected(self.subject.kind),
            keep_codes: false,
        }
    }

    /// Counts the rows that these answers say the ledger has.
    fn grant(&mut self, heard: &Heard) {
        for (answer, heard) in self.workload.ask.expected(self.subject.kind).iter().zip(&heard.answers) {
            match answer.body {
                body if body == HELD.body => self.holds += heard.latency.len(),
                body if body == BOUGHT.body => self.purchases += heard.latency.len(),
                _ => {}
            }
        }
    }

    fn pids(&self) -> [u32; 3] {
        [self.running.pid(), self.servers.redis().pid(), self.servers.postgres_pid()]
    }

    /// Takes the load for a slice.
    fn slice(&mut self, slice: usize, slices: usize) -> Result<(), String> {
        let counted = self.workload.ask == Ask::Purchase
            || (self.extent.test && !matches!(self.workload.mode, Mode::Open { .. }));
        let duration = (!counted).then(|| Duration::from_secs_f64(self.extent.seconds / slices as f64));
        let own = if self.requests.len() > 1 { slice } else { 0 };
        let Some(requests) = self.requests.get(own) else { return Ok(()) };
        // Each slice begins elsewhere, so that it does not meet the users of the last one.
        let from = if self.requests.len() > 1 { 0 } else { slice * requests.len() / slices };
        let meter = Meter::start(self.pids());
        let heard = self.load(requests, from, duration).run()?;
        let (cpu, stolen) = meter.stop(WRITTEN_AFTER);
        self.grant(&heard);
        self.rates.push(heard.rate());
        self.heard.then(&heard);
        self.cpu.iter_mut().zip(cpu).for_each(|(sum, part)| *sum += part);
        self.stolen += stolen / slices as f64;
        Ok(())
    }

    /// The sample, once the ledger has all rows.
    fn end(self) -> Result<Sample, String> {
        if self.subject.kind != Kind::Hello {
            self.running.rows(self.servers, "checkout_attempts", self.holds, 0)?;
            self.running.rows(self.servers, "purchases", self.purchases, 0)?;
        }
        let sale = (self.workload.ask == Ask::Mixed).then(|| {
            let mut granted = histogram();
            self.heard.answers.iter().take(2).for_each(|of| granted.add(&of.latency).expect("one shape"));
            SaleFigures { sold_out_ms: self.heard.answers[0].last.as_secs_f64() * 1e3, granted }
        });
        let each = 1e6 / self.heard.count().max(1) as f64;
        Ok(Sample {
            rate: self.heard.rate(),
            rates: self.rates,
            latency: self.heard.latency(),
            cpu: self.cpu.map(|seconds| seconds * each),
            sale,
            stolen: self.stolen,
        })
    }
}

/// CPU time from before a load to after it.
pub struct Meter {
    pids: [u32; 3],
    before: [f64; 4],
    stolen: f64,
    begun: std::time::Instant,
}

impl Meter {
    /// From here on: this process, the program, Redis, Postgres.
    pub fn start(pids: [u32; 3]) -> Meter {
        Meter { pids, before: Meter::read(pids), stolen: machine::stolen(), begun: std::time::Instant::now() }
    }

    fn read(pids: [u32; 3]) -> [f64; 4] {
        let [program, redis, postgres] = pids.map(machine::used);
        [machine::used_here(), program, redis, postgres]
    }

    /// CPU seconds until `wait` after this moment, and the share of all CPUs that was stolen until now.
    pub fn stop(&self, wait: Duration) -> ([f64; 4], f64) {
        self.since(|| std::thread::sleep(wait))
    }

    /// CPU microseconds for each of `count`, once everything that was answered is written.
    pub fn each(&self, count: u64) -> ([f64; 4], f64) {
        let (cpu, stolen) = self.since(|| machine::settle(&self.pids));
        (cpu.map(|seconds| seconds * 1e6 / count.max(1) as f64), stolen)
    }

    fn since(&self, wait: impl FnOnce()) -> ([f64; 4], f64) {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let stolen = (machine::stolen() - self.stolen) / elapsed / num_cpus();
        let here = machine::used_here();
        wait();
        let mut after = Meter::read(self.pids);
        // What this process did while it waited is not the load's.
        after[0] = here;
        let mut cpu = [0.0; 4];
        for ((cpu, after), before) in cpu.iter_mut().zip(after).zip(self.before) {
            *cpu = after - before;
        }
        (cpu, stolen)
    }
}

fn num_cpus() -> f64 {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64
}

/// All workloads. `subject` gives a program of a kind.
pub fn all(subject: &dyn Fn(Kind) -> Subject, rate: u32) -> Vec<Workload> {
    use Kind::{Axum, Embedded, Hello, LedgerAck, Minihttp, Service};
    let one = Mode::Closed { depth: 1 };
    let deep = Mode::Closed { depth: 16 };
    let rows: [(&'static str, Ask, Mode, usize, &[Kind]); 14] = [
        ("sell", Ask::Sell, one, 200, &[Service, Axum, Minihttp]),
        ("sold out", Ask::SoldOut, one, 200, &[Service, Hello, Axum, Minihttp]),
        ("user limit", Ask::UserLimit, one, 200, &[Service, Axum]),
        ("purchase", Ask::Purchase, one, 200, &[Service, Axum, LedgerAck]),
        ("mixed", Ask::Mixed, Mode::Shopping, 500, &[Service, Axum]),
        ("pipelined sell", Ask::Sell, deep, 64, &[Service, Axum, Minihttp]),
        ("pipelined sold out", Ask::SoldOut, deep, 64, &[Service, Hello, Axum, Minihttp]),
        ("connections", Ask::SoldOut, Mode::OneEach, 100, &[Service, Hello, Axum]),
        ("embedded sell", Ask::Sell, one, 200, &[Embedded, Service]),
        ("embedded purchase", Ask::Purchase, one, 200, &[Embedded, Service]),
        ("embedded sold out", Ask::SoldOut, one, 200, &[Embedded, Hello]),
        ("embedded pipelined sold out", Ask::SoldOut, deep, 64, &[Embedded, Hello]),
        ("open loop", Ask::Sell, Mode::Open { rate }, 400, &[Service, Axum]),
        ("embedded open loop", Ask::Sell, Mode::Open { rate: rate * 3 / 5 }, 400, &[Embedded]),
    ];
    let workload = |(name, ask, mode, connections, kinds): (_, _, _, _, &[Kind])| Workload {
        name,
        ask,
        mode,
        connections,
        subjects: kinds.iter().map(|kind| subject(*kind)).collect(),
    };
    rows.into_iter().map(workload).collect()
}
