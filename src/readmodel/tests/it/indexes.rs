//! Secondary indexes: made beside writers, used by reads, and texts of any length.

use std::{sync::Arc, time::Duration};

use flexcore_definition::{
    ColumnType, Index, Operation, Parameter, QueryDefinition, ReadModelDefinition,
};
use flexcore_readmodel::{Error, Select, Version};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::database::{
    Database, catalog, change, changes, commit, data, model, name, part, query, tenant,
};

const COLUMNS: [(&str, ColumnType); 6] = [
    ("id", ColumnType::Text),
    ("customer", ColumnType::Text),
    ("city", ColumnType::Text),
    ("placed_at", ColumnType::Timestamp),
    ("total", ColumnType::Number),
    ("open", ColumnType::Boolean),
];

fn orders(indexes: &[&[&str]]) -> Arc<ReadModelDefinition> {
    let set = COLUMNS[1..].iter().map(|(column, _)| (*column, Operation::Set, data(column)));
    let change = change(&set.collect::<Vec<_>>());
    let model = Arc::unwrap_or_clone(model("orders", "f", &COLUMNS, [("set", change)]));
    let column = |text: &&str| (name(text.trim_start_matches('-')), text.starts_with('-'));
    let index = |columns: &&[&str]| Index { columns: columns.iter().map(column).collect() };
    Arc::new(ReadModelDefinition { indexes: indexes.iter().map(index).collect(), ..model })
}

/// A version that serves, with the rows of this SQL in it, and its indexes made.
async fn filled(model: &Arc<ReadModelDefinition>, rows: &str) -> (Database, Arc<Version>) {
    let database = Database::new().await;
    let version = database.serving(model).await;
    run(&database, rows).await;
    assert!(database.models.index(&version).await.unwrap());
    run(&database, "analyze rm.orders_v1").await;
    (database, version)
}

async fn run(database: &Database, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&database.admin).await.unwrap();
}

/// So many rows, nine of ten of tenant `big`, most of the rest of `mid`, a few of many others.
fn rows(count: u32) -> String {
    format!(
        "insert into rm.orders_v1 \
         select case when i % 100 < 90 then 'big' when i % 100 < 99 then 'mid' \
                     else 't' || (i % 1000) end, \
             'o' || lpad(i::text, 7, '0'), \
             case when i % 7 > 0 then 'c' || (i % 997) end, 'city' || (i % 5), \
             case when i % 11 > 0 then timestamptz '2020-01-01' + (i % 5003) * interval '1 hour' end, \
             case when i % 13 > 0 then (i % 1009) / 4.0 end, i % 2 = 0 \
         from generate_series(1, {count}) as i; \
         insert into rm.orders_v1 \
         select 'mid', 'long' || i, case when i % 2 = 0 then repeat('c', 200 + i) end, \
             repeat('x', 254 + i), timestamptz '2020-02-01', i, true \
         from generate_series(1, 9) as i"
    )
}

fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
    query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

async fn page(
    database: &Database,
    model: &ReadModelDefinition,
    of: &str,
    query: &[(&str, &str)],
) -> (Vec<Value>, Option<String>) {
    let select = Select::parse(model, &pairs(query)).unwrap();
    let page = database.models.select(&tenant(of), model, &select).await.unwrap();
    (serde_json::from_str(&page.rows).unwrap(), page.next_cursor)
}

/// The indexes that a plan reads: each with a mark if it is narrowed by more than the tenant.
fn scans(plan: &Value, found: &mut Vec<(String, bool)>) {
    if let Some(index) = plan["Index Name"].as_str() {
        let condition = plan["Index Cond"].as_str().unwrap_or_default();
        found.push((index.to_owned(), condition.contains(") AND (")));
    }
    for name in ["Plan", "Plans"] {
        match &plan[name] {
            Value::Array(nodes) => nodes.iter().for_each(|node| scans(node, found)),
            Value::Object(_) => scans(&plan[name], found),
            _ => {}
        }
    }
}

