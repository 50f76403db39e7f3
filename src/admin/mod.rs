//! The operator's side: health and metrics, on an address of its own.
//!
//! Owns the answers to an operator's tools. Invariant: none of its paths is served on the public port. Leaves all decisions
//! to the inventory and the keeper.

pub mod client;

use crate::http::answers::STATUSES;
use crate::http::request::{Head, Method};
use crate::http::response::{ExtraHeader, Responder};
use crate::http::server::Connections;
use crate::http::service::Service;
use crate::inventory::{Inventory, SharedView};
use crate::record::Recorder;
use crate::worker::{Begun, Ticket};
use may::io::WaitIoWaker;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The content type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long a tool's connection may be silent: there are few places, and a health check must find a free one.
const IDLE: Duration = Duration::from_secs(5);

/// The service on `ADMIN_ADDR`.
pub struct Admin {
    /// The keeper's view: the epoch, the sales, and whether this instance may sell.
    pub view: SharedView,
    /// The inventory, which knows whether its servers answer.
    pub inventory: Arc<dyn Inventory>,
    /// The way to the ledger, with its counters.
    pub recorder: Arc<Recorder>,
    /// Reads the counts of the public connections.
    pub connections: Box<dyn Fn() -> Connections + Send + Sync>,
    /// Whether the public server drains or closes.
    pub is_draining: Box<dyn Fn() -> bool + Send + Sync>,
    /// Reads how many public answers of each of [`STATUSES`] were sent.
    pub answers: Box<dyn Fn() -> [u64; STATUSES.len()] + Send + Sync>,
}

/// An answer of the admin listener.
pub enum Answer {
    /// `GET /health`
    Health,
    /// `GET /metrics`
    Metrics,
    /// `OPTIONS /` and `OPTIONS *`.
    Options,
    /// No such path.
    NotFound,
    /// A known path with a method that it does not have.
    WrongMethod,
}

impl Admin {
    /// Whether checkouts can be decided here.
    fn is_selling(&self) -> bool {
        let view = self.view.load();
        view.selling && view.reachable && self.inventory.is_ready()
    }

    fn metrics(&self) -> String {
        let counters = self.recorder.counters();
        let view = self.view.load();
        let connections = (self.connections)();
        let mut text = String::new();
        for (name, kind, help, value) in [
            ("selling", "gauge", "Whether checkouts can be decided.", u64::from(self.is_selling())),
            ("epoch", "gauge", "The epoch that this instance sells under.", view.epoch),
            ("sales_open", "gauge", "Sales that are open, those ahead included.", view.sales.len() as u64),
            (
                "draining",
                "gauge",
                "Whether this instance drains: it serves on and is about to end.",
                u64::from((self.is_draining)()),
            ),
            ("connections", "gauge", "Open public connections.", connections.open as u64),
            (
                "connections_gave_way_total",
                "counter",
                "Idle connections that were closed for new ones, since MAX_CONNECTIONS were open.",
                connections.gave_way,
            ),
            (
                "connections_refused_total",
                "counter",
                "Connections that were refused, since MAX_CONNECTIONS were open and none was idle.",
                connections.refused,
            ),
            (
                "connection_panics_total",
                "counter",
                "Connections that were closed because their code panicked.",
                connections.panicked,
            ),
            (
                "ledger_refusing",
                "gauge",
                "Whether the ledger refuses records, or is away.",
                u64::from(counters.is_refusing()),
            ),
            ("records_waiting", "gauge", "Records on their way to the ledger.", counters.backlog()),
            ("records_written_total", "counter", "Records in the ledger.", load(&counters.written)),
            (
                "records_overflowed_total",
                "counter",
                "Records that found the writer's channel full and are left to reconciliation.",
                load(&counters.overflowed),
            ),
            ("records_left", "gauge", "Overflowed records that may not be in the ledger yet.", counters.left()),
            (
                "records_stale_total",
                "counter",
                "Records that the ledger did not take because their epoch is over.",
                load(&counters.stale),
            ),
        ] {
            let _ = write!(
                text,
                "# HELP flashsale_{name} {help}\n# TYPE flashsale_{name} {kind}\nflashsale_{name} {value}\n"
            );
        }
        text.push_str("# HELP flashsale_http_responses_total Public answers, by their status.\n");
        text.push_str("# TYPE flashsale_http_responses_total counter\n");
        for (status, count) in STATUSES.iter().zip((self.answers)()) {
            let _ = writeln!(text, "flashsale_http_responses_total{{status=\"{status}\"}} {count}");
        }
        text
    }
}

fn load(counter: &std::sync::atomic::AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Service for Admin {
    type Session = ();
    type Answer = Answer;

    fn session(&self, _worker: usize, _waker: WaitIoWaker) {}

    fn begin(&self, _session: &mut (), head: &Head<'_>) -> Begun<Answer> {
        Begun::Answered(match (head.path, head.method) {
            ("/health", Method::Get | Method::Head) => Answer::Health,
            ("/metrics", Method::Get | Method::Head) => Answer::Metrics,
            ("/health" | "/metrics", _) => Answer::WrongMethod,
            ("*" | "/", Method::Other("OPTIONS")) => Answer::Options,
            _ => Answer::NotFound,
        })
    }

    fn poll(&self, _session: &mut (), _ticket: Ticket) -> Option<Answer> {
        None
    }

    fn give_up(&self, _session: &mut (), _ticket: Ticket) -> Answer {
        Answer::NotFound
    }

    fn shrink(&self, _session: &mut ()) {}

    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    fn idle(&self) -> Duration {
        IDLE
    }

    fn render(&self, answer: &Answer, to: &mut Responder<'_>) {
        match answer {
            Answer::Health if (self.is_draining)() => {
                to.refuse(503, ExtraHeader::None, "draining", "this instance is about to end");
            }
            Answer::Health if self.is_selling() => {
                to.json(200, ExtraHeader::None, |body| body.extend_from_slice(b"{\"status\":\"selling\"}"));
            }
            Answer::Health => to.refuse(503, ExtraHeader::None, "unavailable", "nothing can be sold at the moment"),
            Answer::Metrics => to.text(200, METRICS_TYPE, ExtraHeader::None, &self.metrics()),
            Answer::Options => to.no_content(ExtraHeader::Lines("Allow: GET, HEAD, OPTIONS\r\n")),
            Answer::NotFound => to.refuse(404, ExtraHeader::None, "not_found", "there are /health and /metrics"),
            Answer::WrongMethod => {
                to.refuse(
                    405,
                    ExtraHeader::Lines("Allow: GET, HEAD\r\n"),
                    "method_not_allowed",
                    "this path is read only",
                );
            }
        }
    }
}
