//! Percent-encoded parameters and path segments, to and from [`Id`]s.
//!
//! Owns the decoding (RFC 3986, and the `+` of HTML forms in queries). Invariants: finding parameters allocates nothing; a
//! malformed parameter that the caller does not look for does no harm. Leaves to the caller which parameters exist and
//! what they mean.

use crate::domain::{Id, IdError, MAX_ID_BYTES};
use std::fmt;

/// Why a request's parameter cannot be used. Its text is a sentence: `user_id is missing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParamError {
    /// The parameter's name.
    pub name: &'static str,
    /// The problem.
    pub problem: Problem,
}

/// A problem of an encoded id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is not there.
    Missing,
    /// It is there more than once, so its value is ambiguous.
    Repeated,
    /// A `%` without two hex digits after it.
    Malformed,
    /// It decodes to bytes that are not an id.
    Id(IdError),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing => f.write_str("is missing"),
            Problem::Repeated => f.write_str("is given twice"),
            Problem::Malformed => f.write_str("has a malformed % escape"),
            Problem::Id(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for ParamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.problem)
    }
}

impl std::error::Error for ParamError {}

impl ParamError {
    /// Whether the parameter is there, once and not empty, but no id.
    pub fn is_malformed_value(&self) -> bool {
        match self.problem {
            Problem::Missing | Problem::Repeated | Problem::Id(IdError::Empty) => false,
            Problem::Malformed | Problem::Id(_) => true,
        }
    }
}

/// Finds the parameters `names` (at least one, no two the same) in a raw query: in any order, each exactly once.
///
/// # Errors
/// The first problem in the query's order; then the first of `names` that is missing.
pub fn find<const N: usize>(query: &str, names: [&'static str; N]) -> Result<[Id; N], ParamError> {
    const { assert!(N > 0) };
    let mut seen = [false; N];
    let mut ids = None;
    for pair in query.split('&') {
        let (raw_name, raw_value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(at) = names.iter().position(|name| is_name(raw_name, name)) else { continue };
        let (Some(name), Some(seen)) = (names.get(at).copied(), seen.get_mut(at)) else { continue };
        if std::mem::replace(seen, true) {
            return Err(ParamError { name, problem: Problem::Repeated });
        }
        let id = decode(raw_value, true).map_err(|problem| ParamError { name, problem })?;
        if let Some(slot) = ids.get_or_insert([id; N]).get_mut(at) {
            *slot = id;
        }
    }
    match (ids, names.into_iter().zip(seen).find(|(_, seen)| !seen)) {
        (Some(ids), None) => Ok(ids),
        (_, absent) => Err(ParamError { name: absent.map_or("", |(name, _)| name), problem: Problem::Missing }),
    }
}

/// The id that a raw path segment names. A `+` is a plus there.
///
/// # Errors
/// [`Problem::Malformed`] or [`Problem::Id`].
pub fn decode_segment(raw: &str) -> Result<Id, Problem> {
    decode(raw, false)
}

/// Hands `id` to `push`, byte by byte, such that [`decode_segment`] gives it back: all but letters, digits and `-._~` is
/// percent-encoded, so the text is ASCII.
pub fn encode_segment(id: &str, mut push: impl FnMut(u8)) {
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            push(byte);
        } else {
            push(b'%');
            let digits = [byte >> 4, byte & 15].into_iter().filter_map(|digit| char::from_digit(u32::from(digit), 16));
            digits.for_each(|digit| push(digit.to_ascii_uppercase() as u8));
        }
    }
}

fn decode(raw: &str, plus_is_space: bool) -> Result<Id, Problem> {
    let mut bytes = [0; MAX_ID_BYTES];
    let mut len = 0;
    for byte in (Decoded { rest: raw.as_bytes(), plus_is_space }) {
        let byte = byte.ok_or(Problem::Malformed)?;
        *bytes.get_mut(len).ok_or(Problem::Id(IdError::TooLong))? = byte;
        len += 1;
    }
    Id::from_bytes(bytes.get(..len).unwrap_or_default()).map_err(Problem::Id)
}

fn is_name(raw: &str, name: &str) -> bool {
    // Names are hardly ever encoded, and an encoded name is longer than the plain one.
    raw == name
        || (raw.len() >= name.len() && Decoded { rest: raw.as_bytes(), plus_is_space: true }.eq(name.bytes().map(Some)))
}

/// The bytes that an encoded text stands for; `None` in the place of a malformed escape.
struct Decoded<'a> {
    rest: &'a [u8],
    plus_is_space: bool,
}

impl Iterator for Decoded<'_> {
    type Item = Option<u8>;

    fn next(&mut self) -> Option<Option<u8>> {
        let (byte, tail) = self.rest.split_first()?;
        self.rest = tail;
        match byte {
            b'+' if self.plus_is_space => Some(Some(b' ')),
            b'%' => Some(self.escaped()),
            other => Some(Some(*other)),
        }
    }
}

