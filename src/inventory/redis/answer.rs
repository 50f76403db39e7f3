//! From a script's reply to the answers of its requests.
//!
//! Owns what follows from each reply: answers, records, the sold-out cache, suspicions. Invariant: each request of a call is
//! answered, sent again, or handed over with the records that it waits for, whatever the reply is. Leaves the form of replies to
//! `scripts`, and the sending to `protocol.rs`.

use super::fault::Fault;
use super::flight::{Call, Checkout};
use super::lane::Lane;
use super::scripts::purchase::Fact;
use super::scripts::{self, Refusal, checkout, purchase};
use super::shared::Shared;
use super::state::{Kind, State};
use crate::domain::{HoldKey, HoldNumber, Outcome, Record, RecordKind, SaleId};
use crate::inventory::Suspicion;
use crate::inventory::sold_out::SoldOutCache;
use crate::record::{Ack, Handoff};
use crate::redis_wire::resp::{ErrorReply, Reply};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Why a call decided nothing.
enum Undecided<'b> {
    /// Redis does not have the script.
    NoScript,
    /// Redis gave another error.
    Error(ErrorReply<'b>),
    /// The script refused.
    Refusal(Refusal),
    /// The reply is neither text nor an error.
    NotOfAScript,
    /// The script gives no such text.
    UnknownReply,
}

/// What `reply` decides, as `read` finds it in the reply's text.
fn decided<'b, D>(
    reply: Reply<'b>,
    read: impl FnOnce(&'b [u8]) -> Option<Result<D, Refusal>>,
) -> Result<D, Undecided<'b>> {
    match reply {
        Reply::Bulk(text) => read(text).ok_or(Undecided::UnknownReply)?.map_err(Undecided::Refusal),
        Reply::Error(error) if error.code() == "NOSCRIPT" => Err(Undecided::NoScript),
        Reply::Error(error) => Err(Undecided::Error(error)),
        _ => Err(Undecided::NotOfAScript),
    }
}

/// Answers the checkouts of `call`, whose holds have the numbers from `first` on. `Err` if the connection is of no more use.
pub(super) fn checkouts(
    lane: &Lane,
    state: &mut State,
    call: Call<Checkout>,
    first: HoldNumber,
    reply: Reply<'_>,
) -> Result<(), Fault> {
    let count = call.requests.len();
    match decided(reply, |text| checkout::read(text, count)) {
        Ok(decided) => answer_checkouts(lane, state, call, first, &decided),
        Err(Undecided::Refusal(Refusal::NotOn(now_ms))) => {
            state.hear_clock(Instant::now(), now_ms);
            state.checkouts.ask_another_sale(call.requests);
            Ok(())
        }
        Err(why) => undecided(&lane.shared, state, call, why),
    }
}

/// Answers the purchases of `call`. `Err` if the connection is of no more use.
pub(super) fn purchases(lane: &Lane, state: &mut State, call: Call<HoldKey>, reply: Reply<'_>) -> Result<(), Fault> {
    let count = call.requests.len();
    match decided(reply, |text| purchase::read(text, count)) {
        Ok(decided) => answer_purchases(lane, state, call, &decided),
        Err(why) => undecided(&lane.shared, state, call, why),
    }
}

/// What follows for the requests of a call that decided nothing, for the keeper and for the connection.
fn undecided<R: Kind>(shared: &Shared, state: &mut State, call: Call<R>, why: Undecided<'_>) -> Result<(), Fault> {
    let (sale, epoch) = (call.terms.sale, call.epoch);
    let follows = match why {
        // The one error after which a call is sent again: it has executed nothing.
        Undecided::NoScript => {
            state.reload(call.requests);
            return Ok(());
        }
        Undecided::Error(error) => failed(shared, sale, epoch, error),
        Undecided::Refusal(refusal) => refused(shared, state, sale, epoch, refusal),
        Undecided::NotOfAScript => Err(Fault::NotOfAScript),
        Undecided::UnknownReply => Err(Fault::UnknownReply),
    };
    R::queue(state).refuse(call.requests);
    follows
}

