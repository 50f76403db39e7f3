//! What a sale's state in Redis is made of: keys, fields, and users' shares.
//!
//! Owns both directions of each form, as `lua/checkout.lua` describes it in its head. Invariant: what is written here reads
//! back the same. Leaves holds and the queue's entries to [`super::chunk`], and to others which commands read and write it,
//! and when.

use crate::domain::{HoldFacts, HoldNumber, Id, SaleId, Terms};
use redis::{Cmd, cmd};
use std::fmt;

/// How long a sale's keys outlive its end at most, in seconds: they expire also where no instance is left to clear them away.
pub const KEEP_SECONDS: u64 = 604_800;

/// The pattern of all states' keys, for SCAN.
pub const STATE_KEYS: &str = "{sale:*}:state";
/// The key that names the ledger which the database belongs to. Named so that an ACL for sales' keys covers it.
pub const OWNER_KEY: &str = "{sale:owner}:ledger";
/// The pattern of the fields that holds are in, for HSCAN: chunks (`c<chunk>`), and the records of earlier versions (`h:<number>`).
pub const HOLD_FIELDS: &str = "[ch][0-9:]*";

/// The `status` of a state that sells. The scripts of earlier versions, which cannot read this layout, sell in a state that is
/// `open`, and refuse this one.
pub const SELLING: &str = "selling";
/// The `status` of a state that was closed for a rebuild.
pub const CLOSED: &str = "closed";

/// The highest epoch that a ledger gives out. A higher one in a state was written by no instance.
pub const MAX_EPOCH: u64 = 2_147_483_647;

/// The digits of a time in a share, a chunk, a mark or an entry of the queue: unix milliseconds until the year 2286.
pub const TIME_DIGITS: usize = 13;

/// The names of a state's fields that belong to the sale as a whole. Times are unix milliseconds.
pub mod field {
    /// The epoch that the state was built or closed for.
    pub const EPOCH: &str = "epoch";
    /// [`SELLING`](super::SELLING) or [`CLOSED`](super::CLOSED).
    pub const STATUS: &str = "status";
    /// The identity of the ledger that the sale belongs to.
    pub const LEDGER: &str = "ledger";
    /// The stock.
    pub const ITEMS: &str = "items";
    /// The items that a user may hold and have purchased at once.
    pub const LIMIT: &str = "limit";
    /// The hold time, in milliseconds.
    pub const HOLD: &str = "hold";
    /// The first moment at which the sale sells.
    pub const START: &str = "start";
    /// The first moment at which it sells no longer.
    pub const END: &str = "end";
    /// The sale's time at the last decision.
    pub const CLOCK: &str = "clock";
    /// Where Redis' clock has gone back: see `lua/time.lua`.
    pub const SLEWED: &str = "slewed";
    /// Items that are not taken.
    pub const FREE: &str = "free";
    /// Items that are held. Holds that have expired count until a checkout looks at the queue.
    pub const HELD: &str = "held";
    /// Items that are purchased.
    pub const PURCHASED: &str = "purchased";
    /// Holds whose checkout is known, whatever has become of them.
    pub const TAKEN: &str = "taken";
    /// Holds that the ledger has and that a rebuild had no room for.
    pub const QUARANTINED: &str = "quarantined";
    /// The queue's length.
    pub const QUEUE: &str = "queue";

    /// All of them.
    pub const ALL: [&str; 16] = [
        EPOCH,
        STATUS,
        LEDGER,
        ITEMS,
        LIMIT,
        HOLD,
        START,
        END,
        CLOCK,
        SLEWED,
        FREE,
        HELD,
        PURCHASED,
        TAKEN,
        QUARANTINED,
        QUEUE,
    ];
}

/// A key of a sale, as text that is written where it is needed. All keys of a sale have its hash tag.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    sale: SaleId,
    name: &'static str,
}

impl Key {
    /// The key of a sale's state (a hash).
    pub fn state(sale: SaleId) -> Key {
        Key { sale, name: "state" }
    }

    /// The key of a sale's queue (a list).
    pub fn queue(sale: SaleId) -> Key {
        Key { sale, name: "queue" }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{sale:{}}}:{}", self.sale, self.name)
    }
}