impl Decoded<'_> {
    fn escaped(&mut self) -> Option<u8> {
        let (digits, tail) = self.rest.split_first_chunk::<2>()?;
        let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
        self.rest = tail;
        u8::try_from(high? << 4 | low?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters() {
        let check = |query: &str, want: Result<[&str; 2], &str>| {
            let got = find(query, ["user_id", "id"]).map_err(|error| error.to_string());
            let got = got.as_ref().map(|ids| [ids[0].as_str(), ids[1].as_str()]).map_err(String::as_str);
            assert_eq!(got, want, "{query:?}");
        };
        let long = "x".repeat(64);
        let encoded = "%78".repeat(64);
        check("user_id=u&id=i", Ok(["u", "i"]));
        check("id=i&user_id=u", Ok(["u", "i"]));
        check("&&id=i&x=1&user_id=u&", Ok(["u", "i"]));
        check("user_id=a+b%2B%20c&id=%C3%A9", Ok(["a b+ c", "\u{e9}"]));
        check("user%5fid=u&%69%64=i", Ok(["u", "i"]));
        check("user_id=a=b&id==", Ok(["a=b", "="]));
        check("user_id=a%26id%3Db&id=%25", Ok(["a&id=b", "%"]));
        check("user_id=\u{e9}&id=a;b", Ok(["\u{e9}", "a;b"]));
        check("x=%&%zz=1&user_id=u&y=%ff&id=i&user_i%=2", Ok(["u", "i"]));
        check("x&x&user_id=u&id=i", Ok(["u", "i"]));
        check(&format!("user_id={long}&id={encoded}"), Ok([&long, &long]));
        check(&format!("user_id={long}x&id=i"), Err("user_id is longer than 64 bytes"));
        check(&format!("user_id=u&id={encoded}%78"), Err("id is longer than 64 bytes"));
        check("", Err("user_id is missing"));
        check("user_id=u", Err("id is missing"));
        check("id=i", Err("user_id is missing"));
        check("User_id=u&id=i", Err("user_id is missing"));
        check("user_idx=u&id=i", Err("user_id is missing"));
        check("user_id=u;id=i", Err("id is missing"));
        check("user_id=&id=i", Err("user_id is empty"));
        check("user_id&id=i", Err("user_id is empty"));
        check("user_id=u&id=i&user_id=u", Err("user_id is given twice"));
        check("id=i&i%64=j&user_id=u", Err("id is given twice"));
        check("id=i&id", Err("id is given twice"));
        for bad in ["%", "%1", "a%", "%g1", "%1g", "%+1", "%%41", "%u0041", "% 1", "%\u{e9}"] {
            check(&format!("user_id={bad}&id=i"), Err("user_id has a malformed % escape"));
        }
        check("user_id=%ff&id=i", Err("user_id is not UTF-8"));
        check("user_id=%c3&id=i", Err("user_id is not UTF-8"));
        check("user_id=%c0%80&id=i", Err("user_id is not UTF-8"));
        check("user_id=a%00&id=i", Err("user_id has a control character"));
        check("user_id=a%0d%0a&id=i", Err("user_id has a control character"));
        check("user_id=%c2%85&id=i", Err("user_id has a control character"));
    }

    #[test]
    fn segments() {
        let check = |raw: &str, want: Result<&str, Problem>| {
            assert_eq!(decode_segment(raw).as_ref().map(Id::as_str), want.as_ref().copied(), "{raw:?}");
        };
        check("a+b", Ok("a+b"));
        check("a%2Fb%2f", Ok("a/b/"));
        check("..", Ok(".."));
        check("", Err(Problem::Id(IdError::Empty)));
        check("%", Err(Problem::Malformed));
        check("%0a", Err(Problem::Id(IdError::Control)));

        let encoded = |id: &str| {
            let mut out = String::from("/");
            encode_segment(id, |byte| out.push(char::from(byte)));
            out
        };
        assert_eq!(encoded("aZ0-._~"), "/aZ0-._~");
        assert_eq!(encoded("a b+/\"%\u{e9}<"), "/a%20b%2B%2F%22%25%C3%A9%3C");
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(text in "\\PC{1,16}") {
            let id: Result<Id, _> = text.parse();
            prop_assume!(id.is_ok());
            let mut raw = String::new();
            encode_segment(&text, |byte| raw.push(char::from(byte)));
            prop_assert_eq!(decode_segment(&raw).ok(), id.ok());
            let query = format!("a={raw}");
            prop_assert_eq!(find(&query, ["a"]).ok().map(|[id]| id), id.ok());
        }

        #[test]
        fn noise_never_panics(query in "[ab=&%+0-9g\u{e9}]{0,40}") {
            let _ = find(&query, ["a", "b"]);
            let _ = decode_segment(&query);
        }
    }
}
