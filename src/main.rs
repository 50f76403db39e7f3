//! The program: reads the settings, picks the backends, starts and stops everything in order.
//!
//! Alone names concrete backends. Refuses to know what a request means.

mod run;

use flashsale::admin::client;
use flashsale::config::{Config, HealthCheck};
use run::Failure;
use std::process::ExitCode;

/// The exit code of a wrong setting, clap's too: a supervisor need not try the same settings again.
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
    // One line, whatever a driver had to say.
    eprintln!("flashsale: {}", why.lines().collect::<Vec<_>>().join(" "));
    code
}

/// Prints what the instance says of its health. Succeeds if it can sell, or, where only that is asked, if it answers.
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
