//! Connections of the real HTTP server in this process, with a service that answers when a test says so.
//!
//! What is checked here: which requests of a connection are open at once, the order of their answers, and where a connection
//! ends. A test decides when each answer comes, which no test of the whole program can do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a failed test")]
// Not every tool of the client is needed here.
#![allow(dead_code)]

#[path = "../it/support/http.rs"]
mod http;
mod pipelined;
mod scripted;
