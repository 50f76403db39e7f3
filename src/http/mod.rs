//! HTTP/1.1: connections, and what their bytes say.
//!
//! Owns the wire format, and the connections that it arrives on. Everything that parses is pure: it takes slices and
//! gives values, and leaves reading and writing to [`connection`]. Refuses to know sales, stock, ledgers and what any path means.

pub mod answers;
pub mod body;
pub mod connection;
pub mod query;
pub mod request;
pub mod response;
pub mod server;
