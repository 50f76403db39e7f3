//! One pipelined connection to Redis per worker.
//!
//! Owns the wire (RESP2), the connection's life and its wake-ups. Invariant: no call here blocks, except those of
//! [`endpoint::RedisEndpoint`] that are marked for plain threads, which use the crate `redis`. Leaves the commands and the
//! meaning of their replies to a [`pipeline::Protocol`]; it knows neither sales nor scripts.

pub mod endpoint;
pub mod pipeline;
pub mod resp;
