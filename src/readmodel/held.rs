//! Aggregates that a version holds back: their commits in the log do not follow one another, so what
//! comes after the break would fold into something that never was.

use std::collections::HashSet;

use flexcore_domain::{AggregateId, AggregateKey, AggregateName, Tenant};
use sqlx::Row as _;

use crate::{Error, ReadModels, version::Version};

impl ReadModels {
    /// The aggregates whose commits the version takes no more of, since a break that it came to. A
    /// version that is built anew starts with none.
    #[boxed::async_recursion]
    pub async fn held(&self, version: &Version) -> Result<HashSet<AggregateKey>, Error> {
        let rows = sqlx::query(
            "select distinct tenant, aggregate, aggregate_id from flexcore.parked \
             where projection_id = $1 and holds",
        )
        .bind(version.id)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let bad = |error: flexcore_domain::InvalidName| Error::Database(error.to_string());
                Ok(AggregateKey::new(
                    Tenant::parse(row.try_get(0)?).map_err(bad)?,
                    AggregateName::parse(row.try_get(1)?).map_err(bad)?,
                    AggregateId::parse(row.try_get(2)?).map_err(bad)?,
                ))
            })
            .collect()
    }

    /// Number of aggregates that are held back, over all read models that serve or are built.
    #[boxed::async_recursion]
    pub async fn held_in_all(&self) -> Result<u64, Error> {
        let row = sqlx::query(
            "select count(distinct (k.tenant, k.aggregate, k.aggregate_id)) \
             from flexcore.parked k join flexcore.projections p on p.id = k.projection_id \
             where k.holds and p.state <> 'retired'",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get::<i64, _>(0)?.unsigned_abs())
    }
}
