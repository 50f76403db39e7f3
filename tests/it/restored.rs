//! A ledger that is restored to an earlier moment: the codes given out since stay those of their own holds.

use crate::on_stacks;
use crate::support::clock;
use crate::support::http::Client;
use crate::support::ledger::Ledger;
use crate::support::servers::{Mode, Stack};
use std::path::{Path, PathBuf};

on_stacks! { embedded: a_code_names_one_hold; distributed: a_code_names_one_hold }

/// What a backup of the ledger keeps, in a form that can be put back.
enum Backup {
    File(PathBuf),
    Instances(i64),
}

fn back_up(stack: &Stack) -> Backup {
    match stack.ledger() {
        Ledger::Sqlite(path) => {
            let copy = path.with_extension("backup");
            copy_ledger(&path, &copy);
            Backup::File(copy)
        }
        Ledger::Postgres(dsn) => {
            let mut client = postgres::Client::connect(&dsn, postgres::NoTls).unwrap();
            Backup::Instances(client.query_one("SELECT last_value FROM instances", &[]).unwrap().get(0))
        }
    }
}

/// Restores `backup` while no instance runs.
fn restore(stack: &Stack, backup: &Backup) {
    match (stack.ledger(), backup) {
        (Ledger::Sqlite(path), Backup::File(copy)) => copy_ledger(copy, &path),
        (Ledger::Postgres(dsn), Backup::Instances(last)) => {
            let mut client = postgres::Client::connect(&dsn, postgres::NoTls).unwrap();
            client.batch_execute("TRUNCATE ledger_holds, ledger_purchases").unwrap();
            client.execute("SELECT setval('instances', $1)", &[last]).unwrap();
        }
        _ => panic!("another ledger's backup"),
    }
}

fn copy_ledger(from: &Path, to: &Path) {
    // Its process has ended in an orderly way, so all of it is in the one file.
    assert!(!from.with_extension("db-wal").exists());
    std::fs::copy(from, to).unwrap();
}

fn a_code_names_one_hold(mode: Mode) {
    let stack = Stack::new(mode);
    let length = clock::quiet_sale_seconds();
    let start = || stack.app().env("SALE_SECONDS", length).env("HOLD_SECONDS", 3600).start();
    let mut app = start();
    assert_eq!(app.terminate(), 0);
    let backup = back_up(&stack);
    let mut lives = Vec::new();
    for user in ["ann", "bob", "cid"] {
        restore(&stack, &backup);
        let mut app = start();
        let mut client: Client = app.client();
        // With Redis as it was: a number that it knows already would be refused.
        lives.push((user, [0, 1, 2].map(|_| client.code(user, user))));
        assert_eq!(app.terminate(), 0);
    }
    let codes: std::collections::HashSet<&String> = lives.iter().flat_map(|(_, codes)| codes).collect();
    assert_eq!(codes.len(), 9, "codes were given out twice: {lives:?}");
    // A code gives the item of its own hold, and of no other.
    let app = start();
    let mut client = app.client();
    for (user, codes) in &lives {
        for code in codes {
            let answer = client.purchase(code);
            match answer.status {
                200 => assert_eq!(answer.field("item_id"), *user),
                _ => assert_eq!(answer.error(), "sold_out", "its hold was lost: {}", answer.text()),
            }
        }
    }
    assert_eq!(client.purchase(&lives[2].1[0]).error(), "already_purchased");
}
