//! Settings: a bad one stops the start with one line that names it, and every one is told of by `--help`.

use crate::support::app::{App, Builder, run_with_args};
use crate::support::process;
use crate::support::servers::{Mode, Stack};
use std::net::TcpListener;
use std::time::Duration;

/// All settings there are.
const VARIABLES: [&str; 17] = [
    "SERVER_PORT",
    "BIND_ADDR",
    "REDIS_ADDR",
    "POSTGRES_DSN",
    "DATA_DIR",
    "SALE_ITEMS",
    "USER_LIMIT",
    "SALE_SECONDS",
    "HOLD_SECONDS",
    "WORKERS",
    "ADMIN_ADDR",
    "LOG",
    "REDIS_TIMEOUT_MS",
    "PURCHASE_ACK",
    "MAX_CONNECTIONS",
    "DRAIN_SECONDS",
    "CATALOG_FILE",
];

/// Starts with a wrong setting: the exit code says that another start would fail as well.
fn refused(builder: &Builder, case: &str, words: &[&str]) -> String {
    let failure = builder.run_to_failure();
    assert_eq!(failure.code, 2, "{case}: {}", failure.stderr);
    check(builder, case, words)
}

/// Starts what should not start; the last line of its stderr has to have each of `words`.
fn check(builder: &Builder, case: &str, words: &[&str]) -> String {
    let failure = builder.run_to_failure();
    assert!(failure.elapsed < Duration::from_secs(5), "{case}: {:?}", failure.elapsed);
    assert!(failure.code > 0 && failure.code != 101, "{case}: {} {}", failure.code, failure.stderr);
    assert!(!failure.stderr.contains("panicked"), "{case}: {}", failure.stderr);
    let last = failure.stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    words.iter().for_each(|word| assert!(last.contains(word), "{case}: {word} is not in {:?}", failure.stderr));
    failure.stderr
}

#[test]
fn bad_values_are_named_in_one_line() {
    let closed = process::local(process::free_port()).to_string();
    let dsn = format!("host=127.0.0.1 port={} user=u dbname=d", process::free_port());
    let base = App::builder().env("REDIS_ADDR", &closed).env("POSTGRES_DSN", &dsn);
    for (name, values) in [
        ("SERVER_PORT", &["abc", "70000", "-1", ""][..]),
        ("WORKERS", &["0", "-1", "x"]),
        ("SALE_ITEMS", &["0", "-1", "1.5", "99999999999999999999"]),
        ("USER_LIMIT", &["0", "-1", "many"]),
        ("SALE_SECONDS", &["0", "-5", "1h"]),
        ("HOLD_SECONDS", &["0", "-5", "x"]),
        ("BIND_ADDR", &["nowhere", "1.2.3", "127.0.0.1:80"]),
        ("ADMIN_ADDR", &["8081", "nowhere", "127.0.0.1", "127.0.0.1:x"]),
        ("REDIS_ADDR", &["", "junk", "127.0.0.1", "127.0.0.1:x", "rediss://127.0.0.1:1", "redis://", "http://h:1"]),
        ("POSTGRES_DSN", &["", "junk", "host", "host=127.0.0.1 sslmode=maybe", "host=127.0.0.1 port=x"]),
        (
            "LOG",
            &[
                "flashsale=loudly",
                "",
                " ",
                "inf",
                "verbose",
                "info,",
                "warn,http",
                "flashsle=info",
                "info,may=debug",
                "flashsales=info",
            ],
        ),
        ("PURCHASE_ACK", &["", "always"]),
        ("MAX_CONNECTIONS", &["0", "x", "1000000"]),
        ("REDIS_TIMEOUT_MS", &["0", "x"]),
        ("DRAIN_SECONDS", &["-1", "3601", "5s", ""]),
        ("CATALOG_FILE", &["/nonexistent/catalog.json"]),
    ] {
        for value in values {
            let case = format!("{name}={value:?}");
            let stderr = refused(&base.clone().env(name, value), &case, &[name]);
            assert_eq!(stderr.lines().filter(|line| !line.trim().is_empty()).count(), 1, "{case}: {stderr}");
        }
    }
    refused(&base.clone().without("POSTGRES_DSN"), "Redis alone", &["POSTGRES_DSN"]);
    refused(&base.without("REDIS_ADDR"), "Postgres alone", &["REDIS_ADDR"]);
}

