//! `lua/purchase.lua`: redeems a batch of holds, in their order.

use super::chunk::{push_slot, read_entry, read_time};
use super::{Header, Refusal, begin, decimal, read_refusal, with_text};
use crate::domain::{HoldNumber, Id};
use redis::Cmd;

/// The script.
pub const TEXT: &str = super::with_prelude!("purchase.lua");

/// What became of one purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
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
    /// `I`: the hold has expired, or the sale has ended.
    Expired,
    /// `G`: there is no such hold.
    Gone,
}

/// What a redeemed hold was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// When it was redeemed, unix milliseconds.
    pub purchased_ms: u64,
    /// The user who took the hold.
    pub user: Id,
    /// The item that was bought.
    pub item: Id,
}

/// What the script decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided<'b> {
    /// The sale's time, unix milliseconds.
    pub now_ms: u64,
    marks: &'b [u8],
    facts: &'b [u8],
}

impl<'b> Decided<'b> {
    /// What became of each purchase, in their order. `None` for what the script does not give.
    pub fn marks(&self) -> impl ExactSizeIterator<Item = Option<Mark>> + 'b {
        let (mut facts, now_ms) = (self.facts, self.now_ms);
        self.marks.iter().map(move |mark| match mark {
            b'P' => fact(&mut facts, now_ms).map(Mark::Purchased),
            b'A' => earlier(&mut facts),
            b'I' => Some(Mark::Expired),
            b'G' => Some(Mark::Gone),
            _ => None,
        })
    }
}

fn earlier(rest: &mut &[u8]) -> Option<Mark> {
    let (taken_ms, expires_ms, purchased_ms) = (read_time(rest)?, read_time(rest)?, read_time(rest)?);
    Some(Mark::AlreadyPurchased { fact: fact(rest, purchased_ms)?, taken_ms, expires_ms })
}

fn fact(rest: &mut &[u8], purchased_ms: u64) -> Option<Fact> {
    let (user, item) = read_entry(rest)??;
    Some(Fact { purchased_ms, user, item })
}

/// Packs a call and appends it to `out`. `cmd` is reused memory.
pub fn call(cmd: &mut Cmd, header: &Header<'_>, holds: impl Iterator<Item = HoldNumber>, out: &mut Vec<u8>) {
    begin(cmd, header);
    with_text(|slot| {
        for number in holds {
            slot.clear();
            push_slot(number, slot);
            cmd.arg(slot.as_slice());
        }
    });
    cmd.write_packed_command(out);
}

/// Reads the reply to `count` purchases; `None` if it is not one.
pub fn read(reply: &[u8], count: usize) -> Option<Result<Decided<'_>, Refusal>> {
    let Some(mut rest) = reply.strip_prefix(b"K ") else { return read_refusal(reply).map(Err) };
    let now_ms = decimal(&mut rest, b'\n')?;
    let (marks, tail) = rest.split_at_checked(count)?;
    Some(Ok(Decided { now_ms, marks, facts: tail.strip_prefix(b"\n")? }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reply() {
        let reply = b"K 10\nPIGA\n!\"uii000000000000300000000000090000000000005\"!vvj";
        let decided = read(reply, 4).unwrap().unwrap();
        let fact = |at, user: &str, item: &str| Fact {
            purchased_ms: at,
            user: user.parse().unwrap(),
            item: item.parse().unwrap(),
        };
        let marks: Vec<_> = decided.marks().map(Option::unwrap).collect();
        let want = [
            Mark::Purchased(fact(10, "u", "ii")),
            Mark::Expired,
            Mark::Gone,
            Mark::AlreadyPurchased { fact: fact(5, "vv", "j"), taken_ms: 3, expires_ms: 9 },
        ];
        assert_eq!(marks, want);
        // A fact that is cut short leaves its mark unread.
        for cut in
            [&b"K 1\nP\n!\"u"[..], b"K 1\nP\n", b"K 1\nP\n  ", b"K 1\nA\n0000000000003000000000000900000000000!!ui"]
        {
            assert_eq!(read(cut, 1).unwrap().unwrap().marks().next(), Some(None));
        }
    }
}
