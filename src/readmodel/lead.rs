//! Who projects: one worker at a time, by a lock that Postgres frees when the worker's connection
//! ends. The lock keeps order; what makes it safe is the epoch, which every write checks.

use sqlx::{Connection as _, PgConnection, Row as _};

use crate::{Error, ReadModels};

/// The lock's name: FNV-1a of `flexcore projections`, as any number of ours alone would do.
const LOCK: i64 = 0x666c_6578_7072_6f6a;

/// The right to project.
pub struct Lead {
    connection: PgConnection,
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
        Ok(Some(Lead { connection, epoch }))
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

    /// Gives the right up.
    pub async fn release(self) {
        // A connection that is broken has freed the lock already.
        let _ = self.connection.close().await;
    }
}
