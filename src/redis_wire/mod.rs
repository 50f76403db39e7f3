//! One pipelined connection to Redis per worker.
//!
//! Owns the wire (RESP2), the connection's life and its wake-ups. Refuses to know sales and scripts: what rides on a
//! connection is a [`pipeline::Protocol`]. Plain threads use the crate `redis` instead.

pub mod endpoint;
pub mod pipeline;
pub mod resp;
