//! One-time codes: minting and opening, and the numbers of the holds that they name.
//!
//! Owns the form of a code and of a hold's number. A code is one AES-128 block (FIPS 197) over the sale, the hold's number
//! and check bits, written as 32 hex digits. Invariant: without the key a code can be neither guessed nor forged. The 32
//! check bits refuse a forged block without a look-up; the one in 2^32 that passes them names no hold. Leaves the key's
//! place to the ledger, and holds to the inventory.

use crate::domain::{HoldKey, HoldNumber, SaleId};
use aes::Aes128;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// The key's length in bytes.
pub const KEY_BYTES: usize = 16;
/// A code's length in characters: one hex digit for four bits.
pub const CODE_CHARS: usize = 32;

/// Bits of a hold number that count within an instance: at 100,000 checkouts a second 2.7 years; with Redis, where a call takes whole
/// chunks of eight numbers, four months at least.
const COUNTER_BITS: u32 = 43;
/// Bits of a hold number that name the instance: a million starts.
const INSTANCE_BITS: u32 = 20;
/// Bits of a sale's id in a code: unix seconds until the year 2242.
const SALE_BITS: u32 = 33;

// A hold number is a signed 64-bit integer in the ledgers, and sale, number and 32 check bits fill the block.
const _: () = assert!(COUNTER_BITS + INSTANCE_BITS == 63);
const _: () = assert!(SALE_BITS + INSTANCE_BITS + COUNTER_BITS + 32 == 128);

/// The highest instance number that fits a hold number.
pub const MAX_INSTANCE: u64 = (1 << INSTANCE_BITS) - 1;
/// How many hold numbers an instance has.
pub const MAX_COUNTER: u64 = (1 << COUNTER_BITS) - 1;
/// The greatest id of a sale whose codes fit a block.
pub const MAX_SALE: u64 = (1 << SALE_BITS) - 1;

/// Hold numbers in a row that make a chunk, from a counter on that is a multiple of this: Redis has the holds of a chunk in one field.
/// With four, a purchase was a fifth dearer; with sixteen, a hold took 4 % less memory and a purchase 60 % more bytes of the append-only
/// file.
pub const CHUNK_NUMBERS: u64 = 8;

// A chunk begins wherever the counter's space does, and none lies across its end.
const _: () = assert!((MAX_COUNTER + 1).is_multiple_of(CHUNK_NUMBERS));

/// A new key for codes, from the operating system's random numbers: a client that could guess the key could forge codes. Fails
/// if the system gives no random bytes.
pub fn random_key() -> Result<[u8; KEY_BYTES], getrandom::Error> {
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key)?;
    Ok(key)
}

/// The hold number of `counter` on `instance`; `None` beyond [`MAX_INSTANCE`] or [`MAX_COUNTER`].
pub fn hold_number(instance: u64, counter: u64) -> Option<HoldNumber> {
    (instance <= MAX_INSTANCE && counter <= MAX_COUNTER).then_some(HoldNumber(instance << COUNTER_BITS | counter))
}

/// The instance and the counter of a hold's number.
pub fn number_parts(number: HoldNumber) -> (u64, u64) {
    (number.0 >> COUNTER_BITS, number.0 & MAX_COUNTER)
}

/// The numbers of holds that an instance gives out between its start and its end.
///
/// They start at a random place of the counter's space and rise by one, past its end to its beginning. The reason is a
/// ledger that was restored from a backup: it gives out an instance's number again, and does not have the holds that an
/// earlier instance with that number took since. If the earlier instance used up `n` numbers in a sale and the later one uses up
/// `m` in the same sale, the chance that any number is given out twice is below `(n + m) / 2^43`: with a million numbers
/// each, one in 4.4 million such restores. (A call of checkouts uses up whole chunks, whatever becomes of its requests.)
#[derive(Debug)]
pub struct HoldNumbers {
    instance: u64,
    /// The counter of the first number.
    start: u64,
    /// The counter of the next number, not yet reduced to the counter's bits.
    next: AtomicU64,
}

