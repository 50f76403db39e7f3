//! `lua/offer.lua`: offers a sale the records of an older epoch.

use super::chunk::push_slot;
use super::layout::{queue_key, state_key, write_time};
use super::{Refusal, eval, read_refusal};
use crate::domain::{RecordKind, RecordRef, SaleId};
use redis::Cmd;

/// The script.
pub const TEXT: &str = super::with_prelude!("offer.lua");

/// Arguments that a record is packed into.
pub const RECORD_ARGS: usize = 7;

/// Offers `records` of `sale`, which sells under `epoch`. Redis' clock is not believed beyond `latest_ms` (unix milliseconds).
pub fn call<'a>(sale: SaleId, epoch: u64, latest_ms: u64, records: impl Iterator<Item = RecordRef<'a>>) -> Cmd {
    let mut call = eval(TEXT, &[&state_key(sale), &queue_key(sale)]);
    call.arg(epoch).arg(latest_ms);
    let mut slot = Vec::new();
    for record in records {
        slot.clear();
        push_slot(record.number, &mut slot);
        let (kind, taken_ms, purchased_ms) = match record.kind {
            RecordKind::Hold => ("H", record.at_ms, 0),
            RecordKind::Purchase => ("P", 0, record.at_ms),
        };
        call.arg(kind).arg(slot.as_slice()).arg(record.user).arg(record.item);
        for ms in [taken_ms, record.expires_ms, purchased_ms] {
            call.arg(write_time(ms));
        }
    }
    call
}

/// Reads the reply to `count` records: whether each of them fits, in their order; `None` if it is not such a reply. Refused with
/// [`Refusal::NotOn`] where the sale has ended.
pub fn read(reply: &[u8], count: usize) -> Option<Result<Vec<bool>, Refusal>> {
    let Some(marks) = reply.strip_prefix(b"K ") else { return read_refusal(reply).map(Err) };
    if marks.len() != count {
        return None;
    }
    let fits = marks.iter().map(|mark| match mark {
        b'F' => Some(true),
        b'M' => Some(false),
        _ => None,
    });
    Some(Ok(fits.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_for_each_record() {
        assert_eq!(read(b"K FMF", 3), Some(Ok(vec![true, false, true])));
        assert_eq!(read(b"K ", 0), Some(Ok(Vec::new())));
        // Facts that no mark speaks of would be quarantined.
        for garbled in [&b"K "[..], b"K F", b"K FFFF", b"K FXF", b"K FF ", b"KFFF", b"K"] {
            assert_eq!(read(garbled, 3), None, "{}", String::from_utf8_lossy(garbled));
        }
    }
}
