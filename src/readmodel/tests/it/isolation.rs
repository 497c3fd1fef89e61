//! No tenant sees another's rows, with any query.

use std::{sync::Arc, time::Duration};

use flexcore_definition::{ColumnType, Operation, ReadModelDefinition};
use flexcore_readmodel::{Error, ReadModels, Select, Settings};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use crate::{
    database::{Database, change, changes, commit, data, model, part, query, tenant},
    hostile,
};

const COLUMNS: [(&str, ColumnType); 2] = [("k", ColumnType::Text), ("n", ColumnType::Integer)];

fn things() -> Arc<ReadModelDefinition> {
    model("things", "f", &COLUMNS, [("set", change(&[("n", Operation::Set, data("n"))]))])
}

/// A database in which these tenants have a row each: key and number.
async fn filled(database: &Database, rows: &[(&str, &str, i64)]) {
    let version = database.serving(&things()).await;
    let change = |(of, k, n): &(&str, &str, i64)| {
        changes(&version, &commit(of, "set", 1, &json!({"k": k, "n": n}))).unwrap().unwrap()
    };
    let rows = rows.iter().map(change).collect();
    database.models.apply(&[part(&version, rows, 0, 1)]).await.unwrap();
}

/// The answer to a tenant: rows, or the error.
async fn answer(models: &ReadModels, of: &str, sql: &str) -> Result<String, String> {
    let asked = models.run_query(&tenant(of), &query(sql), &[]).await;
    asked.map_err(|error| error.to_string())
}

const OWN: (&str, &str, i64) = ("a", "1", 1);
const OTHERS: (&str, &str, i64) = ("b", "secret", i64::MAX);

/// Installs the extensions by which a statement could connect to this server again, as somebody who
/// sees all rows, where the server has them.
async fn go_abroad(database: &Database) {
    let name = database.one("select current_database()").await;
    let port = database.one("select inet_server_port()::text").await;
    let sql = format!(
        "do $$ begin \
             if exists (select from pg_available_extensions where name = 'dblink') then \
                 create extension dblink; \
             end if; \
             if exists (select from pg_available_extensions where name = 'postgres_fdw') then \
                 create extension postgres_fdw; \
                 create server abroad foreign data wrapper postgres_fdw \
                     options (host '127.0.0.1', port '{port}', dbname '{name}'); \
                 create user mapping for public server abroad options (user 'flexcore'); \
                 create foreign table public.abroad (k text) server abroad \
                     options (schema_name 'rm', table_name 'things_v1'); \
                 create foreign table rm.abroad (k text) server abroad \
                     options (schema_name 'rm', table_name 'things_v1'); \
             end if; \
         end $$"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.admin).await.unwrap();
}

/// The names in the list of functions that are allowed besides immutable ones.
fn listed() -> Vec<&'static str> {
    let source = include_str!("../../functions.rs");
    let (_, list) = source.split_once("ALLOWED: &[&str] = &[").unwrap();
    let (list, _) = list.split_once("];").unwrap();
    let texts = list.split('"').skip(1).step_by(2);
    texts.flat_map(|text| text.split(' ')).collect()
}

/// Postgres' own account of what the login may call, with every extension that there is.
#[tokio::test]
async fn the_login_may_call_what_is_listed_and_nothing_else() {
    let database = Database::new().await;
    go_abroad(&database).await;
    database.models.migrate().await.unwrap();
    // Left out is what no statement can call: it takes or gives what only the server can make.
    let callable = "select p.oid::regprocedure::text, n.nspname::text, p.proname::text, \
             p.provolatile = 'i' \
         from pg_proc p join pg_namespace n on n.oid = p.pronamespace, flexcore.query_login l \
         where has_function_privilege(l.name, p.oid, 'execute') \
           and has_schema_privilege(l.name, n.oid, 'usage') \
           and not 'internal'::regtype = any(p.proargtypes) \
           and format_type(p.prorettype, null) not in ('internal', 'trigger', 'event_trigger') \
           and format_type(p.prorettype, null) not like '%handler'";
    let callable: Vec<(String, String, String, bool)> =
        sqlx::query_as(callable).fetch_all(&database.admin).await.unwrap();
    let listed = listed();
    assert!(listed.len() > 100 && callable.len() > 1_000, "{} {}", listed.len(), callable.len());
    let is_allowed = |schema: &str, name: &str, is_immutable: bool| {
        schema == "pg_catalog" && (is_immutable || listed.contains(&name))
    };
    let beyond = callable.iter().filter(|(_, schema, name, immutable)| {
        !is_allowed(schema, name, *immutable) || UNSTOPPED.contains(&name.as_str())
    });
    let beyond: Vec<&str> = beyond.map(|(signature, ..)| signature.as_str()).collect();
    assert!(beyond.is_empty(), "{beyond:?}");
    let there = "select distinct proname::text from pg_proc where pronamespace = 11";
    let there: Vec<String> = sqlx::query_scalar(there).fetch_all(&database.admin).await.unwrap();
    for name in listed.iter().filter(|name| there.iter().any(|other| other == **name)) {
        assert!(callable.iter().any(|(_, _, other, _)| other == *name), "{name} is on the list");
    }
}

