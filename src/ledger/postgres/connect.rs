//! From a DSN to settings that a session can be opened with.
//!
//! Owns the keys that are accepted, and their defaults. Invariant: every key of the DSN is either honoured or refused
//! by name, and no text that leaves here has a password. Leaves opening sessions to `session`.

use super::dsn::{self, GrammarError};
use super::tls::{self, TlsError, Trust};
use rustls::RootCertStore;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a TCP connection to one address may take, unless the DSN says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long sent bytes may stay unacknowledged, unless the DSN says otherwise.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(5);
/// After how much silence the kernel asks whether the server's host is alive, unless the DSN says otherwise.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Keys that are handed on as they are.
const PLAIN_KEYS: [&str; 15] = [
    "application_name",
    "channel_binding",
    "connect_timeout",
    "dbname",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "password",
    "port",
    "sslnegotiation",
    "target_session_attrs",
];

/// Why a DSN is refused, in one line for the operator. No text repeats a value, which could be the password.
#[derive(Debug, thiserror::Error)]
pub enum DsnError {
    /// The DSN is not one of libpq's two forms.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// A key that cannot be honoured.
    #[error("{0} is not supported here")]
    UnknownKey(String),
    /// A key whose value has another form than the one named second.
    #[error("{0} must be {1}")]
    Value(&'static str, &'static str),
    /// The one mode of libpq that the driver does not have.
    #[error("sslmode allow is not supported: use disable, prefer or require")]
    Allow,
    /// Neither `host` nor `hostaddr`.
    #[error("host is missing")]
    NoHost,
    /// TLS from the first byte on, with a mode that may do without TLS.
    #[error("sslnegotiation=direct needs sslmode require or stronger")]
    DirectWithoutTls,
    /// The system's roots, with a mode that does not check the name.
    #[error("sslrootcert=system needs sslmode verify-full, not {0}")]
    SystemRoots(String),
    /// A mode that checks the certificate, without roots to check it with.
    #[error("sslmode {0} needs sslrootcert (a file, or system), or ~/.postgresql/root.crt")]
    NoRoots(String),
    /// The root certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The driver does not take a value.
    #[error("{}", super::failure::one_line(.0))]
    Driver(#[source] tokio_postgres::Error),
}

/// All that opening a session needs. `Debug` and [`ConnectSettings::describe`] leave the password out.
#[derive(Clone)]
pub struct ConnectSettings {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    mode: String,
}

impl ConnectSettings {
    /// Where this leads, for a log: hosts, database, user and sslmode.
    pub fn describe(&self) -> String {
        let named = self.config.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let ports: Vec<String> = self.config.get_ports().iter().map(u16::to_string).collect();
        format!(
            "host={} port={} dbname={} user={} sslmode={}",
            named.collect::<Vec<_>>().join(","),
            if ports.is_empty() { "5432".to_owned() } else { ports.join(",") },
            self.config.get_dbname().unwrap_or("(the user's name)"),
            self.config.get_user().unwrap_or("(the system user)"),
            self.mode,
        )
    }

    /// How long opening a session may take in all, the addresses of all hosts together.
    pub(super) fn connect_limit(&self) -> Duration {
        let each = self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        each.saturating_mul(self.config.get_hosts().len().max(1) as u32)
    }
}

impl fmt::Debug for ConnectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectSettings({})", self.describe())
    }
}

/// Reads a DSN in either of libpq's forms (`key=value …` or `postgres://…`).
///
/// `sslmode` means what it means to libpq: `disable`, `prefer` (the default), `require`, `verify-ca`, `verify-full`.
/// With root certificates given, `prefer` and `require` check the chain too.
///
/// # Errors
/// The first thing that is wrong with the DSN, its files and their combination.
pub fn parse_dsn(dsn: &str) -> Result<ConnectSettings, DsnError> {
    parse_dsn_at(dsn, std::env::var_os("HOME").map(PathBuf::from).as_deref())
}

