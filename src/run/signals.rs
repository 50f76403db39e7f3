//! The signals that end the process: SIGTERM, SIGINT, SIGHUP and SIGQUIT, all in the same way.
//!
//! Owns the one thread that hears them. Invariants: while nothing is sold yet a signal ends the process at once; the first
//! one after that begins the orderly end; one that follows within a second is the same request sent twice, and is ignored; a
//! later one ends the process at once, and says so. Leaves the orderly end to `stop`.

use crossbeam_channel::{Receiver, Sender};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io::Write;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a second signal is taken for the first one: GNU `timeout` sends two, to the process and to its group, and a
/// terminal's Ctrl-C may come beside a supervisor's SIGTERM.
const REPEATED: Duration = Duration::from_secs(1);

/// The signals that this process was sent.
pub struct Signals {
    selling: Arc<AtomicBool>,
    first: Receiver<&'static str>,
}

impl Signals {
    /// Hears signals from now on.
    ///
    /// # Errors
    /// Why it cannot, in a line.
    pub fn listen() -> Result<Signals, String> {
        // A file that may not grow any more is a refusal like a full disk, not the end: a process that catches SIGXFSZ gets
        // EFBIG from the write.
        let unread = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, unread).map_err(|e| format!("signals: {e}"))?;
        let mut ends = vec![SIGTERM, SIGINT, SIGQUIT];
        // `nohup` starts a process with SIGHUP ignored, so that it goes on after its terminal has closed.
        if !is_ignored(SIGHUP) {
            ends.push(SIGHUP);
        }
        let raw = signal_hook::iterator::Signals::new(ends).map_err(|e| format!("signals: {e}"))?;
        let (tell, first) = crossbeam_channel::bounded(1);
        let selling = Arc::new(AtomicBool::new(false));
        let known = selling.clone();
        let hearing = std::thread::Builder::new().name("signals".into()).spawn(move || hear(raw, &known, &tell));
        hearing.map(|_| Signals { selling, first }).map_err(|e| format!("signals: {e}"))
    }

    /// From now on a signal is told by [`Signals::first`].
    pub fn selling(&self) {
        self.selling.store(true, Ordering::Relaxed);
    }

    /// Where the first signal is told, by its name.
    pub fn first(&self) -> &Receiver<&'static str> {
        &self.first
    }
}

/// Whether this process was started with `signal` ignored.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

fn hear(mut signals: signal_hook::iterator::Signals, selling: &AtomicBool, tell: &Sender<&'static str>) {
    let mut first: Option<Instant> = None;
    for signal in signals.forever() {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        // This thread ends the process: the log's thread may not come to write a line any more.
        let say = |what: &str| drop(writeln!(std::io::stderr(), "flashsale: {name} {what}"));
        if !selling.load(Ordering::Relaxed) {
            // Starting may wait for servers and files for long, and there is nothing to be finished yet.
            say("while starting: ended before anything was sold");
            exit(0);
        }
        match first {
            None => {
                first = Some(Instant::now());
                let _ = tell.try_send(name);
            }
            Some(at) if at.elapsed() < REPEATED => {}
            Some(_) => {
                say("while stopping: ended at once; what was not written yet is not in the ledger");
                exit(1);
            }
        }
    }
}
