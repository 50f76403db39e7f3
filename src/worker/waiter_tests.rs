//! The ring of a waiter against a plain map of tickets.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What may happen to a ring. Tickets are chosen among those that were opened, the closed ones included.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Deliver(prop::sample::Index, u32),
    Take(prop::sample::Index),
    Close(prop::sample::Index),
    Shrink,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_ticket = any::<prop::sample::Index>;
    let step = prop_oneof![
        3 => Just(Step::Open),
        3 => (any_ticket(), any::<u32>()).prop_map(|(ticket, answer)| Step::Deliver(ticket, answer)),
        3 => any_ticket().prop_map(Step::Take),
        1 => any_ticket().prop_map(Step::Close),
        1 => Just(Step::Shrink),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// An open ticket is in the map, with its answer once that has come.
    #[test]
    fn a_ring_is_a_map_of_open_tickets(steps in steps()) {
        let (mut ring, mut map) = (Ring::new(), BTreeMap::<u64, Option<u32>>::new());
        let (mut next, mut woken) = (0, false);
        for step in steps {
            let chosen = |index: prop::sample::Index| if next == 0 { 0 } else { index.index(next as usize) as u64 };
            match step {
                Step::Open => {
                    ring.open(next);
                    map.insert(next, None);
                    next += 1;
                }
                Step::Deliver(ticket, answer) => {
                    let ticket = chosen(ticket);
                    let accepted = matches!(map.get(&ticket), Some(None));
                    let wakes = accepted && !woken;
                    woken |= accepted;
                    if accepted {
                        map.insert(ticket, Some(answer));
                    }
                    prop_assert_eq!(ring.deliver(ticket, answer), wakes);
                }
                Step::Take(ticket) => {
                    let ticket = chosen(ticket);
                    let want = map.get(&ticket).copied().flatten();
                    match want {
                        Some(_) => drop(map.remove(&ticket)),
                        None => woken = false,
                    }
                    prop_assert_eq!(ring.take(ticket), want);
                }
                Step::Close(ticket) => {
                    let ticket = chosen(ticket);
                    map.remove(&ticket);
                    ring.close(ticket);
                }
                Step::Shrink => ring.slots.shrink_to(USUAL_SLOTS),
            }
            for ticket in 0..=next {
                prop_assert_eq!(ring.is_open(ticket), matches!(map.get(&ticket), Some(None)), "{}", ticket);
            }
            let oldest = map.keys().next().copied().unwrap_or(next);
            prop_assert_eq!(ring.oldest, oldest, "closed tickets at the front take no memory");
            prop_assert_eq!(ring.slots.len() as u64, next - oldest);
        }
    }
}

#[test]
fn memory_grows_with_open_tickets_and_is_given_back() {
    let mut ring = Ring::new();
    let open_and_answer = |ring: &mut Ring<u64>, tickets: std::ops::Range<u64>| {
        tickets.clone().for_each(|ticket| ring.open(ticket));
        // The last one first: each wait for the oldest one would be woken in vain, and is woken once.
        let woken = tickets.clone().rev().filter(|ticket| ring.deliver(*ticket, 10 * ticket)).count();
        assert_eq!(tickets.clone().map(|ticket| ring.take(ticket)).collect::<Vec<_>>(), {
            tickets.clone().map(|ticket| Some(10 * ticket)).collect::<Vec<_>>()
        });
        assert_eq!(ring.take(tickets.end), None);
        woken
    };
    for ticket in 0..100 {
        assert_eq!(open_and_answer(&mut ring, ticket..ticket + 1), 1);
    }
    assert_eq!(ring.slots.capacity(), USUAL_SLOTS, "one at a time needs no more");
    assert_eq!(open_and_answer(&mut ring, 100..164), 1, "one wake-up for 64 answers");
    assert!(ring.slots.capacity() >= 64);
    ring.slots.shrink_to(USUAL_SLOTS);
    assert_eq!(ring.slots.capacity(), USUAL_SLOTS);
    assert_eq!(open_and_answer(&mut ring, 164..170), 1);
}
