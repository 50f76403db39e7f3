//! The scripts' texts, their arguments and their replies: the wire between this process and the Lua.
//!
//! Owns the key names and both directions of encoding, all of it pure. Refuses to know connections and waiting.

use crate::domain::{HoldNumber, Id, MAX_ID_BYTES, SaleId};
use redis::Cmd;

/// Decides checkouts.
pub const CHECKOUT: &str = concat!(include_str!("../../../lua/time.lua"), include_str!("../../../lua/checkout.lua"));
/// Decides purchases.
pub const PURCHASE: &str = concat!(include_str!("../../../lua/time.lua"), include_str!("../../../lua/purchase.lua"));
/// Puts a rebuilt sale in the place of what is there.
pub const OPEN: &str = include_str!("../../../lua/open.lua");
/// Stops a sale's state from selling under an older epoch.
pub const CLOSE: &str = include_str!("../../../lua/close.lua");
/// Throws away what a closed state holds.
pub const FORGET: &str = include_str!("../../../lua/forget.lua");
/// Offers a sale the records of an older epoch.
pub const OFFER: &str = concat!(include_str!("../../../lua/time.lua"), include_str!("../../../lua/offer.lua"));

/// Changes the terms of a sale that has not begun.
pub const REPLAN: &str = include_str!("../../../lua/replan.lua");
/// Reads how much a sale has.
pub const COUNTS: &str = include_str!("../../../lua/counts.lua");
/// Writes what decisions write, and removes it again.
pub const PROBE: &str = include_str!("../../../lua/probe.lua");
/// The keys of [`PROBE`]: named like a sale's, so that an ACL for sales covers them, and of no sale.
pub const PROBE_KEYS: [&str; 2] = ["{sale:probe}:state", "{sale:probe}:queue"];

/// Requests that one call decides. Natural batches are ten times smaller; it bounds the time that Redis is busy, and
/// keeps the script's longest argument list below what Lua can unpack (see `lua/checkout.lua`).
pub const MAX_BATCH: usize = 512;

// checkout.lua: two values a hold and two a user, two for each of 256 entries' holds and users, and the rest.
const _: () = assert!(MAX_BATCH * 4 + 256 * 4 + 16 < 7_900);

/// The key of a sale's state.
pub fn state_key(sale: SaleId) -> String {
    format!("{{sale:{sale}}}:state")
}

/// The key of a sale's queue.
pub fn queue_key(sale: SaleId) -> String {
    format!("{{sale:{sale}}}:queue")
}

/// What a script said instead of deciding. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no state.
    Missing,
    /// The state carries this epoch.
    Epoch(u64),
    /// The state does not sell.
    Closed,
    /// The sale is not on at this time (unix milliseconds).
    NotOn(u64),
    /// The queue is not the one that the state knows.
    Damaged,
}

/// What became of one checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckoutMark {
    /// `H`
    Held,
    /// `S`
    SoldOut,
    /// `L`
    UserLimit,
    /// `B`: the user's limit, all of which is purchased.
    BoughtLimit,
    /// `A`: to be asked again.
    Again,
    /// `D`: the hold's number is taken.
    Duplicate,
}

/// A checkout script's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkouts<'b> {
    /// Redis' time, unix milliseconds.
    pub now_ms: u64,
    /// When the new holds expire, unix milliseconds.
    pub expires_ms: u64,
    /// Where sold out: no item can be free before this, unix milliseconds.
    pub next_ms: u64,
    marks: &'b [u8],
}

impl Checkouts<'_> {
    /// What became of each checkout, in their order. `None` for a mark that no script of ours gives.
    pub fn marks(&self) -> impl Iterator<Item = Option<CheckoutMark>> + '_ {
        self.marks.iter().map(|mark| match mark {
            b'H' => Some(CheckoutMark::Held),
            b'S' => Some(CheckoutMark::SoldOut),
            b'L' => Some(CheckoutMark::UserLimit),
            b'B' => Some(CheckoutMark::BoughtLimit),
            b'A' => Some(CheckoutMark::Again),
            b'D' => Some(CheckoutMark::Duplicate),
            _ => None,
        })
    }
}

