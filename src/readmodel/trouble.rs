//! Troubles that keep read models from being managed, for people to see; and internals that
//! somebody dropped, made anew.

use std::collections::BTreeMap;

use flexcore_domain::Name;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::{Error, ReadModels, epoch::Owned, version::LOCK_TIMEOUT_MS};

/// Every table of ours. Without one of them nothing can be said of the rows.
const INTERNALS: [&str; 7] =
    ["projections", "checkpoints", "rebuilds", "parked", "log", "troubles", "query_login"];

/// How the trouble of a read model begins that waits for a plugin: `plugin`, its name and why follow.
pub const WAITS_FOR: &str = "it stands still, and waits for ";

/// The plugin that a read model waits for, as its trouble says; `None`: it says something else. A plugin's name may be
/// told to strangers, who need not know the rest.
#[must_use]
pub fn plugin_waited_for(what: &str) -> Option<&str> {
    let name = what.strip_prefix(WAITS_FOR)?.strip_prefix("plugin ")?.split(' ').next()?;
    Name::parse(name).is_ok().then_some(name)
}

impl ReadModels {
    /// Read models that cannot be managed, have stopped or stand still, each with the reason.
    #[boxed::async_recursion]
    pub async fn troubles(&self) -> Result<BTreeMap<String, String>, Error> {
        let rows = sqlx::query("select read_model, what from flexcore.troubles")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Notes the troubles of the read models that the worker owns, in place of those noted before.
    pub async fn note_troubles(
        &self,
        owned: Owned<'_>,
        troubles: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let noted = self.troubles().await?;
        for (name, what) in changed(owned, &noted, troubles) {
            self.note_trouble(&name, what.as_deref()).await?;
        }
        Ok(())
    }

    /// Notes what keeps a read model from being changed or written; `None`: nothing any more.
    pub(crate) async fn note_trouble(&self, name: &Name, what: Option<&str>) -> Result<(), Error> {
        let Some(what) = what else {
            sqlx::query("delete from flexcore.troubles where read_model = $1")
                .bind(name.as_str())
                .execute(&self.pool)
                .await?;
            return Ok(());
        };
        let noted = sqlx::query(
            "insert into flexcore.troubles as t (read_model, what) values ($1, $2) \
             on conflict (read_model) do update set what = excluded.what, since = now() \
             where t.what <> excluded.what",
        )
        .bind(name.as_str())
        .bind(what)
        .execute(&self.pool)
        .await?;
        if noted.rows_affected() > 0 {
            tracing::error!(read_model = %name, what, "a read model is in trouble");
        }
        Ok(())
    }

    /// Makes the schemas `flexcore` and `rm` anew when a part of them was dropped. The rest of them
    /// goes, since without checkpoints nobody can say which events the rows hold: every read model
    /// is built from the log again. Returns whether anything was missing.
    #[boxed::async_recursion]
    pub async fn make_anew(&self) -> Result<bool, Error> {
        let was_missing = self.make_whole().await?;
        if was_missing {
            self.sessions.open().await?;
        }
        Ok(was_missing)
    }

    /// The same, but for the login of queries. Migrations alone do not do it: they are noted as done
    /// in another schema.
    pub(crate) async fn make_whole(&self) -> Result<bool, Error> {
        let mut sql = self.pool.acquire().await?;
        if !is_missing(&mut sql).await? {
            return Ok(false);
        }
        drop(sql);
        // Held until all is there: another process that looks meanwhile would drop what is half made.
        let mut alone = self.alone().await?;
        let was_missing = is_missing(&mut alone).await?;
        if was_missing {
            let drop = format!(
                "set lock_timeout = {LOCK_TIMEOUT_MS}; drop schema if exists flexcore cascade; \
                 drop schema if exists rm cascade; drop table if exists public._sqlx_migrations"
            );
            let mut other = PgConnection::connect_with(&self.pool.connect_options()).await?;
            sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut other).await?;
            other.close().await?;
            self.run_migrations().await?;
        }
        alone.commit().await?;
        Ok(was_missing)
    }

    /// Fails with [`Error::Gone`] when a part of our schemas was dropped, also one that is seldom read.
    pub(crate) async fn check_whole(&self, connection: &mut PgConnection) -> Result<(), Error> {
        if is_missing(connection).await? {
            return Err(Error::Gone("a part of the schemas rm and flexcore is missing".to_owned()));
        }
        Ok(())
    }
}

/// True if a part of what migrations have made is not there.
async fn is_missing(connection: &mut PgConnection) -> Result<bool, Error> {
    // Of the catalogues as they are now: `to_regclass` may say what this session found before it waited.
    let row = sqlx::query(
        "select not exists (select from pg_namespace where nspname = 'rm') \
                or (select count(*) from pg_class \
                    join pg_namespace on pg_namespace.oid = relnamespace \
                    where nspname = 'flexcore' and relname = any($1)) < cardinality($1)",
    )
    .bind(INTERNALS.as_slice())
    .fetch_one(connection)
    .await?;
    Ok(row.try_get(0)?)
}

/// The troubles to note anew, of the read models that are owned; `None`: a trouble that is over.
fn changed(
    owned: Owned<'_>,
    noted: &BTreeMap<String, String>,
    troubles: &BTreeMap<String, String>,
) -> Vec<(Name, Option<String>)> {
    let named = |name: &String| Name::parse(name).ok().filter(|name| owned(name, 0).is_some());
    let over = noted.keys().filter(|name| !troubles.contains_key(*name));
    let over = over.filter_map(|name| Some((named(name)?, None)));
    let new = troubles.iter().filter(|(name, what)| noted.get(*name) != Some(*what));
    let new = new.filter_map(|(name, what)| Some((named(name)?, Some(what.clone()))));
    over.chain(new).collect()
}
