//! A flash-sale engine.
//!
//! [`http`] reads a request on a worker, [`service`] turns it into a question to the [`inventory`], which decides it, and
//! [`record`] carries the facts of the decision to the writer of the [`ledger`]. The [`keeper`] opens sales and watches
//! Redis and the ledger. Owns the list of modules. Invariant: a module imports no more than the table in ARCHITECTURE.md
//! allows, which a test checks. Leaves starting and stopping to the program (`main.rs`).

#[cfg(not(target_os = "linux"))]
compile_error!("flashsale runs on Linux alone: it uses epoll, eventfd and the pinning of threads");

pub mod admin;
pub mod catalog;
pub mod code;
pub mod config;
pub mod domain;
pub mod http;
pub mod inventory;
pub mod keeper;
pub mod ledger;
pub mod record;
pub mod redis_wire;
pub mod service;
pub mod worker;
