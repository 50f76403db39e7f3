//! The embedded ledger's schema: its version, and the migrations to later ones.
//!
//! Owns the migrations in `sql/sqlite/`. Invariant: each migration is applied once, in one transaction that also notes
//! the new version. Leaves it to the folder's lock, which the caller holds, to keep other processes out.

use super::OpenError;
use crate::ledger::migrations::{Migration, SchemaVersion, next};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use std::path::Path;

const MIGRATIONS: &[Migration] = &[
    Migration { name: "0001_initial", compatible_from: 1, sql: include_str!("../../../sql/sqlite/0001_initial.sql") },
    Migration {
        name: "0002_version_and_identity",
        compatible_from: 1,
        sql: include_str!("../../../sql/sqlite/0002_version_and_identity.sql"),
    },
    Migration { name: "0003_reports", compatible_from: 1, sql: include_str!("../../../sql/sqlite/0003_reports.sql") },
];

/// Applies the migrations that the file at `path` lacks; an empty file gets all of them.
pub(super) fn migrate(db: &mut Connection, path: &Path) -> Result<(), OpenError> {
    loop {
        let found = found(db).map_err(|e| OpenError::Database { path: path.to_owned(), source: e.into() })?;
        let Some(found) = found else { return Err(OpenError::NoLedger { path: path.to_owned() }) };
        let step = next(found, MIGRATIONS).map_err(|source| OpenError::TooNew { path: path.to_owned(), source })?;
        let Some((version, migration)) = step else { return Ok(()) };
        apply(db, version, migration).map_err(|source| OpenError::Migration {
            path: path.to_owned(),
            name: migration.name,
            source,
        })?;
        if found.version > 0 {
            tracing::info!("the ledger's schema is migrated to version {version} ({})", migration.name);
        }
    }
}

fn apply(db: &mut Connection, version: i64, migration: &Migration) -> rusqlite::Result<()> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.execute_batch(migration.sql)?;
    if version > 1 {
        let note = "UPDATE meta SET schema_version = ?1, compatible_from = ?2";
        tx.execute(note, [version, migration.compatible_from])?;
    }
    tx.commit()
}

/// The file's version, 0 if it is empty; `None` if it is another program's.
fn found(db: &Connection) -> rusqlite::Result<Option<SchemaVersion>> {
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
    if count("SELECT count(*) FROM sqlite_schema")? == 0 {
        return Ok(Some(SchemaVersion { version: 0, compatible_from: 0 }));
    }
    if count("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'meta'")? == 0 {
        return Ok(None);
    }
    let column = |name: &str| count(&format!("SELECT count(*) FROM pragma_table_info('meta') WHERE name = '{name}'"));
    if column("schema_version")? == 0 {
        return Ok(None);
    }
    // The first version has no other column, and needs none: all programs know it.
    let compatible_from = if column("compatible_from")? == 0 { "1" } else { "compatible_from" };
    let query = format!("SELECT schema_version, {compatible_from} FROM meta");
    let read = |row: &rusqlite::Row<'_>| Ok(SchemaVersion { version: row.get(0)?, compatible_from: row.get(1)? });
    db.query_row(&query, [], read).optional()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_migrations_are_the_files() {
        crate::ledger::migrations::check_files("sqlite", super::MIGRATIONS);
    }
}
