//! Secondary indexes: made and dropped on the tables that there are, while rows are read and written.

use std::collections::{BTreeMap, BTreeSet};

use flexcore_domain::Name;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::{
    Error, ReadModels, Version,
    error::{is_absent, passes},
    index::{Made, PREFIX, id_of, made},
};

/// Longest wait of a build for transactions that began before it, in milliseconds. It keeps nobody
/// waiting meanwhile. Its work until then is thrown away, and it is tried again.
const LOCK_TIMEOUT_MS: u32 = 300_000;

/// The same, for what a failed build left to be dropped: the next one drops it, too.
const DROP_TIMEOUT_MS: u32 = 5_000;

/// The work on a table's indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Drop(String),
    Create(Made),
}

/// The work where these are wanted, and those are there, each with a mark if it is whole.
/// Half-built indexes go first, unwanted ones last.
fn steps(wanted: &[Made], there: &BTreeMap<String, bool>) -> Vec<Step> {
    let names: BTreeSet<&str> = wanted.iter().map(|made| made.name.as_str()).collect();
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for (name, is_whole) in there {
        match (names.contains(name.as_str()), is_whole) {
            (true, true) => {}
            (_, false) => first.push(Step::Drop(name.clone())),
            (false, true) => last.push(Step::Drop(name.clone())),
        }
    }
    let missing = wanted.iter().filter(|made| there.get(&made.name) != Some(&true));
    // Two declared ones may have the same rows too long for them.
    let mut seen = BTreeSet::new();
    let missing = missing.filter(|made| seen.insert(made.name.clone()));
    first.extend(missing.cloned().map(Step::Create));
    first.extend(last);
    first
}

impl Version {
    fn made(&self) -> Vec<Made> {
        let key: Vec<Name> =
            self.plan.layout.key.iter().map(|column| column.name.clone()).collect();
        let of = |index| made(self.id, index, &self.columns, &key);
        self.indexes.iter().flat_map(of).collect()
    }

    /// The wanted indexes, for telling if that has changed.
    #[must_use]
    pub fn indexes_wanted(&self) -> String {
        self.made().iter().map(|made| format!("{} ", made.name)).collect()
    }
}

impl ReadModels {
    /// Versions whose indexes are not as they are declared, each with how many are to be made or
    /// dropped.
    #[boxed::async_recursion]
    pub async fn unindexed(&self, versions: &[&Version]) -> Result<BTreeMap<i64, usize>, Error> {
        let rows = sqlx::query(
            "select c.relname, i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid \
             where c.relnamespace = to_regnamespace('rm') and starts_with(c.relname, $1)",
        )
        .bind(PREFIX)
        .fetch_all(&self.pool)
        .await?;
        let mut there: BTreeMap<i64, BTreeMap<String, bool>> = BTreeMap::new();
        for row in &rows {
            let name: &str = row.try_get(0)?;
            if let Some(id) = id_of(name) {
                there.entry(id).or_default().insert(name.to_owned(), row.try_get(1)?);
            }
        }
        let none = BTreeMap::new();
        let to_do = |version: &&Version| {
            let count = steps(&version.made(), there.get(&version.id).unwrap_or(&none)).len();
            (version.id, count)
        };
        Ok(versions.iter().map(to_do).filter(|(_, count)| *count > 0).collect())
    }