/// The names of the indexes that Postgres has, with their columns as they are declared.
async fn declared(database: &Database) -> Vec<(String, String)> {
    let sql = "select coalesce(json_agg(json_build_array(indexname, indexdef)), '[]')::text \
               from pg_indexes where schemaname = 'rm'";
    let all: Vec<(String, String)> = serde_json::from_str(&database.one(sql).await).unwrap();
    let columns = |definition: String| {
        let listed = definition.split_once("(tenant, ").unwrap().1;
        let listed = listed.split_once(')').unwrap().0;
        let columns = listed.split(", ").map(|column| match column.split_once(" DESC") {
            Some((column, _)) => format!("-{column}"),
            None => column.to_owned(),
        });
        format!("[{}]", columns.collect::<Vec<_>>().join(", "))
    };
    all.into_iter().map(|(name, definition)| (name, columns(definition))).collect()
}

/// Postgres does what explain says, through the login and row-level security, for the large tenant
/// and the small.
#[tokio::test]
async fn explain_is_true() {
    let model = orders(&[&["customer", "-placed_at"], &["-placed_at"], &["total"], &["city"]]);
    let (database, _) = filled(&model, &rows(100_000)).await;
    let declared = declared(&database).await;
    let in_order = Some("[-placed_at]");
    for (query, index) in [
        (vec![("customer", "c5")], Some("[customer, -placed_at]")),
        (vec![("customer", "c5"), ("sort", "-placed_at")], Some("[customer, -placed_at]")),
        (vec![("customer", "in.c5,c6")], Some("[customer, -placed_at]")),
        (vec![("customer", "prefix.c99")], Some("[customer, -placed_at]")),
        (vec![("customer", "c5"), ("placed_at", "is.null")], Some("[customer, -placed_at]")),
        (vec![("sort", "-placed_at")], in_order),
        (vec![("sort", "-placed_at"), ("open", "true")], in_order),
        (vec![("placed_at", "lt.2020-01-01T03:00:00Z")], in_order),
        (vec![("total", "3.5")], Some("[total]")),
        (vec![("total", "gt.251.5"), ("sort", "total")], Some("[total]")),
        (vec![("sort", "city")], Some("[city]")),
        (vec![("id", "o0000100")], Some("key")),
        (vec![("open", "true")], None),
        (vec![("total", "ne.3")], None),
        (vec![("sort", "placed_at")], None),
    ] {
        let said = database.models.explain(&model, &pairs(&query)).await.unwrap();
        assert_eq!(said.index.as_deref(), index, "{query:?}: {}", said.says);
        for of in ["big", "mid"] {
            let (_, cursor) =
                page(&database, &model, of, &[&query[..], &[("limit", "3")]].concat()).await;
            for cursor in [None, cursor] {
                let mut query = query.clone();
                query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
                let select = Select::parse(&model, &pairs(&query)).unwrap();
                let plan = database.models.plan(&tenant(of), &model, &select).await.unwrap();
                let mut found = Vec::new();
                scans(&plan[0], &mut found);
                let is_used = |columns: &str| {
                    let whole = columns.replace(']', ", id]");
                    declared.iter().any(|(name, of)| {
                        *of == whole && found.iter().any(|(index, _)| index == name)
                    })
                };
                // A page that an index gives in order begins where the last one ended.
                let goes_on = query.iter().any(|(name, _)| *name == "cursor");
                if goes_on && query[0] == ("sort", "-placed_at") {
                    assert!(found.iter().all(|(_, narrows)| *narrows), "{query:?} {plan:#}");
                }
                match index {
                    Some("key") => assert!(found[0].0.ends_with("_pkey"), "{query:?} {plan:#}"),
                    Some(columns) => assert!(is_used(columns), "{of} {query:?} {plan:#}"),
                    None => {
                        let narrows = found
                            .iter()
                            .any(|(index, narrows)| index.starts_with("_i") && *narrows);
                        assert!(!narrows, "{of} {query:?} {plan:#}");
                    }
                }
            }
        }
    }
    let says = async |query: &[(&str, &str)]| {
        database.models.explain(&model, &pairs(query)).await.unwrap().says
    };
    assert_eq!(
        says(&[("open", "true")]).await,
        "no index for `open`: every row of the tenant may be read; declare `indexes: [[open]]`"
    );
    assert_eq!(
        says(&[("city", "x"), ("sort", "-total")]).await,
        "index [city] finds `city`; what it finds is sorted; declare `indexes: [[city, -total]]`"
    );
    assert!(says(&[("customer", &"c".repeat(256))]).await.ends_with("is in no index"));
}

