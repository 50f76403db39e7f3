use super::*;
use proptest::prelude::*;

/// The first number of a chunk: instance 5, chunk 2.
const FIRST: u64 = (5 << 43) + 16;

fn facts(user: &str, taken_ms: u64, expires_ms: u64, purchased_ms: Option<u64>) -> HoldFacts {
    HoldFacts { user: user.parse().unwrap(), item: "i:é".parse().unwrap(), taken_ms, expires_ms, purchased_ms }
}

fn write(holds: &[(u64, HoldFacts, HoldState)]) -> Chunk {
    Chunk::write(holds.iter().map(|(slot, facts, state)| (HoldNumber(FIRST + slot), facts, *state))).unwrap()
}

#[test]
fn holds_of_one_call() {
    let held = facts("ab", 5, 9, None);
    let sold = HoldFacts { purchased_ms: Some(7), ..facts("c", 5, 9, None) };
    let chunk = write(&[(0, held, HoldState::Held), (2, sold, HoldState::Purchased)]);
    assert_eq!((chunk.id.field().as_str(), chunk.id.marks_field().as_str()), ("c5:2", "m5:2"));
    assert_eq!(chunk.holds, "00000000000050000000000009\"$abi:é  !$ci:é".as_bytes());
    assert_eq!(chunk.marks, b"cP0000000000007");
    let entries: Vec<String> = chunk.queued.iter().map(ToString::to_string).collect();
    assert_eq!(entries, ["0000000000009:5:2:1"]);
    let read = read(chunk.id, &chunk.holds, &chunk.marks).unwrap();
    assert_eq!(read, [(HoldNumber(FIRST), held), (HoldNumber(FIRST + 2), sold)]);
}

#[test]
fn holds_that_differ_from_their_chunk() {
    // Of the first, only the purchase is known; the head is that of the second.
    let alone = facts("a", 6, 0, Some(6));
    let (second, later, renewed) = (facts("b", 5, 9, None), facts("c", 4, 9, None), facts("d", 5, 12, None));
    let chunk = write(&[
        (0, alone, HoldState::Purchased),
        (1, second, HoldState::Held),
        (2, later, HoldState::Held),
        (3, renewed, HoldState::Held),
        (4, renewed, HoldState::Held),
    ]);
    let text = String::from_utf8(chunk.marks.clone()).unwrap();
    let time = |ms: u64| format!("{ms:013}");
    let want = ["aE", "aP", "cT", "dE", "eE"].into_iter().zip([0, 6, 4, 12, 12]);
    assert_eq!(text, want.map(|(mark, ms)| format!("{mark}{}", time(ms))).collect::<String>());
    let entries: Vec<String> = chunk.queued.iter().map(ToString::to_string).collect();
    assert_eq!(entries, [time(12) + ":5:2:de", time(9) + ":5:2:1"]);
    let numbers = (FIRST..).map(HoldNumber);
    let want: Vec<_> = numbers.zip([alone, second, later, renewed, renewed]).collect();
    assert_eq!(read(chunk.id, &chunk.holds, &chunk.marks), Some(want));
}

#[test]
fn a_chunk_of_which_only_purchases_are_known() {
    let alone = facts("a", 6, 0, Some(6));
    let chunk = write(&[(7, alone, HoldState::Purchased)]);
    assert_eq!(chunk.marks, b"hP0000000000006");
    assert_eq!(chunk.queued, []);
    assert_eq!(read(chunk.id, &chunk.holds, &chunk.marks), Some(vec![(HoldNumber(FIRST + 7), alone)]));
}

