//! What the benchmarks compare with: that the references do what they are said to do, and change nothing of the service.

use crate::docs::root;
use crate::support::app::OTHER_BINARY;
use crate::support::process::{self, exit_code};
use std::path::{Path, PathBuf};
use std::process::Command;

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "cargo {arguments:?}: {}", said(&output.stderr));
    said(&output.stdout)
}

/// An example, built as the tests are.
fn example(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_flashsale")).parent().unwrap();
    let mut arguments = vec!["build", "--locked", "--quiet", "--example", name];
    if folder.ends_with("release") {
        arguments.push("--release");
    }
    cargo(&arguments);
    folder.join("examples").join(name)
}

#[test]
fn the_references_leave_the_work_stealing_of_may_off() {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--locked", "--offline"])).unwrap();
    let name = |of: &serde_json::Value| of["id"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let may = name(packages.iter().find(|package| package["name"] == "may").unwrap());
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let may = nodes.iter().find(|node| name(node) == may).unwrap();
    // Of all targets together, examples and benchmarks too.
    assert_eq!(may["features"], serde_json::json!([]));
}

#[test]
fn the_service_on_may_minihttp_gives_the_table_of_answers() {
    let minihttp = example("minihttp");
    let scratch = process::temp_dir();
    for table in ["api::distributed::", "api::embedded::"] {
        // The same tests in a process of their own, with the example in the place of the service.
        let mut tests = Command::new(std::env::current_exe().unwrap());
        // All but the bodies, of which `may_minihttp` reads no chunked one.
        tests
            .args([table, "--test-threads=2", "--skip", "parameters_in_a_body"])
            .env(OTHER_BINARY, &minihttp)
            .env("TMPDIR", scratch.path());
        let output = tests.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(exit_code(output.status), 0, "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("retry_after ... ok") && said.contains("pictures ... ok"), "{said}");
    }
}
