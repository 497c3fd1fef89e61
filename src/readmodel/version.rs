//! Versions of read models: which there are, which is built, which serves.
//!
//! A declaration with another fingerprint is another version. It is built beside the one that
//! serves, and takes over with one change of the view; the old table is dropped afterwards, as soon
//! as no query reads it. Nothing here waits for the lock of a table or view longer than
//! [`LOCK_TIMEOUT_MS`]: a reader is never kept waiting behind it, it is tried again instead.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flexcore_definition::{Catalog, Column, Index, ReadModelDefinition};
use flexcore_domain::{Name, Slot};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _, Transaction};

use crate::{
    Error, ReadModels,
    epoch::{Owned, check_epoch},
    error::{DEPENDENT, code, in_the_way},
    plan::Plan,
    portion::Portions,
    registered::{Registered, change, drop_version, rebuilds, register, registered, table},
    shape::fitting,
    status::VersionState,
    transaction,
};

/// Longest wait for a table's or view's lock, in milliseconds.
pub(crate) const LOCK_TIMEOUT_MS: u32 = 100;

/// Longest wait for another worker that makes or drops tables, in milliseconds.
const ALONE_TIMEOUT_MS: u32 = 5_000;

/// Between two looks whether all portions of a version have come as far as what serves, and how often it
/// is looked while that stands still. Other workers have their portions, and note every 100 ms that there
/// was nothing for them: with commits coming all the time the last of them would never have come as far.
const LOOK_AFTER: Duration = Duration::from_millis(20);
const LOOKS_MAX: u32 = 15;

/// The name of the lock on the tables as such: FNV-1a of `flexcore projections`, as any number of
/// ours alone would do.
const LOCK: i64 = 0x666c_6578_7072_6f6a;

/// A version of a read model, to project into.
#[derive(Debug)]
pub struct Version {
    pub(crate) id: i64,
    /// The worker's part of it, and its epochs: writes are refused when a later owner has it.
    pub portions: Portions,
    /// The read model.
    pub read_model: Name,
    /// Its number, from 1.
    pub number: i32,
    /// Says if it is built or serves.
    pub state: VersionState,
    /// Its expressions.
    pub plan: Plan,
    /// Its table, quoted.
    pub(crate) table: String,
    pub(crate) columns: Vec<Column>,
    /// Its secondary indexes, as they are declared by now: those whose columns it has.
    pub(crate) indexes: Vec<Index>,
}

impl Version {
    /// Its id in the database.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }
}

/// The progress of the serving version at a look, by the slots of others in which a version was
/// behind it.
#[derive(Debug, Default)]
pub struct Ahead {
    of: Vec<(i16, i64)>,
}

/// The result of comparing the catalog with the database.
#[derive(Debug, Default)]
pub struct Versions {
    /// To project into.
    pub run: Vec<Arc<Version>>,
    /// Fingerprints of versions whose declarations are not at hand, each with its application.
    pub unknown: Vec<(Name, String)>,
    /// Read models that cannot be changed or removed just now, and why. Those that exist go on.
    pub troubles: Vec<(Name, Error)>,
}

impl Versions {
    /// Adds what the worker owns of a read model's versions.
    fn add(
        &mut self,
        catalog: &Catalog,
        (application, model): (&Name, &Arc<ReadModelDefinition>),
        found: &[Registered],
        owned: Owned<'_>,
    ) {
        let run = found.iter().filter(|version| {
            version.is_whole && version.state != VersionState::Retired && !version.is_stale(model)
        });
        for version in run {
            let portions = Portions::owned(owned, &model.name, version.portions);
            if portions.epochs.is_empty() {
                continue;
            }
            match run_of(catalog, model, version, portions) {
                Some(version) => self.run.push(version),
                // Declared by a former deployment. If that cannot be read either, the version serves
                // as it is until its successor is built.
                None => self.unknown.push((application.clone(), version.fingerprint.clone())),
            }
        }
    }
}

