//! SIGTERM and SIGINT.
//!
//! Owns the one thread that hears them. Invariant: a signal is never ignored: while nothing is sold yet it ends the
//! process at once, the first one after that begins the orderly end, and the next one ends the process at once.

use crossbeam_channel::{Receiver, Sender};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::Write;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The signals that this process was sent.
pub struct Signals {
    selling: Arc<AtomicBool>,
    first: Receiver<&'static str>,
}

impl Signals {
    /// Hears signals from now on. `Err` is why it cannot, in a line.
    pub fn listen() -> Result<Signals, String> {
        // A file that may not grow any more is a refusal like a full disk, not the end: whoever catches this is told EFBIG.
        let unread = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, unread).map_err(|e| format!("signals: {e}"))?;
        let raw = signal_hook::iterator::Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals: {e}"))?;
        let (tell, first) = crossbeam_channel::bounded(1);
        let selling = Arc::new(AtomicBool::new(false));
        let known = selling.clone();
        let hearing = std::thread::Builder::new().name("signals".into()).spawn(move || hear(raw, &known, &tell));
        hearing.map(|_| Signals { selling, first }).map_err(|e| format!("signals: {e}"))
    }

    /// From now on a signal is told by [`Signals::wait`].
    pub fn selling(&self) {
        self.selling.store(true, Ordering::Relaxed);
    }

    /// Waits for a signal, and says which it was.
    pub fn wait(&self) -> &'static str {
        self.first.recv().unwrap_or("no signal can be heard")
    }
}

fn hear(mut signals: signal_hook::iterator::Signals, selling: &AtomicBool, tell: &Sender<&'static str>) {
    let mut told = false;
    for signal in signals.forever() {
        let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
        if !selling.load(Ordering::Relaxed) {
            // Starting may wait for servers and files for long, and there is nothing to be finished yet.
            let _ = writeln!(std::io::stderr(), "flashsale: {name} while starting: ended before anything was sold");
            exit(0);
        }
        // The second one, as one expects of Ctrl-C.
        if std::mem::replace(&mut told, true) {
            exit(1);
        }
        let _ = tell.try_send(name);
    }
}
