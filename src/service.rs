//! Route, decide, respond: what a request means.
//!
//! Owns the routes, the status of every outcome and the texts of the answers: all of them are chosen here, in one place.
//! Invariant: a request is submitted to the inventory at most once. Leaves decisions to the inventory, which it knows as a
//! trait, and sockets to `http`.

use crate::catalog::Catalog;
use crate::code::{CODE_CHARS, Codes};
use crate::domain::{Id, Outcome, Request};
use crate::http::query::{self, ParamError, Problem};
use crate::http::request::{Body, Head, Method};
use crate::http::response::{ExtraHeader, Responder};
use crate::http::service::Service;
use crate::inventory::Inventory;
use crate::worker::{Begun, Ticket, Waiter};
use may::io::WaitIoWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a shopper's connection may be silent: longer than load balancers keep idle connections (60 s), so that the load
/// balancer closes first.
const IDLE: Duration = Duration::from_secs(75);

/// The headers of a picture. Browsers may cache it for a day: an id's picture changes only with a new version of this
/// program. Browsers must not take it for a page, and it may load nothing.
const PICTURE_HEADERS: &str = "Cache-Control: public, max-age=86400\r\nX-Content-Type-Options: nosniff\r\n\
    Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n";

/// The service of the public listener.
pub struct Shop {
    inventory: Arc<dyn Inventory>,
    codes: Codes,
    catalog: Catalog,
    patience: Duration,
    draining: AtomicBool,
    closing: AtomicBool,
}

/// The state of a connection: the place where its answers arrive.
pub struct Session {
    waiter: Arc<Waiter<Outcome>>,
}

/// An answer that is decided and not written yet.
pub enum Answer {
    /// The inventory's decision, or a refusal in its place.
    Decided(Outcome),
    /// A parameter is missing or malformed.
    Invalid(ParamError),
    /// A parameter is missing, and the request has a body, where the client may have put it.
    InBody(ParamError),
    /// `OPTIONS /` and `OPTIONS *`, with which load balancers check an instance.
    Options,
    /// The same, while this instance drains.
    Draining,
    /// The catalogue does not have the item.
    UnknownItem,
    /// An item's picture.
    Picture(Id),
    /// No such path.
    NotFound,
    /// A known path with a method that it does not have. Holds the whole header line `Allow`.
    WrongMethod(&'static str),
}

impl Shop {
    /// A shop whose requests `inventory` decides, each within `patience`, which is the same for checkouts and purchases.
    pub fn new(inventory: Arc<dyn Inventory>, codes: Codes, catalog: Catalog, patience: Duration) -> Shop {
        Shop { inventory, codes, catalog, patience, draining: AtomicBool::new(false), closing: AtomicBool::new(false) }
    }

    /// From now on `OPTIONS` is answered 503, so that load balancers send requests to other instances. All other requests
    /// are decided as before.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// From now on all requests are answered 503: the process is about to end.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    /// Submits `request` to the inventory.
    #[inline]
    fn ask(&self, session: &mut Session, request: &Request) -> Begun<Answer> {
        if self.closing.load(Ordering::Relaxed) {
            return Begun::Answered(Answer::Decided(Outcome::Unavailable));
        }
        let waiter = &session.waiter;
        waiter.ask(|ticket| self.inventory.submit(waiter, ticket, request)).map(Answer::Decided)
    }

    fn checkout(&self, session: &mut Session, head: &Head<'_>) -> Begun<Answer> {
        match query::find(head.query, ["user_id", "id"]) {
            Err(error) => Begun::Answered(invalid(error, head)),
            Ok([_, item]) if !self.catalog.knows(&item) => Begun::Answered(Answer::UnknownItem),
            Ok([user, item]) => self.ask(session, &Request::Checkout { user, item }),
        }
    }

    fn purchase(&self, session: &mut Session, head: &Head<'_>) -> Begun<Answer> {
        let code = match query::find(head.query, ["code"]) {
            Ok([code]) => code,
            // A value that is no id is no code either: invalid_code. A missing or repeated one is invalid_request.
            Err(error) if error.is_malformed_value() => {
                return Begun::Answered(Answer::Decided(Outcome::InvalidCode));
            }
            Err(error) => return Begun::Answered(invalid(error, head)),
        };
        const { assert!(CODE_CHARS <= crate::domain::MAX_ID_BYTES) };
        match self.codes.open(code.as_bytes()) {
            None => Begun::Answered(Answer::Decided(Outcome::InvalidCode)),
            Some(hold) => self.ask(session, &Request::Purchase { hold }),
        }
    }
}

impl Service for Shop {
    type Session = Session;
    type Answer = Answer;

    fn session(&self, worker: usize, waker: WaitIoWaker) -> Session {
        Session { waiter: Arc::new(Waiter::new(worker, waker)) }
    }

    fn begin(&self, session: &mut Session, head: &Head<'_>) -> Begun<Answer> {
        Begun::Answered(match (head.path, head.method) {
            ("/checkout", Method::Post) => return self.checkout(session, head),
            ("/purchase", Method::Post) => return self.purchase(session, head),
            ("/checkout" | "/purchase", _) => Answer::WrongMethod("Allow: POST\r\n"),
            ("*" | "/", Method::Other("OPTIONS")) if self.draining.load(Ordering::Relaxed) => Answer::Draining,
            ("*" | "/", Method::Other("OPTIONS")) => Answer::Options,
            (path, method) => picture(path, method),
        })
    }