/// What a refused value is told to be instead: `--help` says the same.
const EXPECTED: [(&str, &str, &str); 16] = [
    ("DRAIN_SECONDS", "1h", "whole seconds, 0 to 3600"),
    ("SERVER_PORT", "0", "a port, 1 to 65535"),
    ("BIND_ADDR", "127.0.0.1:80", "an IP address, such as 0.0.0.0 or ::1"),
    ("ADMIN_ADDR", "8081", "an IP address and a port, such as 127.0.0.1:8081 or [::1]:8081"),
    ("SALE_ITEMS", "0", "a whole number, 1 to 1000000000000"),
    ("USER_LIMIT", "many", "a whole number, 1 to 1000000000000"),
    ("SALE_SECONDS", "1h", "whole seconds, 1 to 31622400"),
    ("HOLD_SECONDS", "1.5", "whole seconds, 1 to 31622400"),
    ("WORKERS", "129", "a whole number, 1 to 128"),
    ("REDIS_TIMEOUT_MS", "10", "whole milliseconds, 50 to 60000"),
    ("PURCHASE_ACK", "postgres", "redis or ledger"),
    ("MAX_CONNECTIONS", "32001", "a whole number, 1 to 32000"),
    ("LOG", "info\r,x", "off, error, warn, info, debug, trace, or a filter such as flashsale=debug"),
    ("DATA_DIR", " ", "a folder"),
    ("CATALOG_FILE", "\n", "a file"),
    ("REDIS_ADDR", "junk\r", "host:port or redis://[user:password@]host:port/db"),
];

#[test]
fn a_refusal_says_what_is_expected() {
    let help = String::from_utf8(run_with_args(&["--help"]).stdout).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, value, expected) in EXPECTED {
        let mut app = App::builder().env(name, value);
        if name == "REDIS_ADDR" {
            app = app.env("POSTGRES_DSN", "host=127.0.0.1");
        }
        let said = check(&app, name, &[name, expected]);
        // A value that may hold a password is not repeated; any other is, in a form that shows what is in it.
        let shown = format!("{:?}", value.trim());
        assert!(said.contains(&shown) != (name == "REDIS_ADDR" || value.trim().is_empty()), "{shown}: {said}");
        let option = help.split(" --").find(|option| option.contains(&format!("[env: {name}"))).unwrap();
        assert!(option.contains(expected), "{name}: {option}");
    }
    let health = run_with_args(&["health", "--admin-addr", " 127.0.0.1:0\r"]);
    let said = String::from_utf8(health.stderr).unwrap();
    let expected =
        "flashsale: ADMIN_ADDR: \"127.0.0.1:0\" is not accepted; expected an IP address and a port other than 0";
    assert!(health.status.code() == Some(2) && said.starts_with(expected), "{said}");
    let dsn = App::builder().env("REDIS_ADDR", "127.0.0.1:1").env("POSTGRES_DSN", "junk");
    check(&dsn, "a DSN", &["POSTGRES_DSN", "host=HOST dbname=NAME user=USER", "postgres://"]);
}

#[test]
fn blanks_around_a_value_do_not_count() {
    let stack = Stack::new(Mode::Embedded);
    for blank in [" ", "\r", "\n", "\t", "\u{a0}"] {
        let mut app = stack.app();
        for (name, value) in [("LOG", "info"), ("SALE_ITEMS", "77"), ("PURCHASE_ACK", "redis"), ("WORKERS", "1")] {
            app = app.env(name, format!("{blank}{value}{blank}"));
        }
        let app = app.start();
        app.says("selling on", Duration::from_secs(5));
    }
    let folder = process::temp_dir();
    let path = folder.path().join("data");
    let app = App::builder().env("DATA_DIR", format!("{}\r", path.display())).start();
    assert!(path.join("ledger.db").exists(), "{}", app.stderr());
}

