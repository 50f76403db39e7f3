//! `lua/checkout.lua`: takes an item for each of a batch of checkouts, in their order.

use super::layout::{queue_key, state_key};
use super::{Header, Refusal, begin, decimal, eval, read_refusal};
use crate::domain::{HoldNumber, Id, MAX_ID_BYTES, SaleId};
use redis::Cmd;

/// The script.
pub const TEXT: &str = concat!(include_str!("../../../../lua/time.lua"), include_str!("../../../../lua/checkout.lua"));

/// What became of one checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// `H`: an item is held.
    Held,
    /// `S`: no item is free.
    SoldOut,
    /// `L`: the user's limit.
    UserLimit,
    /// `B`: the user's limit, all of which is purchased.
    BoughtLimit,
    /// `A`: not decided, to be asked again.
    Again,
    /// `D`: the hold's number is taken.
    Duplicate,
}

/// What the script decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided<'b> {
    /// The sale's time, unix milliseconds.
    pub now_ms: u64,
    /// When the new holds expire, unix milliseconds.
    pub expires_ms: u64,
    /// Where sold out: no item can be free before this, unix milliseconds.
    pub next_ms: u64,
    marks: &'b [u8],
}

impl Decided<'_> {
    /// What became of each checkout, in their order. `None` for a mark that the script does not give.
    pub fn marks(&self) -> impl ExactSizeIterator<Item = Option<Mark>> + '_ {
        self.marks.iter().map(|mark| match mark {
            b'H' => Some(Mark::Held),
            b'S' => Some(Mark::SoldOut),
            b'L' => Some(Mark::UserLimit),
            b'B' => Some(Mark::BoughtLimit),
            b'A' => Some(Mark::Again),
            b'D' => Some(Mark::Duplicate),
            _ => None,
        })
    }
}

/// Packs a call and appends it to `out`. `cmd` is reused memory.
pub fn call<'a>(
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

/// A call without checkouts: the stock takes back what has expired, [`super::EXPIRED_A_CALL`] holds at most.
pub fn expire_due(sale: SaleId, epoch: u64, latest_ms: u64) -> Cmd {
    let mut call = eval(TEXT, &[&state_key(sale), &queue_key(sale)]);
    call.arg(epoch).arg(latest_ms);
    call
}

/// Reads the reply to `count` checkouts; `None` if it is not one.
pub fn read(reply: &[u8], count: usize) -> Option<Result<Decided<'_>, Refusal>> {
    let Some(mut rest) = reply.strip_prefix(b"K ") else { return read_refusal(reply).map(Err) };
    let now_ms = decimal(&mut rest, b' ')?;
    let expires_ms = decimal(&mut rest, b' ')?;
    let next_ms = decimal(&mut rest, b'\n')?;
    (rest.len() == count).then_some(Ok(Decided { now_ms, expires_ms, next_ms, marks: rest }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_reply() {
        let decided = read(b"K 10 20 30\nHSLBAD", 6).unwrap().unwrap();
        assert_eq!((decided.now_ms, decided.expires_ms, decided.next_ms), (10, 20, 30));
        use Mark::*;
        let marks: Vec<_> = decided.marks().map(Option::unwrap).collect();
        assert_eq!(marks, [Held, SoldOut, UserLimit, BoughtLimit, Again, Duplicate]);
    }
}
