//! The house rules that a compiler does not check.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const MAX_LINES: usize = 499;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    ["src", "tests", "lua", "sql", "benches", "examples", "fuzz/fuzz_targets"]
        .iter()
        .for_each(|d| files(&root().join(d), &mut found));
    assert!(found.len() > 10, "{found:?}");
    for path in found.iter().filter(|p| p.extension().is_some_and(|e| e == "rs" || e == "lua" || e == "sql")) {
        let lines = std::fs::read_to_string(path).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", path.display());
    }
}

/// A caller can tell errors apart that have a type. The words for the operator are made where a start fails.
#[test]
fn errors_have_types() {
    let (src, mut found) = (root().join("src"), Vec::new());
    files(&src, &mut found);
    for path in found {
        let inside = path.strip_prefix(&src).unwrap().with_extension("");
        if ["main", "run", "config"].iter().any(|module| inside.starts_with(module)) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().find(|line| line.contains("Result<") && line.contains(", String>"));
        assert_eq!(line, None, "{}", path.display());
    }
}

/// The names in quotes that are written as environment variables are.
fn quoted_names(source: &str) -> BTreeSet<&str> {
    let is_name = |word: &&str| {
        word.len() > 2
            && word.starts_with(|c: char| c.is_ascii_uppercase())
            && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
    };
    // Line by line, so that a lone quote does not turn the rest inside out.
    source.lines().flat_map(|line| line.split('"').skip(1).step_by(2)).filter(is_name).collect()
}

/// The names in backticks in the first cells of a document's tables.
fn table_names(document: &str) -> BTreeSet<&str> {
    let cells = document.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// The paths of this repository that a document names: links, and words in backticks that look like paths.
fn named_paths(document: &str) -> BTreeSet<&str> {
    let tops = ["src/", "tests/", "lua/", "sql/", "benches/", "examples/", "wrk/", "fuzz/", "deploy/", ".ci/", "./"];
    let files = [".md", ".toml", ".yml", "Dockerfile"];
    // Blocks of code show shapes and outputs, not paths.
    let prose: Vec<&str> = document.split("```").step_by(2).collect();
    let ticks = prose.iter().flat_map(|part| part.split('`').skip(1).step_by(2));
    let plain = |word: &&str| !word.contains([' ', '*', '<', '{', '$']);
    let ticks = ticks
        .filter(plain)
        .filter(|word| tops.iter().any(|top| word.starts_with(top)) || files.iter().any(|end| word.ends_with(end)));
    let links = prose.iter().flat_map(|part| part.split("](").skip(1)).filter_map(|rest| rest.split([')', '#']).next());
    let links = links.filter(|link| !link.is_empty() && !link.contains("://"));
    // What the server makes when it runs is not part of the repository.
    ticks.chain(links).filter(|path| *path != "./data").collect()
}

#[test]
fn every_setting_stands_in_the_readme() {
    let config = std::fs::read_to_string(root().join("src/config.rs")).unwrap();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (settings, table) = (quoted_names(&config), table_names(&readme));
    assert!(settings.len() >= 11, "{settings:?}");
    assert_eq!(settings.difference(&table).collect::<Vec<_>>(), Vec::<&&str>::new(), "not in README's table");
}

#[test]
fn named_paths_exist() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(document)).unwrap();
        for path in named_paths(&text) {
            assert!(root().join(path).exists(), "{document} names {path}");
        }
    }
}

#[test]
fn documents_are_read_right() {
    assert_eq!(quoted_names("'\"'\n\"WORKERS\""), BTreeSet::from(["WORKERS"]));
    assert_eq!(quoted_names(r#"a("SERVER_PORT") "x" "no" "A B" ("LOG", "8")"#), BTreeSet::from(["SERVER_PORT", "LOG"]));
    let table = "| variable | |\n|---|---|\n| `A_B`, `C` | `d` |\ntext `E`";
    assert_eq!(table_names(table), BTreeSet::from(["A_B", "C"]));
    let text =
        "see `src/a.rs`, `make x`, `B.md`\n```\n`src/no.rs`\n```\n[c](c.md#d) [e](https://x/y.md) `src/*.rs` `./data`";
    assert_eq!(named_paths(text), BTreeSet::from(["src/a.rs", "B.md", "c.md"]));
}
