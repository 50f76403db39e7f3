//! The functions of a request's way, each as a case that can be run any number of times.
//!
//! Owns the inputs and the checks: a case panics when it is made if its function gives another result than it should,
//! so nothing wrong is ever timed. Both the criterion benchmarks and the count of instructions run these cases.
//! Leaves timing and printing to them.

use flashsale::catalog::Catalog;
use flashsale::code::{Code, Codes};
use flashsale::domain::{HoldKey, HoldNumber, Id, Outcome, Record, RecordKind, Records, Request, SaleId, Terms};
use flashsale::http::answers::Answers;
use flashsale::http::query;
use flashsale::http::request::{self, Method, Parse};
use flashsale::http::response::Responder;
use flashsale::http::service::Service;
use flashsale::inventory::Inventory;
use flashsale::inventory::memory::{Decision, MemorySale};
use flashsale::inventory::redis::scripts::{Header, checkout, purchase};
use flashsale::ledger::postgres::copy::Rows;
use flashsale::redis_wire::resp::{self, Reply};
use flashsale::service::{Answer, Shop};
use flashsale::worker::{Ticket, Waiter};
use redis::Cmd;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

/// One function with its input.
pub struct Case {
    /// What is measured, as it stands in the tables.
    pub name: &'static str,
    /// How many requests or rows one run handles.
    pub batch: u64,
    /// Runs it once.
    pub run: Box<dyn FnMut()>,
}

/// Requests in a batch: about what a worker gathers in a turn under full load.
const BATCH: usize = 32;
/// Rows that the writer puts into one transaction under full load.
const ROWS: usize = 1000;
/// Holds that a sale in memory gathers before the case begins with an empty one.
pub const SALE: u64 = 10_000;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";
const TERMS: Terms = Terms {
    sale: SaleId(1_700_000_000),
    items: SALE,
    user_limit: 10,
    hold_ms: 300_000,
    starts_ms: 1_700_000_000_000,
    ends_ms: 1_700_003_600_000,
};
const NOW: u64 = TERMS.starts_ms + 1;
const HEADER: Header<'_> = Header { sha: SHA, sale: TERMS.sale, epoch: 3, latest_ms: NOW + 1_000 };
/// EVALSHA, digest, number of keys, two keys, epoch, latest moment.
const HEADER_WORDS: usize = 7;

/// The cases whose names begin with `prefix`, each checked. The sale in memory is not made for others: its hash table
/// has another order in each process, which would blur the count of their instructions.
pub fn of(prefix: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    requests(&mut cases);
    codes(&mut cases);
    responses(&mut cases);
    script_calls(&mut cases);
    replies(&mut cases);
    if MEMORY.starts_with(prefix) || prefix.starts_with(MEMORY) {
        memory(&mut cases);
    }
    copy_rows(&mut cases);
    cases.retain(|case| case.name.starts_with(prefix));
    cases
}

/// How the names of the cases of the sale in memory begin.
const MEMORY: &str = "memory inventory";

fn add(cases: &mut Vec<Case>, name: &'static str, batch: u64, run: impl FnMut() + 'static) {
    cases.push(Case { name, batch, run: Box::new(run) });
}

fn id(text: impl AsRef<str>) -> Id {
    text.as_ref().parse().expect("an id")
}

fn hold(number: u64) -> HoldKey {
    HoldKey { sale: TERMS.sale, number: HoldNumber(number) }
}

