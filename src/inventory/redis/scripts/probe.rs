//! `lua/probe.lua`: writes what decisions write, and removes it again.

use redis::{Cmd, cmd};

/// The script.
pub const TEXT: &str = include_str!("../../../../lua/probe.lua");

/// The script's keys: named like a sale's, so that an ACL for sales covers them, and of no sale.
pub const KEYS: [&str; 2] = ["{sale:probe}:state", "{sale:probe}:queue"];

/// Loads the script; the reply is its digest.
pub fn load() -> Cmd {
    let mut load = cmd("SCRIPT");
    load.arg("LOAD").arg(TEXT);
    load
}

/// Calls the script by its digest, as the lanes call theirs: an ACL may allow one form and not the other. What it might leave
/// behind expires at `until`, unix seconds. Any reply that is not an error is a success.
pub fn call(digest: &str, until: u64) -> Cmd {
    let mut call = cmd("EVALSHA");
    call.arg(digest).arg(KEYS.len()).arg(&KEYS[..]).arg(until);
    call
}