/// [`parse_dsn`] with the home folder that libpq's default `~/.postgresql/root.crt` is looked for in.
fn parse_dsn_at(dsn: &str, home: Option<&Path>) -> Result<ConnectSettings, DsnError> {
    let mut plain = String::new();
    let mut mode = None;
    let mut root = None;
    let mut user_timeout = TCP_USER_TIMEOUT;
    for (key, value) in dsn::pairs(dsn)? {
        match key.as_str() {
            "sslmode" => mode = Some(value),
            "sslrootcert" => root = Some(value),
            "tcp_user_timeout" => {
                // libpq counts milliseconds here, the driver seconds.
                let ms = value.parse().map_err(|_| DsnError::Value("tcp_user_timeout", "a number"))?;
                user_timeout = Duration::from_millis(ms);
            }
            "client_encoding" if matches!(value.to_ascii_lowercase().as_str(), "utf8" | "utf-8" | "auto") => {}
            "client_encoding" => return Err(DsnError::Value("client_encoding", "UTF8")),
            "keepalives_count" => push_pair(&mut plain, "keepalives_retries", &value),
            "user" => push_pair(&mut plain, "user", &value),
            known if PLAIN_KEYS.contains(&known) => push_pair(&mut plain, known, &value),
            unknown => return Err(DsnError::UnknownKey(unknown.to_owned())),
        }
    }
    let mut config: Config = plain.parse().map_err(DsnError::Driver)?;
    defaults(&mut config, user_timeout)?;
    let (mode, wire, trust) = trust(mode.as_deref(), root.as_deref(), home)?;
    if config.get_ssl_negotiation() == SslNegotiation::Direct && wire != SslMode::Require {
        return Err(DsnError::DirectWithoutTls);
    }
    // Like libpq: a Unix socket has no TLS, whatever sslmode says.
    let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    config.ssl_mode(if local { SslMode::Disable } else { wire });
    Ok(ConnectSettings { config, tls: MakeRustlsConnect::new(tls::client_config(trust)?), mode })
}

