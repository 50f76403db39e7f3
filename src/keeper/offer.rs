//! Records of an older epoch: answered, but not yet in the ledger when the sale was rebuilt.

use super::distributed::Keeper;
use crate::domain::{RecordKind, RecordRef, Records};
use crate::inventory::redis::scripts::{self, queue_key, state_key};
use redis::cmd;

/// Records that one script call decides.
const CHUNK: usize = 200;

impl Keeper {
    /// Offers what the writer passed on to the sale as it is now. What fits is written under the present epoch; the
    /// rest is kept apart and alarmed: it is never silently sold, nor silently forgotten.
    pub(super) fn place_stale(&mut self) -> Result<(), String> {
        while let Some(handoff) = self.held_back.pop().or_else(|| self.stale.try_recv().ok()) {
            // The handoff stays if this fails; a repetition finds what was placed already and changes nothing.
            let placed = self.place(&handoff.records);
            if placed.is_err() {
                self.held_back.push(handoff);
                return placed;
            }
        }
        Ok(())
    }

    fn place(&mut self, late: &Records) -> Result<(), String> {
        let (mut fit, mut misfit) = (Records::new(late.sale, self.epoch.number), Records::new(late.sale, late.epoch));
        let all: Vec<RecordRef<'_>> = late.iter().collect();
        for chunk in all.chunks(CHUNK) {
            let marks = self.offer(late, chunk)?;
            for (record, mark) in chunk.iter().zip(marks.bytes().chain(std::iter::repeat(b'M'))) {
                let Ok(record) = record.to_owned() else { continue };
                if mark == b'F' { fit.push(&record) } else { misfit.push(&record) }
            }
        }
        self.ledger.add_missing(&fit).map_err(|e| e.to_string())?;
        if !misfit.is_empty() {
            let (sale, count) = (late.sale.0, misfit.len());
            tracing::error!(sale, count, "records of an older epoch fit no more: kept apart in the ledger");
            self.ledger.keep_apart(&misfit, "decided under an older epoch").map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// A mark for each record: `F` it fits, anything else it does not.
    fn offer(&mut self, late: &Records, records: &[RecordRef<'_>]) -> Result<String, String> {
        let mut eval = cmd("EVAL");
        eval.arg(scripts::OFFER).arg(2).arg(state_key(late.sale)).arg(queue_key(late.sale)).arg(self.epoch.number);
        for record in records {
            let (mark, taken_ms, purchased_ms) = match record.kind {
                RecordKind::Hold => ("H", record.at_ms, 0),
                RecordKind::Purchase => ("P", 0, record.at_ms),
            };
            eval.arg(mark).arg(record.number.0).arg(record.user).arg(record.item);
            eval.arg(taken_ms).arg(record.expires_ms).arg(purchased_ms);
        }
        let reply: String = self.store.eval(&eval)?;
        match reply.split_once(' ') {
            Some(("K", marks)) => Ok(marks.to_owned()),
            // The sale has ended and its state is gone: the facts stand, there is nothing left to oversell.
            _ if reply == "N" && !self.open.iter().any(|terms| terms.sale == late.sale) => {
                Ok("F".repeat(records.len()))
            }
            _ => Err(format!("sale {} cannot take late records now: Redis says {reply}", late.sale)),
        }
    }
}
