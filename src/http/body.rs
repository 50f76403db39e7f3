//! Finds the end of a request's body, which is read and thrown away.
//!
//! Owns the chunked coding (RFC 9112, 7.1) in its strict form: CRLF only, no white space around a size, bounds on sizes,
//! extensions and trailers. Invariants: however the bytes are split between calls, the result is the same; a refusal is
//! final; no byte after the body is taken. Keeps no byte and refuses to know where they come from.

use super::request::{Body, MAX_BODY_BYTES, Reject};

/// The most digits of a chunk's size, leading zeros included: what fits 64 bits.
const MAX_SIZE_DIGITS: u8 = 16;

/// The most bytes of chunk extensions in all chunks of a body. Nobody sends any; unbounded they would be a body of their own.
const MAX_EXTENSION_BYTES: u32 = 1024;

/// The most bytes of trailer lines, their line ends included.
const MAX_TRAILER_BYTES: u32 = 8192;

const _: () = assert!(MAX_SIZE_DIGITS as u32 * 4 <= u64::BITS);

/// Goes over a body's bytes as they arrive.
#[derive(Clone, Debug)]
pub struct BodySkipper {
    state: State,
    /// Payload bytes announced by the chunks so far, at most [`MAX_BODY_BYTES`].
    payload: u64,
    /// The size of the chunk whose head is being read.
    chunk: u64,
    extension_bytes: u32,
    trailer_bytes: u32,
}

/// What a call to [`BodySkipper::skip`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// How many of the bytes given belong to the body. All of them, unless it is done.
    pub used: usize,
    /// Whether the body ends there.
    pub done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This many bytes are left of a body with a known length.
    Length(u64),
    /// In a chunk's size.
    Size {
        value: u64,
        digits: u8,
    },
    /// After the `;` that follows a size.
    Extension,
    /// A CR was read after a size or extension.
    SizeLf,
    /// This many bytes are left of a chunk, and then its CRLF.
    Data(u64),
    /// A CR was read after a chunk's bytes.
    DataLf,
    /// Where a trailer line, or the empty line that ends it all, begins.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// The CR of the last line was read.
    LastLf,
    Done,
    Failed(Reject),
}

const BAD_SIZE: Reject = Reject::BadRequest("a chunk's size is malformed");
const BAD_EXTENSION: Reject = Reject::BadRequest("a chunk's extension is malformed or too long");
const BAD_END: Reject = Reject::BadRequest("a chunk's end is malformed");
const BAD_TRAILER: Reject = Reject::BadRequest("a trailer is malformed or too long");

impl BodySkipper {
    /// Before the first byte of `body`.
    pub fn new(body: Body) -> BodySkipper {
        let state = match body {
            Body::None | Body::Length(0) => State::Done,
            Body::Length(length) if length > MAX_BODY_BYTES => State::Failed(Reject::BodyTooLarge),
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Size { value: 0, digits: 0 },
        };
        BodySkipper { state, payload: 0, chunk: 0, extension_bytes: 0, trailer_bytes: 0 }
    }

    /// Takes the next bytes. With none it says whether the body is done already.
    ///
    /// # Errors
    /// [`Reject::BodyTooLarge`], as soon as a chunk is announced that passes [`MAX_BODY_BYTES`], or
    /// [`Reject::BadRequest`]. Every later call returns the same.
    pub fn skip(&mut self, bytes: &[u8]) -> Result<Skipped, Reject> {
        let mut rest = bytes;
        loop {
            match self.state {
                State::Failed(reject) => return Err(reject),
                State::Done => return Ok(Skipped { used: bytes.len() - rest.len(), done: true }),
                State::Length(left) => {
                    let left = drop_front(&mut rest, left);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                }
                State::Data(left) if left > 0 => self.state = State::Data(drop_front(&mut rest, left)),
                _ => {}
            }
            if self.state == State::Done {
                continue;
            }
            let Some((byte, tail)) = rest.split_first() else {
                return Ok(Skipped { used: bytes.len(), done: false });
            };
            rest = tail;
            self.state = self.after(*byte).unwrap_or_else(State::Failed);
        }
    }

