//! The listening socket.
//!
//! Owns its two steps, binding and listening, and the filter at its end. Invariant: the kernel completes no handshake
//! before [`Bound::listen`]. Leaves accepting to the acceptor.

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use socket2::{SockFilter, SockRef};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// How many connections the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// A socket that has its address and does not listen yet.
#[derive(Debug)]
pub struct Bound(OwnedFd);

/// A socket that listens.
#[derive(Debug)]
pub struct Listener(pub(super) OwnedFd);

/// Binds a socket to `address`, so that a port that is taken is known before anything runs.
///
/// # Errors
/// Those of the operating system.
pub fn bind(address: SocketAddr) -> io::Result<Bound> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket =
        rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(Bound(socket))
}

impl Bound {
    /// Begins to listen: from now on the kernel completes handshakes.
    ///
    /// # Errors
    /// Another socket listens at the same address: two may be bound to it.
    pub fn listen(self) -> io::Result<Listener> {
        rustix::net::listen(&self.0, BACKLOG)?;
        Ok(Listener(self.0))
    }
}

/// Makes the kernel drop each packet that begins a new connection. Handshakes that have begun are completed, so that a while
/// later all completed ones are accepted: closing the socket would reset the others. A client whose packet is dropped sends
/// it again a second later, and is refused then.
///
/// A kernel that does not take the filter resets the few connections whose handshakes it completes between the last accept
/// and the closing.
pub(super) fn refuse_handshakes(listener: &OwnedFd) {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    /// The offset of the flags in the TCP header, where the filter's offsets begin.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_OR_ACK: u32 = 0x12;
    let dropped = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN_OR_ACK),
        SockFilter::new(IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(e) = SockRef::from(listener).attach_filter(&dropped) {
        tracing::debug!("the filter on new handshakes cannot be set, so the last ones may be reset: {e}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_that_are_bound_to_a_port_listens() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = SocketAddr::try_from(rustix::net::getsockname(&first.0).unwrap()).unwrap();
        let second = bind(address).unwrap();
        let _listens = first.listen().unwrap();
        assert_eq!(second.listen().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
