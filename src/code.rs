//! One-time codes: minting and opening.
//!
//! A code is one AES-128 block (FIPS 197) over the sale, the hold's number and check bits, written as 32 hex
//! digits. Whoever lacks the key can neither guess one nor forge one: 32 check bits refuse a forged block without
//! asking anybody, and what slips through (one in 2^32) still names no hold. Refuses to know where the key is
//! kept and what a hold is worth.

use crate::domain::{HoldKey, HoldNumber, SaleId};
use aes::Aes128;
use aes::cipher::{Block, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use std::fmt;

/// How many bytes the key has.
pub const KEY_BYTES: usize = 16;
/// How many characters a code has.
pub const CODE_CHARS: usize = 32;

/// Bits of a hold number that count within an instance: at 100,000 checkouts a second, 2.7 years.
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
/// The last sale whose codes fit a block.
pub const MAX_SALE: u64 = (1 << SALE_BITS) - 1;

/// The hold number of `counter` on `instance`; `None` beyond [`MAX_INSTANCE`] or [`MAX_COUNTER`].
pub fn hold_number(instance: u64, counter: u64) -> Option<HoldNumber> {
    (instance <= MAX_INSTANCE && counter <= MAX_COUNTER).then_some(HoldNumber(instance << COUNTER_BITS | counter))
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
    fn hold_numbers_stay_in_range() {
        assert_eq!(hold_number(0, 5), Some(HoldNumber(5)));
        assert_eq!(hold_number(MAX_INSTANCE, MAX_COUNTER), Some(HoldNumber(i64::MAX as u64)));
        assert_eq!(hold_number(MAX_INSTANCE + 1, 0), None);
        assert_eq!(hold_number(0, MAX_COUNTER + 1), None);
    }
}
