//! Whether Redis takes the writes of decisions.
//!
//! A Redis that is connected can refuse them: its memory is full, a snapshot failed, replicas are missing, an ACL
//! forbids a command. Owns the probe, and the one line at the beginning of such an outage and the one at its end.
//! Invariant: the end is found without shoppers, since a load balancer sends none to an unhealthy instance. Leaves to
//! others whether Redis can be reached, and what it has lost.

use super::build::BUILD_SECONDS;
use super::servers::Servers;
use super::time::is_due;
use crate::ledger::outage::Outage;
use std::time::{Duration, Instant};

/// How often it is tried whether Redis takes writes, while it does as far as is known. Some 200 bytes of Redis'
/// append-only file each.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// The same while Redis refuses.
const PROBE_REFUSING: Duration = Duration::from_millis(500);

/// Redis' refusals, as far as they are known.
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
    pub(super) fn refused(&mut self, now: Instant, why: &str) {
        self.outage.failed(now, why);
    }

    /// Whether Redis refuses at present.
    pub(super) fn is_on(&self) -> bool {
        self.outage.is_on()
    }

    /// A round failed although Redis answers: the next [`Refusals::look`] tries at once whether it refuses writes.
    pub(super) fn probe_now(&mut self) {
        if !self.is_on() {
            self.probed = None;
        }
    }

    /// Tries whether Redis takes writes, if it is time to. Logs when an outage begins and when it is over.
    pub(super) fn look(&mut self, servers: &mut Servers) {
        let now = servers.now();
        if is_due(self.probed, now, if self.is_on() { PROBE_REFUSING } else { PROBE_EVERY }) {
            self.probed = Some(now);
            let until_s = servers.now_ms().map(|now_ms| now_ms / 1000 + BUILD_SECONDS);
            match until_s.and_then(|until_s| servers.store.probe(until_s)) {
                Ok(None) => self.outage.written(servers.now()),
                Ok(Some(refusal)) => self.refused(servers.now(), &refusal),
                // Redis did not answer: the next look at its identity finds that.
                Err(_) => {}
            }
        }
        self.outage.settle(servers.now());
    }
}
