//! Samples into tables and pictures.
//!
//! Owns medians, ratios and the writing of both. A ratio of rates is the median over all slices, each of which is put beside
//! the other program's slice of the same turn: what changes slowly on the machine cancels out. CPU time
//! comes in ticks that are too coarse for a slice, so its ratio is the median over the rounds.

use crate::floors::Floor;
use crate::svg::{self, Axis, Line};
use crate::workloads::{SaleFigures, Sample};
use hdrhistogram::Histogram;
use std::fmt::Write;

/// The samples of one workload: for each of its subjects, one a round.
pub struct Measured {
    pub workload: String,
    pub subjects: Vec<(String, Vec<Sample>)>,
}

/// The middle of `values`; of an even number, the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The latency in milliseconds that a share of the requests is below.
pub fn quantile(latency: &Histogram<u64>, share: f64) -> f64 {
    latency.value_at_quantile(share) as f64 / 1e3
}

/// A count with its thousands set apart.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The ratio of two programs' rates: the median over the slices.
fn rate_ratio(first: &[Sample], other: &[Sample]) -> f64 {
    let rounds = first.iter().zip(other);
    median(rounds.flat_map(|(a, b)| a.rates.iter().zip(&b.rates).map(|(a, b)| a / b)))
}

/// The ratio of two programs' own CPU time a request: the median over the rounds.
fn cpu_ratio(first: &[Sample], other: &[Sample]) -> f64 {
    median(first.iter().zip(other).map(|(a, b)| a.cpu[1] / b.cpu[1]))
}

/// The head of the table of all workloads.
pub const HEAD: &str = "\
| workload | program | requests a second (lowest to highest) | first ÷ this | p50, p99, p99.9 in ms | CPU µs a request: load, program, Redis, Postgres | first ÷ this |
|---|---|---|---|---|---|---|
";

/// A workload's rows of the table.
pub fn rows(measured: &Measured) -> String {
    let mut out = String::new();
    let first = &measured.subjects[0].1;
    for (at, (name, samples)) in measured.subjects.iter().enumerate() {
        let all = |of: &dyn Fn(&Sample) -> f64| median(samples.iter().map(of));
        let rates = || samples.iter().map(|sample| sample.rate);
        let (low, high) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| all(&|sample| quantile(&sample.latency, share)));
        let cpu: Vec<String> = (0..4).map(|program| format!("{:.1}", all(&|sample| sample.cpu[program]))).collect();
        let (faster, dearer) = if at == 0 {
            ("".into(), "".into())
        } else {
            (format!("{:.2}", rate_ratio(first, samples)), format!("{:.2}", cpu_ratio(first, samples)))
        };
        let workload = if at == 0 { measured.workload.as_str() } else { "" };
        let _ = writeln!(
            out,
            "| {workload} | {name} | {} ({} to {}) | {faster} | {p50:.2}, {p99:.2}, {p999:.2} | {} | {dearer} |",
            thousands(all(&|sample| sample.rate)),
            thousands(low),
            thousands(high),
            cpu.join(", "),
        );
    }
    out
}

/// What *mixed* has to say besides.
pub fn sales(measured: &Measured) -> String {
    let mut out = String::new();
    for (name, samples) in &measured.subjects {
        let sales: Vec<&SaleFigures> = samples.iter().filter_map(|sample| sample.sale.as_ref()).collect();
        if sales.is_empty() {
            continue;
        }
        let sold_out = median(sales.iter().map(|sale| sale.sold_out_ms));
        let [p50, p99] = [0.5, 0.99].map(|share| median(sales.iter().map(|sale| quantile(&sale.granted, share))));
        let _ = writeln!(
            out,
            "- {}, {name}: the last of 10,000 items was taken after {sold_out:.0} ms; what was granted took {p50:.1} ms \
             (p50), {p99:.1} ms (p99).",
            measured.workload
        );
    }
    out
}

/// The table of the parts by themselves.
pub fn floors(floors: &[Floor]) -> String {
    let mut out =
        String::from("| what | a second | CPU µs each: client, program, Redis, Postgres | |\n|---|---|---|---|\n");
    for floor in floors {
        let cpu: Vec<String> = floor.cpu.iter().map(|cpu| format!("{cpu:.1}")).collect();
        let _ = writeln!(out, "| {} | {} | {} | {} |", floor.what, thousands(floor.rate), cpu.join(", "), floor.note);
    }
    out
}

/// CPU by program of every workload's subjects.
pub fn cpu_picture(all: &[Measured]) -> String {
    let mut rows = Vec::new();
    for measured in all {
        for (name, samples) in &measured.subjects {
            let cpu = (0..4).map(|program| median(samples.iter().map(|sample| sample.cpu[program]))).collect();
            rows.push((format!("{}: {name}", measured.workload), cpu));
        }
    }
    svg::bars(
        "CPU time by program",
        "microseconds a request",
        &["load generator", "program", "Redis", "Postgres"],
        &rows,
    )
}

/// The latencies of some workloads' subjects, as far as the last thousandth.
pub fn latency_picture(all: &[Measured]) -> String {
    let shares = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999];
    let place = |share: f64| 1.0 / (1.0 - share);
    let mut lines = Vec::new();
    for measured in all.iter().filter(|measured| ["sell", "open loop"].contains(&measured.workload.as_str())) {
        for (name, samples) in measured.subjects.iter().take(2) {
            let mut sum = crate::load::histogram();
            samples.iter().for_each(|sample| sum.add(&sample.latency).expect("one shape"));
            let fine = (0..=40).map(|step| 1.0 - 10f64.powf(-f64::from(step) / 10.0));
            let points = fine.map(|share| (place(share), quantile(&sum, share).max(0.01))).collect();
            lines.push(Line { name: format!("{}: {name}", measured.workload), points });
        }
    }
    let marks = shares.map(|share| (place(share), format!("{} %", (share * 1e6).round() / 1e4))).to_vec();
    let x = Axis { label: "share of the requests that took no longer", logarithmic: true, marks };
    let y = Axis { label: "milliseconds", logarithmic: true, marks: Vec::new() };
    svg::lines("Latency", &x, &y, &lines)
}

/// One line for each subject of the curves: connections and a figure.
pub fn connections_picture(title: &str, label: &str, logarithmic: bool, lines: &[Line]) -> String {
    let mut places: Vec<f64> = lines.iter().flat_map(|line| line.points.iter().map(|(x, _)| *x)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let marks = places.into_iter().map(|place| (place, format!("{place}"))).collect();
    let x = Axis { label: "connections", logarithmic: true, marks };
    svg::lines(title, &x, &Axis { label, logarithmic, marks: Vec::new() }, lines)
}

/// Costs against the rows that the sale has.
pub fn rows_picture(lines: &[Line]) -> String {
    let x = Axis { label: "rows of the sale", logarithmic: false, marks: Vec::new() };
    let y = Axis { label: "CPU microseconds a checkout", logarithmic: false, marks: Vec::new() };
    svg::lines("Cost of a checkout as the sale grows", &x, &y, lines)
}
