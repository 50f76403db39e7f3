//! Building a sale's state in Redis beside the one that is there, and putting it in place.
//!
//! Owns the commands of both. Invariants: a state that is being built expires by itself unless it is opened; a state that
//! sells is never replaced under its own epoch (`lua/open.lua`). Many commands go out in one round trip: no instance sells
//! while a sale is rebuilt, and the connection to Redis may be slow. Leaves to the keeper when a state is built.

use super::error::KeeperError;
use super::merge::{HoldFacts, HoldState, RebuiltSale};
use super::sale_store::Built;
use super::store::{CHUNK, Store, words};
use crate::domain::{HoldNumber, Id, Terms};
use crate::inventory::redis::scripts::chunk::{Chunk, ChunkId, Queue, QueueEntry};
use crate::inventory::redis::scripts::layout::{Head, add_share, begin_state, build_keys};
use crate::inventory::redis::scripts::open;
use redis::{Cmd, Pipeline, cmd};
use std::collections::HashMap;

/// After how many seconds a state that is not opened expires, counted from the last round trip that added to it.
pub(super) const BUILD_SECONDS: u64 = 300;
/// Users or entries that are written in one round trip: about two megabytes, in commands of [`CHUNK`] each.
const TRIP: usize = 20_000;
/// Chunks of holds in the place of so many users or entries: a chunk has one to eight holds.
const HOLDS_AS_ONE: usize = 4;

const _: () = assert!(TRIP.is_multiple_of(CHUNK) && CHUNK.is_multiple_of(HOLDS_AS_ONE));

/// A hold of a rebuilt sale, with its number.
type Hold<'a> = (&'a u64, &'a (HoldFacts, HoldState));

impl Store {
    /// Builds `sale`'s state for `epoch` beside what is there, under names that no other instance uses. [`Store::open`] puts
    /// it in place. `alive` is asked after each chunk.
    pub fn build(
        &mut self,
        terms: &Terms,
        epoch: u64,
        rebuilt: &RebuiltSale,
        alive: &mut dyn FnMut() -> Result<(), KeeperError>,
    ) -> Result<Built, KeeperError> {
        let built = Built { terms: *terms, epoch, nonce: fastrand::u64(..) };
        let done = self.fill(&built, rebuilt, alive);
        if done.is_err() {
            self.discard(&built);
        }
        done.map(|()| built)
    }

    /// Removes a state that was built and will not be opened: it would take up memory until it expires.
    pub fn discard(&mut self, built: &Built) {
        let (state, queue) = keys(built);
        let removed: Result<(), KeeperError> = self.ask(cmd("UNLINK").arg(state).arg(queue));
        if let Err(why) = removed {
            tracing::debug!("a state that was built is left to expire: {why}");
        }
    }

    fn fill(
        &mut self,
        built: &Built,
        rebuilt: &RebuiltSale,
        alive: &mut dyn FnMut() -> Result<(), KeeperError>,
    ) -> Result<(), KeeperError> {
        let (state, queue) = &keys(built);
        // The first field gives the key its expiry, in one step: from then on it disappears by itself.
        self.begin(&begin_state(state), state)?;
        let queued = self.write_holds(state, rebuilt, alive)?;
        self.write_users(state, rebuilt, alive)?;
        let push = |entries: &[QueueEntry]| {
            let mut push = cmd("RPUSH");
            push.arg(queue);
            for entry in entries {
                push.arg(entry.to_string());
            }
            push
        };
        let (first, rest) = queued.split_at(queued.len().min(CHUNK));
        if !first.is_empty() {
            self.begin(&push(first), queue)?;
        }
        for trip in rest.chunks(TRIP) {
            self.send(trip.chunks(CHUNK).map(push), queue)?;
            alive()?;
        }
        // The terms are written last: a state that was not completed has none, and so cannot be opened. Both keys expire
        // later again.
        let mut pipe = Pipeline::new();
        pipe.add_command(self.write_terms(built, rebuilt, queued.len() as u64));
        pipe.cmd("EXPIRE").arg(state).arg(BUILD_SECONDS).cmd("EXPIRE").arg(queue).arg(BUILD_SECONDS);
        self.run(|connection| pipe.exec(connection))
    }

