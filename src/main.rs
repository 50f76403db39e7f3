//! The program: reads the settings, picks the backends, starts and stops everything in order.
//!
//! Alone names concrete backends. Refuses to know what a request means.

mod run;

use flashsale::admin::client;
use flashsale::config::{Config, HealthCheck};
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(check) = HealthCheck::asked_for() {
        return tell_health(&check);
    }
    let result = Config::read().and_then(run::run);
    match result {
        Ok(code) => code,
        Err(why) => {
            // One line, whatever a driver had to say.
            eprintln!("flashsale: {}", why.lines().collect::<Vec<_>>().join(" "));
            ExitCode::FAILURE
        }
    }
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
