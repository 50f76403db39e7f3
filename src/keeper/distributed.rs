//! The keeper of a deployment on Redis and Postgres.
//!
//! Owns the order in which the concerns of keeping get their turns, and the view that the workers sell by. Invariant: what the view
//! shows as selling was found good, or was opened, under an epoch that this instance is a member of. Leaves each concern to the
//! struct of its own: [`Membership`], [`Recovery`], [`OpenSales`], [`LateRecords`], [`Maintenance`].

use super::clock::is_outdated;
use super::error::KeeperError;
use super::late_records::LateRecords;
use super::maintenance::Maintenance;
use super::membership::Membership;
use super::milestones::{self, Milestones};
use super::open_sales::OpenSales;
use super::own_work::OwnWork;
use super::owner;
use super::present::Present;
use super::recovery::{Attempt, Recovery};
use super::refusals::Refusals;
use super::sale_store::{Owner, SaleStore};
use super::servers::Servers;
use super::time::{TimeSource, is_due};
use crate::config::SaleSettings;
use crate::inventory::{LostCalls, SharedView, Suspicion, View};
use crate::ledger::SharedLedger;
use crate::record::Handoff;
use crossbeam_channel::{Receiver, select};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The time between two rounds.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The time between two rounds at least: a suspicion is looked into at once, but not more often than this.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long starting is tried when Redis or the ledger cannot be reached or refuses.
const CUT_OFF_WAIT: Duration = Duration::from_secs(4);
/// How long starting is tried when both servers answer: rebuilding a large sale takes its time.
const START_WAIT: Duration = Duration::from_secs(120);
/// How long the writer's last records are waited for at the end. The end of the process leaves the keeper that much time.
pub const LAST_WAIT: Duration = Duration::from_secs(3);

/// What the keeper works with.
pub struct Parts {
    /// The ledger.
    pub ledger: Box<dyn SharedLedger>,
    /// Redis.
    pub store: Box<dyn SaleStore>,
    /// The clock that it waits by.
    pub time: Arc<dyn TimeSource>,
    /// The terms of new sales.
    pub settings: SaleSettings,
    /// Where the workers see what to sell.
    pub view: SharedView,
    /// What the workers found odd.
    pub suspicions: Receiver<Suspicion>,
    /// Set by a worker that lost calls.
    pub lost_calls: LostCalls,
    /// Records of another epoch, from the writer.
    pub stale: Receiver<Box<Handoff>>,
    /// The work of this instance while it starts.
    pub own: Box<dyn OwnWork>,
}

/// The keeper.
pub struct Keeper {
    servers: Servers,
    view: SharedView,
    suspicions: Receiver<Suspicion>,
    lost_calls: LostCalls,
    own: Box<dyn OwnWork>,
    /// Whether the instance serves shoppers. While it starts, it does only what the first opening needs.
    is_serving: bool,
    /// Whether the view shows that sales sell.
    selling: bool,
    membership: Membership,
    recovery: Recovery,
    sales: OpenSales,
    late: LateRecords,
    maintenance: Maintenance,
    refusals: Refusals,
    milestones: Milestones,
    /// When the log's lines on the sales' course were looked for last.
    followed: Option<Instant>,
    /// Why the last round failed, if it did.
    problem: Option<KeeperError>,
}

impl Keeper {
    /// A keeper that has opened the running sale and those ahead. An error says why it cannot.
    pub fn start(parts: Parts) -> Result<Keeper, KeeperError> {
        let mut keeper = Keeper::connect(parts)?;
        keeper.servers.await_clocks()?;
        let begun = keeper.servers.now();
        loop {
            match keeper.round() {
                Ok(()) if keeper.selling => return Ok(keeper),
                Ok(()) => {}
                Err(KeeperError::Foreign(why)) => {
                    // Waiting does not help against this.
                    return Err(KeeperError::Unusable { setting: "REDIS_ADDR", why });
                }
                Err(problem) => {
                    let waited = keeper.servers.now().saturating_duration_since(begun);
                    if waited > START_WAIT || (waited > CUT_OFF_WAIT && keeper.is_cut_off()) {
                        return Err(problem);
                    }
                    keeper.report(Err(problem));
                }
            }
            keeper.servers.time.sleep(MIN_POLL_INTERVAL);
        }
    }

