//! The keeper's view of the ledger in Postgres: sales, holds, the key and the numbers of instances.
//!
//! Owns the session for the keeper's statements. Invariant: a row of a hold that cannot be read is left out and logged, one of
//! a sale is an error. Leaves the sessions of the locks to `fence`, counts and added rows to `records`, and to the keeper what
//! a rebuild does with the rows.

use super::connect::ConnectSettings;
use super::copy::Rows;
use super::failure::Failure;
use super::reconnecting::ReconnectingSession;
use super::schema::migrate;
use super::session::{Session, Wire};
use super::values::{PgTimestamp, number, signed};
use super::{READ_LIMIT, WORK_LIMIT};
use crate::code::{Codes, KEY_BYTES, MAX_COUNTER, MAX_INSTANCE, hold_number, random_key};
use crate::domain::{HoldFacts, HoldNumber, Id, SaleId, Terms};
use crate::ledger::{Fence, HoldRow, Ledger, LedgerError, LedgerId, SaleRow};
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

/// How long the next row of a long answer may take.
const ROW_LIMIT: Duration = Duration::from_secs(10);

/// `Ledger`, `Fence` and `SharedRecords` over Postgres. Makes no connection before the first call, and migrates the schema
/// on the first one.
///
/// A call takes at most the time to connect (3 s a host by default) and 5 s for each statement; [`Ledger::holds`] at
/// most 60 s a page and 10 s for the next row. After an error the next call connects anew.
pub struct PostgresLedger {
    pub(super) settings: ConnectSettings,
    pub(super) work: ReconnectingSession,
    /// The session that holds the shared lock of the epoch.
    pub(super) member: Option<Session>,
    /// The server's numbers of this instance's last member sessions, the newest last. The server may take some time to
    /// notice that one has ended.
    pub(super) own_sessions: VecDeque<i32>,
    /// The session that holds the openers' lock.
    pub(super) opener: Option<Session>,
    /// The session that holds the reconcilers' lock.
    pub(super) reconciler: Option<Session>,
    pub(super) rows: Rows,
    pub(super) codes: Option<Codes>,
    schema: bool,
}

impl PostgresLedger {
    /// A ledger at `settings`.
    pub fn new(settings: ConnectSettings) -> PostgresLedger {
        PostgresLedger {
            work: ReconnectingSession::new(settings.clone(), "keeper", WORK_LIMIT),
            settings,
            member: None,
            own_sessions: VecDeque::new(),
            opener: None,
            reconciler: None,
            rows: Rows::default(),
            codes: None,
            schema: false,
        }
    }

    /// The codes that all instances share.
    pub(super) fn codes(&mut self) -> Result<Codes, LedgerError> {
        if let Some(codes) = &self.codes {
            return Ok(codes.clone());
        }
        let codes = Codes::new(&self.code_key()?);
        Ok(self.codes.insert(codes).clone())
    }

    /// Migrates the schema, once in the life of this ledger.
    fn ready(&mut self) -> Result<(), LedgerError> {
        if !self.schema {
            self.work.run(async |wire| migrate(wire).await)?;
            self.schema = true;
        }
        Ok(())
    }

    /// Does `work` in the work session, with the schema there.
    pub(super) fn run<T>(&mut self, work: impl AsyncFnMut(&mut Wire) -> Result<T, Failure>) -> Result<T, LedgerError> {
        self.ready()?;
        Ok(self.work.run(work)?)
    }
}

impl PostgresLedger {
    /// One page of [`SharedRecords::page_of_holds`](crate::ledger::SharedRecords::page_of_holds).
    pub(super) fn read_page(
        &mut self,
        sale: SaleId,
        after: Option<HoldNumber>,
        each: &mut dyn FnMut(HoldRow),
    ) -> Result<Option<HoldNumber>, LedgerError> {
        self.ready()?;
        let after = after.map_or(Ok(-1), |number| signed(number.0))?;
        let (last, malformed) = self.page_of(sale, after, MIN_PAGE, each)?;
        say_malformed(sale, malformed);
        Ok(last.and_then(|last| u64::try_from(last).ok()).map(HoldNumber))
    }

    /// The holds after the number `after`, `page` checkouts of them; the page's last number, `None` if it was the last
    /// page; and the number of malformed rows.
    fn page_of(
        &mut self,
        sale: SaleId,
        after: i64,
        page: i64,
        each: &mut dyn FnMut(HoldRow),
    ) -> Result<(Option<i64>, u64), LedgerError> {
        let done = self.work.run_within(READ_LIMIT, async move |wire| {
            let sale = signed(sale.0)?;
            let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", READ_LIMIT.as_millis());
            wire.client.batch_execute(&begin).await?;
            let arguments: [(&(dyn ToSql + Sync), Type); 3] =
                [(&sale, Type::INT8), (&after, Type::INT8), (&page, Type::INT8)];
            let end = wire.client.query_typed(END_OF_PAGE, &arguments).await?;
            let last: Option<i64> = end.first().map(|row| row.try_get(0)).transpose()?.flatten();
            let upto = last.unwrap_or(i64::MAX);
            let arguments = [(sale, Type::INT8), (after, Type::INT8), (upto, Type::INT8)];
            let mut rows = pin!(wire.client.query_typed_raw(HOLDS_OF_SALE, arguments).await?);
            let mut malformed = 0u64;
            loop {
                let next = tokio::time::timeout(ROW_LIMIT, rows.next()).await;
                match next.map_err(|_| Failure::refused(format!("no further row within {ROW_LIMIT:?}")))? {
                    Some(row) => match hold_row(&row?) {
                        Some(hold) => each(hold),
                        None => malformed += 1,
                    },
                    None => break,
                }
            }
            wire.client.batch_execute("COMMIT").await?;
            Ok((last, malformed))
        });
        Ok(done?)
    }
}