    fn poll(&self, session: &mut Session, ticket: Ticket) -> Option<Answer> {
        session.waiter.take(ticket).map(Answer::Decided)
    }

    fn give_up(&self, session: &mut Session, ticket: Ticket) -> Answer {
        session.waiter.close(ticket);
        Answer::Decided(Outcome::Unavailable)
    }

    fn shrink(&self, session: &mut Session) {
        session.waiter.shrink();
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn idle(&self) -> Duration {
        IDLE
    }

    fn render(&self, answer: &Answer, to: &mut Responder<'_>) {
        match answer {
            Answer::Decided(outcome) => self.render_outcome(outcome, to),
            // The text consists of fixed names and texts without characters that JSON escapes.
            Answer::Invalid(error) => to.refuse(400, ExtraHeader::None, "invalid_request", &error.to_string()),
            Answer::InBody(error) => {
                let message = format!("{error}: parameters belong in the query, the body is not read");
                to.refuse(400, ExtraHeader::None, "invalid_request", &message);
            }
            Answer::Options => to.no_content(ExtraHeader::Lines("Allow: GET, HEAD, POST, OPTIONS\r\n")),
            Answer::Draining => {
                to.refuse(503, ExtraHeader::retry_soon(), "unavailable", "this instance is about to end");
            }
            Answer::UnknownItem => to.refuse(400, ExtraHeader::None, "unknown_item", "the catalogue has no such item"),
            Answer::Picture(id) => {
                let svg = crate::catalog::svg(id, &self.catalog.name(id));
                to.text(200, "image/svg+xml", ExtraHeader::Lines(PICTURE_HEADERS), &svg);
            }
            Answer::NotFound => to.refuse(404, ExtraHeader::None, "not_found", "there is nothing at this path"),
            Answer::WrongMethod(allow) => {
                to.refuse(405, ExtraHeader::Lines(allow), "method_not_allowed", "this path does not have this method");
            }
        }
    }
}

/// The answer to a request without the parameters that it needs.
fn invalid(error: ParamError, head: &Head<'_>) -> Answer {
    let has_body = !matches!(head.body, Body::None | Body::Length(0));
    if has_body && error.problem == Problem::Missing { Answer::InBody(error) } else { Answer::Invalid(error) }
}

/// The answer to a request for a path that is neither `/checkout` nor `/purchase`.
fn picture(path: &str, method: Method<'_>) -> Answer {
    let Some(raw) = path.strip_prefix("/items/").and_then(|rest| rest.strip_suffix(".svg")) else {
        return Answer::NotFound;
    };
    match (query::decode_segment(raw), method) {
        (Err(_), _) => Answer::NotFound,
        (Ok(id), Method::Get | Method::Head) => Answer::Picture(id),
        _ => Answer::WrongMethod("Allow: GET, HEAD\r\n"),
    }
}

/// Whole seconds, rounded up, at least one.
fn seconds(ms: u64) -> u64 {
    ms.div_ceil(1000).max(1)
}

impl Shop {
    fn render_outcome(&self, outcome: &Outcome, to: &mut Responder<'_>) {
        match outcome {
            Outcome::Held { hold, expires_ms } => {
                let code = self.codes.mint(*hold);
                to.json(200, ExtraHeader::None, |body| {
                    body.extend_from_slice(b"{\"code\":\"");
                    body.extend_from_slice(code.as_bytes());
                    body.extend_from_slice(b"\",\"expires_at\":");
                    body.extend_from_slice(itoa::Buffer::new().format(expires_ms / 1000).as_bytes());
                    body.push(b'}');
                });
            }
            Outcome::SoldOut { retry_ms } => {
                let retry = ExtraHeader::RetryAfter(seconds(*retry_ms));
                to.refuse(409, retry, "sold_out", "no item is free at the moment");
            }
            Outcome::UserLimit { retry_ms } => {
                let retry = ExtraHeader::RetryAfter(seconds(*retry_ms));
                to.refuse(429, retry, "user_limit", "this user holds as many items as the sale allows");
            }
            Outcome::Purchased { item } => to.json(200, ExtraHeader::None, |body| {
                body.extend_from_slice(b"{\"success\":true,");
                self.catalog.write_json_fields(item, body);
                body.push(b'}');
            }),
            Outcome::AlreadyPurchased { item } => to.json(409, ExtraHeader::None, |body| {
                body.extend_from_slice(
                    b"{\"error\":\"already_purchased\",\"message\":\"this code has been redeemed before\",",
                );
                self.catalog.write_json_fields(item, body);
                body.push(b'}');
            }),
            Outcome::InvalidCode => {
                let message = "not a code of a running sale, or its hold has expired";
                to.refuse(400, ExtraHeader::None, "invalid_code", message);
            }
            Outcome::HoldLost => {
                to.refuse(409, ExtraHeader::None, "sold_out", "this code's hold was lost and its item is gone");
            }
            Outcome::Unavailable => {
                to.refuse(
                    503,
                    ExtraHeader::retry_soon(),
                    "unavailable",
                    "no decision is possible at the moment, try again",
                );
            }
        }
    }
}