impl ReadModels {
    /// Brings versions in line with the deployed applications and with requested rebuilds:
    /// registers new ones, drops those that a deployed application no longer declares. The serving
    /// version is to be filled while its successor is being built. `owned` says under which epoch
    /// the worker owns a portion of a read model; the others are left to their owners. Each read
    /// model is managed by itself: what stands in the way of one is told, and the others go on.
    /// Fails when Postgres is away, and with [`Error::Gone`] when somebody dropped a part of our schemas.
    pub async fn versions(&self, catalog: &Catalog, owned: Owned<'_>) -> Result<Versions, Error> {
        let mut connection = self.pool.acquire().await?;
        self.check_whole(&mut connection).await?;
        let mut all = registered(&mut connection).await?;
        let rebuilds = rebuilds(&mut connection).await?;
        drop(connection);
        let mut versions = Versions::default();
        for (application, model) in declared(catalog) {
            let mut found = all.remove(model.name.as_str()).unwrap_or_default();
            if let Some(epoch) = owned(&model.name, 0)
                && (rebuilds.contains(model.name.as_str()) || !is_settled(model, &found))
            {
                match self.manage(application, model, epoch).await {
                    Ok(managed) => found = managed,
                    Err(error) if is_away(&error) => return Err(error),
                    Err(error) => versions.troubles.push((model.name.clone(), error)),
                }
            }
            versions.add(catalog, (application, model), &found, owned);
        }
        for name in undeclared(catalog, &all) {
            let Some(epoch) = owned(&name, 0) else { continue };
            match self.remove(&name, epoch).await {
                Ok(()) => tracing::info!(read_model = %name, "no longer declared: dropped"),
                Err(error) if is_away(&error) => return Err(error),
                Err(error) => versions.troubles.push((name, error)),
            }
        }
        Ok(versions)
    }

    /// Brings the versions of one read model in line with its declaration.
    async fn manage(
        &self,
        application: &Name,
        model: &ReadModelDefinition,
        epoch: i64,
    ) -> Result<Vec<Registered>, Error> {
        let mut transaction = self.alone().await?;
        check_epoch(&mut transaction, &model.name, epoch).await?;
        let managed = register(&mut transaction, application, model).await?;
        transaction.commit().await?;
        Ok(managed)
    }