/// Pages are the same with indexes and without, the rows with long texts and without values included.
#[tokio::test]
async fn pages_by_an_index_show_every_row_once() {
    let all: &[&[&str]] = &[
        &["city", "customer"],
        &["-placed_at", "total"],
        &["total", "-placed_at"],
        &["customer"],
        &["-id", "open"],
        &["-city"],
    ];
    let (model, without) = (orders(all), orders(&[]));
    let (database, _) = filled(&model, &rows(2_000)).await;
    let large = [("limit", "1000")];
    for query in [
        vec![("sort", "city,customer")],
        vec![("sort", "-placed_at,total")],
        vec![("sort", "total,-placed_at")],
        vec![("sort", "customer")],
        vec![("sort", "-city")],
        vec![("sort", "-id")],
        vec![("sort", "-id,open")],
        vec![("customer", "is.null")],
        vec![("customer", "is.null"), ("sort", "customer,id")],
        vec![("city", "city1"), ("sort", "customer")],
        vec![("city", "prefix.x"), ("sort", "city,customer")],
        vec![("city", "gte.city4")],
        vec![("customer", "prefix.c"), ("sort", "customer")],
        vec![("total", "9"), ("sort", "total,-placed_at")],
    ] {
        let whole = page(&database, &without, "mid", &[&query[..], &large].concat()).await.0;
        assert!(!whole.is_empty(), "{query:?}");
        let (mut paged, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let mut next = [&query[..], &[("limit", "23")]].concat();
            next.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let (rows, after) = page(&database, &model, "mid", &next).await;
            paged.extend(rows);
            cursor = after;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(paged, whole, "{query:?}");
    }
    assert_eq!(page(&database, &model, "nobody", &[("sort", "city")]).await.0.len(), 0);
}

/// Text that no compression makes shorter.
fn noise(bytes: usize) -> String {
    let mut state = 7_u64;
    let letters = std::iter::repeat_with(|| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + 1 + u8::try_from((state >> 40) % 93).unwrap())
    });
    letters.take(bytes).collect()
}

/// An entry of a Postgres index has 2,704 bytes: a longer text once would have had its event put aside.
#[tokio::test]
async fn a_text_of_any_length_is_written_and_found() {
    let model = orders(&[&["customer", "city", "-placed_at", "total"], &["city"]]);
    let (database, version) = filled(&model, "select").await;
    let of = "t".repeat(40);
    let lengths = [0, 254, 255, 256, 2_000, 2_691, 2_704, 2_705, 8_192, 1_000_000];
    let row = |length: usize| {
        let (text, key) = (noise(length), format!("{length:07}{}", noise(1_993)));
        let data = json!({"k": key, "customer": text, "city": text, "placed_at": null,
                          "total": 1.5, "open": null});
        changes(&version, &commit(&of, "set", 1, &data)).unwrap().unwrap()
    };
    let all = lengths.map(row).to_vec();
    database.models.apply(&[part(&version, all, 0, 1)]).await.unwrap();
    for length in lengths {
        let text = format!("eq.{}", noise(length));
        let query = [("customer", text.as_str()), ("city", &text), ("fields", "id")];
        let (rows, _) = page(&database, &model, &of, &query).await;
        assert_eq!(rows.len(), 1, "{length}");
        assert!(rows[0]["id"].as_str().unwrap().starts_with(&format!("{length:07}")));
    }
    for query in [&[("sort", "city")][..], &[("city", "gte.")], &[("sort", "customer,city")]] {
        let query = [query, &[("fields", "id")]].concat();
        let (rows, _) = page(&database, &model, &of, &query).await;
        let found: Vec<&str> = rows.iter().map(|row| &row["id"].as_str().unwrap()[..7]).collect();
        let expected: Vec<String> = lengths.iter().map(|length| format!("{length:07}")).collect();
        assert_eq!(found, expected, "{query:?}");
    }
}