    /// A keeper that has reached both servers and has opened nothing yet. [`Keeper::turn`] goes on.
    pub fn connect(parts: Parts) -> Result<Keeper, KeeperError> {
        let unusable = |why: KeeperError| KeeperError::Unusable { setting: "POSTGRES_DSN", why: why.to_string() };
        let mut servers = Servers::new(parts.ledger, parts.store, parts.time);
        servers.store.check_server()?;
        servers.identify().map_err(unusable)?;
        let mut membership = Membership::none();
        membership.epoch = servers.ledger.epoch().map_err(|e| unusable(e.into()))?;
        Ok(Keeper {
            servers,
            view: parts.view,
            suspicions: parts.suspicions,
            lost_calls: parts.lost_calls,
            own: parts.own,
            is_serving: false,
            selling: false,
            membership,
            recovery: Recovery::default(),
            sales: OpenSales::none(parts.settings),
            late: LateRecords::none(parts.stale),
            maintenance: Maintenance::default(),
            refusals: Refusals::default(),
            milestones: Milestones::default(),
            followed: None,
            problem: None,
        })
    }

    fn is_cut_off(&mut self) -> bool {
        self.servers.now_ms().is_err() || self.servers.ledger.epoch().is_err()
    }

    /// Watches over the sales until a message comes on `stop`, or until its sender is gone. `own` is the work of this
    /// instance from now on.
    pub fn run(mut self, own: Box<dyn OwnWork>, stop: &Receiver<()>) {
        self.serve(own);
        loop {
            let pause = self.pause();
            select! {
                recv(stop) -> _ => return self.finish(),
                recv(self.suspicions) -> suspicion => {
                    suspicion.into_iter().for_each(|s| self.note(s));
                    self.servers.time.sleep(MIN_POLL_INTERVAL);
                }
                default(pause) => {}
            }
            self.turn();
        }
    }

    /// The instance serves shoppers from now on; `own` is its work.
    pub fn serve(&mut self, own: Box<dyn OwnWork>) {
        (self.own, self.is_serving) = (own, true);
        // An earlier life of this instance may have left records with Redis alone.
        self.maintenance.quicken(self.servers.now());
    }

    /// How long to wait before the next [`Keeper::turn`], unless a worker finds something odd.
    pub fn pause(&self) -> Duration {
        if self.maintenance.is_busy() { MIN_POLL_INTERVAL } else { POLL_INTERVAL }
    }

    /// Takes in what the workers found odd and makes one round. What fails is logged, and tried again in the next turn.
    pub fn turn(&mut self) {
        while let Ok(suspicion) = self.suspicions.try_recv() {
            self.note(suspicion);
        }
        if self.lost_calls.swap(false, Ordering::AcqRel) {
            // What these calls decided comes into the ledger by reconciliation alone.
            self.maintenance.quicken(self.servers.now());
        }
        let result = self.round();
        // The failure may be a refusal of Redis to write. A Redis that does not answer is not asked once more.
        if result.is_err() && self.view.load().reachable {
            self.refusals.probe_now();
            self.refusals.look(&mut self.servers);
        }
        self.report(result);
    }

    /// The writer is about to end. What it passes on until then is placed.
    fn finish(&mut self) {
        let until = self.servers.now() + LAST_WAIT;
        if !self.late.take_last(until) {
            tracing::warn!(
                "the ledger's writer has not ended within {LAST_WAIT:?}: records of an older epoch that it still passes on are not \
                 offered to their sales"
            );
        }
        while !self.late.is_empty() && self.servers.now() < until {
            let result = self.round();
            self.report(result);
            self.servers.time.sleep(MIN_POLL_INTERVAL);
        }
    }

    /// Takes note of a worker's report. Where the next round finds out by itself what follows, the report is dropped.
    fn note(&mut self, suspicion: Suspicion) {
        let now = self.servers.now();
        let why = match suspicion {
            Suspicion::Refused(why) => return self.refusals.refused(now, &why),
            // Redis' absence is no loss. The report has only woken the keeper: each round looks at Redis' identity and at
            // the states.
            Suspicion::Away => return,
            // New connections lead to another Redis than the keeper's: it has to look at that one.
            Suspicion::Identity => return self.servers.store.reconnect(),
            // The sale is not open any more.
            Suspicion::State(sale, _) | Suspicion::Unreadable { sale, .. }
                if !self.sales.is_asked_for(sale, self.servers.clock().ms(now)) =>
            {
                return;
            }
            // The state is of an epoch that this instance has left.
            Suspicion::Unreadable { epoch, .. } if epoch != self.membership.epoch.number => return,
            Suspicion::Unreadable { sale, epoch, why } => {
                let why = format!("a script cannot read the state of {} in Redis: {why}", sale.named());
                return self.recovery.suspect_unreadable(now, epoch, why);
            }
            Suspicion::Epoch(theirs) if theirs <= self.membership.epoch.number => return,
            Suspicion::State(sale, what) => format!("the state of {} in Redis {what}", sale.named()),
            Suspicion::Epoch(theirs) => {
                format!("Redis carries epoch {theirs}, which another instance has opened or is about to open")
            }
        };
        self.recovery.suspect(why);
    }

