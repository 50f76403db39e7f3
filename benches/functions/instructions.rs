//! Runs one case a given number of times and prints nothing: what `benches/instructions` counts the instructions of.
//!
//! `instructions` lists the cases, one a line: its batch, a tab, its name. `instructions NAME TIMES` runs one.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod cases;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            cases::of("").iter().for_each(|case| println!("{}\t{}", case.batch, case.name));
            ExitCode::SUCCESS
        }
        [name, times] => run(name, times),
        _ => fail("usage: instructions [NAME TIMES]"),
    }
}

fn run(name: &str, times: &str) -> ExitCode {
    let Some(mut case) = cases::of(name).into_iter().find(|case| case.name == name) else {
        return fail(&format!("there is no case '{name}'"));
    };
    let Ok(times) = times.parse::<u64>() else { return fail(&format!("'{times}' is not a number")) };
    for _ in 0..times {
        (case.run)();
    }
    ExitCode::SUCCESS
}

fn fail(why: &str) -> ExitCode {
    eprintln!("instructions: {why}");
    ExitCode::FAILURE
}
