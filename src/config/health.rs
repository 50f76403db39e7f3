//! The arguments of `flashsale health`, which asks a running instance for its health.
//!
//! Owns their names and checks. Invariant: reads `ADMIN_ADDR` alone, so that a wrong value of another setting, which stops
//! the service, does not stop this command. Leaves the asking to `admin::client`.

use super::form::text;
use clap::Parser;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The first word of the command line.
const WORD: &str = "health";

/// A health check: the instance to ask, and the question.
#[derive(Parser, Clone, Copy, Debug, PartialEq, Eq)]
#[command(
    name = "flashsale health",
    about = "Asks the instance on ADMIN_ADDR for its health. Ends with 0 if it is healthy, with 1 if it is not or does not answer."
)]
pub struct HealthCheck {
    /// The admin address of the instance: an IP address and a port other than 0, such as 127.0.0.1:8081
    #[arg(long, env = "ADMIN_ADDR", value_name = "ADMIN_ADDR", default_value = "127.0.0.1:8081",
        value_parser = text("an IP address and a port other than 0, such as 127.0.0.1:8081", known_address))]
    admin_addr: SocketAddr,
    /// Ask only whether the process answers, not whether it can sell
    #[arg(long)]
    pub live: bool,
}

/// An address with a port that can be asked: an instance on port 0 has one that only its log tells.
fn known_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
}

impl HealthCheck {
    /// The health check that the command line asks for; `None` if it asks for something else. `--help` prints and ends the
    /// process, and so does an argument that is refused, with status 2.
    pub fn asked_for() -> Option<HealthCheck> {
        let mut words = std::env::args_os().skip(1).peekable();
        words.next_if(|word| word == WORD).map(|_| {
            let name = std::ffi::OsString::from("flashsale");
            HealthCheck::try_parse_from(std::iter::once(name).chain(words)).unwrap_or_else(|e| super::refuse(e))
        })
    }

    /// Where the instance listens, as seen from this machine: an instance that listens on all addresses is reached by
    /// the loopback address.
    pub fn address(&self) -> SocketAddr {
        let ip = match self.admin_addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.admin_addr.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_seen_from_this_machine() {
        for (given, seen) in [
            ("127.0.0.3:8081", "127.0.0.3:8081"),
            ("0.0.0.0:9", "127.0.0.1:9"),
            ("[::]:9", "[::1]:9"),
            ("[fd00::1]:9", "[fd00::1]:9"),
        ] {
            let check = HealthCheck { admin_addr: known_address(given).unwrap(), live: false };
            assert_eq!(check.address().to_string(), seen, "{given:?}");
        }
        for bad in ["", "8081", "localhost:8081", "127.0.0.1:0"] {
            assert!(known_address(bad).is_none(), "{bad:?}");
        }
    }
}
