//! Read models in Postgres: versions side by side, projections that apply each event exactly once,
//! typed queries under row-level security, and waiting for one's own writes.
//!
//! Version N of read model `flights` is the table `rm.flights_vN`; people read the view
//! `rm.flights`. Internals live in schema `flexcore`. The migrations are in `schemas/sql`.

mod access;
mod built;
mod cell;
mod check;
mod checkpoints;
#[cfg(feature = "defects")]
pub mod defects;
mod epoch;
mod error;
mod explain;
mod fold;
mod functions;
mod held;
mod index;
mod indexes;
mod login;
mod migrations;
mod named;
mod origin;
mod page;
mod plan;
mod portion;
mod rebuild;
mod registered;
pub mod select;
mod served;
mod sessions;
mod shape;
mod status;
mod transaction;
mod trouble;
mod upsert;
mod version;
mod wait;
mod write;

use std::{sync::Arc, time::Duration};

use flexcore_domain::Tenant;
use sqlx::{
    Connection as _, PgPool,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use checkpoints::Mark;
pub use epoch::Owned;
pub use error::Error;
pub use explain::Explained;
pub use named::{RESULT_BYTES_MAX, ROWS_MAX};
pub use page::Page;
pub use plan::{CHANGE_BYTES_MAX, Change, KEY_BYTES_MAX, Plan, Reads, Transformed, Unfit};
pub use portion::Portions;
pub use rebuild::{Rebuild, Requests};
pub use select::{Filter, Op, Select};
pub use sessions::GRACE;
pub use status::{Serving, Status, VersionState};
pub use trouble::{WAITS_FOR, plugin_waited_for};
pub use version::{Ahead, Version, Versions};
pub use wait::{Unreached, WAITERS_MAX, look_timeout};
pub use write::{Move, Parked, Part};

/// Longest wait of a statement for a lock, where nothing else is said: another process that migrates, and
/// a writer that was overtaken and commits its last batch, take less.
const LOCK_TIMEOUT: &str = "10s";

/// An idle connection is tried before use when it has been idle for this long: a Postgres that
/// restarted leaves dead ones behind, and trying each one costs a round trip a query.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// Longest pause within a transaction: what a process that stands still has locked is free again then.
const IDLE_TIMEOUT: &str = "30s";

/// Settings of the use of Postgres.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most connections of this process as the owner, and as many again for queries.
    pub connections_max: u32,
    /// Longest wait for a free connection, and for Postgres to come back: a caller is better told
    /// 503 soon than kept.
    pub acquire_timeout: Duration,
    /// Longest time of one query.
    pub statement_timeout: Duration,
    /// URL of the login that queries run over. `None`: one is made, with the owner's host, port and
    /// database.
    pub query_url: Option<String>,
    /// Time between checks that the login is still one that may run them.
    pub look_every: Duration,
    /// Longest wait for a session whose query was given up to be ready again. Beyond it the session is
    /// closed, and its place stays taken until Postgres has ended the query.
    pub clean_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections_max: 16,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(5),
            query_url: None,
            look_every: Duration::from_secs(10),
            clean_wait: Duration::from_secs(10),
        }
    }
}

/// A handle on the read models; cheap to clone.
#[derive(Clone)]
pub struct ReadModels {
    /// As the owner: what we run ourselves.
    pool: PgPool,
    /// As the login of queries: what tenants run.
    sessions: Arc<sessions::Sessions>,
    settings: Arc<Settings>,
    waiters: Arc<wait::Waiters>,
    as_declared: Arc<served::AsDeclared>,
    built: Arc<built::Built>,
}

impl ReadModels {
    /// A handle on the database at this URL. Connections are made when they are needed, so that a
    /// Postgres that is down is found by [`ReadModels::ping`] and by queries. Fails when the URL is
    /// malformed.
    #[boxed::async_recursion]
    pub async fn connect(url: &str, settings: Settings) -> Result<Self, Error> {
        let options = options(url)?;
        let queries = settings.query_url.as_deref().map(self::options).transpose()?;
        let pool = PgPoolOptions::new()
            .max_connections(settings.connections_max)
            .acquire_timeout(settings.acquire_timeout)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED_IDLE {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options.clone());
        let sessions = sessions::Sessions::new(pool.clone(), options, queries, &settings);
        let (sessions, settings) = (Arc::new(sessions), Arc::new(settings));
        let (waiters, as_declared, built) = (Arc::default(), Arc::default(), Arc::default());
        Ok(Self { pool, sessions, settings, waiters, as_declared, built })
    }

