//! What the parts can do by themselves: Redis deciding our script, Postgres taking our rows, and `wrk` as the generator.
//!
//! Owns three measurements that need other programs: `redis-benchmark`, `psql` and `wrk`. They bound what the service can
//! reach, and show that our own generator measures what wrk does.

use crate::machine;
use crate::servers::{self, Servers, client, in_path};
use crate::subjects::{PLENTY, Sale, Subject};
use crate::workloads::{Extent, Meter};
use flashsale::code::Codes;
use flashsale::domain::{HoldNumber, Id, Record, RecordKind, Records, SaleId};
use flashsale::inventory::embedded::wall_clock_ms;
use flashsale::inventory::redis::scripts::{Header, checkout};
use flashsale::ledger::postgres::copy::{HOLDS, Rows};
use flashsale::redis_wire::resp::{self, Reply};
use redis::Cmd;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// A row of the table.
pub struct Floor {
    pub what: String,
    /// Checkouts or rows a second.
    pub rate: f64,
    /// CPU microseconds each: client, service, Redis, Postgres.
    pub cpu: [f64; 4],
    pub note: String,
}

const SALE: Sale = Sale { items: PLENTY, user_limit: PLENTY };

/// Calls that `redis-benchmark` keeps under way.
const PIPELINE: &str = "64";
/// What `redis-benchmark` replaces by a random number, and how many there are: repeats are rare.
const RANDOM: &str = "__rand_int__";
const RANDOMS: &str = "999999999999";
/// The holds' chunks that stand for random ones until then, of instance 0.
const STAND_IN: u64 = 777_777_777_777;

/// Our checkout script under `redis-benchmark -P 64`, with `batch` checkouts a call.
pub fn redis_alone(servers: &mut Servers, service: &Subject, batch: usize, checkouts: usize) -> Result<Floor, String> {
    servers.renew();
    let running = service.start(servers, SALE, None)?;
    let mut ledger = client(&servers.dsn());
    let query =
        "SELECT (SELECT sale_id FROM sales WHERE starts_at <= now() AND now() < ends_at), number FROM ledger_fence";
    let row = ledger.query_one(query, &[]).map_err(|e| format!("the sale that is on: {e}"))?;
    let (sale, epoch) = (SaleId(row.get::<_, i64>(0) as u64), row.get::<_, i64>(1) as u64);
    // From here on Redis is alone: the service would take these holds for ones that the ledger lacks.
    drop(running);
    let mut connection = servers.redis().connection();
    let sha: String =
        redis::cmd("SCRIPT").arg("LOAD").arg(checkout::TEXT).query(&mut connection).map_err(|e| e.to_string())?;
    // An hour ahead: Redis' own clock decides.
    let header = Header { sha: &sha, sale, epoch, latest_ms: wall_clock_ms() + 3_600_000 };
    let id = |text: String| -> Id { text.parse().expect("an id") };
    let ids: Vec<(Id, Id)> = (0..batch).map(|at| (id(format!("{}", 100_000 + at)), id(format!("{at}")))).collect();
    let call = |chunk: u64| {
        let (mut cmd, mut out) = (Cmd::new(), Vec::new());
        let requests = ids.iter().map(|(user, item)| (user, item));
        checkout::call(&mut cmd, &header, HoldNumber(8 * chunk), requests, &mut out);
        words(&out)
    };
    let mut decided = |chunk: u64| {
        let mut cmd = Cmd::new();
        for word in call(chunk) {
            cmd.arg(word);
        }
        let reply: Vec<u8> = cmd.query(&mut connection).map_err(|e| format!("the script: {e}"))?;
        let held = checkout::read(&reply, batch).and_then(Result::ok);
        let all = held.is_some_and(|held| held.marks().all(|mark| mark == Some(checkout::Mark::Held)));
        if all { Ok(()) } else { Err(format!("the script answers {}", String::from_utf8_lossy(&reply))) }
    };
    decided(1)?;
    let mut benchmark = Command::new(in_path("redis-benchmark"));
    benchmark.args([
        "-h",
        "127.0.0.1",
        "-p",
        &servers.redis().port().to_string(),
        "-P",
        PIPELINE,
        "-c",
        "4",
        "-q",
        "-r",
        RANDOMS,
    ]);
    benchmark.args(["-n", &(checkouts / batch).to_string()]);
    // Each chunk's field gets a number of its own. The queue's entry, which names the chunks, is not looked at before it expires.
    benchmark.args(call(STAND_IN).iter().map(|word| match word.strip_prefix("c0:") {
        Some(_) => format!("c0:{RANDOM}"),
        None => word.clone(),
    }));
    let meter = Meter::start([servers.redis().pid(), servers.redis().pid(), servers.postgres_pid()]);
    let begun = Instant::now();
    servers::run(&mut benchmark);
    let elapsed = begun.elapsed().as_secs_f64();
    let (mut cpu, _) = meter.each(checkouts as u64);
    cpu[1] = 0.0;
    decided(1_000_000_000)?;
    let what = format!("redis-benchmark -P {PIPELINE}: our script, {batch} a call");
    Ok(Floor { what, rate: checkouts as f64 / elapsed, cpu, note: String::new() })
}

