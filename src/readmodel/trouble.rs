//! Troubles that keep read models from being managed, for people to see; and internals that
//! somebody dropped, made anew.

use std::collections::BTreeMap;

use flexcore_domain::{Name, PORTIONS};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::{Error, ReadModels, epoch::Owned, version::LOCK_TIMEOUT_MS};

/// Every table of ours. Without one of them nothing can be said of the rows.
const INTERNALS: [&str; 7] =
    ["projections", "checkpoints", "rebuilds", "parked", "log", "troubles", "query_login"];

/// How the trouble of a read model begins that waits for a plugin: `plugin`, its name and why follow.
pub const WAITS_FOR: &str = "it stands still, and waits for ";

/// How a line of a trouble begins that is of a portion but the first: its number and `: ` follow.
const OF_PORTION: &str = "portion ";

/// The plugin that a read model waits for, as its trouble says; `None`: it says something else. A plugin's name may be
/// told to strangers, who need not know the rest.
#[must_use]
pub fn plugin_waited_for(what: &str) -> Option<&str> {
    what.lines().find_map(|line| {
        let said = of_portion(line).map_or(line, |(_, said)| said);
        let name = said.strip_prefix(WAITS_FOR)?.strip_prefix("plugin ")?.split(' ').next()?;
        Name::parse(name).is_ok().then_some(name)
    })
}

