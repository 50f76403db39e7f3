//! The transactions that write rows under the fence.
//!
//! Owns their order: take the shared lock of the epoch, read the epoch, write the rows, commit. Invariant: the opener that
//! raises the epoch waits for that lock, so a transaction that saw its epoch in force commits before any sale is rebuilt.
//! Leaves connections and retries to the callers.

use super::copy::{HOLDS, PURCHASES, Rows, Table};
use super::failure::Failure;
use super::session::Wire;
use super::{EPOCH_CLASS, epoch_key};
use bytes::Bytes;
use futures_util::SinkExt;
use std::pin::pin;
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

/// How many bytes of a stream the driver is given at once: it copies each piece into a buffer that it keeps.
const PIECE_BYTES: usize = 64 << 10;

/// Writes `rows` with COPY: a row that is there already is a unique violation, and no row is written. `Stale`, and no row
/// written, unless each of `epochs` is the epoch in force.
pub(super) async fn plain(wire: &mut Wire, epochs: &[u64], rows: &Rows) -> Result<(), Failure> {
    begin(&wire.client, epochs, &rows.tally.insert()).await?;
    let (holds, purchases) = copies(wire).await?;
    copy(&wire.client, &holds, &rows.holds).await?;
    copy(&wire.client, &purchases, &rows.purchases).await?;
    wire.client.batch_execute("COMMIT").await?;
    Ok(())
}

/// Writes those of `rows` that are not there yet and returns how many they were. Otherwise like [`plain`]; costs two to
/// three times as much.
pub(super) async fn staged(wire: &mut Wire, epochs: &[u64], rows: &Rows) -> Result<u64, Failure> {
    // Without a tally: it would have to leave out the rows that are there.
    begin(&wire.client, epochs, "").await?;
    let mut new = 0;
    for (table, columns, rows) in
        [("ledger_holds", HOLDS, &rows.holds), ("ledger_purchases", PURCHASES, &rows.purchases)]
    {
        if rows.rows == 0 {
            continue;
        }
        let stage = format!("CREATE TEMPORARY TABLE flashsale_stage_{table} (LIKE {table}) ON COMMIT DROP");
        wire.client.batch_execute(&stage).await?;
        let into = format!("COPY flashsale_stage_{table} ({columns}) FROM STDIN (FORMAT binary)");
        let into = wire.client.prepare(&into).await?;
        copy(&wire.client, &into, rows).await?;
        // In the order of the key, so that two staged transactions cannot wait for each other.
        let insert = format!(
            "INSERT INTO {table} ({columns}) SELECT {columns} FROM flashsale_stage_{table} \
             ORDER BY sale_id, hold ON CONFLICT DO NOTHING"
        );
        new += wire.client.execute(&insert, &[]).await?;
    }
    wire.client.batch_execute("COMMIT").await?;
    Ok(new)
}

/// Begins a transaction that holds the shared lock of the first of `epochs` and has seen that all of them are the epoch in
/// force. One round trip with separate statements, of which `tally` is the last: the epoch is read with a snapshot that is taken
/// after the lock.
async fn begin(client: &Client, epochs: &[u64], tally: &str) -> Result<(), Failure> {
    let Some(first) = epochs.first() else { return Err(Failure::refused("no epoch to write under")) };
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
         SELECT pg_advisory_xact_lock_shared({EPOCH_CLASS}, {}); SELECT number FROM ledger_fence; {tally}",
        epoch_key(*first)?
    );
    let answers = client.simple_query(&begin).await?;
    let number = answers.iter().rev().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => row.get(0).and_then(|text| text.parse::<u64>().ok()),
        _ => None,
    });
    let current = number.ok_or_else(|| Failure::refused("the row of ledger_fence is missing"))?;
    if epochs.iter().any(|epoch| *epoch != current) {
        client.batch_execute("ROLLBACK").await?;
        return Err(Failure::Stale(current));
    }
    Ok(())
}

/// The COPY statements of both tables, prepared once in a session.
async fn copies(wire: &mut Wire) -> Result<(Statement, Statement), Failure> {
    if let Some(known) = &wire.copies {
        return Ok(known.clone());
    }
    let holds = wire.client.prepare(&format!("COPY ledger_holds ({HOLDS}) FROM STDIN (FORMAT binary)")).await?;
    let purchases = format!("COPY ledger_purchases ({PURCHASES}) FROM STDIN (FORMAT binary)");
    let prepared = (holds, wire.client.prepare(&purchases).await?);
    wire.copies = Some(prepared.clone());
    Ok(prepared)
}

/// Sends one table's stream.
async fn copy(client: &Client, into: &Statement, table: &Table) -> Result<(), Failure> {
    if table.rows == 0 {
        return Ok(());
    }
    let mut sink = pin!(client.copy_in::<_, Bytes>(into).await?);
    let mut rest = table.bytes.clone();
    let mut sent = Ok(());
    while !rest.is_empty() && sent.is_ok() {
        sent = sink.feed(rest.split_to(rest.len().min(PIECE_BYTES))).await;
    }
    // If Postgres refuses in the midst of the stream, the error of finishing names the cause, that of sending does not.
    let rows = match sink.as_mut().finish().await {
        Ok(rows) => rows,
        Err(refused) => return Err(refused.into()),
    };
    sent?;
    if rows != table.rows {
        return Err(Failure::refused(format!("postgres took {rows} rows of {}", table.rows)));
    }
    Ok(())
}
