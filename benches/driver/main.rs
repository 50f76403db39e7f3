//! The whole service under load, beside programs to compare it with: `benches/saturation`.
//!
//! Owns the arguments and the order of the run. In every workload the programs run side by side and
//! take the load in turn, A B B A, each on servers that this program starts itself; each answer is checked, and the run fails at the first wrong one. What it prints is
//! Markdown; the pictures are SVGs. Everything runs on this machine, so the generator takes its share of the CPUs: the
//! figures of two programs can be compared with each other, and not with those of another set-up.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod curves;
mod floors;
mod load;
mod machine;
mod report;
mod requests;
mod servers;
mod subjects;
mod svg;
mod workloads;

use clap::Parser;
use report::Measured;
use servers::Servers;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;
use subjects::{Kind, Subject};
use workloads::{Extent, Workload};

/// Runs every workload against its references and prints the table. Called by benches/saturation, which builds everything.
#[derive(Parser)]
#[command(name = "saturation")]
struct Arguments {
    /// Short samples and few rounds: for a look, not for a figure
    #[arg(long)]
    quick: bool,
    /// Checks the answers with a few hundred requests for each program and workload; measures nothing
    #[arg(long)]
    test: bool,
    /// Only this workload (or `curves`, `floors`); may be repeated
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<String>,
    /// Another build of the service to compare with, in place of all references
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
    /// Samples of each program in each workload [default: 7, 3 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Seconds of a sample [default: 3, 1 with --quick]
    #[arg(long)]
    seconds: Option<f64>,
    /// Threads of the load generator [default: one a CPU]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=128))]
    threads: Option<u16>,
    /// WORKERS of each program [default: one a CPU]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=128))]
    workers: Option<u16>,
    /// Requests a second of the open loop
    #[arg(long, default_value_t = 25_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: u32,
    /// Where the table and the pictures are written [default: saturation in the target folder]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl Arguments {
    fn extent(&self) -> Extent {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (rounds, seconds, codes) = match (self.test, self.quick) {
            (true, _) => (1, 0.2, 400),
            (_, true) => (3, 1.0, 60_000),
            _ => (7, 3.0, 200_000),
        };
        Extent {
            threads: self.threads.map_or(cpus, usize::from),
            workers: self.workers.map(usize::from),
            rounds: self.rounds.map_or(rounds, usize::from),
            seconds: self.seconds.unwrap_or(seconds).max(0.05),
            codes,
            test: self.test,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// The folder of the programs of this build, and the repository's.
struct Places {
    examples: PathBuf,
    root: PathBuf,
}

impl Places {
    fn find() -> Places {
        let here = std::env::current_exe().expect("the path of this program");
        let examples = here.parent().expect("its folder").to_owned();
        Places { examples, root: Path::new(env!("CARGO_MANIFEST_DIR")).to_owned() }
    }

    fn subject(&self, kind: Kind) -> Subject {
        let example = |name: &str| (name.to_owned(), self.examples.join(name));
        let service = self.examples.with_file_name("flashsale");
        let (name, binary) = match kind {
            Kind::Service => ("flashsale".to_owned(), service),
            Kind::LedgerAck => ("flashsale, PURCHASE_ACK=ledger".to_owned(), service),
            Kind::Embedded => ("flashsale, embedded".to_owned(), service),
            Kind::Minihttp => ("our service on may_minihttp".to_owned(), example("minihttp").1),
            Kind::Axum => example("plain_axum"),
            Kind::Hello => ("may_minihttp hello".to_owned(), example("hello_minihttp").1),
        };
        Subject { name, kind, binary }
    }
}

/// The workloads that are wanted, with the build that they are compared with if there is one.
fn chosen(arguments: &Arguments, places: &Places) -> Result<Vec<Workload>, String> {
    let mut all = workloads::all(&|kind| places.subject(kind), if arguments.test { 1_000 } else { arguments.rate });
    let known: Vec<&str> = all.iter().map(|workload| workload.name).chain(["curves", "floors"]).collect();
    if let Some(unknown) = arguments.only.iter().find(|only| !known.contains(&only.as_str())) {
        return Err(format!("--only {unknown}: there is {}", known.join(", ")));
    }
    all.retain(|workload| arguments.wants(workload.name));
    if let Some(binary) = &arguments.against {
        let binary = binary.canonicalize().map_err(|e| format!("--against {}: {e}", binary.display()))?;
        for workload in &mut all {
            workload.subjects.truncate(1);
            let name = format!("{}, the other build", workload.subjects[0].name);
            workload.subjects.push(Subject { name, kind: workload.subjects[0].kind, binary: binary.clone() });
        }
    }
    for subject in all.iter().flat_map(|workload| &workload.subjects) {
        if !subject.binary.is_file() {
            return Err(format!("{} is not built: use benches/saturation", subject.binary.display()));
        }
    }
    Ok(all)
}

/// Servers for each of `count` programs that run side by side; they are started when they are first needed.
fn enough(servers: &mut Vec<Servers>, count: usize, test: bool) -> &mut [Servers] {
    while servers.len() < count {
        servers.push(Servers::start(test));
    }
    &mut servers[..count]
}

/// A round; a new one if the machine was so slow that a program refused to decide (503), three at most.
fn round(workload: &Workload, servers: &mut Vec<Servers>, extent: Extent) -> Result<Vec<workloads::Sample>, String> {
    let servers = enough(servers, workload.subjects.len(), extent.test);
    for _ in 0..2 {
        match workload.round(servers, extent) {
            Err(why) if why.contains("\"unavailable\"") => eprintln!("saturation: taken again: {why}"),
            other => return other,
        }
    }
    workload.round(servers, extent)
}

fn measure(workload: &Workload, servers: &mut Vec<Servers>, extent: Extent) -> Result<Measured, String> {
    let mut subjects: Vec<(String, Vec<workloads::Sample>)> =
        workload.subjects.iter().map(|subject| (subject.name.clone(), Vec::new())).collect();
    for number in 1..=extent.rounds {
        for (sample, (name, samples)) in round(workload, servers, extent)?.into_iter().zip(&mut subjects) {
            let cpu: Vec<String> = sample.cpu.iter().map(|cpu| format!("{cpu:.1}")).collect();
            let (p99, rate) = (report::quantile(&sample.latency, 0.99), report::thousands(sample.rate));
            let stolen =
                if sample.stolen > 0.01 { format!(", {:.0} % stolen", sample.stolen * 100.0) } else { String::new() };
            eprintln!(
                "  {number}/{} {}: {name}: {rate} a second, p99 {p99:.2} ms, CPU {}{stolen}",
                extent.rounds,
                workload.name,
                cpu.join(" ")
            );
            samples.push(sample);
        }
    }
    Ok(Measured { workload: workload.name.to_owned(), subjects })
}

fn draw_curves(arguments: &Arguments, places: &Places, servers: &mut Vec<Servers>, out: &Path) -> Result<(), String> {
    let extent = arguments.extent();
    let rounds = if arguments.quick { 1 } else { extent.rounds.min(3) };
    let short = Extent { seconds: extent.seconds.min(2.0), rounds, ..extent };
    let few = arguments.test || arguments.quick;
    let rows = if arguments.test {
        1
    } else if few {
        300_000
    } else {
        3_000_000
    };
    let connections: &[usize] = if arguments.test { &curves::CONNECTIONS[..1] } else { &curves::CONNECTIONS };
    let (rates, latencies) = curves::connections(servers, &|kind| places.subject(kind), connections, short)?;
    let servers = &mut enough(servers, 1, extent.test)[0];
    let costs = curves::rows(servers, &places.subject(Kind::Service), rows, short)?;
    for (name, picture) in [
        ("connections-throughput", report::connections_picture("Throughput", "requests a second", false, &rates)),
        (
            "connections-p99",
            report::connections_picture("99 % of the answers came within", "milliseconds", true, &latencies),
        ),
        ("rows", report::rows_picture(&costs)),
    ] {
        write(out, &format!("{name}.svg"), &picture)?;
    }
    Ok(())
}

fn measure_floors(arguments: &Arguments, places: &Places, servers: &mut Servers) -> Result<String, String> {
    let count = if arguments.test {
        20_000
    } else if arguments.quick {
        300_000
    } else {
        1_000_000
    };
    let (service, extent) = (places.subject(Kind::Service), arguments.extent());
    let mut floors = Vec::new();
    for batch in [1, 32] {
        floors.push(floors::redis_alone(servers, &service, batch, count)?);
    }
    for batch in [1_000, 10_000] {
        floors.push(floors::postgres_alone(servers, &service, batch, count)?);
    }
    for kind in [Kind::Service, Kind::Axum] {
        floors.push(floors::by_wrk(servers, &places.subject(kind), &places.root, extent)?);
    }
    Ok(report::floors(&floors))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), String> {
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(folder.join(name), text))
        .map_err(|e| format!("{}: {e}", folder.display()))
}

/// When, where, with what.
fn provenance() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let command: Vec<String> = std::env::args().skip(1).collect();
    format!(
        "{}, `benches/saturation{}{}`, {}, {}, {}, commit {}.\n",
        said("date", &["-u", "+%-d %B %Y %H:%M UTC"]),
        if command.is_empty() { "" } else { " " },
        command.join(" "),
        machine::describe(),
        machine::version(&servers::in_path("redis-server"), "--version").split(" sha=").next().unwrap_or_default(),
        machine::version(&servers::postgres("postgres"), "--version"),
        said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]),
    )
}

