//! The commands and the tables of the documents are compared with the program.
//!
//! A block of shell that no test knows how to check fails the tests.

use crate::support::app::{App, run_with_args};
use crate::support::clock;
use crate::support::ledger::Ledger;
use crate::support::process;
use crate::support::servers::{Mode, Stack};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The fenced blocks of a document that are marked with `language`.
pub fn blocks<'a>(document: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    document.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

/// How a block of shell is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Start,
    Bench,
    Shop,
    LoadEmbedded,
    LoadOther,
    StartDistributed,
    Operator,
    Compose,
    Docker,
    Script,
}

fn kind(block: &str) -> Option<Kind> {
    let starts = |with: &str| block.starts_with(with);
    Some(match block {
        "cargo run --release" => Kind::Start,
        "cargo bench" => Kind::Bench,
        "tests/run" | ".ci/run" | "benches/saturation" | "benches/instructions" => Kind::Script,
        "DATA_DIR=./data wrk/loadtest.sh" => Kind::LoadEmbedded,
        _ if starts("HOST=") && block.ends_with(" wrk/loadtest.sh") => Kind::LoadOther,
        _ if starts("REDIS_ADDR=") && block.ends_with(" cargo run --release") => Kind::StartDistributed,
        _ if starts("code=$(curl ") => Kind::Shop,
        _ if starts("curl -s http://127.0.0.1:8081/") => Kind::Operator,
        _ if block.lines().all(|line| line.starts_with("docker-compose ")) => Kind::Compose,
        _ if block.lines().all(|line| line.starts_with("docker ")) => Kind::Docker,
        _ => return None,
    })
}

/// The one block of README.md of that kind.
fn block(wanted: Kind) -> String {
    let readme = read("README.md");
    let mut found = blocks(&readme, "sh").into_iter().filter(|block| kind(block) == Some(wanted));
    let block = found.next().unwrap_or_else(|| panic!("README.md has no {wanted:?}"));
    assert!(found.next().is_none(), "README.md has two of {wanted:?}");
    block.to_owned()
}

/// Runs shell from the repository's root as a reader would type it, with `replaced` in place of addresses and folders.
pub fn run(block: &str, replaced: &[(&str, String)]) -> Output {
    let mut text = block.to_owned();
    for (from, to) in replaced {
        assert!(text.contains(from), "{from} is not in {block}");
        text = text.replace(from, to);
    }
    let scratch = process::temp_dir();
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &text]).current_dir(root());
    command.env("SECONDS", "1").env("THREADS", "1").env("CONNECTIONS", "16");
    command.env("CODES", scratch.path().join("codes.txt")).env("TMPDIR", scratch.path());
    let output = command.output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{text}\n{}\n{}", said(&output.stdout), said(&output.stderr));
    output
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn load_is_good(output: &Output) {
    let said = stdout(output);
    assert!(said.ends_with("verdict: good\n") && !said.contains("WRONG"), "{said}");
    for line in ["requests a second", "latency, 99 %", "answers 200", "new rows in the ledger"] {
        assert!(said.contains(line), "{said}");
    }
    // The purchases of the second half were made with the codes that were exported.
    assert!(said.contains("2/2  purchases with "), "{said}");
}

#[test]
fn every_command_is_checked_somewhere() {
    let mut known = BTreeSet::new();
    for document in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "tuning.md", "CHANGELOG.md"] {
        let text = read(document);
        for block in blocks(&text, "sh") {
            let kind = kind(block).unwrap_or_else(|| panic!("nobody checks these lines of {document}:\n{block}"));
            known.insert(kind);
            if kind == Kind::Script {
                let checked = Command::new("bash").arg("-n").arg(root().join(block)).status().unwrap();
                assert!(checked.success(), "{block}");
                let can_run = Command::new("test").arg("-x").arg(root().join(block)).status().unwrap();
                assert!(can_run.success(), "{block} is not executable");
            }
        }
        // Other names for shell would slip by.
        for other in ["bash", "shell", "console", "zsh"] {
            assert!(blocks(&text, other).is_empty(), "{document}: mark shell as sh");
        }
    }
    assert_eq!(known.len(), 10, "{known:?}");
    // `cargo run` runs the program that is tested here, if there is no other.
    assert_eq!(read("Cargo.toml").matches("[[bin]]").count(), 1);
    assert!(!root().join("src/bin").exists());
    // `cargo bench` runs what `.ci/run` checks, and nothing besides.
    assert_eq!(read("Cargo.toml").matches("[[bench]]").count(), 1);
    assert!(read(".ci/run").contains("cargo test --locked --bench functions"));
}

