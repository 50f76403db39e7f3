//! Whether a Redis can be relied on, by what its INFO says: pure.
//!
//! Owns the reasons for which a Redis is refused, or warned of. Invariant: it uses nothing but INFO, since many operators and
//! hosters forbid CONFIG; a field that INFO does not show is taken to be as it should. Leaves asking and reporting to the
//! store.

use crate::inventory::identity;

/// The oldest Redis that scripts are written for: effects are replicated, and `TIME` may come before a write.
const MIN_VERSION: u64 = 7;

/// The value of the field `name` in a reply to INFO, or nothing.
fn field<'i>(info: &'i str, name: &str) -> &'i str {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default().trim()
}

/// Why a Redis with this INFO cannot be used, as the end of a sentence about it.
pub(super) fn refusal(info: &str) -> Option<String> {
    let version = field(info, "redis_version");
    if version.split('.').next().and_then(|major| major.parse().ok()).is_none_or(|major: u64| major < MIN_VERSION) {
        return Some(format!("is version {version}; {MIN_VERSION} or later is needed"));
    }
    if field(info, "redis_mode") == "cluster" || field(info, "cluster_enabled") == "1" {
        return Some("is in cluster mode, which is not supported yet".into());
    }
    let policy = field(info, "maxmemory_policy");
    if !policy.is_empty() && policy != "noeviction" {
        return Some(format!("has maxmemory-policy {policy}, which may throw sales away; set noeviction"));
    }
    identity(info).err().map(|e| format!("cannot be used: {e}"))
}

/// What the operator of a Redis with this INFO should know, as the end of a sentence about it.
pub(super) fn warning(info: &str) -> Option<&'static str> {
    (field(info, "aof_enabled") == "0").then_some(
        "has no append-only file, so it loses its latest writes when it restarts: sales then stop until they are rebuilt \
         from Postgres, and answers that are not in Postgres yet are lost if the instance that gave them ends too. Set \
         appendonly yes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_info_says_decides() {
        let info = |lines: &str| {
            let common = "master_replid:abc\r\nrun_id:def\r\nrole:master\r\n";
            format!("# Server\r\n{}\r\n{common}", lines.replace(' ', "\r\n"))
        };
        for (lines, part) in [
            ("redis_version:6.2.1", "6.2.1"),
            ("redis_mode:standalone", "is version ;"),
            ("redis_version:7.0.0 redis_mode:cluster", "cluster"),
            ("redis_version:7.0.0 cluster_enabled:1", "cluster"),
            ("redis_version:7.0.0 maxmemory_policy:volatile-lru", "volatile-lru"),
        ] {
            let why = refusal(&info(lines));
            assert!(why.as_ref().is_some_and(|why| why.contains(part)), "{lines}: {why:?}");
        }
        for lines in ["redis_version:7.2.1", "redis_version:8.0.0 maxmemory_policy:noeviction cluster_enabled:0"] {
            assert_eq!(refusal(&info(lines)), None, "{lines}");
        }
        assert!(refusal("redis_version:7.0.0\r\nrole:slave\r\n").is_some());
        assert_eq!(warning("aof_enabled:1"), None);
        assert_eq!(warning("aof_current_size:0"), None);
        assert!(warning("x:1\r\naof_enabled:0\r\n").is_some());
    }
}