    /// Logs once that the work fails, and once that it succeeds again.
    fn report(&mut self, result: Result<(), KeeperError>) {
        match result {
            Ok(()) => {
                if let Some(problem) = self.problem.take() {
                    tracing::info!("the keeper's work succeeds again; it failed last because: {problem}");
                }
            }
            // The log says already that Redis refuses; this failure follows from that.
            Err(_) if self.refusals.is_on() => {}
            Err(problem) => {
                if self.problem.is_none() {
                    tracing::warn!("the keeper's work fails and is tried again: {problem}");
                }
                self.problem = Some(problem);
            }
        }
    }

    /// One round, and what follows from its failure.
    fn round(&mut self) -> Result<(), KeeperError> {
        let result = self.do_round();
        self.membership.note_outage(self.servers.now(), &result);
        match &result {
            Err(KeeperError::SuspectedLoss(why)) => self.recovery.suspect(why.clone()),
            Err(KeeperError::Unreadable(why)) => {
                let (now, epoch) = (self.servers.now(), self.membership.epoch.number);
                self.recovery.suspect_unreadable(now, epoch, why.clone());
            }
            _ => {}
        }
        result
    }

    /// Looks at Redis and at the ledger; settles a suspected loss; opens the sales that are due. Selling goes on where the
    /// ledger is away, and begins again as soon as no loss is suspected.
    fn do_round(&mut self) -> Result<(), KeeperError> {
        // First, and also if Redis is away: another instance may be closing the epoch, and waits until this one has left it.
        let now = self.servers.now();
        let looked = if self.membership.begin_look(now) { self.look_at_ledger() } else { Ok(()) };
        let redis = owner::look(&mut self.servers);
        match &redis {
            Err(KeeperError::Foreign(whose)) => self.recovery.suspect(whose.clone()),
            Ok(redis) if self.membership.is_open() && redis.identity != self.membership.epoch.identity => {
                self.recovery.suspect("Redis was started anew, or is another one".into());
            }
            _ => {}
        }
        if redis.is_ok() {
            self.refusals.look(&mut self.servers);
        }
        self.show_reachable(redis.is_ok());
        let is_suspected = self.recovery.suspected().is_some();
        if is_suspected {
            self.stop_selling();
            if redis.is_ok() {
                self.settle()?;
            } else {
                // An instance that cannot reach Redis settles nothing; but the others need not wait for it.
                self.membership.drain_and_leave(&mut self.servers, &*self.own)?;
            }
        }
        // `found` is older than the recovery, which has claimed the database.
        let found = redis?.owner;
        let owner = if is_suspected { Owner::Ours } else { found };
        self.servers.look_at_clock()?;
        self.show_clock();
        if !self.sales.open().is_empty() {
            self.resume_selling()?;
        }
        self.follow_sales()?;
        // All that follows needs the ledger. What stands above does not, so selling goes on without it.
        looked?;
        if self.sales.is_due(self.servers.now()) {
            let done = self.sales.open_due(&mut self.servers, &mut self.membership, &owner)?;
            self.publish(self.selling)?;
            if done {
                self.resume_selling()?;
            }
        }
        self.maintain()
    }

    fn look_at_ledger(&mut self) -> Result<(), KeeperError> {
        let looked = self.try_look_at_ledger();
        self.own.counters().away.store(looked.is_err(), Ordering::Relaxed);
        self.membership.note_outage(self.servers.now(), &looked);
        if looked.is_err() {
            // Records may find no room on their way to it meanwhile.
            self.maintenance.hurry();
        }
        looked
    }

    fn try_look_at_ledger(&mut self) -> Result<(), KeeperError> {
        if let Some(why) = self.membership.check_epoch(&mut self.servers)? {
            self.recovery.suspect(why);
        }
        if self.recovery.suspected().is_none() {
            self.membership.renew(&mut self.servers, self.selling)?;
        }
        let epoch = self.membership.epoch.number;
        let members = self.servers.ledger.members(epoch)?;
        self.maintenance.see_members(self.servers.now(), epoch, members);
        Ok(())
    }

