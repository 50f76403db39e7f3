//! The schema in Postgres: its version, and the migrations to later ones.
//!
//! Owns the migrations in `sql/postgres/` and the schema's advisory lock. Invariants: each migration is applied once, in
//! one transaction that holds the lock and also notes the new version; a database that needs none is only read, so a
//! role that may only read and write rows is enough for it. Leaves the rows of the tables to the other files.

use super::SCHEMA_CLASS;
use super::failure::Failure;
use super::session::Wire;
use crate::ledger::migrations::{Migration, SchemaVersion, next};
use tokio_postgres::Client;

const MIGRATIONS: &[Migration] = &[
    Migration { name: "0001_initial", compatible_from: 1, sql: include_str!("../../../sql/postgres/0001_initial.sql") },
    Migration {
        name: "0002_version_and_identity",
        compatible_from: 1,
        sql: include_str!("../../../sql/postgres/0002_version_and_identity.sql"),
    },
    Migration { name: "0003_reports", compatible_from: 1, sql: include_str!("../../../sql/postgres/0003_reports.sql") },
    Migration {
        name: "0004_quarantine",
        compatible_from: 1,
        sql: include_str!("../../../sql/postgres/0004_quarantine.sql"),
    },
    Migration { name: "0005_tallies", compatible_from: 1, sql: include_str!("../../../sql/postgres/0005_tallies.sql") },
    Migration { name: "0006_chunks", compatible_from: 6, sql: include_str!("../../../sql/postgres/0006_chunks.sql") },
];

/// Whether the version is noted, and whether all relations of the first version are there, which noted none. Read from the
/// catalogue itself: `to_regclass` may still answer as it would have before the lock was taken.
const PRESENT: &str = "SELECT coalesce(bool_or(relname = 'ledger_schema'), false), \
    count(*) FILTER (WHERE relname <> 'ledger_schema') = 9 \
    FROM pg_class WHERE pg_table_is_visible(oid) AND relname IN ('ledger_schema', \
    'sales', 'ledger_holds', 'ledger_purchases', 'ledger_misfits', 'ledger_fence', 'ledger_code_key', 'instances', \
    'checkout_attempts', 'purchases')";

/// Applies the migrations that the database lacks. Other instances, of this version or another, may run meanwhile.
pub(super) async fn migrate(wire: &mut Wire) -> Result<(), Failure> {
    let client = &wire.client;
    while next_after(found(client).await?)?.is_some() {
        let lock =
            format!("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_advisory_xact_lock({SCHEMA_CLASS}, 0)");
        client.batch_execute(&lock).await?;
        // Again, under the lock: another instance may have applied it meanwhile.
        let Some((version, migration)) = next_after(found(client).await?)? else {
            client.batch_execute("ROLLBACK").await?;
            continue;
        };
        let name = migration.name;
        apply(client, version, migration).await.map_err(|e| e.during(&format!("the schema's migration {name}")))?;
        tracing::info!("the ledger's schema is migrated to version {version} ({name})");
    }
    Ok(())
}

async fn apply(client: &Client, version: i64, migration: &Migration) -> Result<(), Failure> {
    client.batch_execute(migration.sql).await?;
    if version > 1 {
        const NOTE: &str = "UPDATE ledger_schema SET version = $1, compatible_from = $2";
        client.execute(NOTE, &[&version, &migration.compatible_from]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

fn next_after(found: SchemaVersion) -> Result<Option<(i64, &'static Migration)>, Failure> {
    next(found, MIGRATIONS).map_err(|too_new| Failure::refused(format!("the database {too_new}")))
}

/// The database's version; 0 if not all relations of the first version are there.
async fn found(client: &Client) -> Result<SchemaVersion, Failure> {
    let present = client.query_one(PRESENT, &[]).await?;
    if present.try_get(0)? {
        let row = client.query_opt("SELECT version, compatible_from FROM ledger_schema", &[]).await?;
        let row = row.ok_or_else(|| Failure::refused("the row of ledger_schema is missing"))?;
        return Ok(SchemaVersion { version: row.try_get(0)?, compatible_from: row.try_get(1)? });
    }
    let version = i64::from(present.try_get::<_, bool>(1)?);
    Ok(SchemaVersion { version, compatible_from: version })
}

#[cfg(test)]
mod tests {
    use super::MIGRATIONS;
    use crate::code::{KEY_BYTES, MAX_INSTANCE};

    #[test]
    fn the_migrations_are_the_files() {
        crate::ledger::migrations::check_files("postgres", MIGRATIONS);
    }

    #[test]
    fn the_schema_and_the_code_agree_on_the_members_locks() {
        use crate::ledger::postgres::{EPOCH_CLASS, MEMBERS_CLASS, OPENERS_CLASS};
        let schema: String = MIGRATIONS.iter().map(|migration| migration.sql).collect();
        assert!(schema.contains(&format!("IN ({EPOCH_CLASS}, {MEMBERS_CLASS}, {OPENERS_CLASS})")));
    }

    #[test]
    fn the_schema_and_the_code_agree_on_the_instances() {
        let schema: String = MIGRATIONS.iter().map(|migration| migration.sql).collect();
        assert!(schema.contains(&format!("MINVALUE 1 MAXVALUE {MAX_INSTANCE} NO CYCLE")));
        assert!(schema.contains(&format!("number BETWEEN 1 AND {}", i32::MAX)));
        assert!(schema.contains(&format!("octet_length(key) = {KEY_BYTES}")));
    }
}
