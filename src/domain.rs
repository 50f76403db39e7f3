//! The types of a flash sale: ids, sales, holds, requests, outcomes, records.
//!
//! Owns the types that all other modules exchange, a file for each kind; this file gives them their common name. Invariant: it
//! imports nothing of this crate. Leaves HTTP, Redis, SQL, threads and clocks to others.

mod hold;
mod id;
mod record;
mod request;
mod sale;

pub use hold::{HoldFacts, HoldKey, HoldNumber, HoldRow, HoldState};
pub use id::{Id, IdError, MAX_ID_BYTES};
pub use record::{EMBEDDED_EPOCH, Record, RecordKind, RecordRef, Records};
pub use request::{Outcome, Request};
pub use sale::{NamedSale, SaleId, Terms, Utc};
