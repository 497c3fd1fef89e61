//! Sessions for queries, kept as long as they are of use.
//!
//! A pool of our own, because a tenant is sealed for one session: who begins a transaction has to
//! know which session it is.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use flexcore_domain::Tenant;
use flexcore_resilience::{HeldPlace, Shares};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};
use tokio::task::JoinHandle;

use crate::{
    Error, Settings, TRUSTED_IDLE,
    error::code,
    login::{self, Login},
};

/// Attempts of a read whose connection breaks: several that are kept may have died together.
const ATTEMPTS: u32 = 3;
/// An unused session is closed after this long, and a used one too: a backend's caches grow.
const KEPT_IDLE: Duration = Duration::from_secs(600);
const KEPT: Duration = Duration::from_secs(1800);
/// Pause before Postgres is asked again whether it is back.
const RETRY: Duration = Duration::from_millis(50);
/// Longest time that Postgres may take to end a statement at its time limit, and to answer then.
pub const GRACE: Duration = Duration::from_millis(200);
/// Pause between two looks whether Postgres has ended a statement that does not heed its time limit.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// A tenant has at most so many times as many sessions as are left for others. Sessions of queries
/// whose clients have hung up count until Postgres has ended them, even if that takes for ever.
/// Otherwise a client that asks and hangs up would have all.
const PLACES_TIMES: usize = 3;

pub(crate) struct Sessions {
    owner: PgPool,
    /// The owner's: those of the login differ in user and password.
    options: PgConnectOptions,
    /// The login of the operator's own.
    given: Option<PgConnectOptions>,
    acquire_timeout: Duration,
    /// Somebody may give the login a privilege at any time.
    look_every: Duration,
    places: Shares<Tenant>,
    closed: AtomicBool,
    idle: Mutex<Vec<Session>>,
    /// Longest wait for a session to be ready again.
    clean_wait: Duration,
}

struct Session {
    connection: PgConnection,
    login: Arc<Login>,
    /// Its process at Postgres.
    pid: i32,
    /// The session that its seals are made for.
    place: String,
    made: Instant,
    used: Instant,
    looked: Instant,
}

/// A read-only transaction that sees one tenant's rows.
pub(crate) struct Reading {
    sessions: Arc<Sessions>,
    session: Option<Session>,
    place: Option<HeldPlace<Tenant>>,
}

impl Sessions {
    pub(crate) fn new(
        owner: PgPool,
        options: PgConnectOptions,
        given: Option<PgConnectOptions>,
        settings: &Settings,
    ) -> Self {
        Self {
            owner,
            options,
            given,
            acquire_timeout: settings.acquire_timeout,
            look_every: settings.look_every,
            places: Shares::new(settings.connections_max as usize, PLACES_TIMES),
            closed: AtomicBool::new(false),
            idle: Mutex::default(),
            clean_wait: settings.clean_wait,
        }
    }

