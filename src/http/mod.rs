//! HTTP/1.1: connections, and what their bytes say.
//!
//! Owns the wire format, and the connections that it arrives on. Everything that parses is pure: it takes slices and
//! gives values, and leaves reading and writing to the connection. Leaves to others what sales, stock and ledgers are and
//! what any path means.

mod accept;
pub mod answers;
pub mod body;
mod connection;
pub mod listen;
pub mod query;
pub mod request;
pub mod response;
pub mod server;
pub mod service;
mod side;
mod target;
