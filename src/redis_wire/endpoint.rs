//! Where Redis is and how to log in.
//!
//! Owns the forms of `REDIS_ADDR`, the resolved addresses and the commands of a login. Invariant: the name that
//! messages show has no credentials. Leaves connecting on a worker to `pipeline`. TLS is not supported.

use arc_swap::ArcSwap;
use redis::{ConnectionInfo, IntoConnectionInfo, RedisError};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// A Redis server's address and credentials, from `REDIS_ADDR`.
pub struct RedisEndpoint {
    /// `host:port`, for messages: no credentials.
    pub name: String,
    info: ConnectionInfo,
    host: String,
    port: u16,
    resolved: ArcSwap<Vec<SocketAddr>>,
}

/// Why a text is not the address of a Redis server that this program can use.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The scheme asks for TLS.
    #[error("TLS to Redis (rediss://) is not supported yet")]
    Tls,
    /// Another scheme than `redis`.
    #[error("the scheme {0:?} is unknown")]
    Scheme(String),
    /// Neither a URL nor `host:port`.
    #[error("there is no host:port in it")]
    NoPort,
    /// A URL that the driver refuses.
    #[error("not a Redis address: {0}")]
    Malformed(RedisError),
    /// A URL without a host or a port.
    #[error("the host or the port is missing")]
    Incomplete,
}

/// Why a Redis server does not serve a plain thread. The message begins with the server's `host:port`.
#[derive(Debug, thiserror::Error)]
#[error("{name}: {why}")]
pub struct Unreachable {
    name: String,
    why: Why,
}

/// The reason in an [`Unreachable`].
#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("{0}")]
    Lookup(io::Error),
    #[error("no address")]
    NoAddress,
    #[error("{0}")]
    Redis(RedisError),
}

impl RedisEndpoint {
    /// Reads `host:port` or `redis://[user:password@]host:port[/db]`. Resolves nothing yet.
    pub fn parse(text: &str) -> Result<RedisEndpoint, AddressError> {
        let url = match text.split_once("://") {
            Some(("redis", _)) => text.to_owned(),
            Some(("rediss", _)) => return Err(AddressError::Tls),
            Some((scheme, _)) => return Err(AddressError::Scheme(scheme.to_owned())),
            None if text
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) =>
            {
                format!("redis://{text}")
            }
            None => return Err(AddressError::NoPort),
        };
        let info = url.into_connection_info().map_err(AddressError::Malformed)?;
        let (host, port) = match info.addr() {
            redis::ConnectionAddr::Tcp(host, port) if *port != 0 && !host.is_empty() => (host.clone(), *port),
            _ => return Err(AddressError::Incomplete),
        };
        // The driver would say its name by CLIENT SETINFO: a command that a user of Redis need not have for this service.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_redis_settings(settings);
        Ok(RedisEndpoint { name: format!("{host}:{port}"), info, host, port, resolved: ArcSwap::default() })
    }

    /// Looks the host's addresses up. Blocks: for plain threads.
    pub fn resolve(&self) -> Result<(), Unreachable> {
        let looked_up = (self.host.as_str(), self.port).to_socket_addrs();
        let found: Vec<SocketAddr> = looked_up.map_err(|e| self.fails(Why::Lookup(e)))?.collect();
        if found.is_empty() {
            return Err(self.fails(Why::NoAddress));
        }
        self.resolved.store(Arc::new(found));
        Ok(())
    }

    /// Looks the host's addresses up and has Redis answer once. Blocks: for plain threads.
    pub fn reach(&self, timeout: Duration) -> Result<(), Unreachable> {
        self.resolve()?;
        // Not PING: that is refused while Redis reads its file, which can be waited for.
        let asked: Result<redis::Value, _> = redis::cmd("TIME").query(&mut self.connect(timeout)?);
        asked.map(drop).map_err(|e| self.fails(Why::Redis(e)))
    }

    /// The address to try on the `attempt`th connection, as looked up last.
    pub fn address(&self, attempt: usize) -> Option<SocketAddr> {
        let found = self.resolved.load();
        found.get(attempt % found.len().max(1)).copied()
    }

    /// Appends the commands that log in, and says how many.
    pub fn log_in(&self, out: &mut Vec<u8>) -> usize {
        let settings = self.info.redis_settings();
        let mut count = 0;
        if let Some(password) = settings.password() {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = settings.username() {
                auth.arg(user);
            }
            auth.arg(password).write_packed_command(out);
            count += 1;
        }
        if settings.db() != 0 {
            redis::cmd("SELECT").arg(settings.db()).write_packed_command(out);
            count += 1;
        }
        count
    }

    /// A blocking connection for plain threads; each call on it takes `timeout` at most.
    pub fn connect(&self, timeout: Duration) -> Result<redis::Connection, Unreachable> {
        let connect = || {
            let client = redis::Client::open(self.info.clone())?;
            let connection = client.get_connection_with_timeout(timeout)?;
            connection.set_read_timeout(Some(timeout))?;
            connection.set_write_timeout(Some(timeout))?;
            Ok::<_, RedisError>(connection)
        };
        connect().map_err(|e| self.fails(Why::Redis(e)))
    }

    fn fails(&self, why: Why) -> Unreachable {
        Unreachable { name: self.name.clone(), why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |text: &str, want: Result<&str, &str>| match (RedisEndpoint::parse(text), want) {
            (Ok(target), Ok(name)) => assert_eq!(target.name, name, "{text}"),
            (Err(why), Err(part)) => assert!(why.to_string().contains(part), "{text}: {why}"),
            (got, _) => panic!("{text}: {:?}", got.map(|t| t.name)),
        };
        check("redis:6379", Ok("redis:6379"));
        check("127.0.0.1:1", Ok("127.0.0.1:1"));
        check("[::1]:6379", Ok("::1:6379"));
        check("redis://u:p@h:7/2", Ok("h:7"));
        check("redis://:p@h:7", Ok("h:7"));
        check("rediss://h:7", Err("TLS"));
        check("http://h:7", Err("scheme"));
        check("localhost", Err("host:port"));
        check(":6379", Err("host:port"));
        check("h:70000", Err("host:port"));
        check("redis://h:7/x", Err("Redis address"));
    }

    #[test]
    fn logging_in() {
        let mut out = Vec::new();
        assert_eq!(RedisEndpoint::parse("redis://u:p@h:7/2").unwrap().log_in(&mut out), 2);
        assert_eq!(out, b"*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$1\r\np\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n2\r\n");
        assert_eq!(RedisEndpoint::parse("h:7").unwrap().log_in(&mut out), 0);
    }
}
