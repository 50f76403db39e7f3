//! Sales' states in Redis, for plain threads: reading and closing them.
//!
//! Owns the keeper's connection. Building and opening a state is [`super::build`]'s. Refuses to decide when anything of
//! it is to happen.

use super::error::KeeperError;
use super::merge::HoldFacts;
use super::sale_store::FoundState;
use super::server_check;
use crate::domain::{SaleId, Terms};
pub use crate::inventory::redis::scripts::condition::Condition;
pub use crate::inventory::redis::scripts::counts::Counts;
use crate::inventory::redis::scripts::layout::{
    HOLD_FIELDS, STATE_KEYS, entry_expires_ms, field, queue_key, read_hold, sale_of_state_key, state_key,
};
use crate::inventory::redis::scripts::{checkout, close, condition, counts, forget};
use crate::redis_wire::endpoint::RedisEndpoint;
use redis::{Cmd, Connection, FromRedisValue, Pipeline, RedisResult, Value, cmd, from_redis_value_ref};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Holds that are read or written in one command: Redis is busy for about a millisecond.
pub(super) const CHUNK: usize = 500;
/// Holds that are read in one command of a sale that does not sell: a dozen milliseconds, and a twentieth of the round trips.
const WIDE_CHUNK: usize = 10_000;
/// Keys that are looked through in one command.
const SCAN: usize = 1_000;

/// Whether Redis refused a command for the key's type; `Err` if it refused for another reason.
fn is_wrong_type(reply: &Value) -> Result<bool, KeeperError> {
    match reply {
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(true),
        Value::ServerError(error) => Err(KeeperError::Redis(format!("Redis refuses: {error}"))),
        _ => Ok(false),
    }
}

/// A reply in the words of a message.
pub(super) fn words(reply: &[u8]) -> String {
    String::from_utf8_lossy(reply).into_owned()
}

/// A connection that was not used for this long is tried first: the shortest `timeout` of Redis is a second.
const IDLE: Duration = Duration::from_millis(500);

