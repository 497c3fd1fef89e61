//! Secondary indexes: made and dropped on the tables that there are, while rows are read and written.
//!
//! Every index begins with the tenant, because every read is of one, and ends with what is missing of
//! the key, so that pages continue where the last one ended. An entry of a Postgres index has 2,704
//! bytes, and a text has no limit: a row with a longer text than [`INDEX_TEXT_BYTES_MAX`] is left out,
//! and stands in a second index of such rows, by key. So every row can be written, and found.

use std::collections::{BTreeMap, BTreeSet};

use flexcore_definition::{Column, ColumnKind, INDEX_TEXT_BYTES_MAX, Index};
use flexcore_domain::Name;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::{
    Error, ReadModels, Version,
    error::{is_absent, passes},
    select::{Filter, Op},
};

/// Longest wait of a build for transactions that began before it, in milliseconds. It keeps nobody
/// waiting meanwhile. What it has built by then is thrown away, and it is tried again.
const LOCK_TIMEOUT_MS: u32 = 300_000;

/// The same, for what a failed build left to be dropped: the next one drops it, too.
const DROP_TIMEOUT_MS: u32 = 5_000;

/// How an index's name begins: no name of a read model does.
const PREFIX: &str = "_i";

/// One of Postgres's indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) name: String,
    /// What follows the table in `create index`.
    definition: String,
}

/// The columns of an index, those of the key that follow by themselves included.
pub(crate) fn whole(index: &Index, key: &[Name]) -> Vec<(Name, bool)> {
    let is_named = |name: &Name| index.columns.iter().any(|(column, _)| column == name);
    let rest = key.iter().filter(|name| !is_named(name)).map(|name| (name.clone(), false));
    index.columns.iter().cloned().chain(rest).collect()
}

/// The columns whose text may be too long for the index. A key is never that long.
pub(crate) fn texts<'a>(index: &'a Index, columns: &[Column], key: &[Name]) -> Vec<&'a Name> {
    let is_text = |name: &Name| {
        columns.iter().any(|column| column.name == *name && column.kind == ColumnKind::Text)
    };
    let names = index.columns.iter().map(|(name, _)| name);
    names.filter(|name| !key.contains(name) && is_text(name)).collect()
}

/// The condition of rows that stand in the index; empty: all do. Postgres compares it with that of
/// the index, so that the two must be written alike.
pub(crate) fn short(texts: &[&Name], of: &str) -> String {
    let one = |name: &&Name| {
        let max = INDEX_TEXT_BYTES_MAX;
        format!("(octet_length({of}\"{name}\") <= {max} or {of}\"{name}\" is null)")
    };
    texts.iter().map(one).collect::<Vec<_>>().join(" and ")
}

/// The condition of the other rows.
pub(crate) fn long(texts: &[&Name], of: &str) -> String {
    let one = |name: &&Name| format!("octet_length({of}\"{name}\") > {INDEX_TEXT_BYTES_MAX}");
    format!("({})", texts.iter().map(one).collect::<Vec<_>>().join(" or "))
}

/// Whether a filter can only match rows that stand in an index with this text column: `None`, when it
/// matches others as well; `Some(false)`, when it matches none of them.
pub(crate) fn is_short(filter: &Filter) -> Option<bool> {
    let mut lengths = filter.values.iter().map(|value| value.len() <= INDEX_TEXT_BYTES_MAX);
    match filter.op {
        Op::Eq | Op::In if lengths.all(|short| short) => Some(true),
        Op::Eq => Some(false),
        Op::IsNull => Some(true),
        _ => None,
    }
}

/// What Postgres is to have for a declared index of the version with this number of its own.
pub(crate) fn made(id: i64, index: &Index, columns: &[Column], key: &[Name]) -> Vec<Made> {
    let nullable = |name: &Name| !key.contains(name);
    let place = |(name, descends): &(Name, bool)| match (descends, nullable(name)) {
        (false, _) => format!("\"{name}\""),
        (true, true) => format!("\"{name}\" desc nulls last"),
        (true, false) => format!("\"{name}\" desc"),
    };
    let listed = |columns: &[(Name, bool)]| {
        let places: Vec<String> = columns.iter().map(place).collect();
        format!("(tenant, {})", places.join(", "))
    };
    let texts = texts(index, columns, key);
    let mut definitions = vec![listed(&whole(index, key))];
    if !texts.is_empty() {
        definitions[0].push_str(&format!(" where {}", short(&texts, "")));
        let by_key: Vec<(Name, bool)> = key.iter().map(|name| (name.clone(), false)).collect();
        definitions.push(format!("{} where {}", listed(&by_key), long(&texts, "")));
    }
    let name = |definition: &str| format!("{PREFIX}{id}_{:016x}", fnv1a(definition));
    definitions.into_iter().map(|definition| Made { name: name(&definition), definition }).collect()
}

/// FNV-1a 64: an index is known by what it is made of.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What is to be done to a table's indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Drop(String),
    Create(Made),
}

/// What is to be done where these are wanted, and those are there, each with whether it is whole. What
/// somebody left half built goes first, what is not wanted any more last.
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

    /// What the indexes are to be, for telling whether that has changed.
    #[must_use]
    pub fn indexes_wanted(&self) -> String {
        self.made().iter().map(|made| format!("{} ", made.name)).collect()
    }
}

impl ReadModels {
    /// Versions whose indexes are not as they are declared, each with how many are to be made or
    /// dropped.
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

    /// Makes the indexes of a version and drops what is not declared any more, while rows are read and
    /// written: neither waits for it. Returns false when somebody else is at it. Takes as long as
    /// Postgres needs to read the table; given up, it is given up by Postgres too. Fails with what
    /// stands in the way of the first that cannot be made, after the others, unless it would stand in
    /// theirs, too. What a failed build left is dropped, where nobody holds the table. An error that is
    /// passing says that Postgres is away, and any other one nothing about when the index can be made.
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
        // Of the session, not waited for: whoever waits in a transaction would be waited for.
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

/// The version that an index is of.
pub(crate) fn id_of(name: &str) -> Option<i64> {
    name.strip_prefix(PREFIX)?.split('_').next()?.parse().ok()
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

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn columns() -> Vec<Column> {
        let kinds = [("id", ColumnKind::Text), ("a", ColumnKind::Text), ("n", ColumnKind::Integer)];
        kinds.map(|(column, kind)| Column { name: name(column), kind }).to_vec()
    }

    fn index(columns: &[(&str, bool)]) -> Index {
        Index { columns: columns.iter().map(|(text, desc)| (name(text), *desc)).collect() }
    }

    #[test]
    fn an_index_begins_with_the_tenant_and_ends_with_the_key() {
        let of = |columns_of: &[(&str, bool)]| {
            let made = made(7, &index(columns_of), &columns(), &[name("id")]);
            made.into_iter().map(|made| made.definition).collect::<Vec<_>>()
        };
        assert_eq!(of(&[("n", true)]), ["(tenant, \"n\" desc nulls last, \"id\")"]);
        assert_eq!(of(&[("id", true)]), ["(tenant, \"id\" desc)"]);
        assert_eq!(
            of(&[("a", false), ("n", false)]),
            [
                "(tenant, \"a\", \"n\", \"id\") where (octet_length(\"a\") <= 255 or \"a\" is null)",
                "(tenant, \"id\") where (octet_length(\"a\") > 255)"
            ]
        );
    }

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
        assert_eq!(id_of("_i12_9f86d081884c7d65"), Some(12));
        assert_eq!(id_of("_ix"), None);
    }
}
