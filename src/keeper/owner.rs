//! Whose sales a Redis database holds.
//!
//! A key names the ledger that the database belongs to, and each state names the ledger that it was built for. Invariants: an
//! instance neither sells from, nor reads, nor replaces what belongs to another ledger; a database that names no ledger is
//! claimed under the openers' lock, and only if the states in it are this ledger's. Leaves to the operator to give a database
//! to another ledger: no instance does that by itself.

use super::distributed::Keeper;
use super::merge::HoldFacts;
use super::store::Store;
use crate::domain::SaleId;
use crate::inventory::identity;
pub use crate::inventory::redis::scripts::layout::OWNER_KEY;
use crate::inventory::redis::scripts::layout::{field, state_key};
use crate::ledger::LedgerId;
use redis::{Pipeline, cmd};
use std::collections::HashMap;

/// Whose a Redis database is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// It names no ledger: it is new, was emptied, or was used by an earlier version only.
    Unclaimed,
    /// This ledger.
    Ours,
    /// The ledger of this identity.
    Other(String),
}

/// A state in Redis.
pub(super) struct Found {
    pub sale: SaleId,
    /// The sale's end, unix milliseconds.
    pub ends_ms: u64,
    /// The ledger that it was built for; `None` if an earlier version built it.
    pub ledger: Option<String>,
}

impl Store {
    /// A store for the sales of the ledger `id` alone.
    pub fn of_ledger(mut self, id: LedgerId) -> Store {
        self.ledger = Some(id.to_string());
        self
    }

    /// Which Redis this is. `Err` for a replica, which is then left, since new connections may lead to its master; and for a
    /// database that holds another ledger's sales.
    pub fn identity(&mut self) -> Result<String, String> {
        let mut pipe = Pipeline::new();
        pipe.cmd("INFO").arg("server").arg("replication").cmd("GET").arg(OWNER_KEY);
        let (info, owner): (String, Option<String>) = match self.run(|connection| pipe.query(connection)) {
            // No instance has written that: the next claim replaces it.
            Err(why) if why.contains("WRONGTYPE") => (self.ask(cmd("INFO").arg("server").arg("replication"))?, None),
            answer => answer?,
        };
        let identity = identity(&info).map_err(|e| {
            self.reconnect();
            format!("Redis at {}: {e}", self.name())
        })?;
        self.owner = match (owner, &self.ledger) {
            (None, _) => Owner::Unclaimed,
            (Some(owner), Some(ours)) if owner != *ours => Owner::Other(owner),
            (Some(_), _) => Owner::Ours,
        };
        match &self.owner {
            Owner::Other(theirs) => Err(self.belongs_to(&format!("of the ledger {theirs}"))),
            _ => Ok(identity),
        }
    }

    /// Whose the database was at the last look.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Says whose sales were found, and what the operator can do.
    fn belongs_to(&self, whose: &str) -> String {
        let ours = self.ledger.as_deref().unwrap_or("unknown");
        format!(
            "Redis at {} holds the sales {whose}, and this instance's ledger (POSTGRES_DSN) is {ours}. Two deployments cannot \
             share a Redis database: set REDIS_ADDR to another Redis, or to another database of this one (redis://host:port/1). \
             If this database is to be this ledger's, stop all other instances on it and run: redis-cli SET '{OWNER_KEY}' {ours}",
            self.name()
        )
    }

    /// Names this ledger as the database's owner, unless another one was first.
    fn take_ownership(&mut self) -> Result<(), String> {
        let Some(ours) = self.ledger.clone() else { return Ok(()) };
        if !matches!(self.ask::<String>(cmd("TYPE").arg(OWNER_KEY))?.as_str(), "string" | "none") {
            tracing::warn!("the key {OWNER_KEY} in Redis is of another type: it is replaced");
            self.run(|connection| cmd("UNLINK").arg(OWNER_KEY).exec(connection))?;
        }
        self.run(|connection| cmd("SET").arg(OWNER_KEY).arg(ours).arg("NX").exec(connection))?;
        self.identity().map(drop)
    }

    /// All states that there are in Redis. Looks through all keys.
    pub(super) fn states(&mut self) -> Result<Vec<Found>, String> {
        let mut states = Vec::new();
        for sale in self.sales_with_states()? {
            let fields = &[field::END, field::LEDGER][..];
            let found: Vec<Option<String>> = self.ask(cmd("HMGET").arg(state_key(sale)).arg(fields))?;
            if let Some(ends_ms) = found.first().and_then(|text| text.as_deref()?.parse().ok()) {
                states.push(Found { sale, ends_ms, ledger: found.get(1).cloned().flatten() });
            }
        }
        Ok(states)
    }

    /// Whether a state that names `ledger` is not this ledger's.
    pub(super) fn is_foreign(&self, ledger: Option<&str>) -> bool {
        self.ledger.as_deref().zip(ledger).is_some_and(|(ours, theirs)| ours != theirs)
    }
}

impl Keeper {
    /// Claims a database that names no ledger, under the openers' lock. `Err` if it holds states that are not this
    /// ledger's, or if nothing shows that they are.
    pub(super) fn claim(&mut self) -> Result<(), String> {
        if *self.store.owner() != Owner::Unclaimed {
            return Ok(());
        }
        for found in self.store.states()? {
            let whose = match &found.ledger {
                Some(theirs) if self.store.is_foreign(Some(theirs)) => format!("of the ledger {theirs}"),
                None if !self.recognises(&found)? => {
                    // An earlier version's states do not say whose they are, so they would be taken for this ledger's.
                    format!(
                        "of an unknown ledger (remove the keys of {} first, unless they are this ledger's)",
                        found.sale.named()
                    )
                }
                _ => continue,
            };
            let why = self.store.belongs_to(&whose);
            self.refused = Some(why.clone());
            return Err(why);
        }
        self.store.take_ownership()
    }

    /// Whether a state that an earlier version built is this ledger's: it holds something that the ledger has on record, or
    /// it holds nothing and this ledger has opened that sale with the same terms.
    fn recognises(&mut self, found: &Found) -> Result<bool, String> {
        let (mut sample, mut cursor) = (HashMap::new(), 0);
        loop {
            let each = &mut |number, known: HoldFacts| {
                sample.insert(number, known.user);
            };
            (cursor, _) = self.store.some_holds(found.sale, cursor, each)?;
            if cursor == 0 || !sample.is_empty() {
                break;
            }
        }
        let Some(first) = sample.keys().min().copied() else {
            if found.ends_ms <= self.store.now_ms()? {
                // Nothing is sold from it, and nothing was.
                return Ok(true);
            }
            // Redis may have been restarted since, and an opener may have died: so neither its identity nor the epoch counts.
            let rows = self.ledger.sales(found.ends_ms.saturating_sub(1)).map_err(|e| e.to_string())?;
            let row = rows.iter().find(|row| row.opened && row.terms.sale == found.sale);
            return row.map_or(Ok(false), |row| self.store.has_terms(&row.terms));
        };
        let mut is_known = false;
        let each = &mut |row: crate::ledger::HoldRow| is_known |= sample.get(&row.number.0) == Some(&row.user);
        let after = first.checked_sub(1).map(crate::domain::HoldNumber);
        self.ledger.page_of_holds(found.sale, after, each).map_err(|e| e.to_string())?;
        Ok(is_known)
    }
}
