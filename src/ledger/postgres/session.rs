//! One session with Postgres, for a plain thread. Each call on it ends within a time limit.
//!
//! Owns the socket and the time limit. A read from a Postgres that hangs never returns by itself: the server's kernel
//! still acknowledges, so neither keepalives nor `tcp_user_timeout` help, and the blocking driver has no deadline.
//! Therefore the asynchronous driver runs here on a runtime of its own, inside the caller's thread, under a deadline.
//! Invariant: a session is used again only if the last call left it in order; else its owner drops it.
//! Leaves tables and statements to its users.

use super::connect::ConnectSettings;
use super::counted::Counted;
use super::failure::{Failure, one_line};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_postgres::{Client, Statement};

/// By how much the deadline of a call is later than the server's own `statement_timeout`, whose message is clearer.
const GRACE: Duration = Duration::from_secs(1);

/// A server process. Its start distinguishes it from a later process with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backend {
    pid: i32,
    /// Microseconds since 1970.
    started: i64,
}

/// What work inside a session uses: the driver's client, and what belongs to this session.
pub(super) struct Wire {
    pub client: Client,
    /// The COPY statements of holds and of purchases, prepared on first use.
    pub copies: Option<(Statement, Statement)>,
    /// What this session has counted.
    pub counted: Counted,
}

type Driver = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

/// A session, its socket's driver and the runtime that both run on.
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
                // The resolution of a name cannot be cancelled: do not wait for it.
                runtime.shutdown_background();
                return Err(failure);
            }
        };
        let mut session = Session {
            wire: Wire { client, copies: None, counted: Counted::default() },
            driver: Some(Box::pin(driver)),
            runtime: Some(runtime),
            limit,
            backend: Backend { pid: 0, started: 0 },
        };
        session.backend = session.run(async move |wire| set_up(&wire.client, limit).await)?;
        Ok(session)
    }

    /// The server process of this session.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Does `work` within the time limit of one statement.
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

    /// Ends `old`, a process that an earlier session left behind, and waits until it is gone: its transaction is then either
    /// committed or undone, and blocks no other.
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
        // The socket first: the server ends the session when the socket closes.
        self.driver = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Runs `work` with the socket's driver beside it. If both fail, the driver's error is returned: it names the cause.
async fn drive<T>(driver: &mut Option<Driver>, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        match driver.as_mut().map(|driver| driver.as_mut().poll(cx)) {
            Some(Poll::Ready(Err(e))) => {
                *driver = None;
                return Poll::Ready(Err(Failure::lost(one_line(&e))));
            }
            Some(Poll::Ready(Ok(()))) => *driver = None,
            Some(Poll::Pending) => {}
            None => return Poll::Ready(Err(Failure::lost("the connection is closed"))),
        }
        work.as_mut().poll(cx)
    })
    .await
}

/// Makes the server end the session soon after this instance dies or freezes, and asks which process serves it.
async fn set_up(client: &Client, limit: Duration) -> Result<Backend, Failure> {
    // Without the keepalives a lost host's locks would stay for two hours.
    let settings = format!(
        "SET statement_timeout = {}; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 5000; \
         SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = 10000; SET client_min_messages = warning",
        limit.as_millis()
    );
    client.batch_execute(&settings).await?;
    const PROCESS: &str = "SELECT pid, (extract(epoch FROM backend_start) * 1000000)::bigint, \
        current_setting('server_encoding') FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let row = client.query_one(PROCESS, &[]).await?;
    let encoding: String = row.try_get(2)?;
    if encoding != "UTF8" {
        return Err(Failure::refused(format!("the database's encoding is {encoding}, and ids need UTF8")));
    }
    Ok(Backend { pid: row.try_get(0)?, started: row.try_get(1)? })
}
