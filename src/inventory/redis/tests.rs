//! A lane with its protocol and no connection: what is sent for which requests, and that each request gets its one answer
//! whatever Redis replies.

use super::Shared;
use super::flight::Flight;
use super::lane::Lane;
use super::protocol::ScriptProtocol;
use super::scripts::MAX_BATCH;
use crate::code::{HoldNumbers, number_parts};
use crate::domain::{HoldKey, HoldNumber, Id, Outcome, Request, SaleId, Terms};
use crate::inventory::{Clock, LostCalls, Suspicion, View};
use crate::record::{self, Inbox, Message};
use crate::redis_wire::pipeline::{ConnectionEnd, DriverWaker, Protocol};
use crate::redis_wire::resp::{self, ErrorReply, Reply};
use crate::worker::testing::on_worker;
use crate::worker::{Begun, Bell, Ticket, Waiter, Workers};
use crossbeam_channel::Receiver;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const EPOCH: u64 = 3;
const NOW: u64 = 1_000_500;

/// The sale that is on, and the next one.
const SALES: [Terms; 2] = [
    Terms { sale: SaleId(1000), items: 9, user_limit: 1, hold_ms: 100, starts_ms: 1_000_000, ends_ms: 2_000_000 },
    Terms { sale: SaleId(2000), items: 9, user_limit: 1, hold_ms: 100, starts_ms: 2_000_000, ends_ms: 3_000_000 },
];

struct Bench {
    lane: Arc<Lane>,
    protocol: ScriptProtocol,
    bell: Bell,
    suspicions: Receiver<Suspicion>,
    lost_calls: LostCalls,
    inbox: Inbox,
}

/// A request that was submitted.
struct Asked(Arc<Waiter<Outcome>>, Ticket);

impl Asked {
    /// Its answer, if it has come.
    fn take(&self) -> Option<Outcome> {
        self.0.take(self.1)
    }
}

impl Bench {
    /// A lane whose connection has just been made.
    fn new(workers: Workers, ack_by_ledger: bool) -> Bench {
        let (clock, identity) = (Clock::new(Instant::now(), NOW), "run/replication".to_owned());
        let view = View { epoch: EPOCH, selling: true, sales: SALES.to_vec(), identity, clock, ..View::closed() };
        let (recorder, inbox) = record::channel(64);
        let ((tell, suspicions), lost_calls) = (crossbeam_channel::bounded(64), LostCalls::default());
        let shared = Shared {
            view: Arc::new(arc_swap::ArcSwap::from_pointee(view)),
            numbers: HoldNumbers::starting_at(1, 0),
            recorder: Arc::new(recorder),
            ack_by_ledger,
            timeout: Duration::from_secs(1),
            suspicions: tell,
            lost_calls: lost_calls.clone(),
        };
        let driver = Arc::new(DriverWaker::new(workers, 0).unwrap());
        let lane = Arc::new(Lane::new(0, Arc::new(shared), driver));
        let mut protocol = ScriptProtocol::new(lane.clone(), "redis:6379".into());
        assert_eq!(protocol.greet(&mut Vec::new()), 3);
        let info = b"run_id:run\r\nrole:master\r\nmaster_replid:replication\r\n";
        for (nth, reply) in [&info[..], b"checkout", b"purchase"].into_iter().enumerate() {
            protocol.greeted(nth, Reply::Bulk(reply)).unwrap();
        }
        protocol.ready();
        Bench { lane, protocol, bell: Bell::new(workers, 0).unwrap(), suspicions, lost_calls, inbox }
    }

    /// Submits a request that the lane cannot decide by itself.
    fn ask(&self, request: Request) -> Asked {
        let waiter = Arc::new(Waiter::new(0, self.bell.waker()));
        match waiter.ask(|ticket| self.lane.submit(&waiter, ticket, &request)) {
            Begun::Waits(ticket) => Asked(waiter, ticket),
            Begun::Answered(outcome) => panic!("{outcome:?}"),
        }
    }

    fn checkout(&self, user: usize) -> Asked {
        self.ask(Request::Checkout { user: id(format!("u{user}")), item: id("i") })
    }

    fn purchase(&self, sale: usize, number: u64) -> Asked {
        self.ask(Request::Purchase { hold: HoldKey { sale: SALES[sale].sale, number: HoldNumber(number) } })
    }

