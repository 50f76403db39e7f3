//! The workloads, and one sample of one of them.
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

/// Rows that the ledger must have.
#[derive(Clone, Copy, Default)]
struct Granted {
    holds: u64,
    purchases: u64,
    /// Requests that the load's end left without an answer.
    unanswered: u64,
}

impl Granted {
    fn add(&mut self, expected: &[Expected], heard: &Heard) {
        for (answer, heard) in expected.iter().zip(&heard.answers) {
            match answer.body {
                body if body == HELD.body => self.holds += heard.latency.len(),
                body if body == BOUGHT.body => self.purchases += heard.latency.len(),
                _ => {}
            }
        }
    }
}

impl Workload {
    /// Takes one sample of `subject`.
    pub fn sample(&self, servers: &mut Servers, subject: &Subject, extent: Extent) -> Result<Sample, String> {
        servers.renew();
        let running = subject.start(servers, self.ask.sale(), extent.workers)?;
        let in_this = |wrong: String| format!("{}, {}: {wrong}", self.name, subject.name);
        let expected = self.ask.expected(subject.kind);
        // The check has bought one.
        let mut granted = Granted { holds: 1, purchases: 1, unanswered: 0 };
        let requests = self.prepare(&running, subject, extent, &mut granted).map_err(in_this)?;
        let counted = self.ask == Ask::Purchase || (extent.test && !matches!(self.mode, Mode::Open { .. }));
        let duration = (!counted).then(|| Duration::from_secs_f64(extent.seconds));
        let load = Load {
            address: running.address,
            connections: self.connections,
            threads: extent.threads,
            mode: self.mode,
            requests: &requests,
            duration,
            expected,
            keep_codes: false,
        };
        if !matches!(self.ask, Ask::Purchase | Ask::Mixed) && !extent.test {
            let warm = Load { duration: Some(WARM_UP), ..load };
            granted.add(expected, &warm.run().map_err(in_this)?);
            granted.unanswered += self.outstanding();
        }
        let pids = [running.pid(), servers.redis().pid(), servers.postgres_pid()];
        if !extent.test {
            machine::settle(&pids);
        }
        let meter = Meter::start(pids);
        let heard = load.run().map_err(in_this)?;
        let sample = meter.stop(self.ask, heard, expected, &mut granted);
        if duration.is_some() {
            granted.unanswered += self.outstanding();
        }
        if subject.kind != Kind::Hello {
            running.rows(servers, "checkout_attempts", granted.holds, granted.unanswered).map_err(in_this)?;
            running.rows(servers, "purchases", granted.purchases, granted.unanswered).map_err(in_this)?;
        }
        Ok(sample)
    }

    /// Requests that are on their way when time is up.
    fn outstanding(&self) -> u64 {
        let depth = if let Mode::Closed { depth } = self.mode { depth } else { 1 };
        (self.connections * depth) as u64
    }

    /// Brings the sale to where the workload begins; the requests of the load.
    fn prepare(
        &self,
        running: &Running,
        subject: &Subject,
        extent: Extent,
        granted: &mut Granted,
    ) -> Result<Requests, String> {
        let mut ask = |requests: &Requests, keep_codes: bool| {
            let (address, threads, mode) = (running.address, extent.threads, Mode::Closed { depth: 1 });
            let (duration, expected) = (None, &[HELD][..]);
            let connections = PREPARING;
            let load = Load { address, connections, threads, mode, requests, duration, expected, keep_codes };
            load.run().inspect(|heard| granted.add(expected, heard))
        };
        match self.ask {
            Ask::SoldOut if subject.kind != Kind::Hello => {
                running.expect("/checkout?user_id=late&id=lamp", 409, SOLD_OUT.body)?;
            }
            Ask::UserLimit => {
                let requests = Requests::checkouts_of_each(FULL_USERS);
                ask(&requests, false)?;
                return Ok(requests);
            }
            Ask::Purchase => {
                let heard = ask(&Requests::checkouts(extent.codes, 1), true)?;
                return Ok(Requests::purchases(&heard.codes));
            }
            _ => {}
        }
        let make = if self.mode == Mode::OneEach { Requests::last_checkouts } else { Requests::checkouts };
        Ok(make(if extent.test { FEW } else { RING }, 1))
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
    /// From here on: this process, the subject, Redis, Postgres.
    pub fn start(pids: [u32; 3]) -> Meter {
        Meter { pids, before: Meter::read(pids), stolen: machine::stolen(), begun: std::time::Instant::now() }
    }

    fn read(pids: [u32; 3]) -> [f64; 4] {
        let [subject, redis, postgres] = pids.map(machine::used);
        [machine::used_here(), subject, redis, postgres]
    }

    /// CPU microseconds for each of `count`, once everything that was answered is written.
    pub fn each(&self, count: u64) -> ([f64; 4], f64) {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let stolen = (machine::stolen() - self.stolen) / elapsed / num_cpus();
        let here = machine::used_here();
        machine::settle(&self.pids);
        let mut after = Meter::read(self.pids);
        // What this process did while it waited is not the load's.
        after[0] = here;
        let mut cpu = [0.0; 4];
        for ((cpu, after), before) in cpu.iter_mut().zip(after).zip(self.before) {
            *cpu = (after - before) * 1e6 / count.max(1) as f64;
        }
        (cpu, stolen)
    }

    fn stop(&self, ask: Ask, heard: Heard, expected: &[Expected], granted: &mut Granted) -> Sample {
        let (cpu, stolen) = self.each(heard.count());
        granted.add(expected, &heard);
        let sale = (ask == Ask::Mixed).then(|| {
            let mut granted = histogram();
            heard.answers.iter().take(2).for_each(|answers| granted.add(&answers.latency).expect("one shape"));
            SaleFigures { sold_out_ms: heard.answers[0].last.as_secs_f64() * 1e3, granted }
        });
        Sample { rate: heard.rate(), latency: heard.latency(), cpu, sale, stolen }
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
    let rows: [(&'static str, Ask, Mode, usize, &[Kind]); 13] = [
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