    /// Makes the indexes of a version and drops those that are not declared any more, while rows
    /// are read and written: neither waits for it. Returns false when somebody else is at it. Takes
    /// as long as Postgres needs to read the table; given up, it is given up by Postgres too. Fails
    /// with what stands in the way of the first that cannot be made, after the others, unless it
    /// would stand in theirs, too. The rest of a failed build is dropped, where nobody holds the
    /// table. An error that is passing says that Postgres is away, and any other one nothing about
    /// when the index can be made.
    #[boxed::async_recursion]
    pub async fn index(&self, version: &Version) -> Result<bool, Error> {
        if self.unindexed(&[version]).await?.is_empty() {
            return Ok(true);
        }
        let mut connection =
            PgConnection::connect_with(&self.pool.connect_options()).await.map_err(failure)?;
        // Not every system that Postgres runs on can tell that a client has gone.
        let hears = "set client_connection_check_interval = '1s'";
        let _ = sqlx::raw_sql(hears).execute(&mut connection).await;
        let settings = format!(
            "set lock_timeout = {LOCK_TIMEOUT_MS}; set statement_timeout = 0; \
             set idle_in_transaction_session_timeout = 0"
        );
        sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut connection).await?;
        // Of the session, not waited for: others would have to wait for a transaction that waits.
        let alone: bool = sqlx::query(
            "select pg_try_advisory_lock(hashtextextended('flexcore index ' || $1, 0))",
        )
        .bind(version.id)
        .fetch_one(&mut connection)
        .await?
        .try_get(0)?;
        let result = if alone {
            self.take_steps(&mut connection, version).await.map(|()| true)
        } else {
            Ok(false)
        };
        let _ = connection.close().await;
        result
    }

    async fn take_steps(
        &self,
        connection: &mut PgConnection,
        version: &Version,
    ) -> Result<(), Error> {
        let there = sqlx::query(
            "select c.relname, i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid \
             where i.indrelid = to_regclass($1) and starts_with(c.relname, $2)",
        )
        .bind(&version.table)
        .bind(PREFIX)
        .fetch_all(&mut *connection)
        .await?;
        let there = there
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<BTreeMap<String, bool>, sqlx::Error>>()?;
        let mut failed = None;
        for step in steps(&version.made(), &there) {
            let sql = match &step {
                Step::Drop(name) => format!("drop index concurrently if exists rm.\"{name}\""),
                Step::Create(Made { name, definition }) => {
                    format!(
                        "create index concurrently \"{name}\" on {} {definition}",
                        version.table
                    )
                }
            };
            match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await {
                Ok(_) => tracing::info!(read_model = %version.read_model, ?step, "index"),
                Err(error) => {
                    let is_for_all = passes(&error);
                    if let Step::Create(made) = &step {
                        drop_half_built(connection, made).await;
                    }
                    failed.get_or_insert(failure(error));
                    if is_for_all {
                        break;
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Drops what a build left that failed: it takes room on the disk, and time of all who write. Where that
/// is not possible the next build begins with it.
async fn drop_half_built(connection: &mut PgConnection, made: &Made) {
    let Made { name, .. } = made;
    let dropped = async {
        let left: bool = sqlx::query(
            "select exists (select from pg_index \
             where indexrelid = to_regclass('rm.' || quote_ident($1)) and not indisvalid)",
        )
        .bind(name)
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
        if left {
            let timeout = format!("set lock_timeout = {DROP_TIMEOUT_MS}");
            sqlx::raw_sql(AssertSqlSafe(timeout)).execute(&mut *connection).await?;
            let sql = format!("drop index concurrently if exists rm.\"{name}\"");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
            let timeout = format!("set lock_timeout = {LOCK_TIMEOUT_MS}");
            sqlx::raw_sql(AssertSqlSafe(timeout)).execute(&mut *connection).await?;
        }
        Ok::<(), sqlx::Error>(())
    };
    if let Err(error) = dropped.await {
        tracing::warn!(index = name, %error, "a half built index stays for now");
    }
}

/// Why an index was not made. A lock, a disk or a limit may stand in the way for hours, and another error
/// may be mended soon: no code says how long.
fn failure(error: sqlx::Error) -> Error {
    match error.as_database_error() {
        Some(raised) if !is_absent(&error) => Error::InTheWay(raised.message().to_owned()),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_first_and_what_is_not_wanted_last() {
        let made = |text: &str| Made { name: text.to_owned(), definition: String::new() };
        let there = [("half", false), ("old", true), ("whole", true), ("old_half", false)];
        let there = there.map(|(name, is_whole)| (name.to_owned(), is_whole)).into();
        let wanted = ["whole", "half", "new", "new"].map(made);
        let drop = |name: &str| Step::Drop(name.to_owned());
        let create = |name| Step::Create(made(name));
        let expected = [drop("half"), drop("old_half"), create("half"), create("new"), drop("old")];
        assert_eq!(steps(&wanted, &there), expected);
    }
}
