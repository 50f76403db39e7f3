//! The keeper of a deployment on Redis and Postgres.
//!
//! Owns the epoch that this instance sells under and the view that its workers see. Invariant: what the view shows as
//! selling was found good, or was opened, under an epoch that this instance is a member of.

use super::milestones::{self, Milestones};
use super::owner::Owner;
use super::store::Store;
use crate::config::SaleSettings;
use crate::domain::{Records, SaleId, Terms};
use crate::inventory::{CLOCK_TOLERANCE_MS, ENDED_KEPT_MS, Inventory, SharedView, Suspicion, View};
use crate::ledger::{Epoch, Fence};
use crate::record::{Handoff, Recorder};
use crossbeam_channel::{Receiver, select};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it looks around.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often it asks the ledger whether the epoch is still the one: the other instances wait for us to let go of it.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// How often it looks whether sales are to be opened, and whether those that are open are still there.
const OPEN_EVERY: Duration = Duration::from_secs(1);
/// A suspicion is looked into at once, but not more often than this.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long starting is tried when a server cannot be reached, or says why it cannot be used.
const CUT_OFF_WAIT: Duration = Duration::from_secs(4);
/// How long starting is tried when both servers answer: rebuilding a large sale takes its time.
const START_WAIT: Duration = Duration::from_secs(120);
/// How long the openers' lock is waited for by a member of the epoch: whoever has it may be waiting for him.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(100);
/// The wait after a doubt could not be settled; it doubles up to [`MAX_RETRY`].
const MIN_RETRY: Duration = Duration::from_millis(50);
/// The longest wait between two attempts to settle a doubt: each may write a whole sale anew.
const MAX_RETRY: Duration = Duration::from_secs(1);
/// How long the writer's last records are waited for at the end.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// What the keeper works with.
pub struct Parts {
    /// The ledger.
    pub ledger: Box<dyn Fence>,
    /// Redis.
    pub store: Store,
    /// What new sales are like.
    pub settings: SaleSettings,
    /// Where the workers see what to sell.
    pub view: SharedView,
    /// What the workers found odd.
    pub suspicions: Receiver<Suspicion>,
    /// Records of another epoch, from the writer.
    pub stale: Receiver<Box<Handoff>>,
    /// The way to the writer.
    pub recorder: Arc<Recorder>,
}

/// The keeper.
pub struct Keeper {
    pub(super) ledger: Box<dyn Fence>,
    pub(super) store: Store,
    pub(super) settings: SaleSettings,
    pub(super) view: SharedView,
    pub(super) suspicions: Receiver<Suspicion>,
    pub(super) stale: Receiver<Box<Handoff>>,
    /// Those that are not placed yet.
    pub(super) late: VecDeque<Records>,
    pub(super) recorder: Arc<Recorder>,
    /// Who decides, and on how many workers; not there before the first opening.
    pub(super) inventory: Option<(Arc<dyn Inventory>, usize)>,
    pub(super) epoch: Epoch,
    /// When the ledger last did not answer, or had lost this instance's session.
    pub(super) ledger_away: Option<Instant>,
    /// The sales that are open under `epoch`, by their start.
    pub(super) open: Vec<Terms>,
    pub(super) selling: bool,
    /// Why it may be that something was lost.
    pub(super) doubt: Option<String>,
    /// When and after how long a failed attempt to settle it is repeated.
    retry: Option<(Instant, Duration)>,
    looked: Option<Instant>,
    opened: Option<Instant>,
    pub(super) maintenance: super::maintenance::Maintenance,
    pub(super) reconciliation: super::reconcile::Reconciliation,
    problem: Option<String>,
    pub(super) refusals: super::refusals::Refusals,
    milestones: Milestones,
    followed: Option<Instant>,
    pub(super) warned: Option<Terms>,
    /// Whether the sales opened ahead are still to be given this instance's settings.
    pub(super) settings_due: bool,
    /// Why this instance may not use its Redis at all: the sales in it are another ledger's.
    pub(super) refused: Option<String>,
}

impl Keeper {
    /// A keeper that has opened the running sale and those ahead. `Err` says in one line what is in the way.
    pub fn start(parts: Parts) -> Result<Keeper, String> {
        let mut keeper = Keeper {
            ledger: parts.ledger,
            store: parts.store,
            settings: parts.settings,
            view: parts.view,
            suspicions: parts.suspicions,
            stale: parts.stale,
            late: VecDeque::new(),
            recorder: parts.recorder,
            inventory: None,
            epoch: Epoch { number: 0, identity: String::new() },
            ledger_away: None,
            open: Vec::new(),
            selling: false,
            doubt: None,
            retry: None,
            looked: None,
            opened: None,
            maintenance: Default::default(),
            reconciliation: Default::default(),
            problem: None,
            refusals: Default::default(),
            milestones: Milestones::default(),
            followed: None,
            warned: None,
            settings_due: true,
            refused: None,
        };
        keeper.store.check_server()?;
        let ledger = keeper.ledger.identity().map_err(|e| format!("POSTGRES_DSN: {e}"))?;
        keeper.store = keeper.store.of_ledger(ledger);
        keeper.epoch = keeper.ledger.epoch().map_err(|e| format!("POSTGRES_DSN: {e}"))?;
        let begun = Instant::now();
        loop {
            match keeper.round() {
                Ok(()) if keeper.selling => return Ok(keeper),
                Ok(()) => {}
                // Of this no waiting comes to an end.
                Err(problem) if keeper.refused.is_some() => return Err(format!("REDIS_ADDR: {problem}")),
                Err(problem) => {
                    let waited = begun.elapsed();
                    if waited > START_WAIT || (waited > CUT_OFF_WAIT && keeper.is_cut_off()) {
                        return Err(problem);
                    }
                    keeper.report(Err(problem));
                }
            }
            std::thread::sleep(MIN_POLL_INTERVAL);
        }
    }

