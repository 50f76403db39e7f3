//! The shared state of a server: of all its connections, of those of one worker, and of a single one.
//!
//! Owns the phases of a server's end, the counts, each worker's clock and date, the sweep at each tick that wakes
//! connections whose time is over, and the lists of the connections that have been idle longest. Invariant: only a
//! connection's own coroutine ends it; others mark it and make its socket ready. Leaves reading and writing to the
//! connection, and accepting to the acceptor.

use super::answers::Answers;
use super::buffers::SpareBuffers;
use super::response::HttpDate;
use crate::worker::{Watched, Workers};
use parking_lot::Mutex;
use rustix::net::{RecvFlags, Shutdown};
use slab::Slab;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

/// How long a new connection may still take to send its first request when the server ends: the kernel completed its
/// handshake, so its peer expects an answer.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long a connection must be idle before its buffer shrinks to the usual size, so that long requests in close succession
/// do not grow it again and again.
const SHRINK_AFTER: Duration = Duration::from_secs(1);
/// How many connections a worker's list of the longest idle ones has at most. The list is made at each tick, so this bounds
/// how many give way between two ticks.
const LISTED_IDLE: usize = 256;

/// The phases of a server's life. They follow each other in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Connections stay open between requests.
    Serving,
    /// All requests are served; each connection is closed after the answer to the last request that has arrived on it.
    Draining,
    /// The acceptor accepts the connections whose handshakes have begun, and stops listening.
    Closing,
    /// No new connection can come: idle connections end too.
    Ending,
}

/// The state that all workers share.
pub(super) struct Common<S> {
    pub(super) service: Arc<S>,
    pub(super) workers: Workers,
    pub(super) began: Instant,
    pub(super) max_connections: usize,
    /// Open connections, including those that have to give way and have not ended yet.
    pub(super) connections: AtomicUsize,
    /// Open connections that have to give way.
    pub(super) giving_way: AtomicUsize,
    /// Open connections that are being refused.
    pub(super) refusing: AtomicUsize,
    /// Connections that gave way since the server's start; the next two count likewise.
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

    /// Enters `phase`, unless the server is in a later one.
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

    /// Whether so few places are free that connections may have to give way before the next tick.
    fn is_nearly_full(&self) -> bool {
        self.in_use() + self.max_connections / 8 + 1 >= self.max_connections
    }
}

/// A worker's side of the server.
pub struct WorkerServer<S> {
    worker: usize,
    pub(super) common: Arc<Common<S>>,
    pub(super) open: Mutex<Slab<Arc<Shared>>>,
    /// The connections that have been idle longest, each with its deadline; the longest idle one is the last. The list does
    /// not keep them open.
    idle_longest: Mutex<Vec<(u64, Weak<Shared>)>>,
    /// Reused memory in which that list is made.
    idle_found: Mutex<Vec<(u64, usize)>>,
    date: Mutex<(u64, HttpDate)>,
    /// Milliseconds from the server's start to the last tick. Time limits need no more precision, and a request needs no
    /// system call for the time.
    now_ms: AtomicU64,
    /// The service's time limit for idle connections. An idle connection's deadline less this is when it became idle.
    idle_ms: u64,
    answers: Answers,
    /// The buffers that no connection of this worker needs at the moment.
    pub(super) spare: SpareBuffers,
}

const BUSY: u8 = 0;
const IDLE: u8 = 1;
const GIVING_WAY: u8 = 2;

/// The part of a connection that its worker's sweep and the acceptor use.
pub(super) struct Shared {
    pub(super) io: Watched,
    /// The end of the present phase, in the worker's milliseconds; 0 once it has passed.
    deadline_ms: AtomicU64,
    /// [`IDLE`] while it waits for a request of which nothing has been read yet.
    occupation: AtomicU8,
    /// Whether it waits for the next tick, so that others run.
    paused: AtomicBool,
    /// Whether no byte has come on it yet.
    new: AtomicBool,
    /// Whether its buffer has grown and may not shrink yet. The sweep clears it.
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

    /// On the worker's tick: wakes the connection if its time is over, its pause ends, or its buffer may shrink.
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

    /// The connection has read something. `false` if it had to give way just before: then what it read must have no effect.
    pub(super) fn set_busy(&self) -> bool {
        self.occupation.compare_exchange(IDLE, BUSY, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The connection ends, and cannot be chosen to give way any more. Returns whether it was chosen.
    pub(super) fn retire(&self) -> bool {
        self.occupation.swap(BUSY, Ordering::Relaxed) == GIVING_WAY
    }

    pub(super) fn set_paused(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Bytes have come on the connection.
    pub(super) fn set_used(&self) {
        self.new.store(false, Ordering::Relaxed);
    }

    pub(super) fn set_grown(&self) {
        self.grown.store(true, Ordering::Relaxed);
    }

    /// Whether the buffer has grown and may not shrink yet.
    pub(super) fn is_grown(&self) -> bool {
        self.grown.load(Ordering::Relaxed)
    }

    /// From any worker: marks the connection and shuts its socket down, if it is idle since it got `deadline` and nothing
    /// has come on it. The end of the socket is an event on its own worker, which wakes its coroutine; that one ends it.
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
    /// The side of `worker`; `idle` is the service's time limit for idle connections.
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
            spare: SpareBuffers::default(),
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

    /// The counters of this worker's answers.
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

    /// The end of a phase that begins now, in the worker's milliseconds. Never 0, which stands for a phase that is over.
    pub(super) fn deadline_ms(&self, time: Duration) -> u64 {
        self.now_ms().saturating_add(millis(time)).max(1)
    }

    /// On the worker's tick: updates the date, wakes connections whose time is over so that they end, and lists the longest
    /// idle ones if some may have to give way.
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

    /// From any worker: the deadline of the longest idle connection in the list.
    pub(super) fn longest_idle(&self) -> Option<u64> {
        self.idle_longest.lock().last().map(|(deadline, _)| *deadline)
    }

    /// From any worker: makes the longest idle connection give way. `false` if it is not idle any more.
    pub(super) fn end_longest_idle(&self) -> bool {
        let longest = self.idle_longest.lock().pop();
        let gives_way = longest.is_some_and(|(deadline, connection)| {
            // Counted first: the connection may end before this thread goes on.
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
        if date.0 != seconds {
            // In place: a String would be the one allocation of an idle worker.
            let mut text: HttpDate = [b' '; 29];
            if write!(text.as_mut_slice(), "{}", httpdate::HttpDate::from(now)).is_ok() {
                *date = (seconds, text);
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