/// The keeper's way to Redis. A connection that failed is made anew on the next call.
pub struct Store {
    target: Arc<RedisEndpoint>,
    timeout: Duration,
    connection: Option<Connection>,
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
        // Redis may have ended a connection that was idle (`timeout`): that is found out by a call that changes nothing.
        if self.used.elapsed() > IDLE
            && let Some(connection) = &mut self.connection
            && cmd("TIME").exec(connection).is_err()
        {
            self.connection = None;
        }
        if self.connection.is_none() {
            // The address may have moved with a failover.
            self.target.resolve().map_err(KeeperError::redis)?;
            self.connection = Some(self.target.connect(self.timeout).map_err(KeeperError::redis)?);
        }
        let Some(connection) = &mut self.connection else { return Err(KeeperError::redis("no connection")) };
        let done = work(connection);
        self.used = Instant::now();
        done.map_err(|e| {
            // Whatever it was, what follows on this connection may belong to the call that failed.
            self.connection = None;
            KeeperError::Redis(format!("Redis at {}: {e}", self.target.name))
        })
    }

    pub(super) fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, KeeperError> {
        self.run(|connection| command.query(connection))
    }

    /// Where it is, for messages.
    pub(super) fn name(&self) -> &str {
        &self.target.name
    }

    /// Looks the address up again for the next call: connections of today may lead elsewhere than those of yesterday.
    pub fn reconnect(&mut self) {
        self.connection = None;
    }

    /// Refuses a Redis that this service cannot rely on, with the reason, and warns of one that may lose its latest writes.
    pub fn check_server(&mut self) -> Result<(), KeeperError> {
        let info: String = self.ask(cmd("INFO").arg("everything"))?;
        let name = &self.target.name;
        if let Some(why) = server_check::refusal(&info) {
            return Err(KeeperError::Unusable { setting: "REDIS_ADDR", why: format!("Redis at {name} {why}") });
        }
        if let Some(what) = server_check::warning(&info) {
            tracing::warn!("Redis at {name} {what}");
        }
        Ok(())
    }

    /// What `sale`'s state is like for a caller of `epoch`.
    pub fn condition(&mut self, sale: SaleId, epoch: u64) -> Result<Condition, KeeperError> {
        let mut pipe = Pipeline::new();
        pipe.atomic().ignore_errors();
        condition::ask(sale).into_iter().for_each(|command| {
            pipe.add_command(command);
        });
        let found: Vec<Value> = self.run(|connection| pipe.query(connection))?;
        let [fields, length] = found.as_slice() else {
            return Err(KeeperError::redis("Redis answers a transaction with another"));
        };
        if is_wrong_type(fields)? || is_wrong_type(length)? {
            return Ok(Condition::Damaged);
        }
        let fields: Vec<Option<Vec<u8>>> =
            from_redis_value_ref(fields).map_err(|e| KeeperError::Redis(e.to_string()))?;
        let length: u64 = from_redis_value_ref(length).map_err(|e| KeeperError::Redis(e.to_string()))?;
        Ok(condition::read(&fields, length, epoch, self.ledger.as_deref()))
    }

    /// Stops the sale from selling under an epoch older than `epoch`, whether there is a state or not.
    pub fn close(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        let reply: Vec<u8> = self.ask(&close::call(terms, epoch, self.ledger.as_deref()))?;
        match close::read(&reply) {
            Some(Ok(())) => Ok(()),
            _ => Err(KeeperError::Redis(format!(
                "{terms} cannot be closed for epoch {epoch}: Redis says {}",
                words(&reply)
            ))),
        }
    }

    /// Throws away what the state holds that was closed for `epoch`. The ledger has all of it.
    pub fn forget(&mut self, terms: &Terms, epoch: u64) -> Result<(), KeeperError> {
        let reply: Vec<u8> = self.ask(&forget::call(terms, epoch, self.ledger.as_deref()))?;
        match forget::read(&reply) {
            Some(Ok(())) => Ok(()),
            _ => Err(KeeperError::Redis(format!(
                "{terms} is not closed for epoch {epoch}: Redis says {}",
                words(&reply)
            ))),
        }
    }

    /// The sales that have a state in Redis, whosever it is.
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

    /// What `sale` has in Redis by its own clock; `None` if it has no state of this ledger that can be read. What is
    /// decided after this reading is later than its `upto_ms`.
    pub fn counts(&mut self, sale: SaleId) -> Result<Option<Counts>, KeeperError> {
        if self.ask::<String>(cmd("TYPE").arg(state_key(sale)))? != "hash" {
            return Ok(None);
        }
        let found: Vec<Option<String>> = self.ask(&counts::call(sale, self.ledger.as_deref()))?;
        let (ledger, counts) = counts::read(&found);
        Ok(counts.filter(|_| !self.is_foreign(ledger)))
    }

    /// The time that a sale has reached in Redis, unix milliseconds; 0 where no state says it.
    pub fn reached_ms(&mut self, terms: &Terms) -> Result<u64, KeeperError> {
        if self.ask::<String>(cmd("TYPE").arg(state_key(terms.sale)))? != "hash" {
            return Ok(0);
        }
        let text: Option<Vec<u8>> = self.ask(cmd("HGET").arg(state_key(terms.sale)).arg(field::CLOCK))?;
        let reached_ms = text.and_then(|text| std::str::from_utf8(&text).ok()?.parse::<u64>().ok());
        // No script writes a later time.
        Ok(reached_ms.filter(|at_ms| *at_ms < terms.ends_ms).unwrap_or(0))
    }

    /// Calls `each` for every hold that Redis remembers of `sale`, for some twice. `alive` is asked after each chunk.
    /// Says whether all of them could be read. For a state that does not sell: the chunks are large ones.
    pub fn holds(
        &mut self,
        sale: SaleId,
        each: &mut dyn FnMut(u64, HoldFacts),
        alive: &mut dyn FnMut() -> Result<(), KeeperError>,
    ) -> Result<bool, KeeperError> {
        let (mut cursor, mut whole) = (0u64, true);
        loop {
            let (next, readable) = self.scan_holds(sale, cursor, WIDE_CHUNK, each)?;
            whole &= readable;
            if next == 0 {
                return Ok(whole);
            }
            alive()?;
            cursor = next;
        }
    }

    /// A chunk of [`Store::holds`], for a state that sells: from `cursor` on, which is 0 at first. Returns the next one,
    /// 0 at the end, and whether all of the chunk could be read.
    pub fn some_holds(
        &mut self,
        sale: SaleId,
        cursor: u64,
        each: &mut dyn FnMut(u64, HoldFacts),
    ) -> Result<(u64, bool), KeeperError> {
        self.scan_holds(sale, cursor, CHUNK, each)
    }

    fn scan_holds(
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
        for (field, record) in found {
            match read_hold(&field, &record) {
                Some((number, known)) => each(number, known),
                None => {
                    whole = false;
                    let field = String::from_utf8_lossy(&field);
                    tracing::error!("{}: a hold in Redis cannot be read and is left out: {field}", sale.named());
                }
            }
        }
        Ok((next, whole))
    }

    /// Returns to the stock what has expired by now: a checkout script without checkouts.
    pub fn expire_due(&mut self, terms: &Terms, epoch: u64, latest_ms: u64) -> Result<(), KeeperError> {
        let call = checkout::expire_due(terms.sale, epoch, latest_ms);
        loop {
            // What the script refuses is for the caller's own call to find.
            let reply: Vec<u8> = self.ask(&call)?;
            let now_ms = checkout::read(&reply, 0).and_then(Result::ok).map(|decided| decided.now_ms);
            let head: Option<Vec<u8>> = self.ask(cmd("LINDEX").arg(queue_key(terms.sale)).arg(0))?;
            let expires_ms = head.as_deref().and_then(entry_expires_ms);
            let due = now_ms.zip(expires_ms).is_some_and(|(now_ms, expires_ms)| expires_ms <= now_ms);
            if !due {
                return Ok(());
            }
        }
    }

    /// Removes all that there is of `sale`.
    pub fn unlink(&mut self, sale: SaleId) -> Result<(), KeeperError> {
        self.ask(cmd("UNLINK").arg(state_key(sale)).arg(queue_key(sale)))
    }

    /// All states that there are in Redis. Looks through all keys.
    pub(super) fn states(&mut self) -> Result<Vec<FoundState>, KeeperError> {
        let mut states = Vec::new();
        for sale in self.sales_with_states()? {
            let fields = &[field::END, field::LEDGER][..];
            let found: Vec<Option<String>> = self.ask(cmd("HMGET").arg(state_key(sale)).arg(fields))?;
            if let Some(ends_ms) = found.first().and_then(|text| text.as_deref()?.parse().ok()) {
                states.push(FoundState { sale, ends_ms, ledger: found.get(1).cloned().flatten() });
            }
        }
        Ok(states)
    }

    /// Whether a state that names `ledger` is not this ledger's.
    pub(super) fn is_foreign(&self, ledger: Option<&str>) -> bool {
        self.ledger.as_deref().zip(ledger).is_some_and(|(ours, theirs)| ours != theirs)
    }
}
