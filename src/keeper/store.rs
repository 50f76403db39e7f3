//! Sales' states in Redis, for plain threads: reading, building, opening, closing.
//!
//! Owns the keeper's connection, and the steps in which a state comes and goes. Refuses to decide when anything of it
//! is to happen.

use super::layout::{entry_expires_ms, queue_entry, read_record, write_record};
use super::merge::{Known, Place, Rebuilt};
use super::server_check;
use crate::domain::{Id, SaleId, Terms};
use crate::inventory::identity;
use crate::inventory::redis::scripts::{self, queue_key, state_key};
use crate::redis::target::Target;
use redis::{Cmd, Connection, FromRedisValue, Pipeline, RedisResult, cmd};
use std::sync::Arc;
use std::time::Duration;

/// Holds that are read or written in one command: Redis is busy for about a millisecond.
const CHUNK: usize = 500;
/// How long a sale's keys outlive it at most, in seconds: a backstop for deployments that are given up.
const KEEP_SECONDS: u64 = 7 * 24 * 3600;
/// How long a state that was never opened lies about, in seconds; counted anew from each chunk.
pub(super) const BUILD_SECONDS: u64 = 300;
/// Keys that are looked through in one command.
const SCAN: usize = 1_000;

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
    /// Its queue is not the one it knows.
    Damaged,
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
    target: Arc<Target>,
    timeout: Duration,
    connection: Option<Connection>,
}

impl Store {
    /// Connects on the first call; each call takes `timeout` at most.
    pub fn new(target: Arc<Target>, timeout: Duration) -> Store {
        Store { target, timeout, connection: None }
    }