    /// The state after one byte of the framing.
    fn after(&mut self, byte: u8) -> Result<State, Reject> {
        Ok(match (self.state, byte) {
            (State::Size { digits: 1.., value }, b'\r') => self.announce(value)?,
            (State::Size { digits: 1.., value }, b';') => {
                self.announce(value)?;
                State::Extension
            }
            (State::Size { value, digits }, _) => size(value, digits, byte)?,
            (State::Extension, b'\r') => State::SizeLf,
            (State::Extension, _) => {
                self.extension_bytes += 1;
                let fine = is_text(byte) && self.extension_bytes <= MAX_EXTENSION_BYTES;
                if fine { State::Extension } else { return Err(BAD_EXTENSION) }
            }
            (State::SizeLf, b'\n') if self.chunk == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data(self.chunk),
            (State::SizeLf, _) => return Err(BAD_SIZE),
            (State::Data(_), b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::Data(_) | State::DataLf, _) => return Err(BAD_END),
            (State::TrailerStart, b'\r') => State::LastLf,
            (State::LastLf, b'\n') => State::Done,
            (state, _) => self.trailer(state, byte)?,
        })
    }

    /// The size of the next chunk is known.
    fn announce(&mut self, chunk: u64) -> Result<State, Reject> {
        self.payload = self.payload.saturating_add(chunk);
        self.chunk = chunk;
        if self.payload > MAX_BODY_BYTES { Err(Reject::BodyTooLarge) } else { Ok(State::SizeLf) }
    }

    fn trailer(&mut self, state: State, byte: u8) -> Result<State, Reject> {
        self.trailer_bytes += 1;
        if self.trailer_bytes > MAX_TRAILER_BYTES {
            return Err(BAD_TRAILER);
        }
        match (state, byte) {
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => Ok(State::TrailerName),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if is_text(byte) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            _ => Err(BAD_TRAILER),
        }
    }
}

fn size(value: u64, digits: u8, byte: u8) -> Result<State, Reject> {
    match char::from(byte).to_digit(16) {
        Some(digit) if digits < MAX_SIZE_DIGITS => {
            Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
        }
        _ => Err(BAD_SIZE),
    }
}

/// Drops up to `want` bytes off the front and says how many are still wanted.
fn drop_front(rest: &mut &[u8], want: u64) -> u64 {
    let here = usize::try_from(want).unwrap_or(usize::MAX).min(rest.len());
    *rest = rest.get(here..).unwrap_or_default();
    want - here as u64
}

