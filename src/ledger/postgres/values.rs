//! Numbers and moments in the form of Postgres.
//!
//! Owns both directions of each form. Invariant: what is written reads back the same; what has no form here is an error or `None`,
//! never a wrong value. Pure.

use super::failure::Failure;
use bytes::BytesMut;
use std::error::Error;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked};

/// 2000-01-01, where Postgres' timestamps begin, in unix milliseconds.
const EPOCH_MS: i64 = 946_684_800_000;
/// The end of the year 9999: later than any real moment, and within a timestamp's range.
pub(super) const LAST_MS: u64 = 253_402_300_799_999;

/// Unix milliseconds as Postgres' microseconds since 2000.
pub(super) fn micros(unix_ms: u64) -> i64 {
    (unix_ms.min(LAST_MS) as i64 - EPOCH_MS) * 1000
}

/// Postgres' microseconds since 2000 as unix milliseconds; `None` before 1970 and for the infinities.
pub(super) fn unix_ms(micros: i64) -> Option<u64> {
    let ms = micros.div_euclid(1000).checked_add(EPOCH_MS)?;
    u64::try_from(ms).ok().filter(|ms| *ms <= LAST_MS)
}

/// A column that is never negative.
pub(super) fn number(row: &Row, at: usize) -> Result<u64, Failure> {
    let value: i64 = row.try_get(at)?;
    u64::try_from(value).map_err(|_| Failure::refused(format!("a number in the ledger is negative: {value}")))
}

/// A number as a `bigint`; an error beyond 63 bits.
pub(super) fn signed(number: u64) -> Result<i64, Failure> {
    i64::try_from(number).map_err(|_| Failure::refused(format!("{number} is beyond 63 bits")))
}

/// A `timestamptz`, in its own microseconds since 2000. The infinities pass, as the numbers that stand for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct PgTimestamp(i64);

impl PgTimestamp {
    /// Unix milliseconds as a moment.
    pub fn of(unix_ms: u64) -> PgTimestamp {
        PgTimestamp(micros(unix_ms))
    }

    /// Unix milliseconds; `None` before 1970 and for the infinities.
    pub fn unix(self) -> Option<u64> {
        unix_ms(self.0)
    }
}

impl<'a> FromSql<'a> for PgTimestamp {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<PgTimestamp, Box<dyn Error + Sync + Send>> {
        Ok(PgTimestamp(i64::from_be_bytes(raw.try_into()?)))
    }

    accepts!(TIMESTAMPTZ);
}

impl ToSql for PgTimestamp {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        for ms in [0, 1, 946_684_800_000, 1_700_000_000_123, LAST_MS] {
            assert_eq!(unix_ms(micros(ms)), Some(ms));
        }
        assert_eq!(unix_ms(micros(u64::MAX)), Some(LAST_MS));
        for odd in [i64::MAX, i64::MIN, micros(0) - 1] {
            assert_eq!(unix_ms(odd), None, "{odd}");
        }
    }
}
