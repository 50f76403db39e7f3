//! From a script's reply to everybody's answer.

use super::lane::{Flight, Lane, Pending, Script, State, again, load_and_send_again};
use super::scripts::purchase::Fact;
use super::scripts::{self, Refusal, checkout, purchase};
use crate::domain::{HoldKey, HoldNumber, Outcome, Record, RecordKind, Request, SaleId};
use crate::inventory::Suspicion;
use crate::inventory::sold_out::SoldOutCache;
use crate::record::{Ack, Handoff};
use crate::redis_wire::resp::Reply;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Answers all requests of `flight`. `Err` if the connection is of no more use.
pub(super) fn answer(lane: &Lane, state: &mut State, flight: Flight, reply: Reply<'_>) -> Result<(), String> {
    let body = match reply {
        Reply::Bulk(body) => body,
        // The one refusal after which a call is sent again: it has executed nothing.
        Reply::Error(text) if text.starts_with(b"NOSCRIPT") => {
            load_and_send_again(flight.requests, state);
            return Ok(());
        }
        Reply::Error(text) => {
            let text = String::from_utf8_lossy(text).into_owned();
            refuse(flight.requests, state);
            return error(lane, (flight.terms.sale, flight.epoch), text);
        }
        _ => {
            refuse(flight.requests, state);
            return Err("Redis sent a reply of another kind than a script's".into());
        }
    };
    let count = flight.requests.len();
    let refusal = match flight.script {
        Script::Checkout => match checkout::read(body, count) {
            Some(Ok(decided)) => return checkouts(lane, state, flight, &decided),
            other => other.and_then(Result::err),
        },
        Script::Purchase => match purchase::read(body, count) {
            Some(Ok(decided)) => return purchases(lane, state, flight, &decided),
            other => other.and_then(Result::err),
        },
    };
    match refusal {
        Some(refusal) => {
            // The keeper has been on since: this connection leads to a Redis that was left behind.
            let behind = matches!(refusal, Refusal::Epoch(theirs) if theirs < flight.epoch);
            refused(lane, state, flight, refusal);
            if behind { Err("Redis carries an older epoch".into()) } else { Ok(()) }
        }
        None => {
            refuse(flight.requests, state);
            Err("Redis sent a reply that no script gives".into())
        }
    }
}

/// Answers `unavailable` to all of `requests`.
pub(super) fn refuse(mut requests: Vec<Pending>, state: &mut State) {
    for pending in requests.drain(..) {
        pending.waiter.deliver(pending.ticket, Outcome::Unavailable);
    }
    state.recycle(requests);
}

/// Redis refused the call as such. None of these changes anything before the script's first write.
fn error(lane: &Lane, (sale, epoch): (SaleId, u64), text: String) -> Result<(), String> {
    let code = text.split_ascii_whitespace().next().unwrap_or_default();
    match code {
        // The role is another one: connecting anew looks at it.
        "READONLY" => Err(text),
        _ if scripts::is_own_failure(&text) => {
            lane.shared.suspect(Suspicion::Unreadable { sale, epoch, why: text });
            Ok(())
        }
        // Only a rebuild heals it.
        "WRONGTYPE" => {
            lane.shared.suspect(Suspicion::State(sale, "has a key of another type"));
            Ok(())
        }
        _ => {
            lane.shared.suspect(Suspicion::Refused(text));
            Ok(())
        }
    }
}

fn refused(lane: &Lane, state: &mut State, flight: Flight, refusal: Refusal) {
    let sale = flight.terms.sale;
    match refusal {
        Refusal::NotOn(now_ms) => {
            state.hear_clock(Instant::now(), now_ms);
            return not_on(state, flight);
        }
        Refusal::Missing => lane.shared.suspect(Suspicion::State(sale, "is missing")),
        Refusal::Closed => lane.shared.suspect(Suspicion::State(sale, "is closed")),
        Refusal::Damaged => lane.shared.suspect(Suspicion::State(sale, "has lost a part of its queue")),
        Refusal::Epoch(theirs) => lane.shared.suspect(Suspicion::Epoch(theirs)),
    }
    refuse(flight.requests, state);
}

/// The sale is not on by Redis' clock: checkouts go to the one that is, once.
fn not_on(state: &mut State, mut flight: Flight) {
    for pending in flight.requests.drain(..) {
        match pending.request {
            Request::Checkout { .. } if pending.tries == 0 => again(pending, state),
            _ => pending.waiter.deliver(pending.ticket, Outcome::Unavailable),
        }
    }
    state.recycle(flight.requests);
}