/// The words of a packed command.
fn words(call: &[u8]) -> Vec<String> {
    let Ok(Some((Reply::Array(count, body), _))) = resp::parse(call) else { panic!("not a command") };
    let text = |reply| match reply {
        Reply::Bulk(word) => String::from_utf8_lossy(word).into_owned(),
        other => panic!("{other:?}"),
    };
    resp::elements(count, body).map(text).collect()
}

/// COPY of `rows` holds by `psql`, as binary as the writer's, in transactions of `batch` rows.
pub fn postgres_alone(servers: &mut Servers, service: &Subject, batch: usize, rows: usize) -> Result<Floor, String> {
    servers.renew();
    // It makes the tables.
    drop(service.start(servers, SALE, None)?);
    let folder = servers::folder();
    let mut script = String::new();
    let (codes, mut encoded) = (Codes::new(&[7; 16]), Rows::default());
    for part in 0..rows / batch {
        let mut records = Records::new(SaleId(1), 1);
        for at in 0..batch {
            let number = (part * batch + at) as u64;
            let id = |text: String| -> Id { text.parse().expect("an id") };
            let (user, item) = (id(format!("{}", number % 1_000_000)), id(format!("{}", number % 10_000)));
            let (at_ms, kind) = (1_700_000_000_000 + number / 60, RecordKind::Hold);
            records.push(&Record { kind, number: HoldNumber(number), user, item, at_ms, expires_ms: at_ms + 300_000 });
        }
        encoded.encode(&[&records], &codes).map_err(|e| e.to_string())?;
        let file = folder.path().join(format!("{part}"));
        std::fs::write(&file, &encoded.holds.bytes).map_err(|e| format!("{}: {e}", file.display()))?;
        script += &format!("\\copy ledger_holds ({HOLDS}) FROM '{}' WITH (FORMAT binary)\n", file.display());
    }
    let file = folder.path().join("script");
    std::fs::write(&file, script).map_err(|e| format!("{}: {e}", file.display()))?;
    let meter = Meter::start([servers.redis().pid(), servers.redis().pid(), servers.postgres_pid()]);
    let begun = Instant::now();
    servers::run(
        Command::new(in_path("psql")).args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &servers.dsn(), "-f"]).arg(&file),
    );
    let elapsed = begun.elapsed().as_secs_f64();
    let (mut cpu, _) = meter.each(rows as u64);
    (cpu[1], cpu[2]) = (0.0, 0.0);
    let found: i64 = client(&servers.dsn())
        .query_one("SELECT count(*) FROM ledger_holds WHERE sale_id = 1", &[])
        .map_err(|e| e.to_string())?
        .get(0);
    if found as usize != rows {
        return Err(format!("psql copied {rows} rows, and there are {found}"));
    }
    let what = format!("COPY from psql, {batch} rows a transaction");
    Ok(Floor { what, rate: rows as f64 / elapsed, cpu, note: String::new() })
}

/// *sell* with `wrk` and the script that the load test uses.
pub fn by_wrk(servers: &mut Servers, subject: &Subject, root: &Path, extent: Extent) -> Result<Floor, String> {
    servers.renew();
    let running = subject.start(servers, SALE, extent.workers)?;
    let folder = servers::folder();
    let report = folder.path().join("report");
    let mut wrk = Command::new(in_path("wrk"));
    wrk.args(["-t", &extent.threads.to_string(), "-c", "200", "-d", &format!("{}s", extent.seconds.ceil()), "-s"]);
    wrk.arg(root.join("wrk/random_checkout.lua")).arg(format!("http://{}", running.address)).env("REPORT", &report);
    let pids = [running.pid(), servers.redis().pid(), servers.postgres_pid()];
    machine::settle(&pids);
    let meter = Meter::start(pids);
    servers::run(&mut wrk);
    let text = std::fs::read_to_string(&report).map_err(|e| format!("wrk wrote no report: {e}"))?;
    let said: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("wrk's report: {e}"))?;
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    let granted = number(&said["answers"]["200"]);
    let (cpu, _) = meter.each(granted);
    if granted != number(&said["requests"]) {
        return Err(format!("wrk got other answers than 200: {text}"));
    }
    running.rows(servers, "checkout_attempts", granted + 1, 200)?;
    let (p50, p99) = (number(&said["latency_us"]["50"]) as f64 / 1e3, number(&said["latency_us"]["99"]) as f64 / 1e3);
    let rate = granted as f64 * 1e6 / number(&said["duration_us"]) as f64;
    let note = format!("p50 {p50:.1}, p99 {p99:.1} ms by wrk's own account");
    Ok(Floor { what: format!("sell by wrk with wrk/random_checkout.lua: {}", subject.name), rate, cpu, note })
}
