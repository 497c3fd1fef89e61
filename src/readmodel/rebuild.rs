//! Asking for a read model to be built anew, and watching it.

use flexcore_domain::Name;
use sqlx::{Row as _, postgres::PgListener};

use crate::{Error, ReadModels, Status, VersionState};

/// Where Postgres is told that somebody wants a rebuild.
const REBUILDS: &str = "flexcore_rebuilds";

/// Progress of a requested rebuild.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebuild {
    /// No worker has taken it up yet.
    Waiting,
    /// It is being built.
    Building {
        /// The version being built.
        version: i32,
        /// Where it is in the log.
        position: u64,
        /// The place of the version that serves, which it has to reach.
        target: u64,
    },
    /// The new version serves.
    Done {
        /// Its number.
        version: i32,
    },
    /// The version is gone: the declaration changed, or the read model was removed meanwhile.
    Superseded,
}

/// Tells of rebuilds that are asked for.
pub struct Requests(PgListener);

impl Requests {
    /// Returns when a rebuild was asked for. A request made while Postgres was away may go
    /// unnoticed here, so look from time to time as well. Fails when the connection is lost.
    #[boxed::async_recursion]
    pub async fn next(&mut self) -> Result<(), Error> {
        Ok(self.0.recv().await.map(|_| ())?)
    }
}

impl ReadModels {
    /// Listens for rebuilds that are asked for, over a connection of its own.
    #[boxed::async_recursion]
    pub async fn rebuild_requests(&self) -> Result<Requests, Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(REBUILDS).await?;
        Ok(Requests(listener))
    }

    /// Asks for a rebuild; returns the request's number. Fails with [`Error::UnknownReadModel`].
    #[boxed::async_recursion]
    pub async fn request_rebuild(&self, name: &str) -> Result<i64, Error> {
        let status = self.status().await?;
        if !status.iter().any(|version| version.read_model.as_str() == name) {
            let mut known: Vec<String> =
                status.into_iter().map(|version| version.read_model.to_string()).collect();
            known.dedup();
            return Err(Error::UnknownReadModel { name: crate::error::cut(name), known });
        }
        let row = sqlx::query(
            "with asked as (insert into flexcore.rebuilds (read_model) values ($1) returning id) \
             select id, pg_notify($2, '')::text from asked",
        )
        .bind(name)
        .bind(REBUILDS)
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get(0)?)
    }

    /// Progress of a request.
    #[boxed::async_recursion]
    pub async fn rebuild(&self, request: i64) -> Result<Rebuild, Error> {
        let row = sqlx::query("select read_model, version from flexcore.rebuilds where id = $1")
            .bind(request)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(Rebuild::Superseded) };
        let (name, version): (&str, Option<i32>) = (row.try_get(0)?, row.try_get(1)?);
        let Some(version) = version else { return Ok(Rebuild::Waiting) };
        let all = self.status().await?;
        let of_model = |status: &&Status| status.read_model.as_str() == name;
        let serving = all.iter().filter(of_model).find(|s| s.state == VersionState::Serving);
        let found = all.iter().filter(of_model).find(|s| s.version == version);
        Ok(match found {
            Some(status) if status.state == VersionState::Building => Rebuild::Building {
                version,
                position: status.position,
                target: serving.map_or(0, |serving| serving.position),
            },
            Some(_) => Rebuild::Done { version },
            None => Rebuild::Superseded,
        })
    }

    /// The read models that there are.
    #[boxed::async_recursion]
    pub async fn names(&self) -> Result<Vec<Name>, Error> {
        let mut names: Vec<Name> =
            self.status().await?.into_iter().map(|version| version.read_model).collect();
        names.dedup();
        Ok(names)
    }
}
