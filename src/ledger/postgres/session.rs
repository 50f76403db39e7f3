//! One session with Postgres, for a plain thread, with an end to every call.
//!
//! Owns the socket and the time limit. A read from a Postgres that hangs would never return by itself: its kernel
//! still acknowledges, so neither keepalives nor `tcp_user_timeout` help, and the blocking driver offers nothing.
//! So the asynchronous driver runs here on a runtime of its own, inside the caller's thread, under a deadline.
//! Invariant: a session is used again only if the last call left it in order; else its owner drops it.
//! Refuses to know tables.

use super::connect::ConnectSettings;
use crate::ledger::LedgerError;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::{Client, Statement};

/// By how much the deadline of a call is later than the server's own `statement_timeout`: the server's word is clearer.
const GRACE: Duration = Duration::from_secs(1);

/// Why a call did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The epoch is another one. The transaction is over, the session in order.
    Stale(u64),
    /// Postgres said no, or the session is lost: in both cases the session is not to be used again.
    Broken {
        /// What Postgres said, in one line.
        text: String,
        /// Its SQLSTATE, if Postgres said something.
        state: Option<SqlState>,
        /// Whether the socket or Postgres said that the session is over, as opposed to one refused statement or to silence.
        lost: bool,
    },
}

impl Failure {
    /// A failure of our own finding, with the session still alive.
    pub fn refused(text: impl Into<String>) -> Failure {
        Failure::Broken { text: text.into(), state: None, lost: false }
    }

    /// Whether the session is over while Postgres may be well: idle sessions are ended by `idle_session_timeout` or by an
    /// administrator, or forgotten by a router on the way.
    pub fn is_lost_session(&self) -> bool {
        matches!(self, Failure::Broken { lost: true, .. })
    }

    fn lost(text: impl Into<String>) -> Failure {
        Failure::Broken { text: text.into(), state: None, lost: true }
    }

    /// The same failure, said to have come up during `what`.
    pub fn during(self, what: &str) -> Failure {
        match self {
            Failure::Broken { text, state, lost } => Failure::Broken { text: format!("{what}: {text}"), state, lost },
            stale @ Failure::Stale(_) => stale,
        }
    }

    /// Whether Postgres refused with `wanted` and the session is alive.
    pub fn is(&self, wanted: &SqlState) -> bool {
        matches!(self, Failure::Broken { state: Some(state), lost: false, .. } if state == wanted)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        let Some(db) = error.as_db_error() else { return Failure::lost(super::one_line(&error)) };
        let fatal = matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
        Failure::Broken { text: super::one_line(&error), state: Some(db.code().clone()), lost: fatal }
    }
}

impl From<Failure> for LedgerError {
    fn from(failure: Failure) -> LedgerError {
        match failure {
            Failure::Stale(current) => LedgerError::Stale { current },
            Failure::Broken { text, state: Some(_), .. } => LedgerError::failed(format!("Postgres says: {text}")),
            Failure::Broken { text, lost: true, .. } => {
                LedgerError::failed(format!("the connection to Postgres failed: {text}"))
            }
            Failure::Broken { text, .. } => LedgerError::failed(text),
        }
    }
}

/// A server process, told apart from a later one with the same id by its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    pid: i32,
    /// Microseconds since 1970.
    started: i64,
}

/// What work inside a session is handed: the driver's client, and the statements that this session has prepared.
pub(super) struct Wire {
    pub client: Client,
    /// The COPY statements, prepared by whoever needs them first.
    pub copies: Option<(Statement, Statement)>,
}

type Driver = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

/// A session and all that keeps it going.
pub(super) struct Session {
    wire: Wire,
    /// `None` once the driver has said that the session is over.
    driver: Option<Driver>,
    runtime: Option<Runtime>,
    limit: Duration,
    backend: Backend,
}

