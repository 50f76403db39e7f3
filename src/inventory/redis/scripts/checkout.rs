//! `lua/checkout.lua`: takes an item for each of a batch of checkouts, in their order.

use super::chunk::{ChunkId, SLOTS, push_entry};
use super::layout::{push_user_field, queue_key, state_key};
use super::{Header, Refusal, begin, decimal, eval, read_refusal, with_text};
use crate::domain::{HoldNumber, Id, SaleId};
use redis::Cmd;

/// The script.
pub const TEXT: &str = super::with_prelude!("checkout.lua");

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
    /// `D`: a number of the hold's chunk is taken.
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

/// Packs a call and appends it to `out`. `cmd` is reused memory. The numbers of the requests, each with its user and item, are `first` and
/// those that follow it; `first` is that of a chunk, and the rest of the last chunk is used up.
pub fn call<'a>(
    cmd: &mut Cmd,
    header: &Header<'_>,
    first: HoldNumber,
    requests: impl Iterator<Item = (&'a Id, &'a Id)> + Clone,
    out: &mut Vec<u8>,
) {
    begin(cmd, header);
    with_text(|text| pack(cmd, first, requests, text));
    cmd.write_packed_command(out);
}

/// Adds the arguments behind the header. `text` is reused memory, in which each argument is written.
fn pack<'a>(
    cmd: &mut Cmd,
    first: HoldNumber,
    requests: impl Iterator<Item = (&'a Id, &'a Id)> + Clone,
    text: &mut Vec<u8>,
) {
    let (first, slot) = ChunkId::of(first);
    debug_assert_eq!(slot, 0, "a call has whole chunks of numbers");
    let count = requests.clone().count();
    let chunks = count.div_ceil(SLOTS) as u64;
    text.clear();
    let mut digits = itoa::Buffer::new();
    first.push(text);
    text.push(b':');
    text.extend_from_slice(digits.format(chunks).as_bytes());
    cmd.arg(count).arg(text.as_slice());
    // Each argument as the script stores it: Lua makes no text for nothing.
    for (user, _) in requests.clone() {
        text.clear();
        push_user_field(user, text);
        cmd.arg(text.as_slice());
    }
    for nth in 0..chunks {
        text.clear();
        first.plus(nth).push_field(text);
        cmd.arg(text.as_slice());
    }
    let mut rest = requests;
    for _ in 0..chunks {
        text.clear();
        for (user, item) in rest.by_ref().take(SLOTS) {
            push_entry(user, item, text);
        }
        cmd.arg(text.as_slice());
    }
}

/// A call without checkouts: the stock takes back what has expired, the holds of [`super::EXPIRED_CHUNKS`] chunks or few more.
pub fn expire_due(sale: SaleId, epoch: u64, latest_ms: u64) -> Cmd {
    let mut call = eval(TEXT, &[&state_key(sale), &queue_key(sale)]);
    call.arg(epoch).arg(latest_ms).arg(0);
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
