//! Where each version of each read model is.

use flexcore_domain::Name;
use serde::Serialize;
use sqlx::Row as _;

use crate::{Error, ReadModels};

/// The purpose of a version of a read model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// Filled from the log, beside the one that serves.
    Building,
    /// Queries read it.
    Serving,
    /// Replaced; dropped as soon as nobody reads it.
    Retired,
}

impl VersionState {
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "building" => Self::Building,
            "serving" => Self::Serving,
            _ => Self::Retired,
        }
    }
}

/// A version of a read model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The read model.
    pub read_model: Name,
    /// Its version.
    pub version: i32,
    /// Its purpose.
    pub state: VersionState,
    /// Of its declaration.
    pub fingerprint: String,
    /// The stream sequence up to which all is in that it follows.
    pub position: u64,
    /// Among how many workers it may be shared.
    pub portions: u16,
    /// Events that could not be applied.
    pub parked: u64,
    /// Aggregates that are held back since a break in the log; their later events are among the
    /// parked.
    pub held: u64,
    /// Why it cannot be changed or removed, or is not written, as [`ReadModels::troubles`] has it.
    pub trouble: Option<String>,
}

impl Status {
    /// Commits between this version and the end of the log.
    #[must_use]
    pub fn lag(&self, last_sequence: u64) -> u64 {
        last_sequence.saturating_sub(self.position)
    }
}

/// The version of a read model that queries read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The read model.
    pub read_model: Name,
    /// Of its declaration.
    pub fingerprint: String,
    /// As [`Status::position_max`].
    pub position_max: u64,
}

impl ReadModels {
    /// Every version that serves, with the facts that are cheap to ask for.
    #[boxed::async_recursion]
    pub async fn serving(&self) -> Result<Vec<Serving>, Error> {
        let rows = sqlx::query(
            "select p.read_model, p.fingerprint, \
                    (select coalesce(max(position), 0) from flexcore.checkpoints c \
                     where c.projection_id = p.id) \
             from flexcore.projections p where p.state = 'serving' order by p.read_model",
        )
        .fetch_all(&self.pool)
        .await?;
        let serving = |row: &sqlx::postgres::PgRow| {
            let name: &str = row.try_get(0)?;
            Ok(Serving {
                read_model: Name::parse(name)
                    .map_err(|error| Error::Database(error.to_string()))?,
                fingerprint: row.try_get(1)?,
                position_max: row.try_get::<i64, _>(2)?.unsigned_abs(),
            })
        };
        rows.iter().map(serving).collect()
    }

    /// Every version of every read model, retired ones included.
    #[boxed::async_recursion]
    pub async fn status(&self) -> Result<Vec<Status>, Error> {
        let rows = sqlx::query(
            "select p.read_model, p.version, p.state, p.fingerprint, \
                    (select coalesce(min(place), 0) from flexcore.reached(p.id)), p.portions, \
                    (select count(*) from flexcore.parked k where k.projection_id = p.id), \
                    (select count(distinct (tenant, aggregate, aggregate_id)) \
                     from flexcore.parked k where k.projection_id = p.id and k.holds), \
                    (select what from flexcore.troubles t where t.read_model = p.read_model) \
             from flexcore.projections p order by p.read_model, p.version",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let name: &str = row.try_get(0)?;
                Ok(Status {
                    read_model: Name::parse(name)
                        .map_err(|error| Error::Database(error.to_string()))?,
                    version: row.try_get(1)?,
                    state: VersionState::parse(row.try_get(2)?),
                    fingerprint: row.try_get(3)?,
                    position: row.try_get::<i64, _>(4)?.unsigned_abs(),
                    portions: row.try_get::<i16, _>(5)?.unsigned_abs(),
                    parked: row.try_get::<i64, _>(6)?.unsigned_abs(),
                    held: row.try_get::<i64, _>(7)?.unsigned_abs(),
                    trouble: row.try_get(8)?,
                })
            })
            .collect()
    }
}
