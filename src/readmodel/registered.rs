//! The versions that there are: as `flexcore.projections` has them, made and dropped with their tables.

use std::collections::{BTreeMap, BTreeSet};

use flexcore_definition::{Column, ReadModelDefinition};
use flexcore_domain::{Name, SLOTS};
use sqlx::{AssertSqlSafe, PgConnection, Row as _, types::Json};

use crate::{Error, error::in_the_way, shape::Shape, status::VersionState};

/// A version as `flexcore.projections` has it.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) id: i64,
    pub(crate) number: i32,
    pub(crate) fingerprint: String,
    pub(crate) state: VersionState,
    /// The application that declares it.
    pub(crate) application: String,
    /// Among how many workers it may be shared.
    pub(crate) portions: u16,
    /// Its table is there; and, when it serves, its view.
    pub(crate) is_whole: bool,
}

impl Registered {
    /// Half built from a declaration that has changed again, or been taken back.
    pub(crate) fn is_stale(&self, model: &ReadModelDefinition) -> bool {
        self.state == VersionState::Building && self.fingerprint != model.fingerprint
    }
}

/// The versions of a read model that are to be run, a new one included when it is due.
pub(crate) async fn register(
    connection: &mut PgConnection,
    application: &Name,
    model: &ReadModelDefinition,
) -> Result<Vec<Registered>, Error> {
    let mut all = registered(connection).await?.remove(model.name.as_str()).unwrap_or_default();
    let is_current = |version: &Registered| version.fingerprint == model.fingerprint;
    // A table that somebody dropped is built anew.
    let useless = |version: &Registered| version.is_stale(model) || !version.is_whole;
    for version in all.iter().filter(|version| useless(version)) {
        drop_version(connection, &model.name, version).await?;
    }
    let last = all.iter().map(|version| version.number).max().unwrap_or(0);
    all.retain(|version| version.state != VersionState::Retired && !useless(version));
    let rebuild: Option<i64> = sqlx::query(
        "select max(id) from flexcore.rebuilds where read_model = $1 and version is null",
    )
    .bind(model.name.as_str())
    .fetch_one(&mut *connection)
    .await?
    .try_get(0)?;
    let building = all.iter().find(|version| version.state == VersionState::Building).cloned();
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

/// Every version, by read model.
pub(crate) async fn registered(
    connection: &mut PgConnection,
) -> Result<BTreeMap<String, Vec<Registered>>, Error> {
    let rows = sqlx::query(
        "select read_model, id, version, fingerprint, state, application, portions, \
                to_regclass(format('rm.%I', read_model || '_v' || version)) is not null \
                and (state <> 'serving' or to_regclass(format('rm.%I', read_model)) is not null) \
         from flexcore.projections order by read_model, version",
    )
    .fetch_all(connection)
    .await?;
    let mut all: BTreeMap<String, Vec<Registered>> = BTreeMap::new();
    for row in &rows {
        all.entry(row.try_get(0)?).or_default().push(Registered {
            id: row.try_get(1)?,
            number: row.try_get(2)?,
            fingerprint: row.try_get(3)?,
            state: VersionState::parse(row.try_get(4)?),
            application: row.try_get(5)?,
            portions: row.try_get::<i16, _>(6)?.unsigned_abs(),
            is_whole: row.try_get(7)?,
        });
    }
    Ok(all)
}

/// The read models of which somebody wants a rebuild that no worker has taken up.
pub(crate) async fn rebuilds(connection: &mut PgConnection) -> Result<BTreeSet<String>, Error> {
    let sql = "select distinct read_model from flexcore.rebuilds where version is null";
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Registers a version and makes its table.
async fn create(
    connection: &mut PgConnection,
    application: &Name,
    model: &ReadModelDefinition,
    number: i32,
) -> Result<Registered, Error> {
    let id: i64 = sqlx::query(
        "insert into flexcore.projections \
             (read_model, version, application, fingerprint, state, declaration, portions) \
         values ($1, $2, $3, $4, 'building', $5, $6) returning id",
    )
    .bind(model.name.as_str())
    .bind(number)
    .bind(application.as_str())
    .bind(&model.fingerprint)
    .bind(Json(Shape::of(model)))
    .bind(model.portions() as i16)
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
        format!("\"{}\" {}{required}, ", column.name, column.column_type.sql_column())
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
    Ok(Registered {
        id,
        number,
        fingerprint: model.fingerprint.clone(),
        state: VersionState::Building,
        application: application.to_string(),
        portions: model.portions(),
        is_whole: true,
    })
}

pub(crate) async fn drop_version(
    connection: &mut PgConnection,
    name: &Name,
    version: &Registered,
) -> Result<(), Error> {
    let sql = format!(
        "drop table if exists {}; delete from flexcore.projections where id = {}",
        table(name, version.number),
        version.id
    );
    change(connection, &sql).await
}

/// Changes tables or views. Fails with [`Error::InTheWay`].
pub(crate) async fn change(connection: &mut PgConnection, sql: &str) -> Result<(), Error> {
    match sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) => Err(in_the_way(&error).unwrap_or_else(|| error.into())),
    }
}

pub(crate) fn table(name: &Name, number: i32) -> String {
    format!("rm.\"{name}_v{number}\"")
}
