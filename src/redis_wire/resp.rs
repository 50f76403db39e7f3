//! RESP2 replies, parsed in place.
//!
//! Owns the parsing of replies on the request path. Invariants: no allocation and no copy; however the input is split, the
//! result is the same; a reply that is accepted reads as the crate `redis` reads it. The types of RESP3 are refused, since
//! no connection here asks for them. Source: the Redis serialization protocol specification. Leaves reading and sending to
//! `pipeline`.

use std::fmt;

/// The longest reply that is taken: a batch's reply is below 100 kB, and `INFO` below 16 kB.
pub const MAX_REPLY_BYTES: usize = 4 << 20;
/// How deep arrays may nest.
const MAX_DEPTH: usize = 8;
/// The longest line of an integer or a length: 19 digits, a sign, and leading zeros, which Redis does not send.
const MAX_NUMBER_BYTES: usize = 32;

// A length line always fits what a reply may have.
const _: () = assert!(MAX_NUMBER_BYTES < MAX_REPLY_BYTES);

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'b> {
    /// `+…`
    Simple(&'b [u8]),
    /// `-…`
    Error(ErrorReply<'b>),
    /// `:…`
    Int(i64),
    /// `$…`
    Bulk(&'b [u8]),
    /// `$-1` or `*-1`
    Nil,
    /// `*…`: how many elements, and their bytes.
    Array(usize, &'b [u8]),
}

/// The text of an error. Its first word is Redis' code for the kind of error; the rest is for people and may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorReply<'b>(pub &'b [u8]);

impl<'b> ErrorReply<'b> {
    /// The code, `NOSCRIPT` or `READONLY` for example; `ERR` where Redis has none of its own; empty if it is not UTF-8.
    pub fn code(self) -> &'b str {
        let word = self.0.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        std::str::from_utf8(word).unwrap_or_default()
    }
}

impl fmt::Display for ErrorReply<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.0))
    }
}

/// Why bytes are not a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A whole reply at the start of `buf` and its length; `None` if more bytes are needed.
pub fn parse(buf: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    match parse_nested(buf, 0)? {
        None if buf.len() > MAX_REPLY_BYTES => Err(Malformed),
        found => Ok(found),
    }
}

/// The elements of an array's bytes.
pub fn elements<'b>(count: usize, mut body: &'b [u8]) -> impl Iterator<Item = Reply<'b>> {
    (0..count).map_while(move |_| {
        let (reply, used) = parse(body).ok()??;
        body = body.get(used..)?;
        Some(reply)
    })
}

fn parse_nested(buf: &[u8], depth: usize) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let Some((kind, rest)) = buf.split_first() else { return Ok(None) };
    match kind {
        b'+' => Ok(line(rest)?.map(|(text, used)| (Reply::Simple(text), used + 1))),
        b'-' => Ok(line(rest)?.map(|(text, used)| (Reply::Error(ErrorReply(text)), used + 1))),
        b':' => Ok(number(rest)?.map(|(value, used)| (Reply::Int(value), used + 1))),
        b'$' => bulk(rest),
        b'*' if depth < MAX_DEPTH => array(rest, depth),
        _ => Err(Malformed),
    }
}

fn bulk(rest: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let Some((length, used)) = number(rest)? else { return Ok(None) };
    if length == -1 {
        return Ok(Some((Reply::Nil, used + 1)));
    }
    let length = usize::try_from(length).ok().filter(|l| *l <= MAX_REPLY_BYTES).ok_or(Malformed)?;
    let Some(body) = rest.get(used..used + length) else { return Ok(None) };
    match rest.get(used + length..).unwrap_or_default() {
        [b'\r', b'\n', ..] => Ok(Some((Reply::Bulk(body), 1 + used + length + 2))),
        [] | [b'\r'] => Ok(None),
        _ => Err(Malformed),
    }
}

fn array(rest: &[u8], depth: usize) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let Some((count, start)) = number(rest)? else { return Ok(None) };
    if count == -1 {
        return Ok(Some((Reply::Nil, start + 1)));
    }
    let count = usize::try_from(count).ok().filter(|c| *c <= MAX_REPLY_BYTES).ok_or(Malformed)?;
    let mut at = start;
    for _ in 0..count {
        match parse_nested(rest.get(at..).unwrap_or_default(), depth + 1)? {
            Some((_, used)) => at += used,
            None => return Ok(None),
        }
    }
    Ok(Some((Reply::Array(count, rest.get(start..at).unwrap_or_default()), at + 1)))
}

/// A line up to CRLF, and how many bytes it takes with it. A lone CR or LF inside is not a line's end.
fn line(rest: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let mut from = 0;
    while let Some(cr) = rest.get(from..).and_then(|tail| tail.iter().position(|b| *b == b'\r')) {
        let at = from + cr;
        match rest.get(at + 1) {
            Some(b'\n') => return Ok(rest.get(..at).map(|text| (text, at + 2))),
            Some(_) => from = at + 1,
            None => return Ok(None),
        }
    }
    Ok(None)
}

