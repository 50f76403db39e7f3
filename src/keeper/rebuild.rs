//! Rebuilding one sale: reading its holds in the ledger and in Redis, and building a new state from both.
//!
//! Owns the order of the steps. Invariants: the ledger has each fact before a state with it is built; the numbers of a built
//! state add up, or the process ends (an instance that went on would sell by them). All of it happens under the openers'
//! lock. Leaves to [`super::merge`] which fact counts, and to [`super::recovery`] when a state is put in place.

use super::error::KeeperError;
use super::merge::{HoldFacts, HoldMerge, RebuiltSale};
use super::sale_store::Built;
use super::servers::Servers;
use super::store::Condition;
use crate::domain::{HoldNumber, Record, RecordKind, Records, SaleId, Terms};
use crate::ledger::HoldRow;
use std::collections::HashSet;

/// Records that the ledger lacks are written in batches of this size: some tens of milliseconds.
const BATCH: usize = 2_000;

/// Builds the state of a sale that was closed for `epoch`, and drops what the closed state holds, since there may be no memory for
/// two.
pub(super) fn rebuild_closed(servers: &mut Servers, terms: &Terms, epoch: u64) -> Result<Built, KeeperError> {
    let (rebuilt, whole) = merge(servers, terms, epoch)?;
    if whole {
        servers.store.forget(terms, epoch)?;
    }
    build(servers, terms, epoch, &rebuilt)
}

/// Builds a sale's state for `epoch` from all that is known of it. [`super::sale_store::SaleStore::open`] puts it in place.
pub(super) fn rebuild(servers: &mut Servers, terms: &Terms, epoch: u64) -> Result<Built, KeeperError> {
    let (rebuilt, _) = merge(servers, terms, epoch)?;
    build(servers, terms, epoch, &rebuilt)
}

fn build(servers: &mut Servers, terms: &Terms, epoch: u64, rebuilt: &RebuiltSale) -> Result<Built, KeeperError> {
    rebuilt.assert_sums(terms);
    let (store, mut alive) = servers.store_and_alive();
    store.build(terms, epoch, rebuilt, &mut alive)
}

/// What is known of a sale, all of which is in the ledger afterwards; and whether Redis' side could be read wholly.
fn merge(servers: &mut Servers, terms: &Terms, epoch: u64) -> Result<(RebuiltSale, bool), KeeperError> {
    let mut union = HoldMerge::default();
    let mut with_checkout = HashSet::new();
    let each = &mut |row: HoldRow| {
        if row.facts.has_checkout() {
            with_checkout.insert(row.number.0);
        }
        union.ledger(row.number.0, row.facts);
    };
    servers.ledger.holds(terms.sale, each)?;
    let each = &mut |number, known| union.redis(number, known, with_checkout.contains(&number));
    // Another ledger's holds do not concern this one: its state is replaced as it is.
    let is_foreign = servers.store.condition(terms.sale, epoch)? == Condition::Foreign;
    let whole = is_foreign || {
        let (store, mut alive) = servers.store_and_alive();
        store.holds(terms.sale, each, &mut alive)?
    };
    union.reached_ms = if is_foreign { 0 } else { servers.store.reached_ms(terms)? };
    add_missing(servers, terms.sale, epoch, &union.missing)?;
    let now_ms = servers.now_ms()?;
    let rebuilt = union.rebuild(terms, now_ms);
    if rebuilt.purchased > terms.items {
        tracing::error!("{terms}: {} items were purchased, more than its {}", rebuilt.purchased, terms.items);
    }
    quarantine(servers, terms, epoch, &rebuilt.quarantined)?;
    Ok((rebuilt, whole))
}

/// Writes what the ledger lacks of a sale.
fn add_missing(servers: &mut Servers, sale: SaleId, epoch: u64, missing: &[Record]) -> Result<(), KeeperError> {
    for chunk in missing.chunks(BATCH) {
        let mut records = Records::new(sale, epoch);
        chunk.iter().for_each(|record| records.push(record));
        servers.ledger.add_missing(&records)?;
        servers.still_opening()?;
    }
    Ok(())
}

/// Quarantines the holds that found no item left, for an operator to settle.
fn quarantine(
    servers: &mut Servers,
    terms: &Terms,
    epoch: u64,
    quarantined: &[(u64, HoldFacts)],
) -> Result<(), KeeperError> {
    if quarantined.is_empty() {
        return Ok(());
    }
    tracing::error!(
        "{terms}: {} holds found no item left: they are in quarantined_records, for an operator to settle",
        quarantined.len()
    );
    let mut records = Records::new(terms.sale, epoch);
    for (number, known) in quarantined {
        records.push(&Record {
            kind: RecordKind::Hold,
            number: HoldNumber(*number),
            user: known.user,
            item: known.item,
            at_ms: known.taken_ms,
            expires_ms: known.expires_ms,
        });
    }
    let reason = "no item, or no share of the user, was left when the sale was rebuilt";
    Ok(servers.ledger.quarantine(&records, reason)?)
}
