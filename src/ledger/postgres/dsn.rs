//! Reads a DSN in either of libpq's forms into key and value pairs.
//!
//! Owns the grammar: quoting, percent-encoding, hosts with ports. Invariant: no error text carries a value, since one of
//! the values is the password. Leaves the meaning of the keys to its caller.

/// Why a DSN is not one of libpq's two forms.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A URL of another scheme.
    #[error("the scheme must be postgres:// or postgresql://")]
    Scheme,
    /// Text where `key=value` should stand.
    #[error("expected pairs of the form key=value (quote a value that has spaces)")]
    Pairs,
    /// A quoted value that does not end; names its key.
    #[error("the value of {0} has no closing quote")]
    OpenQuote(String),
    /// A parameter of a URL without `=`.
    #[error("a parameter behind the ? has no value")]
    NoValue,
    /// An IPv6 address that does not end.
    #[error("a host's [ is not closed")]
    OpenBracket,
    /// Also what remains of a password with a `/` or a `?` in it.
    #[error("a port must be a number (percent-encode @ : / ? in user and password)")]
    Port,
    /// A malformed percent escape; names the part of the URL.
    #[error("{0} has a % without two hex digits behind it")]
    Escape(String),
    /// Bytes that are not UTF-8; names the part of the URL.
    #[error("{0} is not UTF-8")]
    NotUtf8(String),
    /// A zero byte, which libpq could not take; names the part of the URL.
    #[error("{0} has a zero byte")]
    ZeroByte(String),
}

/// The pairs of `dsn` in their order; a later pair of the same key wins. Empty values mean "not given", as in libpq.
pub(super) fn pairs(dsn: &str) -> Result<Vec<(String, String)>, GrammarError> {
    let rest = dsn.strip_prefix("postgres://").or_else(|| dsn.strip_prefix("postgresql://"));
    let all = match rest {
        Some(rest) => url(rest)?,
        None if dsn.contains("://") => return Err(GrammarError::Scheme),
        None => key_values(dsn)?,
    };
    Ok(all.into_iter().filter(|(_, value)| !value.is_empty()).collect())
}

/// `key = value key='quoted \' value'`.
fn key_values(text: &str) -> Result<Vec<(String, String)>, GrammarError> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (key, tail) = rest.split_at_checked(end).unwrap_or_default();
        // What stands where a key should be may be the torn-off end of a password: only plain words are repeated.
        let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let Some(tail) = tail.trim_start().strip_prefix('=').filter(|_| plain) else {
            return Err(GrammarError::Pairs);
        };
        let (value, tail) = value(tail.trim_start()).ok_or_else(|| GrammarError::OpenQuote(key.to_owned()))?;
        found.push((key.to_owned(), value));
        rest = tail.trim_start();
    }
    Ok(found)
}

/// The value at the start of `text` and what follows it; `None` if its quote is not closed.
fn value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut chars = text.char_indices().skip(usize::from(quoted));
    let mut out = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, next)| next)),
            '\'' if quoted => return Some((out, text.get(at + 1..)?)),
            c if !quoted && c.is_ascii_whitespace() => return Some((out, text.get(at..)?)),
            c => out.push(c),
        }
    }
    (!quoted).then_some((out, ""))
}

/// `[user[:password]@][host[:port],...][/dbname][?key=value&...]`, all percent-encoded.
fn url(text: &str) -> Result<Vec<(String, String)>, GrammarError> {
    let mut found = Vec::new();
    let (head, query) = text.split_once('?').unwrap_or((text, ""));
    let (authority, dbname) = head.split_once('/').unwrap_or((head, ""));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (names, ports) = hosts_and_ports(hosts)?;
    for (key, value) in [("user", user), ("password", password), ("host", &names), ("port", &ports), ("dbname", dbname)]
    {
        found.push((key.to_owned(), decode(key, value)?));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(GrammarError::NoValue)?;
        let key = decode("a parameter's name", key)?;
        match (key.as_str(), value) {
            // The form that JDBC's users write; libpq takes it too.
            ("ssl", "true") => found.push(("sslmode".into(), "require".into())),
            _ => found.push((key.clone(), decode(&key, value)?)),
        }
    }
    Ok(found)
}

/// The comma-separated host names and ports of `a:1,[::1]:2,c`; no ports at all if none is given.
fn hosts_and_ports(hosts: &str) -> Result<(String, String), GrammarError> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (name, tail) = rest.split_once(']').ok_or(GrammarError::OpenBracket)?;
                (name, tail.strip_prefix(':').unwrap_or(tail))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(GrammarError::Port);
        }
        names.push(name);
        ports.push(if port.is_empty() { "5432" } else { port });
    }
    let given = hosts.split(',').any(|host| !host.is_empty()) && ports.iter().any(|port| *port != "5432");
    Ok((names.join(","), if given { ports.join(",") } else { String::new() }))
}

/// Percent-decodes `text`; `what` names it in the error.
fn decode(what: &str, text: &str) -> Result<String, GrammarError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(GrammarError::Escape(what.to_owned()));
        };
        out.push((high << 4 | low) as u8);
    }
    let text = String::from_utf8(out).map_err(|_| GrammarError::NotUtf8(what.to_owned()))?;
    if text.contains('\0') {
        return Err(GrammarError::ZeroByte(what.to_owned()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let check = |dsn: &str, want: &str| {
            let text = match pairs(dsn) {
                Ok(found) => found.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("|"),
                Err(why) => format!("! {why}"),
            };
            assert_eq!(text, want, "{dsn}");
        };
        check("", "");
        check("host=a user = b  port= 5", "host=a|user=b|port=5");
        check(r"password='it\'s a \\ b' host=h", r"password=it's a \ b|host=h");
        check(r"password=a\ b'c host=''", "password=a b'c");
        check("sslmode=verify-full sslrootcert='/a b/c'", "sslmode=verify-full|sslrootcert=/a b/c");
        check("password='secret", "! the value of password has no closing quote");
        check("password=secret word", "! expected pairs of the form key=value (quote a value that has spaces)");
        check("password=sec Ret=x", "! expected pairs of the form key=value (quote a value that has spaces)");
        check("postgres://", "");
        check(
            "postgres://u:p%40%2f@h:7/d?sslmode=require",
            "user=u|password=p@/|host=h|port=7|dbname=d|sslmode=require",
        );
        check("postgresql://h", "host=h");
        check("postgres:///d?host=/run/x&user=u", "dbname=d|host=/run/x|user=u");
        check("postgres://%2Frun%2Fx/d", "host=/run/x|dbname=d");
        check("postgres://a:1,[::1],c/d", "host=a,::1,c|port=1,5432,5432|dbname=d");
        check("postgres://u@h?ssl=true", "user=u|host=h|sslmode=require");
        check("postgres://u:a:b@h", "user=u|password=a:b|host=h");
        check("postgres://h?sslrootcert=%2Fa%20b", "host=h|sslrootcert=/a b");
        check("postgres://u:p%zz@h", "! password has a % without two hex digits behind it");
        check("postgres://u:p%00@h", "! password has a zero byte");
        check("postgres://u:pa/ss@h", "! a port must be a number (percent-encode @ : / ? in user and password)");
        check("postgres://h?sslmode", "! a parameter behind the ? has no value");
        check("mysql://h", "! the scheme must be postgres:// or postgresql://");
    }
}
