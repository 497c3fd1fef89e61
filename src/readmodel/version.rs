//! Versions of read models: which there are, which is built, which serves.
//!
//! A declaration with another fingerprint is another version. It is built beside the one that
//! serves, and takes over with one change of the view; the old table is dropped afterwards, as soon
//! as no query reads it. Nothing here waits for a lock longer than [`LOCK_TIMEOUT_MS`]: a reader is
//! never kept waiting behind it, it is tried again instead.

use std::sync::Arc;

use flexcore_domain::{
    Catalog, Name, SLOTS,
    definition::{Column, ReadModelDefinition},
};
use sqlx::{AssertSqlSafe, PgConnection, Postgres, Row as _, Transaction};

use crate::{
    Error, ReadModels,
    cell::sql_type,
    epoch::{Owned, check_epoch},
    error::code,
    plan::Plan,
    status::State,
};

/// Column names that are taken: the tenant's, and Postgres' own hidden columns.
pub const RESERVED_COLUMNS: [&str; 7] =
    ["tenant", "tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// Most columns of a read model: each is an array of every statement that writes.
pub const COLUMNS_MAX: usize = 200;

/// Longest wait for a table's or view's lock, in milliseconds.
const LOCK_TIMEOUT_MS: u32 = 100;

/// The name of the lock on the tables as such: FNV-1a of `flexcore projections`, as any number of
/// ours alone would do.
pub(crate) const LOCK: i64 = 0x666c_6578_7072_6f6a;

/// A version of a read model, to project into.
#[derive(Debug)]
pub struct Version {
    pub(crate) id: i64,
    /// The epoch under which this worker owns it: writes are refused when a later one has it.
    pub epoch: i64,
    /// The read model.
    pub read_model: Name,
    /// Its number, from 1.
    pub number: i32,
    /// Whether it is built or serves.
    pub state: State,
    /// Its expressions.
    pub plan: Plan,
    /// Its table, quoted.
    pub(crate) table: String,
    columns: Vec<Column>,
}

impl Version {
    /// What identifies it in the database.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.id
    }
}

/// A version as `flexcore.projections` has it.
#[derive(Clone)]
struct Registered {
    id: i64,
    number: i32,
    fingerprint: String,
    state: State,
}

/// What came of comparing the catalog with the database.
#[derive(Debug, Default)]
pub struct Versions {
    /// To project into.
    pub run: Vec<Arc<Version>>,
    /// Read models that cannot be created, and why.
    pub refused: Vec<(Name, Error)>,
    /// Fingerprints of versions whose declarations are not at hand, each with its application.
    pub unknown: Vec<(Name, String)>,
}

/// Checks a read model's names against those that are taken. Fails with [`Error::Reserved`].
pub fn check_names(model: &ReadModelDefinition) -> Result<(), Error> {
    for column in &model.columns {
        if RESERVED_COLUMNS.contains(&column.name.as_str()) {
            return Err(Error::Reserved(format!(
                "{}: a column cannot be called {}; taken are: {}",
                model.name,
                column.name,
                RESERVED_COLUMNS.join(", ")
            )));
        }
    }
    if model.columns.len() > COLUMNS_MAX {
        return Err(Error::Reserved(format!("{}: at most {COLUMNS_MAX} columns", model.name)));
    }
    let tail = model.name.as_str().rsplit_once("_v").map(|(_, tail)| tail);
    if tail.is_some_and(|tail| !tail.is_empty() && tail.bytes().all(|b| b.is_ascii_digit())) {
        return Err(Error::Reserved(format!(
            "{}: names that end in _v and a number are those of versions",
            model.name
        )));
    }
    Ok(())
}

