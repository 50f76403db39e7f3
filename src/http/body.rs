//! Finds the end of a request's body, which is read and thrown away.
//!
//! Owns the chunked coding (RFC 9112, 7.1) in its strict form: CRLF only, no white space around a size, bounds on sizes,
//! extensions and trailers. Invariants: however the bytes are split between calls, the result is the same; a refusal is
//! final; no byte after the body is taken; no byte is kept. Leaves reading the bytes to the connection.

use super::request::{Body, MAX_BODY_BYTES, Reject};

/// The most digits of a chunk's size, leading zeros included: as many as fit 64 bits.
const MAX_SIZE_DIGITS: u8 = 16;

/// The most bytes of chunk extensions in all chunks of a body. Clients send none; without a bound they could be as long as a body.
const MAX_EXTENSION_BYTES: u32 = 1024;

/// The most bytes of trailer lines, their line ends included.
const MAX_TRAILER_BYTES: u32 = 8192;

const _: () = assert!(MAX_SIZE_DIGITS as u32 * 4 <= u64::BITS);

/// Follows a body's bytes as they arrive, up to its end.
#[derive(Clone, Debug)]
pub struct BodySkipper {
    state: State,
    /// Payload bytes announced by the chunks so far, at most [`MAX_BODY_BYTES`].
    payload: u64,
    /// The size in bytes of the chunk whose head is being read.
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
    /// In a chunk's extensions.
    Extension(Extension),
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

/// Where in `;name`, `;name=token` or `;name="text"` (RFC 9112, 7.1.1) a byte stands. Blanks are allowed around `;` and `=`,
/// but not before the first `;` and not at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// After a `;`: only a name can follow.
    Start,
    Name,
    /// After blanks behind a name.
    AfterName,
    /// After a `=`: only a value can follow.
    ValueStart,
    Token,
    Quoted,
    /// After a backslash in a quoted value.
    Escaped,
    /// After the quote that ends a value.
    QuoteEnd,
    /// After blanks behind a value.
    AfterValue,
}

const BAD_SIZE: Reject = Reject::BadRequest("a chunk's size is malformed");
const BAD_EXTENSION: Reject = Reject::BadRequest("a chunk's extension is malformed or too long");
const BAD_END: Reject = Reject::BadRequest("a chunk's end is malformed");
const BAD_TRAILER: Reject = Reject::BadRequest("a trailer is malformed or too long");

impl BodySkipper {
    /// A skipper that has seen no byte of `body` yet.
    pub fn new(body: Body) -> BodySkipper {
        let state = match body {
            Body::None | Body::Length(0) => State::Done,
            Body::Length(length) if length > MAX_BODY_BYTES => State::Failed(Reject::BodyTooLarge),
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Size { value: 0, digits: 0 },
        };
        BodySkipper { state, payload: 0, chunk: 0, extension_bytes: 0, trailer_bytes: 0 }
    }

    /// Takes the next bytes. Without any, the result says whether the body is done already.
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
                State::Extension(Extension::Start)
            }
            (State::Size { value, digits }, _) => size(value, digits, byte)?,
            (State::Extension(at), _) => self.extension(at, byte)?,
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

    /// Adds the size of the next chunk to the body's, which must stay within its bound.
    fn announce(&mut self, chunk: u64) -> Result<State, Reject> {
        self.payload = self.payload.saturating_add(chunk);
        self.chunk = chunk;
        if self.payload > MAX_BODY_BYTES { Err(Reject::BodyTooLarge) } else { Ok(State::SizeLf) }
    }

    fn extension(&mut self, at: Extension, byte: u8) -> Result<State, Reject> {
        use Extension::{AfterName, AfterValue, Escaped, Name, QuoteEnd, Quoted, Start, Token, ValueStart};
        if byte == b'\r' {
            // The line may end behind a whole extension.
            return if matches!(at, Name | Token | QuoteEnd) { Ok(State::SizeLf) } else { Err(BAD_EXTENSION) };
        }
        self.extension_bytes += 1;
        if self.extension_bytes > MAX_EXTENSION_BYTES {
            return Err(BAD_EXTENSION);
        }
        Ok(State::Extension(match (at, byte) {
            (Start | AfterName | ValueStart | AfterValue, b' ' | b'\t') => at,
            (Name, b' ' | b'\t') => AfterName,
            (Token | QuoteEnd, b' ' | b'\t') => AfterValue,
            (Name | AfterName | Token | QuoteEnd | AfterValue, b';') => Start,
            (Name | AfterName, b'=') => ValueStart,
            (ValueStart | Escaped, b'"') => Quoted,
            (Start | Name, _) if is_token(byte) => Name,
            (ValueStart | Token, _) if is_token(byte) => Token,
            (Quoted, b'"') => QuoteEnd,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, _) if is_text(byte) => Quoted,
            _ => return Err(BAD_EXTENSION),
        }))
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

/// The state after another digit of a chunk's size.
fn size(value: u64, digits: u8, byte: u8) -> Result<State, Reject> {
    match char::from(byte).to_digit(16) {
        Some(digit) if digits < MAX_SIZE_DIGITS => {
            Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
        }
        _ => Err(BAD_SIZE),
    }
}

/// Drops up to `want` bytes off the front and returns how many are still to be dropped.
fn drop_front(rest: &mut &[u8], want: u64) -> u64 {
    let here = usize::try_from(want).unwrap_or(usize::MAX).min(rest.len());
    *rest = rest.get(here..).unwrap_or_default();
    want - here as u64
}

/// Whether `byte` may stand in a field's value: a tab, or anything but control characters.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

/// Whether `byte` may stand in a token (RFC 9110, 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