    fn show_reachable(&self, answers: bool) {
        let reachable = answers && !self.refusals.is_on();
        if self.view.load().reachable != reachable {
            self.view.rcu(|view| View { reachable, ..View::clone(view) });
        }
    }

    /// Shows the workers the clock, which bounds their calls. Not only when sales are opened, since that needs the ledger.
    fn show_clock(&self) {
        let clock = self.servers.clock();
        if is_outdated(&self.view.load().clock, &clock, self.servers.now()) {
            self.view.rcu(|view| View { clock, ..View::clone(view) });
        }
    }

    fn stop_selling(&mut self) {
        if self.selling {
            tracing::error!(
                "selling stops on this instance until this is settled (epoch {}): {}",
                self.membership.epoch.number,
                self.recovery.suspected().unwrap_or_default()
            );
        }
        self.selling = false;
        self.view.rcu(|view| View { selling: false, ..View::clone(view) });
    }

    /// Tries to settle the suspected loss, unless that has failed a moment ago.
    fn settle(&mut self) -> Result<(), KeeperError> {
        let begun = self.servers.now();
        self.recovery.check_due(begun)?;
        self.maintenance.drop_reconciliation(&mut self.servers);
        let attempt = Attempt {
            unreadable: self.recovery.unreadable(),
            membership: &mut self.membership,
            sales: &mut self.sales,
            late: &mut self.late,
            own: &*self.own,
            suspicions: &self.suspicions,
        };
        let done = attempt.run(&mut self.servers);
        let now = self.servers.now();
        self.recovery.attempted(now, done.is_ok());
        done?;
        // The suspicions until now are settled with it. If something is still not as it should be, the workers report it
        // again.
        while self.suspicions.try_recv().is_ok() {}
        let took = now.saturating_duration_since(begun);
        let (sales, epoch) = (self.sales.open().len(), self.membership.epoch.number);
        tracing::info!("recovered: epoch {epoch}, {sales} sales, {took:.1?}; this instance sells again");
        Ok(())
    }

    fn resume_selling(&mut self) -> Result<(), KeeperError> {
        // Before the first opening, or while an instance closes the epoch, there is no epoch to sell under.
        let may_sell = self.recovery.suspected().is_none() && self.membership.is_open();
        if may_sell && !self.selling { self.publish(true) } else { Ok(()) }
    }

    /// Shows the workers the open sales, and whether these sell.
    fn publish(&mut self, selling: bool) -> Result<(), KeeperError> {
        let now_ms = self.servers.now_ms()?;
        self.sales.drop_ended(now_ms);
        assert!(
            !selling || (self.membership.is_open() && self.recovery.suspected().is_none()),
            "nothing is sold without an epoch, or while a loss is suspected"
        );
        let confirmed = |sale| (sale, self.maintenance.confirmed_ms(sale));
        self.view.store(Arc::new(View {
            epoch: self.membership.epoch.number,
            selling,
            reachable: !self.refusals.is_on(),
            sales: self.sales.open().to_vec(),
            confirmed: self.sales.open().iter().map(|terms| confirmed(terms.sale)).collect(),
            identity: self.membership.epoch.identity.clone(),
            clock: self.servers.clock(),
        }));
        self.selling = selling;
        Ok(())
    }

    /// Logs the milestones of the sales that are on.
    fn follow_sales(&mut self) -> Result<(), KeeperError> {
        let now = self.servers.now();
        if is_due(self.followed, now, milestones::LOOK_EVERY) {
            self.followed = Some(now);
            let now_ms = self.servers.now_ms()?;
            let Keeper { milestones, servers, sales, .. } = self;
            // What cannot be read now is read the next time.
            milestones.follow(now_ms, sales.open(), &mut |terms| servers.store.progress(terms).ok().flatten());
        }
        Ok(())
    }

    /// Places late records, and does the regular work that is due.
    fn maintain(&mut self) -> Result<(), KeeperError> {
        let present = Present {
            open: self.sales.open(),
            epoch: self.membership.epoch.number,
            counters: self.own.counters(),
            suspicions: &self.suspicions,
        };
        self.late.place_stale(&mut self.servers, &present)?;
        if !self.is_serving {
            // Shoppers wait for the start, and nothing can be missing that is not missing a moment later.
            return Ok(());
        }
        self.maintenance.run(&mut self.servers, &present)
    }
}
