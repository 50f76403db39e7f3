//! Instances that are restarted one after the other behind a proxy with its defaults: no request fails.
//!
//! A short version is a test; `cargo test --test it -- --ignored rolling` does 24 restarts behind each proxy.

use crate::support::app::{App, Builder};
use crate::support::clock;
use crate::support::http::Client;
use crate::support::process::{self, Program, free_port, local, poll};
use crate::support::servers::{Mode, Stack};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How long an instance may take to be back behind its proxy.
const BACK: Duration = Duration::from_secs(60);
/// Clients that ask on and on.
const CLIENTS: usize = 8;
/// Restarts of the long version, of both instances together.
const MANY: usize = 24;

fn program(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    process::in_path(name).or(Some(sbin).filter(|path| path.is_file())).unwrap_or_else(|| panic!("{name}"))
}

#[derive(Clone, Copy)]
enum Proxy {
    /// Nothing is configured but the servers: a connection a request.
    Nginx,
    /// With connections that are kept.
    NginxKeepalive,
    /// Checks of `/health`, each 2 s: 3 failures take an instance out.
    Haproxy,
}

impl Proxy {
    /// Starts it in front of `apps`.
    fn start(self, at: SocketAddr, dir: &Path, apps: &[App]) -> Program {
        let path = dir.join("config");
        let [one, two] = [&apps[0], &apps[1]];
        let (text, program, args) = match self {
            Proxy::Haproxy => {
                let server = |name: &str, app: &App| {
                    format!("server {name} {} check port {}", app.addr(), app.admin_addr().port())
                };
                let text = format!(
                    "defaults\n mode http\n timeout connect 5s\n timeout client 50s\n timeout server 50s\n\
                     listen shop\n bind {at}\n option httpchk GET /health\n {}\n {}\n",
                    server("one", one),
                    server("two", two)
                );
                (text, program("haproxy"), vec!["-db", "-f"])
            }
            Proxy::Nginx | Proxy::NginxKeepalive => {
                let kept = matches!(self, Proxy::NginxKeepalive);
                let (pool, location) = match kept {
                    true => ("keepalive 32;", "proxy_http_version 1.1; proxy_set_header Connection \"\";"),
                    false => ("", ""),
                };
                let dir = dir.display();
                let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .iter()
                    .map(|kind| format!("{kind}_temp_path {dir}/{kind};"))
                    .collect();
                let text = format!(
                    "daemon off; master_process off; pid {dir}/pid; error_log stderr; events {{}}
                     http {{ access_log off; {temporary}
                       upstream shop {{ server {}; server {}; {pool} }}
                       server {{ listen {at}; location / {{ proxy_pass http://shop; {location} }} }} }}",
                    one.addr(),
                    two.addr()
                );
                (text, program("nginx"), vec!["-c"])
            }
        };
        std::fs::write(&path, text).unwrap();
        let mut command = process::command(&program, "KILL", None);
        command.args(args).arg(&path);
        Program::start("a proxy", &mut command, Some(&dir.join("log")))
    }
}

/// How many requests an instance has answered.
fn answered(app: &App) -> u64 {
    let text = Client::new(app.admin_addr()).get("/metrics").text();
    let lines =
        text.lines().filter_map(|line| line.strip_prefix("flashsale_http_responses_total{")?.split("} ").nth(1));
    lines.map(|count| count.parse::<u64>().unwrap()).sum()
}

/// Restarts the instances in turn, `restarts` times in all, while clients buy through `proxy`.
fn roll(proxy: Proxy, drain: u64, restarts: usize) {
    let stack = Stack::alone(Mode::Distributed);
    let builder: Builder = stack
        .app()
        .env("SALE_SECONDS", clock::quiet_sale_seconds())
        .env("SALE_ITEMS", 10_000_000)
        .env("USER_LIMIT", 10_000_000)
        .env("DRAIN_SECONDS", drain);
    let mut apps = vec![builder.start(), builder.start()];
    let (dir, at) = (process::temp_dir(), local(free_port()));
    let _running = proxy.start(at, dir.path(), &apps);
    poll("sales through the proxy", BACK, || {
        let answer = Client::new(at).send_request("POST", "/checkout?user_id=first&id=i");
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    });
    let (stop, sold, failed) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::<String>::new()));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (stop, sold, failed) = (&stop, &sold, &failed);
            scope.spawn(move || {
                let (user, mut client) = (format!("u{client}"), Client::new(at));
                while !stop.load(Ordering::Relaxed) {
                    let told = client.send_request("POST", &format!("/checkout?user_id={user}&id=i"));
                    match told {
                        Ok(answer) if answer.status == 200 => drop(sold.fetch_add(1, Ordering::Relaxed)),
                        other => failed.lock().unwrap().push(format!("{other:?}")),
                    }
                    // Some load, and not all that the machine has.
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        for nth in 0..restarts {
            let place = nth % 2;
            let again = builder.clone().ports_of(&apps[place]);
            let code = apps[place].end_after(drain);
            if code != 0 {
                failed.lock().unwrap().push(format!("ended with {code}: {}", apps[place].stderr()));
                break;
            }
            apps[place] = again.start();
            // Until the proxy has found out, the other one is the only one. One answer is the start's own.
            poll("requests for an instance that is back", BACK, || (answered(&apps[place]) > 20).then_some(()));
            eprintln!("restart {nth}: {} sold, {} failed", sold.load(Ordering::Relaxed), failed.lock().unwrap().len());
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (failed, log) = (failed.into_inner().unwrap(), std::fs::read_to_string(dir.path().join("log")).unwrap());
    assert!(failed.is_empty(), "{} of {sold:?} failed: {:?}\n{log}", failed.len(), failed.first());
    assert!(sold.into_inner() > 10 * restarts, "too little load");
}

#[test]
fn behind_nginx() {
    roll(Proxy::Nginx, 0, 2);
}

#[test]
fn behind_nginx_with_connections_that_are_kept() {
    roll(Proxy::NginxKeepalive, 1, 2);
}

/// The checks need 6 s to take an instance out.
#[test]
fn behind_haproxy() {
    roll(Proxy::Haproxy, 8, 2);
}

#[test]
#[ignore = "takes minutes"]
fn many_restarts_behind_nginx() {
    roll(Proxy::Nginx, 5, MANY);
}

#[test]
#[ignore = "takes minutes"]
fn many_restarts_behind_nginx_with_connections_that_are_kept() {
    roll(Proxy::NginxKeepalive, 5, MANY);
}

#[test]
#[ignore = "takes minutes"]
fn many_restarts_behind_haproxy() {
    roll(Proxy::Haproxy, 8, MANY);
}