/// Every connection is a descriptor here and one in the service.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let (places, extent, begun) = (Places::find(), arguments.extent(), Instant::now());
    let target = places.examples.ancestors().nth(2).unwrap_or(&places.root);
    // A test must not take the place of figures.
    let default = target.join(if extent.test { "saturation-test" } else { "saturation" });
    let out = arguments.out.clone().unwrap_or(default);
    let workloads = chosen(arguments, &places)?;
    raise_file_limit();
    let mut servers = Vec::new();
    let mut text = format!("{}\n{}", provenance(), report::HEAD);
    let (mut all, mut sales) = (Vec::new(), String::new());
    for workload in &workloads {
        let measured = measure(workload, &mut servers, extent)?;
        text += &report::rows(&measured);
        sales += &report::sales(&measured);
        all.push(measured);
    }
    text += &format!("\n{sales}");
    let alone = arguments.against.is_none();
    if alone && arguments.wants("floors") {
        text += &format!("\n{}", measure_floors(arguments, &places, &mut enough(&mut servers, 1, extent.test)[0])?);
    }
    if alone && arguments.wants("curves") {
        draw_curves(arguments, &places, &mut servers, &out)?;
    }
    if !all.is_empty() {
        write(&out, "cpu.svg", &report::cpu_picture(&all))?;
    }
    if all.iter().any(|measured| ["sell", "open loop"].contains(&measured.workload.as_str())) {
        write(&out, "latency.svg", &report::latency_picture(&all))?;
    }
    let took = begun.elapsed().as_secs();
    text += &format!(
        "\n{} rounds of {} s; the whole run took {} min {} s.\n",
        extent.rounds,
        extent.seconds,
        took / 60,
        took % 60
    );
    write(&out, "table.md", &text)?;
    if extent.test {
        println!("saturation: all answers are as they should be");
        return Ok(());
    }
    println!("{text}");
    eprintln!("saturation: the table and the pictures are in {}", out.display());
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("saturation: {why}");
            ExitCode::FAILURE
        }
    }
}