impl ReadModels {
    /// Read models that cannot be managed, have stopped or stand still, each with the reason. What is so of some
    /// portions alone is in lines that begin with `portion` and a number.
    #[boxed::async_recursion]
    pub async fn troubles(&self) -> Result<BTreeMap<String, String>, Error> {
        let rows = sqlx::query("select read_model, what from flexcore.troubles")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Notes the troubles of the read models that the worker owns portions of, in place of those that were noted
    /// for these portions. Fails when another worker notes something of the same read model meanwhile: to be tried
    /// again.
    pub async fn note_troubles(
        &self,
        owned: Owned<'_>,
        troubles: &BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let noted = self.troubles().await?;
        for (name, now) in changed(owned, &noted, troubles) {
            let before = noted.get(name.as_str()).map_or("", String::as_str);
            let what = troubles.get(name.as_str()).map(String::as_str);
            self.rewrite(&name, before, &now, what).await?;
        }
        Ok(())
    }

    /// Notes what keeps a read model from being changed or written, for its first portion, whose owner manages it;
    /// `None`: nothing any more.
    pub(crate) async fn note_trouble(&self, name: &Name, what: Option<&str>) -> Result<(), Error> {
        let noted = self.troubles().await?;
        let before = noted.get(name.as_str()).map_or("", String::as_str);
        let now = rewritten(before, |portion| portion == 0, what);
        if now == before { Ok(()) } else { self.rewrite(name, before, &now, what).await }
    }

    /// Puts a note in the place of another, each empty where there is none.
    async fn rewrite(
        &self,
        name: &Name,
        before: &str,
        now: &str,
        what: Option<&str>,
    ) -> Result<(), Error> {
        let query = match (before, now) {
            ("", now) => sqlx::query(
                "insert into flexcore.troubles (read_model, what) values ($1, $2) \
                 on conflict do nothing",
            )
            .bind(name.as_str())
            .bind(now),
            (before, "") => {
                sqlx::query("delete from flexcore.troubles where read_model = $1 and what = $2")
                    .bind(name.as_str())
                    .bind(before)
            }
            (before, now) => sqlx::query(
                "update flexcore.troubles set what = $2, since = now() \
                 where read_model = $1 and what = $3",
            )
            .bind(name.as_str())
            .bind(now)
            .bind(before),
        };
        if query.execute(&self.pool).await?.rows_affected() == 0 {
            let reason = format!("another worker notes what troubles {name}");
            return Err(Error::Unavailable(reason));
        }
        if let Some(what) = what {
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

/// The notes to change, of the read models of which a portion is owned, each as it is to be; empty: there is none any
/// more.
fn changed(
    owned: Owned<'_>,
    noted: &BTreeMap<String, String>,
    troubles: &BTreeMap<String, String>,
) -> Vec<(Name, String)> {
    let known = noted.keys().filter(|name| !troubles.contains_key(*name));
    let names = known.chain(troubles.keys()).filter_map(|name| Name::parse(name).ok());
    let all = names.filter_map(|name| {
        let before = noted.get(name.as_str()).map_or("", String::as_str);
        let what = troubles.get(name.as_str()).map(String::as_str);
        let now = rewritten(before, |portion| owned(&name, portion).is_some(), what);
        (now != before).then_some((name, now))
    });
    all.collect()
}

/// A note in which this is said for the first of the portions that are owned, and nothing else for any of these.
/// What is said for others stays: their owners take it back.
fn rewritten(before: &str, is_owned: impl Fn(u16) -> bool, what: Option<&str>) -> String {
    let mut said = lines(before);
    said.retain(|portion, _| !is_owned(*portion));
    if let (Some(what), Some(portion)) = (what, (0..PORTIONS).find(|portion| is_owned(*portion))) {
        said.insert(portion, what.trim().replace('\r', ""));
    }
    let line = |(portion, what): (u16, String)| match portion {
        0 => what,
        // A line for each, whatever the words are.
        _ => format!("{OF_PORTION}{portion}: {}", what.replace('\n', " ")),
    };
    said.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What a note says, by portion. What Postgres says of the first one may have more than one line.
fn lines(note: &str) -> BTreeMap<u16, String> {
    let mut said: BTreeMap<u16, String> = BTreeMap::new();
    for line in note.lines() {
        let (portion, what) = of_portion(line).unwrap_or((0, line));
        let so_far = said.entry(portion).or_default();
        if !so_far.is_empty() {
            so_far.push('\n');
        }
        so_far.push_str(what);
    }
    said
}

/// The portion that a line is of, and what it says; `None`: it is of the first one.
fn of_portion(line: &str) -> Option<(u16, &str)> {
    let (number, what) = line.strip_prefix(OF_PORTION)?.split_once(": ")?;
    let number: u16 = number.parse().ok()?;
    (1..PORTIONS).contains(&number).then_some((number, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The owner of the first portion alone noted something, and took back what it had not noted itself.
    #[test]
    fn each_owner_of_a_portion_notes_its_troubles_and_takes_back_no_others() {
        let waits = format!("{WAITS_FOR}plugin geo (function locate): it is gone");
        let (first, fifth) = (|portion: u16| portion < 4, |portion: u16| portion == 5);
        let noted = rewritten("", fifth, Some(&waits));
        assert_eq!(noted, format!("portion 5: {waits}"));
        assert_eq!(plugin_waited_for(&noted), Some("geo"));
        assert_eq!(rewritten(&noted, first, None), noted);
        let both = rewritten(&noted, first, Some("in the way: a\nand b"));
        assert_eq!(both, format!("in the way: a\nand b\nportion 5: {waits}"));
        assert_eq!(plugin_waited_for(&both), Some("geo"));
        assert_eq!(rewritten(&both, first, Some("in the way: a\nand b")), both);
        assert_eq!(rewritten(&both, first, None), noted);
        assert_eq!(rewritten(&both, fifth, None), "in the way: a\nand b");
        // Portions have gone to another owner, who sees nothing.
        assert_eq!(rewritten(&both, |_| true, None), "");
        assert_eq!(rewritten(&both, |_| false, Some("why")), both);
        for other in ["portion 0: a", "portion 16: a", "portion x: a", "portion 5"] {
            assert_eq!(of_portion(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_as_it_was_noted_is_not_noted_again() {
        let map = |what: &str| BTreeMap::from([("flights".to_owned(), what.to_owned())]);
        let second = |_: &Name, portion: u16| (portion == 2).then_some(7);
        let nothing = BTreeMap::new();
        let new = changed(&second, &nothing, &map("why"));
        assert_eq!(new, [(Name::parse("flights").unwrap(), "portion 2: why".to_owned())]);
        assert!(changed(&second, &map("portion 2: why"), &map("why")).is_empty());
        assert!(changed(&second, &map("theirs"), &nothing).is_empty());
        let over = changed(&second, &map("portion 2: why"), &nothing);
        assert_eq!(over.first().map(|(_, now)| now.as_str()), Some(""));
        assert!(changed(&|_, _| None, &nothing, &map("why")).is_empty());
    }
}
