//! Where Redis is and how to log in.
//!
//! Owns the forms of `REDIS_ADDR`, the resolved addresses and the commands of a login. Invariant: the name that
//! messages show has no credentials. Leaves connecting on a worker to `pipeline`. TLS is not supported.

use arc_swap::ArcSwap;
use redis::{ConnectionInfo, IntoConnectionInfo};
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

impl RedisEndpoint {
    /// Reads `host:port` or `redis://[user:password@]host:port[/db]`. Resolves nothing yet.
    pub fn parse(text: &str) -> Result<RedisEndpoint, String> {
        let url = match text.split_once("://") {
            Some(("redis", _)) => text.to_owned(),
            Some(("rediss", _)) => return Err("TLS to Redis (rediss://) is not supported yet".into()),
            Some((scheme, _)) => return Err(format!("the scheme {scheme:?} is unknown")),
            None if text
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) =>
            {
                format!("redis://{text}")
            }
            None => return Err("there is no host:port in it".into()),
        };
        let info = url.into_connection_info().map_err(|e| format!("not a Redis address: {e}"))?;
        let (host, port) = match info.addr() {
            redis::ConnectionAddr::Tcp(host, port) if *port != 0 && !host.is_empty() => (host.clone(), *port),
            _ => return Err("the host or the port is missing".into()),
        };
        // The driver would say its name by CLIENT SETINFO: a command that a user of Redis need not have for this service.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_redis_settings(settings);
        Ok(RedisEndpoint { name: format!("{host}:{port}"), info, host, port, resolved: ArcSwap::default() })
    }

    /// Looks the host's addresses up. Blocks: for plain threads.
    pub fn resolve(&self) -> Result<(), String> {
        let found: Vec<SocketAddr> =
            (self.host.as_str(), self.port).to_socket_addrs().map_err(|e| format!("{}: {e}", self.name))?.collect();
        if found.is_empty() {
            return Err(format!("{}: no address", self.name));
        }
        self.resolved.store(Arc::new(found));
        Ok(())
    }

    /// Looks the host's addresses up and has Redis answer once. Blocks: for plain threads.
    pub fn reach(&self, timeout: Duration) -> Result<(), String> {
        self.resolve()?;
        // Not PING: that is refused while Redis reads its file, which can be waited for.
        let asked: Result<redis::Value, _> = redis::cmd("TIME").query(&mut self.connect(timeout)?);
        asked.map(drop).map_err(|e| format!("{}: {e}", self.name))
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
    pub fn connect(&self, timeout: Duration) -> Result<redis::Connection, String> {
        let connect = || {
            let client = redis::Client::open(self.info.clone())?;
            let connection = client.get_connection_with_timeout(timeout)?;
            connection.set_read_timeout(Some(timeout))?;
            connection.set_write_timeout(Some(timeout))?;
            Ok::<_, redis::RedisError>(connection)
        };
        connect().map_err(|e| format!("{}: {e}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |text: &str, want: Result<&str, &str>| match (RedisEndpoint::parse(text), want) {
            (Ok(target), Ok(name)) => assert_eq!(target.name, name, "{text}"),
            (Err(why), Err(part)) => assert!(why.contains(part), "{text}: {why}"),
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