/// Redis gave an error in place of a script's reply. None of them changes anything before the script's first write.
fn failed(shared: &Shared, sale: SaleId, epoch: u64, error: ErrorReply<'_>) -> Result<(), Fault> {
    let why = error.to_string();
    match error.code() {
        // The server is not a master any more: the next connection leads to the one that is, or finds that out.
        "READONLY" => return Err(Fault::Refused(why)),
        _ if scripts::is_own_failure(&why) => shared.suspect(Suspicion::Unreadable { sale, epoch, why }),
        // Only a rebuild mends that.
        "WRONGTYPE" => shared.suspect(Suspicion::State(sale, "has a key of another type")),
        _ => shared.suspect(Suspicion::Refused(why)),
    }
    Ok(())
}

/// A script refused the whole call.
fn refused(shared: &Shared, state: &mut State, sale: SaleId, epoch: u64, refusal: Refusal) -> Result<(), Fault> {
    match refusal {
        Refusal::NotOn(now_ms) => state.hear_clock(Instant::now(), now_ms),
        Refusal::Missing => shared.suspect(Suspicion::State(sale, "is missing")),
        Refusal::Closed => shared.suspect(Suspicion::State(sale, "is closed")),
        Refusal::Damaged => shared.suspect(Suspicion::State(sale, "has lost a part of its queue")),
        Refusal::Epoch(theirs) => {
            shared.suspect(Suspicion::Epoch(theirs));
            if theirs < epoch {
                return Err(Fault::OlderEpoch);
            }
        }
    }
    Ok(())
}

fn answer_checkouts(
    lane: &Lane,
    state: &mut State,
    mut call: Call<Checkout>,
    first: HoldNumber,
    decided: &checkout::Decided<'_>,
) -> Result<(), Fault> {
    state.hear_clock(Instant::now(), decided.now_ms);
    let sale = call.terms.sale;
    let mut handoff = lane.shared.recorder.blank(lane.worker, sale, call.epoch);
    let (mut marks, mut is_whole) = (decided.marks(), true);
    debug_assert_eq!(marks.len(), call.requests.len());
    for (i, pending) in call.requests.drain(..).enumerate() {
        let outcome = match marks.next().flatten() {
            Some(checkout::Mark::Held) => {
                let Checkout { user, item } = pending.request;
                let number = HoldNumber(first.0 + i as u64);
                let (kind, at_ms, expires_ms) = (RecordKind::Hold, decided.now_ms, decided.expires_ms);
                handoff.records.push(&Record { kind, number, user, item, at_ms, expires_ms });
                Outcome::Held { hold: HoldKey { sale, number }, expires_ms }
            }
            Some(checkout::Mark::SoldOut) => {
                let (now_ms, next_ms) = (decided.now_ms, decided.next_ms);
                state.sold_out = Some(SoldOutCache::new(call.epoch, call.sent, now_ms, next_ms));
                Outcome::SoldOut { retry_ms: next_ms.saturating_sub(now_ms) }
            }
            Some(checkout::Mark::UserLimit) => limited(call.terms.hold_expires_ms(decided.now_ms), decided.now_ms),
            // None of the user's items comes back in this sale.
            Some(checkout::Mark::BoughtLimit) => limited(call.terms.ends_ms, decided.now_ms),
            Some(checkout::Mark::Again) => {
                state.checkouts.again(pending);
                continue;
            }
            Some(checkout::Mark::Duplicate) => duplicate(sale),
            None => {
                is_whole = false;
                Outcome::Unavailable
            }
        };
        pending.deliver(outcome);
    }
    state.checkouts.recycle(call.requests);
    // Records that find the channel full are left to reconciliation, which reads them in Redis.
    if let Err(unused) = hand_over(&lane.shared, handoff) {
        lane.shared.recorder.recycle(unused);
    }
    if is_whole { Ok(()) } else { Err(Fault::UnknownMark) }
}

/// The refusal of a user who may take an item again at `until_ms`.
fn limited(until_ms: u64, now_ms: u64) -> Outcome {
    Outcome::UserLimit { retry_ms: until_ms.saturating_sub(now_ms) }
}

