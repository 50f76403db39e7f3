//! The machine: what it is, and how much CPU time programs have used.
//!
//! Owns the reading of `/proc`. CPU time comes in ticks of 10 ms, so samples last seconds.

use std::process::Command;
use std::time::{Duration, Instant};

/// CPU time in seconds.
pub type Seconds = f64;

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A program's word on its version: the first line.
pub fn version(program: &std::path::Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr));
    text.unwrap_or_default().lines().next().unwrap_or("?").trim().to_owned()
}

/// CPU, kernel and memory, in a line.
pub fn describe() -> String {
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".into());
    let memory = field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpus} CPUs ({model}), {} GiB of memory, Linux {}", memory.unwrap_or(0) >> 20, kernel.trim())
}

/// The CPU time of all CPUs that the machine's owner has given to others.
pub fn stolen() -> Seconds {
    let stat = read("/proc/stat");
    let ticks = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    ticks.unwrap_or(0) as f64 / 100.0
}

/// The numbers of `/proc/PID/stat` after the name: the parent, and the CPU ticks by itself and by children it waited for.
fn stat(pid: u32) -> Option<(u32, u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let words: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| words.get(at)?.parse::<u64>().ok();
    Some((words.get(1)?.parse().ok()?, ticks(11)? + ticks(12)?, ticks(13)? + ticks(14)?))
}

/// What `pid` has used, with its children, also those that have ended.
pub fn used(pid: u32) -> Seconds {
    let all: Vec<(u32, (u32, u64, u64))> = std::fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            Some((pid, stat(pid)?))
        })
        .collect();
    let (mut family, mut at, mut ticks) = (vec![pid], 0, 0);
    while let Some(member) = family.get(at).copied() {
        at += 1;
        ticks += all.iter().find(|(pid, _)| *pid == member).map_or(0, |(_, (_, own, ended))| own + ended);
        family.extend(all.iter().filter(|(_, (parent, ..))| *parent == member).map(|(pid, _)| *pid));
    }
    ticks as f64 / 100.0
}

/// What this process has used: its threads, and the children that it has waited for.
pub fn used_here() -> Seconds {
    stat(std::process::id()).map_or(0.0, |(_, own, ended)| (own + ended) as f64 / 100.0)
}

/// Waits until `pids` use no CPU any more, five seconds at most: what was answered is written by then.
pub fn settle(pids: &[u32]) {
    let all = || pids.iter().map(|pid| used(*pid)).sum::<f64>();
    let (until, mut before) = (Instant::now() + Duration::from_secs(5), all());
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = all();
        if now - before < 0.015 || Instant::now() > until {
            return;
        }
        before = now;
    }
}
