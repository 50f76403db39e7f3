//! Numbers and names that stand both in Lua and in Rust.

use super::layout::{self, field};
use super::*;
use std::collections::BTreeSet;

/// All scripts as they stand in `lua/`, by their names there.
const ALL: [(&str, &str); 9] = [
    ("checkout", checkout::TEXT),
    ("close", close::TEXT),
    ("counts", counts::TEXT),
    ("forget", forget::TEXT),
    ("offer", offer::TEXT),
    ("open", open::TEXT),
    ("probe", probe::TEXT),
    ("purchase", purchase::TEXT),
    ("replan", replan::TEXT),
];

/// A script without its comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n")
}

/// What follows each occurrence of `before` in `text`, up to the next byte that is not a digit.
fn numbers_after(text: &str, before: &str) -> Vec<usize> {
    let digits = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    text.split(before).skip(1).map(digits).collect()
}

/// The words in single quotes.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split('\'').skip(1).step_by(2)).collect()
}

#[test]
fn bounds_of_a_call() {
    let text = checkout::TEXT;
    assert_eq!(numbers_after(text, "local BOUND = "), [EXPIRED_A_CALL]);
    let said = format!("With {MAX_BATCH} checkouts the longest unpack is {MAX_BATCH} * 4 + {EXPIRED_A_CALL} * 4 + 12");
    assert!(text.contains(&said), "the comment of checkout.lua does not say: {said}");
}

#[test]
fn keys_are_kept_for_a_week_after_the_end() {
    assert_eq!(layout::KEEP_SECONDS, 7 * 24 * 3600);
    for text in [checkout::TEXT, offer::TEXT] {
        assert_eq!(numbers_after(text, "math.floor(ends / 1000) + "), [layout::KEEP_SECONDS as usize]);
    }
}

#[test]
fn the_highest_epoch() {
    assert_eq!(layout::MAX_EPOCH, i32::MAX as u64, "the ledger's column");
    for text in [close::TEXT, open::TEXT] {
        assert_eq!(numbers_after(text, " <= "), [layout::MAX_EPOCH as usize]);
    }
}

#[test]
fn the_parts_of_a_share() {
    let digits = layout::SHARE_EXPIRY_DIGITS;
    for (name, text) in [("checkout", checkout::TEXT), ("offer", offer::TEXT)] {
        let expect = |before: &str, want: usize| {
            let found = numbers_after(text, before);
            assert!(!found.is_empty() && found.iter().all(|number| *number == want), "{name}: {before}{found:?}");
        };
        expect("#share > ", digits);
        expect("sub(share, 1, ", digits);
        // The rest of the share: not the cut above.
        assert!(numbers_after(text, "sub(share, ").contains(&(digits + 1)), "{name}");
    }
    let nothing = format!("'{}'", "0".repeat(digits + 1));
    assert!(offer::TEXT.contains(&nothing), "the share of a user without one");
}

#[test]
fn arguments() {
    // The epoch and the latest time, then three for each checkout and one for each purchase.
    assert!(checkout::TEXT.contains("local count = (#ARGV - 2) / 3"));
    assert!(purchase::TEXT.contains("local count = #ARGV - 2"));
    assert_eq!(numbers_after(offer::TEXT, "for at = 3, #ARGV, "), [offer::RECORD_ARGS]);
    for text in [checkout::TEXT, purchase::TEXT] {
        let [meta] = numbers_after(text, "local META = ")[..] else { panic!("no META") };
        let fields = text.split("local fields = {").nth(1).unwrap().split('}').next().unwrap();
        assert_eq!(quoted(fields).len(), meta);
    }
}

#[test]
fn names_of_fields() {
    let known: BTreeSet<&str> = field::ALL.into_iter().collect();
    let others = [layout::OPEN, layout::CLOSED, "hash"];
    let mut used = BTreeSet::new();
    for (name, text) in ALL {
        let text = code(text);
        let is_name = |word: &&str| word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_lowercase());
        for word in quoted(&text).into_iter().filter(is_name).filter(|word| !others.contains(word)) {
            assert!(known.contains(word), "{name}.lua: {word} is not a field of a state");
            used.insert(word.to_owned());
        }
    }
    let known = known.into_iter().map(str::to_owned).collect();
    assert_eq!(used, known, "fields that no script uses");
}

#[test]
fn marks() {
    // Each letter that a script may put into its reply is read, and no letter besides.
    let given = |text: &str| -> BTreeSet<char> {
        let text = code(text);
        let lines = text.lines().filter(|line| line.contains("marks[")).map(str::to_owned).collect::<Vec<_>>();
        let lines = lines.join("\n");
        let letter = |word: &str| word.chars().next().filter(|c| word.len() == 1 && c.is_ascii_uppercase());
        quoted(&lines).into_iter().filter_map(letter).collect()
    };
    let letters = || ('A'..='Z').map(|letter| (letter, format!("K 1 2 3\n{letter}")));
    let read = |reply: &str| checkout::read(reply.as_bytes(), 1)?.ok()?.marks().next()?;
    let known: BTreeSet<char> =
        letters().filter(|(_, reply)| read(reply).is_some()).map(|(letter, _)| letter).collect();
    assert_eq!(given(checkout::TEXT), known);

    let letters = || ('A'..='Z').map(|letter| (letter, format!("K 1\n{letter}\n1 2 3 1 1 ui")));
    let read = |reply: &str| purchase::read(reply.as_bytes(), 1)?.ok()?.marks().next()?;
    let known: BTreeSet<char> =
        letters().filter(|(_, reply)| read(reply).is_some()).map(|(letter, _)| letter).collect();
    assert_eq!(given(purchase::TEXT), known);

    let read = |letter: char| offer::read(format!("K {letter}").as_bytes(), 1)?.ok();
    assert_eq!(given(offer::TEXT), ('A'..='Z').filter(|letter| read(*letter).is_some()).collect());
}
