//! Named queries, prepared before they are deployed.

use std::sync::Arc;

use flexcore_definition::{Application, ColumnType, SourceFile};
use flexcore_domain::Name;
use flexcore_readmodel::{Error, RESULT_BYTES_MAX, Select};

use crate::database::{Database, model, tenant};

const APPLICATION: &str = "\
aggregate: thing
commands: { set: { decide: \"() => []\" } }
events: { set: { data: { type: object }, evolve: \"(state) => state\" } }
---
read_model: things
columns: { k: text, n: integer, at: timestamp }
key: [k]
on:
  thing.set: { key: { k: $id }, set: { n: $version, at: $time } }
---
";

/// The application with these queries, each from its own file of the query's name.
pub(crate) fn application(queries: &[(&str, &str, &str)]) -> Application {
    let mut files = vec![SourceFile { path: "main.yaml".to_owned(), text: APPLICATION.to_owned() }];
    for (name, parameters, sql) in queries {
        let sql: String = sql.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!(
            "query: {name}\nreads: [things]\nparameters: {{ {parameters} }}\nsql: |\n{sql}"
        );
        files.push(SourceFile { path: format!("{name}.yaml"), text });
    }
    Application::read(Name::parse("app").unwrap(), files).unwrap_or_else(|p| panic!("{p:?}"))
}

/// A deployed query with bad SQL once answered "being built" for ever.
#[tokio::test]
async fn what_a_query_gets_wrong_is_said_with_file_and_line() {
    let database = Database::new().await;
    let wrong = [
        ("typo", "", "select k\nfrom rm.things\nwhre n = 1", 3, "syntax error at or near \"n\""),
        ("gone", "", "select k\nfrom rm.things\nwhere m = 1", 3, "column \"m\" does not exist"),
        ("kind", "", "select k from rm.things\nwhere n = 'x'", 2, "invalid input syntax for type"),
        ("given", "a: text", "select k from rm.things\nwhere n = :a", 2, "operator does not exist"),
        ("quoted", "", "select k,\n\"set_config\"('a', 'b', true) from rm.things", 2, "not among"),
        ("text", "", "select k,\nquery_to_xml('x', true, true, '') from rm.things", 2, "not among"),
        (
            "sleep",
            "",
            "select k from rm.things,\n\n  pg_sleep(1)",
            3,
            "`pg_sleep(double precision)`",
        ),
        (
            "meta",
            "",
            "select k,\n(select count(*) from pg_class) from rm.things",
            2,
            "does not name",
        ),
        ("names", "", "select k from rm.things\n order by z", 2, "column \"z\""),
        ("hidden", "", "select k,\nctid::text from rm.things", 2, "column \"ctid\""),
        ("sample", "", "select k from rm.things\ntablesample bernoulli (9)", 1, "TABLESAMPLE"),
        ("locks", "", "select k from rm.things\nfor update", 2, "locks rows"),
        ("lost", "", "select k from rm.things,\nthigns", 2, "relation \"thigns\" does not exist"),
        ("twice", "", "select k, n, k from rm.things", 1, "column \"k\" specified more than once"),
        // Statements that no time limit of Postgres stops.
        ("xml", "", "select k,\nxmlparse(content k)::text as x from rm.things", 2, "XML"),
        (
            "table",
            "",
            "select k from rm.things,\nxmltable('/' passing '<a/>' columns a text)",
            2,
            "XML",
        ),
        (
            "path",
            "",
            "select k from rm.things\nwhere xpath('//a', '<a/>') is not null",
            2,
            "not among",
        ),
        ("array", "", "select k from rm.things\nwhere array[n] && array[n]", 1, "arrayoverlap"),
        (
            "line",
            "",
            "select k from rm.things\nwhere '((0,0))'::path ?# '((0,0))'::path",
            1,
            "path_inter",
        ),
        ("none", "", "select lowr(k) from rm.things", 1, "function lowr(text) does not exist"),
    ];
    let queries = wrong.map(|(name, parameters, sql, ..)| (name, parameters, sql));
    let problems = database.models.check_queries(&application(&queries)).await.unwrap();
    assert_eq!(problems.len(), wrong.len(), "{problems:?}");
    for (name, _, _, line, said) in &wrong {
        // The statement begins on the fifth line of its file.
        let place = format!("{name}.yaml:{}: query `{name}`: ", line + 4);
        let found = problems.iter().map(ToString::to_string).find(|text| text.starts_with(&place));
        let found = found.unwrap_or_else(|| panic!("nothing at {place} {problems:?}"));
        assert!(found.contains(said), "{found}");
    }
}

#[tokio::test]
async fn what_queries_are_for_passes() {
    let database = Database::new().await;
    let queries = [
        ("all_rows", "", "select * from rm.things -- all"),
        (
            "found",
            "a: text, b: integer",
            "select k\nfrom rm.things where k like :a || '%' limit :b;",
        ),
        (
            "times",
            "day: date, since: timestamp",
            "select date_trunc('hour', at) as hour, count(*) filter (where at > :since) as c,\n\
             percentile_cont(0.5) within group (order by n) as middle\n\
             from rm.things where at between :day and now() - interval '1 day' group by hour",
        ),
        (
            "ranks",
            "",
            "with t as (select k, rank() over (order by n desc) as r from rm.things)\n\
             select jsonb_build_object('k', k, 'r', r), to_char(r, '999'), string_agg(k, ',')\n\
             from t join lateral (select lower(k) as l) x on true group by k, r, random()",
        ),
        // A parameter of type `number` once stood for the type `double`, which Postgres does not have.
        (
            "types",
            "a: text, b: integer, c: number, d: boolean, e: timestamp, f: date",
            "select k from rm.things\n\
             where k = :a and n = :b and n > :c and :d and at > :e and at::date = :f",
        ),
        ("words", "w: text", "select ts_rank(to_tsvector(k), plainto_tsquery(:w)) from rm.things"),
    ];
    let problems = database.models.check_queries(&application(&queries)).await.unwrap();
    assert!(problems.is_empty(), "{problems:?}");
}

/// The columns are those of the deployment, and nobody notices the check: neither who reads what
/// serves meanwhile, nor who looks afterwards.
#[tokio::test]
async fn queries_are_held_to_the_new_columns_beside_those_in_use() {
    let database = Database::new().await;
    // In use `n` is called `m`.
    let old = model("things", "f", &[("k", ColumnType::Text), ("m", ColumnType::Integer)], []);
    database.serving(&old).await;
    let new = ("new", "", "select n from rm.things");
    let broken = ("broken", "", "select k,\nm from rm.things");
    let deployed = Arc::new(application(&[new, broken]));
    let mut checks = Vec::new();
    for _ in 0..3 {
        let (models, deployed) = (database.models.clone(), deployed.clone());
        checks.push(tokio::spawn(async move { models.check_queries(&deployed).await.unwrap() }));
    }
    let select = Select::parse(&old, &[]).unwrap();
    while checks.iter().any(|check| !check.is_finished()) {
        database.models.select(&tenant("a"), &old, &select).await.unwrap();
    }
    for check in checks {
        let problems = check.await.unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].to_string().starts_with("broken.yaml:6: "), "{problems:?}");
    }
    let schemas = "select string_agg(nspname, ',' order by nspname)::text from pg_namespace \
        where nspname in ('rm', 'flexcore') or nspname like 'flexcore_%'";
    assert_eq!(database.one(schemas).await, "flexcore,rm");
    // Before anybody has migrated there is nothing to be in the way of.
    let fresh = Database::empty().await;
    assert_eq!(fresh.models.check_queries(&deployed).await.unwrap().len(), 1);
}

/// Postgres' reading of a statement must not depend on a right reading before: it is one statement,
/// and it has no more rights than the query will have.
#[tokio::test]
async fn a_statement_that_breaks_out_is_refused_and_does_nothing() {
    let database = Database::new().await;
    let evil = "as _statement limit 1) as _q) as _all; rollback; begin; \
                create table public.pwned as select 1; commit; begin; \
                create view rm._checked as select 1; select 1 \
                from (select * from (select * from (select 1";
    let one = "as _statement limit 1) as _q) as _all; create table public.pwned as select 1; --";
    for (evil, said) in [
        (format!("select k from rm.things) {evil}"), "multiple commands"),
        (format!("select k from rm.things) {one}"), "syntax error"),
        ("select pg_read_file('/etc/hostname') from rm.things".to_owned(), "not among"),
        ("select key::text from flexcore.query_login".to_owned(), "does not name"),
    ] {
        let mut application = application(&[("evil", "", "select k from rm.things")]);
        let query = application.queries.values_mut().next().unwrap();
        Arc::make_mut(query).sql = evil.clone();
        let problems = database.models.check_queries(&application).await.unwrap();
        let told = problems.iter().map(ToString::to_string).collect::<String>();
        assert!(told.starts_with("evil.yaml:") && told.contains(said), "{evil}: {told}");
        let pwned = database.one("select to_regclass('public.pwned')::text").await;
        assert_eq!(pwned, "", "{evil}");
    }
}

/// A few words once made a gigabyte, which the gateway then held.
#[tokio::test]
async fn a_result_is_as_large_as_it_may_be_and_no_larger() {
    let database = Database::new().await;
    let old = model("things", "f", &[("k", ColumnType::Text)], []);
    database.serving(&old).await;
    let sql = "select repeat('x', :n::integer) as v from (select count(*) from rm.things) as one";
    let large = ("large", "n: integer", sql);
    let application = application(&[large]);
    let query = &application.queries["large"];
    let frame = r#"[{"v":""}]"#.len();
    for (bytes, is_taken) in
        [(RESULT_BYTES_MAX - 1, true), (RESULT_BYTES_MAX, true), (RESULT_BYTES_MAX + 1, false)]
    {
        let params = [("n".to_owned(), (bytes - frame).to_string())];
        let answered = database.models.run_query(&tenant("a"), query, &params).await;
        let size = answered.as_ref().map(String::len);
        assert_eq!(size.is_ok_and(|size| size == bytes), is_taken, "{size:?} of {bytes}");
        let refused = matches!(answered, Err(Error::ResultTooLarge { .. }));
        assert_eq!(refused, !is_taken, "{bytes}");
    }
}

/// A thousand rows may be of any size: their page ends early, and no row is lost by it.
#[tokio::test]
async fn a_page_of_large_rows_ends_early_and_goes_on_by_its_cursor() {
    const ROWS: usize = 20;
    const ROW_BYTES: usize = 2 << 20;
    let database = Database::new().await;
    let columns = [("k", ColumnType::Text), ("long", ColumnType::Text)];
    let large = model("large", "f", &columns, []);
    database.serving(&large).await;
    let fill = format!(
        "insert into rm.large_v1 (tenant, k, long) select 'a', to_char(i, '00'), \
         repeat('x', {ROW_BYTES}) from generate_series(1, {ROWS}) i"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(fill)).execute(&database.admin).await.unwrap();
    let (mut pages, mut keys, mut cursor) = (0, Vec::new(), None);
    loop {
        let params: Vec<(String, String)> =
            cursor.map(|cursor| ("cursor".to_owned(), cursor)).into_iter().collect();
        let select = Select::parse(&large, &params).unwrap();
        let page = database.models.select(&tenant("a"), &large, &select).await.unwrap();
        assert!(page.rows.len() < RESULT_BYTES_MAX + ROW_BYTES + 100, "{}", page.rows.len());
        let rows: Vec<serde_json::Value> = serde_json::from_str(&page.rows).unwrap();
        keys.extend(rows.iter().map(|row| row["k"].as_str().unwrap().to_owned()));
        pages += 1;
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    let all: Vec<String> = (1..=ROWS).map(|number| format!(" {number:02}")).collect();
    assert_eq!((pages, keys), (3, all));
}