/// Sets what the DSN and the driver leave open: the host's name, time limits, keepalives and the session's name.
fn defaults(config: &mut Config, user_timeout: Duration) -> Result<(), DsnError> {
    if config.get_hosts().is_empty() {
        // The name to check is then the address, as in libpq.
        let addresses: Vec<String> = config.get_hostaddrs().iter().map(|a| a.to_string()).collect();
        for address in &addresses {
            config.host(address);
        }
    }
    if config.get_hosts().is_empty() {
        return Err(DsnError::NoHost);
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_keepalives_idle() == Duration::from_secs(2 * 60 * 60) {
        config.keepalives_idle(KEEPALIVE).keepalives_interval(Duration::from_secs(2)).keepalives_retries(3);
    }
    if config.get_application_name().is_none() {
        config.application_name("flashsale");
    }
    config.tcp_user_timeout(user_timeout);
    Ok(())
}

/// Appends `key='value'` in the form that the driver reads back unchanged.
fn push_pair(out: &mut String, key: &str, value: &str) {
    let escaped = value.replace('\\', r"\\").replace('\'', r"\'");
    out.push_str(&format!("{key}='{escaped}' "));
}

/// What `sslmode` and `sslrootcert` ask of the wire and of the certificate, and the mode's name.
fn trust(mode: Option<&str>, root: Option<&str>, home: Option<&Path>) -> Result<(String, SslMode, Trust), DsnError> {
    let system = root == Some("system");
    let mode = mode.unwrap_or(if system { "verify-full" } else { "prefer" });
    let (wire, full) = match mode {
        "disable" => return Ok((mode.to_owned(), SslMode::Disable, Trust::Anyone)),
        "prefer" => (SslMode::Prefer, false),
        "require" | "verify-ca" => (SslMode::Require, false),
        "verify-full" => (SslMode::Require, true),
        "allow" => return Err(DsnError::Allow),
        _ => return Err(DsnError::Value("sslmode", "disable, prefer, require, verify-ca or verify-full")),
    };
    if system && !full {
        return Err(DsnError::SystemRoots(mode.to_owned()));
    }
    let roots: Option<RootCertStore> = match (root, home.map(|home| home.join(".postgresql/root.crt"))) {
        (Some("system"), _) => Some(tls::system_roots()?),
        (Some(path), _) => Some(tls::roots_of(Path::new(path))?),
        (None, Some(path)) if mode != "prefer" && path.exists() => Some(tls::roots_of(&path)?),
        (None, _) if mode.starts_with("verify") => {
            return Err(DsnError::NoRoots(mode.to_owned()));
        }
        (None, _) => None,
    };
    Ok((
        mode.to_owned(),
        wire,
        match roots {
            None => Trust::Anyone,
            Some(roots) if full => Trust::Full(roots),
            Some(roots) => Trust::Chain(roots),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_and_what_is_refused() {
        let empty = tempfile::tempdir().unwrap();
        let check = |dsn: &str, want: &str| {
            let text = match parse_dsn_at(dsn, Some(empty.path())) {
                Ok(settings) => settings.describe(),
                Err(why) => format!("! {why}"),
            };
            assert_eq!(text, want, "{dsn}");
        };
        check("host=h user=u dbname=d password=x", "host=h port=5432 dbname=d user=u sslmode=prefer");
        check("postgres://u:p@a:1,b:2/d?sslmode=disable", "host=a,b port=1,2 dbname=d user=u sslmode=disable");
        check("hostaddr=127.0.0.1 user=u dbname=d", "host=127.0.0.1 port=5432 dbname=d user=u sslmode=prefer");
        check("host=/run user=u dbname=d sslmode=require", "host=/run port=5432 dbname=d user=u sslmode=require");
        check("host=h sslmode=allow", "! sslmode allow is not supported: use disable, prefer or require");
        check("host=h sslmode=on", "! sslmode must be disable, prefer, require, verify-ca or verify-full");
        check(
            "host=h sslmode=verify-ca",
            "! sslmode verify-ca needs sslrootcert (a file, or system), or ~/.postgresql/root.crt",
        );
        check(
            "host=h sslmode=require sslrootcert=system",
            "! sslrootcert=system needs sslmode verify-full, not require",
        );
        check(
            "host=h sslmode=require sslrootcert=/dev/null",
            "! sslrootcert /dev/null: has no certificate in PEM form",
        );
        check("host=h sslcert=/x", "! sslcert is not supported here");
        check("postgres://h?passfile=x&service=y", "! passfile is not supported here");
        check("user=u", "! host is missing");
        check("host=h client_encoding=LATIN1", "! client_encoding must be UTF8");
        check("host=h port=x password=hunter2", "! invalid connection string: invalid value for option `port`");
        check("host=h sslnegotiation=direct", "! sslnegotiation=direct needs sslmode require or stronger");
    }

    #[test]
    fn the_password_is_kept_and_never_shown() {
        for dsn in [r"host=h user=u password='a\'b \\c'", r"postgres://u:a'b%20%5Cc@h"] {
            let settings = parse_dsn_at(dsn, None).unwrap();
            assert_eq!(settings.config.get_password(), Some(br"a'b \c".as_slice()), "{dsn}");
            assert!(!format!("{settings:?}").contains("a'b"), "{settings:?}");
        }
    }

    #[test]
    fn timeouts_are_libpqs() {
        let timeout = |dsn| parse_dsn_at(dsn, None).unwrap().config.get_tcp_user_timeout().copied();
        assert_eq!(timeout("host=h tcp_user_timeout=1500"), Some(Duration::from_millis(1500)));
        assert_eq!(timeout("host=h"), Some(TCP_USER_TIMEOUT));
        assert_eq!(parse_dsn_at("host=a,b connect_timeout=4", None).unwrap().connect_limit(), Duration::from_secs(8));
    }
}