    /// Has the lane send what waits: the script of each call, or what else was sent.
    fn send(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        self.protocol.fill(&mut out).unwrap();
        let (mut rest, mut sent) = (&out[..], Vec::new());
        while !rest.is_empty() {
            let Ok(Some((Reply::Array(count, words), used))) = resp::parse(rest) else { panic!("not a command") };
            let words: Vec<&[u8]> = resp::elements(count, words)
                .map(|word| if let Reply::Bulk(word) = word { word } else { panic!("{word:?}") })
                .collect();
            let word = if words[0] == b"EVALSHA" { words[1] } else { words[0] };
            sent.push(String::from_utf8_lossy(word).into_owned());
            rest = &rest[used..];
        }
        sent
    }

    /// How many requests each command in flight carries.
    fn flights(&self) -> Vec<usize> {
        self.lane.state.lock().flights.iter().map(Flight::requests).collect()
    }

    /// The users in the oldest call in flight, which is one of checkouts.
    fn users(&self) -> Vec<Id> {
        match self.lane.state.lock().flights.front() {
            Some(Flight::Checkouts { call, .. }) => call.requests.iter().map(|p| p.request.user).collect(),
            _ => panic!("no checkouts"),
        }
    }

    /// Replies to the oldest command in flight. Returns the words of the fault if the connection ends.
    fn reply(&mut self, reply: Reply<'_>) -> Option<String> {
        self.protocol.reply(reply).err().map(|fault| fault.to_string())
    }

    /// Replies with `text`, after which the connection goes on.
    fn text(&mut self, text: &str) {
        assert_eq!(self.reply(Reply::Bulk(text.as_bytes())), None);
    }

    /// Replies that the script is missing.
    fn no_script(&mut self) {
        assert_eq!(self.reply(Reply::Error(ErrorReply(b"NOSCRIPT No matching script."))), None);
    }

    fn suspicion(&self) -> Option<Suspicion> {
        self.suspicions.try_recv().ok()
    }
}

fn id(text: impl AsRef<str>) -> Id {
    text.as_ref().parse().unwrap()
}

#[test]
fn each_kind_goes_out_in_calls_of_its_own() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let _asked = [
            bench.purchase(0, 1),
            bench.checkout(1),
            bench.purchase(1, 2),
            bench.checkout(2),
            bench.purchase(0, 3),
            bench.checkout(3),
        ];
        assert_eq!(bench.send(), ["checkout", "purchase", "purchase"]);
        assert_eq!(bench.flights(), [3, 2, 1], "a call is of one kind and of one sale");
        assert_eq!(bench.users(), [id("u1"), id("u2"), id("u3")], "in their order");
        assert_eq!(bench.send(), [""; 0]);
    });
}

#[test]
fn the_kinds_take_turns_in_calls_of_bounded_size() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let checkouts: Vec<Asked> = (0..3 * MAX_BATCH).map(|user| bench.checkout(user)).collect();
        let purchases: Vec<Asked> = (0..MAX_BATCH as u64 + 1).map(|number| bench.purchase(0, number)).collect();
        assert_eq!(bench.send(), ["checkout", "purchase", "checkout", "purchase"]);
        assert_eq!(bench.flights(), [MAX_BATCH, MAX_BATCH, MAX_BATCH, 1]);
        assert_eq!(bench.send(), [""; 0], "enough is in flight");
        assert_eq!(bench.lane.undecided(), checkouts.len() + purchases.len());
        bench.text("N");
        assert_eq!(bench.send(), ["checkout"]);
        assert_eq!(bench.lane.undecided(), 2 * MAX_BATCH + purchases.len());
    });
}

#[test]
fn each_call_has_whole_chunks_of_numbers() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let mut numbers = Vec::new();
        for users in [2, 9, 1] {
            let asked: Vec<Asked> = (0..users).map(|user| bench.checkout(user)).collect();
            bench.send();
            bench.text(&format!("K {NOW} {} 0\n{}", NOW + 100, "H".repeat(users)));
            numbers.extend(asked.iter().map(|asked| match asked.take() {
                Some(Outcome::Held { hold, .. }) => number_parts(hold.number),
                other => panic!("{other:?}"),
            }));
        }
        let wanted = [0..2, 8..17, 24..25].into_iter().flatten().map(|counter| (1, counter));
        assert_eq!(numbers, wanted.collect::<Vec<_>>());
    });
}

/// A reply to two requests; the second one's answer is `unavailable`.
struct Row {
    reply: Reply<'static>,
    /// The first one's answer.
    first: Outcome,
    /// Why the connection ends, if it does.
    fault: Option<&'static str>,
    /// What the keeper is told, if anything.
    suspicion: Option<Suspicion>,
}

