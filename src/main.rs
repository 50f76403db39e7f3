//! The program: reads the settings, picks the backends, starts and stops everything in order.
//!
//! Owns the exit code. Invariant: an error on the way to the start is one line on stderr. Leaves starting and stopping to
//! `run`, which alone names concrete backends.

mod run;

use flashsale::admin::client;
use flashsale::config::{Config, HealthCheck};
use run::Failure;
use std::process::ExitCode;

/// The exit code of a wrong setting, which clap uses too: a supervisor should not start again with the same settings.
const WRONG_SETTING: u8 = 2;

fn main() -> ExitCode {
    if let Some(check) = HealthCheck::asked_for() {
        return tell_health(&check);
    }
    let (why, code) = match Config::read().map_err(Failure::Setting).and_then(run::run) {
        Ok(code) => return code,
        Err(Failure::Setting(why)) => (why, ExitCode::from(WRONG_SETTING)),
        Err(Failure::Start(why)) => (why, ExitCode::FAILURE),
    };
    // One line, even if a driver's message has several.
    eprintln!("flashsale: {}", why.lines().collect::<Vec<_>>().join(" "));
    code
}

/// Prints the instance's health. Succeeds if it can sell, or, with `--live`, if it answers at all.
fn tell_health(check: &HealthCheck) -> ExitCode {
    match client::get(check.address(), "/health") {
        Ok(answer) => {
            println!("{}", answer.body);
            let healthy = answer.status == 200 || (check.live && answer.status == 503);
            if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("flashsale: {why}");
            ExitCode::FAILURE
        }
    }
}
