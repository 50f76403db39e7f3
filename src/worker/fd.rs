//! Placing a descriptor on a worker.
//!
//! Owns the choice of a descriptor's number. Invariant: a placed descriptor's home worker (its number modulo the number of
//! workers) is the wanted one. Leaves watching it to [`super::Watched`].

use rustix::io::fcntl_dupfd_cloexec;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A descriptor of the same open file whose number modulo `workers` is `worker`, so that its events run there.
/// Returns `fd` itself when it fits already. Fails when the process has no free descriptors.
pub fn place(fd: OwnedFd, worker: usize, workers: usize) -> io::Result<OwnedFd> {
    let mut placed = fd;
    loop {
        let number = usize::try_from(placed.as_raw_fd()).map_err(io::Error::other)?;
        let missing = (worker + workers - number % workers) % workers;
        if missing == 0 {
            return Ok(placed);
        }
        // The kernel gives the lowest number that is free from `least` on, which may be a later one.
        let least = i32::try_from(number + missing).map_err(io::Error::other)?;
        placed = fcntl_dupfd_cloexec(&placed, least)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_residue_is_reached() {
        for workers in 1..5 {
            for worker in 0..workers {
                let pair = rustix::pipe::pipe().unwrap();
                let placed = place(pair.0, worker, workers).unwrap();
                assert_eq!(placed.as_raw_fd() as usize % workers, worker);
                rustix::io::write(&pair.1, b"x").unwrap();
                assert_eq!(rustix::io::read(&placed, &mut [0; 1]).unwrap(), 1);
            }
        }
    }
}
