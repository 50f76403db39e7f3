//! Whose sales a Redis database holds.
//!
//! Owns the check of that, and the claim of a database. A key names the ledger that the database belongs to, and each state
//! names the ledger that it was built for. Invariants: an instance neither sells from, nor reads, nor replaces what belongs
//! to another ledger; a database that names no ledger is claimed under the openers' lock, and only if the states in it are
//! this ledger's. Leaves to the operator to give a database to another ledger: no instance does that by itself.

use super::error::KeeperError;
use super::merge::HoldFacts;
use super::sale_store::{FoundState, Look, Owner};
use super::servers::Servers;
use crate::domain::HoldNumber;
use crate::inventory::redis::scripts::layout::OWNER_KEY;
use crate::ledger::HoldRow;
use std::collections::HashMap;

/// Which Redis this is, and whose its database is. Fails with [`KeeperError::Foreign`] for a database of another ledger.
pub(super) fn look(servers: &mut Servers) -> Result<Look, KeeperError> {
    let look = servers.store.look()?;
    match &look.owner {
        Owner::Other(theirs) => Err(belongs_to(servers, &format!("of the ledger {theirs}"))),
        _ => Ok(look),
    }
}

/// Claims a database that names no ledger, under the openers' lock. Fails with [`KeeperError::Foreign`] if it holds states that are
/// not this ledger's, or if nothing shows that they are.
pub(super) fn claim(servers: &mut Servers, owner: &Owner) -> Result<(), KeeperError> {
    if *owner != Owner::Unclaimed {
        return Ok(());
    }
    let ours = servers.ledger_id();
    for found in servers.store.states()? {
        let whose = match &found.ledger {
            Some(theirs) if ours.as_ref().is_some_and(|ours| ours != theirs) => format!("of the ledger {theirs}"),
            None if !recognises(servers, &found)? => {
                // An earlier version's states do not say whose they are, so they would be taken for this ledger's.
                format!(
                    "of an unknown ledger (remove the keys of {} first, unless they are this ledger's)",
                    found.sale.named()
                )
            }
            _ => continue,
        };
        return Err(belongs_to(servers, &whose));
    }
    servers.store.take_ownership()?;
    look(servers).map(drop)
}

/// Says whose sales were found, and what the operator can do.
fn belongs_to(servers: &Servers, whose: &str) -> KeeperError {
    let ours = servers.ledger_id().unwrap_or_else(|| "unknown".into());
    KeeperError::Foreign(format!(
        "Redis at {} holds the sales {whose}, and this instance's ledger (POSTGRES_DSN) is {ours}. Two deployments cannot \
         share a Redis database: set REDIS_ADDR to another Redis, or to another database of this one (redis://host:port/1). \
         If this database is to be this ledger's, stop all other instances on it and run: redis-cli SET '{OWNER_KEY}' {ours}",
        servers.store.name()
    ))
}

/// Whether a state that an earlier version built is this ledger's: it holds something that the ledger has on record, or
/// it holds nothing and this ledger has opened that sale with the same terms.
fn recognises(servers: &mut Servers, found: &FoundState) -> Result<bool, KeeperError> {
    let (mut sample, mut cursor) = (HashMap::new(), 0);
    loop {
        let each = &mut |number, known: HoldFacts| {
            sample.insert(number, known.user);
        };
        (cursor, _) = servers.store.some_holds(found.sale, cursor, each)?;
        if cursor == 0 || !sample.is_empty() {
            break;
        }
    }
    let Some(first) = sample.keys().min().copied() else {
        if found.ends_ms <= servers.now_ms()? {
            // Nothing is sold from it, and nothing was.
            return Ok(true);
        }
        // Redis may have been restarted since, and an opener may have died: so neither its identity nor the epoch counts.
        let rows = servers.ledger.sales(found.ends_ms.saturating_sub(1))?;
        let row = rows.iter().find(|row| row.opened && row.terms.sale == found.sale);
        return row.map_or(Ok(false), |row| servers.store.has_terms(&row.terms));
    };
    let mut is_known = false;
    let each = &mut |row: HoldRow| is_known |= sample.get(&row.number.0) == Some(&row.facts.user);
    servers.ledger.page_of_holds(found.sale, first.checked_sub(1).map(HoldNumber), each)?;
    Ok(is_known)
}
