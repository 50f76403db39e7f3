//! Throughput and p99 against connections, and the cost of a checkout against the rows that its sale has.
//!
//! Owns the points of these curves. They show shapes: the table is made of more and longer samples.

use crate::load::{Expected, Load, Mode};
use crate::machine;
use crate::report::{median, quantile, thousands};
use crate::requests::Requests;
use crate::servers::Servers;
use crate::subjects::{Kind, PLENTY, Sale, Subject};
use crate::svg::Line;
use crate::workloads::{Ask, Extent, Meter, Workload};
use std::time::Duration;

/// Connections of the curves' points.
pub const CONNECTIONS: [usize; 6] = [10, 50, 200, 500, 1_000, 2_000];

/// Throughput and p99 (ms) of *sell* and *sold out* against connections: at each number of connections, the programs in
/// turn, and the medians.
pub fn connections(
    servers: &mut Vec<Servers>,
    subject: &dyn Fn(Kind) -> Subject,
    places: &[usize],
    extent: Extent,
) -> Result<(Vec<Line>, Vec<Line>), String> {
    let asked = [
        ("sell", Ask::Sell, [subject(Kind::Service), subject(Kind::Axum)]),
        ("sold out", Ask::SoldOut, [subject(Kind::Service), subject(Kind::Hello)]),
    ];
    let line = |(name, _, subjects): &(&str, Ask, [Subject; 2])| {
        subjects.clone().map(|subject| Line { name: format!("{name}: {}", subject.name), points: Vec::new() })
    };
    let mut rates: Vec<Line> = asked.iter().flat_map(line).collect();
    let mut latencies: Vec<Line> = asked.iter().flat_map(line).collect();
    for connections in places.iter().copied() {
        let mut samples = [const { Vec::new() }; 4];
        for _ in 0..extent.rounds {
            for ((_, ask, subjects), samples) in asked.iter().zip(samples.chunks_mut(2)) {
                let (ask, mode, subjects) = (*ask, Mode::Closed { depth: 1 }, subjects.to_vec());
                let workload = Workload { name: "connections curve", ask, mode, connections, subjects };
                let round = crate::round(&workload, servers, extent)?;
                samples.iter_mut().zip(round).for_each(|(samples, sample)| samples.push(sample));
            }
        }
        for ((samples, rate), p99) in samples.iter().zip(&mut rates).zip(&mut latencies) {
            let each = median(samples.iter().map(|sample| sample.rate));
            eprintln!("  {}, {connections} connections: {} a second", rate.name, thousands(each));
            rate.points.push((connections as f64, each));
            p99.points.push((connections as f64, median(samples.iter().map(|sample| quantile(&sample.latency, 0.99)))));
        }
    }
    Ok((rates, latencies))
}

/// CPU of service, Redis and Postgres a checkout while one sale grows to `rows`.
pub fn rows(servers: &mut Servers, service: &Subject, rows: u64, extent: Extent) -> Result<Vec<Line>, String> {
    servers.renew();
    let running = service.start(servers, Sale { items: PLENTY, user_limit: PLENTY }, extent.workers)?;
    let requests = Requests::checkouts(200_000, 2);
    let expected = [Expected { status: 200, body: "{\"code\":\"" }];
    let load = Load {
        address: running.address,
        connections: 200,
        threads: extent.threads,
        mode: Mode::Closed { depth: 1 },
        requests: &requests,
        from: 0,
        duration: Some(Duration::from_secs_f64(extent.seconds)),
        expected: &expected,
        keep_codes: false,
    };
    let pids = [running.pid(), servers.redis().pid(), servers.postgres_pid()];
    let mut lines = ["service", "Redis", "Postgres"].map(|name| Line { name: name.into(), points: Vec::new() });
    let mut sold = 0;
    while sold < rows {
        machine::settle(&pids);
        let meter = Meter::start(pids);
        let heard = load.run()?;
        let (cpu, _) = meter.each(heard.count());
        let middle = sold as f64 + heard.count() as f64 / 2.0;
        for (line, cpu) in lines.iter_mut().zip(cpu.into_iter().skip(1)) {
            line.points.push((middle, cpu));
        }
        sold += heard.count();
        eprintln!("  {sold} rows: {:.0} a second", heard.rate());
    }
    running.rows(servers, "checkout_attempts", sold + 1, 0)?;
    Ok(lines.into())
}
