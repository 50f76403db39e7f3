//! Whether Redis takes the writes of decisions.
//!
//! A Redis that is connected can refuse them: its memory is full, a snapshot failed, replicas are missing, an ACL
//! forbids a command. Owns the probe, and the one line at the beginning of such an outage and the one at its end.
//! Invariant: the end is found without shoppers, since a load balancer sends none to an unhealthy instance. Leaves to
//! others whether Redis can be reached, and what it has lost.

use super::build::BUILD_SECONDS;
use super::distributed::{Keeper, is_due};
use super::store::Store;
use crate::inventory::redis::scripts::probe;
use crate::ledger::outage::Outage;
use std::time::{Duration, Instant};

/// How often it is tried whether Redis takes writes, while it does as far as is known. Some 200 bytes of Redis'
/// append-only file each.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// The same while Redis refuses.
const PROBE_REFUSING: Duration = Duration::from_millis(500);

/// What is known of Redis' refusals.
pub(super) struct Refusals {
    outage: Outage,
    probed: Option<Instant>,
}

impl Default for Refusals {
    fn default() -> Refusals {
        let outage = Outage::new(
            "Redis refuses writes, so checkouts and purchases are answered 503",
            "Redis takes writes again",
        );
        Refusals { outage, probed: None }
    }
}

impl Refusals {
    /// Redis refused a call, with these words.
    pub(super) fn refused(&mut self, why: &str) {
        self.outage.failed(Instant::now(), why);
    }

    /// Whether Redis refuses at present.
    pub(super) fn is_on(&self) -> bool {
        self.outage.is_on()
    }

    /// Something failed that Redis answered: whether it refuses writes is to be found out now.
    fn probe_now(&mut self) {
        if !self.is_on() {
            self.probed = None;
        }
    }

    fn is_due(&self) -> bool {
        is_due(self.probed, if self.is_on() { PROBE_REFUSING } else { PROBE_EVERY })
    }
}

impl Keeper {
    /// A round of the keeper's failed, perhaps for this.
    pub(super) fn suspect_refusal(&mut self) {
        // A Redis that does not answer is not asked once more.
        if self.view.load().reachable {
            self.refusals.probe_now();
            self.look_at_writes();
        }
    }

    /// Tries whether Redis takes writes, if it is time to. Says when an outage begins and when it is over.
    pub(super) fn look_at_writes(&mut self) {
        if self.refusals.is_due() {
            self.refusals.probed = Some(Instant::now());
            match self.store.probe() {
                Ok(None) => self.refusals.outage.written(Instant::now()),
                Ok(Some(refusal)) => self.refusals.refused(&refusal),
                // Redis did not answer, which is another matter: the next look at its identity finds it.
                Err(_) => {}
            }
        }
        self.refusals.outage.settle(Instant::now());
    }
}

impl Store {
    /// Tries whether Redis takes what a decision writes: `Some` with its words if it refuses.
    pub fn probe(&mut self) -> Result<Option<String>, String> {
        let until = self.now_ms()? / 1000 + BUILD_SECONDS;
        self.run(|connection| {
            let digest = probe::load().query::<String>(connection);
            let called = digest.and_then(|digest| probe::call(&digest, until).exec(connection));
            match called {
                // Redis said no, and the connection is in order.
                Err(refusal) if refusal.code().is_some() => {
                    let words = [refusal.code(), refusal.detail()];
                    Ok(Some(words.into_iter().flatten().collect::<Vec<_>>().join(" ")))
                }
                done => done.map(|()| None),
            }
        })
    }
}