/// What became of one purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PurchaseMark {
    /// `P`: redeemed now.
    Purchased(Fact),
    /// `A`: redeemed before.
    AlreadyPurchased {
        /// What for.
        fact: Fact,
        /// When the hold was taken, unix milliseconds.
        taken_ms: u64,
        /// When the hold expired or would have, unix milliseconds; 0 if Redis knows no more than the purchase.
        expires_ms: u64,
    },
    /// `I`
    Expired,
    /// `G`: there is no such hold.
    Gone,
}

/// What a redeemed hold was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// When it was redeemed, unix milliseconds.
    pub purchased_ms: u64,
    /// Who.
    pub user: Id,
    /// What.
    pub item: Id,
}

/// A purchase script's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purchases<'b> {
    /// Redis' time, unix milliseconds.
    pub now_ms: u64,
    marks: &'b [u8],
    facts: &'b [u8],
}

impl<'b> Purchases<'b> {
    /// What became of each purchase, in their order. `None` for what no script of ours gives.
    pub fn marks(&self) -> impl Iterator<Item = Option<PurchaseMark>> + 'b {
        let mut facts = self.facts;
        self.marks.iter().map(move |mark| match mark {
            b'P' => fact(&mut facts).map(PurchaseMark::Purchased),
            b'A' => earlier(&mut facts),
            b'I' => Some(PurchaseMark::Expired),
            b'G' => Some(PurchaseMark::Gone),
            _ => None,
        })
    }
}

fn earlier(rest: &mut &[u8]) -> Option<PurchaseMark> {
    let (taken_ms, expires_ms) = (decimal(rest, b' ')?, decimal(rest, b' ')?);
    Some(PurchaseMark::AlreadyPurchased { fact: fact(rest)?, taken_ms, expires_ms })
}

fn fact(rest: &mut &[u8]) -> Option<Fact> {
    let purchased_ms = decimal(rest, b' ')?;
    let user_len = usize::try_from(decimal(rest, b' ')?).ok()?;
    let item_len = usize::try_from(decimal(rest, b' ')?).ok()?;
    let (user, tail) = rest.split_at_checked(user_len)?;
    let (item, tail) = tail.split_at_checked(item_len)?;
    *rest = tail;
    Some(Fact { purchased_ms, user: Id::from_bytes(user).ok()?, item: Id::from_bytes(item).ok()? })
}

/// The decimal number up to `end`, which is taken with it.
fn decimal(rest: &mut &[u8], end: u8) -> Option<u64> {
    let at = rest.iter().take(21).position(|b| *b == end)?;
    let (digits, tail) = rest.split_at_checked(at)?;
    *rest = tail.get(1..)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What a call of a script begins with.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The script's digest.
    pub sha: &'a str,
    /// The sale that is asked.
    pub sale: SaleId,
    /// The epoch that the caller sells under.
    pub epoch: u64,
    /// The latest that Redis' clock may show, unix milliseconds: a clock that is ahead of it is taken to show this.
    pub latest_ms: u64,
}

/// Packs a call of the checkout script and appends it to `out`. `cmd` is reused memory.
pub fn call_checkout<'a>(
    cmd: &mut Cmd,
    header: &Header<'_>,
    requests: impl Iterator<Item = (HoldNumber, &'a Id, &'a Id)>,
    out: &mut Vec<u8>,
) {
    begin(cmd, header);
    // The script stores the two ids as one text, and Lua makes none for nothing.
    let mut both = Vec::with_capacity(2 * MAX_ID_BYTES + 4);
    let mut digits = itoa::Buffer::new();
    for (number, user, item) in requests {
        let (user, item) = (user.as_bytes(), item.as_bytes());
        both.clear();
        both.extend_from_slice(digits.format(user.len()).as_bytes());
        both.push(b':');
        both.extend_from_slice(user);
        both.extend_from_slice(item);
        cmd.arg(number.0).arg(user).arg(both.as_slice());
    }
    cmd.write_packed_command(out);
}

/// Packs a call of the purchase script and appends it to `out`. `cmd` is reused memory.
pub fn call_purchase(cmd: &mut Cmd, header: &Header<'_>, holds: impl Iterator<Item = HoldNumber>, out: &mut Vec<u8>) {
    begin(cmd, header);
    for number in holds {
        cmd.arg(number.0);
    }
    cmd.write_packed_command(out);
}