fn row(reply: Reply<'static>, fault: Option<&'static str>, suspicion: Option<Suspicion>) -> Row {
    Row { reply, first: Outcome::Unavailable, fault, suspicion }
}

/// Replies that decide nothing, to a call of any script.
fn undecided() -> Vec<Row> {
    let sale = SALES[0].sale;
    let error = |text: &'static str| Reply::Error(ErrorReply(text.as_bytes()));
    let text = |text: &'static str| Reply::Bulk(text.as_bytes());
    let state = |what| Some(Suspicion::State(sale, what));
    let unreadable = "ERR user_script:4: attempt to compare nil with number script: a, on @user_script:4.";
    let (oom, read_only) = ("OOM command not allowed", "READONLY You can't write against a read only replica.");
    let why = unreadable.to_owned();
    vec![
        row(error(oom), None, Some(Suspicion::Refused(oom.into()))),
        row(error(read_only), Some(read_only), None),
        row(error("WRONGTYPE Operation against a key"), None, state("has a key of another type")),
        row(error(unreadable), None, Some(Suspicion::Unreadable { sale, epoch: EPOCH, why })),
        row(Reply::Int(1), Some("Redis sent a reply of another kind than a script's"), None),
        row(Reply::Nil, Some("Redis sent a reply of another kind than a script's"), None),
        row(text(""), Some("Redis sent a reply that no script gives"), None),
        row(text("N"), None, state("is missing")),
        row(text("Q"), None, state("has lost a part of its queue")),
        row(text("C closed"), None, state("is closed")),
        row(text("E 9"), None, Some(Suspicion::Epoch(9))),
        row(text("E 2"), Some("Redis carries an older epoch"), Some(Suspicion::Epoch(2))),
    ]
}

fn check(bench: &mut Bench, asked: [Asked; 2], row: Row) {
    assert_eq!(bench.send().len(), 1);
    let fault = bench.reply(row.reply);
    assert_eq!(fault.as_deref(), row.fault, "{:?}", row.reply);
    let answers = asked.map(|asked| asked.take());
    assert_eq!(answers, [Some(row.first), Some(Outcome::Unavailable)], "{:?}", row.reply);
    assert_eq!(bench.suspicion(), row.suspicion, "{:?}", row.reply);
    assert_eq!(bench.lane.undecided(), 0);
}

#[test]
fn every_request_is_answered_whatever_redis_replies() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let mark = Some("a script's reply has a mark that no script gives");
        let first = Outcome::InvalidCode;
        let unknown = Row { reply: Reply::Bulk(b"K 1\nIx\n"), first, fault: mark, suspicion: None };
        for row in undecided().into_iter().chain([unknown]) {
            let asked = [bench.purchase(0, 1), bench.purchase(0, 2)];
            check(&mut bench, asked, row);
        }
        let first = Outcome::UserLimit { retry_ms: 100 };
        let unknown = Row { reply: Reply::Bulk(b"K 1 2 3\nLx"), first, fault: mark, suspicion: None };
        for row in undecided().into_iter().chain([unknown]) {
            let asked = [bench.checkout(1), bench.checkout(2)];
            check(&mut bench, asked, row);
        }
        // A reply that nothing waits for.
        assert_eq!(bench.reply(Reply::Nil).as_deref(), Some("Redis sent a reply without a request"));
    });
}

#[test]
fn a_sale_that_is_not_on_is_left_for_the_one_that_is() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let checkout = bench.checkout(1);
        let purchase = bench.purchase(0, 1);
        assert_eq!(bench.send(), ["checkout", "purchase"]);
        // By Redis' clock the next sale has begun.
        bench.text("T 2000001");
        bench.text("T 2000001");
        assert_eq!(purchase.take(), Some(Outcome::Unavailable), "a code is of one sale");
        assert_eq!(checkout.take(), None);
        assert_eq!(bench.send(), ["checkout"]);
        match bench.lane.state.lock().flights.front() {
            Some(Flight::Checkouts { call, .. }) => assert_eq!(call.terms, SALES[1]),
            _ => panic!("no checkouts"),
        }
        bench.text("T 2000001");
        assert_eq!(checkout.take(), Some(Outcome::Unavailable), "it is asked for once more, not for ever");
    });
}

