//! The servers that an instance needs, and how many sets of them may run at once.
//!
//! A [`Stack`] is what one test runs on: Redis and Postgres, or nothing but a folder for the embedded mode.
//! It holds a permit, so that the tests of one binary do not swamp a small machine.

pub use super::postgres_server::Postgres;
pub use super::redis_server::Redis;

use super::app::{App, Builder};
use super::ledger::Ledger;
use super::process;
use std::sync::{Condvar, Mutex};
use tempfile::TempDir;

/// How many stacks run at the same time.
const PERMITS: usize = 3;

static FREE: Mutex<usize> = Mutex::new(PERMITS);
static FREED: Condvar = Condvar::new();

/// The right to run a part of the machine's load. Taken in one go, so that two tests cannot wait for each other.
pub struct Permit(usize);

impl Permit {
    fn take(count: usize) -> Permit {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        while *free < count {
            free = FREED.wait(free).unwrap_or_else(|e| e.into_inner());
        }
        *free -= count;
        Permit(count)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(|e| e.into_inner()) += self.0;
        FREED.notify_all();
    }
}

/// Where the inventory and the ledger are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Redis and Postgres.
    Distributed,
    /// In the process, and a file.
    Embedded,
}

enum Backends {
    Distributed { redis: Redis, postgres: Postgres },
    Embedded { data: TempDir },
}

/// What one test runs on.
pub struct Stack {
    backends: Backends,
    // Dropped last: the next test starts once this one's servers have ended.
    _permit: Permit,
}

impl Stack {
    /// A stack for an ordinary test.
    pub fn new(mode: Mode) -> Stack {
        Stack::with(mode, 1)
    }

    /// A stack that has the machine to itself: for load, and for what is measured in time.
    pub fn alone(mode: Mode) -> Stack {
        Stack::with(mode, PERMITS)
    }

    fn with(mode: Mode, permits: usize) -> Stack {
        let permit = Permit::take(permits);
        let backends = match mode {
            Mode::Distributed => Backends::Distributed { redis: Redis::start(), postgres: Postgres::start() },
            Mode::Embedded => Backends::Embedded { data: process::temp_dir() },
        };
        Stack { backends, _permit: permit }
    }

    /// A distributed stack on a Redis of the test's choice.
    pub fn on_redis(redis: Redis) -> Stack {
        Stack { backends: Backends::Distributed { redis, postgres: Postgres::start() }, _permit: Permit::take(1) }
    }

    /// An instance to be on this stack. Several may run on a distributed one.
    pub fn app(&self) -> Builder {
        match &self.backends {
            Backends::Distributed { redis, postgres } => {
                App::builder().env("REDIS_ADDR", redis.addr()).env("POSTGRES_DSN", postgres.dsn())
            }
            Backends::Embedded { data } => App::builder().env("DATA_DIR", data.path().display()),
        }
    }

    /// The ledger, to be read from outside.
    pub fn ledger(&self) -> Ledger {
        match &self.backends {
            Backends::Distributed { postgres, .. } => Ledger::Postgres(postgres.dsn()),
            Backends::Embedded { data } => Ledger::Sqlite(data.path().join("ledger.db")),
        }
    }

    /// The Redis; panics on an embedded stack.
    pub fn redis(&mut self) -> &mut Redis {
        match &mut self.backends {
            Backends::Distributed { redis, .. } => redis,
            Backends::Embedded { .. } => panic!("an embedded stack has no Redis"),
        }
    }

    /// The Redis, to look at.
    pub fn redis_ref(&self) -> &Redis {
        match &self.backends {
            Backends::Distributed { redis, .. } => redis,
            Backends::Embedded { .. } => panic!("an embedded stack has no Redis"),
        }
    }

    /// The Postgres; panics on an embedded stack.
    pub fn postgres(&mut self) -> &mut Postgres {
        match &mut self.backends {
            Backends::Distributed { postgres, .. } => postgres,
            Backends::Embedded { .. } => panic!("an embedded stack has no Postgres"),
        }
    }
}

/// Makes a test of each function on each of the named modes: `on_stacks! { distributed: a, b; embedded: a }`.
/// The functions take a [`Mode`].
#[macro_export]
macro_rules! on_stacks {
    (@ distributed $name:ident) => {
        #[test]
        fn $name() { super::$name($crate::support::servers::Mode::Distributed) }
    };
    (@ embedded $name:ident) => {
        #[test]
        fn $name() { super::$name($crate::support::servers::Mode::Embedded) }
    };
    ($($mode:ident: $($name:ident),+ $(,)?);+ $(;)?) => {
        $(mod $mode { $($crate::on_stacks!(@ $mode $name);)+ })+
    };
}
