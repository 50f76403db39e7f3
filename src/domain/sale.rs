//! Sales: their ids and terms, and how both are written for people.
//!
//! Owns the text of a sale in log lines and errors: its id, and beside it its times in UTC (RFC 3339), since people do not
//! read unix seconds. Invariant: values only, without I/O and clocks. Leaves planning sales to the keeper.

use std::fmt;

/// A sale's id: its start in unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SaleId(pub u64);

impl fmt::Display for SaleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Ids below this are starts in unix seconds, of the sales that follow each other by the settings. Only such an id has a time
/// that a text can show.
const HOURLY_IDS: u64 = 1 << 32;

impl SaleId {
    /// The sale in words: "sale 1795604400 (2026-11-25T11:00:00Z)".
    pub fn named(self) -> NamedSale {
        NamedSale(self)
    }
}

/// See [`SaleId::named`].
#[derive(Clone, Copy, Debug)]
pub struct NamedSale(SaleId);

impl fmt::Display for NamedSale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sale = self.0;
        match sale.0 {
            hourly @ ..HOURLY_IDS => write!(f, "sale {sale} ({})", Utc(hourly * 1000)),
            _ => write!(f, "sale {sale}"),
        }
    }
}

/// A sale's terms. Start and end are fixed when the sale is planned, the rest when it begins. Times are unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The sale.
    pub sale: SaleId,
    /// How many items it sells.
    pub items: u64,
    /// How many items a user may hold and have purchased at once.
    pub user_limit: u64,
    /// How long a hold lasts, in milliseconds.
    pub hold_ms: u64,
    /// The first moment at which it sells.
    pub starts_ms: u64,
    /// The first moment at which it no longer sells.
    pub ends_ms: u64,
}

impl Terms {
    /// Whether the sale is on at `now_ms`.
    pub fn is_on(&self, now_ms: u64) -> bool {
        (self.starts_ms..self.ends_ms).contains(&now_ms)
    }

    /// When a hold taken at `now_ms` expires: after the hold time, or at the sale's end if that is sooner.
    pub fn hold_expires_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add(self.hold_ms).min(self.ends_ms)
    }
}

impl fmt::Display for Terms {
    /// The sale in words: "sale 1795604400 (2026-11-25T11:00:00Z to 2026-11-25T12:00:00Z)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sale {} ({} to {})", self.sale, Utc(self.starts_ms), Utc(self.ends_ms))
    }
}

/// A moment, unix milliseconds, that is written in UTC as RFC 3339 has it. Milliseconds are left out where there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc(pub u64);

const DAY_MS: u64 = 24 * 3600 * 1000;

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0 / DAY_MS, self.0 % DAY_MS);
        let (year, month, day) = civil(days);
        let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}")?;
        match ms % 1000 {
            0 => f.write_str("Z"),
            fraction => write!(f, ".{fraction:03}Z"),
        }
    }
}

/// The year, month and day of the `days`th day after 1970-01-01 in the Gregorian calendar. Years are counted from March
/// within eras of 400 years, so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let since_march = days + 719_468;
    let (era, of_era) = (since_march / ERA, since_march % ERA);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_the_http_date_has_them() {
        let check = |ms: u64, want: &str| assert_eq!(Utc(ms).to_string(), want, "{ms}");
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_400_000, "2000-02-29T00:00:00Z");
        check(1_795_604_400_007, "2026-11-25T11:00:00.007Z");
        check(4_102_444_799_999, "2099-12-31T23:59:59.999Z");
        check(253_402_300_799_000, "9999-12-31T23:59:59Z");
        // Against another calendar, a prime number of days apart, for more than 400 years.
        for days in (0..160_000).step_by(7) {
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(days * 86_400);
            let text = httpdate::fmt_http_date(at);
            let (year, month, day) = civil(days);
            assert_eq!(
                (&text[12..16], &text[5..7]),
                (format!("{year:04}").as_str(), format!("{day:02}").as_str()),
                "{text}"
            );
            let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            assert_eq!(names[month as usize - 1], &text[8..11], "{text}");
        }
    }

    #[test]
    fn sales_are_named_with_their_times() {
        assert_eq!(SaleId(1_795_604_400).named().to_string(), "sale 1795604400 (2026-11-25T11:00:00Z)");
        assert_eq!(SaleId(HOURLY_IDS).named().to_string(), "sale 4294967296");
        let (starts_ms, ends_ms) = (1_795_604_400_000, 1_795_608_000_000);
        let terms = Terms { sale: SaleId(1_795_604_400), items: 1, user_limit: 1, hold_ms: 1, starts_ms, ends_ms };
        assert_eq!(terms.to_string(), "sale 1795604400 (2026-11-25T11:00:00Z to 2026-11-25T12:00:00Z)");
    }
}
