//! Numbered migrations of a ledger's schema.
//!
//! Owns the decision which migrations a database still needs, and whether this program may work with it at all.
//! Invariant: a database's version is the number of the last migration that was applied to it; migrations are applied in
//! order, each in one transaction that also notes the new version. Leaves locks and SQL to each ledger: no I/O here.

/// One step from a version to the next. Its place in the list, counted from 1, is the version that it leads to.
#[derive(Debug)]
pub(super) struct Migration {
    /// The name of its file in `sql/`, without `.sql`.
    pub name: &'static str,
    /// The oldest program, by its own last migration, that works with the result.
    pub compatible_from: i64,
    /// Its statements.
    pub sql: &'static str,
}

/// The version that a database has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SchemaVersion {
    /// The last migration that was applied; 0 for an empty database.
    pub version: i64,
    /// The oldest program that works with it.
    pub compatible_from: i64,
}

/// The database needs a newer program. Reads behind the database's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "has schema version {found}, which needs a flashsale that knows version {needed}; this one knows {known}: start a newer \
     flashsale"
)]
pub struct TooNew {
    /// The database's version.
    pub found: i64,
    /// The oldest program that works with it, by that program's last migration.
    pub needed: i64,
    /// This program's last migration.
    pub known: i64,
}

/// The next migration that a database at `found` needs, with the version that it leads to; `None` if it needs none.
/// A database of a later version than `all` is accepted if it names this program, or an older one, as compatible.
pub(super) fn next(
    found: SchemaVersion,
    all: &'static [Migration],
) -> Result<Option<(i64, &'static Migration)>, TooNew> {
    let known = all.len() as i64;
    let SchemaVersion { version, compatible_from } = found;
    if compatible_from > known {
        return Err(TooNew { found: version, needed: compatible_from, known });
    }
    let at = usize::try_from(version).unwrap_or(0);
    Ok(all.get(at).map(|migration| (version + 1, migration)))
}

/// That `all` are the files of `folder` below `sql/`, numbered without a gap.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) fn check_files(folder: &str, all: &[Migration]) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(folder);
    let mut names: Vec<String> =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, all.iter().map(|migration| format!("{}.sql", migration.name)).collect::<Vec<_>>());
    let mut compatible_from = 1;
    for (migration, version) in all.iter().zip(1..) {
        assert!(migration.name.starts_with(&format!("{version:04}_")), "{migration:?}");
        assert_eq!(migration.sql, std::fs::read_to_string(dir.join(format!("{}.sql", migration.name))).unwrap());
        assert!((compatible_from..=version).contains(&migration.compatible_from), "{migration:?}");
        compatible_from = migration.compatible_from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[Migration] = &[
        Migration { name: "0001_a", compatible_from: 1, sql: "" },
        Migration { name: "0002_b", compatible_from: 1, sql: "" },
    ];

    #[test]
    fn what_a_database_needs() {
        let next = |version, compatible_from| {
            next(SchemaVersion { version, compatible_from }, TWO)
                .map(|next| next.map(|(version, migration)| (version, migration.name)))
        };
        assert_eq!(next(0, 0), Ok(Some((1, "0001_a"))));
        assert_eq!(next(1, 1), Ok(Some((2, "0002_b"))));
        assert_eq!(next(2, 1), Ok(None));
        assert_eq!(next(2, 2), Ok(None));
        assert_eq!(next(9, 2), Ok(None), "an addition that older programs need not know");
        let too_new = TooNew { found: 9, needed: 3, known: 2 };
        assert_eq!(next(9, 3), Err(too_new));
        assert!(too_new.to_string().contains("needs a flashsale that knows version 3; this one knows 2"));
    }
}