    /// Makes the login, or takes the one that was given, and lets it in.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        login::open(&self.owner, self.given.as_ref(), false).await
    }

    /// A transaction for this tenant. Fails with [`Error::NoPlace`] when the tenant's other queries
    /// have all its places, with [`Error::Unavailable`] when no session is free in time, and with
    /// [`Error::Misconfigured`] when the login could see more than a tenant's rows.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        tenant: &Tenant,
        timeout: Duration,
    ) -> Result<Reading, Error> {
        let late = || Error::Unavailable("no connection in time".to_owned());
        let started = Instant::now();
        let place = tokio::time::timeout(self.acquire_timeout, self.places.wait(tenant)).await;
        let place = place.map_err(|_| Error::NoPlace)?;
        let begun = async {
            if self.closed.load(Ordering::Relaxed) {
                return Err(Error::Unavailable("closed".to_owned()));
            }
            let mut reading = Reading { sessions: self.clone(), session: None, place: Some(place) };
            let mut attempt = 1;
            loop {
                let session = self.session().await?;
                match reading.start(session, tenant, timeout).await {
                    Err(sqlx::Error::Io(_)) if attempt < ATTEMPTS => attempt += 1,
                    started => return started.map(|()| reading).map_err(Error::from),
                }
            }
        };
        let left = self.acquire_timeout.saturating_sub(started.elapsed());
        tokio::time::timeout(left, begun).await.map_err(|_| late())?
    }

    /// The result of a statement, unless Postgres does not end it at its time limit. Fails with
    /// [`Error::Timeout`] then, and with [`Error::Unavailable`] when Postgres answers nobody.
    pub(crate) async fn in_time<T>(
        &self,
        limit: Duration,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<Result<T, sqlx::Error>, Error> {
        if let Ok(ended) = tokio::time::timeout(limit + GRACE, statement).await {
            return Ok(ended);
        }
        let asked = sqlx::query("select 1").execute(&self.owner);
        match tokio::time::timeout(GRACE, asked).await {
            Ok(Ok(_)) => Err(Error::Timeout(limit)),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Error::Unavailable("it answers nobody".to_owned())),
        }
    }

    /// One that is kept and well, else a new one.
    async fn session(&self) -> Result<Session, Error> {
        loop {
            let kept = self.idle().pop();
            let Some(mut session) = kept else { return self.connect().await };
            if session.used.elapsed() > TRUSTED_IDLE && session.connection.ping().await.is_err() {
                continue;
            }
            if session.looked.elapsed() > self.look_every {
                let login = Login::read(&self.owner).await?;
                if login != *session.login {
                    continue;
                }
                login.look(&self.owner).await?;
                session.looked = Instant::now();
            }
            return Ok(session);
        }
    }

    async fn connect(&self) -> Result<Session, Error> {
        let mut repaired = false;
        loop {
            let login = Login::read(&self.owner).await?;
            let options = match (&login.password, &self.given) {
                (Some(password), None) => {
                    self.options.clone().username(&login.name).password(password)
                }
                (_, Some(given)) => given.clone(),
                (None, None) => return Err(needs_given(&login)),
            };
            match PgConnection::connect_with(&options).await {
                Ok(connection) => {
                    login.look(&self.owner).await?;
                    return Session::new(connection, login).await;
                }
                Err(sqlx::Error::Io(_)) => tokio::time::sleep(RETRY).await,
                Err(error) => match code(&error).as_deref() {
                    // Starting up.
                    Some("57P03") => tokio::time::sleep(RETRY).await,
                    // No such login, or with another password: the database came from elsewhere.
                    Some("28000" | "28P01") if self.given.is_none() && !repaired => {
                        login::open(&self.owner, None, true).await?;
                        repaired = true;
                    }
                    Some("28000" | "28P01") => return Err(not_let_in(&options, &error)),
                    _ => return Err(error.into()),
                },
            }
        }
    }

    /// Drops the sessions whose login is not the one that the database has by now, as when its schemas
    /// were dropped and made anew: their seals are good for nothing. Returns whether there were any.
    pub(crate) async fn drop_outdated(&self) -> Result<bool, Error> {
        let login = Login::read(&self.owner).await?;
        let mut idle = self.idle();
        let before = idle.len();
        idle.retain(|kept| *kept.login == login);
        Ok(idle.len() < before)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session's transaction and keeps the session, unless it is broken or old. Ending it
    /// takes back every setting, temporary table and listening of the transaction; what outlives
    /// one (locks of the session, sequences, the seed of chance) no query has a function for. Returns
    /// when the session takes no more of Postgres.
    async fn give_back(&self, mut session: Session) {
        let rollback = sqlx::raw_sql("rollback").execute(&mut session.connection);
        match tokio::time::timeout(self.clean_wait, rollback).await {
            Err(_) => return self.until_ended(session).await,
            Ok(Err(_)) => return,
            Ok(Ok(_)) if session.made.elapsed() > KEPT => return,
            Ok(Ok(_)) if self.closed.load(Ordering::Relaxed) => return,
            Ok(Ok(_)) => session.used = Instant::now(),
        }
        let mut idle = self.idle();
        idle.retain(|kept| kept.used.elapsed() < KEPT_IDLE);
        idle.push(session);
    }

    /// Waits until Postgres has ended a statement that heeds no time limit: some of its functions never
    /// look whether they are to stop. While Postgres itself is away nobody knows.
    async fn until_ended(&self, session: Session) {
        let (pid, login) = (session.pid, session.login.clone());
        // Hung up, so that Postgres ends the session as soon as it looks.
        drop(session);
        let _counted = Unstopped::new();
        tracing::warn!(
            pid,
            "a query goes on after its time limit, and keeps its place: if it does not end, find by \
             this process id which one it is, take it out of its application, and restart Postgres"
        );
        let sql = "select exists (select from pg_stat_activity where pid = $1 and usename = $2)";
        while !self.closed.load(Ordering::Relaxed) {
            let there = sqlx::query_scalar(sql).bind(pid).bind(&login.name).fetch_one(&self.owner);
            if matches!(there.await, Ok(false)) {
                return;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Closes every session, those in use as soon as they are given back.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let sessions = mem::take(&mut *self.idle());
        for session in sessions {
            // Postgres is told, or hears it from the socket.
            let _ = session.connection.close().await;
        }
    }
}

fn needs_given(login: &Login) -> Error {
    Error::Misconfigured(format!(
        "queries run over {}, whose password is not known here: give --postgres-query",
        login.name
    ))
}

fn not_let_in(options: &PgConnectOptions, error: &sqlx::Error) -> Error {
    Error::Misconfigured(format!(
        "queries run over the login {}, which Postgres does not let in ({error}): let pg_hba.conf \
         admit it, or give another by --postgres-query",
        options.get_username()
    ))
}

impl Session {
    async fn new(mut connection: PgConnection, login: Login) -> Result<Self, Error> {
        let (pid, place) = login.place(&mut connection).await?;
        let now = Instant::now();
        let login = Arc::new(login);
        Ok(Self { connection, login, pid, place, made: now, used: now, looked: now })
    }
}

impl Reading {
    /// Begins. One round trip.
    async fn start(
        &mut self,
        mut session: Session,
        tenant: &Tenant,
        timeout: Duration,
    ) -> Result<(), sqlx::Error> {
        let (seal, timeout_ms) = (session.login.seal(&session.place, tenant), timeout.as_millis());
        let begin = format!(
            "begin read only; set local search_path = rm; set local flexcore.tenant = '{seal}'; \
             set local statement_timeout = {timeout_ms}"
        );
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut session.connection).await?;
        self.session = Some(session);
        Ok(())
    }

    /// Ends the transaction: nothing of it stays.
    pub(crate) async fn end(mut self) {
        if let Some(left) = self.leave() {
            // It goes on by itself.
            drop(tokio::time::timeout(self.sessions.clean_wait, left).await);
        }
    }

    /// Gives the session back, and then the place: as long as Postgres is busy with the statement its
    /// place is taken, so that no more statements run than there are places.
    fn leave(&mut self) -> Option<JoinHandle<()>> {
        let (session, place) = (self.session.take()?, self.place.take());
        let sessions = self.sessions.clone();
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        Some(runtime.spawn(async move {
            sessions.give_back(session).await;
            drop(place);
        }))
    }
}

impl Deref for Reading {
    type Target = PgConnection;
    fn deref(&self) -> &PgConnection {
        &self.session.as_ref().expect("BUG: a reading has begun").connection
    }
}

impl DerefMut for Reading {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.session.as_mut().expect("BUG: a reading has begun").connection
    }
}

impl Drop for Reading {
    /// Given up in the middle.
    fn drop(&mut self) {
        drop(self.leave());
    }
}

/// One more statement that goes on after its time limit, for as long as this lives.
struct Unstopped;

impl Unstopped {
    fn new() -> Self {
        metrics::gauge!("flexcore_queries_unstopped").increment(1);
        Self
    }
}

impl Drop for Unstopped {
    fn drop(&mut self) {
        metrics::gauge!("flexcore_queries_unstopped").decrement(1);
    }
}