#[test]
fn a_misspelt_variable_is_warned_about() {
    let stack = Stack::new(Mode::Embedded);
    let misspelt = [
        ("SALE_ITEM", "SALE_ITEMS"),
        ("SALE_TIEMS", "SALE_ITEMS"),
        ("USERLIMIT", "USER_LIMIT"),
        ("hold_seconds", "HOLD_SECONDS"),
        ("REDIS_ADDRESS", "REDIS_ADDR"),
        ("MAX_CONECTIONS", "MAX_CONNECTIONS"),
        ("PURCHASE_ACKS", "PURCHASE_ACK"),
        ("Log", "LOG"),
    ];
    let usual = [
        "PORT",
        "LOGNAME",
        "HOME",
        "PATH",
        "USER",
        "SHELL",
        "LANG",
        "LC_ALL",
        "TERM",
        "HOSTNAME",
        "POSTGRES_DB",
        "LOGS",
        "POSTGRES_USER",
        "POSTGRES_PASSWORD",
        "REDIS_PORT",
        "REDIS_HOST",
        "SERVER_HOST",
        "SERVER_NAME",
        "RUST_LOG",
        "REDIS_PORT_6379_TCP_ADDR",
        "XDG_DATA_DIRS",
        "PGPORT",
        "MAIL",
        "PWD",
        "SHLVL",
        "JOURNAL_STREAM",
        "LOG_LEVEL",
    ];
    let mut app = stack.app();
    for name in misspelt.iter().map(|(name, _)| *name).chain(usual) {
        app = app.env(name, "1");
    }
    let said = app.start().last_words();
    for (name, meant) in misspelt {
        let line =
            said.lines().find(|line| line.contains(&format!(" {name} "))).unwrap_or_else(|| panic!("{name}: {said}"));
        assert!(line.contains("WARN") && line.contains(meant), "{line}");
    }
    assert_eq!(said.matches("WARN").count(), misspelt.len(), "{said}");
}

#[test]
fn filters_for_the_log() {
    let stack = Stack::new(Mode::Embedded);
    for good in ["off", "DEBUG", "flashsale=debug", "flashsale::http", "warn,flashsale=info", "trace"] {
        let app = stack.app().env("LOG", good).start();
        drop(app);
    }
    let said = check(&stack.app().env("LOG", "verbose"), "no level", &["LOG", "verbose"]);
    ["off", "error", "warn", "info", "debug", "trace", "flashsale=debug"]
        .iter()
        .for_each(|w| assert!(said.contains(w)));
}

#[test]
fn what_is_not_text_is_named() {
    check(&App::builder().env_bytes("PURCHASE_ACK", b"x\xff"), "of a few words", &["PURCHASE_ACK"]);
    for name in ["LOG", "BIND_ADDR", "SALE_ITEMS", "POSTGRES_DSN"] {
        check(&App::builder().env_bytes(name, b"x\xff"), name, &[name, "UTF-8"]);
    }
    // A path may be any bytes.
    let both = App::builder().env_bytes("LOG", b"\xff").env_bytes("DATA_DIR", b"\xfe");
    assert!(!check(&both, "LOG and a path", &["LOG"]).contains("DATA_DIR"));
}

#[test]
fn workers_need_files_too() {
    let stack = Stack::new(Mode::Embedded);
    let many = stack.app().env("MAX_CONNECTIONS", 50);
    let app = many.clone().env("WORKERS", 128).start();
    assert_eq!(app.client().checkout("u", "i").status, 200);
    drop(app);
    for (workers, files) in [(40, 400), (128, 1000), (1, 200)] {
        let case = format!("{workers} workers and {files} files");
        check(&many.clone().env("WORKERS", workers).files(files), &case, &["WORKERS", "MAX_CONNECTIONS", "open files"]);
    }
    // What is asked for is enough.
    let app = many.env("WORKERS", 40).files(50 + 64 + 128 + 40 * 8).start();
    let clients: Vec<_> = (0..50).map(|n| (app.client(), n)).collect();
    for (mut client, n) in clients {
        assert_eq!(client.checkout(&format!("u{n}"), "i").status, 200);
    }
}

