//! Throughput and p99 against connections, and the cost of a checkout against the rows that its sale has.
//!
//! Owns the points of these curves; single samples, so they show shapes, and the table shows figures.

use crate::load::{Expected, Load, Mode};
use crate::machine;
use crate::report::quantile;
use crate::requests::Requests;
use crate::servers::Servers;
use crate::subjects::{Kind, PLENTY, Sale, Subject};
use crate::svg::Line;
use crate::workloads::{Ask, Extent, Meter, Workload};
use std::time::Duration;

/// Connections of the curves' points.
pub const CONNECTIONS: [usize; 6] = [10, 50, 200, 500, 1_000, 2_000];

/// Throughput and p99 (ms) of *sell* and *sold out* against connections; `None` for what the server refuses.
pub fn connections(
    servers: &mut Servers,
    subject: &dyn Fn(Kind) -> Subject,
    places: &[usize],
    extent: Extent,
) -> Result<(Vec<Line>, Vec<Line>), String> {
    let (mut rates, mut latencies) = (Vec::new(), Vec::new());
    for (name, ask, kind) in [
        ("sell", Ask::Sell, Kind::Service),
        ("sell", Ask::Sell, Kind::Axum),
        ("sold out", Ask::SoldOut, Kind::Service),
        ("sold out", Ask::SoldOut, Kind::Hello),
    ] {
        let subject = subject(kind);
        let name = format!("{name}: {}", subject.name);
        let (mut rate, mut p99) = (Vec::new(), Vec::new());
        for connections in places.iter().copied() {
            let mode = Mode::Closed { depth: 1 };
            let workload = Workload { name: "connections curve", ask, mode, connections, subjects: Vec::new() };
            let sample = workload.sample(servers, &subject, extent)?;
            eprintln!("  {name}, {connections} connections: {:.0} a second", sample.rate);
            rate.push((connections as f64, sample.rate));
            p99.push((connections as f64, quantile(&sample.latency, 0.99)));
        }
        rates.push(Line { name: name.clone(), points: rate });
        latencies.push(Line { name, points: p99 });
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
        duration: Some(Duration::from_secs_f64(extent.seconds)),
        expected: &expected,
        keep_codes: false,
    };
    let pids = [running.pid(), servers.redis().pid(), servers.postgres_pid()];
    let mut lines = ["service", "Redis", "Postgres"].map(|name| Line { name: name.into(), points: Vec::new() });
    let (mut sold, mut unanswered) = (0, 0);
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
        unanswered += 200;
        eprintln!("  {sold} rows: {:.0} a second", heard.rate());
    }
    running.rows(servers, "checkout_attempts", sold + 1, unanswered)?;
    Ok(lines.into())
}