/// The key of a sale's state (a hash).
pub fn state_key(sale: SaleId) -> String {
    Key::state(sale).to_string()
}

/// The key of a sale's queue (a list).
pub fn queue_key(sale: SaleId) -> String {
    Key::queue(sale).to_string()
}

/// The sale whose state has this key; `None` if it is not a state's key.
pub fn sale_of_state_key(key: &[u8]) -> Option<SaleId> {
    let number = std::str::from_utf8(key).ok()?.strip_prefix("{sale:")?.strip_suffix("}:state")?;
    number.parse().ok().map(SaleId)
}

/// The keys (state, queue) under which a state is built for `epoch`. They have the hash tag of the real ones, so that a script can
/// rename them, and `nonce` tells one builder's from another's.
pub fn build_keys(sale: SaleId, epoch: u64, nonce: u64) -> (String, String) {
    let name = |key: String| format!("{key}:build:{epoch}:{nonce:x}");
    (name(state_key(sale)), name(queue_key(sale)))
}

/// When a sale's keys expire, unix seconds.
pub fn keep_until(terms: &Terms) -> u64 {
    terms.ends_ms / 1000 + KEEP_SECONDS
}

/// Appends the field that holds `user`'s share.
pub fn push_user_field(user: &Id, out: &mut Vec<u8>) {
    out.extend_from_slice(b"u:");
    out.extend_from_slice(user.as_bytes());
}

/// Adds a user's field and share to an HSET: `items` held and purchased, the last hold of which expires at `last_expiry_ms`
/// (0 if all are purchased).
pub fn add_share(set: &mut Cmd, user: &Id, items: u64, last_expiry_ms: u64) {
    let mut field = Vec::new();
    push_user_field(user, &mut field);
    set.arg(field).arg(write_share(items, last_expiry_ms));
}

/// A user's share: `<expiry of the last hold, 13 digits><held and purchased items>`.
fn write_share(items: u64, last_expiry_ms: u64) -> String {
    write_time(last_expiry_ms) + &items.to_string()
}

/// A time in [`TIME_DIGITS`] digits; the greatest one in the place of a later one.
pub fn write_time(ms: u64) -> String {
    const GREATEST: u64 = 10u64.pow(TIME_DIGITS as u32) - 1;
    format!("{:0width$}", ms.min(GREATEST), width = TIME_DIGITS)
}

/// Reads a field and its record as earlier versions wrote them, one for each hold; `None` if they are not of a hold.
pub fn read_hold(field: &[u8], record: &[u8]) -> Option<(HoldNumber, HoldFacts)> {
    let number = std::str::from_utf8(field).ok()?.strip_prefix("h:")?.parse().ok()?;
    Some((HoldNumber(number), read_record(record)?))
}

/// Reads `<H|P|X><taken>:<expires>:<purchased>:<bytes of user>:<user><item>`.
fn read_record(record: &[u8]) -> Option<HoldFacts> {
    let (mark, rest) = record.split_first()?;
    let mut parts = rest.splitn(5, |byte| *byte == b':');
    let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
    let (taken_ms, expires_ms, purchased_ms, user_len) = (number()?, number()?, number()?, number()?);
    let (user, item) = parts.next()?.split_at_checked(usize::try_from(user_len).ok()?)?;
    let purchased_ms = match mark {
        b'P' => Some(purchased_ms),
        b'H' | b'X' => None,
        _ => return None,
    };
    let (user, item) = (Id::from_bytes(user).ok()?, Id::from_bytes(item).ok()?);
    Some(HoldFacts { user, item, taken_ms, expires_ms, purchased_ms })
}

/// What a state has besides holds and users, as a rebuild writes it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The sale's terms.
    pub terms: &'a Terms,
    /// The epoch that it is built for.
    pub epoch: u64,
    /// The identity of the ledger that it belongs to.
    pub ledger: Option<&'a str>,
    /// The earliest that the sale's time may be, unix milliseconds: it does not go back behind what is recorded, also where
    /// Redis' clock is behind the one of the Redis before.
    pub clock_ms: u64,
    /// Items that are held.
    pub held: u64,
    /// Items that are purchased.
    pub purchased: u64,
    /// Holds whose checkout is known.
    pub taken: u64,
    /// Holds that are in the ledger and not in this state.
    pub quarantined: u64,
    /// The queue's length.
    pub queue: u64,
}