fn say_malformed(sale: SaleId, malformed: u64) {
    if malformed > 0 {
        let sale = sale.named();
        tracing::error!(
            "{malformed} holds of {sale} in the ledger are malformed and are left out: another program wrote them"
        );
    }
}

impl Ledger for PostgresLedger {
    fn code_key(&mut self) -> Result<[u8; KEY_BYTES], LedgerError> {
        let fresh = random_key().map_err(|e| LedgerError::about("the system gives no random bytes for a key", e))?;
        self.run(async move |wire| {
            // The insert first, then a query with a new snapshot: the first instance's insert made the key of all.
            const MAKE: &str = "INSERT INTO ledger_code_key (key) VALUES ($1) ON CONFLICT DO NOTHING";
            wire.client.execute(MAKE, &[&fresh.as_slice()]).await?;
            let row = wire.client.query_one("SELECT key FROM ledger_code_key", &[]).await?;
            let key: &[u8] = row.try_get(0)?;
            key.try_into().map_err(|_| Failure::refused("the key in ledger_code_key has not 16 bytes"))
        })
    }

    fn identity(&mut self) -> Result<LedgerId, LedgerError> {
        let fresh = LedgerId::random()?.to_string();
        let id = self.run(async move |wire| {
            // As for the key: the first instance's insert counts.
            const MAKE: &str = "INSERT INTO ledger_identity (id) VALUES ($1) ON CONFLICT DO NOTHING";
            wire.client.execute(MAKE, &[&fresh]).await?;
            let row = wire.client.query_one("SELECT id FROM ledger_identity", &[]).await?;
            Ok(row.try_get::<_, String>(0)?)
        })?;
        LedgerId::from_row(&id)
    }

    fn new_instance(&mut self) -> Result<u64, LedgerError> {
        self.run(async |wire| {
            loop {
                let row = wire.client.query_one("SELECT nextval('instances')", &[]).await?;
                let instance = number(&row, 0)?;
                let (Some(first), Some(last)) = (hold_number(instance, 0), hold_number(instance, MAX_COUNTER)) else {
                    return Err(Failure::refused(format!("the instance {instance} is beyond {MAX_INSTANCE}")));
                };
                let used = wire.client.query_one(IS_USED, &[&signed(first.0)?, &signed(last.0)?]).await?;
                if !used.try_get::<_, bool>(0)? {
                    return Ok(instance);
                }
                tracing::warn!(
                    "the ledger has holds with the instance number {instance} already, so it was restored to an earlier time: \
                     this instance takes the next number"
                );
            }
        })
    }

    fn sales(&mut self, now_ms: u64) -> Result<Vec<SaleRow>, LedgerError> {
        self.run(async move |wire| {
            let query = format!("SELECT {SALE} FROM sales WHERE ends_at > $1 ORDER BY starts_at, sale_id");
            let rows = wire.client.query(&query, &[&PgTimestamp::of(now_ms)]).await?;
            rows.iter().map(sale_row).collect()
        })
    }

    fn plan(&mut self, terms: &Terms) -> Result<SaleRow, LedgerError> {
        let terms = *terms;
        self.run(async move |wire| {
            const PLAN: &str = "INSERT INTO sales (sale_id, items, user_limit, hold_ms, starts_at, ends_at) \
                VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
            let sale = signed(terms.sale.0)?;
            let items = signed(terms.items)?;
            let limit = signed(terms.user_limit)?;
            let hold = signed(terms.hold_ms)?;
            let starts = PgTimestamp::of(terms.starts_ms);
            let ends = PgTimestamp::of(terms.ends_ms);
            wire.client.execute(PLAN, &[&sale, &items, &limit, &hold, &starts, &ends]).await?;
            let query = format!("SELECT {SALE} FROM sales WHERE sale_id = $1");
            sale_row(&wire.client.query_one(&query, &[&sale]).await?)
        })
    }

    fn replan(&mut self, terms: &Terms) -> Result<bool, LedgerError> {
        let terms = *terms;
        self.run(async move |wire| {
            const REPLAN: &str = "UPDATE sales SET items = $2, user_limit = $3, hold_ms = $4 WHERE sale_id = $1 \
                AND NOT EXISTS (SELECT 1 FROM ledger_holds WHERE sale_id = $1)";
            let items = signed(terms.items)?;
            let limit = signed(terms.user_limit)?;
            let hold = signed(terms.hold_ms)?;
            Ok(wire.client.execute(REPLAN, &[&signed(terms.sale.0)?, &items, &limit, &hold]).await? == 1)
        })
    }

