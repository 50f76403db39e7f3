//! What the tests stand on: servers, the instance, a client, a history and its audit.

pub mod app;
pub mod audit;
pub mod clock;
pub mod history;
pub mod http;
pub mod ledger;
mod postgres_server;
pub mod process;
pub mod proxy;
mod redis_server;
mod selftest;
mod selftest_audit;
pub mod servers;