fn requests(cases: &mut Vec<Case>) {
    let short = b"POST /checkout?user_id=123456&id=4321 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
    let browser = b"POST /checkout?user_id=123456&id=4321 HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: Mozilla/5.0 \
        (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\nAccept: application/json\r\nAccept-Language: \
        en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://shop.example/sale\r\nOrigin: \
        https://shop.example\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nX-Forwarded-For: 203.0.113.7\r\n\
        Content-Length: 0\r\nConnection: keep-alive\r\n\r\n";
    for (name, bytes) in [("parse a request of a load generator", &short[..]), ("parse a browser's request", browser)] {
        let Parse::Complete { request, head_len } = request::parse(bytes) else { panic!("{name}") };
        assert_eq!((request.method, request.path, head_len), (Method::Post, "/checkout", bytes.len()), "{name}");
        assert!(request.keep_alive && request.query == "user_id=123456&id=4321", "{name}");
        add(cases, name, 1, move || {
            black_box(request::parse(black_box(bytes)));
        });
    }
    let plain = ("decode a query", "user_id=123456&id=4321", ["123456", "4321"]);
    let escaped = (
        "decode an escaped query",
        "id=caf%C3%A9+au+lait&user_id=ana%40shop.example",
        ["ana@shop.example", "café au lait"],
    );
    for (name, query, want) in [plain, escaped] {
        let found = query::find(query, ["user_id", "id"]).expect(name);
        assert_eq!(found.each_ref().map(Id::as_str), want, "{name}");
        add(cases, name, 1, move || {
            let _ = black_box(query::find(black_box(query), ["user_id", "id"]));
        });
    }
}

fn codes(cases: &mut Vec<Case>) {
    let codes = Codes::new(&[7; 16]);
    let code = codes.mint(hold(5));
    assert_eq!(codes.open(code.as_bytes()), Some(hold(5)));
    let forged = "0123456789abcdef0123456789abcdef";
    assert_eq!(codes.open(forged.as_bytes()), None);
    let minting = codes.clone();
    add(cases, "mint a code", 1, move || {
        black_box(minting.mint(black_box(hold(5))));
    });
    let opening = codes.clone();
    add(cases, "open a code", 1, move || {
        black_box(opening.open(black_box(code.as_bytes())));
    });
    add(cases, "refuse a forged code", 1, move || {
        black_box(codes.open(black_box(forged.as_bytes())));
    });
}

/// An inventory that is never asked.
struct NoInventory;

impl Inventory for NoInventory {
    fn submit(&self, _waiter: &Arc<Waiter<Outcome>>, _ticket: Ticket, _request: &Request) -> Option<Outcome> {
        None
    }
    fn tick(&self, _worker: usize) {}
    fn is_ready(&self) -> bool {
        false
    }
    fn undecided(&self, _worker: usize) -> usize {
        0
    }
}

/// A shop that only ever writes one answer.
struct Rendering {
    shop: Shop,
    answer: Answer,
    out: Vec<u8>,
    scratch: Vec<u8>,
    answers: Answers,
}

impl Rendering {
    fn run(&mut self) -> &[u8] {
        self.out.clear();
        let (out, scratch, date) = (&mut self.out, &mut self.scratch, b"Thu, 01 Jan 1970 00:00:00 GMT");
        let mut to =
            Responder { out, scratch, date, keep_alive: true, http_11: true, head_only: false, answers: &self.answers };
        self.shop.render(black_box(&self.answer), &mut to);
        &self.out
    }
}

fn responses(cases: &mut Vec<Case>) {
    let codes = Codes::new(&[7; 16]);
    let code: Code = codes.mint(hold(5));
    let held = format!("{{\"code\":\"{}\",\"expires_at\":1700000300}}", code.as_str());
    let bought = "{\"success\":true,\"item_id\":\"4321\",";
    for (name, outcome, status, body) in [
        ("respond to a checkout", Outcome::Held { hold: hold(5), expires_ms: 1_700_000_300_000 }, "200 OK", &held[..]),
        ("respond sold out", Outcome::SoldOut { retry_ms: 1_000 }, "409 Conflict", "{\"error\":\"sold_out\","),
        ("respond to a purchase", Outcome::Purchased { item: id("4321") }, "200 OK", bought),
    ] {
        let shop = Shop::new(Arc::new(NoInventory), codes.clone(), Catalog::generated(), Duration::ZERO);
        let (out, scratch) = (Vec::with_capacity(1024), Vec::with_capacity(1024));
        let mut rendering =
            Rendering { shop, answer: Answer::Decided(outcome), out, scratch, answers: Answers::default() };
        let text = String::from_utf8(rendering.run().to_vec()).expect("text");
        let (head, rest) = text.split_once("\r\n\r\n").expect("an empty line");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")) && rest.starts_with(body), "{text}");
        add(cases, name, 1, move || {
            black_box(rendering.run());
        });
    }
}

