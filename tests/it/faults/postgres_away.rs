//! Postgres is away: sales go on, and all of it is in the ledger afterwards.

use super::*;
use crate::support::servers::{Mode, Stack};

const OUTAGE: Duration = Duration::from_secs(10);

/// A machine that stands still for a second is not what these tests are about: Redis may take longer than usual.
const REDIS_PATIENCE_MS: u64 = 4_000;

/// Every request was decided: none was told to come back.
fn nobody_noticed(history: &History) {
    let lost: Vec<String> = history.words().into_iter().filter(|word| word.starts_with("lost")).collect();
    assert_eq!(lost, Vec::<String>::new());
}

#[test]
fn stopped_for_ten_seconds() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).env("REDIS_TIMEOUT_MS", REDIS_PATIENCE_MS).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        stack.postgres().stop_immediate();
        let until = Instant::now() + OUTAGE;
        while Instant::now() < until {
            sells(&history, 50);
        }
        stack.postgres().start_again();
    });
    only_harmless_words(&history, |_| false);
    nobody_noticed(&history);
}

#[test]
fn stopped_across_an_edge() {
    let mut stack = Stack::new(Mode::Distributed);
    let terms = Terms { items: 9_000, user_limit: 20, sale_seconds: 6, hold_seconds: 5 };
    let history = History::default();
    let app = with_terms(stack.app(), &terms).env("REDIS_TIMEOUT_MS", REDIS_PATIENCE_MS).start();
    let ledger = stack.ledger();
    drive(&[app.addr()], &history, || {
        stack.postgres().stop_immediate();
        let edge = clock::sale_end(terms.sale_seconds) + terms.sale_seconds;
        while clock::now() < edge as f64 + 1.0 {
            sells(&history, 50);
        }
        stack.postgres().start_again();
    });
    only_harmless_words(&history, |_| false);
    nobody_noticed(&history);
    let rows = audit::check(&history, &ledger, &terms);
    let sales: HashSet<u64> = rows.attempts.iter().map(|row| row.sale).collect();
    assert!(sales.len() >= 3, "two edges: {sales:?}");
}

#[test]
fn restarted_in_the_middle_of_writing() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).start();
    let ledger = stack.ledger();
    let rows = under_load(&[&app], &history, &ledger, &terms, || {
        for _ in 0..4 {
            // The writer is always about to write.
            sells(&history, 150);
            stack.postgres().start_again();
        }
    });
    assert!(rows.attempts.len() > 400);
}

#[test]
fn hanging() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).env("REDIS_TIMEOUT_MS", REDIS_PATIENCE_MS).start();
    let ledger = stack.ledger();
    under_load(&[&app], &history, &ledger, &terms, || {
        stack.postgres().pause();
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            sells(&history, 50);
        }
        stack.postgres().resume();
    });
    nobody_noticed(&history);
}

#[test]
fn acknowledged_by_the_ledger() {
    let mut stack = Stack::new(Mode::Distributed);
    let (terms, history) = (plenty(), History::default());
    let app = with_terms(stack.app(), &terms).env("PURCHASE_ACK", "ledger").start();
    let mut client = app.client();
    let mut reader = stack.postgres().client();
    let mut in_ledger = |code: &str| {
        let count = "SELECT count(*) FROM purchases WHERE code = $1";
        reader.query_one(count, &[&code]).unwrap().get::<_, i64>(0)
    };
    for _ in 0..30 {
        let code = client.code(&format!("a{}", fastrand::u64(..)), "i");
        assert_eq!(client.purchase(&code).status, 200);
        // At the moment of the answer, not later.
        assert_eq!(in_ledger(&code), 1);
    }
    let code = client.code("b", "lamp");
    stack.postgres().stop_immediate();
    let mut patient = ask_later(app.addr(), &code);
    assert_eq!(patient.join().unwrap(), 503);
    // Redis knows that it was bought; the ledger does not, so no shopper is told.
    patient = ask_later(app.addr(), &code);
    assert_eq!(patient.join().unwrap(), 503);
    stack.postgres().start_again();
    let answer = poll("the purchase", GOING_ON * 2, || {
        let answer = client.purchase(&code);
        (answer.status != 503).then_some(answer)
    });
    assert_eq!((answer.status, answer.field("item_id").as_str()), (409, "lamp"), "{}", answer.text());
    let mut reader = stack.postgres().client();
    let found = reader.query_one("SELECT count(*) FROM purchases WHERE code = $1", &[&code]).unwrap();
    assert_eq!(found.get::<_, i64>(0), 1);
    drop(history);
}

/// A purchase by a client who waits for as long as it takes; the status.
fn ask_later(addr: SocketAddr, code: &str) -> std::thread::JoinHandle<u16> {
    let request = format!("POST /purchase?code={code} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer[9..12].parse().unwrap()
    })
}
