//! Sales' states in Redis, for plain threads: reading and closing them.
//!
//! Owns the keeper's connection. Building and opening a state is [`super::build`]'s. Refuses to decide when anything of
//! it is to happen.

use super::clock::CheckedClock;
use super::layout::{entry_expires_ms, read_record};
use super::merge::HoldFacts;
use super::owner::Owner;
use super::server_check;
use crate::domain::{SaleId, Terms};
use crate::inventory::redis::scripts::{self, queue_key, state_key};
use crate::redis_wire::endpoint::RedisEndpoint;
use redis::{Cmd, Connection, FromRedisValue, Pipeline, RedisResult, Value, cmd, from_redis_value_ref};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Holds that are read or written in one command: Redis is busy for about a millisecond.
pub(super) const CHUNK: usize = 500;
/// Holds that are read in one command of a sale that does not sell: a dozen milliseconds, and a twentieth of the round trips.
const WIDE_CHUNK: usize = 10_000;
/// How long a sale's keys outlive it at most, in seconds: a backstop for deployments that are given up.
pub(super) const KEEP_SECONDS: u64 = 7 * 24 * 3600;
/// Keys that are looked through in one command.
const SCAN: usize = 1_000;

/// The fields of a state that are no hold's and no user's, and have to be numbers, after the first three.
const META: &[&str] = &[
    "epoch",
    "status",
    "ledger",
    "queue",
    "items",
    "free",
    "held",
    "purchased",
    "taken",
    "clock",
    "limit",
    "hold",
    "start",
    "end",
];
/// The highest epoch that a ledger gives out.
const MAX_EPOCH: u64 = i32::MAX as u64;

/// Whether Redis refused a command for the key's type; `Err` if it refused for another reason.
fn is_wrong_type(reply: &Value) -> Result<bool, String> {
    match reply {
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(true),
        Value::ServerError(error) => Err(format!("Redis refuses: {error}")),
        _ => Ok(false),
    }
}

/// Whether the items are all there. More can be purchased than there are only where the ledger says so.
fn is_balanced(items: u64, free: u64, held: u64, purchased: u64) -> bool {
    let taken = held.saturating_add(purchased);
    free.saturating_add(taken) == items.max(taken)
}

/// A connection that was not used for this long is tried first: the shortest `timeout` of Redis is a second.
const IDLE: Duration = Duration::from_millis(500);

/// What a sale's state is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It sells under the epoch that was asked for.
    Good,
    /// There is none.
    Missing,
    /// It is of this epoch.
    Epoch(u64),
    /// It does not sell.
    Closed,
    /// It is no state that a script can go on from: its queue is not the one it knows, its numbers do not add up, or a
    /// key is of another type.
    Damaged,
    /// It was built for another ledger.
    Foreign,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Good => f.write_str("sells"),
            Condition::Missing => f.write_str("is missing"),
            Condition::Epoch(epoch) => write!(f, "is of epoch {epoch}"),
            Condition::Closed => f.write_str("is closed"),
            Condition::Damaged => f.write_str("is damaged"),
            Condition::Foreign => f.write_str("is another ledger's"),
        }
    }
}

/// How much a sale has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// The time of the last decision that is counted, unix milliseconds.
    pub upto_ms: u64,
    /// Holds whose checkout the ledger should have: all that there ever were, and those that found no place in the state.
    pub taken: u64,
    /// Holds that were redeemed.
    pub purchased: u64,
}

/// The keeper's way to Redis. A connection that failed is made anew on the next call.
pub struct Store {
    target: Arc<RedisEndpoint>,
    timeout: Duration,
    connection: Option<Connection>,
    /// When the connection was used last.
    used: Instant,
    /// Redis' clock; what is read of it is in `clock.rs`.
    pub(super) clock: CheckedClock,
    /// The identity of the ledger whose sales these are, where it is known.
    pub(super) ledger: Option<String>,
    pub(super) owner: Owner,
}

impl Store {
    /// Connects on the first call; each call takes `timeout` at most.
    pub fn new(target: Arc<RedisEndpoint>, timeout: Duration) -> Store {
        let (clock, used) = (CheckedClock::default(), Instant::now());
        Store { target, timeout, connection: None, used, clock, ledger: None, owner: Owner::Unknown }
    }

