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
use flexcore_resilience::{Place, Shares};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, postgres::PgConnectOptions};

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
/// Longest wait for a session that its reader has left to be ready again. Beyond it is closed.
const CLEAN_WAIT: Duration = Duration::from_secs(10);
/// A tenant has at most so many times as many sessions as are left for others. Those of queries whose
/// clients have hung up count until Postgres has ended them: or who asks and hangs up would have all.
const PLACES_TIMES: usize = 3;

pub(crate) struct Readers {
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
}

struct Session {
    connection: PgConnection,
    login: Arc<Login>,
    /// The session that its seals are made for.
    place: String,
    made: Instant,
    used: Instant,
    looked: Instant,
}

/// A read-only transaction that sees one tenant's rows.
pub(crate) struct Reading {
    readers: Arc<Readers>,
    session: Option<Session>,
    place: Option<Place<Tenant>>,
}

impl Readers {
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
        }
    }

    /// Makes the login, or takes the one that was given, and lets it in.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        login::open(&self.owner, self.given.as_ref(), false).await
    }

    /// A transaction for this tenant. Fails with [`Error::Unavailable`] when there is no session in
    /// time, and with [`Error::Misconfigured`] when the login could see more than a tenant's rows.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        tenant: &Tenant,
        timeout: Duration,
    ) -> Result<Reading, Error> {
        let late = || Error::Unavailable("no connection in time".to_owned());
        let begun = async {
            let place = self.places.wait(tenant).await;
            if self.closed.load(Ordering::Relaxed) {
                return Err(Error::Unavailable("closed".to_owned()));
            }
            let mut reading = Reading { readers: self.clone(), session: None, place: Some(place) };
            let mut attempt = 1;
            loop {
                let session = self.session().await?;
                match reading.start(session, tenant, timeout).await {
                    Err(sqlx::Error::Io(_)) if attempt < ATTEMPTS => attempt += 1,
                    started => return started.map(|()| reading).map_err(Error::from),
                }
            }
        };
        tokio::time::timeout(self.acquire_timeout, begun).await.map_err(|_| late())?
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
    /// one (locks of the session, sequences, the seed of chance) no query has a function for.
    async fn give_back(&self, mut session: Session) {
        let rollback = sqlx::raw_sql("rollback").execute(&mut session.connection);
        if !matches!(tokio::time::timeout(CLEAN_WAIT, rollback).await, Ok(Ok(_)))
            || session.made.elapsed() > KEPT
            || self.closed.load(Ordering::Relaxed)
        {
            return;
        }
        session.used = Instant::now();
        let mut idle = self.idle();
        idle.retain(|kept| kept.used.elapsed() < KEPT_IDLE);
        idle.push(session);
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
        let place = login.place(&mut connection).await?;
        let now = Instant::now();
        Ok(Self { connection, login: Arc::new(login), place, made: now, used: now, looked: now })
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
        // Taken, so that a second ending does not follow when this one is given up: the session is
        // closed then.
        if let Some(session) = self.session.take() {
            self.readers.give_back(session).await;
        }
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
    /// Given up in the middle: the session is busy until Postgres has ended the statement, and its
    /// place stays taken as long, so that no more statements run than there are places.
    fn drop(&mut self) {
        let (Some(session), place) = (self.session.take(), self.place.take()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let readers = self.readers.clone();
            runtime.spawn(async move {
                readers.give_back(session).await;
                drop(place);
            });
        }
    }
}