fn begin(cmd: &mut Cmd, header: &Header<'_>) {
    let Header { sha, sale, epoch, latest_ms } = *header;
    cmd.clear();
    cmd.arg("EVALSHA").arg(sha).arg(2).arg(state_key(sale)).arg(queue_key(sale)).arg(epoch).arg(latest_ms);
}

/// Reads a checkout script's reply; `None` if it is none. `count` is how many checkouts were asked for.
pub fn read_checkout(reply: &[u8], count: usize) -> Option<Result<Checkouts<'_>, Refusal>> {
    let Some(mut rest) = reply.strip_prefix(b"K ") else { return read_refusal(reply).map(Err) };
    let now_ms = decimal(&mut rest, b' ')?;
    let expires_ms = decimal(&mut rest, b' ')?;
    let next_ms = decimal(&mut rest, b'\n')?;
    (rest.len() == count).then_some(Ok(Checkouts { now_ms, expires_ms, next_ms, marks: rest }))
}

/// Reads a purchase script's reply; `None` if it is none. `count` is how many purchases were asked for.
pub fn read_purchase(reply: &[u8], count: usize) -> Option<Result<Purchases<'_>, Refusal>> {
    let Some(mut rest) = reply.strip_prefix(b"K ") else { return read_refusal(reply).map(Err) };
    let now_ms = decimal(&mut rest, b'\n')?;
    let (marks, tail) = rest.split_at_checked(count)?;
    Some(Ok(Purchases { now_ms, marks, facts: tail.strip_prefix(b"\n")? }))
}

fn read_refusal(reply: &[u8]) -> Option<Refusal> {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
    match reply.split_at_checked(2) {
        Some((b"E ", epoch)) => Some(Refusal::Epoch(number(epoch)?)),
        Some((b"T ", now)) => Some(Refusal::NotOn(number(now)?)),
        Some((b"C ", _)) => Some(Refusal::Closed),
        _ if reply == b"N" => Some(Refusal::Missing),
        _ if reply == b"Q" => Some(Refusal::Damaged),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        let checkouts = read_checkout(b"K 10 20 30\nHSLBAD", 6).unwrap().unwrap();
        assert_eq!((checkouts.now_ms, checkouts.expires_ms, checkouts.next_ms), (10, 20, 30));
        use CheckoutMark::*;
        let marks: Vec<_> = checkouts.marks().map(Option::unwrap).collect();
        assert_eq!(marks, [Held, SoldOut, UserLimit, BoughtLimit, Again, Duplicate]);
        let purchases = read_purchase(b"K 10\nPIGA\n7 1 2 uii3 9 5 2 1 vvj", 4).unwrap().unwrap();
        let fact = |at, user: &str, item: &str| Fact {
            purchased_ms: at,
            user: user.parse().unwrap(),
            item: item.parse().unwrap(),
        };
        let marks: Vec<_> = purchases.marks().map(Option::unwrap).collect();
        let want = [
            PurchaseMark::Purchased(fact(7, "u", "ii")),
            PurchaseMark::Expired,
            PurchaseMark::Gone,
            PurchaseMark::AlreadyPurchased { fact: fact(5, "vv", "j"), taken_ms: 3, expires_ms: 9 },
        ];
        assert_eq!(marks, want);
    }

    #[test]
    fn refusals_and_nonsense() {
        let check = |reply: &[u8], want: Option<Refusal>| {
            assert_eq!(read_checkout(reply, 1).map(|r| r.unwrap_err()), want, "{reply:?}");
            assert_eq!(read_purchase(reply, 1).map(|r| r.unwrap_err()), want, "{reply:?}");
        };
        check(b"N", Some(Refusal::Missing));
        check(b"Q", Some(Refusal::Damaged));
        check(b"E 7", Some(Refusal::Epoch(7)));
        check(b"T 7", Some(Refusal::NotOn(7)));
        check(b"C closed", Some(Refusal::Closed));
        for nonsense in [&b""[..], b"E", b"E x", b"K", b"K 1", b"K 1 2 3\nHH", b"K x 2 3\nH", b"Z 1", b"K 1\nP"] {
            check(nonsense, None);
        }
        // A fact that is cut short leaves its mark unread.
        assert_eq!(read_purchase(b"K 1\nP\n7 1 2 u", 1).unwrap().unwrap().marks().next(), Some(None));
    }
}