/// Begins a build that has to wait for a transaction of somebody else.
async fn waiting_build(
    database: &Database,
    version: &Arc<Version>,
) -> (sqlx::Transaction<'static, sqlx::Postgres>, tokio::task::JoinHandle<Result<bool, Error>>) {
    let mut other = database.admin.begin().await.unwrap();
    let write = "update rm.orders_v1 set open = not open where id = 'o0000001'";
    sqlx::raw_sql(write).execute(&mut *other).await.unwrap();
    let (models, version) = (database.models.clone(), version.clone());
    let build = tokio::spawn(async move { models.index(&version).await });
    let waits = "select count(*)::text from pg_stat_activity where wait_event_type = 'Lock' \
                 and datname = current_database() and query ~ '^(create|drop) index'";
    while database.one(waits).await == "0" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (other, build)
}

async fn valid(database: &Database) -> String {
    let sql = "select coalesce(string_agg(indisvalid::text, ' ' order by indisvalid), '') \
               from pg_index where indrelid = 'rm.orders_v1'::regclass and not indisprimary";
    database.one(sql).await
}

#[tokio::test]
async fn writers_and_readers_go_on_while_an_index_is_built() {
    let database = Database::new().await;
    let version = database.serving(&orders(&[])).await;
    run(&database, &rows(1_000)).await;
    let model = orders(&[&["total"]]);
    let again = database.versions(&catalog([model.clone()])).await;
    assert_eq!((again.len(), again[0].id()), (1, version.id()), "no version of its own");
    let version = &again[0];
    let (other, build) = waiting_build(&database, version).await;
    let writes = async {
        for at in 0..20 {
            let data = json!({"k": format!("new{at}"), "total": 3.5});
            let row = changes(version, &commit("mid", "set", 1, &data)).unwrap().unwrap();
            database.models.apply(&[part(version, vec![row], at, at + 1)]).await.unwrap();
        }
        let query = [("total", "3.5"), ("id", "prefix.new")];
        assert_eq!(page(&database, &model, "mid", &query).await.0.len(), 20);
    };
    tokio::time::timeout(Duration::from_secs(5), writes).await.expect("nobody waits for a build");
    assert!(!build.is_finished());
    let said = database.models.explain(&model, &pairs(&[("total", "3.5")])).await.unwrap();
    assert!(said.says.ends_with("index [total] is declared, and being built"), "{}", said.says);
    // A second one leaves it to the first.
    assert!(!database.models.index(version).await.unwrap());
    other.rollback().await.unwrap();
    assert!(build.await.unwrap().unwrap());
    assert_eq!(valid(&database).await, "true");

    // Not declared any more.
    let version = database.versions(&catalog([orders(&[])])).await.remove(0);
    assert!(database.models.index(&version).await.unwrap());
    assert_eq!(valid(&database).await, "");
    let said = database.models.explain(&orders(&[]), &pairs(&[("total", "3.5")])).await.unwrap();
    assert_eq!(said.index, None);
}

#[tokio::test]
async fn a_build_that_was_killed_is_made_again() {
    let database = Database::new().await;
    let model = orders(&[&["total"], &["city"]]);
    let version = database.serving(&model).await;
    run(&database, &rows(1_000)).await;
    let (other, build) = waiting_build(&database, &version).await;
    let kill = "select pg_terminate_backend(pid)::text from pg_stat_activity \
                where datname = current_database() and query ~ '^(create|drop) index'";
    assert_eq!(database.one(kill).await, "true");
    let error = build.await.unwrap().unwrap_err();
    assert!(error.is_passing(), "{error:?}");
    assert_eq!(valid(&database).await, "false", "half built");
    let read = page(&database, &model, "mid", &[("total", "3.5")]).await.0;
    // Given up by its caller: Postgres gives it up, too.
    other.rollback().await.unwrap();
    let (other, build) = waiting_build(&database, &version).await;
    build.abort();
    let builds = "select count(*)::text from pg_stat_activity where state = 'active' \
                  and datname = current_database() and query ~ '^(create|drop) index'";
    while database.one(builds).await != "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    other.rollback().await.unwrap();
    assert_eq!(database.models.unindexed(&[&version]).await.unwrap().len(), 1);
    assert!(database.models.index(&version).await.unwrap());
    assert_eq!(valid(&database).await, "true true true");
    assert_eq!(page(&database, &model, "mid", &[("total", "3.5")]).await.0, read);
}

