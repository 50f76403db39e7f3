//! The operator's document, `deploy/README.md`: its commands are run as they stand, and what it says of them is looked at.
//!
//! A block that no test here knows fails [`every_block_is_checked`].

use crate::docs::{blocks, read, root, run};
use crate::support::app::App;
use crate::support::clock;
use crate::support::http::Client;
use crate::support::ledger::{Ledger, Rows};
use crate::support::process::{self, poll};
use crate::support::servers::{Mode, Stack};
use std::time::Duration;

/// The beginning of each block, and its language.
const BLOCKS: [(&str, &str); 8] = [
    ("cargo build --release\nsudo install", "sh"),
    ("SELECT INFO TIME", "text"),
    ("(umask 077 && sqlite3", "sh"),
    ("mkdir -m 700 ./before-restore", "sh"),
    ("pg_dump ", "sh"),
    ("pg_restore ", "sh"),
    ("BEGIN;\nDELETE", "sql"),
    ("PRAGMA busy_timeout", "sql"),
];

/// The one block that begins so.
fn block(begins: &str) -> String {
    let (_, language) = BLOCKS.iter().find(|(known, _)| known.starts_with(begins)).unwrap();
    let text = read("deploy/README.md");
    let mut found = blocks(&text, language).into_iter().filter(|block| block.starts_with(begins));
    let block = found.next().unwrap_or_else(|| panic!("no block begins with {begins}"));
    assert!(found.next().is_none(), "two blocks begin with {begins}");
    block.to_owned()
}

#[test]
fn every_block_is_checked() {
    let text = read("deploy/README.md");
    assert_eq!(text.matches("\n```").count(), 2 * BLOCKS.len());
    BLOCKS.iter().for_each(|(begins, _)| drop(block(begins)));
}

#[test]
fn links_lead_somewhere() {
    let text = read("deploy/README.md");
    let headings: Vec<String> =
        text.lines().filter_map(|line| Some(line.strip_prefix("## ")?.to_lowercase().replace(' ', "-"))).collect();
    for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        match link.strip_prefix('#') {
            Some(heading) => assert!(headings.iter().any(|known| known == heading), "{link}"),
            None => assert!(root().join("deploy").join(link).exists(), "{link}"),
        }
    }
}

#[test]
fn the_metrics_that_are_named_exist() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().start();
    let metrics = Client::new(app.admin_addr()).get("/metrics").text();
    for document in ["README.md", "deploy/README.md", "tuning.md"] {
        let text = read(document);
        for rest in text.split("`flashsale_").skip(1) {
            let name = rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
            assert!(metrics.contains(&format!("# TYPE flashsale_{name} ")), "{document} names flashsale_{name}");
        }
    }
}

#[test]
fn the_installation_puts_files_where_the_unit_looks() {
    let (unit, commands) = (read("deploy/flashsale.service"), block("cargo build"));
    for line in commands.lines().filter(|line| line.starts_with("sudo install -m")) {
        let words: Vec<&str> = line.split(' ').collect();
        let (from, to) = (words[words.len() - 2], words[words.len() - 1]);
        assert!(from.starts_with("target/") || from == "/dev/null" || root().join(from).is_file(), "{from}");
        assert!(to.ends_with("/flashsale.service") || unit.contains(to), "the unit does not name {to}");
    }
    let known = format!("bash -n <<'EOF'\n{commands}\nEOF");
    run(&known, &[]);
}

#[test]
fn the_commands_of_redis_are_those_of_its_user() {
    let conf = read("deploy/redis.conf");
    let user = conf.lines().find(|line| line.starts_with("user flashsale ")).unwrap();
    let mut allowed: Vec<String> =
        user.split(' ').filter_map(|word| Some(word.strip_prefix('+')?.to_uppercase())).collect();
    let block = block("SELECT INFO TIME");
    let mut named: Vec<String> = block.split_whitespace().map(str::to_owned).collect();
    allowed.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, allowed);
}

fn purchased(ledger: &Ledger, code: &str) -> bool {
    ledger.rows().purchases.iter().any(|row| row.code == code)
}

/// Buys an item; its code.
fn buy(app: &App, user: &str) -> String {
    let mut client = app.client();
    let code = client.code(user, "i");
    assert_eq!(client.purchase(&code).status, 200);
    code
}

