//! Who projects: one worker at a time, by a lock that Postgres frees when the worker's connection
//! ends. The lock keeps order; what makes it safe is the epoch, which every write checks.

use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgListener};

use crate::{Error, ReadModels};

/// The lock's name: FNV-1a of `flexcore projections`, as any number of ours alone would do.
const LOCK: i64 = 0x666c_6578_7072_6f6a;

/// Where Postgres is told that somebody wants a rebuild.
pub(crate) const REBUILDS: &str = "flexcore_rebuilds";

/// The right to project.
pub struct Lead {
    connection: PgConnection,
    rebuilds: PgListener,
    epoch: i64,
}

impl ReadModels {
    /// Takes the right to project; `None`: another worker has it.
    pub async fn lead(&self) -> Result<Option<Lead>, Error> {
        let mut connection = self.pool.acquire().await?.detach();
        let won: bool = sqlx::query("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut connection)
            .await?
            .try_get(0)?;
        if !won {
            connection.close().await?;
            return Ok(None);
        }
        let epoch = sqlx::query("select nextval('flexcore.epochs')")
            .fetch_one(&mut connection)
            .await?
            .try_get(0)?;
        let mut rebuilds = PgListener::connect_with(&self.pool).await?;
        rebuilds.listen(REBUILDS).await?;
        Ok(Some(Lead { connection, rebuilds, epoch }))
    }
}

impl Lead {
    /// What the holder's writes carry: greater than that of every holder before.
    #[must_use]
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Fails when the lock may be gone.
    pub async fn check(&mut self) -> Result<(), Error> {
        Ok(self.connection.ping().await?)
    }

    /// Returns when a rebuild was asked for. A request made while Postgres was away may go
    /// unnoticed here, so look from time to time as well.
    pub async fn rebuild_requested(&mut self) {
        if self.rebuilds.recv().await.is_err() {
            // What the outage means is for `check` to find out.
            std::future::pending::<()>().await;
        }
    }

    /// Gives the right up.
    pub async fn release(self) {
        drop(self.rebuilds);
        // A connection that is broken has freed the lock already.
        let _ = self.connection.close().await;
    }
}