#[test]
fn the_commands_of_an_embedded_server() {
    let stack = Stack::new(Mode::Embedded);
    let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).start();
    let Ledger::Sqlite(ledger) = stack.ledger() else { panic!("embedded") };
    let address = ("127.0.0.1:8080", app.addr().to_string());

    let bought = stdout(&run(&block(Kind::Shop), &[address]));
    let readme = read("README.md");
    let shown = blocks(&readme, "json")[0];
    assert_eq!(bought.trim(), shown, "what README.md says that the two lines answer");

    let operator = stdout(&run(&block(Kind::Operator), &[("127.0.0.1:8081", app.admin_addr().to_string())]));
    assert!(operator.contains("selling") && operator.contains("# TYPE "), "{operator}");

    let mut load = block(Kind::LoadEmbedded);
    load.insert_str(0, &format!("HOST=http://{} ", app.addr()));
    let data = ledger.parent().unwrap().display().to_string();
    load_is_good(&run(&load, &[("./data", data)]));
}

#[test]
fn the_commands_of_a_distributed_server() {
    let mut stack = Stack::new(Mode::Distributed);
    let redis = ("127.0.0.1:6379", stack.redis().addr().to_string());
    let postgres = ("127.0.0.1:5432", format!("127.0.0.1:{}", stack.postgres().port()));
    let names = ["REDIS_ADDR", "POSTGRES_DSN"];
    let printed =
        block(Kind::StartDistributed).replace("cargo run --release", &format!("printenv {}", names.join(" ")));
    let values = stdout(&run(&printed, &[redis, postgres.clone()]));
    let mut builder = App::builder().env("SALE_SECONDS", clock::quiet_sale_seconds());
    for (name, value) in names.iter().zip(values.lines()) {
        builder = builder.env(name, value);
    }
    let app = builder.start();
    load_is_good(&run(&block(Kind::LoadOther), &[("127.0.0.1:8080", app.addr().to_string()), postgres]));
}

/// The cells of a document's tables.
fn cells(document: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = document.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect())
}

fn in_ticks(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`').filter(|name| !name.contains('`'))
}

#[test]
fn the_settings_table_is_what_help_says() {
    let help = String::from_utf8(run_with_args(&["--help"]).stdout).unwrap();
    let mut defaults = BTreeMap::new();
    for option in help.split("\n      --").skip(1) {
        let option = option.split_whitespace().collect::<Vec<_>>().join(" ");
        let within =
            |from: &str| Some(option.split_once(from)?.1.split([']', '=']).next().unwrap_or_default().to_owned());
        if let Some(name) = within("[env: ") {
            defaults.insert(name, within("[default: "));
        }
    }
    assert!(defaults.len() >= 16, "{help}");
    let readme = read("README.md");
    let is_setting = |name: &&str| name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    let mut rows = BTreeMap::new();
    for row in cells(&readme) {
        if let Some(name) = in_ticks(row[0]).filter(is_setting) {
            let default = row[1].trim_matches('`');
            let default = if default.starts_with("unset") { None } else { Some(default.to_owned()) };
            assert!(rows.insert(name.to_owned(), default).is_none(), "{name} twice");
        }
    }
    assert_eq!(rows, defaults);
}