#[test]
fn an_embedded_ledger_is_backed_up_while_it_runs_and_restored() {
    let stack = Stack::new(Mode::Embedded);
    let builder = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds());
    let mut app = builder.start();
    let ledger = stack.ledger();
    let Ledger::Sqlite(path) = &ledger else { panic!("embedded") };
    let data = ("./data", path.parent().unwrap().display().to_string());
    let scratch = process::temp_dir();
    let backup = ("./ledger-backup", scratch.path().join("backup").display().to_string());
    let aside = ("./before-restore", scratch.path().join("aside").display().to_string());

    let first = buy(&app, "first");
    run(&block("(umask 077"), &[data.clone(), backup.clone()]);
    let later = buy(&app, "later");
    let mut still = app.client();
    assert_eq!(still.purchase(&first).error(), "already_purchased", "after somebody read the ledger");
    app.kill();

    run(&block("mkdir -m 700"), &[data, backup, aside]);
    app = builder.start();
    assert_eq!(app.client().purchase(&first).error(), "already_purchased");
    assert_ne!(app.client().purchase(&later).status, 200, "what came after the backup");
    let again = buy(&app, "again");
    assert!(again != first && again != later);
    assert_eq!(app.terminate(), 0);
    assert!(purchased(&ledger, &first) && purchased(&ledger, &again) && !purchased(&ledger, &later));
}

#[test]
fn a_postgres_is_dumped_and_restored() {
    let mut stack = Stack::new(Mode::Distributed);
    let builder = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds());
    let mut app = builder.start();
    let ledger = stack.ledger();
    let dsn = ("$POSTGRES_DSN", stack.postgres().dsn());
    let scratch = process::temp_dir();
    let dump = ("flashsale.dump", scratch.path().join("dump").display().to_string());

    let first = buy(&app, "first");
    poll("its row", Duration::from_secs(10), || purchased(&ledger, &first).then_some(()));
    run(&block("pg_dump"), &[dsn.clone(), dump.clone()]);
    let later = buy(&app, "later");
    assert_eq!(app.terminate(), 0);
    assert!(purchased(&ledger, &later));

    run(&block("pg_restore"), &[dsn, dump]);
    assert!(purchased(&ledger, &first) && !purchased(&ledger, &later), "as of the dump");
    app = builder.start();
    // Redis still has the running sale, and an instance writes what the ledger lacks.
    poll("the later purchase", Duration::from_secs(60), || purchased(&ledger, &later).then_some(()));
    assert_eq!(app.client().purchase(&later).error(), "already_purchased");
    buy(&app, "again");
    assert_eq!(app.terminate(), 0);
}

/// Puts a sale of ten days ago and one of seven days ago into the ledger, by `run`.
fn old_sales(run: &mut dyn FnMut(&str), time: &dyn Fn(u64) -> String, code: &str) {
    let now = clock::sale(1);
    for days in [10, 7] {
        let sale = now - days * 86_400;
        let (starts, ends) = (time(sale), time(sale + 3600));
        let terms = "sale_id, items, user_limit, hold_ms, starts_at, ends_at, opened";
        let hold = "sale_id, hold, code, user_id, item_id, created_at";
        for statement in [
            format!("sales ({terms}) VALUES ({sale}, 1, 1, 1, {starts}, {ends}, '1')"),
            format!("ledger_holds ({hold}, expires_at) VALUES ({sale}, 1, {code}, 'old', 'i', {starts}, {starts})"),
            format!("ledger_purchases ({hold}) VALUES ({sale}, 1, {code}, 'old', 'i', {starts})"),
        ] {
            run(&format!("INSERT INTO {statement}"));
        }
    }
}

fn old_sales_are_gone(app: &App, ledger: &Ledger, code: &str) {
    let Rows { attempts, purchases } = ledger.rows();
    let users = |user: &str| attempts.iter().filter(|row| row.user == user).count();
    assert_eq!((users("old"), users("new"), purchases.len()), (1, 1, 2));
    assert_eq!(app.client().purchase(code).error(), "already_purchased");
    buy(app, "next");
}

#[test]
fn old_sales_are_deleted_from_postgres() {
    let mut stack = Stack::new(Mode::Distributed);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let ledger = stack.ledger();
    let code = buy(&app, "new");
    poll("its row", Duration::from_secs(10), || purchased(&ledger, &code).then_some(()));
    let mut client = stack.postgres().client();
    let time = |seconds: u64| format!("to_timestamp({seconds})");
    old_sales(&mut |sql| client.batch_execute(sql).unwrap(), &time, "decode(repeat('00', 16), 'hex')");
    client.batch_execute(&block("BEGIN;")).unwrap();
    old_sales_are_gone(&app, &ledger, &code);
}

#[test]
fn old_sales_are_deleted_from_an_embedded_ledger() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let ledger = stack.ledger();
    let Ledger::Sqlite(path) = &ledger else { panic!("embedded") };
    let code = buy(&app, "new");
    let client = rusqlite::Connection::open(path).unwrap();
    let time = |seconds: u64| (seconds * 1000).to_string();
    old_sales(&mut |sql| client.execute_batch(sql).unwrap(), &time, "zeroblob(16)");
    client.execute_batch(&block("PRAGMA")).unwrap();
    old_sales_are_gone(&app, &ledger, &code);
}