#[test]
fn servers_that_cannot_be_reached_are_named() {
    let mut stack = Stack::new(Mode::Distributed);
    let closed = process::free_port();
    let address = process::local(closed).to_string();
    assert_eq!(stack.app().env("REDIS_ADDR", &address).run_to_failure().code, 1, "another start may succeed");
    check(&stack.app().env("REDIS_ADDR", &address), "no Redis", &["REDIS_ADDR", &address]);
    let dsn = format!("host=127.0.0.1 port={closed} user=postgres dbname=flashsale");
    check(&stack.app().env("POSTGRES_DSN", dsn), "no Postgres", &["POSTGRES_DSN", &closed.to_string()]);
    let dsn = format!("{} dbname=nosuch", stack.postgres().dsn());
    check(&stack.app().env("POSTGRES_DSN", dsn), "no such database", &["POSTGRES_DSN", "nosuch"]);

    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    check(&stack.app().env("SERVER_PORT", port), "a taken port", &["SERVER_PORT", &port.to_string()]);
    check(&stack.app().env("ADMIN_ADDR", process::local(port)), "a taken port", &["ADMIN_ADDR", &port.to_string()]);
    let (free, everywhere) = (process::local(process::free_port()), stack.app().env("BIND_ADDR", "0.0.0.0"));
    let app = everywhere.env("SERVER_PORT", free.port()).env("ADMIN_ADDR", free);
    check(&app, "one port for both", &["ADMIN_ADDR", &free.to_string(), "SERVER_PORT"]);
}

#[test]
fn silent_servers_are_named() {
    let mut stack = Stack::new(Mode::Distributed);
    // The kernel completes their handshakes, and no process answers.
    let silent = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let [one, two] = silent.each_ref().map(|listener| listener.local_addr().unwrap());
    check(&stack.app().env("REDIS_ADDR", one), "a silent Redis", &["REDIS_ADDR", &one.to_string(), "no answer within"]);
    let dsn = |hosts: &str, ports: String| format!("host={hosts} port={ports} user=postgres dbname=flashsale");
    let port = one.port().to_string();
    let app = stack.app().env("POSTGRES_DSN", dsn("127.0.0.1", port.clone()));
    check(&app, "a silent Postgres", &["POSTGRES_DSN", &port, " within "]);
    let both = format!("{port},{}", two.port());
    let app = stack.app().env("POSTGRES_DSN", dsn("127.0.0.1,127.0.0.1", both.clone()));
    check(&app, "two silent hosts", &["POSTGRES_DSN", &both, "no answer within"]);
    let app = app.env("REDIS_ADDR", two);
    check(&app, "nobody answers", &["REDIS_ADDR", &two.to_string(), "no answer within"]);
    // A start that failed has used up no instance number: those are for ever.
    let used: bool = stack.postgres().client().query_one("SELECT is_called FROM instances", &[]).unwrap().get(0);
    assert!(!used);
}

#[test]
fn secrets_are_not_printed() {
    let port = process::free_port();
    let base = App::builder()
        .env("REDIS_ADDR", format!("redis://shop:hunter2@127.0.0.1:{port}/0"))
        .env("POSTGRES_DSN", format!("host=127.0.0.1 port={port} user=u password=hunter2 dbname=d"));
    assert!(!check(&base, "closed ports", &[]).contains("hunter2"));
    let bad = base.env("POSTGRES_DSN", "host=127.0.0.1 password=hunter2 port=x");
    assert!(!check(&bad, "a bad DSN", &["POSTGRES_DSN"]).contains("hunter2"));
}

#[test]
fn help_names_every_variable() {
    let help = run_with_args(&["--help"]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    VARIABLES.into_iter().for_each(|name| assert!(text.contains(name), "{name} is not in:\n{text}"));
    let version = run_with_args(&["--version"]);
    assert!(version.status.success());
    assert!(String::from_utf8(version.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    let unknown = run_with_args(&["--no-such-flag"]);
    assert!(!unknown.status.success() && unknown.stdout.is_empty());
}
