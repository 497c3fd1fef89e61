//! The origin of the rows: one log under one Postgres, and the last commit that each version has
//! read of it.

use flexcore_domain::{
    Hash, Name,
    log::{LogMarks, ReadMark},
};
use sqlx::{AssertSqlSafe, Row as _};

use crate::{Error, ReadModels};

/// Longest wait for the locks of tables and views that are dropped for another log: no query holds
/// them for longer.
const ADOPT_LOCK_TIMEOUT_MS: u32 = 6_000;

impl ReadModels {
    /// The rows' marks of the log that they came from.
    #[boxed::async_recursion]
    pub async fn marks(&self) -> Result<LogMarks, Error> {
        let identity = sqlx::query("select identity from flexcore.log")
            .fetch_optional(&self.pool)
            .await?
            .map(|row| row.try_get(0))
            .transpose()?;
        // The last commit that was read; and how far it was looked, where the log must reach.
        let rows = sqlx::query(
            "select p.read_model, c.position, c.hash from flexcore.projections p \
             cross join lateral ( \
                 (select position, hash from flexcore.checkpoints \
                  where projection_id = p.id order by position desc limit 1) \
                 union all \
                 (select max(seen), null from flexcore.checkpoints where projection_id = p.id) \
             ) c where c.position > 0",
        )
        .fetch_all(&self.pool)
        .await?;
        let mark = |row: &sqlx::postgres::PgRow| {
            let name: &str = row.try_get(0)?;
            let hash: Option<&[u8]> = row.try_get(2)?;
            Ok(ReadMark {
                read_model: Name::parse(name)
                    .map_err(|error| Error::Database(error.to_string()))?,
                sequence: row.try_get::<i64, _>(1)?.unsigned_abs(),
                hash: hash.and_then(Hash::from_bytes),
            })
        };
        Ok(LogMarks { identity, read: rows.iter().map(mark).collect::<Result<_, Error>>()? })
    }

    /// Notes the log that rows are folded from, when none is noted yet; returns the one that is.
    #[boxed::async_recursion]
    pub async fn claim_log(&self, identity: &str) -> Result<String, Error> {
        sqlx::query("insert into flexcore.log (identity) values ($1) on conflict do nothing")
            .bind(identity)
            .execute(&self.pool)
            .await?;
        let row = sqlx::query("select identity from flexcore.log").fetch_one(&self.pool).await?;
        Ok(row.try_get(0)?)
    }

    /// Drops every read model and notes this log as the one that they are built from anew; the
    /// workers do that. Returns which there were. Fails when something that depends on a view
    /// stands in the way, or when a view is in use for long.
    #[boxed::async_recursion]
    pub async fn adopt_log(&self, identity: &str) -> Result<Vec<Name>, Error> {
        let mut transaction = self.alone().await?;
        let rows = sqlx::query("select read_model, version from flexcore.projections")
            .fetch_all(&mut *transaction)
            .await?;
        let mut names = Vec::new();
        let mut sql = format!("set local lock_timeout = {ADOPT_LOCK_TIMEOUT_MS}");
        for row in &rows {
            let (name, number): (&str, i32) = (row.try_get(0)?, row.try_get(1)?);
            let name = Name::parse(name).map_err(|error| Error::Database(error.to_string()))?;
            if !names.contains(&name) {
                sql += &format!("; drop view if exists rm.\"{name}\"");
            }
            sql += &format!("; drop table if exists rm.\"{name}_v{number}\"");
            names.push(name);
        }
        sql += "; delete from flexcore.projections; delete from flexcore.log";
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        sqlx::query("insert into flexcore.log (identity) values ($1)")
            .bind(identity)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        names.sort();
        names.dedup();
        Ok(names)
    }
}
