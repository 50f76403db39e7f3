//! The program: reads the settings, picks the backends, starts and stops everything in order.
//!
//! Alone names concrete backends. Refuses to know what a request means.

mod run;

use flashsale::config::Config;
use std::process::ExitCode;

fn main() -> ExitCode {
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