impl ReadModels {
    /// Brings versions in line with what is deployed and with requested rebuilds: registers new
    /// ones, drops what a deployed application no longer declares. What serves is to be filled
    /// while its successor is being built. `owned` says under which epoch the worker owns a read
    /// model; the others are left to their owners. Fails with [`Error::Fenced`] when one has a
    /// later owner by now.
    pub async fn versions(&self, catalog: &Catalog, owned: Owned<'_>) -> Result<Versions, Error> {
        let mut transaction = self.alone().await?;
        let mut versions = Versions::default();
        for (application, model) in declared(catalog) {
            let Some(epoch) = owned(&model.name) else { continue };
            check_epoch(&mut transaction, &model.name, epoch).await?;
            if let Err(error) = check_names(model) {
                versions.refused.push((model.name.clone(), error));
                continue;
            }
            for registered in register(&mut transaction, application, model).await? {
                let definition = if registered.fingerprint == model.fingerprint {
                    Arc::clone(model)
                } else if let Some(definition) = catalog.declarations.get(&registered.fingerprint) {
                    Arc::clone(definition)
                } else {
                    // Declared by a former deployment. If that cannot be read either, the version
                    // serves as it is until its successor is built.
                    versions.unknown.push((application.clone(), registered.fingerprint));
                    continue;
                };
                versions.run.push(Arc::new(Version {
                    id: registered.id,
                    epoch,
                    table: table(&model.name, registered.number),
                    read_model: model.name.clone(),
                    number: registered.number,
                    state: registered.state,
                    plan: Plan::new(&definition),
                    columns: definition.columns.clone(),
                }));
            }
        }
        remove_undeclared(&mut transaction, catalog, owned).await?;
        transaction.commit().await?;
        Ok(versions)
    }

