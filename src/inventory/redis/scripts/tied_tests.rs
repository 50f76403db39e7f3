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
    let (text, slots, chunks) = (checkout::TEXT, chunk::SLOTS, chunk::MAX_CHUNKS);
    assert_eq!(numbers_after(text, "local BOUND = "), [EXPIRED_CHUNKS]);
    let said = format!(
        "With {MAX_BATCH} checkouts, and\n-- {chunks} chunks in the last entry, the longest unpack is 2 * {MAX_BATCH} + 2 * {chunks} + \
         2 * {slots} * ({EXPIRED_CHUNKS} + {}) + 12",
        chunks - 1
    );
    assert!(text.contains(&said), "the comment of chunk.lua does not say: {said}");
}

#[test]
fn the_parts_of_a_chunk() {
    let time = layout::TIME_DIGITS;
    // The expiry is the second time of the head; the first entry follows it.
    for text in [purchase::TEXT, offer::TEXT] {
        assert_eq!(numbers_after(text, "sub(chunk, 14, "), [2 * time]);
    }
    assert_eq!(time + 1, 14);
    let first = 2 * time + 1;
    assert_eq!(offer::TEXT.matches(&format!("local at = {first}\n")).count(), 2);
    assert_eq!(numbers_after(offer::TEXT, "local nth, at = 0, "), [first]);
    assert!(numbers_after(offer::TEXT, "marks % ").iter().all(|length| *length == 2 + time));
    assert_eq!(numbers_after(checkout::TEXT, "ceil(count / "), [chunk::SLOTS]);
    assert_eq!(numbers_after(checkout::TEXT, "ceil(i / "), [chunk::SLOTS]);
    assert_eq!(numbers_after(checkout::TEXT, "8 * i - "), [chunk::SLOTS - 1]);
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
    let digits = layout::TIME_DIGITS;
    for (name, text) in [("checkout", checkout::TEXT), ("offer", offer::TEXT)] {
        for (before, want) in [("sub(share, 1, ", digits), ("sub(share, 14", 0)] {
            let found = text.split(before).count() - 1;
            assert!(
                found > 0 && (want == 0 || numbers_after(text, before).iter().all(|n| *n == want)),
                "{name}: {before}"
            );
        }
    }
    assert_eq!(digits + 1, 14, "the rest of a share");
    assert_eq!(
        numbers_after(checkout::TEXT, "sub(first, 1, "),
        [digits],
        "an entry of the queue begins with its expiry"
    );
    let nothing = format!("'{}'", "0".repeat(digits + 1));
    assert!(offer::TEXT.contains(&nothing), "the share of a user without one");
}

#[test]
fn arguments() {
    // The epoch, the latest time, how many checkouts and their chunks; the epoch and the latest time, and then a purchase each.
    assert!(checkout::TEXT.contains("unpack(argv, 5, 4 + count + chunks)"));
    assert!(purchase::TEXT.contains("local count = #argv - 2"));
    // Twice: what can fail is tried first.
    assert_eq!(numbers_after(offer::TEXT, "for at = 3, #ARGV, "), [offer::RECORD_ARGS; 2]);
    for (text, list) in [(checkout::TEXT, "call('HMGET', state, 'epoch', "), (purchase::TEXT, "local fields = {")] {
        let [meta] = numbers_after(text, "local META = ")[..] else { panic!("no META") };
        let fields = text.split(list).nth(1).unwrap().split(['}', '\n']).next().unwrap();
        let first = usize::from(list.contains("'epoch'"));
        assert_eq!(first + quoted(fields).len(), meta);
    }
}

#[test]
fn names_of_fields() {
    let known: BTreeSet<&str> = field::ALL.into_iter().collect();
    let others = [layout::SELLING, layout::CLOSED, "hash"];
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

    let time = "0".repeat(layout::TIME_DIGITS);
    let read = |letter: char, facts: &str| {
        purchase::read(format!("K 1\n{letter}\n{facts}").as_bytes(), 1)?.ok()?.marks().next()?
    };
    let is_read = |letter: char| read(letter, "!!ui").or(read(letter, &(time.repeat(3) + "!!ui"))).is_some();
    let known: BTreeSet<char> = ('A'..='Z').filter(|letter| is_read(*letter)).collect();
    assert_eq!(given(purchase::TEXT), known);

    let read = |letter: char| offer::read(format!("K {letter}").as_bytes(), 1)?.ok();
    assert_eq!(given(offer::TEXT), ('A'..='Z').filter(|letter| read(*letter).is_some()).collect());
}