fn number(rest: &[u8]) -> Result<Option<(i64, usize)>, Malformed> {
    let Some((text, used)) = line(rest.get(..MAX_NUMBER_BYTES.min(rest.len())).unwrap_or_default())? else {
        return if rest.len() >= MAX_NUMBER_BYTES { Err(Malformed) } else { Ok(None) };
    };
    let text = std::str::from_utf8(text).map_err(|_| Malformed)?;
    Ok(Some((text.trim().parse().map_err(|_| Malformed)?, used)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use redis::Value;

    fn to_value(reply: Reply<'_>) -> Result<Value, ()> {
        Ok(match reply {
            Reply::Simple(b"OK") => Value::Okay,
            Reply::Simple(text) => Value::SimpleString(String::from_utf8(text.to_vec()).map_err(drop)?),
            Reply::Error(_) => return Err(()),
            Reply::Int(n) => Value::Int(n),
            Reply::Bulk(bytes) => Value::BulkString(bytes.to_vec()),
            Reply::Nil => Value::Nil,
            Reply::Array(n, body) => Value::Array(elements(n, body).map(to_value).collect::<Result<_, ()>>()?),
        })
    }

    fn encode(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Int(n) => out.extend(format!(":{n}\r\n").bytes()),
            Value::BulkString(b) => {
                out.extend(format!("${}\r\n", b.len()).bytes());
                out.extend(b);
                out.extend(b"\r\n");
            }
            Value::Nil => out.extend(b"$-1\r\n"),
            Value::Okay => out.extend(b"+OK\r\n"),
            Value::SimpleString(s) => out.extend(format!("+{s}\r\n").bytes()),
            Value::Array(list) => {
                out.extend(format!("*{}\r\n", list.len()).bytes());
                list.iter().for_each(|v| encode(v, out));
            }
            other => panic!("{other:?}"),
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::Int),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::BulkString),
            Just(Value::Nil),
            Just(Value::Okay),
            "[ -~]{0,20}".prop_filter("OK has a value of its own", |s| s != "OK").prop_map(Value::SimpleString),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| proptest::collection::vec(inner, 0..5).prop_map(Value::Array))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn agrees_with_the_crate_on_values_and_prefixes(value in value(), tail: Vec<u8>) {
            let mut bytes = Vec::new();
            encode(&value, &mut bytes);
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
            }
            let whole = bytes.len();
            bytes.extend(tail);
            let (reply, used) = parse(&bytes).unwrap().unwrap();
            prop_assert_eq!(used, whole);
            prop_assert_eq!(to_value(reply), Ok(redis::parse_redis_value(&bytes[..whole]).unwrap()));
        }

        #[test]
        fn agrees_with_the_crate_on_damaged_bytes(value in value(), at: prop::sample::Index, byte: u8) {
            let mut bytes = Vec::new();
            encode(&value, &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let theirs = redis::parse_redis_value(&bytes).ok();
            // Types of RESP3 are theirs alone.
            if let (Ok(Some((reply, used))), Some(theirs)) = (parse(&bytes), theirs)
                && used == bytes.len()
                // An error inside of an array has no value to compare with.
                && let Ok(ours) = to_value(reply)
            {
                prop_assert_eq!(ours, theirs);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn codes_of_errors() {
        let check = |text: &[u8], want: &str| assert_eq!(ErrorReply(text).code(), want, "{text:?}");
        check(b"NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT");
        check(b"OOM", "OOM");
        check(b"", "");
        check(b"\xff x", "");
        assert_eq!(ErrorReply(b"ERR \xff").to_string(), "ERR \u{fffd}");
    }

    #[test]
    fn errors_limits_and_depth() {
        assert_eq!(parse(b"-NOSCRIPT x\r\n"), Ok(Some((Reply::Error(ErrorReply(b"NOSCRIPT x")), 13))));
        assert_eq!(parse(b"*-1\r\n"), Ok(Some((Reply::Nil, 5))));
        assert_eq!(parse(b"$-2\r\n"), Err(Malformed));
        assert_eq!(parse(b"$99999999999\r\n"), Err(Malformed));
        assert_eq!(parse(b"$1\r\nab"), Err(Malformed));
        assert_eq!(parse(b":12345678901234567890123456789012345"), Err(Malformed));
        assert_eq!(parse(b"%1\r\n"), Err(Malformed));
        assert_eq!(parse(&b"*1\r\n".repeat(9)), Err(Malformed));
        assert_eq!(parse(&[&b"+"[..], &vec![b'x'; MAX_REPLY_BYTES]].concat()), Err(Malformed));
    }
}
