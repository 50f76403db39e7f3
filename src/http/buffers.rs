//! The buffers of a connection, and those that no connection of a worker needs at the moment.
//!
//! Owns their usual sizes and how many spare ones are kept. A connection that waits with nothing read and nothing to send
//! gives its buffers back, so that thousands of idle connections need no memory for them, and the few in use stay in the
//! processor's caches. Invariant: spare buffers are empty and of the usual sizes. Leaves to the stream when buffers grow.

use parking_lot::Mutex;

/// The usual size of the buffer that a connection reads into: any usual head, and a few pipelined requests.
pub(super) const INPUT_BYTES: usize = 4 << 10;
/// The usual size of the buffer for answers, a few pipelined ones, and of the memory in which a body is written.
pub(super) const OUTPUT_BYTES: usize = 1024;
/// How many sets of buffers a worker keeps. In a turn of its event loop, a worker serves one connection after the other, so
/// that more than one set is in use only where half a request has come or a peer does not read.
const SPARE: usize = 16;

/// A connection's buffers.
#[derive(Default)]
pub(super) struct Buffers {
    /// What was read.
    pub(super) input: Vec<u8>,
    /// Answers that are not sent yet.
    pub(super) output: Vec<u8>,
    /// The memory in which the body of an answer is written.
    pub(super) scratch: Vec<u8>,
}

impl Buffers {
    fn usual() -> Buffers {
        Buffers {
            input: Vec::with_capacity(INPUT_BYTES),
            output: Vec::with_capacity(OUTPUT_BYTES),
            scratch: Vec::with_capacity(OUTPUT_BYTES),
        }
    }

    fn is_usual(&self) -> bool {
        self.input.capacity() == INPUT_BYTES
            && self.output.capacity() == OUTPUT_BYTES
            && self.scratch.capacity() == OUTPUT_BYTES
    }
}

/// The spare buffers of one worker. Used on that worker alone, so the lock is never contended.
pub(super) struct SpareBuffers(Mutex<Vec<Buffers>>);

impl Default for SpareBuffers {
    fn default() -> SpareBuffers {
        SpareBuffers(Mutex::new(Vec::with_capacity(SPARE)))
    }
}

impl SpareBuffers {
    /// A spare set, or a new one.
    #[inline]
    pub(super) fn take(&self) -> Buffers {
        self.0.lock().pop().unwrap_or_else(Buffers::usual)
    }

    /// Keeps `buffers` if there are few spare ones and they have the usual sizes. What they hold is forgotten.
    #[inline]
    pub(super) fn give_back(&self, mut buffers: Buffers) {
        let mut spare = self.0.lock();
        if spare.len() < SPARE && buffers.is_usual() {
            buffers.input.clear();
            buffers.output.clear();
            buffers.scratch.clear();
            spare.push(buffers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_buffers_of_the_usual_sizes_are_kept() {
        let spare = SpareBuffers::default();
        let mut used: Vec<Buffers> = (0..2 * SPARE).map(|_| spare.take()).collect();
        used.iter_mut().for_each(|buffers| buffers.input.push(b'x'));
        let mut large = spare.take();
        large.output.resize(2 * OUTPUT_BYTES, 0);
        spare.give_back(large);
        assert_eq!(spare.0.lock().len(), 0);
        used.into_iter().for_each(|buffers| spare.give_back(buffers));
        assert_eq!(spare.0.lock().len(), SPARE);
        let again = spare.take();
        assert!(again.input.is_empty() && again.is_usual());
    }
}
