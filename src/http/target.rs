//! A request's target: which form it has, and its path and query.
//!
//! Owns the four forms of RFC 9112, 3.2. Invariant: a target that has none of them is refused, never repaired. Leaves to
//! the services which paths exist.

use super::reject::Reject;

/// The path and query of `target`. Of a URI of HTTP, as sent to a proxy, they are what follows the host, which is ignored.
///
/// # Errors
/// [`Reject::BadRequest`] for a target that has none of the forms, or a form that `method` does not allow.
pub(super) fn split_target<'t>(method: &str, target: &'t str) -> Result<(&'t str, &'t str), Reject> {
    if target.bytes().fold(false, |found, b| found | (b == b'#')) {
        return Err(Reject::BadRequest("the target has a fragment"));
    }
    let local = if target.starts_with('/') && method != "CONNECT" { target } else { reduce(method, target)? };
    let (path, query) = local.split_once('?').unwrap_or((local, ""));
    // "http://host" and "http://host?q" ask for the root.
    Ok((if path.is_empty() { "/" } else { path }, query))
}

/// The path and query of a target that is not a plain path.
fn reduce<'t>(method: &str, target: &'t str) -> Result<&'t str, Reject> {
    if method == "CONNECT" {
        return if is_authority(target) { Ok(target) } else { Err(Reject::BadRequest("CONNECT needs host:port")) };
    }
    if target == "*" {
        return if method == "OPTIONS" { Ok(target) } else { Err(Reject::BadRequest("only OPTIONS has the target *")) };
    }
    let (scheme, rest) = target.split_once(':').filter(|(scheme, _)| is_scheme(scheme)).ok_or(NO_FORM)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Ok(target);
    }
    let rest = rest.strip_prefix("//").ok_or(NO_FORM)?;
    let (host, local) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if host.is_empty() || !is_host(host.as_bytes()) {
        return Err(Reject::BadRequest("the target's host is malformed"));
    }
    Ok(local)
}

const NO_FORM: Reject = Reject::BadRequest("the target is neither a path that begins with / nor a URI");

/// Whether `word` can be a URI's scheme (RFC 3986, 3.1).
fn is_scheme(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// Whether `target` is a host and a port, neither of them empty.
fn is_authority(target: &str) -> bool {
    let parts = target.rsplit_once(':').filter(|(host, port)| !host.is_empty() && !port.is_empty());
    parts.is_some_and(|(host, port)| is_host(host.as_bytes()) && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether `value` can be a host with a port or without: no spaces, lists, paths or user names. It may be empty.
pub(super) fn is_host(value: &[u8]) -> bool {
    const ALLOWED: [bool; 256] = {
        let mut table = [false; 256];
        let marks = b"-._~%!$&'()*+,;=:[]";
        let mut at = 0;
        while at < 256 {
            #[allow(clippy::indexing_slicing)] // Evaluated by the compiler.
            {
                table[at] = (at as u8).is_ascii_alphanumeric();
            }
            at += 1;
        }
        let mut at = 0;
        while at < marks.len() {
            #[allow(clippy::indexing_slicing)] // Evaluated by the compiler.
            {
                table[marks[at] as usize] = true;
            }
            at += 1;
        }
        table
    };
    value.iter().all(|b| ALLOWED.get(usize::from(*b)).copied().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use crate::http::request::{Parse, parse};

    #[test]
    fn forms_of_targets() {
        let check = |line: &str, want: u16| {
            let raw = format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n");
            let got = if let Parse::Reject(reject) = parse(raw.as_bytes()) { reject.status() } else { 200 };
            assert_eq!(got, want, "{line:?}");
        };
        // RFC 9112, 3.2: a path, or a whole URI; for OPTIONS also `*`, and for CONNECT alone a host with its port.
        for bad in ["checkout", "checkout?user_id=u", r"\a", "?q", "a/b:c", "1a:b", ":", "=", "%2Fcheckout", "-a:b"] {
            check(&format!("POST {bad}"), 400);
            check(&format!("OPTIONS {bad}"), 400);
        }
        for method in ["GET", "POST", "options"] {
            check(&format!("{method} *"), 400);
        }
        check("OPTIONS *", 200);
        check("OPTIONS /", 200);
        check("OPTIONS **", 400);
        check("OPTIONS *?q", 400);
        check("CONNECT host:443", 200);
        check("CONNECT 127.0.0.1:443", 200);
        check("CONNECT [::1]:443", 200);
        check("CONNECT host", 400);
        check("CONNECT /", 400);
        check("CONNECT me@host:443", 400);
        check("GET 127.0.0.1:443", 400);
    }
}
