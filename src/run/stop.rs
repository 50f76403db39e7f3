//! The end of the process.
//!
//! Owns the order of the steps and their time limits. Invariants: every connection that the kernel let in is answered, and
//! every record that was handed over is written, as far as the time allows; the end takes no longer than
//! [`time_for_all`] says. Leaves it to the signals' thread to end at once.

use super::running::{EndsLast, Running};
use crossbeam_channel::Receiver;
use flashsale::http::server::Server;
use flashsale::keeper::distributed::LAST_WAIT;
use flashsale::record::{Counters, Message};
use flashsale::service::Shop;
use flashsale::worker::Workers;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the end takes at most, where the drain leaves enough of it: `docker stop` waits for ten seconds.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(9_500);
/// The time after the drain, at least: for answers that wait, and for the writer's last batch.
const AFTER_DRAIN: Duration = Duration::from_millis(4_500);
/// The parts into which the time is divided.
const PARTS: u32 = 6;
/// When the connections are given up that are not closed by then, in parts of the time.
const CONNECTIONS_UNTIL: u32 = 2;
/// When the decisions are given up that have not come by then. The keeper is told to stop.
const DECISIONS_UNTIL: u32 = 4;
/// When the writer is told to finish although the keeper has not stopped, where the writer ends last.
const KEEPER_UNTIL: u32 = 5;

// Without a drain, a keeper that is told to stop as late as can be still has its whole time for the writer's last records.
const _: () = assert!(
    SHUTDOWN_TIMEOUT.as_millis() * DECISIONS_UNTIL as u128 / PARTS as u128 + LAST_WAIT.as_millis()
        < SHUTDOWN_TIMEOUT.as_millis()
);

/// How often is looked whether a step is done.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The exit code after a part of the process panicked (EX_SOFTWARE of sysexits.h): a supervisor restarts it.
const PANICKED: u8 = 70;

/// Why the process ends.
pub enum Cause {
    /// A signal, by its name.
    Signal(&'static str),
    /// A part that it cannot do without panicked; which, and its message.
    Panicked(String),
}

/// What is stopped.
pub struct Stop<'a> {
    /// The workers.
    pub workers: Workers,
    /// What was started.
    pub running: Running,
    /// The public service.
    pub shop: &'a Shop,
    /// The server of the public service.
    pub server: &'a Server<Shop>,
    /// How long requests are still served before connections are closed (`DRAIN_SECONDS`).
    pub drain: Duration,
    /// Where panics are told.
    pub panics: Receiver<String>,
}

/// How long an end may take that begins with `drain`.
fn time_for_all(drain: Duration) -> Duration {
    SHUTDOWN_TIMEOUT.max(drain + AFTER_DRAIN)
}

impl Stop<'_> {
    /// Stops in order: load balancers, new connections, answers under way, the keeper, the ledger.
    pub fn run(self, cause: Cause) -> ExitCode {
        let begun = Instant::now();
        let mut end = begun + time_for_all(self.drain);
        let panicked = match cause {
            Cause::Signal(name) => {
                tracing::info!(
                    "{name}: stopping: health is 503 now; requests are served for {:?} more (DRAIN_SECONDS), then this \
                     instance ends within {:?}",
                    self.drain,
                    time_for_all(self.drain).saturating_sub(self.drain),
                );
                self.shop.drain();
                self.server.drain();
                self.panics.recv_timeout(self.drain).ok()
            }
            Cause::Panicked(what) => Some(what),
        };
        if let Some(what) = &panicked {
            tracing::error!("{what}: this instance cannot go on and ends, to be restarted by its supervisor");
            // What it decides from here on might rest on something half done.
            self.shop.close();
            end = end.min(Instant::now() + SHUTDOWN_TIMEOUT);
        }
        self.finish(end);
        let panicked = panicked.or_else(|| {
            let what = self.panics.try_recv().ok()?;
            tracing::error!("{what}: while this instance was ending");
            Some(what)
        });
        let complete = report(self.running.recorder.counters(), begun);
        match (panicked, complete) {
            (Some(_), _) => ExitCode::from(PANICKED),
            (None, true) => ExitCode::SUCCESS,
            (None, false) => ExitCode::FAILURE,
        }
    }

    /// From the last connection to the last record, by `end`.
    fn finish(&self, end: Instant) {
        let time = end.saturating_duration_since(Instant::now());
        let at = |parts: u32| end - time * (PARTS - parts) / PARTS;
        self.server.drain();
        self.server.close();
        wait(at(CONNECTIONS_UNTIL), || self.server.is_closed());
        // Clients that are still connected get no new decision. Decisions under way are still handed over.
        self.shop.close();
        let undecided = || self.workers.all().map(|worker| self.running.inventory.undecided(worker)).sum::<usize>();
        wait(at(DECISIONS_UNTIL), || undecided() == 0);
        let _ = self.running.stop_keeper.send(());
        if self.running.ends_last == EndsLast::Writer {
            wait(at(KEEPER_UNTIL), || self.running.keeper.is_finished());
        }
        let _ = self.running.recorder.sender().send_deadline(Message::Finish, end);
        wait(end, || self.running.writer.is_finished() && self.running.keeper.is_finished());
        // The writer has sent the workers its last mail: they may still have to send the answers that waited for it.
        wait(end, || self.server.is_closed());
    }
}

fn wait(until: Instant, done: impl Fn() -> bool) {
    while !done() && Instant::now() < until {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Tells whether all records are in the ledger.
fn report(counters: &Counters, begun: Instant) -> bool {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let written = count(&counters.written);
    let missing = counters.backlog() + counters.left();
    let took = begun.elapsed();
    if missing == 0 {
        tracing::info!("stopped after {took:.1?}; all {written} records are in the ledger");
        return true;
    }
    tracing::error!(
        "stopped after {took:.1?}; {missing} records are not in the ledger: reconciliation has to write them"
    );
    false
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
