//! How many answers of each status a worker has sent.
//!
//! Owns the counters. Invariant: one worker alone writes them, and no other thread writes to their cache lines, so that
//! counting costs a request one addition. Leaves the choice of a status to the services, and publishing the counts to
//! `admin`.

use std::sync::atomic::{AtomicU64, Ordering};

/// The statuses that are counted. Any other status is counted as the last one.
pub const STATUSES: [u16; 15] = [200, 204, 400, 401, 404, 405, 409, 413, 417, 429, 431, 501, 503, 505, 500];

/// One worker's counters, alone in a pair of cache lines: processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Answers([AtomicU64; STATUSES.len()]);

impl Answers {
    /// Counts one answer of `status`. Only the counters' own worker may call it: it reads and writes without a lock.
    #[inline]
    pub fn count(&self, status: u16) {
        let place = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len() - 1);
        if let Some(count) = self.0.get(place) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// The counts of all statuses, in the order of [`STATUSES`]. For any thread.
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
