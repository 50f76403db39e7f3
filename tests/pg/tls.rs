//! What each `sslmode` accepts, against servers with and without TLS.

use super::server::{Server, done};
use flashsale::ledger::Fence;
use flashsale::ledger::postgres::{PostgresLedger, parse_dsn};
use std::path::Path;
use std::process::Command;

/// A certificate and key `name`, signed by `by` or by itself.
fn certificate(dir: &Path, name: &str, by: Option<&str>) {
    let file = |name: &str, end: &str| dir.join(format!("{name}.{end}"));
    let mut make = Command::new("openssl");
    make.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]);
    make.arg("-subj").arg(format!("/CN={name}"));
    make.arg("-keyout").arg(file(name, "key")).arg("-out").arg(file(name, "crt"));
    match by {
        Some(ca) => {
            make.arg("-CA").arg(file(ca, "crt")).arg("-CAkey").arg(file(ca, "key"));
            make.args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=DNS:localhost"])
        }
        None => make.args(["-addext", "basicConstraints=critical,CA:TRUE"]),
    };
    done(&mut make);
}

#[test]
fn each_mode_keeps_its_word() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path(), "right", None);
    certificate(dir.path(), "wrong", None);
    certificate(dir.path(), "server", Some("right"));
    let secure = Server::start(Some((&dir.path().join("server.crt"), &dir.path().join("server.key"))));
    let open = Server::start(None);
    let check = |server: &Server, host: &str, mode: &str, root: &str, want: &str| {
        let root =
            if root.is_empty() { String::new() } else { format!("sslrootcert='{}/{root}.crt'", dir.path().display()) };
        // Password and hostaddr are there to be seen if they leak, and to decide where the name leads.
        let dsn = format!(
            "host={host} hostaddr=127.0.0.1 port={} user=postgres dbname=postgres password=hunter2 sslmode={mode} {root}",
            server.port
        );
        let got = match PostgresLedger::new(parse_dsn(&dsn).unwrap()).epoch() {
            Ok(_) => "ok".to_owned(),
            Err(why) => why.to_string(),
        };
        assert!(!got.contains('\n') && !got.contains("hunter2"), "{got}");
        assert!(got == want || want != "ok" && got.contains(want), "{host} {mode} {root}: {got}, not {want}");
    };
    const CHAIN: &str = "invalid peer certificate: ";
    const NAME: &str = "not valid for name";
    const NO_TLS: &str = "server does not support TLS";
    for mode in ["disable", "prefer", "require"] {
        check(&secure, "localhost", mode, "", "ok");
        check(&secure, "elsewhere", mode, "", "ok");
        check(&open, "localhost", mode, "", if mode == "require" { NO_TLS } else { "ok" });
    }
    for mode in ["prefer", "require", "verify-ca"] {
        check(&secure, "localhost", mode, "right", "ok");
        check(&secure, "elsewhere", mode, "right", "ok");
        check(&secure, "localhost", mode, "wrong", CHAIN);
        check(&open, "localhost", mode, "right", if mode == "prefer" { "ok" } else { NO_TLS });
    }
    check(&secure, "localhost", "verify-full", "right", "ok");
    check(&secure, "elsewhere", "verify-full", "right", NAME);
    check(&secure, "127.0.0.1", "verify-full", "right", NAME);
    check(&secure, "localhost", "verify-full", "wrong", CHAIN);
    check(&open, "localhost", "verify-full", "right", NO_TLS);

    // The connections are what they claim: the server itself says whether they are encrypted.
    let encrypted = |mode: &str| {
        let dsn = format!(
            "postgres://postgres@localhost:{}/postgres?sslmode={mode}&application_name={mode}&hostaddr=127.0.0.1",
            secure.port
        );
        let mut ledger = PostgresLedger::new(parse_dsn(&dsn).unwrap());
        ledger.epoch().unwrap();
        let mut admin = postgres::Client::connect(&secure.dsn("postgres"), postgres::NoTls).unwrap();
        let query = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = $1";
        admin.query_one(query, &[&mode]).unwrap().get::<_, bool>(0)
    };
    assert_eq!(["disable", "prefer", "require"].map(encrypted), [false, true, true]);
}
