//! A flash-sale engine.
//!
//! A request's way: [`http`] reads it on its worker, [`service`] knows what it means, [`inventory`] decides it, and
//! [`record`] hands the fact over to the [`ledger`]. The [`keeper`] opens sales and watches the servers. Who may
//! import whom stands in ARCHITECTURE.md.

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
