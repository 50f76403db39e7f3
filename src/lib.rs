//! A flash-sale engine.
#![warn(missing_docs)]
pub mod catalog;
pub mod code;
pub mod domain;
pub mod http;
pub mod ledger;