    /// Writes the holds, and gives the entries of the queue that name them, in their order.
    fn write_holds(
        &mut self,
        state: &str,
        rebuilt: &RebuiltSale,
        alive: &mut dyn FnMut() -> Result<(), KeeperError>,
    ) -> Result<Vec<QueueEntry>, KeeperError> {
        let holds: Vec<Hold<'_>> = rebuilt.holds.iter().collect();
        let chunk = |(number, _): &Hold<'_>| ChunkId::of(HoldNumber(**number)).0;
        let chunks: Vec<&[Hold<'_>]> = holds.chunk_by(|a, b| chunk(a) == chunk(b)).collect();
        let mut queue = Queue::default();
        for trip in chunks.chunks(TRIP / HOLDS_AS_ONE) {
            let sets = trip.chunks(CHUNK / HOLDS_AS_ONE).map(|some| {
                let mut set = cmd("HSET");
                set.arg(state);
                for holds in some {
                    let holds = holds.iter().map(|(number, (known, place))| (HoldNumber(**number), known, *place));
                    let Some(chunk) = Chunk::write(holds) else { continue };
                    set.arg(chunk.id.field()).arg(chunk.holds.as_slice());
                    if !chunk.marks.is_empty() {
                        set.arg(chunk.id.marks_field()).arg(chunk.marks.as_slice());
                    }
                    queue.add(chunk.queued);
                }
                set
            });
            self.send(sets, state)?;
            alive()?;
        }
        Ok(queue.in_order())
    }

    /// Writes the share of each user who holds something or has purchased it.
    fn write_users(
        &mut self,
        state: &str,
        rebuilt: &RebuiltSale,
        alive: &mut dyn FnMut() -> Result<(), KeeperError>,
    ) -> Result<(), KeeperError> {
        // Each one's items, and when the last of the holds expires.
        let mut users = HashMap::<Id, (u64, u64)>::new();
        for (known, place) in rebuilt.holds.values().filter(|(_, place)| *place != HoldState::Expired) {
            let (items, last_ms) = users.entry(known.user).or_default();
            *items += 1;
            if *place == HoldState::Held {
                *last_ms = known.expires_ms.max(*last_ms);
            }
        }
        let users: Vec<_> = users.into_iter().collect();
        for trip in users.chunks(TRIP) {
            let sets = trip.chunks(CHUNK).map(|chunk| {
                let mut set = cmd("HSET");
                set.arg(state);
                for (user, (items, last_ms)) in chunk {
                    add_share(&mut set, user, *items, *last_ms);
                }
                set
            });
            self.send(sets, state)?;
            alive()?;
        }
        Ok(())
    }

    /// Makes a key with its first content, and with an expiry.
    fn begin(&mut self, command: &Cmd, key: &str) -> Result<(), KeeperError> {
        let mut pipe = Pipeline::new();
        pipe.atomic().add_command(command.clone()).cmd("EXPIRE").arg(key).arg(BUILD_SECONDS);
        self.run(|connection| pipe.exec(connection))
    }

    /// Adds to a key in one round trip, and has it expire later.
    fn send(&mut self, commands: impl Iterator<Item = Cmd>, key: &str) -> Result<(), KeeperError> {
        let mut pipe = Pipeline::new();
        commands.for_each(|command| {
            pipe.add_command(command);
        });
        pipe.cmd("EXPIRE").arg(key).arg(BUILD_SECONDS);
        self.run(|connection| pipe.exec(connection))
    }

    /// What the state has besides holds and users.
    fn write_terms(&self, built: &Built, rebuilt: &RebuiltSale, queue: u64) -> Cmd {
        let with_checkout = |known: &&HoldFacts| known.has_checkout();
        let head = Head {
            terms: &built.terms,
            epoch: built.epoch,
            ledger: self.ledger.as_deref(),
            clock_ms: rebuilt.clock_ms,
            held: rebuilt.held,
            purchased: rebuilt.purchased,
            taken: rebuilt.holds.values().map(|(known, _)| known).filter(with_checkout).count() as u64,
            quarantined: rebuilt.quarantined.iter().map(|(_, known)| known).filter(with_checkout).count() as u64,
            queue,
        };
        head.write(&keys(built).0)
    }

    /// Puts a state in place that was built. `Err` if a newer epoch is there, or this one sells already.
    pub fn open(&mut self, built: &Built) -> Result<(), KeeperError> {
        let Built { terms, epoch, .. } = built;
        let (state, queue) = &keys(built);
        let reply: Vec<u8> = self.ask(&open::call(terms, *epoch, (state, queue)))?;
        match open::read(&reply) {
            Some(Ok(())) => Ok(()),
            _ => Err(KeeperError::Redis(format!(
                "{terms} was not opened under epoch {epoch}: Redis says {}",
                words(&reply)
            ))),
        }
    }
}

/// The keys (state, queue) that a state is built under.
fn keys(built: &Built) -> (String, String) {
    build_keys(built.terms.sale, built.epoch, built.nonce)
}