fn pack_checkouts(cmd: &mut Cmd, ids: &[(Id, Id)], out: &mut Vec<u8>) {
    out.clear();
    checkout::call(cmd, &HEADER, HoldNumber(8), ids.iter().map(|(user, item)| (user, item)), out);
}

fn pack_purchases(cmd: &mut Cmd, out: &mut Vec<u8>) {
    out.clear();
    purchase::call(cmd, &HEADER, (1..=BATCH as u64).map(HoldNumber), out);
}

fn script_calls(cases: &mut Vec<Case>) {
    let ids = |i: usize| (id(format!("{}", 123_456 + i)), id(format!("{}", 4_000 + i)));
    let ids: Vec<(Id, Id)> = (0..BATCH).map(ids).collect();
    let (mut cmd, mut out) = (Cmd::new(), Vec::new());
    pack_checkouts(&mut cmd, &ids, &mut out);
    // Their number and their chunks; a user each; field and entries of each chunk.
    check_call(&out, HEADER_WORDS + 2 + BATCH + 2 * BATCH / 8);
    add(cases, "pack a batch of 32 checkouts", BATCH as u64, move || {
        pack_checkouts(&mut cmd, black_box(&ids), &mut out);
        black_box(&out);
    });
    let (mut cmd, mut out) = (Cmd::new(), Vec::new());
    pack_purchases(&mut cmd, &mut out);
    check_call(&out, HEADER_WORDS + BATCH);
    add(cases, "pack a batch of 32 purchases", BATCH as u64, move || {
        pack_purchases(&mut cmd, &mut out);
        black_box(&out);
    });
}

/// Panics unless `call` is one EVALSHA of `words` words.
fn check_call(call: &[u8], words: usize) {
    let Ok(Some((Reply::Array(count, body), used))) = resp::parse(call) else { panic!("not a command") };
    let first: Vec<Reply<'_>> = resp::elements(count, body).take(3).collect();
    assert_eq!((count, used), (words, call.len()));
    assert_eq!(first, [Reply::Bulk(b"EVALSHA"), Reply::Bulk(SHA.as_bytes()), Reply::Bulk(b"2")]);
}

fn bulk(text: &str) -> Vec<u8> {
    format!("${}\r\n{text}\r\n", text.len()).into_bytes()
}

fn body(reply: &[u8]) -> &[u8] {
    match resp::parse(reply) {
        Ok(Some((Reply::Bulk(body), used))) if used == reply.len() => body,
        other => panic!("{other:?}"),
    }
}

fn replies(cases: &mut Vec<Case>) {
    let reply = bulk(&format!("K {NOW} {} {}\n{}", NOW + 300_000, NOW + 300_000, "H".repeat(BATCH)));
    let read = |reply: &[u8]| {
        let decided = checkout::read(body(reply), BATCH).expect("a reply").expect("a decision");
        decided.marks().filter(|mark| *mark == Some(checkout::Mark::Held)).count()
    };
    assert_eq!(read(&reply), BATCH);
    add(cases, "read a reply to 32 checkouts", BATCH as u64, move || {
        black_box(read(black_box(&reply)));
    });
    // Lengths of 6 and 4 bytes, counted from a space.
    let facts: String = (0..BATCH).map(|i| format!("&${}{}", 123_456 + i, 4_000 + i)).collect();
    let reply = bulk(&format!("K {NOW}\n{}\n{facts}", "P".repeat(BATCH)));
    let read = |reply: &[u8]| {
        let decided = purchase::read(body(reply), BATCH).expect("a reply").expect("a decision");
        let last = decided.marks().last().expect("a mark");
        let Some(purchase::Mark::Purchased(fact)) = last else { panic!("{last:?}") };
        fact
    };
    let fact = read(&reply);
    assert_eq!((fact.user.as_str(), fact.item.as_str(), fact.purchased_ms), ("123487", "4031", NOW));
    add(cases, "read a reply to 32 purchases", BATCH as u64, move || {
        black_box(read(black_box(&reply)));
    });
}