    pub(super) fn run<T>(&mut self, work: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T, String> {
        // Redis may have ended a connection that was idle (`timeout`): that is found out by a call that changes nothing.
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
        let Some(connection) = &mut self.connection else { return Err("no connection".into()) };
        let done = work(connection);
        self.used = Instant::now();
        done.map_err(|e| {
            // Whatever it was, what follows on this connection may belong to the call that failed.
            self.connection = None;
            format!("Redis at {}: {e}", self.target.name)
        })
    }

    pub(super) fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, String> {
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
    pub fn check_server(&mut self) -> Result<(), String> {
        let info: String = self.ask(cmd("INFO").arg("everything"))?;
        let name = &self.target.name;
        server_check::refusal(&info).map_or(Ok(()), |why| Err(format!("REDIS_ADDR: Redis at {name} {why}")))?;
        if let Some(what) = server_check::warning(&info) {
            tracing::warn!("Redis at {name} {what}");
        }
        Ok(())
    }

    /// What `sale`'s state is like for a caller of `epoch`.
    pub fn condition(&mut self, sale: SaleId, epoch: u64) -> Result<Condition, String> {
        let (state, queue) = (state_key(sale), queue_key(sale));
        let mut pipe = Pipeline::new();
        pipe.atomic().ignore_errors();
        pipe.cmd("HMGET").arg(&state).arg(META).cmd("LLEN").arg(&queue);
        let found: Vec<Value> = self.run(|connection| pipe.query(connection))?;
        let [fields, length] = found.as_slice() else { return Err("Redis answers a transaction with another".into()) };
        if is_wrong_type(fields)? || is_wrong_type(length)? {
            return Ok(Condition::Damaged);
        }
        let fields: Vec<Option<Vec<u8>>> = from_redis_value_ref(fields).map_err(|e| e.to_string())?;
        let actual: u64 = from_redis_value_ref(length).map_err(|e| e.to_string())?;
        let texts = fields.iter().map(|field| std::str::from_utf8(field.as_deref()?).ok());
        let texts: Vec<Option<&str>> = texts.collect();
        let [Some(theirs), status, ledger, numbers @ ..] = texts.as_slice() else {
            return Ok(if fields.first().is_some_and(Option::is_some) {
                Condition::Damaged
            } else {
                Condition::Missing
            });
        };
        if self.is_foreign(*ledger) {
            return Ok(Condition::Foreign);
        }
        // What no instance has written is no epoch, and must not be counted on from.
        let Some(theirs) = theirs.parse::<u64>().ok().filter(|number| *number <= MAX_EPOCH) else {
            return Ok(Condition::Damaged);
        };
        let numbers: Option<Vec<u64>> = numbers.iter().map(|text| text.and_then(|text| text.parse().ok())).collect();
        Ok(match (*status, numbers.as_deref()) {
            _ if theirs != epoch => Condition::Epoch(theirs),
            (Some("open"), Some([length, items, free, held, purchased, ..]))
                if *length == actual && is_balanced(*items, *free, *held, *purchased) =>
            {
                Condition::Good
            }
            (Some("open"), _) => Condition::Damaged,
            _ => Condition::Closed,
        })
    }

    /// Stops the sale from selling under an epoch older than `epoch`, whether there is a state or not.
    pub fn close(&mut self, terms: &Terms, epoch: u64) -> Result<(), String> {
        let mut eval = cmd("EVAL");
        eval.arg(scripts::CLOSE).arg(1).arg(state_key(terms.sale)).arg(epoch).arg(terms.ends_ms / 1000 + KEEP_SECONDS);
        eval.arg(self.ledger.as_deref().unwrap_or_default());
        match self.ask::<String>(&eval)?.as_str() {
            "K" => Ok(()),
            other => Err(format!("{terms} cannot be closed for epoch {epoch}: Redis says {other}")),
        }
    }

    /// Throws away what the state holds that was closed for `epoch`. The ledger has all of it.
    pub fn forget(&mut self, terms: &Terms, epoch: u64) -> Result<(), String> {
        let mut eval = cmd("EVAL");
        eval.arg(scripts::FORGET).arg(2).arg(state_key(terms.sale)).arg(queue_key(terms.sale));
        eval.arg(epoch).arg(terms.ends_ms / 1000 + KEEP_SECONDS).arg(self.ledger.as_deref().unwrap_or_default());
        match self.ask::<String>(&eval)?.as_str() {
            "K" => Ok(()),
            other => Err(format!("{terms} is not closed for epoch {epoch}: Redis says {other}")),
        }
    }

    /// The sales of this ledger that have a state in Redis, with their end in unix milliseconds. Looks through all keys.
    pub fn sales(&mut self) -> Result<Vec<(SaleId, u64)>, String> {
        let states = self.states()?;
        let ours = states.iter().filter(|found| !self.is_foreign(found.ledger.as_deref()));
        Ok(ours.map(|found| (found.sale, found.ends_ms)).collect())
    }

    /// The sales that have a state in Redis, whosever it is.
    pub(super) fn sales_with_states(&mut self) -> Result<Vec<SaleId>, String> {
        let (mut cursor, mut found) = (0u64, Vec::new());
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg("{sale:*}:state").arg("COUNT").arg(SCAN).arg("TYPE").arg("hash");
            let (next, keys): (u64, Vec<Vec<u8>>) = self.ask(&scan)?;
            let sale = |key: &[u8]| {
                let number = std::str::from_utf8(key).ok()?.strip_prefix("{sale:")?.strip_suffix("}:state")?;
                number.parse().ok().map(SaleId)
            };
            found.extend(keys.iter().filter_map(|key| sale(key)));
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
    pub fn counts(&mut self, sale: SaleId) -> Result<Option<Counts>, String> {
        if self.ask::<String>(cmd("TYPE").arg(state_key(sale)))? != "hash" {
            return Ok(None);
        }
        let mut eval = cmd("EVAL");
        eval.arg(scripts::COUNTS).arg(1).arg(state_key(sale)).arg(self.ledger.as_deref().unwrap_or_default());
        let found: Vec<Option<String>> = self.ask(&eval)?;
        if self.is_foreign(found.get(4).and_then(Option::as_deref)) {
            return Ok(None);
        }
        let number = |at: usize| found.get(at)?.as_deref()?.parse::<u64>().ok();
        let (Some(upto_ms), Some(taken), Some(purchased)) = (number(0), number(1), number(2)) else { return Ok(None) };
        Ok(Some(Counts { upto_ms, taken: taken + number(3).unwrap_or(0), purchased }))
    }

    /// Calls `each` for every hold that Redis remembers of `sale`, for some twice. `alive` is asked after each chunk.
    /// Says whether all of them could be read. For a state that does not sell: the chunks are large ones.
    pub fn holds(
        &mut self,
        sale: SaleId,
        each: &mut dyn FnMut(u64, HoldFacts),
        alive: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<bool, String> {
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
    ) -> Result<(u64, bool), String> {
        self.scan_holds(sale, cursor, CHUNK, each)
    }

    fn scan_holds(
        &mut self,
        sale: SaleId,
        cursor: u64,
        count: usize,
        each: &mut dyn FnMut(u64, HoldFacts),
    ) -> Result<(u64, bool), String> {
        let mut scan = cmd("HSCAN");
        scan.arg(state_key(sale)).arg(cursor).arg("MATCH").arg("h:*").arg("COUNT").arg(count);
        type Found = (u64, Vec<(Vec<u8>, Vec<u8>)>);
        let found = self.run(|connection| match scan.query::<Found>(connection) {
            Err(e) if e.code() == Some("WRONGTYPE") => Ok(None),
            found => found.map(Some),
        })?;
        // A key of another type has no holds, and is not to be trusted.
        let Some((next, found)) = found else { return Ok((0, false)) };
        let mut whole = true;
        for (field, record) in found {
            let number = std::str::from_utf8(&field).ok().and_then(|field| field.strip_prefix("h:")?.parse().ok());
            match number.zip(read_record(&record)) {
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

    /// Has the stock of an open sale take back all that has expired by now: a checkout script without checkouts.
    pub fn take_back(&mut self, terms: &Terms, epoch: u64) -> Result<(), String> {
        let mut eval = cmd("EVAL");
        eval.arg(scripts::CHECKOUT).arg(2).arg(state_key(terms.sale)).arg(queue_key(terms.sale)).arg(epoch);
        eval.arg(self.latest_ms());
        loop {
            // What the script refuses is for the caller's own call to find.
            let reply: String = self.ask(&eval)?;
            let now_ms = reply.strip_prefix("K ").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            let head: Option<Vec<u8>> = self.ask(cmd("LINDEX").arg(queue_key(terms.sale)).arg(0))?;
            let expires_ms = head.as_deref().and_then(entry_expires_ms);
            let due = now_ms.zip(expires_ms).is_some_and(|(now_ms, expires_ms)| expires_ms <= now_ms);
            if !due {
                return Ok(());
            }
        }
    }

    /// Runs a script call of the keeper's own.
    pub fn eval(&mut self, call: &Cmd) -> Result<String, String> {
        self.ask(call)
    }

    /// Removes all that there is of `sale`.
    pub fn unlink(&mut self, sale: SaleId) -> Result<(), String> {
        self.ask(cmd("UNLINK").arg(state_key(sale)).arg(queue_key(sale)))
    }
}
