//! The world that the instances live in: the scheduler, the virtual clock, and what all of them share.
//!
//! Owns whose turn it is. Invariants: one instance runs at a time, from one call of a fake to the next; the next turn is that of the
//! instance that wakes first; time passes only between turns, and shoppers and writers act while it does.

use crate::ledger::LedgerState;
use crate::redis::RedisState;
use crate::shop::{Promises, Shop, TICK};
use fastrand::Rng;
use flashsale::keeper::time::TimeSource;
use parking_lot::{Condvar, Mutex};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The virtual clock's first moment, unix milliseconds: in the middle of an hour.
pub const START_MS: u64 = 1_800_001_800_000;
/// How long a call of a fake takes.
const CALL: Duration = Duration::from_millis(1);

/// What happens to the world, or looks at it, at a moment.
type Event = (Duration, fn(&mut State));

/// An instance's thread is unwound with this when it is ended.
struct Ended;

/// All that the instances share.
pub struct World {
    state: Mutex<State>,
    turns: Vec<Condvar>,
    base: Instant,
}

/// What there is, behind one lock.
pub struct State {
    /// The time that has passed.
    pub now: Duration,
    pub random: Rng,
    pub redis: RedisState,
    pub ledger: LedgerState,
    /// The shoppers and the writer of each instance.
    pub shops: Vec<Shop>,
    pub promises: Promises,
    /// Whether a writer's transaction may take longer than an opener waits.
    pub slow_writers: bool,
    /// How many calls of fakes each instance has made.
    pub calls: Vec<u64>,
    /// The names of the calls, for a message.
    pub last_call: Vec<&'static str>,
    /// What was found wrong while the world ran.
    pub violations: Vec<String>,
    /// Ends the instance at its call of this number, before the call has an effect.
    end_at: Option<(usize, u64)>,
    /// When it was ended.
    pub ended: Option<Duration>,
    wakes: Vec<Option<Duration>>,
    turn: usize,
    ticked: Duration,
    /// What happens to the world at a moment.
    fault: Option<Event>,
    /// When the fault happened, and the calls that each instance had made by then.
    pub struck: Option<(Duration, Vec<u64>)>,
    /// When an instance sold again after the fault and after the last end of an instance, and the calls by then.
    pub resumed: Option<(Duration, Vec<u64>)>,
    /// Looks at the world at a moment.
    check: Option<Event>,
}

impl State {
    /// The clock of both servers, unix milliseconds.
    pub fn unix_ms(&self) -> u64 {
        START_MS + self.now.as_millis() as u64
    }

    pub fn is_alive(&self, instance: usize) -> bool {
        self.wakes[instance].is_some()
    }

    /// Whether `instance` sells, and Redis under the same epoch.
    pub fn sells(&self, instance: usize) -> bool {
        let view = self.shops[instance].view.load();
        let Some(terms) = view.sale_at(self.unix_ms()) else { return false };
        let in_redis = self.redis.states.get(&terms.sale);
        self.is_alive(instance)
            && view.selling
            && view.identity == self.redis.identity()
            && in_redis.is_some_and(|found| found.is_open && found.epoch == view.epoch)
    }

    fn pass_time(&mut self, until: Duration) {
        while self.ticked + TICK <= until {
            self.ticked += TICK;
            self.now = self.ticked;
            if let Some((at, strike)) = self.fault
                && at <= self.now
            {
                (self.fault, self.struck) = (None, Some((self.now, self.calls.clone())));
                strike(self);
            }
            if let Some((at, check)) = self.check
                && at <= self.now
            {
                self.check = None;
                check(self);
            }
            for instance in 0..self.shops.len() {
                if self.is_alive(instance) {
                    crate::shop::tick(self, instance);
                }
            }
            if self.struck.is_some() && self.resumed.is_none() && (0..self.shops.len()).any(|at| self.sells(at)) {
                self.resumed = Some((self.now, self.calls.clone()));
            }
        }
        self.now = until;
    }

    /// Gives the turn to the instance that wakes first.
    fn next_turn(&mut self) {
        let first = self
            .wakes
            .iter()
            .enumerate()
            .filter_map(|(instance, wake)| Some((wake.as_ref().copied()?, instance)))
            .min();
        if let Some((wake, instance)) = first {
            self.pass_time(wake.max(self.now));
            self.turn = instance;
        } else {
            self.turn = usize::MAX;
        }
    }

    /// The process of `instance` is gone: its sessions end, and what it had not written is lost.
    fn end(&mut self, instance: usize) {
        self.wakes[instance] = None;
        self.ledger.end_sessions(instance);
        self.shops[instance].forget();
    }
}