/// Immutable functions that no time limit stops.
const UNSTOPPED: &[&str] = &["arrayoverlap", "arraycontains", "arraycontained", "xpath"];

/// Each way out of row-level security that has been published, as a named query of tenant `a`: the
/// answer is the same, to the letter, whether tenant `b` has rows or not.
#[tokio::test]
async fn no_statement_says_anything_of_another_tenant() {
    let (with, without) = (Database::new().await, Database::new().await);
    filled(&with, &[OWN, OTHERS]).await;
    filled(&without, &[OWN]).await;
    for database in [&with, &without] {
        go_abroad(database).await;
        database.models.migrate().await.unwrap();
    }
    for sql in hostile::fruitless().chain(hostile::forbidden()) {
        let said = answer(&with.models, "a", sql).await;
        assert_eq!(said, answer(&without.models, "a", sql).await, "{sql}");
    }
    for sql in hostile::fruitless() {
        let said = answer(&with.models, "a", sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert!(!said.contains("secret") && !said.contains("root:"), "{sql}: {said}");
    }
    let mut open = Vec::new();
    for sql in hostile::forbidden() {
        if let Ok(said) = answer(&with.models, "a", sql).await {
            open.push(format!("{sql}: {said}"));
        }
    }
    assert!(open.is_empty(), "{} are answered:\n{}", open.len(), open.join("\n"));
    // The session that ran all that is the next tenant's, and as good as new.
    let rows = answer(&with.models, "b", "select k from rm.things").await;
    assert_eq!(rows, Ok(r#"[{"k":"secret"}]"#.to_owned()));
}

/// With an owner that is no superuser Postgres' functions stay open: a query can change every setting,
/// run text as SQL, look at other sessions. It still has no seal but its own.
#[tokio::test]
async fn a_query_that_may_call_every_function_stays_with_its_tenant() {
    let (database, superuser) = owned_by_no_superuser().await;
    let others = ("b", "swordfish", 918_273_645);
    filled(&database, &[OWN, others]).await;
    for sql in hostile::fruitless().chain(hostile::forbidden()) {
        let said = format!("{:?}", answer(&database.models, "a", sql).await);
        assert!(!said.contains("swordfish") && !said.contains("918273645"), "{sql}: {said}");
    }
    let open = "select \"set_config\"('flexcore.tenant', 'b', false) as x";
    assert_eq!(answer(&database.models, "a", open).await, Ok(r#"[{"x":"b"}]"#.to_owned()));
    let rows = answer(&database.models, "a", "select k from rm.things").await;
    assert_eq!(rows, Ok(r#"[{"k":"1"}]"#.to_owned()), "nothing stays of a statement");
    let select = Select::parse(&things(), &[]).unwrap();
    let page = database.models.select(&tenant("b"), &things(), &select).await.unwrap();
    assert_eq!(page.rows, r#"[{"k":"swordfish","n":918273645}]"#);
    // A superuser starts once, and the owner goes on.
    let superuser = ReadModels::connect(&superuser, Settings::default()).await.unwrap();
    superuser.migrate().await.unwrap();
    for sql in hostile::forbidden() {
        let said = answer(&database.models, "a", sql).await;
        assert!(said.is_err(), "{sql}: {said:?}");
    }
    database.models.migrate().await.unwrap();
    let rows = answer(&database.models, "a", "select k from rm.things").await;
    assert_eq!(rows, Ok(r#"[{"k":"1"}]"#.to_owned()));
}

/// A database whose owner may create roles, and is no superuser; and the URL of one.
async fn owned_by_no_superuser() -> (Database, String) {
    let mut database = Database::empty().await;
    let at = database.one("select current_database()").await;
    let sql = format!(
        "create role owner_of_{at} login createrole password 'owner'; \
         alter database {at} owner to owner_of_{at}; \
         do $$ declare role name; begin \
             for role in select rolname from pg_roles where rolname in \
                 ('flexcore_query', 'flexcore_projection', 'flexcore_functions') loop \
                 execute format('grant %I to owner_of_{at} with admin option', role); \
             end loop; \
         end $$"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.admin).await.unwrap();
    let (_, server) = database.url.split_once('@').unwrap();
    let owner = format!("postgres://owner_of_{at}:owner@{server}");
    let superuser = std::mem::replace(&mut database.url, owner);
    database.models = ReadModels::connect(&database.url, Settings::default()).await.unwrap();
    database.models.migrate().await.unwrap();
    (database, superuser)
}

/// A session of the login of queries, by hand.
struct Session {
    connection: PgConnection,
    place: String,
}

impl Session {
    async fn new(database: &Database) -> Self {
        let login = "select name || ':' || password from flexcore.query_login";
        let login = database.one(login).await;
        let (_, server) = database.url.split_once('@').unwrap();
        let url = format!("postgres://{login}@{server}");
        let mut connection = PgConnection::connect(&url).await.unwrap();
        let place = "select pg_backend_pid() || ' ' || inet_client_port()";
        let place = sqlx::query(place).fetch_one(&mut connection).await.unwrap().get(0);
        Self { connection, place }
    }

    /// The gateway's setting for a tenant in this session.
    async fn seal(&self, database: &Database, of: &str) -> String {
        let sql = format!(
            "select '{of} ' || encode(sha256(key || sha256(key || '{} {of}'::bytea)), 'hex') \
             from flexcore.query_login",
            self.place
        );
        database.one(&sql).await
    }

    /// Number of rows that a statement gives under this setting.
    async fn rows(&mut self, setting: &str, sql: &'static str) -> Result<usize, String> {
        let mut transaction = self.connection.begin().await.unwrap();
        let set = format!("set local flexcore.tenant = '{setting}'");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *transaction).await.unwrap();
        let rows = sqlx::query(sql).fetch_all(&mut *transaction).await;
        rows.map(|rows| rows.len()).map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn rows_are_those_of_the_sealed_tenant_or_none() {
    let database = Database::new().await;
    filled(&database, &[OWN, OTHERS]).await;
    let (mut session, mut another) = (Session::new(&database).await, Session::new(&database).await);
    let (of_a, of_c) = (session.seal(&database, "a").await, session.seal(&database, "c").await);
    for sql in ["select * from rm.things", "select * from rm.things_v1"] {
        assert_eq!(session.rows(&of_a, sql).await, Ok(1), "{sql}");
        assert_eq!(session.rows(&of_c, sql).await, Ok(0), "{sql}");
        let (_, seal) = of_a.split_once(' ').unwrap();
        for unsealed in ["", "a", "b", "a ", " ", &format!("b {seal}"), &of_a[..of_a.len() - 1]] {
            let error = session.rows(unsealed, sql).await.expect_err(unsealed);
            assert!(error.contains("not sealed for this session"), "{error}");
        }
        // A seal that was seen in another session.
        assert!(another.rows(&of_a, sql).await.unwrap_err().contains("not sealed"), "{sql}");
    }
    for sql in [
        "update rm.things set n = 3 returning n",
        "delete from rm.things_v1 returning n",
        "insert into rm.things_v1 values ('a', 'y', 1) returning n",
        "select * from flexcore.checkpoints",
        "select * from flexcore.query_login",
        "create temporary table mine (n int)",
        "create table rm.mine (n int)",
        "set role flexcore_query",
        "set role flexcore_projection",
        "set session authorization flexcore",
        "copy rm.things to program 'cat'",
        "truncate rm.things_v1",
        "merge into rm.things_v1 t using rm.things s on true when matched then delete",
        "explain analyze delete from rm.things_v1",
        "call flexcore.nothing()",
        "create policy mine on rm.things_v1 using (true)",
        "create operator rm.=== (leftarg = text, rightarg = text, function = texteq)",
        "create view rm.mine as select * from rm.things_v1",
        "create schema mine",
        "grant select on rm.things_v1 to public",
        "do $$ begin perform pg_read_file('PG_VERSION'); end $$",
    ] {
        let error = session.rows(&of_a, sql).await.expect_err(sql);
        let refused = ["permission denied", "must be superuser", "must be owner"];
        let refused = refused.iter().any(|reason| error.contains(reason));
        assert!(refused, "{sql}: {error}");
    }
    let limit = sqlx::query("show temp_file_limit").fetch_one(&mut session.connection).await;
    assert_eq!(limit.unwrap().get::<String, _>(0), "1GB");
    let owner = database
        .one(
            "select tableowner::text from pg_tables \
        where schemaname = 'rm' and tablename = 'things_v1'",
        )
        .await;
    assert!(!owner.starts_with("flexcore_"), "{owner}");
    let forced = "select (relrowsecurity and relforcerowsecurity)::text from pg_class \
        where oid = 'rm.things_v1'::regclass";
    assert_eq!(database.one(forced).await, "true");
}

/// Somebody gives the login a privilege, under running processes and before they start.
#[tokio::test]
async fn a_login_that_could_be_somebody_else_runs_no_query() {
    let database = Database::new().await;
    filled(&database, &[OWN]).await;
    let settings = Settings { look_every: Duration::ZERO, ..Settings::default() };
    let running = ReadModels::connect(&database.url, settings).await.unwrap();
    let sql = "select k from rm.things";
    let login = database.one("select name from flexcore.query_login").await;
    for (give, take, wrong) in [
        ("alter role L superuser", "alter role L nosuperuser", "is a superuser"),
        ("alter role L bypassrls", "alter role L nobypassrls", "passes row-level security by"),
        ("alter role L createrole", "alter role L nocreaterole", "may create roles"),
        ("alter role L createdb", "alter role L nocreatedb", "may create databases"),
        ("alter role L replication", "alter role L noreplication", "may replicate"),
        ("grant flexcore_projection to L", "revoke flexcore_projection from L", "is a member"),
        ("grant pg_read_all_data to L", "revoke pg_read_all_data from L", "is a member"),
        ("create table x(); alter table x owner to L", "drop table x", "owns something"),
    ] {
        answer(&running, "a", sql).await.unwrap_or_else(|error| panic!("before {give}: {error}"));
        let sql_of = |text: &str| AssertSqlSafe(text.replace('L', &login));
        sqlx::raw_sql(sql_of(give)).execute(&database.admin).await.unwrap();
        let error = running.run_query(&tenant("a"), &query(sql), &[]).await.unwrap_err();
        assert!(matches!(error, Error::Misconfigured(_)), "{give}: {error}");
        let started = ReadModels::connect(&database.url, Settings::default()).await.unwrap();
        if wrong == "is a superuser" {
            // Nothing that such a login may do is given to others.
            started.migrate().await.unwrap();
        }
        let error = started.check_login().await.unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains(&login), "{give}: {error}");
        sqlx::raw_sql(sql_of(take)).execute(&database.admin).await.unwrap();
        started.check_login().await.unwrap();
    }
    let own = Settings { query_url: Some(database.url.clone()), ..Settings::default() };
    let own = ReadModels::connect(&database.url, own).await.unwrap();
    own.migrate().await.unwrap();
    let error = own.check_login().await.unwrap_err().to_string();
    assert!(error.contains("is a superuser"), "{error}");
}

/// A function that came after the last start, as an extension's do, is closed by the next one; what
/// the login's password was elsewhere does not matter.
#[tokio::test]
async fn the_next_start_closes_and_repairs_what_has_changed() {
    let database = Database::new().await;
    filled(&database, &[OWN, OTHERS]).await;
    let login = database.one("select name from flexcore.query_login").await;
    let leak = "select public.leak() as x";
    let sql = format!(
        "create function public.leak() returns text security definer language sql \
             as 'select string_agg(k, '','') from rm.things_v1'; \
         grant execute on function pg_read_file(text) to \"{login}\""
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.admin).await.unwrap();
    let now = answer(&database.models, "a", leak).await.unwrap();
    assert!(now.contains("secret"), "before the next start");
    let another = format!("alter role \"{login}\" password 'another'");
    sqlx::raw_sql(AssertSqlSafe(another)).execute(&database.admin).await.unwrap();
    let started = ReadModels::connect(&database.url, Settings::default()).await.unwrap();
    started.migrate().await.unwrap();
    for closed in [leak, "select pg_read_file('PG_VERSION')"] {
        let error = answer(&started, "a", closed).await.unwrap_err();
        assert!(error.contains("permission denied"), "{closed}: {error}");
    }
    let drop = format!("drop owned by \"{login}\"; drop role \"{login}\"");
    sqlx::raw_sql(AssertSqlSafe(drop)).execute(&database.admin).await.unwrap();
    let started = ReadModels::connect(&database.url, Settings::default()).await.unwrap();
    started.migrate().await.unwrap();
    let rows = answer(&started, "a", "select k from rm.things").await;
    assert_eq!(rows, Ok(r#"[{"k":"1"}]"#.to_owned()), "the login is made anew");
}

/// A reader that goes away in the middle leaves a session that others can use, and no statement runs
/// beyond the places there are.
#[tokio::test]
async fn a_query_that_is_given_up_keeps_its_place_until_postgres_has_ended_it() {
    let database = Database::new().await;
    filled(&database, &[OWN]).await;
    let settings = Settings {
        connections_max: 1,
        acquire_timeout: Duration::from_secs(10),
        statement_timeout: Duration::from_millis(1_500),
        ..Settings::default()
    };
    let models = ReadModels::connect(&database.url, settings).await.unwrap();
    let slow = "select max(n) from (select generate_series(1, 1000000000) as n) as s";
    models.check_login().await.unwrap();
    let given_up = answer(&models, "b", slow);
    tokio::time::timeout(Duration::from_millis(200), given_up).await.expect_err("it takes long");
    let rows = answer(&models, "a", "select k from rm.things").await;
    assert_eq!(rows, Ok(r#"[{"k":"1"}]"#.to_owned()));
    let login = database.one("select name from flexcore.query_login").await;
    let sessions = format!("select count(*)::text from pg_stat_activity where usename = '{login}'");
    assert_eq!(database.one(&sessions).await, "1");
}

/// It had all of them then: who hangs up has no place at the gateway any more.
#[tokio::test(flavor = "multi_thread")]
async fn queries_that_a_tenant_gives_up_leave_sessions_for_others() {
    let database = Database::new().await;
    filled(&database, &[OWN]).await;
    let settings = Settings {
        connections_max: 4,
        acquire_timeout: Duration::from_secs(1),
        statement_timeout: Duration::from_secs(4),
        ..Settings::default()
    };
    let models = ReadModels::connect(&database.url, settings).await.unwrap();
    let slow = "select max(n) from (select generate_series(1, 1000000000) as n) as s";
    for _ in 0..6 {
        let given_up = answer(&models, "b", slow);
        tokio::time::timeout(Duration::from_millis(200), given_up)
            .await
            .expect_err("it takes long");
    }
    let rows = answer(&models, "a", "select k from rm.things").await;
    assert_eq!(rows, Ok(r#"[{"k":"1"}]"#.to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_migrate_at_once_share_their_roles() {
    let databases = [Database::empty().await, Database::empty().await, Database::empty().await];
    let tasks: Vec<_> = databases
        .iter()
        .flat_map(|database| [database.models.clone(), database.models.clone()])
        .map(|models| tokio::spawn(async move { models.migrate().await }))
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    for database in &databases {
        assert_eq!(database.one("select count(*)::text from flexcore.projections").await, "0");
    }
}
