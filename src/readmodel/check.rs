//! Named queries held to Postgres before they are deployed: prepared as they will run, against the
//! columns that the deployment will have.
//!
//! Postgres itself reads them: what a statement calls and reads stands in the rules of a view made of
//! it, whatever way it was written.

use flexcore_definition::{Application, FileLine, Problem, QueryDefinition, ReadModelDefinition};
use flexcore_domain::Name;
use sqlx::{
    AssertSqlSafe, PgConnection, Row as _,
    postgres::{PgDatabaseError, PgErrorPosition},
};

use crate::{
    Error, ReadModels,
    functions::{LISTED, allowed},
    named::{substitute, whole},
    transaction,
};

/// The lock under which one check is made after the other: FNV-1a of `flexcore check`, as any
/// number of ours would do. Making tables does not wait for it.
const LOCK: i64 = 0x666c_6578_6368_6563;
/// Attempts of a check where somebody changes what it renames: a gateway or worker that starts.
const ATTEMPTS: u32 = 5;

/// The view that a query becomes while it is checked.
const VIEW: &str = "create view rm._checked as ";

/// A view of its rows as they are: of two columns with one name nobody could have both.
const ROWS: &str = "create view rm._rows as select * from ";

/// The role that makes the view: it owns nothing else and reads nothing but these tables.
const AS_NOBODY: &str = "set local role flexcore_projection";

/// An empty schema `rm` in place of the one in use, for this transaction alone: others go on with
/// theirs, since nothing in it is locked and the transaction is rolled back.
const STAGE: &str = "set local statement_timeout = '30s'; \
     do $$ begin \
         if exists (select from pg_namespace where nspname = 'rm') then \
             alter schema rm rename to flexcore_rm_in_use; \
         end if; \
     end $$; \
     create schema rm; grant usage, create on schema rm to flexcore_projection; \
     set local search_path = rm; set local standard_conforming_strings = on";

impl ReadModels {
    /// Prepares every named query of an application as it will run. Returns what is wrong, each with
    /// file and line: what Postgres says of a statement, functions that are not allowed, and
    /// relations that `reads` does not name. Nothing stays of it in the database, and nothing waits
    /// for it. Fails when Postgres is away or does not let us make tables.
    #[boxed::async_recursion]
    pub async fn check_queries(&self, application: &Application) -> Result<Vec<Problem>, Error> {
        if application.queries.is_empty() {
            return Ok(Vec::new());
        }
        let mut attempt = 1;
        loop {
            match self.check_once(application).await {
                Err(Error::Database(message))
                    if attempt < ATTEMPTS && message.contains("concurrently updated") =>
                {
                    attempt += 1;
                }
                checked => return checked,
            }
        }
    }

    async fn check_once(&self, application: &Application) -> Result<Vec<Problem>, Error> {
        let begin = format!(
            "set local lock_timeout = '30s'; select pg_advisory_xact_lock({LOCK}); {STAGE}"
        );
        let mut transaction = transaction::begin_by(&self.pool, begin).await?;
        for model in application.read_models.values() {
            sqlx::raw_sql(AssertSqlSafe(table(model))).execute(&mut *transaction).await?;
        }
        let mut problems = Vec::new();
        for query in application.queries.values() {
            sqlx::raw_sql("savepoint query").execute(&mut *transaction).await?;
            problems.extend(check(&mut transaction, query).await?);
            sqlx::raw_sql("rollback to savepoint query").execute(&mut *transaction).await?;
        }
        transaction.rollback().await?;
        Ok(problems)
    }
}

/// The view of the read model that people read, as the one that serves, with no rows in it.
fn table(model: &ReadModelDefinition) -> String {
    let columns: String = model
        .columns
        .iter()
        .map(|column| format!(", \"{}\" {}", column.name, column.column_type.sql_column()))
        .collect();
    let name = &model.name;
    // No read model has such a name.
    format!(
        "create table rm.\"_{name}\" (tenant text collate \"C\"{columns}); \
         create view rm.\"{name}\" with (security_invoker = true) as select * from rm.\"_{name}\"; \
         grant select on rm.\"_{name}\", rm.\"{name}\" to flexcore_projection"
    )
}