    fn mark_opened(&mut self, sale: SaleId) -> Result<(), LedgerError> {
        self.run(async move |wire| {
            const MARK: &str = "UPDATE sales SET opened = true WHERE sale_id = $1";
            match wire.client.execute(MARK, &[&signed(sale.0)?]).await? {
                0 => Err(Failure::refused(format!("the sale {sale} is not planned"))),
                _ => Ok(()),
            }
        })
    }

    fn holds(&mut self, sale: SaleId, each: &mut dyn FnMut(HoldRow)) -> Result<(), LedgerError> {
        self.ready()?;
        let mut after = -1;
        let mut malformed = 0;
        let mut page = MIN_PAGE;
        // In pages: the session of the openers' lock must be used every few seconds, however large the sale is. The pages
        // grow as long as they are read quickly, since each one costs some round trips.
        loop {
            let begun = Instant::now();
            let (last, odd) = self.page_of(sale, after, page, each)?;
            malformed += odd;
            let Some(last) = last else { break };
            after = last;
            page = if begun.elapsed() < QUICK_PAGE { (page * 2).min(MAX_PAGE) } else { MIN_PAGE };
            if self.opener.is_some() {
                self.still_opening()?;
            }
        }
        say_malformed(sale, malformed);
        Ok(())
    }
}

/// The columns that [`sale_row`] reads.
const SALE: &str = "sale_id, items, user_limit, hold_ms, starts_at, ends_at, opened";

/// Whether a sale that has not ended has holds with an instance's numbers, from the first (`$1`) to the last (`$2`). Then
/// the sequence was restored to an earlier moment, and reconciliation has written those rows since.
const IS_USED: &str = "SELECT EXISTS (SELECT 1 FROM sales s WHERE s.ends_at > now() AND EXISTS \
    (SELECT 1 FROM ledger_holds h WHERE h.sale_id = s.sale_id AND h.hold BETWEEN $1 AND $2))";

/// The fewest checkouts in a page: read in a fraction of a second.
const MIN_PAGE: i64 = 20_000;
/// The most checkouts in a page.
const MAX_PAGE: i64 = 160_000;
/// A page that was read within this time may be followed by one of twice its size.
const QUICK_PAGE: Duration = Duration::from_millis(500);

/// The number of the page's last hold: the `$3`rd hold after the number `$2`; null if there are fewer.
const END_OF_PAGE: &str = "SELECT (SELECT hold FROM ledger_holds WHERE sale_id = $1 AND hold > $2 ORDER BY hold OFFSET $3::bigint - 1 LIMIT 1)";

/// A hold's columns, then its purchase's; either half may be null.
const HOLDS_OF_SALE: &str = "\
    SELECT hold, h.user_id, h.item_id, h.created_at, h.expires_at, p.user_id, p.item_id, p.created_at \
    FROM (SELECT hold, user_id, item_id, created_at, expires_at FROM ledger_holds \
        WHERE sale_id = $1 AND hold > $2 AND hold <= $3) h \
    FULL JOIN (SELECT hold, user_id, item_id, created_at FROM ledger_purchases \
        WHERE sale_id = $1 AND hold > $2 AND hold <= $3) p USING (hold) \
    ORDER BY hold";

/// A malformed sale is an error: if it were left out, its items could not be sold. The schema's checks refuse such rows.
fn sale_row(row: &Row) -> Result<SaleRow, Failure> {
    let moment = |at| {
        row.try_get::<_, PgTimestamp>(at)
            .map_err(Failure::from)?
            .unix()
            .ok_or_else(|| Failure::refused("a sale's start or end is not a moment after 1970"))
    };
    Ok(SaleRow {
        terms: Terms {
            sale: SaleId(number(row, 0)?),
            items: number(row, 1)?,
            user_limit: number(row, 2)?,
            hold_ms: number(row, 3)?,
            starts_ms: moment(4)?,
            ends_ms: moment(5)?,
        },
        opened: row.try_get(6)?,
    })
}

/// `None` if the row is malformed: this service does not write such rows.
fn hold_row(row: &Row) -> Option<HoldRow> {
    let number = HoldNumber(u64::try_from(row.try_get::<_, i64>(0).ok()?).ok()?);
    let id = |at| Id::from_bytes(row.try_get::<_, &str>(at).ok()?.as_bytes()).ok();
    let moment = |at| row.try_get::<_, Option<PgTimestamp>>(at).ok();
    let purchased_ms = match moment(7)? {
        Some(at) => Some(at.unix()?),
        None => None,
    };
    let facts = match moment(3)? {
        Some(taken) => HoldFacts {
            user: id(1)?,
            item: id(2)?,
            taken_ms: taken.unix()?,
            expires_ms: moment(4)??.unix()?,
            purchased_ms,
        },
        None => HoldFacts { user: id(5)?, item: id(6)?, taken_ms: purchased_ms?, expires_ms: 0, purchased_ms },
    };
    Some(HoldRow { number, facts })
}