/// It stayed on the disk, which was perhaps full, and with every write of a row, until the next try.
#[tokio::test]
async fn what_a_failed_build_left_is_dropped_at_once() {
    let database = Database::new().await;
    let version = database.serving(&orders(&[&["total"], &["city"]])).await;
    run(&database, &rows(1_000)).await;
    // A session that has looked at another table, and may look at this one: it is waited for at the
    // end.
    let mut other = database.admin.begin().await.unwrap();
    let look = "set transaction isolation level repeatable read; \
                select count(*) from flexcore.projections";
    sqlx::raw_sql(look).execute(&mut *other).await.unwrap();
    let (models, built) = (database.models.clone(), version.clone());
    let build = tokio::spawn(async move { models.index(&built).await });
    let cancel = "select coalesce(bool_or(pg_cancel_backend(pid)), false)::text \
                  from pg_stat_activity where wait_event_type = 'Lock' \
                  and datname = current_database() and query ~ '^create index'";
    while database.one(cancel).await != "true" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The next one would meet the same: it is not even begun.
    let error = build.await.unwrap().unwrap_err();
    assert!(!error.is_passing() && error.to_string().contains("user request"), "{error:?}");
    assert_eq!(valid(&database).await, "", "nothing is left");
    other.rollback().await.unwrap();
    assert!(database.models.index(&version).await.unwrap());
    assert_eq!(valid(&database).await, "true true true");
}

/// A named query's plan is told without values, so that nobody can find out common values of other
/// tenants' rows by asking.
#[tokio::test]
async fn a_named_query_says_its_index_and_no_figure() {
    let model = orders(&[&["customer"], &["total"]]);
    let (database, _) = filled(&model, &rows(20_000)).await;
    let query = |sql: &str| QueryDefinition {
        reads: vec![name("orders")],
        parameters: vec![Parameter {
            name: name("who"),
            column_type: ColumnType::Text,
            default: None,
        }],
        ..query(sql)
    };
    for (sql, index) in [
        (
            "select id from rm.orders where customer = :who and octet_length(customer) <= 255",
            Some("[customer]"),
        ),
        ("select id from rm.orders where customer = :who", None),
        ("select id from rm.orders where id = :who", Some("key")),
        ("select id from rm.orders where total = length(:who)", Some("[total]")),
        (
            "select a.id from rm.orders a join rm.orders b using (id) where a.total = 3 \
             and b.city <> :who",
            Some("[total], key"),
        ),
    ] {
        for of in ["big", "mid", "nobody"] {
            let said = database.models.explain_query(&tenant(of), &query(sql), &[&model]).await;
            let said = said.unwrap();
            assert_eq!(said[0].index.as_deref(), index, "{sql}: {}", said[0].says);
            assert!(!serde_json::to_string(&said).unwrap().contains("rows="), "{said:?}");
        }
    }
    for wrong in [
        "select :who from",
        "select 1) x) y; set local plan_cache_mode = auto; select (select (select :who",
    ] {
        let said = database.models.explain_query(&tenant("big"), &query(wrong), &[&model]).await;
        assert!(matches!(said, Err(Error::QueryFailed { .. })), "{said:?}");
    }
    let left = "select count(*)::text from pg_stat_activity where state like 'idle in%' \
                and datname = current_database()";
    assert_eq!(database.one(left).await, "0");
}
