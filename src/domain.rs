//! The words of a flash sale: ids, sales, holds, requests, outcomes, records.
//!
//! Owns the types that every other module speaks in, a file each; here they only get their common name. Refuses to know HTTP,
//! Redis, SQL, threads and clocks; it imports nothing of this crate.

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
