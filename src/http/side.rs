//! What the server shares: with all its connections, with those of one worker, and with a single one.
//!
//! Owns the phases of a server's end, the counts, each worker's clock and date, the sweep that ends what is overdue, and
//! the lists of connections that have been idle longest. Invariant: a connection is ended by its own coroutine alone; others
//! only mark it and make its socket ready. Leaves reading and writing to the connection, and accepting to the acceptor.

use super::answers::Answers;
use super::response::HttpDate;
use crate::worker::{Watched, Workers};
use parking_lot::Mutex;
use rustix::net::{RecvFlags, Shutdown};
use slab::Slab;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

/// How long a new connection may still take to send its first request when the server ends: its peer was let in and has to
/// be told something.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long a connection is idle until its buffer shrinks to the usual size. Long requests that follow each other closely
/// find the buffer as it was.
const SHRINK_AFTER: Duration = Duration::from_secs(1);
/// How many connections a worker lists as those that have been idle longest. The list is made anew at each tick, so this
/// bounds how many give way between two ticks.
const LISTED_IDLE: usize = 256;

/// How far the server is on its way to the end. Only ever goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Connections stay open between requests.
    Serving,
    /// All is served; each connection is closed after the answer to its last request that has come.
    Draining,
    /// The acceptor takes in what the kernel has let in, and stops listening.
    Closing,
    /// Nothing comes any more: idle connections end too.
    Ending,
}

/// What all workers share.
pub(super) struct Common<S> {
    pub(super) service: Arc<S>,
    pub(super) workers: Workers,
    pub(super) began: Instant,
    pub(super) max_connections: usize,
    /// Connections that are open, those included that have to give way and have not yet ended.
    pub(super) connections: AtomicUsize,
    /// Of these, how many have to give way.
    pub(super) giving_way: AtomicUsize,
    /// Connections that are being told that there is no room for them.
    pub(super) refusing: AtomicUsize,
    /// Counts of all time.
    pub(super) gave_way: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) panicked: AtomicU64,
    phase: AtomicU8,
}

impl<S> Common<S> {
    pub(super) fn new(service: Arc<S>, workers: Workers, max_connections: usize) -> Common<S> {
        Common {
            service,
            workers,
            began: Instant::now(),
            max_connections,
            connections: AtomicUsize::new(0),
            giving_way: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
            gave_way: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            panicked: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Serving as u8),
        }
    }

    /// Moves on to `phase`, unless the server is further already.
    pub(super) fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn is_at_least(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) >= phase as u8
    }

    /// Open connections that do not have to give way.
    pub(super) fn in_use(&self) -> usize {
        self.connections.load(Ordering::Relaxed).saturating_sub(self.giving_way.load(Ordering::Relaxed))
    }

    /// Whether it may soon be needed to know which connections have been idle longest.
    fn is_nearly_full(&self) -> bool {
        self.in_use() + self.max_connections / 8 + 1 >= self.max_connections
    }
}

/// A worker's side of the server.
pub struct WorkerServer<S> {
    worker: usize,
    pub(super) common: Arc<Common<S>>,
    pub(super) open: Mutex<Slab<Arc<Shared>>>,
    /// The connections that have been idle longest, the one that has been so longest at the end, each with its deadline.
    /// They are not kept open by it.
    idle_longest: Mutex<Vec<(u64, Weak<Shared>)>>,
    /// Reused memory for making that list.
    idle_found: Mutex<Vec<(u64, usize)>>,
    date: Mutex<(u64, HttpDate)>,
    /// Milliseconds since the server began, as of the last tick: time limits need no more precision, and a request
    /// does not have to ask for the time.
    now_ms: AtomicU64,
    /// The service's limit of idleness. A connection's deadline less this is the time at which it became idle.
    idle_ms: u64,
    answers: Answers,
}

const BUSY: u8 = 0;
const IDLE: u8 = 1;
const GIVING_WAY: u8 = 2;

/// What others see of a connection: the sweep of its worker, and the acceptor.
pub(super) struct Shared {
    pub(super) io: Watched,
    /// When the present phase is over, in the worker's milliseconds; 0 once it is.
    deadline_ms: AtomicU64,
    /// [`IDLE`] while it waits for a request of which nothing has been read yet.
    occupation: AtomicU8,
    /// Whether it waits for the next tick, to let others run.
    paused: AtomicBool,
    /// Whether nothing has come on it yet.
    new: AtomicBool,
    /// Whether its buffer has grown. The sweep takes it back.
    grown: AtomicBool,
}

impl Shared {
    pub(super) fn new(io: Watched) -> Shared {
        Shared {
            io,
            deadline_ms: AtomicU64::new(u64::MAX),
            occupation: AtomicU8::new(BUSY),
            paused: AtomicBool::new(false),
            new: AtomicBool::new(true),
            grown: AtomicBool::new(false),
        }
    }