fn checkouts(
    lane: &Lane,
    state: &mut State,
    mut flight: Flight,
    decided: &checkout::Decided<'_>,
) -> Result<(), String> {
    state.hear_clock(Instant::now(), decided.now_ms);
    let (sale, terms) = (flight.terms.sale, flight.terms);
    let mut handoff = lane.shared.recorder.blank(lane.worker, sale, flight.epoch);
    let mut whole = true;
    for (i, (pending, mark)) in flight.requests.drain(..).zip(decided.marks()).enumerate() {
        let Request::Checkout { user, item } = pending.request else { continue };
        let outcome = match mark {
            Some(checkout::Mark::Held) => {
                let number = HoldNumber(flight.first.0 + i as u64);
                handoff.records.push(&Record {
                    kind: RecordKind::Hold,
                    number,
                    user,
                    item,
                    at_ms: decided.now_ms,
                    expires_ms: decided.expires_ms,
                });
                Outcome::Held { hold: HoldKey { sale, number }, expires_ms: decided.expires_ms }
            }
            Some(checkout::Mark::SoldOut) => {
                let (now_ms, next_ms) = (decided.now_ms, decided.next_ms);
                state.sold_out = Some(SoldOutCache::new(flight.epoch, flight.sent, now_ms, next_ms));
                Outcome::SoldOut { retry_ms: next_ms.saturating_sub(now_ms) }
            }
            Some(checkout::Mark::UserLimit) => {
                Outcome::UserLimit { retry_ms: terms.hold_expires_ms(decided.now_ms).saturating_sub(decided.now_ms) }
            }
            // None of his items comes back in this sale.
            Some(checkout::Mark::BoughtLimit) => {
                Outcome::UserLimit { retry_ms: terms.ends_ms.saturating_sub(decided.now_ms) }
            }
            Some(checkout::Mark::Again) => {
                again(pending, state);
                continue;
            }
            // It heals by itself: the whole batch's numbers are used up, so the next one has others.
            Some(checkout::Mark::Duplicate) => {
                tracing::error!(
                    "{}: a checkout is answered 503, since its hold's number was given out before: the ledger may have been \
                     restored to an earlier time",
                    sale.named()
                );
                Outcome::Unavailable
            }
            None => {
                whole = false;
                Outcome::Unavailable
            }
        };
        pending.waiter.deliver(pending.ticket, outcome);
    }
    state.recycle(flight.requests);
    // What is refused is left to reconciliation: Redis has it.
    if let Err(unused) = hand_over(lane, handoff) {
        lane.shared.recorder.recycle(unused);
    }
    if whole { Ok(()) } else { Err("a script's reply has a mark that no script gives".into()) }
}

fn purchases(
    lane: &Lane,
    state: &mut State,
    mut flight: Flight,
    decided: &purchase::Decided<'_>,
) -> Result<(), String> {
    state.hear_clock(Instant::now(), decided.now_ms);
    let confirmed_ms = state.view.load().confirmed_ms(flight.terms.sale);
    let mut handoff = lane.shared.recorder.blank(lane.worker, flight.terms.sale, flight.epoch);
    let by_ledger = lane.shared.ack_by_ledger;
    let mut whole = true;
    for (pending, mark) in flight.requests.drain(..).zip(decided.marks()) {
        let Request::Purchase { hold } = pending.request else { continue };
        let record = |kind, fact: &Fact, at_ms, expires_ms| {
            let (number, user, item) = (hold.number, fact.user, fact.item);
            Record { kind, number, user, item, at_ms, expires_ms }
        };
        let outcome = match mark {
            Some(purchase::Mark::Purchased(fact)) => {
                handoff.records.push(&record(RecordKind::Purchase, &fact, fact.purchased_ms, 0));
                Outcome::Purchased { item: fact.item }
            }
            Some(purchase::Mark::AlreadyPurchased { fact, taken_ms, expires_ms }) => {
                // The reply to its purchase may have been lost: then Redis alone has it, and a Redis that is emptied
                // would take back what this answer says. What reconciliation has found in the ledger need not go there
                // again, except that an answer which waits for the ledger has to travel with something.
                if by_ledger || fact.purchased_ms >= confirmed_ms {
                    if expires_ms > 0 {
                        handoff.records.push_repeated(&record(RecordKind::Hold, &fact, taken_ms, expires_ms));
                    }
                    handoff.records.push_repeated(&record(RecordKind::Purchase, &fact, fact.purchased_ms, 0));
                }
                Outcome::AlreadyPurchased { item: fact.item }
            }
            Some(purchase::Mark::Expired) => Outcome::InvalidCode,
            Some(purchase::Mark::Gone) => Outcome::HoldLost,
            None => {
                whole = false;
                Outcome::Unavailable
            }
        };
        let reveals = matches!(outcome, Outcome::Purchased { .. } | Outcome::AlreadyPurchased { .. });
        if by_ledger && reveals {
            handoff.acks.push(Ack { waiter: pending.waiter, ticket: pending.ticket, outcome });
        } else {
            pending.waiter.deliver(pending.ticket, outcome);
        }
    }
    state.recycle(flight.requests);
    if let Err(mut unused) = hand_over(lane, handoff) {
        for ack in unused.acks.drain(..) {
            ack.waiter.deliver(ack.ticket, Outcome::Unavailable);
        }
        lane.shared.recorder.recycle(unused);
    }
    if whole { Ok(()) } else { Err("a script's reply has a mark that no script gives".into()) }
}

/// Hands over what there is; gives an empty handoff back too, and one that has to be left to reconciliation: it is counted.
fn hand_over(lane: &Lane, handoff: Box<Handoff>) -> Result<(), Box<Handoff>> {
    if handoff.records.is_empty() {
        return Err(handoff);
    }
    let recorder = &lane.shared.recorder;
    recorder.hand_over(handoff).inspect_err(|unused| {
        recorder.counters().overflowed.fetch_add(unused.records.len() as u64, Ordering::Relaxed);
    })
}
