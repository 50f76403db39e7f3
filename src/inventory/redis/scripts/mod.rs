//! The Lua wire: what this process and the scripts in `lua/` have to agree on.
//!
//! Owns the scripts' texts, the arguments of their calls and the forms of their replies, a file a script; what a sale's
//! state in Redis is made of ([`layout`], [`chunk`]), and what a look at one finds ([`condition`]). Invariants: no other
//! module names a key, a field, an argument or a mark of the wire; a reply that no script gives reads as `None` and is never
//! guessed at; a number that stands in Lua and in Rust is tied by a test (`tied_tests.rs`); nothing here does I/O. Leaves to
//! others: connections, waiting, and what follows from a reply.

pub mod checkout;
pub mod chunk;
pub mod close;
pub mod condition;
pub mod counts;
pub mod forget;
pub mod layout;
pub mod offer;
pub mod open;
pub mod probe;
pub mod purchase;
pub mod replan;

use crate::domain::SaleId;
use layout::Key;
use redis::{Cmd, RedisWrite, cmd};
use std::cell::RefCell;

/// Requests that one call decides. Natural batches are ten times smaller; it bounds the time that Redis is busy, and
/// keeps the script's longest argument list below what Lua can unpack (see `lua/checkout.lua`).
pub const MAX_BATCH: usize = 512;
/// Chunks of expired holds that one checkout call takes back, or few more: it takes back the holds of whole entries of the queue. Where
/// there may be more, it answers *again*.
pub const EXPIRED_CHUNKS: usize = 64;
/// The longest list that Lua unpacks into a call is 8,000 values long (`LUAI_MAXCSTACK`), of which some are in use.
pub const MAX_UNPACKED: usize = 7_900;

// checkout.lua: two values for each user who takes something and for each chunk that is written, two for each user whose hold has
// expired, in the chunks that are looked at and in those that an entry has besides, and the fields of the sale as a whole.
const _: () = assert!(
    2 * MAX_BATCH
        + 2 * chunk::MAX_CHUNKS as usize
        + 2 * chunk::SLOTS * (EXPIRED_CHUNKS + chunk::MAX_CHUNKS as usize - 1)
        + 2 * layout::field::ALL.len()
        < MAX_UNPACKED
);
// purchase.lua: two fields a hold.
const _: () = assert!(2 * MAX_BATCH + layout::field::ALL.len() < MAX_UNPACKED);
// The largest call has the most chunks that an entry of the queue may name.
const _: () = assert!(MAX_BATCH == chunk::SLOTS * chunk::MAX_CHUNKS as usize);

/// The text of a script that decides: what stands in front of it, and its own.
macro_rules! with_prelude {
    ($name:literal) => {
        concat!(
            include_str!("../../../../lua/time.lua"),
            include_str!("../../../../lua/chunk.lua"),
            include_str!(concat!("../../../../lua/", $name))
        )
    };
}
use with_prelude;

/// What a call of a script that decides begins with.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The script's digest.
    pub sha: &'a str,
    /// The sale that is asked.
    pub sale: SaleId,
    /// The epoch that the caller sells under.
    pub epoch: u64,
    /// The latest that Redis' clock may show, unix milliseconds: a clock that is ahead of it is taken to show this.
    pub latest_ms: u64,
}

/// Why a script did nothing. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no state.
    Missing,
    /// The state carries this epoch.
    Epoch(u64),
    /// The state does not sell.
    Closed,
    /// The sale is not on at this time (unix milliseconds).
    NotOn(u64),
    /// The queue is not the one that the state knows.
    Damaged,
}

/// Whether an error in place of a reply says that the script itself failed, because it cannot read a field of the state. Nothing was
/// changed. Errors that Redis gives where it refuses a command of the script (no memory, no permission, not enough replicas) say
/// nothing of the state.
pub fn is_own_failure(error: &str) -> bool {
    // Redis names such errors after the script: "ERR user_script:12: ..." by Lua, "ERR ... script: <digest>, on @user_script:12."
    // by a command. Redis 6 and its descendants say "ERR Error running script (call to f_...): @user_script: ...".
    const REFUSED: [&str; 4] =
        ["The user executing the script", "ACL failure", "Unknown Redis command", "not allowed from"];
    error.starts_with("ERR ")
        && error.contains("user_script:")
        && !error.contains("Error compiling script")
        && !REFUSED.iter().any(|words| error.contains(words))
}

