//! HTTP/1.1 as bytes: what a request says, how long its body is, what its parameters are.
//!
//! Owns the wire format. Everything here that parses is pure: it takes slices and gives values, and leaves reading and
//! writing to its caller. Refuses to know sales, stock, ledgers and what any path means.

pub mod body;
pub mod query;
pub mod request;