#[test]
fn what_was_given_up_is_not_sent() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let asked = [1, 2, 3].map(|user| bench.checkout(user));
        asked[1].0.close(asked[1].1);
        let (wanted, unwanted) = (bench.purchase(0, 8), bench.purchase(1, 8));
        unwanted.0.close(unwanted.1);
        assert_eq!(bench.send(), ["checkout", "purchase"]);
        assert_eq!(bench.users(), [id("u1"), id("u3")]);
        assert_eq!(bench.flights(), [2, 1]);
        wanted.0.close(wanted.1);
        let last = [bench.checkout(4), bench.purchase(0, 9)];
        last.iter().for_each(|asked| asked.0.close(asked.1));
        assert!(bench.send().is_empty(), "no call for nothing");
        assert_eq!(bench.lane.undecided(), 3, "what is in flight may have its effect");
    });
}

#[test]
fn what_executed_nothing_is_sent_again_in_its_order() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let first = [bench.checkout(1), bench.checkout(2)];
        assert_eq!(bench.send(), ["checkout"]);
        let second = bench.checkout(3);
        assert_eq!(bench.send(), ["checkout"]);
        let third = bench.checkout(4);
        for _ in 0..3 {
            bench.no_script();
            // Both scripts are loaded before anything else, and the call in flight is told the same before that is answered.
            let sent = bench.send();
            assert_eq!(sent, ["SCRIPT", "SCRIPT", "checkout"]);
            while bench.flights().first() == Some(&1) {
                bench.no_script();
            }
            bench.text("checkout");
            bench.text("purchase");
            assert_eq!(bench.lane.undecided(), 4, "nothing is answered");
            bench.send();
        }
        assert_eq!(bench.users(), [id("u1"), id("u2"), id("u4")]);
        bench.no_script();
        for asked in first {
            assert_eq!(asked.take(), Some(Outcome::Unavailable), "scripts are flushed all the time");
        }
        assert_eq!((second.take(), third.take()), (None, None), "these were refused less often");
    });
}

#[test]
fn a_lost_connection_refuses_what_waits_and_tells_of_lost_calls() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, false);
        let waiting = bench.checkout(1);
        bench.protocol.lost(&ConnectionEnd::Closed);
        assert_eq!(waiting.take(), Some(Outcome::Unavailable));
        assert!(!bench.lost_calls.load(Ordering::Acquire), "nothing was sent");
        assert_eq!(bench.suspicion(), Some(Suspicion::Away));
        let waiter = Arc::new(Waiter::new(0, bench.bell.waker()));
        let purchase = Request::Purchase { hold: HoldKey { sale: SALES[0].sale, number: HoldNumber(1) } };
        let refused = waiter.ask(|ticket| bench.lane.submit(&waiter, ticket, &purchase));
        assert_eq!(refused, Begun::Answered(Outcome::Unavailable), "there is no connection");

        bench.protocol.ready();
        let asked = [bench.checkout(1), bench.purchase(0, 1)];
        bench.send();
        let behind = bench.purchase(0, 2);
        bench.protocol.lost(&ConnectionEnd::Closed);
        for asked in asked.iter().chain([&behind]) {
            assert_eq!(asked.take(), Some(Outcome::Unavailable));
        }
        assert!(bench.lost_calls.load(Ordering::Acquire));
        assert_eq!(bench.lane.undecided(), 0);
    });
}

#[test]
fn with_the_ledger_an_answer_travels_with_its_record() {
    on_worker(|workers| {
        let mut bench = Bench::new(workers, true);
        let [bought, expired] = [bench.purchase(0, 1), bench.purchase(0, 2)];
        bench.send();
        bench.text("K 10\nPI\n!!ui");
        assert_eq!(expired.take(), Some(Outcome::InvalidCode), "it reveals nothing");
        assert_eq!(bought.take(), None, "the ledger does not have it yet");
        let Ok(Message::Records(mut handoff)) = bench.inbox.receiver.try_recv() else { panic!("no records") };
        let record = handoff.records.iter().next().unwrap();
        assert_eq!((record.number, record.at_ms), (HoldNumber(1), 10));
        handoff.acks.drain(..).for_each(record::Ack::deliver);
        assert_eq!(bought.take(), Some(Outcome::Purchased { item: id("i") }));

        // The writer is gone: the answer is refused, not left.
        bench.inbox = record::channel(1).1;
        let bought = bench.purchase(0, 3);
        bench.send();
        bench.text("K 10\nP\n!!ui");
        assert_eq!(bought.take(), Some(Outcome::Unavailable));
    });
}
