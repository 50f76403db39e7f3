//! What the program is shipped with: the load test's verdict, the image and the composed services.

use crate::docs::{read, root};
use crate::support::app::App;
use crate::support::clock;
use crate::support::ledger::Ledger;
use crate::support::process::{self, Program, exit_code, poll};
use crate::support::servers::{Mode, Stack};
use rustix::process::Signal;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

fn loadtest(scratch: &Path) -> Command {
    // Where the tests run in the background, SIGINT is ignored, and a shell that is born so cannot change it.
    let mut command = process::command(Path::new("env"), "KILL", None);
    command.arg("--default-signal=INT").arg(root().join("wrk/loadtest.sh"));
    for name in ["HOST", "POSTGRES_DSN", "DATA_DIR"] {
        command.env_remove(name);
    }
    command.env("SECONDS", "1").env("THREADS", "1").env("CONNECTIONS", "8").env("TMPDIR", scratch);
    command.env("CODES", scratch.join("codes.txt")).current_dir(scratch);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The folder of an embedded stack.
fn data_dir(stack: &Stack) -> PathBuf {
    let Ledger::Sqlite(path) = stack.ledger() else { panic!("not embedded") };
    path.parent().unwrap().to_owned()
}

fn host(app: &App) -> String {
    format!("http://{}", app.addr())
}

#[test]
fn the_verdict_sees_what_is_wrong() {
    let stack = Stack::new(Mode::Embedded);
    let sale_seconds = clock::quiet_sale_seconds();
    let app = stack.app().env("SALE_SECONDS", sale_seconds).env("SALE_ITEMS", 50).env("USER_LIMIT", 2).start();
    let (data, scratch) = (data_dir(&stack), process::temp_dir());
    let run = || loadtest(scratch.path()).env("HOST", host(&app)).env("DATA_DIR", &data).output().unwrap();
    let good = run();
    assert_eq!(good.status.code(), Some(0), "{}", said(&good));

    // The same sale again: nothing is left to do, and nothing is wrong with that.
    let again = run();
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert!(said(&again).contains("no unused code"), "{}", said(&again));

    // A thief in the ledger: he has more than he may, and more is sold than there was.
    let ledger = rusqlite::Connection::open(data.join("ledger.db")).unwrap();
    let sale = i64::try_from(clock::sale(sale_seconds)).unwrap();
    for hold in 1..=3 {
        for (table, more) in [("ledger_holds", ", 0"), ("ledger_purchases", "")] {
            let sql = format!("INSERT INTO {table} VALUES (?1, ?2, zeroblob(16), 'thief', 'i', 0{more})");
            ledger.execute(&sql, (sale, hold)).unwrap();
        }
    }
    let bad = run();
    let words = said(&bad);
    assert_eq!(bad.status.code(), Some(1), "{words}");
    for line in ["WRONG  sold: 53 ", "WRONG  taken: 53 ", "WRONG  no user is over the limit of 2: the most is 3"] {
        assert!(words.contains(line), "{line} is not in {words}");
    }
    assert!(words.contains("verdict: WRONG"), "{words}");

    // A server that refuses every request: its ledger has no rows, and the verdict is not good.
    let refusing = Stack::new(Mode::Embedded);
    let catalog = scratch.path().join("catalog");
    std::fs::write(&catalog, "{\"id\":\"none of them\",\"name\":\"n\",\"image\":\"/i\"}\n").unwrap();
    let nothing = refusing.app().env("SALE_SECONDS", sale_seconds).env("CATALOG_FILE", catalog.display()).start();
    let mut useless = loadtest(scratch.path());
    let useless = useless.env("HOST", host(&nothing)).env("DATA_DIR", data_dir(&refusing)).output().unwrap();
    assert_eq!(useless.status.code(), Some(1), "{}", said(&useless));
    assert!(said(&useless).contains("WRONG  the server answers"), "{}", said(&useless));

    // What was granted has to be on record: here the ledger of another server is looked at.
    let other = Stack::new(Mode::Embedded);
    let elsewhere = other.app().env("SALE_SECONDS", sale_seconds).start();
    let mut strange = loadtest(scratch.path());
    strange.env("HOST", host(&elsewhere)).env("DATA_DIR", &data).env("PATIENCE", "1");
    let strange = strange.output().unwrap();
    assert_eq!(strange.status.code(), Some(1), "{}", said(&strange));
    assert!(said(&strange).contains("WRONG  each checkout that was granted"), "{}", said(&strange));
}

#[test]
fn a_load_test_that_cannot_be_made_says_why() {
    let scratch = process::temp_dir();
    let (bare, empty) = (scratch.path().join("bin"), scratch.path().join("empty"));
    std::fs::create_dir(&bare).unwrap();
    std::fs::create_dir(&empty).unwrap();
    for program in ["bash", "dirname", "env", "printenv"] {
        symlink(process::in_path(program).unwrap(), bare.join(program)).unwrap();
    }
    let closed = process::local(process::free_port()).to_string();
    let dsn = format!("host=127.0.0.1 port={} user=u dbname=d", process::free_port());
    let (bare, empty) = (bare.display().to_string(), empty.display().to_string());
    for (settings, words) in [
        (&[("PATH", bare.as_str())][..], &["apt-get install wrk jq postgresql-client"][..]),
        (&[("SECONDS", "soon")], &["seconds", "'soon'"]),
        (&[("SECONDS", "0")], &["seconds", "'0'"]),
        (&[("THREADS", "-1")], &["threads"]),
        (&[("CONNECTIONS", "2"), ("THREADS", "4")], &["connections (2)", "threads (4)"]),
        (&[("DATA_DIR", "/x"), ("POSTGRES_DSN", &dsn)], &["not both"]),
        (&[("DATA_DIR", &empty)], &["no ledger to read in DATA_DIR"]),
        (&[("HOST", &closed), ("POSTGRES_DSN", &dsn)], &["the ledger cannot be asked"]),
    ] {
        let output = loadtest(scratch.path()).envs(settings.iter().copied()).output().unwrap();
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{settings:?}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{settings:?}: {word} is not in {text}"));
    }
    let unknown = loadtest(scratch.path()).arg("fast").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2), "{}", said(&unknown));
    let help = loadtest(scratch.path()).arg("--help").output().unwrap();
    assert!(help.status.success() && said(&help).contains("DATA_DIR=./data wrk/loadtest.sh"), "{}", said(&help));
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let data = data_dir(&stack);
    let mut nowhere = loadtest(scratch.path());
    nowhere.env("HOST", host(&app)).env("DATA_DIR", &data).env("CODES", "/nowhere/codes.txt");
    let nowhere = nowhere.output().unwrap();
    assert_eq!(nowhere.status.code(), Some(2), "{}", said(&nowhere));
    assert!(said(&nowhere).contains("cannot be written to /nowhere/codes.txt"), "{}", said(&nowhere));
    let nobody = loadtest(scratch.path()).env("HOST", format!("http://{closed}")).env("DATA_DIR", data).output();
    let nobody = nobody.unwrap();
    assert_eq!(nobody.status.code(), Some(2), "{}", said(&nobody));
    assert!(said(&nobody).contains(&closed), "{}", said(&nobody));
}