    /// A transaction in which tables may be made and dropped: one at a time, whatever worker.
    async fn alone(&self) -> Result<Transaction<'static, Postgres>, Error> {
        let begin = format!("begin; select pg_advisory_xact_lock({LOCK})");
        Ok(self.pool.begin_with(AssertSqlSafe(begin)).await?)
    }

    /// The checkpoint of a version, by slot, taken over for the version's epoch: from now on a
    /// writer with an older one is refused. Fails with [`Error::Fenced`] when a later one has it.
    pub async fn take_over(&self, version: &Version) -> Result<Vec<u64>, Error> {
        let epoch = version.epoch;
        #[cfg(feature = "defects")]
        crate::epoch::forget_later(&mut *self.pool.acquire().await?, &[version.id], &[epoch])
            .await?;
        let rows = sqlx::query(
            "update flexcore.checkpoints set epoch = greatest(epoch, $2) \
             where projection_id = $1 returning slot, position, epoch",
        )
        .bind(version.id)
        .bind(epoch)
        .fetch_all(&self.pool)
        .await?;
        if rows.len() != usize::from(SLOTS) {
            return Err(Error::Moved);
        }
        let mut positions = vec![0; usize::from(SLOTS)];
        for row in &rows {
            let found: i64 = row.try_get(2)?;
            if found > epoch {
                return Err(Error::Fenced { held: epoch, found });
            }
            let slot = usize::from(row.try_get::<i16, _>(0)?.unsigned_abs());
            positions[slot] = row.try_get::<i64, _>(1)?.unsigned_abs();
        }
        Ok(positions)
    }

    /// Makes a version that has caught up the one that serves. Returns false when the one that
    /// serves is ahead, when the view is in use just now, or when something that hangs on it stands
    /// in the way: try again. Queries go on, and never see an earlier state than before.
    pub async fn promote(&self, version: &Version) -> Result<bool, Error> {
        let mut transaction = self.pool.begin().await?;
        let swapped = async {
            check_epoch(&mut transaction, &version.read_model, version.epoch).await?;
            if is_behind(&mut transaction, version).await? {
                return Ok(false);
            }
            swap(&mut transaction, version).await?;
            Ok(true)
        };
        match swapped.await {
            Ok(true) => {
                transaction.commit().await?;
                Ok(true)
            }
            Ok(false) => Ok(false),
            Err(Failure::Sql(error)) if in_the_way(&error) => {
                tracing::info!(read_model = %version.read_model, %error, "the view cannot be changed yet");
                Ok(false)
            }
            Err(Failure::Sql(error)) => Err(error.into()),
            Err(Failure::Fenced(error)) => Err(error),
        }
    }

    /// Drops the tables of replaced versions that nobody reads any more, of the read models that the
    /// worker owns.
    pub async fn sweep(&self, owned: Owned<'_>) -> Result<(), Error> {
        let rows = sqlx::query(
            "select id, read_model, version from flexcore.projections where state = 'retired'",
        )
        .fetch_all(&self.pool)
        .await?;
        for row in rows {
            let (id, name, number): (i64, &str, i32) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if Name::parse(name).ok().and_then(|name| owned(&name)).is_none() {
                continue;
            }
            let mut transaction = self.alone().await?;
            let sql = format!(
                "set local lock_timeout = {LOCK_TIMEOUT_MS}; \
                 drop table if exists rm.\"{name}_v{number}\"; \
                 delete from flexcore.projections where id = {id}"
            );
            match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await {
                Ok(_) => transaction.commit().await?,
                Err(error) if in_the_way(&error) => {
                    tracing::debug!(read_model = name, %error, "the old table is still in use");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
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

/// lock_not_available, dependent_objects_still_exist.
fn in_the_way(error: &sqlx::Error) -> bool {
    matches!(code(error).as_deref(), Some("55P03" | "2BP01"))
}

/// Every declared read model, with its application.
fn declared(catalog: &Catalog) -> impl Iterator<Item = (&Name, &Arc<ReadModelDefinition>)> {
    catalog
        .applications
        .values()
        .flat_map(|app| app.read_models.values().map(|model| (&app.name, model)))
}

fn table(name: &Name, number: i32) -> String {
    format!("rm.\"{name}_v{number}\"")
}

/// The versions of a read model that are to be run, a new one included when it is due.
async fn register(
    connection: &mut PgConnection,
    application: &Name,
    model: &ReadModelDefinition,
) -> Result<Vec<Registered>, Error> {
    let mut all = registered(connection, &model.name).await?;
    let is_current = |version: &Registered| version.fingerprint == model.fingerprint;
    // Half built from a declaration that has changed again, or been taken back.
    let stale = |version: &Registered| version.state == State::Building && !is_current(version);
    for version in all.iter().filter(|version| stale(version)) {
        drop_version(connection, &model.name, version).await?;
    }
    let last = all.iter().map(|version| version.number).max().unwrap_or(0);
    all.retain(|version| version.state != State::Retired && !stale(version));
    let rebuild: Option<i64> = sqlx::query(
        "select max(id) from flexcore.rebuilds where read_model = $1 and version is null",
    )
    .bind(model.name.as_str())
    .fetch_one(&mut *connection)
    .await?
    .try_get(0)?;
    let building = all.iter().find(|version| version.state == State::Building).cloned();
    let building = match building {
        Some(building) => Some(building),
        None if rebuild.is_some() || !all.iter().any(is_current) => {
            let created = create(connection, application, model, last + 1).await?;
            all.push(created.clone());
            Some(created)
        }
        None => None,
    };
    if let (Some(request), Some(building)) = (rebuild, building) {
        sqlx::query(
            "update flexcore.rebuilds set version = $3 \
             where read_model = $1 and version is null and id <= $2",
        )
        .bind(model.name.as_str())
        .bind(request)
        .bind(building.number)
        .execute(&mut *connection)
        .await?;
    }
    Ok(all)
}

async fn registered(connection: &mut PgConnection, name: &Name) -> Result<Vec<Registered>, Error> {
    let rows = sqlx::query(
        "select id, version, fingerprint, state from flexcore.projections \
         where read_model = $1 order by version",
    )
    .bind(name.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Registered {
                id: row.try_get(0)?,
                number: row.try_get(1)?,
                fingerprint: row.try_get(2)?,
                state: State::parse(row.try_get(3)?),
            })
        })
        .collect()
}

/// Registers a version and makes its table.
async fn create(
    connection: &mut PgConnection,
    application: &Name,
    model: &ReadModelDefinition,
    number: i32,
) -> Result<Registered, Error> {
    let id: i64 = sqlx::query(
        "insert into flexcore.projections (read_model, version, application, fingerprint, state) \
         values ($1, $2, $3, $4, 'building') returning id",
    )
    .bind(model.name.as_str())
    .bind(number)
    .bind(application.as_str())
    .bind(&model.fingerprint)
    .fetch_one(&mut *connection)
    .await?
    .try_get(0)?;
    sqlx::query(
        "insert into flexcore.checkpoints (projection_id, slot) \
         select $1, slot from generate_series(0, $2) as slot",
    )
    .bind(id)
    .bind(i32::from(SLOTS) - 1)
    .execute(&mut *connection)
    .await?;
    let table = table(&model.name, number);
    let column = |column: &Column| {
        let required = if model.key.contains(&column.name) { " not null" } else { "" };
        format!("\"{}\" {}{required}, ", column.name, sql_type(column.kind))
    };
    let columns: String = model.columns.iter().map(column).collect();
    let key: Vec<String> = model.key.iter().map(|name| format!("\"{name}\"")).collect();
    let sql = format!(
        "create table {table} (tenant text collate \"C\" not null, {columns}\
             primary key (tenant, {})); \
         alter table {table} enable row level security; \
         alter table {table} force row level security; \
         create policy projection on {table} to flexcore_projection using (true) with check (true); \
         select flexcore.admit_queries('{table}'); \
         grant select, insert, update, delete on {table} to flexcore_projection",
        key.join(", ")
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    let fingerprint = model.fingerprint.clone();
    Ok(Registered { id, number, fingerprint, state: State::Building })
}

async fn drop_version(
    connection: &mut PgConnection,
    name: &Name,
    version: &Registered,
) -> Result<(), Error> {
    let sql = format!(
        "drop table if exists {}; delete from flexcore.projections where id = {}",
        table(name, version.number),
        version.id
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Whether the version that serves has read further. It can't read on until the transaction ends.
async fn is_behind(connection: &mut PgConnection, version: &Version) -> Result<bool, sqlx::Error> {
    let timeout = format!("set local lock_timeout = {LOCK_TIMEOUT_MS}");
    sqlx::raw_sql(AssertSqlSafe(timeout)).execute(&mut *connection).await?;
    let row = sqlx::query(
        "with serving as ( \
             select position from flexcore.checkpoints where projection_id = ( \
                 select id from flexcore.projections \
                 where read_model = $1 and state = 'serving' and id <> $2 \
             ) for update \
         ) \
         select coalesce((select max(position) from serving), 0) > coalesce( \
             (select max(position) from flexcore.checkpoints where projection_id = $2), 0)",
    )
    .bind(version.read_model.as_str())
    .bind(version.id)
    .fetch_one(connection)
    .await?;
    row.try_get(0)
}

/// Points the view at the version. A view whose columns stay keeps what hangs on it.
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

/// Drops the read models that their application, being deployed, no longer declares. Those of an
/// application that is not deployed at all stay: the log may be another one than yesterday's.
async fn remove_undeclared(
    connection: &mut PgConnection,
    catalog: &Catalog,
    owned: Owned<'_>,
) -> Result<(), Error> {
    let applications: Vec<&str> = catalog.applications.keys().map(Name::as_str).collect();
    let models: Vec<&str> = declared(catalog).map(|(_, model)| model.name.as_str()).collect();
    let gone = sqlx::query(
        "select distinct read_model from flexcore.projections \
         where application = any($1) and read_model <> all($2)",
    )
    .bind(applications)
    .bind(models)
    .fetch_all(&mut *connection)
    .await?;
    for row in gone {
        let Ok(name) = Name::parse(row.try_get(0)?) else { continue };
        let Some(epoch) = owned(&name) else { continue };
        check_epoch(&mut *connection, &name, epoch).await?;
        tracing::info!(read_model = %name, "no longer declared: dropped");
        let view = format!("drop view if exists rm.\"{name}\"");
        sqlx::raw_sql(AssertSqlSafe(view)).execute(&mut *connection).await?;
        for version in registered(&mut *connection, &name).await? {
            drop_version(connection, &name, &version).await?;
        }
    }
    Ok(())
}
