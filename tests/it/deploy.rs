//! The examples in `deploy/`: the systemd unit, and two proxies in front of real instances.
//!
//! The programs are installed by `tests/run`. What cannot be had there, an init process, is left out: the unit is checked by
//! systemd's own tools.

use crate::docs::{read, root};
use crate::support::app::App;
use crate::support::clock;
use crate::support::http::Client;
use crate::support::process::{self, Program, free_port, local, poll};
use crate::support::servers::{Mode, Stack};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// The highest exposure that the unit may have, in tenths, by `systemd-analyze security` (100 is no protection at all).
const MAX_EXPOSURE: u32 = 15;

/// The path of a program, which may be one of the administrator's.
fn program(name: &str) -> PathBuf {
    let found =
        process::in_path(name).or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|path| path.is_file()));
    found.unwrap_or_else(|| panic!("{name}, which tests/run installs"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Writes `text` to a file of its own, with each pair's first text, which has to be there, replaced by the second.
fn write(path: &Path, text: &str, replaced: &[(&str, String)]) {
    let mut text = text.to_owned();
    for (from, to) in replaced {
        assert!(text.contains(from), "{from} is not in {text}");
        text = text.replace(from, to);
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn the_unit_is_valid_and_confined() {
    let dir = process::temp_dir();
    let unit = dir.path().join("flashsale.service");
    let binary = env!("CARGO_BIN_EXE_flashsale").to_owned();
    write(&unit, &read("deploy/flashsale.service"), &[("/usr/local/bin/flashsale", binary)]);
    let analyze = |args: &[&str]| Command::new(program("systemd-analyze")).args(args).arg(&unit).output().unwrap();
    let verified = analyze(&["verify"]);
    assert!(verified.status.success() && said(&verified).is_empty(), "{}", said(&verified));
    let security = analyze(&["security", "--offline=true", &format!("--threshold={MAX_EXPOSURE}"), "--no-pager"]);
    assert!(security.status.success(), "{}", said(&security));
}

#[test]
fn the_unit_gives_the_service_the_time_that_it_takes_to_end() {
    let unit = read("deploy/flashsale.service");
    let seconds = |name: &str| -> u64 {
        let line = unit.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.parse().unwrap()
    };
    let compose = read("docker-compose.yml");
    let grace = compose.lines().find_map(|line| line.trim().strip_prefix("stop_grace_period: ")).unwrap();
    let grace = grace.strip_prefix("${STOP_GRACE_PERIOD:-").and_then(|rest| rest.strip_suffix("s}")).unwrap();
    // An orderly end, and the time in which a load balancer notices it.
    for given in [seconds("TimeoutStopSec="), grace.parse().unwrap()] {
        assert!(given >= 10 + 10, "{given}");
    }
    assert_eq!(seconds("RestartPreventExitStatus="), 2, "a wrong setting");
    // Connections up to their bound, and what else is open.
    assert!(seconds("LimitNOFILE=") >= 32_000 + 2_000);
}

/// Two instances that sell the same stock, and a proxy in front of them.
struct Proxied {
    apps: Vec<App>,
    proxy: SocketAddr,
    _running: Program,
    _dir: tempfile::TempDir,
    _stack: Stack,
}

impl Proxied {
    /// `command` gets the proxy's program and the folder with its configuration, which `config` writes.
    fn start(
        name: &str,
        file: &str,
        listen: &str,
        more: &[(&str, usize)],
        command: impl Fn(&Path) -> Command,
    ) -> Proxied {
        let stack = Stack::new(Mode::Distributed);
        let app = stack.app().env("SALE_SECONDS", clock::quiet_sale_seconds()).env("USER_LIMIT", 1000);
        let apps = vec![app.start(), app.start()];
        let (dir, proxy) = (process::temp_dir(), local(free_port()));
        let mut replaced = vec![
            ("127.0.0.1:8080", apps[0].addr().to_string()),
            ("127.0.0.1:8082", apps[1].addr().to_string()),
            (listen, proxy.to_string()),
        ];
        for (text, nth) in more {
            replaced.push((text, format!("port {}", apps[*nth].admin_addr().port())));
        }
        let config = dir.path().join("config");
        write(&config, &read(file), &replaced);
        let running = Program::start(name, &mut command(dir.path()), Some(&dir.path().join("log")));
        let proxied = Proxied { apps, proxy, _running: running, _dir: dir, _stack: stack };
        poll(&format!("sales through {name}"), Duration::from_secs(10), || {
            let answer = Client::new(proxy).send_request("POST", "/checkout?user_id=first&id=i");
            answer.is_ok_and(|answer| answer.status == 200).then_some(())
        });
        proxied
    }

    fn nginx() -> Proxied {
        Proxied::start("nginx", "deploy/nginx.conf", "127.0.0.1:8088", &[], |dir| {
            let dir = dir.display();
            let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let temporary: String = temporary.iter().map(|kind| format!("{kind}_temp_path {dir}/{kind};")).collect();
            let main = format!(
                "daemon off; master_process off; pid {dir}/pid; error_log stderr; events {{}}
                 http {{ access_log off; {temporary} include {dir}/config; }}"
            );
            std::fs::write(format!("{dir}/nginx.conf"), main).unwrap();
            let mut command = process::command(&program("nginx"), "KILL", None);
            command.arg("-c").arg(format!("{dir}/nginx.conf")).arg("-p").arg(dir.to_string());
            command
        })
    }

    fn haproxy() -> Proxied {
        let checks = [("port 8081", 0), ("port 8083", 1)];
        Proxied::start("haproxy", "deploy/haproxy.cfg", "127.0.0.1:8089", &checks, |dir| {
            let mut command = process::command(&program("haproxy"), "KILL", None);
            command.arg("-db").arg("-f").arg(dir.join("config"));
            command
        })
    }

    /// Open public connections of an instance.
    fn connections(&self, nth: usize) -> u64 {
        let metrics = Client::new(self.apps[nth].admin_addr()).get("/metrics").text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("flashsale_connections "));
        line.unwrap().parse().unwrap()
    }

    /// A shopper's checkouts and purchases, all of which succeed.
    fn shop(&self, count: usize) {
        let mut client = Client::new(self.proxy);
        for nth in 0..count {
            let code = client.code(&format!("u{nth}"), "i");
            let bought = client.purchase(&code);
            assert_eq!(bought.status, 200, "{nth}: {}", bought.text());
            assert_eq!(client.purchase(&code).error(), "already_purchased");
        }
        let picture = client.get("/items/1.svg");
        assert_eq!(picture.status, 200);
    }

    fn check(mut self) {
        self.shop(100);
        // The proxy uses its connections again, and keeps them when nothing is to be done.
        for nth in [0, 1] {
            let open = self.connections(nth);
            assert!((1..=8).contains(&open), "{open} connections to instance {nth} after 301 requests");
        }
        // While one instance is away, the other one gets its requests.
        self.apps[0].terminate();
        self.shop(100);
    }
}

#[test]
fn nginx_in_front() {
    Proxied::nginx().check();
}

#[test]
fn haproxy_in_front() {
    let config = root().join("deploy/haproxy.cfg");
    let checked = Command::new(program("haproxy")).arg("-c").arg("-f").arg(config).output().unwrap();
    // Also no warnings.
    assert!(checked.status.success() && !said(&checked).contains("WARNING"), "{}", said(&checked));
    Proxied::haproxy().check();
}