#[test]
fn a_load_test_stops_when_it_is_told_to() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let (scratch, log) = (process::temp_dir(), process::temp_dir());
    let mut command = loadtest(scratch.path());
    command.env("HOST", host(&app)).env("DATA_DIR", data_dir(&stack)).env("SECONDS", "60");
    let log = log.path().join("log");
    let mut running = Program::start("loadtest", &mut command, Some(&log));
    let is_wrk = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "wrk\n");
    let wrk = poll("wrk", Duration::from_secs(10), || process::family(running.pid()).into_iter().find(is_wrk));
    let status = running.end(Signal::INT, Duration::from_secs(5));
    assert_eq!(exit_code(status), 130, "{}", std::fs::read_to_string(&log).unwrap());
    poll("the end of wrk", Duration::from_secs(3), || (!is_wrk(&wrk)).then_some(()));
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "temporary files");
}

fn compose(args: &[&str]) -> String {
    compose_with(args, &[])
}

fn compose_with(args: &[&str], settings: &[(&str, &str)]) -> String {
    let mut command = Command::new("docker-compose");
    let output = command.args(args).envs(settings.iter().copied()).current_dir(root()).output();
    let output = output.unwrap_or_else(|e| panic!("docker-compose, which tests/run installs: {e}"));
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_composed_services_are_those_of_the_documents() {
    let services = compose(&["--profile", "load", "config", "--services"]);
    let mut services: Vec<&str> = services.lines().collect();
    services.sort_unstable();
    assert_eq!(services, ["app", "postgres", "redis", "wrk"]);
    let config = compose(&["--profile", "load", "config"]).replace('"', "");
    for line in [
        "REDIS_ADDR: redis:6379",
        "POSTGRES_DSN: postgres://postgres:postgres@postgres/flashsale?sslmode=disable",
        "POSTGRES_DB: flashsale",
        "POSTGRES_USER: postgres",
        "POSTGRES_PASSWORD: postgres",
        "published: 8080",
        "condition: service_healthy",
        "- noeviction",
        "- --appendonly",
        "ADMIN_ADDR: 0.0.0.0:8081",
        "- 127.0.0.1:8081:8081",
        "working_dir: /wrk",
    ] {
        assert!(config.contains(line), "{line} is not in\n{config}");
    }
    // Open to this machine alone: the admin address, and the servers whose passwords are known.
    let file = read("docker-compose.yml");
    let mut ports: Vec<&str> = file.lines().filter_map(|line| line.trim().strip_prefix("ports: ")).collect();
    ports.sort_unstable();
    let [postgres, redis] = [r#"["127.0.0.1:5432:5432"]"#, r#"["127.0.0.1:6379:6379"]"#];
    assert_eq!(ports, [postgres, redis, r#"["8080:8080", "127.0.0.1:8081:8081"]"#]);

    let readme = read("README.md");
    let lines: Vec<&str> = readme.lines().filter(|line| line.starts_with("docker-compose ")).collect();
    assert_eq!(lines[0], "docker-compose up -d");
    let words: Vec<&str> = lines[1].split(' ').collect();
    assert_eq!(words[..4], ["docker-compose", "run", "--rm", "wrk"]);
    let script = words.iter().position(|word| *word == "-s").map(|at| words[at + 1]).unwrap();
    assert!(root().join("wrk").join(script).is_file(), "{script}");
    assert_eq!(words.last(), Some(&"http://app:8080"));
    assert!(read("wrk/Dockerfile").contains("ENTRYPOINT [\"wrk\"]"));
}

#[test]
fn composed_services_take_settings_from_the_shell() {
    let file = read("docker-compose.yml");
    let given: Vec<(&str, &str)> = file
        .lines()
        .filter_map(|line| {
            let (name, value) = line.trim().split_once(": ${")?;
            let (from, default) = value.strip_suffix('}')?.split_once(":-")?;
            if name == "stop_grace_period" {
                // A key of Compose's own, not a setting of the service.
                assert_eq!(from, "STOP_GRACE_PERIOD");
                return None;
            }
            assert_eq!(name, from);
            Some((name, default))
        })
        .collect();
    for name in ["SALE_ITEMS", "USER_LIMIT", "SALE_SECONDS", "HOLD_SECONDS", "PURCHASE_ACK"] {
        assert!(given.iter().any(|(known, _)| *known == name), "{name} cannot be set");
    }
    // The same defaults as without Docker.
    let readme = read("README.md");
    for (name, default) in &given {
        assert!(
            readme.contains(&format!("| `{name}` | `{default}` |")),
            "{name} is {default} in docker-compose.yml only"
        );
    }
    let config = compose_with(&["config"], &[("SALE_ITEMS", "77"), ("HOLD_SECONDS", "")]).replace(['"', '\''], "");
    for line in ["SALE_ITEMS: 77", "HOLD_SECONDS: 300"] {
        assert!(config.contains(line), "{line} is not in\n{config}");
    }
}

#[test]
fn the_image_gets_what_the_build_reads() {
    let (dockerfile, ignored) = (read("Dockerfile"), read(".dockerignore"));
    let mut files = vec!["Cargo.toml".to_owned(), "Cargo.lock".to_owned(), "src".to_owned()];
    let found =
        Command::new("grep").args(["-rhoE", r#"include_(str|bytes)!\("[^"]+"#, "src"]).current_dir(root()).output();
    for line in String::from_utf8(found.unwrap().stdout).unwrap().lines() {
        let inside = line.split('"').nth(1).unwrap().trim_start_matches("../");
        files.push(inside.split('/').next().unwrap().to_owned());
    }
    assert!(files.contains(&"lua".to_owned()) && files.contains(&"sql".to_owned()), "{files:?}");
    for file in files {
        let copied = dockerfile.lines().any(|l| l.starts_with("COPY ") && l.split(' ').any(|word| word == file));
        assert!(copied, "{file} is not copied");
        assert!(ignored.lines().any(|line| line == format!("!{file}")), ".dockerignore leaves {file} out");
    }
    // As numbers: Kubernetes cannot tell whether a name is root's.
    for file in ["Dockerfile", "wrk/Dockerfile"] {
        let text = read(file);
        let user = text.lines().rfind(|line| line.starts_with("USER ")).unwrap();
        let ids: Vec<u32> = user["USER ".len()..].split(':').map(|id| id.parse().unwrap()).collect();
        assert!(ids.len() == 2 && !ids.contains(&0), "{file}: {user}");
    }
}

/// The image's health check, as it runs beside an instance with `settings`.
fn health_check(settings: &[(&str, String)]) -> Output {
    let dockerfile = read("Dockerfile");
    let line = dockerfile.lines().find(|line| line.starts_with("HEALTHCHECK ")).unwrap();
    let words: Vec<String> = serde_json::from_str(line.split_once(" CMD ").unwrap().1).unwrap();
    let program = if words[0] == "flashsale" { env!("CARGO_BIN_EXE_flashsale") } else { &words[0] };
    Command::new(program).args(&words[1..]).env_clear().envs(settings.iter().cloned()).output().unwrap()
}

#[test]
fn the_image_knows_whether_it_is_alive() {
    let data = process::temp_dir();
    for (public, admin) in [
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.2", "0.0.0.0"),
        ("::", "[::]"),
        ("::1", "[::1]"),
        ("127.0.0.1", "127.0.0.3"),
    ] {
        let ports = [process::free_port(), process::free_port()];
        let settings = [
            ("BIND_ADDR", public.to_owned()),
            ("SERVER_PORT", ports[0].to_string()),
            ("ADMIN_ADDR", format!("{admin}:{}", ports[1])),
            ("DATA_DIR", data.path().display().to_string()),
            ("DRAIN_SECONDS", "0".to_owned()),
        ];
        let mut command = process::command(Path::new(env!("CARGO_BIN_EXE_flashsale")), "KILL", None);
        command.env_clear().envs(settings.iter().cloned());
        let mut program = Program::start("flashsale", &mut command, Some(&data.path().join("log")));
        let begun = std::time::Instant::now();
        let last = loop {
            let last = health_check(&settings);
            if last.status.success() || begun.elapsed() > Duration::from_secs(10) {
                break last;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(last.status.success(), "BIND_ADDR={public} ADMIN_ADDR={admin}: {}", said(&last));
        program.end(Signal::TERM, Duration::from_secs(20));
        assert!(!health_check(&settings).status.success(), "a server that has ended");
    }
}