    fn is_cut_off(&mut self) -> bool {
        self.store.now_ms().is_err() || self.ledger.epoch().is_err()
    }

    /// Watches over the sales until `stop` is closed or says so.
    pub fn run(mut self, inventory: Arc<dyn Inventory>, workers: usize, stop: &Receiver<()>) {
        self.inventory = Some((inventory, workers));
        // An earlier life of this instance may have left records with Redis alone.
        self.maintenance.quicken();
        loop {
            let pause = if self.reconciliation.is_busy() { MIN_POLL_INTERVAL } else { POLL_INTERVAL };
            select! {
                recv(stop) -> _ => return self.finish(),
                recv(self.suspicions) -> suspicion => {
                    suspicion.into_iter().for_each(|s| self.note(s));
                    std::thread::sleep(MIN_POLL_INTERVAL);
                }
                default(pause) => {}
            }
            while let Ok(suspicion) = self.suspicions.try_recv() {
                self.note(suspicion);
            }
            let result = self.round();
            if result.is_err() {
                self.suspect_refusal();
            }
            self.report(result);
        }
    }

    /// The writer is about to end. What it passes on until then is placed.
    fn finish(&mut self) {
        let until = Instant::now() + LAST_WAIT;
        // The channel closes with the writer.
        while let Ok(handoff) = self.stale.recv_deadline(until) {
            self.take_in(&handoff.records);
        }
        while !self.late.is_empty() && Instant::now() < until {
            let result = self.round();
            self.report(result);
            std::thread::sleep(MIN_POLL_INTERVAL);
        }
    }

    pub(super) fn note(&mut self, suspicion: Suspicion) {
        let doubt = match suspicion {
            Suspicion::Refused(why) => return self.refusals.refused(&why),
            // Redis' absence is no loss; what it is like when it is back is looked at each round.
            Suspicion::Away(_) => return,
            // What these calls decided has no other way into the ledger than reconciliation.
            Suspicion::LostCalls => return self.maintenance.quicken(),
            // New connections lead to another Redis than the keeper's: it has to look at that one.
            Suspicion::Identity(_) => return self.store.reconnect(),
            // Said of a sale that is not open any more, or of an epoch that has been left since.
            Suspicion::State(sale, _) if !self.is_asked_for(sale) => return,
            Suspicion::Epoch(theirs) if theirs <= self.epoch.number => return,
            Suspicion::State(sale, what) => format!("the state of {} in Redis {what}", sale.named()),
            Suspicion::Epoch(theirs) => {
                format!("Redis carries epoch {theirs}, which another instance has opened or is about to open")
            }
        };
        self.doubt.get_or_insert(doubt);
    }

    /// Whether `sale` is open, or has ended so recently that its codes are still asked for.
    fn is_asked_for(&self, sale: SaleId) -> bool {
        let now_ms = self.store.clock().ms(Instant::now());
        self.open.iter().any(|terms| terms.sale == sale && terms.ends_ms + ENDED_KEPT_MS > now_ms)
    }