impl Head<'_> {
    /// The HSET that writes it into `state`: last of all, since a state without it does not sell.
    pub fn write(&self, state: &str) -> Cmd {
        let Head { terms, epoch, ledger, .. } = *self;
        let mut set = cmd("HSET");
        set.arg(state).arg(field::EPOCH).arg(epoch).arg(field::STATUS).arg(SELLING);
        if let Some(ledger) = ledger {
            set.arg(field::LEDGER).arg(ledger);
        }
        for (field, value) in [
            (field::ITEMS, terms.items),
            (field::LIMIT, terms.user_limit),
            (field::HOLD, terms.hold_ms),
            (field::START, terms.starts_ms),
            (field::END, terms.ends_ms),
            (field::CLOCK, self.clock_ms),
            (field::FREE, terms.items.saturating_sub(self.purchased + self.held)),
            (field::HELD, self.held),
            (field::PURCHASED, self.purchased),
            (field::TAKEN, self.taken),
            (field::QUARANTINED, self.quarantined),
            (field::QUEUE, self.queue),
        ] {
            set.arg(field).arg(value);
        }
        set
    }
}

/// The HSET that makes the key of a state that is being built. It does not sell: no ledger gives out epoch 0.
pub fn begin_state(state: &str) -> Cmd {
    let mut set = cmd("HSET");
    set.arg(state).arg(field::EPOCH).arg(0);
    set
}

/// The fields in which a state has its terms.
const TERMS: [&str; 5] = [field::ITEMS, field::LIMIT, field::HOLD, field::START, field::END];

/// The HMGET that [`has_terms`] reads.
pub fn ask_terms(sale: SaleId) -> Cmd {
    let mut get = cmd("HMGET");
    get.arg(state_key(sale)).arg(&TERMS[..]);
    get
}

/// Whether the state that gave `found` has `terms`.
pub fn has_terms(found: &[Option<String>], terms: &Terms) -> bool {
    let wanted = [terms.items, terms.user_limit, terms.hold_ms, terms.starts_ms, terms.ends_ms];
    found.iter().zip(wanted).all(|(found, wanted)| found.as_deref() == Some(wanted.to_string().as_str()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records_of_earlier_versions() {
        let facts = HoldFacts {
            user: "a:b".parse().unwrap(),
            item: "c:é:".parse().unwrap(),
            taken_ms: 5,
            expires_ms: 6,
            purchased_ms: Some(7),
        };
        assert_eq!(read_hold(b"h:9", "P5:6:7:3:a:bc:é:".as_bytes()), Some((HoldNumber(9), facts)));
        let held = HoldFacts { purchased_ms: None, ..facts };
        for mark in ["H", "X"] {
            assert_eq!(read_hold(b"h:9", format!("{mark}5:6:0:3:a:bc:é:").as_bytes()), Some((HoldNumber(9), held)));
        }
        assert_eq!(read_hold(b"u:9", "P5:6:7:3:a:bc:é:".as_bytes()), None);
        for bad in ["", "P", "Z5:6:7:1:ab", "H5:6:7:9:ab", "H5:6:x:1:ab", "H5:6:0:1:a"] {
            assert_eq!(read_record(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn times_and_shares() {
        assert_eq!(write_share(12, 1_700_000_000_000), "170000000000012");
        assert_eq!(write_share(1, 0), "00000000000001");
        assert_eq!(write_time(u64::MAX).len(), TIME_DIGITS);
    }

    #[test]
    fn keys_of_states() {
        assert_eq!(sale_of_state_key(state_key(SaleId(7)).as_bytes()), Some(SaleId(7)));
        for other in [queue_key(SaleId(7)), build_keys(SaleId(7), 1, 2).0, OWNER_KEY.into(), "{sale:x}:state".into()] {
            assert_eq!(sale_of_state_key(other.as_bytes()), None, "{other}");
        }
        assert_eq!(build_keys(SaleId(7), 1, 10).1, "{sale:7}:queue:build:1:a");
    }
}
