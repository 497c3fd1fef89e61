//! Read models in Postgres: versions side by side, projections that apply each event exactly once,
//! typed queries under row-level security, and waiting for one's own writes.
//!
//! Version N of read model `flights` is the table `rm.flights_vN`; people read the view
//! `rm.flights`. Internals live in schema `flexcore`. What exists is in `schemas/sql`.

mod cell;
mod epoch;
mod error;
mod fold;
mod held;
mod named;
mod page;
mod plan;
mod rebuild;
pub mod select;
mod status;
mod version;
mod wait;
mod write;

use std::{sync::Arc, time::Duration};

use flexcore_domain::Tenant;
use sqlx::{
    AssertSqlSafe, Connection as _, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

pub use epoch::Owned;
#[cfg(feature = "defects")]
pub use epoch::{LEAKING, UNFENCED};
pub use error::Error;
pub use named::ROWS_MAX;
pub use page::Page;
pub use plan::{Change, KEY_BYTES_MAX, Plan, Unfit};
pub use rebuild::{Rebuild, Requests};
pub use select::{Filter, Op, Select};
pub use status::{State, Status};
pub use version::{COLUMNS_MAX, RESERVED_COLUMNS, Version, Versions, check_names};
pub use wait::{Unreached, look_timeout};
pub use write::{Move, Parked, Part};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../schemas/sql");

/// An idle connection is tried before use when it has been idle for this long: a Postgres that
/// restarted leaves dead ones behind, and trying each one costs a round trip a query.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// Attempts of a read whose connection breaks: the pool may hold several that died together.
const READ_ATTEMPTS: u32 = 3;

/// How Postgres is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most connections of this process.
    pub connections_max: u32,
    /// Longest wait for a free connection, and for Postgres to come back: a caller is better told
    /// 503 soon than kept.
    pub acquire_timeout: Duration,
    /// Longest time of one query.
    pub statement_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections_max: 16,
            acquire_timeout: Duration::from_secs(2),
            statement_timeout: Duration::from_secs(5),
        }
    }
}

/// A handle on the read models; cheap to clone.
#[derive(Clone)]
pub struct ReadModels {
    pool: PgPool,
    settings: Arc<Settings>,
    waiters: Arc<wait::Waiters>,
}

impl ReadModels {
    /// A handle on the database at this URL. Connections are made when they are needed, so that a
    /// Postgres that is down is found by [`ReadModels::ping`] and by queries. Fails when the URL is
    /// malformed.
    pub async fn connect(url: &str, settings: Settings) -> Result<Self, Error> {
        let options: PgConnectOptions = url
            .parse()
            .map_err(|error: sqlx::Error| Error::Database(format!("database URL: {error}")))?;
        // By default a user's own schema comes first in the search path; for a user `flexcore` that
        // would be ours from the first migration on.
        let options = options
            .application_name("flexcore")
            .options([("timezone", "UTC"), ("search_path", "public")]);
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
            .connect_lazy_with(options);
        Ok(Self { pool, settings: Arc::new(settings), waiters: Arc::default() })
    }

    /// Brings schemas and roles up to date. Safe when several processes do it at once.
    pub async fn migrate(&self) -> Result<(), Error> {
        MIGRATIONS.run(&self.pool).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(inner) => inner.into(),
            other => Error::Database(other.to_string()),
        })
    }

    /// Checks that what Postgres acknowledges survives a power cut. Fails with
    /// [`Error::Misconfigured`] when a setting of the server contradicts that: a checkpoint that is
    /// lost with its rows is read again, one that survives them is not.
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
            "Postgres has {name} {setting}, so the profile power-loss would be a false promise: \
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

    /// Asks Postgres whether it answers.
    pub async fn ping(&self) -> Result<(), Error> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Closes every connection, after what is running on them.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A read-only transaction that sees one tenant's rows. One round trip: a tenant is checked to
    /// have no quote in it.
    async fn read_as(
        &self,
        tenant: &Tenant,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        #[cfg(feature = "defects")]
        let tenant = &epoch::leaked(tenant);
        let timeout_ms = self.settings.statement_timeout.as_millis();
        let begin = format!(
            "begin read only; set local role flexcore_query; set local search_path = rm; \
             set local flexcore.tenant = '{tenant}'; set local statement_timeout = {timeout_ms}"
        );
        let mut attempt = 1;
        loop {
            match self.pool.begin_with(AssertSqlSafe(begin.clone())).await {
                Err(sqlx::Error::Io(_)) if attempt < READ_ATTEMPTS => attempt += 1,
                result => return result,
            }
        }
    }
}
