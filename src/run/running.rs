//! What was started, and what stopping it needs.

use crossbeam_channel::Sender;
use flashsale::code::Codes;
use flashsale::inventory::{Inventory, SharedView};
use flashsale::record::Recorder;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Which of the two threads that use the ledger ends last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndsLast {
    /// The keeper: it places the late records that the writer passes on until it ends.
    Keeper,
    /// The writer: of two SQLite connections that are closed at the same time, neither may find itself the last one, and then the
    /// log stays beside the database.
    Writer,
}

/// The parts of a running instance behind its servers.
pub struct Running {
    /// What decides requests.
    pub inventory: Arc<dyn Inventory>,
    /// What may be sold.
    pub view: SharedView,
    /// The codes that all instances share.
    pub codes: Codes,
    /// How long a request may wait for its decision.
    pub patience: Duration,
    /// The way to the ledger.
    pub recorder: Arc<Recorder>,
    /// The thread of the ledger's writer.
    pub writer: JoinHandle<()>,
    /// The keeper's thread.
    pub keeper: JoinHandle<()>,
    /// Which of the two ends last.
    pub ends_last: EndsLast,
    /// Ends the keeper.
    pub stop_keeper: Sender<()>,
    /// The servers and files that the instance works with, for the log.
    pub what: String,
}