/// Begins a call by digest, of a script that decides, in the reused memory of `cmd`.
fn begin(cmd: &mut Cmd, header: &Header<'_>) {
    let Header { sha, sale, epoch, latest_ms } = *header;
    cmd.clear();
    cmd.arg("EVALSHA").arg(sha).arg(2);
    // Written into the memory of the call: a String each would be all that a call allocates.
    cmd.write_arg_fmt(Key::state(sale));
    cmd.write_arg_fmt(Key::queue(sale));
    cmd.arg(epoch).arg(latest_ms);
}

thread_local! {
    /// The memory in which a worker writes one argument after the other. A thread's own, since no call waits.
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` with reused memory. It may hold anything, and `work` may not use it a second time meanwhile.
fn with_text(work: impl FnOnce(&mut Vec<u8>)) {
    TEXT.with_borrow_mut(work);
}

/// Begins a call that carries the script's `text`, as the keeper's rare calls do.
fn eval(text: &str, keys: &[&str]) -> Cmd {
    let mut eval = cmd("EVAL");
    eval.arg(text).arg(keys.len()).arg(keys);
    eval
}

/// Reads the reply of a script that says no more than that it is done.
fn read_done(reply: &[u8]) -> Option<Result<(), Refusal>> {
    if reply == b"K" { Some(Ok(())) } else { read_refusal(reply).map(Err) }
}

fn read_refusal(reply: &[u8]) -> Option<Refusal> {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse().ok();
    match reply.split_at_checked(2) {
        Some((b"E ", epoch)) => Some(Refusal::Epoch(number(epoch)?)),
        Some((b"T ", now)) => Some(Refusal::NotOn(number(now)?)),
        Some((b"C ", _)) => Some(Refusal::Closed),
        _ if reply == b"N" => Some(Refusal::Missing),
        _ if reply == b"Q" => Some(Refusal::Damaged),
        _ => None,
    }
}

/// The decimal number up to `end`, which is taken with it.
fn decimal(rest: &mut &[u8], end: u8) -> Option<u64> {
    let at = rest.iter().take(21).position(|b| *b == end)?;
    let (digits, tail) = rest.split_at_checked(at)?;
    *rest = tail.get(1..)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tied_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_a_script() {
        for error in [
            "ERR user_script:44: attempt to compare nil with number script: 3a5f, on @user_script:44.",
            "ERR value is not an integer or out of range script: 3a5f, on @user_script:5.",
            "ERR Error running script (call to f_3a5f): @user_script:44: user_script:44: attempt to compare nil with number",
        ] {
            assert!(is_own_failure(error), "{error}");
        }
        for error in [
            "ERR The user executing the script can't run this command or subcommand script: 3a5f, on @user_script:5.",
            "ERR ACL failure in script: User default has no permissions script: 3a5f, on @user_script:5.",
            "ERR Unknown Redis command called from script script: 3a5f, on @user_script:5.",
            "ERR Error compiling script (new function): user_script:1: '=' expected near 'x'",
            "ERR unknown command 'EVALSHA', with args beginning with: ",
            "OOM command not allowed when used memory > 'maxmemory'. script: 3a5f, on @user_script:5.",
            "NOREPLICAS Not enough good replicas to write. script: 3a5f, on @user_script:5.",
            "MISCONF Redis is configured to save RDB snapshots script: 3a5f, on @user_script:5.",
            "NOPERM User default has no permissions to run the 'evalsha' command",
            "BUSY Redis is busy running a script.",
            "LOADING Redis is loading the dataset in memory",
        ] {
            assert!(!is_own_failure(error), "{error}");
        }
    }

    #[test]
    fn refusals_and_nonsense() {
        let check = |reply: &[u8], want: Option<Refusal>| {
            assert_eq!(checkout::read(reply, 1).map(|r| r.unwrap_err()), want, "{reply:?}");
            assert_eq!(purchase::read(reply, 1).map(|r| r.unwrap_err()), want, "{reply:?}");
            assert_eq!(offer::read(reply, 1).map(|r| r.unwrap_err()), want, "{reply:?}");
            for read in [close::read, forget::read, replan::read] {
                assert_eq!(read(reply).map(|r| r.unwrap_err()), want, "{reply:?}");
            }
        };
        check(b"N", Some(Refusal::Missing));
        check(b"Q", Some(Refusal::Damaged));
        check(b"E 7", Some(Refusal::Epoch(7)));
        check(b"T 7", Some(Refusal::NotOn(7)));
        check(b"C closed", Some(Refusal::Closed));
        for nonsense in [&b""[..], b"E", b"E x", b"K 1", b"K 1 2 3\nHH", b"K x 2 3\nH", b"Z 1", b"K 1\nP", b"O"] {
            check(nonsense, None);
        }
        for read in [close::read, forget::read, replan::read] {
            assert_eq!(read(b"K"), Some(Ok(())));
        }
    }
}