impl World {
    /// A world for so many instances.
    pub fn new(instances: usize, seed: u64) -> World {
        World {
            state: Mutex::new(State {
                now: Duration::ZERO,
                random: Rng::with_seed(seed),
                redis: RedisState::default(),
                ledger: LedgerState::default(),
                promises: Promises::default(),
                shops: (0..instances).map(|_| Shop::new()).collect(),
                slow_writers: true,
                calls: vec![0; instances],
                last_call: vec![""; instances],
                violations: Vec::new(),
                end_at: None,
                ended: None,
                // They start one after the other.
                wakes: (0..instances).map(|instance| Some(Duration::from_millis(40 * instance as u64))).collect(),
                turn: 0,
                ticked: Duration::ZERO,
                fault: None,
                struck: None,
                resumed: None,
                check: None,
            }),
            turns: (0..instances).map(|_| Condvar::new()).collect(),
            base: Instant::now(),
        }
    }

    /// Has `strike` happen at `at`.
    pub fn with_fault(mut self, at: Duration, strike: fn(&mut State)) -> World {
        self.state.get_mut().fault = Some((at, strike));
        self
    }

    /// All writers commit in time.
    pub fn with_quick_writers(mut self) -> World {
        self.state.get_mut().slow_writers = false;
        self
    }

    /// Has `check` look at the world at `at`.
    pub fn checked(mut self, at: Duration, check: fn(&mut State)) -> World {
        self.state.get_mut().check = Some((at, check));
        self
    }

    /// Ends `instance` at its `call`th call.
    pub fn ending(mut self, instance: usize, call: u64) -> World {
        self.state.get_mut().end_at = Some((instance, call));
        self
    }

    /// Runs `life` for each instance until all have returned or were ended.
    pub fn run(self, life: impl Fn(&Instance) + Sync) -> State {
        let world = Arc::new(self);
        let instances = world.turns.len();
        let failed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..instances)
                .map(|number| {
                    let (instance, life) = (Instance { world: world.clone(), number }, &life);
                    scope.spawn(move || instance.live(life))
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).next()
        });
        if let Some(panic) = failed {
            resume_unwind(panic);
        }
        Arc::into_inner(world).expect("no instance is left").state.into_inner()
    }
}

/// An instance's place in the world.
#[derive(Clone)]
pub struct Instance {
    world: Arc<World>,
    pub number: usize,
}

impl Instance {
    /// Runs until `life` returns or the instance is ended; returns another panic.
    fn live(&self, life: impl Fn(&Instance)) -> Option<Box<dyn std::any::Any + Send>> {
        {
            let mut state = self.world.state.lock();
            while state.turn != self.number {
                self.world.turns[self.number].wait(&mut state);
            }
        }
        let panic = catch_unwind(AssertUnwindSafe(|| life(self))).err().filter(|panic| !panic.is::<Ended>());
        let mut state = self.world.state.lock();
        if state.is_alive(self.number) {
            state.end(self.number);
            self.hand_on(&mut state);
        }
        panic
    }

    fn hand_on(&self, state: &mut State) {
        state.next_turn();
        if let Some(next) = self.world.turns.get(state.turn) {
            next.notify_one();
        }
    }

    /// Lets the others run for `time`, unless the instance is ended here.
    fn step(&self, name: &'static str, time: Duration) {
        let mut state = self.world.state.lock();
        let me = self.number;
        state.calls[me] += 1;
        state.last_call[me] = name;
        if state.end_at == Some((me, state.calls[me])) {
            (state.ended, state.resumed) = (Some(state.now), None);
            state.end(me);
            self.hand_on(&mut state);
            drop(state);
            // No message is printed for it.
            resume_unwind(Box::new(Ended));
        }
        state.wakes[me] = Some(state.now + time);
        self.hand_on(&mut state);
        while state.turn != me {
            self.world.turns[me].wait(&mut state);
        }
    }

    /// A call of a fake: the others run for a moment, then it has its effect, at once.
    pub fn call<T>(&self, name: &'static str, effect: impl FnOnce(&mut State) -> T) -> T {
        self.step(name, CALL);
        effect(&mut self.world.state.lock())
    }

    /// Calls again until there is a result, or `wait` is over.
    pub fn poll<T>(
        &self,
        name: &'static str,
        wait: Duration,
        every: Duration,
        mut effect: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let until = self.look(|state| state.now) + wait;
        loop {
            if let Some(done) = self.call(name, &mut effect) {
                return Some(done);
            }
            if self.look(|state| state.now) >= until {
                return None;
            }
            self.step(name, every);
        }
    }

    /// Looks without a step.
    pub fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.world.state.lock())
    }
}

impl TimeSource for Instance {
    fn now(&self) -> Instant {
        self.world.base + self.look(|state| state.now)
    }

    fn sleep(&self, duration: Duration) {
        self.step("sleep", duration);
    }
}

impl Instance {
    /// How far away a moment of [`TimeSource::now`] is.
    pub fn left(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.now())
    }
}