    /// Drops a read model.
    async fn remove(&self, name: &Name, epoch: i64) -> Result<(), Error> {
        let mut transaction = self.alone().await?;
        check_epoch(&mut transaction, name, epoch).await?;
        let view = format!("drop view if exists rm.\"{name}\"");
        change(&mut transaction, &view).await?;
        for version in registered(&mut transaction).await?.remove(name.as_str()).unwrap_or_default()
        {
            drop_version(&mut transaction, name, &version).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// A transaction in which tables may be made and dropped: one at a time, over all workers.
    pub(crate) async fn alone(&self) -> Result<Transaction<'static, Postgres>, Error> {
        let begin = format!(
            "set local lock_timeout = {ALONE_TIMEOUT_MS}; \
             select pg_advisory_xact_lock({LOCK}); set local lock_timeout = {LOCK_TIMEOUT_MS}"
        );
        transaction::begin_by(&self.pool, begin).await
    }

    /// Makes a version that has caught up the one that serves. Returns false when the one that
    /// serves is ahead, when the view is in use just now, or when an object that depends on it
    /// stands in the way: try again, with the same `ahead`. Queries go on, and never see an earlier
    /// state than before. The serving version stands still only while every portion of the version
    /// is on its way.
    #[boxed::async_recursion]
    pub async fn promote(&self, version: &Version, ahead: &mut Ahead) -> Result<bool, Error> {
        if !self.has_come(version, ahead).await? {
            return Ok(false);
        }
        let mut transaction = transaction::begin(&self.pool).await?;
        let swapped = async {
            let held = version.portions.epoch_of(Slot::FIRST);
            check_epoch(&mut transaction, &version.read_model, held).await?;
            hold_still(&mut transaction, version).await?;
            let mut looks = LOOKS_MAX;
            loop {
                let behind = behind(&mut transaction, version).await?;
                if behind.is_empty() {
                    break;
                }
                looks -= 1;
                // Its own portions do not move while it is here.
                if looks == 0 || behind.iter().any(|(slot, _)| is_own(version, *slot)) {
                    return Ok(false);
                }
                tokio::time::sleep(LOOK_AFTER).await;
            }
            swap(&mut transaction, version).await?;
            Ok(true)
        };
        match swapped.await {
            Ok(true) => {
                transaction.commit().await?;
                self.note_trouble(&version.read_model, None).await?;
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(Failure::Sql(error)) => {
                let Some(way) = in_the_way(&error) else { return Err(error.into()) };
                drop(transaction);
                // A reader of it is soon done; an object that depends on it stays until it is
                // dropped.
                if code(&error).as_deref() == Some(DEPENDENT) {
                    self.note_trouble(&version.read_model, Some(&way.to_string())).await?;
                }
                Ok(false)
            }
            Err(Failure::Fenced(error)) => Err(error),
        }
    }

    /// True if the portions of others have come as far as the serving version at the last look, or
    /// are as far now. A look keeps nobody waiting.
    async fn has_come(&self, version: &Version, ahead: &mut Ahead) -> Result<bool, Error> {
        let mut connection = self.pool.acquire().await?;
        if ahead.of.is_empty() {
            ahead.of = behind(&mut connection, version).await?;
            ahead.of.retain(|(slot, _)| !is_own(version, *slot));
            return Ok(ahead.of.is_empty());
        }
        let (slots, changed): (Vec<i16>, Vec<i64>) = ahead.of.iter().copied().unzip();
        let is_left: bool = sqlx::query(
            "select exists (select from flexcore.reached($1) r \
             join unnest($2::smallint[], $3::bigint[]) as a (slot, changed) on a.slot = r.slot \
             where a.changed > r.place)",
        )
        .bind(version.id)
        .bind(slots)
        .bind(changed)
        .fetch_one(&mut *connection)
        .await?
        .try_get(0)?;
        if !is_left {
            ahead.of.clear();
        }
        Ok(!is_left)
    }

    /// Drops the tables of replaced versions that nobody reads any more, of the read models that the
    /// worker owns. One that cannot be dropped leaves the others alone; then this fails.
    pub async fn sweep(&self, owned: Owned<'_>) -> Result<(), Error> {
        let rows = sqlx::query(
            "select id, read_model, version from flexcore.projections where state = 'retired'",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut failed = Ok(());
        for row in rows {
            let (id, name, number): (i64, &str, i32) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if Name::parse(name).ok().and_then(|name| owned(&name, 0)).is_none() {
                continue;
            }
            let mut transaction = self.alone().await?;
            let sql = format!(
                "drop table if exists rm.\"{name}_v{number}\"; \
                 delete from flexcore.projections where id = {id}"
            );
            match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await {
                Ok(_) => transaction.commit().await?,
                Err(error) if in_the_way(&error).is_some() => {
                    tracing::debug!(read_model = name, %error, "the old table is still in use");
                }
                Err(error) => match Error::from(error) {
                    error if is_away(&error) => return Err(error),
                    error => failed = failed.and(Err(error)),
                },
            }
        }
        failed
    }
}

/// Why a version does not take over.
enum Failure {
    Sql(sqlx::Error),
    Fenced(Error),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fenced(error)
    }
}

/// True if an error concerns all read models, not one.
fn is_away(error: &Error) -> bool {
    matches!(
        error,
        Error::Unavailable(_) | Error::Exhausted(_) | Error::ReadOnly(_) | Error::Gone(_)
    )
}

/// True if nothing is to be made or dropped.
fn is_settled(model: &ReadModelDefinition, found: &[Registered]) -> bool {
    let is_current = |version: &&Registered| version.fingerprint == model.fingerprint;
    let live = || found.iter().filter(|version| version.state != VersionState::Retired);
    live().any(|version| is_current(&version))
        && live().all(|version| version.is_whole && !version.is_stale(model))
}

/// A version to project into; `None`: its declaration is not at hand.
fn run_of(
    catalog: &Catalog,
    model: &Arc<ReadModelDefinition>,
    registered: &Registered,
    portions: Portions,
) -> Option<Arc<Version>> {
    let definition = if registered.fingerprint == model.fingerprint {
        model
    } else {
        catalog.declarations.get(&registered.fingerprint)?
    };
    Some(Arc::new(Version {
        id: registered.id,
        portions,
        table: table(&model.name, registered.number),
        read_model: model.name.clone(),
        number: registered.number,
        state: registered.state,
        plan: Plan::new(definition),
        columns: definition.columns.clone(),
        indexes: fitting(model, &definition.columns),
    }))
}

/// Every declared read model, with its application.
fn declared(catalog: &Catalog) -> impl Iterator<Item = (&Name, &Arc<ReadModelDefinition>)> {
    catalog
        .applications
        .values()
        .flat_map(|app| app.read_models.values().map(|model| (&app.name, model)))
}

/// True if a slot's portion is one of those that the worker has.
fn is_own(version: &Version, slot: i16) -> bool {
    Slot::new(slot.unsigned_abs()).is_some_and(|slot| version.portions.has(slot))
}

/// Keeps the rows that serve as they are until the transaction ends.
async fn hold_still(connection: &mut PgConnection, version: &Version) -> Result<(), sqlx::Error> {
    let timeout = format!("set local lock_timeout = {LOCK_TIMEOUT_MS}");
    sqlx::raw_sql(AssertSqlSafe(timeout)).execute(&mut *connection).await?;
    let serving = "select c.slot from flexcore.checkpoints c \
                   join flexcore.projections p on p.id = c.projection_id \
                   where p.read_model = $1 and p.state = 'serving' and p.id <> $2 for update of c";
    sqlx::query(serving)
        .bind(version.read_model.as_str())
        .bind(version.id)
        .fetch_all(connection)
        .await?;
    Ok(())
}

/// The slots for which the rows that serve are of a later moment, each with that.
async fn behind(
    connection: &mut PgConnection,
    version: &Version,
) -> Result<Vec<(i16, i64)>, sqlx::Error> {
    sqlx::query_as(
        "select r.slot, s.changed \
         from flexcore.reached($2) r cross join lateral ( \
             select max(c.changed) as changed from flexcore.checkpoints c \
             join flexcore.projections p on p.id = c.projection_id \
             where p.read_model = $1 and p.state = 'serving' and p.id <> $2 \
               and c.slot % p.portions = r.slot % p.portions \
         ) s where s.changed > r.place",
    )
    .bind(version.read_model.as_str())
    .bind(version.id)
    .fetch_all(connection)
    .await
}

/// Points the view at the version. A view whose columns stay keeps the objects that depend on it.
async fn swap(connection: &mut PgConnection, version: &Version) -> Result<(), sqlx::Error> {
    let names: String =
        version.columns.iter().map(|column| format!(", \"{}\"", column.name)).collect();
    let (view, id) = (format!("rm.\"{}\"", version.read_model), version.id);
    let create = format!(
        "view {view} with (security_invoker = true) as select tenant{names} from {}; \
         select flexcore.admit_queries('{view}')",
        version.table
    );
    let states = format!(
        "set local lock_timeout = {LOCK_TIMEOUT_MS}; \
         update flexcore.projections set state = 'retired' \
             where read_model = '{}' and state = 'serving' and id <> {id}; \
         update flexcore.projections set state = 'serving', serving_since = now() where id = {id}; \
         savepoint columns",
        version.read_model
    );
    sqlx::raw_sql(AssertSqlSafe(states)).execute(&mut *connection).await?;
    let replace = format!("create or replace {create}");
    match sqlx::raw_sql(AssertSqlSafe(replace)).execute(&mut *connection).await {
        Ok(_) => return Ok(()),
        // invalid_table_definition: other columns than before.
        Err(error) if code(&error).as_deref() == Some("42P16") => {}
        Err(error) => return Err(error),
    }
    let anew = format!("rollback to savepoint columns; drop view {view}; create {create}");
    sqlx::raw_sql(AssertSqlSafe(anew)).execute(connection).await?;
    Ok(())
}

/// The read models that their application, being deployed, no longer declares. Those of an
/// application that is not deployed at all stay: the log may be another one than yesterday's.
fn undeclared(catalog: &Catalog, left: &BTreeMap<String, Vec<Registered>>) -> Vec<Name> {
    let declared: BTreeSet<&str> =
        declared(catalog).map(|(_, model)| model.name.as_str()).collect();
    let gone = left.iter().filter(|(name, versions)| {
        !declared.contains(name.as_str())
            && versions.iter().any(|v| catalog.applications.contains_key(v.application.as_str()))
    });
    gone.filter_map(|(name, _)| Name::parse(name).ok()).collect()
}
