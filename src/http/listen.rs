//! The listening socket.
//!
//! Owns its two steps, binding and listening, and its end. Leaves accepting to the acceptor.

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use socket2::{SockFilter, SockRef};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// A socket that has its address, and lets no connection in.
#[derive(Debug)]
pub struct Bound(OwnedFd);

/// A socket that lets connections in.
#[derive(Debug)]
pub struct Listener(pub(super) OwnedFd);

/// Binds a socket to `address`: a port that is taken is known before anything runs.
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
    /// Has the kernel let connections in.
    ///
    /// # Errors
    /// Another socket listens at the same address: two may be bound to it.
    pub fn listen(self) -> io::Result<Listener> {
        rustix::net::listen(&self.0, BACKLOG)?;
        Ok(Listener(self.0))
    }
}

/// Has the kernel drop each packet that begins a new connection. Handshakes that have begun are completed, so that a while
/// later no connection is left that was let in and not accepted; closing the socket would reset it. A client whose
/// packet is dropped sends it again a second later, and is refused then.
///
/// A kernel that does not take the filter resets the few connections that it lets in between the last look and the closing.
pub(super) fn refuse_handshakes(listener: &OwnedFd) {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    /// Where in the TCP header, at which the filter begins to count, the flags stand.
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
        tracing::debug!("cannot refuse new handshakes: {e}");
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
