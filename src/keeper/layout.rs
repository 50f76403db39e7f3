//! What a sale's state in Redis is made of, as `lua/checkout.lua` describes it: pure.

use super::merge::{HoldFacts, HoldState};
use crate::domain::Id;

/// An entry of the queue: `<number>:<expires>:<user>`.
pub(super) fn queue_entry(number: u64, known: &HoldFacts) -> Vec<u8> {
    [format!("{number}:{}:", known.expires_ms).as_bytes(), known.user.as_bytes()].concat()
}

/// When the hold of a queue's entry expires, unix milliseconds.
pub(super) fn entry_expires_ms(entry: &[u8]) -> Option<u64> {
    std::str::from_utf8(entry.split(|byte| *byte == b':').nth(1)?).ok()?.parse().ok()
}

/// A user's share: `<expiry of the last hold, 13 digits><held and purchased items>`.
pub(super) fn write_share(items: u64, last_expiry_ms: u64) -> String {
    format!("{last_expiry_ms:013}{items}")
}

/// A hold's record.
pub(super) fn write_record(known: &HoldFacts, place: HoldState) -> Vec<u8> {
    let mark = match place {
        HoldState::Held => 'H',
        HoldState::Expired => 'X',
        HoldState::Purchased => 'P',
    };
    let (user, item) = (known.user.as_bytes(), known.item.as_bytes());
    let purchased_ms = known.purchased_ms.unwrap_or(0);
    let head = format!("{mark}{}:{}:{purchased_ms}:{}:", known.taken_ms, known.expires_ms, user.len());
    [head.as_bytes(), user, item].concat()
}

/// Reads a hold's record; `None` if it is not one.
pub(super) fn read_record(record: &[u8]) -> Option<HoldFacts> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_as_written() {
        let known = HoldFacts {
            user: "a:b".parse().unwrap(),
            item: "c:é:".parse().unwrap(),
            taken_ms: 5,
            expires_ms: 6,
            purchased_ms: Some(7),
        };
        assert_eq!(write_record(&known, HoldState::Purchased), "P5:6:7:3:a:bc:é:".as_bytes());
        assert_eq!(read_record(&write_record(&known, HoldState::Purchased)), Some(known));
        let held = HoldFacts { purchased_ms: None, ..known };
        assert_eq!(read_record(&write_record(&held, HoldState::Expired)), Some(held));
        assert_eq!(queue_entry(9, &known), b"9:6:a:b");
        assert_eq!(entry_expires_ms(&queue_entry(9, &known)), Some(6));
        assert_eq!(entry_expires_ms(b"9"), None);
        for bad in ["", "P", "Z5:6:7:1:ab", "H5:6:7:9:ab", "H5:6:x:1:ab", "H5:6:0:1:a"] {
            assert_eq!(read_record(bad.as_bytes()), None, "{bad}");
        }
    }
}
