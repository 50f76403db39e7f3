//! A flash-sale engine.
#![warn(missing_docs)]
pub mod code;
pub mod domain;
pub mod inventory;
pub mod ledger;
