//! The keeper: opens sales ahead of their time, watches the servers, and rebuilds what was lost.
//!
//! The one plain thread that talks to both the inventory and the ledger. Owns the view that the workers sell by. Invariant: nothing is
//! sold while a loss is suspected. [`distributed`] and [`embedded`] only sequence; each concern has a file of its own. Leaves requests
//! to the service, and the forms of Redis' keys and scripts to the inventory.

pub mod build;
pub mod calendar;
mod clock;
pub mod distributed;
pub mod embedded;
pub mod error;
mod late_records;
mod maintenance;
mod membership;
pub mod merge;
mod milestones;
mod open_sales;
pub mod own_work;
mod owner;
mod present;
mod rebuild;
mod reconcile;
mod recovery;
mod redis_store;
mod refusals;
mod replan;
pub mod sale_store;
mod server_check;
mod servers;
pub mod store;
pub mod time;
