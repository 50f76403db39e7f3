//! How many answers of each status a worker has sent.
//!
//! Owns the numbers, not how they are told. Invariant: one worker writes them, and no other one writes to the cache
//! lines that they are in, so that counting costs a request an addition. Leaves to others which status an answer has.

use std::sync::atomic::{AtomicU64, Ordering};

/// The statuses that are counted. What is none of these is counted as the last one.
pub const STATUSES: [u16; 15] = [200, 204, 400, 401, 404, 405, 409, 413, 417, 429, 431, 501, 503, 505, 500];

/// One worker's numbers. Two cache lines apart from anything else: processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Answers([AtomicU64; STATUSES.len()]);

impl Answers {
    /// One more answer of `status`. On the numbers' own worker alone: it reads and writes without locking the line.
    #[inline]
    pub fn count(&self, status: u16) {
        let place = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        if let Some(count) = self.0.get(place) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// The numbers of all statuses, as in [`STATUSES`]. From any thread.
    pub fn counts(&self) -> [u64; STATUSES.len()] {
        self.0.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_number() {
        let answers = Answers::default();
        STATUSES.iter().zip(1..).for_each(|(status, times)| (0..times).for_each(|_| answers.count(*status)));
        answers.count(999);
        let mut want: Vec<u64> = (1..=STATUSES.len() as u64).collect();
        *want.last_mut().unwrap() += 1;
        assert_eq!(answers.counts().to_vec(), want);
        assert_eq!(align_of::<Answers>(), 128);
    }
}