fn memory(cases: &mut Vec<Case>) {
    let empty = || MemorySale::open(TERMS, [], NOW);
    let user = |number: u64| id(format!("{}", 100_000 + number / TERMS.user_limit));
    let users: Vec<Id> = (0..SALE).map(user).collect();
    let (mut sale, mut number, item) = (empty(), 0, id("4321"));
    let mut checkout = move || {
        if number == SALE {
            (sale, number) = (empty(), 0);
        }
        let decision = sale.checkout(NOW, HoldNumber(number), users[number as usize], item);
        number += 1;
        decision
    };
    for _ in 0..SALE + 1 {
        let decision = checkout();
        assert!(
            matches!(decision, Decision::Decided { outcome: Outcome::Held { .. }, record: Some(_) }),
            "{decision:?}"
        );
    }
    add(cases, "memory inventory: a checkout", 1, move || {
        black_box(checkout());
    });
    let mut full = empty();
    for number in 0..SALE {
        full.checkout(NOW, HoldNumber(number), user(number), item);
    }
    let held = full.clone();
    let mut sold_out = move || full.checkout(NOW, HoldNumber(SALE), user(SALE), item);
    let decision = sold_out();
    assert!(matches!(decision, Decision::Decided { outcome: Outcome::SoldOut { .. }, record: None }), "{decision:?}");
    add(cases, "memory inventory: sold out", 1, move || {
        black_box(sold_out());
    });
    let (mut sale, mut number) = (held.clone(), 0);
    let mut purchase = move || {
        if number == SALE {
            (sale, number) = (held.clone(), 0);
        }
        let decision = sale.purchase(NOW, HoldNumber(number));
        number += 1;
        decision
    };
    for _ in 0..SALE + 1 {
        let decision = purchase();
        assert!(matches!(decision, Decision::Decided { outcome: Outcome::Purchased { .. }, .. }), "{decision:?}");
    }
    add(cases, "memory inventory: a purchase", 1, move || {
        black_box(purchase());
    });
}

fn copy_rows(cases: &mut Vec<Case>) {
    let codes = Codes::new(&[7; 16]);
    for (name, kind, columns) in [
        ("encode 1,000 COPY rows of holds", RecordKind::Hold, 7u16),
        ("encode 1,000 COPY rows of purchases", RecordKind::Purchase, 6),
    ] {
        let mut records = Records::new(TERMS.sale, 3);
        for number in 0..ROWS as u64 {
            let (user, item) = (id(format!("{}", 100_000 + number)), id("4321"));
            let (number, expires_ms) = (HoldNumber(number), if kind == RecordKind::Hold { NOW + 300_000 } else { 0 });
            records.push(&Record { kind, number, user, item, at_ms: NOW, expires_ms });
        }
        let codes = codes.clone();
        let mut rows = Rows::default();
        rows.encode(&[&records], &codes).expect(name);
        let table = if kind == RecordKind::Hold { &rows.holds } else { &rows.purchases };
        assert_eq!(table.rows, ROWS as u64, "{name}");
        assert!(table.bytes.starts_with(b"PGCOPY\n\xff\r\n\0") && table.bytes.ends_with(&[0xff, 0xff]), "{name}");
        assert_eq!(table.bytes[19..21], columns.to_be_bytes(), "{name}");
        add(cases, name, ROWS as u64, move || {
            let _ = black_box(rows.encode(&[black_box(&records)], &codes));
        });
    }
}