impl HoldNumbers {
    /// Numbers for an instance that starts now, from a random place on. Fails if the system gives no random bytes.
    pub fn new(instance: u64) -> Result<HoldNumbers, getrandom::Error> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes)?;
        Ok(HoldNumbers::starting_at(instance, u64::from_le_bytes(bytes)))
    }

    /// Numbers from the counter `start` on, of which the lowest 43 bits count.
    pub fn starting_at(instance: u64, start: u64) -> HoldNumbers {
        let start = start & MAX_COUNTER;
        HoldNumbers { instance, start, next: AtomicU64::new(start) }
    }

    /// Takes `count` consecutive numbers and returns the first. `None` once all numbers of this instance are used up, or if
    /// the instance's own number does not fit.
    pub fn take(&self, count: u64) -> Option<HoldNumber> {
        loop {
            let first = self.next.fetch_add(count, Ordering::Relaxed);
            let used = first.checked_add(count)?.checked_sub(self.start)?;
            if used > MAX_COUNTER + 1 {
                return None;
            }
            let counter = first & MAX_COUNTER;
            // Consecutive numbers do not cross the end of the counter's space: those that are left before it stay unused.
            if counter + count <= MAX_COUNTER + 1 {
                return hold_number(self.instance, counter);
            }
        }
    }

    /// Takes whole chunks of consecutive numbers, as many as `count` requests need, and returns the first number: a multiple of
    /// [`CHUNK_NUMBERS`]. `None` as of [`HoldNumbers::take`].
    pub fn take_chunks(&self, count: u64) -> Option<HoldNumber> {
        let taken = count.checked_next_multiple_of(CHUNK_NUMBERS)?;
        loop {
            let rounded = |next: u64| next.checked_next_multiple_of(CHUNK_NUMBERS);
            let end = |next: u64| rounded(next)?.checked_add(taken);
            let before = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).ok()?;
            let first = rounded(before)?;
            if first.checked_add(taken)?.checked_sub(self.start)? > MAX_COUNTER + 1 {
                return None;
            }
            let counter = first & MAX_COUNTER;
            // As in `take`.
            if counter + taken <= MAX_COUNTER + 1 {
                return hold_number(self.instance, counter);
            }
        }
    }

    /// The number that [`HoldNumbers::take`] of one would return.
    pub fn peek(&self) -> Option<HoldNumber> {
        let next = self.next.load(Ordering::Relaxed);
        hold_number(self.instance, Some(next & MAX_COUNTER).filter(|_| next - self.start <= MAX_COUNTER)?)
    }
}

/// A code as it stands in an answer: 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code([u8; CODE_CHARS]);

impl Code {
    /// The 32 characters.
    pub fn as_bytes(&self) -> &[u8; CODE_CHARS] {
        &self.0
    }

    /// The 32 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Mints and opens codes with one key, shared by all instances through the ledger.
#[derive(Clone)]
pub struct Codes {
    cipher: Aes128,
}

impl Codes {
    /// Codes under `key`.
    pub fn new(key: &[u8; KEY_BYTES]) -> Codes {
        Codes { cipher: Aes128::new(key.into()) }
    }

    /// The block that names `hold`, as the ledger keeps it.
    pub fn mint_block(&self, hold: HoldKey) -> [u8; 16] {
        let plain = u128::from(hold.sale.0 & MAX_SALE) << 95 | u128::from(hold.number.0) << 32;
        let mut block: Block<Aes128> = plain.to_be_bytes().into();
        self.cipher.encrypt_block(&mut block);
        block.into()
    }

