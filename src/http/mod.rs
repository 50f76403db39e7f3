//! HTTP/1.1: connections, and the parsing of what arrives on them.
//!
//! Owns the wire format, the connections and their time limits. Invariant: all parsing is without I/O: it takes slices and
//! returns values, and the connection reads and writes. Leaves to the services what a path means, and knows nothing of
//! sales.

mod accept;
pub mod answers;
pub mod body;
mod buffers;
mod connection;
pub mod listen;
pub mod query;
mod reject;
pub mod request;
pub mod response;
pub mod server;
pub mod service;
mod side;
mod stream;
mod target;
