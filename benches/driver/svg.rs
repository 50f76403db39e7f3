//! Pictures as SVG: lines over a logarithmic or plain axis, and bars.
//!
//! Owns shapes, colours and the writing of text. Readable on white and on dark pages, since the background is drawn too.

use std::fmt::Write;

const WIDTH: f64 = 840.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 240.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 52.0;
const COLOURS: [&str; 6] = ["#0b6e99", "#d9730d", "#0f7b6c", "#9065b0", "#ad1a72", "#787774"];

/// One line of a chart.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// An axis.
pub struct Axis<'a> {
    pub label: &'a str,
    pub logarithmic: bool,
    /// Where it is marked, with what; empty: at round values.
    pub marks: Vec<(f64, String)>,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn begin(title: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#37352f\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    )
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(words));
}

/// A number as short as it can be said.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{} M", (value / 1e5).round() / 10.0),
        v if v >= 1e4 => format!("{} k", (value / 1e3).round()),
        v if v >= 1e3 => format!("{} k", (value / 1e2).round() / 10.0),
        v if v >= 10.0 => format!("{}", value.round()),
        _ => format!("{}", (value * 100.0).round() / 100.0),
    }
}

/// Round marks from `low` to `high`.
fn marks(axis: &Axis, low: f64, high: f64) -> Vec<(f64, String)> {
    if !axis.marks.is_empty() {
        return axis.marks.clone();
    }
    let mut found = Vec::new();
    if axis.logarithmic {
        let mut decade = 10f64.powf(low.log10().floor());
        while decade <= high * 1.001 {
            let steps = [1.0, 2.0, 5.0].map(|step| step * decade);
            found.extend(steps.into_iter().filter(|v| (low * 0.999..=high * 1.001).contains(v)));
            decade *= 10.0;
        }
    } else {
        let rough = high / 5.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough).unwrap_or(rough);
        found.extend((0..).map(|at| f64::from(at) * step).take_while(|value| *value <= high * 1.001));
    }
    found.into_iter().map(|value| (value, short(value))).collect()
}

struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, axis: &Axis, from: f64, to: f64) -> Scale {
        let (mut low, mut high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        for (value, _) in &axis.marks {
            (low, high) = (low.min(*value), high.max(*value));
        }
        if !axis.logarithmic {
            (low, high) = (0.0, high * 1.08);
        }
        Scale { low, high, logarithmic: axis.logarithmic, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let plain = |v: f64| if self.logarithmic { v.max(1e-9).ln() } else { v };
        let span = (plain(self.high) - plain(self.low)).max(1e-9);
        self.from + (self.to - self.from) * (plain(value) - plain(self.low)) / span
    }
}

/// A chart of `lines`.
pub fn lines(title: &str, x_axis: &Axis, y_axis: &Axis, lines: &[Line]) -> String {
    let mut out = begin(title, HEIGHT);
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let x = Scale::new(points().map(|(x, _)| x), x_axis, LEFT, right);
    let y = Scale::new(points().map(|(_, y)| y), y_axis, bottom, TOP);
    for (value, words) in marks(y_axis, y.low, y.high) {
        let at = y.at(value);
        let _ = writeln!(out, "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#e3e2e0\"/>");
        text(&mut out, LEFT - 6.0, at + 4.0, "end", &words);
    }
    for (value, words) in marks(x_axis, x.low, x.high) {
        let at = x.at(value);
        let _ = writeln!(out, "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#f0efed\"/>");
        text(&mut out, at, bottom + 16.0, "middle", &words);
    }
    text(&mut out, (LEFT + right) / 2.0, HEIGHT - 12.0, "middle", x_axis.label);
    text(&mut out, LEFT, TOP - 8.0, "start", y_axis.label);
    for (at, line) in lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let path: Vec<String> = line.points.iter().map(|(a, b)| format!("{:.1} {:.1}", x.at(*a), y.at(*b))).collect();
        let _ = writeln!(out, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join("L"));
        if line.points.len() < 20 {
            for (a, b) in &line.points {
                let _ =
                    writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x.at(*a), y.at(*b));
            }
        }
        let height = TOP + 10.0 + 20.0 * at as f64;
        let _ = writeln!(out, "<path d=\"M{} {height}h18\" stroke=\"{colour}\" stroke-width=\"3\"/>", right + 14.0);
        text(&mut out, right + 38.0, height + 4.0, "start", &line.name);
    }
    out + "</svg>\n"
}

/// Horizontal bars, each of several parts that are named in `parts`.
pub fn bars(title: &str, label: &str, parts: &[&str], rows: &[(String, Vec<f64>)]) -> String {
    let (left, bar) = (330.0, 20.0);
    let height = TOP + 34.0 + bar * rows.len() as f64 + BOTTOM;
    let mut out = begin(title, height);
    for (at, part) in parts.iter().enumerate() {
        let x = LEFT + 150.0 * at as f64;
        let _ =
            writeln!(out, "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{}\"/>", TOP - 8.0, COLOURS[at]);
        text(&mut out, x + 18.0, TOP + 2.0, "start", part);
    }
    let longest = rows.iter().map(|(_, values)| values.iter().sum::<f64>()).fold(1e-9, f64::max);
    let axis = Axis { label, logarithmic: false, marks: Vec::new() };
    let x = Scale::new([longest].into_iter(), &axis, left, WIDTH - 50.0);
    let (top, bottom) = (TOP + 24.0, TOP + 24.0 + bar * rows.len() as f64);
    for (value, words) in marks(&axis, 0.0, x.high) {
        let at = x.at(value);
        let _ = writeln!(out, "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#e3e2e0\"/>");
        text(&mut out, at, bottom + 16.0, "middle", &words);
    }
    text(&mut out, (left + WIDTH) / 2.0, bottom + 38.0, "middle", label);
    for (at, (name, values)) in rows.iter().enumerate() {
        let y = top + bar * at as f64;
        text(&mut out, left - 8.0, y + 14.0, "end", name);
        let mut from = 0.0;
        for (part, value) in values.iter().enumerate() {
            let (a, b) = (x.at(from), x.at(from + value));
            let _ = writeln!(
                out,
                "<rect x=\"{a:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>",
                y + 2.0,
                b - a,
                bar - 4.0,
                COLOURS[part]
            );
            from += value;
        }
        text(&mut out, x.at(from) + 6.0, y + 14.0, "start", &short((from * 10.0).round() / 10.0));
    }
    out + "</svg>\n"
}
