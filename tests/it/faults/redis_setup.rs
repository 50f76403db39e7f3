//! How Redis is set up: the user that the service may be given, and the append-only file.

use super::*;
use crate::docs::{read, root, sources};
use crate::support::servers::{Redis, Stack};
use std::collections::BTreeSet;

/// The commands that `deploy/redis.conf` allows.
fn allowed() -> BTreeSet<String> {
    let conf = read("deploy/redis.conf");
    let user = conf.lines().find(|line| line.starts_with("user flashsale ")).unwrap();
    user.split(' ').filter_map(|word| Some(word.strip_prefix('+')?.to_uppercase())).collect()
}

/// The words that follow `before` in a text, up to a quote.
fn quoted<'a>(text: &'a str, before: &'a str, quote: char) -> impl Iterator<Item = String> + 'a {
    text.split(before).skip(1).map(move |rest| rest.split(quote).next().unwrap().to_owned())
}

#[test]
fn the_user_may_run_what_the_sources_send() {
    // What the driver sends by itself where the address has a database, and around an atomic pipeline.
    let mut sent = BTreeSet::from(["SELECT", "MULTI", "EXEC"].map(str::to_owned));
    // The scripts that every worker loads are called by their digest.
    sent.insert("EVALSHA".to_owned());
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    for path in files {
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
        sent.extend(quoted(code, "cmd(\"", '"'));
        if code.contains(".arg(\"LOAD\")") {
            sent.remove("SCRIPT");
            sent.insert("SCRIPT|LOAD".to_owned());
        }
    }
    for entry in std::fs::read_dir(root().join("lua")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        sent.extend(quoted(&text, "redis.call('", '\''));
    }
    sent.remove("SCRIPT");
    // Allowed to every user.
    sent.remove("AUTH");
    assert_eq!(allowed(), sent, "deploy/redis.conf and the sources");
}

#[test]
fn a_user_with_these_commands_alone_is_enough() {
    let conf = root().join("deploy/redis.conf").display().to_string();
    let mut stack = Stack::on_redis(Redis::start_with(&["--include", &conf]));
    let (terms, history) = (plenty(), History::default());
    let restricted = format!("redis://flashsale:change-me@{}/0", stack.redis().addr());
    let app = with_terms(stack.app().env("REDIS_ADDR", &restricted), &terms).start();
    let other = with_terms(stack.app().env("REDIS_ADDR", &restricted), &terms).start();
    let ledger = stack.ledger();
    under_load(&[&app, &other], &history, &ledger, &terms, || stack.redis().wipe());
    // Redis writes down each command and key that was refused.
    let refused: redis::Value = stack.redis().run(&["ACL", "LOG"]);
    assert_eq!(refused, redis::Value::Array(Vec::new()), "refused by the ACL");
    let said = app.last_words();
    assert!(!said.contains("appendonly"), "{said}");
}

#[test]
fn a_redis_without_an_append_only_file_is_warned_of() {
    let warning = |args: &[&str]| {
        let stack = Stack::on_redis(Redis::start_with(args));
        let app = stack.app().start();
        let said = app.last_words();
        let lines: Vec<String> = said.lines().filter(|line| line.contains("appendonly")).map(str::to_owned).collect();
        lines
    };
    assert_eq!(warning(&["--appendonly", "yes"]), Vec::<String>::new());
    let lines = warning(&["--appendonly", "no"]);
    assert!(lines.len() == 1 && lines[0].contains(" WARN "), "{lines:?}");
    assert!(lines[0].contains("appendonly yes"), "{lines:?}");
}