impl Session {
    /// Opens a session whose statements may each take `limit`.
    pub fn open(settings: &ConnectSettings, limit: Duration) -> Result<Session, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::refused(format!("a session cannot be set up: {e}")))?;
        let connecting = async {
            let connecting = settings.config.connect(settings.tls.clone());
            match timeout(settings.connect_limit(), connecting).await {
                Ok(connected) => connected.map_err(Failure::from),
                Err(_) => Err(Failure::lost(format!("no session within {:?}", settings.connect_limit()))),
            }
        };
        let (client, driver) = match runtime.block_on(connecting) {
            Ok(connected) => connected,
            Err(failure) => {
                // A name that is being resolved cannot be called off: do not wait for it.
                runtime.shutdown_background();
                return Err(failure);
            }
        };
        let mut session = Session {
            wire: Wire { client, copies: None },
            driver: Some(Box::pin(driver)),
            runtime: Some(runtime),
            limit,
            backend: Backend { pid: 0, started: 0 },
        };
        session.backend = session.run(async move |wire| set_up(&wire.client, limit).await)?;
        Ok(session)
    }

    /// Which server process serves this session.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Does `work`, which may take as long as one statement may.
    pub fn run<T>(&mut self, work: impl AsyncFnOnce(&mut Wire) -> Result<T, Failure>) -> Result<T, Failure> {
        self.run_within(self.limit, work)
    }

    /// Does `work` within `limit`. After an error other than `Stale` the session may be in the middle of something.
    pub fn run_within<T>(
        &mut self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut Wire) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Session { wire, driver, runtime, .. } = self;
        let Some(runtime) = runtime else { return Err(Failure::lost("the session is closed")) };
        runtime.block_on(async {
            let work = drive(driver, work(wire));
            match timeout(limit.saturating_add(GRACE), work).await {
                Ok(done) => done,
                Err(_) => {
                    Err(Failure::refused(format!("Postgres gives no answer within {:?}", limit.saturating_add(GRACE))))
                }
            }
        })
    }

    /// Ends `old`, a process that an earlier session left behind, and waits until it is gone: what it had begun is then
    /// either committed or undone, and blocks nobody.
    pub fn end(&mut self, old: Backend) -> Result<(), Failure> {
        // The entry disappears after the transaction's end, so its absence proves it.
        const END: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
            WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2";
        self.run(async move |wire| {
            let end = wire.client.prepare(END).await?;
            while !wire.client.query(&end, &[&old.pid, &old.started]).await?.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The socket goes first: the server takes its end as the end of the session.
        self.driver = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs `work` with the socket's driver beside it. What the driver says of the socket's end is the better reason.
async fn drive<T>(driver: &mut Option<Driver>, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        match driver.as_mut().map(|driver| driver.as_mut().poll(cx)) {
            Some(Poll::Ready(Err(e))) => {
                *driver = None;
                return Poll::Ready(Err(Failure::lost(super::one_line(&e))));
            }
            Some(Poll::Ready(Ok(()))) => *driver = None,
            Some(Poll::Pending) => {}
            None => return Poll::Ready(Err(Failure::lost("the connection is closed"))),
        }
        work.as_mut().poll(cx)
    })
    .await
}

/// Makes the server let go of us soon when we die or freeze, and tells which process serves us.
async fn set_up(client: &Client, limit: Duration) -> Result<Backend, Failure> {
    // Without the keepalives a lost host's locks would stay for two hours.
    let settings = format!(
        "SET statement_timeout = {}; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 5000; \
         SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = 10000; SET client_min_messages = warning",
        limit.as_millis()
    );
    client.batch_execute(&settings).await?;
    const WHO: &str = "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint, \
        current_setting('server_encoding') FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let row = client.query_one(WHO, &[]).await?;
    let encoding: String = row.try_get(2)?;
    if encoding != "UTF8" {
        return Err(Failure::refused(format!("the database's encoding is {encoding}, and ids need UTF8")));
    }
    Ok(Backend { pid: row.try_get(0)?, started: row.try_get(1)? })
}
