//! The real keepers of several instances on fakes of Redis, of Postgres and of the clock, in one process.
//!
//! One thread runs at a time, and time is virtual: the same seed gives the same run. Each call of a fake is a point at which an
//! instance may be ended. What the fakes leave out: the Lua scripts (`tests/oracle.rs` compares them with the sale in memory that is
//! Redis here), SQL, the network, and the writer's own code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a failed test")]

mod ledger;
mod recovery;
mod redis;
mod shop;
mod world;