#[test]
fn the_answers_that_are_named_exist() {
    let (readme, service) = (read("README.md"), read("src/service.rs"));
    let mut named = 0;
    for row in cells(&readme).filter(|row| row.len() == 3 && row[1].parse().is_ok_and(|status: u16| status >= 400)) {
        let word = row[2].split('`').nth(1).unwrap();
        let written = service.contains(&format!("{}, ExtraHeader::None, \"{word}\"", row[1]))
            || service.contains(&format!("{}, retry, \"{word}\"", row[1]))
            || service.contains(&format!("{}, ExtraHeader::retry_soon(), \"{word}\"", row[1]))
            || service.contains(&format!("{{\\\"error\\\":\\\"{word}\\\""));
        assert!(written, "{} {word}", row[1]);
        named += 1;
    }
    assert!(named >= 9, "{named}");
    // What is said of any request: as many words as statuses, each of them in its place.
    let row = cells(&readme).find(|row| row[0] == "any").unwrap();
    let (statuses, words): (Vec<&str>, Vec<&str>) =
        (row[1].split(", ").collect(), row[2].split('`').skip(1).step_by(2).collect());
    assert_eq!(statuses, ["404", "405", "400", "413", "417", "431", "501", "505"]);
    assert_eq!(statuses.len(), words.len(), "{words:?}");
    let requests = read("src/http/reject.rs");
    let arms = |value: String| -> BTreeSet<&str> {
        requests.lines().filter_map(|line| line.trim().strip_suffix(&format!(" => {value},"))).collect()
    };
    for (status, word) in statuses.into_iter().zip(words) {
        let refused =
            |line: &str| line.contains(&format!("{status}, ExtraHeader::")) && line.contains(&format!("\"{word}\""));
        let here = service.lines().any(refused);
        let there = arms(status.into()).intersection(&arms(format!("\"{word}\""))).next().is_some();
        assert!(here || there, "{status} {word}");
    }
}

#[test]
fn the_payment_recipe_has_each_refusal() {
    let readme = read("README.md");
    let recipe = readme.split("## Take payments").nth(1).unwrap().split("\n## ").next().unwrap();
    let answers = readme.split("## Requests and answers").nth(1).unwrap().split("\n## ").next().unwrap();
    let [purchase, checkout] = ["| answer to the purchase |", "| answer to the checkout |"]
        .map(|head| recipe.split(head).nth(1).unwrap().split("\n\n").next().unwrap());
    let (mut request, mut found) = ("", 0);
    for row in cells(answers).filter(|row| row.len() == 3) {
        if !row[0].is_empty() {
            request = row[0];
        }
        let word = row[2].split('`').nth(1).unwrap_or_default();
        let table = if request.starts_with("`POST /purchase") { purchase } else { checkout };
        // A malformed request is a fault of the backend: the status is enough.
        let named = table.contains(&format!("{} `{word}`", row[1])) || row[1] == "400" && table.contains("| 400 |");
        if request.starts_with("`POST ") && row[1] != "200" && word != "invalid_request" {
            assert!(named, "{request}: the recipe does not say what to do on {} {word}", row[1]);
            found += 1;
        }
    }
    assert!(found >= 6, "{found}");
    assert!([purchase, checkout].iter().all(|table| table.contains("| 503, a timeout ")));
}

/// The names after `crate::` in a file, its tests left out.
fn imports(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let names = code
        .split("crate::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

pub fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { sources(&path, found) } else { found.push(path) }
    }
}

#[test]
fn modules_import_what_the_architecture_says() {
    let src = root().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut have: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files.iter().filter(|path| !path.to_string_lossy().ends_with("tests.rs")) {
        let inside = path.strip_prefix(&src).unwrap();
        let module = inside.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        if !["main", "run", "lib"].contains(&module.as_str()) {
            let mut names = imports(path);
            names.remove(&module);
            have.entry(module).or_default().append(&mut names);
        }
    }
    let architecture = read("ARCHITECTURE.md");
    let table = architecture.split("| module | may import |").nth(1).unwrap().split("\n\n").next().unwrap();
    let named = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let said: BTreeMap<String, BTreeSet<String>> =
        cells(table).filter_map(|row| Some((in_ticks(row[0])?.to_owned(), named(row[1])))).collect();
    assert_eq!(have, said);
}

#[test]
fn documents_are_read_right() {
    let text = "a\n```sh\nx\ny\n```\nb\n```json\n{}\n```\n```sh\nz\n```\n";
    assert_eq!(blocks(text, "sh"), ["x\ny", "z"]);
    assert_eq!(blocks(text, "json"), ["{}"]);
    assert_eq!(kind("rm -rf /"), None);
    assert_eq!(kind("docker-compose up -d\nrm x"), None);
    assert_eq!(cells("| a | `B` |\n|---|---|\ntext").next().unwrap(), ["a", "`B`"]);
}