async fn check(
    connection: &mut PgConnection,
    query: &QueryDefinition,
) -> Result<Vec<Problem>, Error> {
    let names: Vec<&Name> = query.parameters.iter().map(|parameter| &parameter.name).collect();
    // A view has no parameters: a null of the same type says as much about the statement.
    let null = |index: usize| format!("(null::{})", query.parameters[index].column_type.sql());
    let problem = |line: usize, message: String| Problem {
        place: FileLine { file: query.place.file.clone(), line: query.sql_line + line },
        message: format!("query `{}`: {message}", query.name),
    };
    let statement = match substitute(&query.sql, &query.name, &names, null) {
        Ok(statement) => statement,
        Err(Error::QueryFailed { message, .. }) => return Ok(vec![problem(0, message)]),
        Err(other) => return Err(other),
    };
    let whole = whole(&statement);
    let view = format!("{VIEW}{}", whole.text);
    sqlx::raw_sql(AS_NOBODY).execute(&mut *connection).await?;
    let rows = format!("{ROWS}({statement}\n) as _statement");
    // Prepared, Postgres takes one statement and no more, whatever its author made of it.
    for (text, before) in [(view, VIEW.len() + whole.before), (rows, ROWS.len() + 1)] {
        let made = sqlx::query(AssertSqlSafe(text.clone())).persistent(false);
        if let Err(error) = made.execute(&mut *connection).await {
            let line = line(&text, before, &error);
            return match Error::from(error) {
                // A table that is not there is not one of ours that somebody dropped.
                Error::Database(message) | Error::Gone(message) => Ok(vec![problem(line, message)]),
                other => Err(other),
            };
        }
    }
    sqlx::raw_sql("reset role").execute(&mut *connection).await?;
    let mut problems = Vec::new();
    if locks(&mut *connection).await? {
        let message = "it locks rows, and a query only reads".to_owned();
        problems.push(problem(found(&query.sql, "for"), message));
    }
    if xml(&mut *connection).await? {
        let message = "it makes or reads XML, which Postgres may not stop in time".to_owned();
        problems.push(problem(found(&query.sql, "xml"), message));
    }
    for function in functions(&mut *connection).await? {
        let name = function.split('(').next().unwrap_or_default();
        let message = format!(
            "`{function}` is not among the functions that a query may call; schemas/README.md says \
             which are"
        );
        problems.push(problem(found(&query.sql, name), message));
    }
    for relation in relations(&mut *connection, &query.reads).await? {
        let name = relation.rsplit('.').next().unwrap_or_default();
        let message = format!("it reads `{relation}`, which `reads` does not name");
        problems.push(problem(found(&query.sql, name), message));
    }
    Ok(problems)
}

/// True if the view locks rows.
async fn locks(connection: &mut PgConnection) -> Result<bool, Error> {
    let sql = "select ev_action::text like '%:rowMarks ({%' from pg_rewrite \
               where ev_class = 'rm._checked'::regclass";
    Ok(sqlx::query(sql).fetch_one(connection).await?.try_get(0)?)
}

/// True if the view has XML in it by Postgres's grammar, for which there is no function to allow.
async fn xml(connection: &mut PgConnection) -> Result<bool, Error> {
    let sql = "select ev_action::text ~ '\\{(XMLEXPR|TABLEFUNC :(ns_uris|functype 0))' \
               from pg_rewrite where ev_class = 'rm._checked'::regclass";
    Ok(sqlx::query(sql).fetch_one(connection).await?.try_get(0)?)
}

/// The line of the statement that an error points at, from 0.
fn line(text: &str, before: usize, error: &sqlx::Error) -> usize {
    let error = error.as_database_error().and_then(|e| e.try_downcast_ref::<PgDatabaseError>());
    let Some(PgErrorPosition::Original(at)) = error.and_then(PgDatabaseError::position) else {
        return 0;
    };
    // It counts characters, from 1. The text before the statement has a byte each.
    text.chars().take(at).skip(before).filter(|c| *c == '\n').count()
}

/// The line on which a name is first written, from 0.
fn found(sql: &str, name: &str) -> usize {
    let name = name.trim_matches('"').to_lowercase();
    sql.lines().position(|line| line.to_lowercase().contains(&name)).unwrap_or(0)
}

/// Functions, and those of operators and casts, that the view calls and the list has not.
async fn functions(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let sql = format!(
        "select distinct p.oid::regprocedure::text \
         from pg_rewrite r, \
             regexp_matches(r.ev_action::text, \
                 ':(?:funcid|opfuncid|aggfnoid|winfnoid) (\\d+)', 'g') as found, \
             pg_proc p, pg_namespace n \
         where r.ev_class = 'rm._checked'::regclass and p.oid = found[1]::oid \
           and n.oid = p.pronamespace and not {LISTED} \
         order by 1"
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(allowed()).fetch_all(connection).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, sqlx::Error>>()?)
}

/// Tables and views that the view reads, but for read models of these names.
async fn relations(connection: &mut PgConnection, reads: &[Name]) -> Result<Vec<String>, Error> {
    let reads: Vec<&str> = reads.iter().map(Name::as_str).collect();
    let rows = sqlx::query(
        "select distinct n.nspname || '.' || c.relname \
         from pg_rewrite r, \
             regexp_matches(r.ev_action::text, ':relid (\\d+)', 'g') as found, \
             pg_class c, pg_namespace n \
         where r.ev_class = 'rm._checked'::regclass and c.oid = found[1]::oid \
           and c.oid <> r.ev_class and n.oid = c.relnamespace \
           and not (n.nspname = 'rm' and c.relname = any($1)) \
         order by 1",
    )
    .bind(reads)
    .fetch_all(connection)
    .await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, sqlx::Error>>()?)
}