    /// On the worker's tick: wakes a connection that has something to notice.
    fn sweep(&self, now_ms: u64, idle_ms: u64, ending: bool) {
        let deadline = self.deadline_ms.load(Ordering::Relaxed);
        let (mut over, mut wake) = (deadline <= now_ms, self.paused.swap(false, Ordering::Relaxed));
        if self.is_idle() {
            let idle_for = Duration::from_millis(now_ms.saturating_sub(deadline.saturating_sub(idle_ms)));
            over |= ending && (!self.new.load(Ordering::Relaxed) || idle_for >= FIRST_REQUEST);
            wake |= idle_for >= SHRINK_AFTER && self.grown.swap(false, Ordering::Relaxed);
        }
        if over {
            self.deadline_ms.store(0, Ordering::Relaxed);
        }
        if wake || over {
            self.io.waker().wakeup();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.deadline_ms.load(Ordering::Relaxed) == 0
    }

    pub(super) fn set_deadline(&self, ms: u64) {
        self.deadline_ms.store(ms, Ordering::Relaxed);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.occupation.load(Ordering::Relaxed) == IDLE
    }

    /// The connection waits for a request of which nothing has been read.
    pub(super) fn set_idle(&self) {
        self.occupation.store(IDLE, Ordering::Relaxed);
    }

    /// It has read something. `false` if it had to give way just before: what it read must have no effect then.
    pub(super) fn set_busy(&self) -> bool {
        self.occupation.compare_exchange(IDLE, BUSY, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// It ends, and cannot be chosen to give way any more. Whether it was.
    pub(super) fn retire(&self) -> bool {
        self.occupation.swap(BUSY, Ordering::Relaxed) == GIVING_WAY
    }

    pub(super) fn set_paused(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Something has come on it.
    pub(super) fn set_used(&self) {
        self.new.store(false, Ordering::Relaxed);
    }

    pub(super) fn set_grown(&self) {
        self.grown.store(true, Ordering::Relaxed);
    }

    /// Whether the buffer may stay as long as it has become.
    pub(super) fn is_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// From any worker: ends the connection if it is still idle since it got `deadline`, and nothing has come on it. The end
    /// of its socket is an event on its own worker, where its coroutine then finds out.
    fn give_way(&self, deadline: u64) -> bool {
        let still = self.deadline_ms.load(Ordering::Relaxed) == deadline && self.is_idle();
        let nothing_came = || {
            let looked = rustix::net::recv(self.io.fd(), &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
            matches!(looked, Err(rustix::io::Errno::AGAIN))
        };
        let marked = still
            && nothing_came()
            && self.occupation.compare_exchange(IDLE, GIVING_WAY, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if marked {
            let _ = rustix::net::shutdown(self.io.fd(), Shutdown::Both);
        }
        marked
    }
}

impl<S> WorkerServer<S> {
    /// The side of `worker`; `idle` is the service's limit of idleness.
    pub(super) fn new(worker: usize, common: Arc<Common<S>>, idle: Duration) -> WorkerServer<S> {
        let side = WorkerServer {
            worker,
            common,
            open: Mutex::new(Slab::new()),
            idle_longest: Mutex::new(Vec::new()),
            idle_found: Mutex::new(Vec::new()),
            date: Mutex::new((0, [b' '; 29])),
            now_ms: AtomicU64::new(0),
            idle_ms: millis(idle),
            answers: Answers::default(),
        };
        side.update_date();
        side
    }

    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    pub(super) fn service(&self) -> &S {
        &self.common.service
    }

    /// Where this worker's answers are counted.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    pub(super) fn is_draining(&self) -> bool {
        self.common.is_at_least(Phase::Draining)
    }

    pub(super) fn date(&self) -> HttpDate {
        self.date.lock().1
    }

    /// The worker's milliseconds, as of its last tick.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// The end of a phase that begins now. Never 0, which says that it is over.
    pub(super) fn deadline_ms(&self, time: Duration) -> u64 {
        self.now_ms().saturating_add(millis(time)).max(1)
    }

    /// On the worker's tick: keeps the date, ends what is overdue, and lists who has been idle longest if that may be asked.
    pub(super) fn tick(&self) {
        self.update_date();
        let now_ms = millis(self.common.began.elapsed());
        self.now_ms.store(now_ms, Ordering::Relaxed);
        let ending = self.common.is_at_least(Phase::Ending);
        let open = self.open.lock();
        open.iter().for_each(|(_, connection)| connection.sweep(now_ms, self.idle_ms, ending));
        if self.common.is_nearly_full() {
            self.list_idle(&open);
        }
    }

    fn list_idle(&self, open: &Slab<Arc<Shared>>) {
        let mut found = self.idle_found.lock();
        found.clear();
        let idle = open.iter().filter(|(_, connection)| connection.is_idle());
        found.extend(idle.map(|(key, connection)| (connection.deadline_ms.load(Ordering::Relaxed), key)));
        if found.len() > LISTED_IDLE {
            found.select_nth_unstable(LISTED_IDLE);
            found.truncate(LISTED_IDLE);
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        let mut list = self.idle_longest.lock();
        list.clear();
        list.extend(found.iter().filter_map(|(deadline, key)| Some((*deadline, Arc::downgrade(open.get(*key)?)))));
    }

    /// From any worker: since when the longest idle connection of the list has been so, as a deadline.
    pub(super) fn longest_idle(&self) -> Option<u64> {
        self.idle_longest.lock().last().map(|(deadline, _)| *deadline)
    }

    /// From any worker: has the longest idle connection give way. `false` if it turns out not to be idle any more.
    pub(super) fn end_longest_idle(&self) -> bool {
        let longest = self.idle_longest.lock().pop();
        let gives_way = longest.is_some_and(|(deadline, connection)| {
            // Counted first: it may end before this thread goes on.
            self.common.giving_way.fetch_add(1, Ordering::Relaxed);
            let gives_way = connection.upgrade().is_some_and(|connection| connection.give_way(deadline));
            if !gives_way {
                self.common.giving_way.fetch_sub(1, Ordering::Relaxed);
            }
            gives_way
        });
        if gives_way {
            self.common.gave_way.fetch_add(1, Ordering::Relaxed);
        }
        gives_way
    }

    fn update_date(&self) {
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut date = self.date.lock();
        if date.0 != seconds
            && let Ok(text) = <HttpDate>::try_from(httpdate::fmt_http_date(now).as_bytes())
        {
            *date = (seconds, text);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