    /// Says once what is wrong, and once that it is over.
    fn report(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                if let Some(problem) = self.problem.take() {
                    tracing::info!("the keeper's work succeeds again; it failed last because: {problem}");
                }
            }
            // What a refusal by Redis prevents is told by it.
            Err(_) if self.refusals.is_on() => {}
            Err(problem) => {
                if self.problem.is_none() {
                    tracing::warn!("the keeper's work fails and is tried again: {problem}");
                }
                self.problem = Some(problem);
            }
        }
    }

    /// Looks at Redis and at the ledger; settles what is in doubt; opens what is due. Selling goes on where the ledger
    /// is away, and comes back as soon as there is no doubt.
    fn round(&mut self) -> Result<(), String> {
        // First, and also where Redis is away: the others may be closing the epoch, and wait for us to leave it.
        let looked = if is_due(self.looked, LOOK_EVERY) { self.look_at_ledger() } else { Ok(()) };
        let identity = self.store.identity();
        self.refused = None;
        if let (Owner::Other(_), Err(whose)) = (self.store.owner(), &identity) {
            self.refused = Some(whose.clone());
            self.doubt.get_or_insert_with(|| whose.clone());
        }
        if identity.is_ok() {
            self.look_at_writes();
        }
        let reachable = identity.is_ok() && !self.refusals.is_on();
        if self.view.load().reachable != reachable {
            self.view.rcu(|view| View { reachable, ..View::clone(view) });
        }
        if identity.as_ref().is_ok_and(|identity| !self.epoch.identity.is_empty() && *identity != self.epoch.identity) {
            self.doubt.get_or_insert("Redis was started anew, or is another one".into());
        }
        if let Some(doubt) = self.doubt.clone() {
            self.stop_selling(&doubt);
            if identity.is_err() {
                // Nobody who cannot reach Redis settles anything; but the others need not wait for him.
                self.drain_and_leave()?;
            } else {
                self.settle(&doubt)?;
            }
        }
        identity?;
        self.look_at_clock()?;
        if !self.open.is_empty() {
            self.resume_selling()?;
        }
        self.follow_sales()?;
        looked?;
        if is_due(self.opened, OPEN_EVERY) && self.open_due_sales()? {
            self.opened = Some(Instant::now());
            self.resume_selling()?;
        }
        self.maintain()
    }

    /// Says what is new of the sales that are on.
    fn follow_sales(&mut self) -> Result<(), String> {
        if is_due(self.followed, milestones::LOOK_EVERY) {
            self.followed = Some(Instant::now());
            let now_ms = self.store.now_ms()?;
            let Keeper { milestones, store, open, .. } = self;
            // What cannot be read now is read the next time.
            milestones.follow(now_ms, open, &mut |terms| store.progress(terms).ok().flatten());
        }
        Ok(())
    }

    /// Looks whether Redis' clock has jumped. Where it has, the ledger's clock is asked: Redis' may have been corrected.
    fn look_at_clock(&mut self) -> Result<(), String> {
        let ledger = &mut self.ledger;
        let confirm = |ms: u64| ledger.clock_ms().is_ok_and(|other_ms| other_ms.abs_diff(ms) <= CLOCK_TOLERANCE_MS);
        let (before, at) = (self.store.clock().ms(Instant::now()), Instant::now());
        self.store.look_at_clock(confirm)?;
        // Shown to the workers at once, and not with the next opening: their calls are bounded by it.
        let stepped = before.abs_diff(self.store.clock().ms(at)) > CLOCK_TOLERANCE_MS;
        if stepped && self.selling { self.publish(true) } else { Ok(()) }
    }

    /// Tries to settle the doubt, unless that has failed a moment ago.
    fn settle(&mut self, doubt: &str) -> Result<(), String> {
        if self.retry.is_some_and(|(failed, wait)| failed.elapsed() < wait) {
            return Err(format!("the doubt is not settled yet: {doubt}"));
        }
        let done = self.recover();
        let wait = self.retry.map_or(MIN_RETRY, |(_, wait)| (wait * 2).min(MAX_RETRY));
        self.retry = done.is_err().then(|| (Instant::now(), wait));
        done
    }

    fn resume_selling(&mut self) -> Result<(), String> {
        // Before the first opening, or while somebody closes the epoch, there is nothing to sell under.
        let may_sell = self.doubt.is_none() && !self.epoch.identity.is_empty();
        if may_sell && !self.selling { self.publish(true) } else { Ok(()) }
    }

    fn look_at_ledger(&mut self) -> Result<(), String> {
        // Asked before it answers: a ledger that hangs is not asked in every round.
        self.looked = Some(Instant::now());
        let looked = self.look();
        self.recorder.counters().away.store(looked.is_err(), Ordering::Relaxed);
        if looked.is_err() {
            // Its records may have found no room meanwhile.
            self.maintenance.hurry();
            self.ledger_away = self.looked;
        }
        looked
    }

    fn look(&mut self) -> Result<(), String> {
        let current = self.ledger.epoch().map_err(|e| e.to_string())?;
        if self.epoch.identity.is_empty() && current.number == self.epoch.number {
            // This instance came before the first opening, which is another one's.
            self.epoch.identity = current.identity;
        } else if current.number != self.epoch.number {
            self.doubt.get_or_insert(format!("another instance has raised the epoch to {}", current.number));
        } else if current.identity != self.epoch.identity {
            self.doubt.get_or_insert(format!("another instance is closing epoch {}", current.number));
        }
        if self.doubt.is_none() && !self.epoch.identity.is_empty() && !self.ledger.is_member() {
            // The session is gone, with Postgres or without. Redis fences us meanwhile: whoever closes the epoch closes
            // the states there first. Never of an epoch that nobody sells under: its members are waited for.
            if self.selling {
                self.ledger_away = self.looked;
            }
            self.ledger.join(self.epoch.number).map_err(|e| e.to_string())?;
        }
        let members = self.ledger.members(self.epoch.number).map_err(|e| e.to_string())?;
        self.maintenance.see_members(self.epoch.number, members);
        Ok(())
    }

    fn stop_selling(&mut self, doubt: &str) {
        if self.selling {
            tracing::error!(
                "selling stops on this instance until this is settled (epoch {}): {doubt}",
                self.epoch.number
            );
        }
        self.selling = false;
        self.view.rcu(|view| View { selling: false, ..View::clone(view) });
    }
}

/// Whether what was done `last` is to be done again.
pub(super) fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}
