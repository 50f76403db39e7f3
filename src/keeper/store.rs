//! The keeper's connection to Redis, for plain threads, and the scanning of keys and holds.
//!
//! Owns the connection. Invariant: a connection on which a call failed is not used again. Leaves the single calls to
//! [`super::redis_store`], and deciding when to call to the keeper.

use super::error::KeeperError;
use super::merge::HoldFacts;
use crate::domain::{HoldNumber, SaleId};
use crate::inventory::redis::scripts::chunk::{self, ChunkId};
pub use crate::inventory::redis::scripts::condition::Condition;
pub use crate::inventory::redis::scripts::counts::Counts;
use crate::inventory::redis::scripts::is_own_failure;
use crate::inventory::redis::scripts::layout::{HOLD_FIELDS, STATE_KEYS, read_hold, sale_of_state_key, state_key};
use crate::redis_wire::endpoint::RedisEndpoint;
use redis::{Cmd, Connection, FromRedisValue, RedisError, RedisResult, ServerError, cmd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Fields (of chunks of holds, users) or entries that are read or written in one command: Redis is busy for about a millisecond.
pub(super) const CHUNK: usize = 500;
/// Fields that are read in one command of a sale that does not sell: a dozen milliseconds, and a twentieth of the round trips.
pub(super) const WIDE_CHUNK: usize = 10_000;
/// Keys that are looked through in one command.
const SCAN: usize = 1_000;

/// A reply in the words of a message.
pub(super) fn words(reply: &[u8]) -> String {
    String::from_utf8_lossy(reply).into_owned()
}

/// Whether a script failed because it cannot read a sale's state.
fn is_unreadable(error: RedisError) -> bool {
    let is_own =
        |error: &ServerError| is_own_failure(&format!("{} {}", error.code(), error.details().unwrap_or_default()));
    error.into_server_errors().is_some_and(|errors| errors.iter().any(|(_, error)| is_own(error)))
}

/// A connection that was not used for this long is tried first: the shortest `timeout` of Redis is a second.
const IDLE: Duration = Duration::from_millis(500);

/// The keeper's connection to Redis. One that failed is made anew on the next call.
pub struct Store {
    pub(super) target: Arc<RedisEndpoint>,
    timeout: Duration,
    pub(super) connection: Option<Connection>,
    /// When the connection was used last.
    used: Instant,
    /// The identity of the ledger whose sales these are, where it is known.
    pub(super) ledger: Option<String>,
}

impl Store {
    /// Connects on the first call; each call takes `timeout` at most.
    pub fn new(target: Arc<RedisEndpoint>, timeout: Duration) -> Store {
        Store { target, timeout, connection: None, used: Instant::now(), ledger: None }
    }

    pub(super) fn run<T>(&mut self, work: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T, KeeperError> {
        // Redis may have ended a connection that was idle (`timeout`). TIME shows that, and changes nothing.
        if self.used.elapsed() > IDLE
            && let Some(connection) = &mut self.connection
            && cmd("TIME").exec(connection).is_err()
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            // The address may have moved with a failover.
            self.target.resolve()?;
            self.connection = Some(self.target.connect(self.timeout)?);
        }
        let Some(connection) = &mut self.connection else { return Err(KeeperError::redis("no connection")) };
        let done = work(connection);
        self.used = Instant::now();
        done.map_err(|e| {
            // Whatever it was, what follows on this connection may belong to the call that failed.
            self.connection = None;
            let why = format!("Redis at {}: {e}", self.target.name);
            if is_unreadable(e) { KeeperError::Unreadable(why) } else { KeeperError::Redis(why) }
        })
    }

    pub(super) fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, KeeperError> {
        self.run(|connection| command.query(connection))
    }

    /// The sales that have a state in Redis, those of other ledgers too.
    pub(super) fn sales_with_states(&mut self) -> Result<Vec<SaleId>, KeeperError> {
        let (mut cursor, mut found) = (0u64, Vec::new());
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(STATE_KEYS).arg("COUNT").arg(SCAN).arg("TYPE").arg("hash");
            let (next, keys): (u64, Vec<Vec<u8>>) = self.ask(&scan)?;
            found.extend(keys.iter().filter_map(|key| sale_of_state_key(key)));
            cursor = next;
            if next == 0 {
                break;
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    pub(super) fn scan_holds(
        &mut self,
        sale: SaleId,
        cursor: u64,
        count: usize,
        each: &mut dyn FnMut(u64, HoldFacts),
    ) -> Result<(u64, bool), KeeperError> {
        let mut scan = cmd("HSCAN");
        scan.arg(state_key(sale)).arg(cursor).arg("MATCH").arg(HOLD_FIELDS).arg("COUNT").arg(count);
        type Found = (u64, Vec<(Vec<u8>, Vec<u8>)>);
        let found = self.run(|connection| match scan.query::<Found>(connection) {
            Err(e) if e.code() == Some("WRONGTYPE") => Ok(None),
            found => found.map(Some),
        })?;
        // A key of another type has no holds, and is not to be trusted.
        let Some((next, found)) = found else { return Ok((0, false)) };
        let mut whole = true;
        let mut each_of = |field: &[u8], holds: Option<Vec<(HoldNumber, HoldFacts)>>| match holds {
            Some(holds) => holds.into_iter().for_each(|(number, known)| each(number.0, known)),
            None => {
                whole = false;
                let field = String::from_utf8_lossy(field);
                tracing::error!("{}: holds in Redis cannot be read and are left out: {field}", sale.named());
            }
        };
        let (mut chunks, mut get) = (Vec::new(), cmd("HMGET"));
        get.arg(state_key(sale));
        for (field, value) in found {
            match ChunkId::of_field(&field) {
                Some(id) => {
                    get.arg(id.marks_field());
                    chunks.push((id, field, value));
                }
                None => each_of(&field, read_hold(&field, &value).map(|hold| vec![hold])),
            }
        }
        // A moment later: marks that have come meanwhile are facts, too.
        let marks: Vec<Option<Vec<u8>>> = if chunks.is_empty() { Vec::new() } else { self.ask(&get)? };
        for ((id, field, holds), marks) in chunks.iter().zip(marks) {
            each_of(field, chunk::read(*id, holds, marks.as_deref().unwrap_or_default()));
        }
        Ok((next, whole))
    }

    /// Whether a state that names `ledger` is not this ledger's.
    pub(super) fn is_foreign(&self, ledger: Option<&str>) -> bool {
        self.ledger.as_deref().zip(ledger).is_some_and(|(ours, theirs)| ours != theirs)
    }
}