/// The answer to a checkout whose hold's number is taken. It heals by itself: the whole batch's numbers are used up, so the next one
/// has others.
fn duplicate(sale: SaleId) -> Outcome {
    tracing::error!(
        "{}: a checkout is answered 503, since its hold's number was given out before: the ledger may have been restored to an \
         earlier time",
        sale.named()
    );
    Outcome::Unavailable
}

fn answer_purchases(
    lane: &Lane,
    state: &mut State,
    mut call: Call<HoldKey>,
    decided: &purchase::Decided<'_>,
) -> Result<(), Fault> {
    state.hear_clock(Instant::now(), decided.now_ms);
    let Shared { recorder, ack_by_ledger, .. } = &*lane.shared;
    let confirmed_ms = state.view.load().confirmed_ms(call.terms.sale);
    let mut handoff = recorder.blank(lane.worker, call.terms.sale, call.epoch);
    let (mut marks, mut is_whole) = (decided.marks(), true);
    debug_assert_eq!(marks.len(), call.requests.len());
    for pending in call.requests.drain(..) {
        let hold = pending.request;
        let outcome = match marks.next().flatten() {
            Some(purchase::Mark::Purchased(fact)) => {
                handoff.records.push(&purchased(hold, &fact));
                Outcome::Purchased { item: fact.item }
            }
            Some(purchase::Mark::AlreadyPurchased { fact, taken_ms, expires_ms }) => {
                // The reply to the purchase may have been lost, and its record with it: then Redis alone has the purchase, and
                // could lose it after this answer. So the hold and the purchase are handed over again. A comparison may have
                // found that the ledger has them (`confirmed_ms`); then only an answer that waits for the ledger needs them,
                // since it travels with a record.
                if *ack_by_ledger || fact.purchased_ms >= confirmed_ms {
                    let purchase = purchased(hold, &fact);
                    if expires_ms > 0 {
                        let taken = Record { kind: RecordKind::Hold, at_ms: taken_ms, expires_ms, ..purchase };
                        handoff.records.push_repeated(&taken);
                    }
                    handoff.records.push_repeated(&purchase);
                }
                Outcome::AlreadyPurchased { item: fact.item }
            }
            Some(purchase::Mark::Expired) => Outcome::InvalidCode,
            Some(purchase::Mark::Gone) => Outcome::HoldLost,
            None => {
                is_whole = false;
                Outcome::Unavailable
            }
        };
        let reveals = matches!(outcome, Outcome::Purchased { .. } | Outcome::AlreadyPurchased { .. });
        if *ack_by_ledger && reveals {
            let (waiter, ticket) = pending.into_waiter();
            handoff.acks.push(Ack { waiter, ticket, outcome });
        } else {
            pending.deliver(outcome);
        }
    }
    state.purchases.recycle(call.requests);
    if let Err(mut unused) = hand_over(&lane.shared, handoff) {
        unused.acks.drain(..).for_each(Ack::refuse);
        recorder.recycle(unused);
    }
    if is_whole { Ok(()) } else { Err(Fault::UnknownMark) }
}

/// The record of the purchase of `hold`.
fn purchased(hold: HoldKey, fact: &Fact) -> Record {
    let Fact { purchased_ms, user, item } = *fact;
    Record { kind: RecordKind::Purchase, number: hold.number, user, item, at_ms: purchased_ms, expires_ms: 0 }
}

/// Hands `handoff` over. `Err` gives it back if it has no records, or if its records find no room; those are counted as
/// overflowed and left to reconciliation.
fn hand_over(shared: &Shared, handoff: Box<Handoff>) -> Result<(), Box<Handoff>> {
    if handoff.records.is_empty() {
        // An answer that waits for the ledger travels with the record of what it says.
        debug_assert!(handoff.acks.is_empty(), "answers wait for no record");
        return Err(handoff);
    }
    let recorder = &shared.recorder;
    recorder.hand_over(handoff).inspect_err(|unused| {
        recorder.counters().overflowed.fetch_add(unused.records.len() as u64, Ordering::Relaxed);
    })
}
