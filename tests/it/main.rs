//! Black-box tests of the real binary: started by its settings, spoken to by HTTP, judged by its ledger's rows.
//!
//! One binary, so that all share one harness and one bound on what runs at once. The programs that they need are
//! installed by `tests/run`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a failed test")]
// Not every test needs every tool of the harness.
#![allow(dead_code)]

mod admin;
mod api;
mod benches;
mod catalog;
mod circles;
mod course;
mod deploy;
mod docs;
mod embedded;
mod ended;
mod ending;
mod exhaustion;
mod faults;
mod health;
mod http_raw;
mod ledger_file;
mod lifecycle;
mod operate;
mod package;
mod pipelined;
mod placement;
mod restored;
mod rolling;
mod sale;
mod settings;
mod support;
mod tidy;
mod time_limits;
mod unwritten;