/// What may stand in a field's value: anything but control characters, and the tab.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bytes taken in all and whether the body is done, or the refusal's status.
    fn run<'a>(body: Body, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<(usize, bool), u16> {
        let mut skipper = BodySkipper::new(body);
        let mut total = (0, false);
        for part in parts {
            match skipper.skip(part) {
                Ok(skipped) => {
                    assert!(skipped.done || skipped.used == part.len());
                    total = (total.0 + skipped.used, skipped.done);
                }
                Err(reject) => {
                    assert_eq!(skipper.skip(b"\r\n"), Err(reject), "a refusal is final");
                    return Err(reject.status());
                }
            }
        }
        Ok(total)
    }

    #[test]
    fn lengths() {
        let check = |body, bytes: &[u8], want| assert_eq!(run(body, [bytes]), want, "{body:?} {bytes:?}");
        check(Body::None, b"", Ok((0, true)));
        check(Body::None, b"GET", Ok((0, true)));
        check(Body::Length(0), b"GET", Ok((0, true)));
        check(Body::Length(3), b"", Ok((0, false)));
        check(Body::Length(3), b"ab", Ok((2, false)));
        check(Body::Length(3), b"abc", Ok((3, true)));
        check(Body::Length(3), b"abcGET", Ok((3, true)));
        check(Body::Length(65536), &[0; 65537], Ok((65536, true)));
        check(Body::Length(65537), b"", Err(413));
    }

    /// `text` as a chunked body; a `^` marks where it must end, without one it must be unfinished.
    fn ends(text: &str) {
        let raw = text.replace('^', "");
        let want = text.find('^').map_or((raw.len(), false), |end| (end, true));
        assert_eq!(run(Body::Chunked, [raw.as_bytes()]), Ok(want), "{text:?}");
        assert_eq!(run(Body::Chunked, raw.as_bytes().chunks(1)), Ok(want), "{text:?} byte by byte");
    }

    #[test]
    fn chunks() {
        ends("0\r\n\r\n^");
        ends("0\r\n\r\n^GET / HTTP/1.1\r\n");
        ends("5\r\nhello\r\n0\r\n\r\n^0\r\n\r\n");
        ends("a\r\n0123456789\r\nA\r\n0\r\n\r\n\r\n678\r\n0\r\n\r\n^");
        ends("0000000000000001\r\nx\r\n0000000000000000\r\n\r\n^");
        ends("1;a=b;c=\"d e\"\r\nx\r\n0;\t\r\n\r\n^");
        ends("0\r\nA: b\r\nC-d:\r\n\r\n^GET");
        ends("");
        ends("5");
        ends("5\r\nhel");
        ends("5\r\nhello");
        ends("0\r\n");
        ends("0\r\n\r");
        ends("0\r\nA: b\r\n");
    }

    #[test]
    fn refused_chunks() {
        let check = |raw: &str, want: u16| {
            assert_eq!(run(Body::Chunked, [raw.as_bytes()]), Err(want), "{raw:?}");
            assert_eq!(run(Body::Chunked, raw.as_bytes().chunks(1)), Err(want), "{raw:?} byte by byte");
        };
        for size in ["", "g", "+1", "-1", "0x1", " 1", "1 ", "1\t", "1,", "1\n", "1\r\r", "00000000000000001", ";a"] {
            check(&format!("{size}\r\nx\r\n0\r\n\r\n"), 400);
        }
        check("1\r\nxy\r\n", 400);
        check("1\r\nx\n", 400);
        check("1\r\nx\r\r", 400);
        check("1\r\nx0\r\n\r\n", 400);
        check("1;a\nx", 400);
        check("1;a\0", 400);
        check("1;a\r1", 400);
        check(&format!("1;{}\r\n", "x".repeat(1025)), 400);
        check(&format!("1;{}\r\nx\r\n1;{}\r\n", "x".repeat(1000), "x".repeat(25)), 400);
        check("0\r\n\n", 400);
        check("0\r\n\r\r", 400);
        check("0\r\n folded: x\r\n\r\n", 400);
        check("0\r\nA: b\r\n c\r\n\r\n", 400);
        check("0\r\nA : b\r\n\r\n", 400);
        check("0\r\n: b\r\n\r\n", 400);
        check("0\r\nA\r\n\r\n", 400);
        check("0\r\nA: b\n\r\n", 400);
        check("0\r\nA: b\0\r\n\r\n", 400);
        check(&format!("0\r\nA: {}", "x".repeat(8190)), 400);
        check(&format!("0\r\n{}", "A: b\r\n".repeat(1366)), 400);
        check("10001\r\n", 413);
        check("ffffffffffffffff\r\n", 413);
        check("ffffffffffffffff;a\r\n", 413);
        check("1\r\nx\r\nffffffffffffffff\r\n", 413);
    }

    #[test]
    fn bounds_are_met_exactly() {
        ends(&format!("10000\r\n{}\r\n0\r\n\r\n^", "x".repeat(65536)));
        ends(&format!("1;{}\r\nx\r\n0;{}\r\n\r\n^", "x".repeat(1000), "x".repeat(24)));
        ends(&format!("0\r\nA:{}\r\n\r\n^", "x".repeat(8188)));
        let halves = format!("8000\r\n{0}\r\n8000\r\n{0}\r\n", "x".repeat(32768));
        ends(&halves);
        assert_eq!(run(Body::Chunked, [halves.as_bytes(), b"1\r\n"]), Err(413));
    }

    fn bodies() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "0",
            "1",
            "5",
            "\r\n",
            "\r\n",
            "hello",
            "x",
            ";e=1",
            "A: b",
            "\r",
            "\n",
            "5\r\nhello\r\n",
            "0\r\n\r\n",
            "ffff",
        ]);
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(raw in bodies(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
                                    length in prop::option::of(0u64..40)) {
            let body = length.map_or(Body::Chunked, Body::Length);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(raw.len() + 1)).collect();
            cuts.extend([0, raw.len()]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|ends| &raw[ends[0]..ends[1]]);
            prop_assert_eq!(run(body, parts), run(body, [raw.as_slice()]));
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = run(Body::Chunked, [noise.as_slice()]);
        }
    }
}
