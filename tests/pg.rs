//! The Postgres ledger against a real Postgres.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "pg/counting.rs"]
mod counting;
#[path = "pg/fence.rs"]
mod fence;
#[path = "pg/schema.rs"]
mod schema;
#[path = "pg/server.rs"]
mod server;
#[path = "pg/tls.rs"]
mod tls;
#[path = "pg/uncertain.rs"]
mod uncertain;
#[path = "pg/writing.rs"]
mod writing;

use flashsale::domain::{HoldNumber, Record, RecordKind, Records, SaleId};
use std::time::{Duration, Instant};

const SALE: SaleId = SaleId(1_700_000_000);
const AT_MS: u64 = 1_700_000_001_234;

fn record(kind: RecordKind, number: u64) -> Record {
    Record {
        kind,
        number: HoldNumber(number),
        user: format!("user {}", number % 7).parse().unwrap(),
        item: "café \u{1f600}\t".trim_end().parse().unwrap(),
        at_ms: AT_MS + number,
        expires_ms: if kind == RecordKind::Hold { AT_MS + number + 300_000 } else { 0 },
    }
}

fn batch(epoch: u64, kind: RecordKind, numbers: impl IntoIterator<Item = u64>) -> Records {
    let mut records = Records::new(SALE, epoch);
    numbers.into_iter().for_each(|number| records.push(&record(kind, number)));
    records
}

/// Polls until `done` or for ten seconds.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
