//! What the writer does when it cannot know, and when Postgres says nothing.

use super::server::{Database, Server};
use super::{batch, eventually};
use flashsale::code::Codes;
use flashsale::domain::RecordKind::{Hold, Purchase};
use flashsale::ledger::postgres::{PostgresAppend, PostgresLedger, parse_dsn};
use flashsale::ledger::{Append, Fence, Ledger};
use postgres::{Client, NoTls};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Ends the writer's session and says how many there were.
fn cut(database: &Database) -> i64 {
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'flashsale'";
    database.client().query_one(cut, &[]).unwrap().get(0)
}

#[test]
fn a_lost_session_is_made_anew() {
    let database = Database::new();
    let mut append = database.append();
    append.append(&[&batch(1, Hold, [1])]).unwrap();
    eventually("only the writer is left", || {
        database
            .client()
            .query("SELECT 1 FROM pg_stat_activity WHERE application_name = 'flashsale'", &[])
            .unwrap()
            .len()
            == 1
    });
    assert_eq!(cut(&database), 1);
    // Quietly, though the first of the rows is there already.
    append.append(&[&batch(1, Hold, [1, 2])]).unwrap();
    append.append(&[&batch(1, Hold, [3])]).unwrap();
    assert_eq!(database.count("ledger_holds"), 3);
}

#[test]
fn a_refusal_says_what_postgres_said_and_passes() {
    let database = Database::new();
    let mut append = database.append();
    let mut client = database.client();
    client.batch_execute("ALTER TABLE ledger_holds ADD CHECK (hold <> 2)").unwrap();
    let why = append.append(&[&batch(1, Hold, [1, 2])]).unwrap_err().to_string();
    assert!(why.contains("check constraint") && why.contains("[SQLSTATE 23514]") && !why.contains('\n'), "{why}");
    assert_eq!(database.count("ledger_holds"), 0);
    client.batch_execute("ALTER TABLE ledger_holds DROP CONSTRAINT ledger_holds_hold_check").unwrap();
    append.append(&[&batch(1, Hold, [1, 2])]).unwrap();
    assert_eq!(database.count("ledger_holds"), 2);
}

/// When a [`proxy`] cuts.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The server never sees the commit.
    BeforeCommit,
    /// The server commits, and the client never learns it.
    AfterCommit,
}

/// A way to `port` that goes down once, at the first commit of rows: for the client the connection is gone, while the
/// server sees nothing of that.
fn proxy(port: u16, cut: Cut) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let armed = Arc::new(AtomicBool::new(true));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, armed) = (client.unwrap(), armed.clone());
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut back_from, mut back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
            std::thread::spawn(move || forward(&client, &server, &armed, cut));
        }
    });
    own
}

fn forward(mut client: &TcpStream, mut server: &TcpStream, armed: &AtomicBool, cut: Cut) {
    let mut bytes = [0; 4096];
    loop {
        let count = client.read(&mut bytes).unwrap_or(0);
        let now = bytes[..count].windows(6).any(|word| word == b"COMMIT") && armed.swap(false, Ordering::Relaxed);
        if now {
            client.shutdown(Shutdown::Both).unwrap();
        }
        if count == 0 {
            let _ = server.shutdown(Shutdown::Both);
            return;
        }
        if !now || matches!(cut, Cut::AfterCommit) {
            let _ = server.write_all(&bytes[..count]);
        }
        if now {
            // Long enough for the server to see a client that is connected and silent.
            std::thread::sleep(Duration::from_secs(60));
        }
    }
}

#[test]
fn a_commit_in_doubt_is_settled() {
    for cut in [Cut::BeforeCommit, Cut::AfterCommit] {
        let database = Database::new();
        let codes = Codes::new(&database.ledger().code_key().unwrap());
        let port = proxy(database.server.port, cut);
        let dsn = database.server.dsn(&database.name).replace(&database.server.port.to_string(), &port.to_string());
        let mut append = PostgresAppend::new(parse_dsn(&dsn).unwrap(), codes);
        let rows = [&batch(1, Hold, 1..=50), &batch(1, Purchase, 1..=20)];
        append.append(&rows).unwrap_err();
        // Far sooner than the server would end an idle transaction by itself.
        let began = Instant::now();
        append.append(&rows).unwrap();
        assert!(began.elapsed() < Duration::from_secs(3), "{cut:?}: {:?}", began.elapsed());
        assert_eq!((database.count("ledger_holds"), database.count("ledger_purchases")), (50, 20), "{cut:?}");
        append.append(&[&batch(1, Hold, 51..=60)]).unwrap();
    }
}

/// `call` fails, and within `limit` seconds.
fn fails_within(what: &str, limit: u64, call: impl FnOnce() -> bool) {
    let began = Instant::now();
    assert!(!call(), "{what} succeeded");
    assert!(began.elapsed() < Duration::from_secs(limit), "{what} took {:?}", began.elapsed());
}

#[test]
fn a_hung_server_does_not_hang_the_callers() {
    let server = Server::start(None);
    let settings = parse_dsn(&format!("{} connect_timeout=1", server.dsn("postgres"))).unwrap();
    let mut ledger = PostgresLedger::new(settings.clone());
    let mut append = PostgresAppend::new(settings.clone(), Codes::new(&ledger.code_key().unwrap()));
    append.append(&[&batch(1, Hold, [1])]).unwrap();
    ledger.join(1).unwrap();
    server.signal(Signal::STOP);
    std::thread::scope(|scope| {
        let (ledger, append, settings) = (&mut ledger, &mut append, &settings);
        scope.spawn(move || fails_within("append", 13, || append.append(&[&batch(1, Hold, [2])]).is_ok()));
        scope.spawn(move || {
            fails_within("connect", 3, || PostgresLedger::new(settings.clone()).epoch().is_ok());
        });
        scope.spawn(move || {
            fails_within("epoch", 7, || ledger.epoch().is_ok());
            fails_within("is_member", 7, || ledger.is_member());
        });
    });
    server.signal(Signal::CONT);
    append.append(&[&batch(1, Hold, [1, 2])]).unwrap();
    let mut client = Client::connect(&server.dsn("postgres"), NoTls).unwrap();
    let query = "SELECT (SELECT count(*) FROM ledger_holds), (SELECT count(*) FROM ledger_purchases)";
    let row = client.query_one(query, &[]).unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 0));
}
