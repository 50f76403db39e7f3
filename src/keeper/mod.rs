//! The keeper: opens sales ahead of their time, watches the servers, and rebuilds what was lost.
//!
//! The one plain thread that talks to inventory and ledger both. Owns the view that the workers sell by. Invariant:
//! nothing is sold while there is a doubt whether Redis has lost something. Refuses to know requests.

pub mod build;
pub mod calendar;
mod clock;
pub mod distributed;
pub mod embedded;
mod maintenance;
pub mod merge;
mod milestones;
mod offer;
mod opening;
pub mod owner;
mod reconcile;
mod recovery;
mod refusals;
mod replan;
mod server_check;
pub mod store;
