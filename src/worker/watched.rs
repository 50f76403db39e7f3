//! A descriptor that the event loop watches.
//!
//! Owns taking a descriptor into the event loop and out of it. Invariant: the descriptor's number is free for others only
//! after the event loop has let it go. Leaves reading and writing to the user.

use may::io::{CoIo, WaitIo, WaitIoWaker};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A descriptor whose readiness wakes one coroutine on its home worker.
///
/// `CoIo` alone closes its descriptor before it takes it out of the event loop. In between, another thread may open a
/// connection with the same number; `CoIo` would take that one out, and it would never wake again. So this struct keeps a
/// second handle to the descriptor, which is dropped last: fields are dropped in the order in which they stand.
#[derive(Debug)]
pub struct Watched {
    io: CoIo<Arc<OwnedFd>>,
    fd: Arc<OwnedFd>,
}

impl Watched {
    /// Watches `fd` from now on, and makes it non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Watched> {
        let fd = Arc::new(fd);
        Ok(Watched { io: CoIo::new(fd.clone())?, fd })
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Waits for an event or the waker, in the one coroutine that it belongs to. Returns the events since the last
    /// wait, as epoll numbers them.
    pub fn wait(&self) -> usize {
        self.io.wait_io()
    }

    /// Wakes the waiting coroutine, or its next wait. To be used on its own worker.
    pub fn waker(&self) -> WaitIoWaker {
        self.io.waker()
    }
}