    pub(super) fn run<T>(&mut self, work: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T, String> {
        if self.connection.is_none() {
            // The address may have moved with a failover.
            self.target.resolve()?;
            self.connection = Some(self.target.connect(self.timeout)?);
        }
        let Some(connection) = &mut self.connection else { return Err("no connection".into()) };
        work(connection).map_err(|e| {
            // Whatever it was, what follows on this connection may belong to the call that failed.
            self.connection = None;
            format!("Redis at {}: {e}", self.target.name)
        })
    }

    fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, String> {
        self.run(|connection| command.query(connection))
    }

    /// Redis' clock, unix milliseconds.
    pub fn now_ms(&mut self) -> Result<u64, String> {
        let (seconds, micros): (u64, u64) = self.ask(&cmd("TIME"))?;
        Ok(seconds * 1000 + micros / 1000)
    }

    /// Which Redis this is; `Err` for a replica, which is then left: new connections may lead to its master.
    pub fn identity(&mut self) -> Result<String, String> {
        let info: String = self.ask(cmd("INFO").arg("server").arg("replication"))?;
        identity(&info).map_err(|e| {
            self.reconnect();
            format!("Redis at {}: {e}", self.target.name)
        })
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
        pipe.atomic().cmd("HMGET").arg(&state).arg(&["epoch", "status", "queue"][..]).cmd("LLEN").arg(&queue);
        type Found = ((Option<u64>, Option<String>, Option<u64>), u64);
        let ((theirs, status, length), actual): Found = self.run(|connection| pipe.query(connection))?;
        Ok(match (theirs, status.as_deref()) {
            (None, _) => Condition::Missing,
            (Some(theirs), _) if theirs != epoch => Condition::Epoch(theirs),
            (_, Some("open")) if length == Some(actual) => Condition::Good,
            (_, Some("open")) => Condition::Damaged,
            _ => Condition::Closed,
        })
    }

    /// Stops the sale from selling under an epoch older than `epoch`, whether there is a state or not.
    pub fn close(&mut self, terms: &Terms, epoch: u64) -> Result<(), String> {
        let mut eval = cmd("EVAL");
        eval.arg(scripts::CLOSE).arg(1).arg(state_key(terms.sale)).arg(epoch).arg(terms.ends_ms / 1000 + KEEP_SECONDS);
        match self.ask::<String>(&eval)?.as_str() {
            "K" => Ok(()),
            other => Err(format!("sale {} cannot be closed for epoch {epoch}: Redis says {other}", terms.sale)),
        }
    }

    /// Throws away what the state holds that was closed for `epoch`. The ledger has all of it.
    pub fn forget(&mut self, terms: &Terms, epoch: u64) -> Result<(), String> {
        let mut eval = cmd("EVAL");
        eval.arg(scripts::FORGET).arg(2).arg(state_key(terms.sale)).arg(queue_key(terms.sale));
        match self.ask::<String>(eval.arg(epoch).arg(terms.ends_ms / 1000 + KEEP_SECONDS))?.as_str() {
            "K" => Ok(()),
            other => Err(format!("sale {} is not closed for epoch {epoch}: Redis says {other}", terms.sale)),
        }
    }

    /// The sales that have a state in Redis, with their end in unix milliseconds. Looks through all keys.
    pub fn sales(&mut self) -> Result<Vec<(SaleId, u64)>, String> {
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
        let mut sales = Vec::with_capacity(found.len());
        for sale in found {
            let end: Option<u64> = self.ask(cmd("HGET").arg(state_key(sale)).arg("end"))?;
            sales.extend(end.map(|end| (sale, end)));
        }
        Ok(sales)
    }

    /// What `sale` has in Redis by its own clock; `None` if it has no state.
    pub fn counts(&mut self, sale: SaleId) -> Result<Option<Counts>, String> {
        let fields = &["clock", "taken", "purchased", "apart"][..];
        type Found = (Option<u64>, Option<u64>, Option<u64>, Option<u64>);
        let found: Found = self.ask(cmd("HMGET").arg(state_key(sale)).arg(fields))?;
        let (Some(upto_ms), Some(taken), Some(purchased), apart) = found else { return Ok(None) };
        Ok(Some(Counts { upto_ms, taken: taken + apart.unwrap_or(0), purchased }))
    }

    /// Calls `each` for every hold that Redis remembers of `sale`, for some twice. `alive` is asked after each chunk.
    /// Says whether all of them could be read.
    pub fn holds(
        &mut self,
        sale: SaleId,
        each: &mut dyn FnMut(u64, Known),
        alive: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<bool, String> {
        let (mut cursor, mut whole) = (0u64, true);
        loop {
            let mut scan = cmd("HSCAN");
            scan.arg(state_key(sale)).arg(cursor).arg("MATCH").arg("h:*").arg("COUNT").arg(CHUNK);
            let (next, found): (u64, Vec<(String, Vec<u8>)>) = self.ask(&scan)?;
            for (field, record) in found {
                match field.strip_prefix("h:").and_then(|n| n.parse().ok()).zip(read_record(&record)) {
                    Some((number, known)) => each(number, known),
                    None => {
                        whole = false;
                        tracing::error!(%sale, field, "a hold in Redis that cannot be read");
                    }
                }
            }
            if next == 0 {
                return Ok(whole);
            }
            alive()?;
            cursor = next;
        }
    }

    /// Builds `sale`'s state for `epoch` beside what is there, under names that nobody else uses. [`Store::open`] puts
    /// it in place. `alive` is asked after each chunk.
    pub fn build(
        &mut self,
        terms: &Terms,
        epoch: u64,
        rebuilt: &Rebuilt,
        alive: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<Built, String> {
        let built = Built::name(terms, epoch);
        let done = self.fill(&built, rebuilt, alive);
        if done.is_err() {
            self.discard(&built);
        }
        done.map(|()| built)
    }

    /// Removes a state that was built and will not be opened: it would take up memory until it expires.
    pub fn discard(&mut self, built: &Built) {
        let removed: Result<(), String> = self.ask(cmd("UNLINK").arg(&built.state).arg(&built.queue));
        if let Err(why) = removed {
            tracing::debug!("a state that was built is left to expire: {why}");
        }
    }

    fn fill(
        &mut self,
        built: &Built,
        rebuilt: &Rebuilt,
        alive: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        let Built { state, queue, .. } = built;
        let holds: Vec<_> = rebuilt.holds.iter().collect();
        let mut users = std::collections::HashMap::<Id, u64>::new();
        for chunk in holds.chunks(CHUNK) {
            let mut set = cmd("HSET");
            set.arg(state);
            for (number, (known, place)) in chunk {
                set.arg(format!("h:{number}")).arg(write_record(known, *place));
                if *place != Place::Expired {
                    *users.entry(known.user).or_default() += 1;
                }
            }
            self.add(set, state)?;
            alive()?;
        }
        let users: Vec<_> = users.into_iter().collect();
        for chunk in users.chunks(CHUNK) {
            let mut set = cmd("HSET");
            set.arg(state);
            for (user, count) in chunk {
                set.arg([b"u:", user.as_bytes()].concat()).arg(*count);
            }
            self.add(set, state)?;
            alive()?;
        }
        let mut live: Vec<_> = holds.iter().filter(|(_, (_, place))| *place == Place::Held).collect();
        live.sort_by_key(|(number, (known, _))| (known.expires_ms, **number));
        for chunk in live.chunks(CHUNK) {
            let mut push = cmd("RPUSH");
            push.arg(queue);
            for (number, (known, _)) in chunk {
                push.arg(queue_entry(**number, known));
            }
            self.add(push, queue)?;
            alive()?;
        }
        self.build_terms(built, rebuilt)
    }

    /// Adds to a key that disappears by itself unless it is opened.
    fn add(&mut self, command: Cmd, key: &str) -> Result<(), String> {
        let mut pipe = Pipeline::new();
        pipe.atomic().add_command(command).cmd("EXPIRE").arg(key).arg(BUILD_SECONDS);
        self.run(|connection| pipe.exec(connection))
    }

    fn build_terms(&mut self, built: &Built, rebuilt: &Rebuilt) -> Result<(), String> {
        let Built { terms, epoch, state, queue } = built;
        let free = terms.items.saturating_sub(rebuilt.purchased + rebuilt.held);
        let with_checkout = |known: &&Known| known.has_checkout();
        let taken = rebuilt.holds.values().map(|(known, _)| known).filter(with_checkout).count() as u64;
        let apart = rebuilt.misfits.iter().map(|(_, known)| known).filter(with_checkout).count() as u64;
        let mut set = cmd("HSET");
        set.arg(state).arg("epoch").arg(epoch).arg("status").arg("open");
        for (field, value) in [
            ("items", terms.items),
            ("limit", terms.user_limit),
            ("hold", terms.hold_ms),
            ("start", terms.starts_ms),
            ("end", terms.ends_ms),
            // Time does not go back behind what is recorded, even if this Redis' clock is behind the last one's.
            ("clock", rebuilt.clock_ms),
            ("free", free),
            ("held", rebuilt.held),
            ("purchased", rebuilt.purchased),
            ("taken", taken),
            // Holds that are in the ledger and not in here.
            ("apart", apart),
            ("queue", rebuilt.held),
        ] {
            set.arg(field).arg(value);
        }
        self.add(set, state)?;
        if rebuilt.held > 0 { self.ask(cmd("EXPIRE").arg(queue).arg(BUILD_SECONDS)) } else { Ok(()) }
    }

    /// Puts a state in place that was built. `Err` if a newer epoch is there, or this one sells already.
    pub fn open(&mut self, built: &Built) -> Result<(), String> {
        let Built { terms, epoch, state, queue } = built;
        let until = terms.ends_ms / 1000 + KEEP_SECONDS;
        let mut eval = cmd("EVAL");
        eval.arg(scripts::OPEN).arg(4).arg(state_key(terms.sale)).arg(queue_key(terms.sale)).arg(state).arg(queue);
        let reply: String = self.ask(eval.arg(epoch).arg(until))?;
        match reply.as_str() {
            "K" => Ok(()),
            other => Err(format!("sale {} was not opened under epoch {epoch}: Redis says {other}", terms.sale)),
        }
    }

    /// Has the stock of an open sale take back all that has expired by now: a checkout script without checkouts.
    pub fn take_back(&mut self, terms: &Terms, epoch: u64) -> Result<(), String> {
        let mut eval = cmd("EVAL");
        eval.arg(scripts::CHECKOUT).arg(2).arg(state_key(terms.sale)).arg(queue_key(terms.sale)).arg(epoch);
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

/// A state that was built and not opened yet.
pub struct Built {
    terms: Terms,
    epoch: u64,
    state: String,
    queue: String,
}

impl Built {
    /// Names of one hash tag with the real ones, so that they can be renamed in a script, and of one builder, who may
    /// have been frozen while another one came to build the same.
    fn name(terms: &Terms, epoch: u64) -> Built {
        let nonce = fastrand::u64(..);
        let name = |key: String| format!("{key}:build:{epoch}:{nonce:x}");
        Built { terms: *terms, epoch, state: name(state_key(terms.sale)), queue: name(queue_key(terms.sale)) }
    }
}
