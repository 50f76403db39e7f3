//! The scripts' side: a Redis, its clock in the oracle's hands, and calls that travel many at a time.

use crate::redis_server::Redis;
use flashsale::domain::{HoldKey, HoldNumber, Id, Outcome, Record, RecordKind, SaleId, Terms};
use flashsale::inventory::redis::scripts::purchase::Fact;
use flashsale::inventory::redis::scripts::{self, Header, Refusal};
use flashsale::keeper::error::KeeperError;
use flashsale::keeper::store::Store;
use flashsale::redis_wire::endpoint::RedisEndpoint;
use redis::{Cmd, Connection, ConnectionLike, Value, cmd};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Where the oracle keeps the time, in unix milliseconds.
const CLOCK_KEY: &str = "oracle:clock";
/// Sales after which Redis is emptied.
const SALES_KEPT: u64 = 500;

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are outcomes")]
pub enum Told {
    /// It was decided; with the new fact, if there is one.
    Outcome(Outcome, Option<Record>),
    /// The hold's number is taken.
    Duplicate,
    /// Not decided: more has expired than a call takes back.
    Again,
}

/// What became of one call.
pub type Reply = Result<Vec<Told>, Refusal>;

/// A call that is on its way.
enum Sent {
    Clock,
    Checkouts(Terms, Vec<(HoldNumber, Id, Id)>),
    Purchases(Terms, Vec<HoldNumber>),
}

/// The script `text` with Redis' clock in the place where the test sets it. Only here: what the server loads is the
/// script as it is.
pub fn with_test_clock(text: &str) -> String {
    let real = "redis.call('TIME')";
    assert_eq!(text.matches(real).count(), 1, "a script reads the clock exactly once");
    let ms = format!("tonumber(redis.call('GET', '{CLOCK_KEY}'))");
    text.replace(real, &format!("{{math.floor({ms} / 1000), {ms} % 1000 * 1000}}"))
}

pub struct Bench {
    pub connection: Connection,
    pub store: Store,
    /// The latest that calls take Redis' clock to show.
    pub latest_ms: u64,
    cmd: Cmd,
    checkout_sha: String,
    purchase_sha: String,
    sales: u64,
    out: Vec<u8>,
    sent: Vec<Sent>,
    seen: BTreeMap<&'static str, u64>,
    _redis: Redis,
}

impl Bench {
    pub fn start() -> Bench {
        let redis = Redis::start();
        let mut connection = redis.connection();
        let mut load = |text: &str| -> String {
            cmd("SCRIPT").arg("LOAD").arg(with_test_clock(text)).query(&mut connection).expect("load a script")
        };
        let (checkout_sha, purchase_sha) = (load(scripts::checkout::TEXT), load(scripts::purchase::TEXT));
        let target = Arc::new(RedisEndpoint::parse(&redis.addr().to_string()).unwrap());
        Bench {
            connection,
            store: Store::new(target, Duration::from_secs(5)),
            latest_ms: u64::MAX,
            cmd: Cmd::new(),
            checkout_sha,
            purchase_sha,
            sales: 0,
            out: Vec::new(),
            sent: Vec::new(),
            seen: BTreeMap::new(),
            _redis: redis,
        }
    }

    /// A sale's id that no case had before.
    pub fn next_sale(&mut self) -> SaleId {
        if self.sales.is_multiple_of(SALES_KEPT) {
            // Scripts stay loaded.
            let _: () = cmd("FLUSHALL").query(&mut self.connection).expect("FLUSHALL");
        }
        self.sales += 1;
        // What a failed case has left on its way.
        self.out.clear();
        self.sent.clear();
        SaleId(self.sales)
    }

    /// How often which outcome was seen: an oracle that never sees an outcome does not check it.
    pub fn tally(&self) -> String {
        format!("{:?}", self.seen)
    }

    pub fn send_clock(&mut self, ms: u64) {
        self.out.extend(cmd("SET").arg(CLOCK_KEY).arg(ms).get_packed_command());
        self.sent.push(Sent::Clock);
    }

    /// One call for `orders`, whose numbers are `first` and those that follow it.
    pub fn send_checkouts(&mut self, terms: &Terms, epoch: u64, first: HoldNumber, orders: &[(Id, Id)]) {
        let requests = orders.iter().map(|(user, item)| (user, item));
        let header = Header { sha: &self.checkout_sha, sale: terms.sale, epoch, latest_ms: self.latest_ms };
        scripts::checkout::call(&mut self.cmd, &header, first, requests, &mut self.out);
        let asked =
            (first.0..).map(HoldNumber).zip(orders).map(|(number, (user, item))| (number, *user, *item)).collect();
        self.sent.push(Sent::Checkouts(*terms, asked));
    }

    pub fn send_purchases(&mut self, terms: &Terms, epoch: u64, holds: Vec<HoldNumber>) {
        let numbers = holds.iter().copied();
        let header = Header { sha: &self.purchase_sha, sale: terms.sale, epoch, latest_ms: self.latest_ms };
        scripts::purchase::call(&mut self.cmd, &header, numbers, &mut self.out);
        self.sent.push(Sent::Purchases(*terms, holds));
    }