    /// Brings schemas and roles up to date, with the rights of the login of queries, and makes anew
    /// what somebody dropped since they were made. Safe when several processes do it at once. Nobody
    /// is kept waiting for long behind it: fails with [`Error::Unavailable`] when a lock is not to be
    /// had, and with [`Error::Misconfigured`] when there is no such login and it cannot be made.
    #[boxed::async_recursion]
    pub async fn migrate(&self) -> Result<(), Error> {
        let migrated = match self.run_migrations().await {
            // Another start may drop what is left of them at this moment. It goes first.
            Err(Error::Database(_)) => {
                let alone = self.alone().await?;
                self.run_migrations().await?;
                Ok(alone.commit().await?)
            }
            done => done,
        };
        // What a later migration changes may have been dropped.
        if !matches!(migrated, Ok(()) | Err(Error::Gone(_))) {
            return migrated;
        }
        if !self.make_whole().await? && migrated.is_err() {
            self.run_migrations().await?;
        }
        self.sessions.open().await
    }

    /// Runs the migrations that are not noted as done.
    async fn run_migrations(&self) -> Result<(), Error> {
        let options = (*self.pool.connect_options()).clone();
        let acquire = self.settings.acquire_timeout;
        let once = PgPoolOptions::new().max_connections(1).acquire_timeout(acquire);
        let once = once.connect_lazy_with(options);
        let migrated = migrations::all().run(&once).await;
        once.close().await;
        migrated.map_err(|error| match error {
            MigrateError::Execute(inner) | MigrateError::ExecuteMigration(inner, _) => {
                Error::from(inner)
            }
            other => Error::Database(other.to_string()),
        })
    }

    /// Checks that the login of queries owns nothing and can become nobody else. Fails with
    /// [`Error::Misconfigured`] when it could see more than one tenant's rows. Before queries are
    /// answered it is checked again and again.
    #[boxed::async_recursion]
    pub async fn check_login(&self) -> Result<(), Error> {
        let nobody = Tenant::parse("nobody").expect("BUG: a tenant's name");
        self.read_as(&nobody).await?.end().await;
        Ok(())
    }

    /// Checks that what Postgres acknowledges survives a power cut. Fails with
    /// [`Error::Misconfigured`] when a setting of the server contradicts that: a checkpoint that is
    /// lost with its rows is read again, one that survives them is not.
    #[boxed::async_recursion]
    pub async fn check_durable(&self) -> Result<(), Error> {
        let lax: Vec<(String, String)> = sqlx::query_as(
            "select name, setting from pg_settings \
             where name in ('fsync', 'full_page_writes', 'synchronous_commit') and setting = 'off' \
             order by name",
        )
        .fetch_all(&self.pool)
        .await?;
        let Some((name, setting)) = lax.first() else { return Ok(()) };
        Err(Error::Misconfigured(format!(
            "Postgres has {name} {setting}, so the profile power-loss would promise too much: \
             `alter system set {name} = on` and reload, or start with --profile relaxed"
        )))
    }

    /// The same, for somebody who waits so long: Postgres gives each query up after that, once there is
    /// a connection for it.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        if timeout >= self.settings.statement_timeout {
            return self.clone();
        }
        // Postgres takes 0 for no limit.
        let statement_timeout = timeout.max(Duration::from_millis(1));
        let settings = Settings { statement_timeout, ..(*self.settings).clone() };
        Self { settings: Arc::new(settings), ..self.clone() }
    }

    /// After how long Postgres gives a query up.
    #[must_use]
    pub fn statement_timeout(&self) -> Duration {
        self.settings.statement_timeout
    }

    /// Connections of this process that queries share.
    #[must_use]
    pub fn connections_max(&self) -> usize {
        usize::try_from(self.settings.connections_max).unwrap_or(usize::MAX)
    }

    /// Asks Postgres whether it answers.
    #[boxed::async_recursion]
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes every connection, after the statements that run on them.
    #[boxed::async_recursion]
    pub async fn close(&self) {
        self.sessions.close().await;
        self.pool.close().await;
    }

    /// A read-only transaction that sees one tenant's rows.
    async fn read_as(&self, tenant: &Tenant) -> Result<sessions::Reading, Error> {
        #[cfg(feature = "defects")]
        let tenant = &defects::leaked(tenant);
        self.sessions.begin(tenant, self.settings.statement_timeout).await
    }
}

fn options(url: &str) -> Result<PgConnectOptions, Error> {
    let options: PgConnectOptions = url
        .parse()
        .map_err(|error: sqlx::Error| Error::Database(format!("database URL: {error}")))?;
    // By default a user's own schema comes first in the search path; for a user `flexcore` that
    // would be ours from the first migration on.
    Ok(options.application_name("flexcore").options([
        ("timezone", "UTC"),
        ("search_path", "public"),
        ("lock_timeout", LOCK_TIMEOUT),
        ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
    ]))
}