    /// The code that names `hold`.
    pub fn mint(&self, hold: HoldKey) -> Code {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; CODE_CHARS];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.mint_block(hold)) {
            if let [high, low] = pair {
                *high = *HEX.get(usize::from(byte >> 4)).unwrap_or(&b'0');
                *low = *HEX.get(usize::from(byte & 15)).unwrap_or(&b'0');
            }
        }
        Code(text)
    }

    /// The hold that `code` names; `None` if it is not a code under this key. Hex digits of either case count.
    pub fn open(&self, code: &[u8]) -> Option<HoldKey> {
        let code: &[u8; CODE_CHARS] = code.try_into().ok()?;
        let mut bytes = [0u8; 16];
        for (byte, pair) in bytes.iter_mut().zip(code.chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = hex(*high)? << 4 | hex(*low)?;
        }
        let mut block: Block<Aes128> = bytes.into();
        self.cipher.decrypt_block(&mut block);
        let plain = u128::from_be_bytes(block.into());
        if plain & u128::from(u32::MAX) != 0 {
            return None;
        }
        let number = (plain >> 32) as u64 & (i64::MAX as u64);
        Some(HoldKey { sale: SaleId((plain >> 95) as u64), number: HoldNumber(number) })
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_code_opens_to_its_hold(sale in 0..=MAX_SALE, number in 0..=i64::MAX as u64, key: [u8; 16]) {
            let codes = Codes::new(&key);
            let hold = HoldKey { sale: SaleId(sale), number: HoldNumber(number) };
            let code = codes.mint(hold);
            prop_assert_eq!(codes.open(code.as_bytes()), Some(hold));
            prop_assert_eq!(codes.open(code.as_str().to_uppercase().as_bytes()), Some(hold));
        }

        #[test]
        fn another_keys_code_and_a_changed_one_do_not_open(number in 0..=i64::MAX as u64, at in 0..32usize) {
            let hold = HoldKey { sale: SaleId(1_700_000_000), number: HoldNumber(number) };
            let code = Codes::new(&[1; 16]).mint(hold);
            prop_assert_eq!(Codes::new(&[2; 16]).open(code.as_bytes()), None);
            let mut changed = *code.as_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            prop_assert_eq!(Codes::new(&[1; 16]).open(&changed), None);
        }
    }

    /// The example of FIPS 197, appendix B, ties the cipher to the standard.
    #[test]
    fn fips_197_appendix_b() {
        let key = 0x2b7e151628aed2a6abf7158809cf4f3c_u128.to_be_bytes();
        let mut block: Block<Aes128> = 0x3243f6a8885a308d313198a2e0370734_u128.to_be_bytes().into();
        Codes::new(&key).cipher.encrypt_block(&mut block);
        assert_eq!(u128::from_be_bytes(block.into()), 0x3925841d02dc09fbdc118597196a0b32);
    }

    #[test]
    fn what_is_not_a_code() {
        let codes = Codes::new(&[7; 16]);
        for bad in ["", "0", &"0".repeat(31), &"0".repeat(32), &"0".repeat(33), &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(codes.open(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn numbers_rise_from_any_start_and_past_the_end() {
        let (last, base) = (MAX_COUNTER, 5 << COUNTER_BITS);
        let numbers = HoldNumbers::starting_at(5, last - 3);
        let take = |count| numbers.take(count).map(|number| number.0 - base);
        assert_eq!(take(3), Some(last - 3));
        assert_eq!(numbers.peek(), Some(HoldNumber(base + last)));
        assert_eq!(take(3), Some(2), "three in a row begin where the space begins, after what was left at its end");
        assert_eq!(take(1), Some(5));
        assert_eq!(numbers.peek(), Some(HoldNumber(base + 6)));
        // All that is left of this life, up to its start.
        assert_eq!(take(last - 3 - 6), Some(6));
        assert_eq!((take(1), numbers.peek()), (None, None));
        assert_eq!(HoldNumbers::starting_at(0, 0).take(last + 1), Some(HoldNumber(0)));
        assert_eq!(HoldNumbers::starting_at(0, 0).take(last + 2), None);
        assert_eq!(HoldNumbers::starting_at(MAX_INSTANCE + 1, 0).take(1), None);
        assert_eq!(HoldNumbers::starting_at(0, u64::MAX).take(1), Some(HoldNumber(last)));
    }

    #[test]
    fn numbers_in_whole_chunks() {
        let base = 5 << COUNTER_BITS;
        let numbers = HoldNumbers::starting_at(5, 3);
        let chunks = |count| numbers.take_chunks(count).map(|number| number.0 - base);
        assert_eq!(chunks(1), Some(8), "the chunk that the start lies in is not whole");
        assert_eq!(chunks(8), Some(16));
        assert_eq!(chunks(9), Some(24));
        assert_eq!(chunks(1), Some(40));
        assert_eq!(numbers.take(1).map(|number| number.0 - base), Some(48));
        assert_eq!(chunks(1), Some(56));
        assert_eq!(number_parts(HoldNumber(base + 56)), (5, 56));
        // Past the end of the counter's space, to its beginning.
        let numbers = HoldNumbers::starting_at(5, MAX_COUNTER - 20);
        let chunks = |count| numbers.take_chunks(count).map(|number| number.0 - base);
        assert_eq!(chunks(8), Some(MAX_COUNTER + 1 - 16));
        assert_eq!(chunks(16), Some(8), "two chunks in a row do not fit before the end");
        assert_eq!(chunks(1), Some(24));
        let used_up = HoldNumbers::starting_at(0, 0);
        assert_eq!(used_up.take_chunks(MAX_COUNTER - 7), Some(HoldNumber(0)));
        assert_eq!(used_up.take_chunks(8), Some(HoldNumber(MAX_COUNTER - 7)));
        assert_eq!(used_up.take_chunks(1), None);
        assert_eq!(HoldNumbers::starting_at(MAX_INSTANCE + 1, 0).take_chunks(1), None);
    }

    #[test]
    fn each_life_starts_elsewhere() {
        let starts: std::collections::HashSet<u64> =
            (0..1000).map(|_| HoldNumbers::new(0).unwrap().take(1).unwrap().0).collect();
        assert_eq!(starts.len(), 1000);
        // Spread over the whole space: a thousand of them leave no sixteenth of it empty.
        let sixteenths: std::collections::HashSet<u64> = starts.iter().map(|n| n >> (COUNTER_BITS - 4)).collect();
        assert_eq!(sixteenths.len(), 16);
    }

    #[test]
    fn hold_numbers_stay_in_range() {
        assert_eq!(hold_number(0, 5), Some(HoldNumber(5)));
        assert_eq!(hold_number(MAX_INSTANCE, MAX_COUNTER), Some(HoldNumber(i64::MAX as u64)));
        assert_eq!(hold_number(MAX_INSTANCE + 1, 0), None);
        assert_eq!(hold_number(0, MAX_COUNTER + 1), None);
    }
}