#[test]
fn what_cannot_be_read() {
    let chunk = write(&[(0, facts("ab", 5, 9, None), HoldState::Held)]);
    for end in 0..chunk.holds.len() {
        let is_whole = end == HEAD;
        assert_eq!(read(chunk.id, &chunk.holds[..end], b"").is_some(), is_whole, "{end}");
    }
    for marks in ["a", "aP000000000000", "aP000000000000x", "iP0000000000000", "aX0000000000000", "AP0000000000000"] {
        assert_eq!(read(chunk.id, &chunk.holds, marks.as_bytes()), None, "{marks}");
    }
    // An expiry of 0 says that only the purchase is known, and there is none.
    assert_eq!(read(chunk.id, &chunk.holds, b"aE0000000000000"), None);
    let nine = [&chunk.holds[..], &b"!!ui".repeat(8)].concat();
    assert_eq!(read(chunk.id, &nine, b""), None, "a ninth slot");
    for field in ["c", "c5", "c5:", "c:5", "m5:2", "c5:2:1", "clock", "c5:x"] {
        assert_eq!(ChunkId::of_field(field.as_bytes()), None, "{field}");
    }
    assert_eq!(ChunkId::of_field(b"c5:2"), Some(ChunkId { instance: 5, nth: 2 }));
}

#[test]
fn a_queue() {
    let mut queue = Queue::default();
    let entry = |expires_ms, nth, holds| QueueEntry { expires_ms, first: ChunkId { instance: 5, nth }, holds };
    let one = Queued::Chunks(1);
    queue.add([entry(20, 1, one.clone()), entry(20, 2, one.clone()), entry(10, 3, one.clone())]);
    queue.add([entry(10, 4, Queued::Slots("ab".into())), entry(10, 4, one.clone()), entry(10, 6, one.clone())]);
    queue.add((100..100 + MAX_CHUNKS + 1).map(|nth| entry(30, nth, one.clone())));
    let texts: Vec<String> = queue.in_order().iter().map(ToString::to_string).collect();
    let time = write_time;
    let wanted = [
        format!("{}:5:3:1", time(10)),
        format!("{}:5:4:ab", time(10)),
        format!("{}:5:4:1", time(10)),
        format!("{}:5:6:1", time(10)),
        format!("{}:5:1:2", time(20)),
        format!("{}:5:100:64", time(30)),
        format!("{}:5:164:1", time(30)),
    ];
    assert_eq!(texts, wanted);
    for text in texts {
        assert_eq!(QueueEntry::read(text.as_bytes()).map(|entry| entry.to_string()), Some(text));
    }
    assert_eq!(QueueEntry::read(b"9:5:100:64").unwrap().last(), ChunkId { instance: 5, nth: 163 });
    assert_eq!(QueueEntry::read(b"9:5:100:ab").unwrap().last(), ChunkId { instance: 5, nth: 100 });
    for bad in ["", "9", "9:5:1", "9:5:1:", "x:5:1:1", "9:5:1:1:1"] {
        assert_eq!(QueueEntry::read(bad.as_bytes()), None, "{bad}");
    }
}

fn some_hold() -> impl Strategy<Value = (HoldFacts, HoldState)> {
    let state = prop_oneof![Just(HoldState::Held), Just(HoldState::Expired), Just(HoldState::Purchased)];
    ("[a-z:é]{1,30}", 1..3u64, 1..3u64, any::<bool>(), state).prop_map(|(user, taken_ms, expires_ms, alone, state)| {
        let purchased_ms = (state == HoldState::Purchased).then_some(7);
        match purchased_ms.filter(|_| alone) {
            Some(at_ms) => (facts(&user, at_ms, 0, purchased_ms), state),
            None => (facts(&user, taken_ms, expires_ms, purchased_ms), state),
        }
    })
}

proptest! {
    #[test]
    fn chunks_read_as_written(holds in proptest::collection::btree_map(0..8u64, some_hold(), 1..8)) {
        let holds: Vec<_> = holds.into_iter().map(|(slot, (facts, state))| (slot, facts, state)).collect();
        let chunk = write(&holds);
        let want: Vec<_> = holds.iter().map(|(slot, facts, _)| (HoldNumber(FIRST + slot), *facts)).collect();
        prop_assert_eq!(read(chunk.id, &chunk.holds, &chunk.marks), Some(want));
    }
}