    /// Lets all calls that were sent arrive, and reads what became of them.
    pub fn replies(&mut self) -> Vec<Reply> {
        let sent = std::mem::take(&mut self.sent);
        if sent.is_empty() {
            return Vec::new();
        }
        let values = self.connection.req_packed_commands(&self.out, 0, sent.len()).expect("replies");
        self.out.clear();
        let replies: Vec<Reply> = sent.iter().zip(&values).filter_map(|(sent, value)| read(sent, value)).collect();
        for reply in &replies {
            match reply {
                Ok(told) => told.iter().for_each(|told| *self.seen.entry(name(told)).or_default() += 1),
                Err(_) => *self.seen.entry("call refused").or_default() += 1,
            }
        }
        replies
    }
}

fn name(told: &Told) -> &'static str {
    match told {
        Told::Again => "again",
        Told::Duplicate => "duplicate",
        Told::Outcome(outcome, _) => match outcome {
            Outcome::Held { .. } => "held",
            Outcome::SoldOut { .. } => "sold out",
            Outcome::UserLimit { .. } => "user limit",
            Outcome::Purchased { .. } => "purchased",
            Outcome::AlreadyPurchased { .. } => "already purchased",
            Outcome::InvalidCode => "expired",
            Outcome::HoldLost => "lost",
            Outcome::Unavailable => "unavailable",
        },
    }
}

fn read(sent: &Sent, value: &Value) -> Option<Reply> {
    let body = match (sent, value) {
        (Sent::Clock, Value::Okay) => return None,
        (_, Value::BulkString(body)) => body,
        _ => panic!("not a script's reply: {value:?}"),
    };
    let text = String::from_utf8_lossy(body);
    Some(match sent {
        Sent::Clock => panic!("not a reply to SET: {text}"),
        Sent::Checkouts(terms, asked) => {
            let reply = scripts::checkout::read(body, asked.len()).unwrap_or_else(|| panic!("unreadable: {text}"));
            reply.map(|decided| {
                let (now, expires, next) = (decided.now_ms, decided.expires_ms, decided.next_ms);
                let told = asked.iter().zip(decided.marks());
                told.map(|(asked, mark)| checkout(terms, (now, expires, next), asked, mark.unwrap())).collect()
            })
        }
        Sent::Purchases(_, holds) => {
            let reply = scripts::purchase::read(body, holds.len()).unwrap_or_else(|| panic!("unreadable: {text}"));
            reply.map(|decided| {
                let told = holds.iter().zip(decided.marks());
                told.map(|(number, mark)| purchase(decided.now_ms, *number, mark.unwrap())).collect()
            })
        }
    })
}

fn checkout(
    terms: &Terms,
    (now, expires_ms, next): (u64, u64, u64),
    (number, user, item): &(HoldNumber, Id, Id),
    mark: scripts::checkout::Mark,
) -> Told {
    let (number, user, item) = (*number, *user, *item);
    match mark {
        scripts::checkout::Mark::Held => {
            let record = Record { kind: RecordKind::Hold, number, user, item, at_ms: now, expires_ms };
            Told::Outcome(Outcome::Held { hold: HoldKey { sale: terms.sale, number }, expires_ms }, Some(record))
        }
        // A time that has passed would be a wait of more than five hundred million years.
        scripts::checkout::Mark::SoldOut => Told::Outcome(Outcome::SoldOut { retry_ms: next.wrapping_sub(now) }, None),
        scripts::checkout::Mark::UserLimit => {
            Told::Outcome(Outcome::UserLimit { retry_ms: terms.hold_expires_ms(now) - now }, None)
        }
        scripts::checkout::Mark::BoughtLimit => {
            Told::Outcome(Outcome::UserLimit { retry_ms: terms.ends_ms - now }, None)
        }
        scripts::checkout::Mark::Again => Told::Again,
        scripts::checkout::Mark::Duplicate => Told::Duplicate,
    }
}

fn purchase(now: u64, number: HoldNumber, mark: scripts::purchase::Mark) -> Told {
    match mark {
        scripts::purchase::Mark::Purchased(Fact { purchased_ms, user, item }) => {
            assert_eq!(purchased_ms, now);
            let record = Record { kind: RecordKind::Purchase, number, user, item, at_ms: now, expires_ms: 0 };
            Told::Outcome(Outcome::Purchased { item }, Some(record))
        }
        scripts::purchase::Mark::AlreadyPurchased { fact: Fact { purchased_ms, user, item }, .. } => {
            // The record of a repeated answer has the time of the first purchase.
            let kind = RecordKind::Purchase;
            let record = Record { kind, number, user, item, at_ms: purchased_ms, expires_ms: 0 };
            Told::Outcome(Outcome::AlreadyPurchased { item }, Some(record))
        }
        scripts::purchase::Mark::Expired => Told::Outcome(Outcome::InvalidCode, None),
        scripts::purchase::Mark::Gone => Told::Outcome(Outcome::HoldLost, None),
    }
}

/// An error of the keeper in words, as a case fails with.
pub fn text(error: KeeperError) -> String {
    error.to_string()
}
