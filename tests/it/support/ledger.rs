//! The ledger as an operator sees it: by SQL, from outside, by the two names that are promised.

use std::path::PathBuf;

/// A row of `checkout_attempts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// As `/purchase` takes it.
    pub code: String,
    /// As sent.
    pub user: String,
    /// As sent.
    pub item: String,
    /// The sale's start, unix seconds.
    pub sale: u64,
    /// When the hold was taken, unix milliseconds.
    pub at_ms: u64,
    /// Whether it was purchased.
    pub used: bool,
}

/// A row of `purchases`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    /// As `/purchase` takes it.
    pub code: String,
    /// As sent.
    pub user: String,
    /// As sent.
    pub item: String,
    /// The sale's start, unix seconds.
    pub sale: u64,
    /// When the hold was redeemed, unix milliseconds.
    pub at_ms: u64,
}

/// Everything that the ledger shows.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// All checkouts.
    pub attempts: Vec<Attempt>,
    /// All purchases.
    pub purchases: Vec<Purchase>,
}

/// Where to read it.
#[derive(Clone, Debug)]
pub enum Ledger {
    /// A DSN.
    Postgres(String),
    /// A file.
    Sqlite(PathBuf),
}

impl Ledger {
    /// All rows, each table as of one moment.
    pub fn rows(&self) -> Rows {
        match self {
            Ledger::Postgres(dsn) => postgres_rows(dsn),
            Ledger::Sqlite(path) => sqlite_rows(path),
        }
    }
}

fn postgres_rows(dsn: &str) -> Rows {
    let mut client = postgres::Client::connect(dsn, postgres::NoTls).expect("connect to the ledger");
    let columns = "code::text, user_id::text, item_id::text, sale_id::text::bigint, \
                   round(extract(epoch from created_at) * 1000)::bigint";
    // Purchases first: the checkout of a purchase that is seen is then seen as well.
    let sql = format!("SELECT {columns} FROM purchases");
    let purchases = client.query(&sql, &[]).expect("query purchases");
    let sql = format!("SELECT {columns}, used FROM checkout_attempts");
    let attempts = client.query(&sql, &[]).expect("query checkout_attempts");
    let number = |row: &postgres::Row, at: usize| u64::try_from(row.get::<_, i64>(at)).expect("not negative");
    Rows {
        attempts: attempts
            .iter()
            .map(|row| Attempt {
                code: row.get(0),
                user: row.get(1),
                item: row.get(2),
                sale: number(row, 3),
                at_ms: number(row, 4),
                used: row.get(5),
            })
            .collect(),
        purchases: purchases
            .iter()
            .map(|row| Purchase {
                code: row.get(0),
                user: row.get(1),
                item: row.get(2),
                sale: number(row, 3),
                at_ms: number(row, 4),
            })
            .collect(),
    }
}

fn sqlite_rows(path: &std::path::Path) -> Rows {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(path, flags).expect("open the ledger");
    db.busy_timeout(std::time::Duration::from_secs(5)).expect("set the time limit");
    // A time is either text that SQLite can read, or unix seconds or milliseconds.
    let columns = "code, user_id, item_id, CAST(sale_id AS INTEGER), CAST(round(CASE \
                   WHEN typeof(created_at) = 'text' THEN (julianday(created_at) - 2440587.5) * 86400000.0 \
                   WHEN created_at > 100000000000 THEN created_at \
                   ELSE created_at * 1000.0 END) AS INTEGER)";
    let mut statement = db.prepare(&format!("SELECT {columns} FROM purchases")).expect("prepare");
    let purchases = statement
        .query_map([], |row| {
            let (code, user, item) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(Purchase { code, user, item, sale: unsigned(row, 3)?, at_ms: unsigned(row, 4)? })
        })
        .expect("query purchases")
        .collect::<Result<_, _>>()
        .expect("rows of purchases");
    let mut statement = db.prepare(&format!("SELECT {columns}, used FROM checkout_attempts")).expect("prepare");
    let attempts = statement
        .query_map([], |row| {
            let (code, user, item) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(Attempt { code, user, item, sale: unsigned(row, 3)?, at_ms: unsigned(row, 4)?, used: row.get(5)? })
        })
        .expect("query checkout_attempts")
        .collect::<Result<_, _>>()
        .expect("rows of checkout_attempts");
    Rows { attempts, purchases }
}

fn unsigned(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(at)?).unwrap_or_default())
}
