//! The form of a setting's value.
//!
//! Owns what all values have in common: blanks around a value are dropped (a carriage return too, from a file that was
//! written on Windows), an empty value is refused, and a refusal is one line that names the variable, shows the value
//! with its invisible characters escaped, and says what is expected. Invariant: no value that may hold a password is
//! shown. Leaves what a value means to its caller.

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command, Error};
use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Reads a value that was trimmed and is not empty; `None` if it does not have the form.
type Read<T> = fn(&str) -> Option<T>;

/// A value that is text.
#[derive(Clone)]
pub struct Text<T> {
    expected: &'static str,
    read: Read<T>,
    /// Whether the value may hold a password.
    secret: bool,
}

/// Text that `read` accepts; `expected` describes it in a few words.
pub const fn text<T>(expected: &'static str, read: Read<T>) -> Text<T> {
    Text { expected, read, secret: false }
}

/// Text that may hold a password. The module that uses the text checks its form.
pub const fn secret(expected: &'static str) -> Text<String> {
    Text { expected, read: |value| Some(value.to_owned()), secret: true }
}

/// A whole number.
#[derive(Clone)]
pub struct Whole {
    what: &'static str,
    bounds: RangeInclusive<u64>,
}

/// A whole number within `bounds`; `what` is its name with its unit, such as "whole seconds".
pub const fn whole(what: &'static str, bounds: RangeInclusive<u64>) -> Whole {
    Whole { what, bounds }
}

/// A path, which may be any bytes.
#[derive(Clone)]
pub struct AnyPath {
    /// A description of what the path leads to, for errors.
    pub expected: &'static str,
}

/// Makes the error for a value that is not accepted: one line for the operator.
struct Refused<'a> {
    command: &'a Command,
    arg: Option<&'a Arg>,
    expected: &'a str,
    secret: bool,
}

impl Refused<'_> {
    fn because(&self, value: &OsStr, why: &str) -> Error {
        let name = self.arg.and_then(Arg::get_env).map(OsStr::to_string_lossy).unwrap_or_default();
        let shown = if self.secret || value.is_empty() { "the value".to_owned() } else { format!("{value:?}") };
        let line = format!("{name}: {shown} {why}; expected {}", self.expected);
        self.command.clone().error(ErrorKind::ValueValidation, line)
    }

    fn text<'v>(&self, value: &'v OsStr) -> Result<&'v str, Error> {
        let text = value.to_str().ok_or_else(|| self.because(value, "is not UTF-8"))?.trim();
        if text.is_empty() { Err(self.because(OsStr::new(""), "is empty")) } else { Ok(text) }
    }

    fn malformed(&self, text: &str) -> Error {
        self.because(OsStr::new(text), "is not accepted")
    }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Text<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, Error> {
        let refused = Refused { command, arg, expected: self.expected, secret: self.secret };
        let text = refused.text(value)?;
        (self.read)(text).ok_or_else(|| refused.malformed(text))
    }
}

impl TypedValueParser for Whole {
    type Value = u64;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<u64, Error> {
        let expected = format!("{}, {} to {}", self.what, self.bounds.start(), self.bounds.end());
        let refused = Refused { command, arg, expected: &expected, secret: false };
        let text = refused.text(value)?;
        text.parse().ok().filter(|number| self.bounds.contains(number)).ok_or_else(|| refused.malformed(text))
    }
}

impl TypedValueParser for AnyPath {
    type Value = PathBuf;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<PathBuf, Error> {
        let refused = Refused { command, arg, expected: self.expected, secret: false };
        let path = value.as_bytes().trim_ascii();
        if path.is_empty() {
            return Err(refused.because(OsStr::new(""), "is empty"));
        }
        Ok(OsString::from_vec(path.to_vec()).into())
    }
}
