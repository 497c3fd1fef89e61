//! Selections, cursors, named queries, and waiting for one's own writes.

use std::{sync::Arc, task::Poll, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use flexcore_definition::{ColumnType, Operation, Parameter, QueryDefinition, ReadModelDefinition};
use flexcore_domain::{Position, Slot};
use flexcore_readmodel::{Error, ReadModels, Select, Settings, WAITERS_MAX};
use serde_json::{Value, json};

use crate::database::{self, Database, change, changes, commit, data, model, name, part, tenant};

const COLUMNS: [(&str, ColumnType); 5] = [
    ("k", ColumnType::Text),
    ("n", ColumnType::Integer),
    ("f", ColumnType::Number),
    ("t", ColumnType::Timestamp),
    ("user", ColumnType::Text),
];

/// Forty rows of tenant a, of which every third has no n, and one of tenant b.
async fn filled() -> (Database, Arc<ReadModelDefinition>) {
    let set = ["n", "f", "t", "user"].map(|column| (column, Operation::Set, data(column)));
    let model = model("things", "f", &COLUMNS, [("set", change(&set))]);
    let database = Database::new().await;
    let version = database.serving(&model).await;
    let row = |of: &str, at: u64| {
        let n = if at.is_multiple_of(3) { Value::Null } else { json!(at / 7) };
        let time = format!("2013-01-01T00:{at:02}:00.000001+00:00");
        let data = json!({"k": format!("k{at:02}"), "n": n, "f": at as f64 / 3.0, "t": time,
                          "user": if at.is_multiple_of(2) { "é's \"" } else { "eq.x" }});
        changes(&version, &commit(of, "set", at + 1, &data)).unwrap().unwrap()
    };
    let mut rows: Vec<_> = (0..40).map(|at| row("a", at)).collect();
    rows.push(row("b", 50));
    database.models.apply(&[part(&version, rows, 0, 41)]).await.unwrap();
    (database, model)
}

async fn get(
    database: &Database,
    model: &ReadModelDefinition,
    query: &[(&str, &str)],
) -> Result<(Vec<Value>, Option<String>), Error> {
    let pairs: Vec<_> =
        query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let select = Select::parse(model, &pairs)?;
    let page = database.models.select(&tenant("a"), model, &select).await?;
    Ok((serde_json::from_str(&page.rows).unwrap(), page.next_cursor))
}

#[tokio::test]
async fn filters_compare_by_the_columns_type() {
    let (database, model) = filled().await;
    for (query, expected) in [
        (vec![], 40),
        (vec![("k", "k07")], 1),
        (vec![("k", "k50")], 0),
        (vec![("n", "2")], 5),
        (vec![("n", "gte.2"), ("n", "lt.4")], 9),
        (vec![("n", "ne.2")], 21),
        (vec![("n", "in.0,1")], 9),
        (vec![("n", "is.null")], 14),
        (vec![("n", "is.not_null")], 26),
        (vec![("k", "prefix.k0")], 10),
        (vec![("k", "prefix.%")], 0),
        (vec![("user", "eq.eq.x")], 20),
        (vec![("user", "é's \"")], 20),
        (vec![("user", "' or true --")], 0),
        (vec![("t", "lt.2013-01-01T01:05:00+01:00")], 5),
        (vec![("f", "gt.12.9")], 1),
        (vec![("limit", "7")], 7),
    ] {
        let (rows, _) = get(&database, &model, &query).await.unwrap();
        assert_eq!(rows.len(), expected, "{query:?}");
    }
    let query = [("k", "k07"), ("fields", "t,n")];
    let (rows, _) = get(&database, &model, &query).await.unwrap();
    let expected = r#"{"t":"2013-01-01T00:07:00.000001+00:00","n":1}"#;
    assert_eq!(rows[0].to_string(), expected);
}

#[tokio::test]
async fn mistakes_are_named() {
    let (database, model) = filled().await;
    for (query, expected) in [
        (("tenant", "b"), "things has no column tenant; it has: k, n, f, t, user"),
        (("n\"; drop table x", "1"), "has no column"),
        (("n", "gte.x"), "n: \"x\" is not a whole number of 64 bits"),
        (("n", "in."), "n: \"\" is not a whole number"),
        (("t", "2013-01-01"), "is not a time such as"),
        (("k", "a\0"), "is not a text without NUL"),
        (("n", "prefix.1"), "prefix compares text columns only"),
        (("limit", "0"), "limit: must be a number from 1 to 1000"),
        (("limit", "1001"), "limit: must be"),
        (("sort", "k,-k"), "sort: k is named twice"),
        (("fields", ""), "has no column"),
        (("cursor", "x"), "not the cursor of this query"),
    ] {
        let error = get(&database, &model, &[query]).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{query:?}: {error}");
    }
    let (_, cursor) = get(&database, &model, &[("limit", "2")]).await.unwrap();
    let query = [("cursor", cursor.as_deref().unwrap()), ("sort", "n")];
    let error = get(&database, &model, &query).await.unwrap_err();
    assert!(matches!(error, Error::InvalidCursor), "{error:?}");
    let missing = crate::database::model("other", "f", &COLUMNS, []);
    let error = get(&database, &missing, &[]).await.unwrap_err();
    assert!(matches!(error, Error::NotBuilt(_)), "{error:?}");
}

#[tokio::test]
async fn pages_in_any_order_show_every_row_once() {
    let (database, model) = filled().await;
    for sort in ["k", "-k", "n", "-n", "user,-n", "-t,n", "f", "n,-f"] {
        let (whole, none) = get(&database, &model, &[("sort", sort)]).await.unwrap();
        assert_eq!((whole.len(), none), (40, None));
        let mut paged = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = vec![("sort", sort), ("limit", "3")];
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let (rows, next) = get(&database, &model, &query).await.unwrap();
            paged.extend(rows);
            match next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(paged, whole, "sort={sort}");
    }
}

/// A client may change the numbers in a cursor. Each is then a place in the order, or the cursor is none.
#[tokio::test]
async fn a_number_in_a_cursor_is_a_place_or_a_mistake() {
    let (database, model) = filled().await;
    let page = [("sort", "n,f"), ("limit", "3")];
    let (_, cursor) = get(&database, &model, &page).await.unwrap();
    let cursor = BASE64_URL_SAFE_NO_PAD.decode(cursor.unwrap()).unwrap();
    let cursor = String::from_utf8(cursor).unwrap();
    let (shape, _) = cursor.split_once(' ').unwrap();
    for (n, f, is_place) in [
        ("0", "0", true),
        ("9223372036854775807", "0", true),
        ("-9223372036854775808", "0", true),
        ("9223372036854775808", "0", false),
        ("-9223372036854775809", "0", false),
        ("99999999999999999999999999999999999999999", "0", false),
        ("0.5", "0", false),
        ("0", "1.7976931348623157e308", true),
        ("0", "-1.7976931348623157e308", true),
        ("0", "1e309", false),
        ("0", "NaN", false),
    ] {
        let changed = BASE64_URL_SAFE_NO_PAD.encode(format!("{shape} [{n},{f},\"k\"]"));
        let changed = [page[0], page[1], ("cursor", &*changed)];
        match get(&database, &model, &changed).await {
            Ok(_) => assert!(is_place, "{n} {f}"),
            Err(Error::InvalidCursor) => assert!(!is_place, "{n} {f}"),
            Err(error) => panic!("{n} {f}: {error}"),
        }
    }
}

fn query(sql: &str) -> QueryDefinition {
    let parameter =
        |text, column_type, default| Parameter { name: name(text), column_type, default };
    let parameters = vec![
        parameter("least", ColumnType::Integer, None),
        parameter("who", ColumnType::Text, Some(json!("eq.x"))),
    ];
    QueryDefinition { parameters, ..database::query(sql) }
}

#[tokio::test]
async fn named_queries_are_typed_bounded_and_read_only() {
    let (database, _) = filled().await;
    let run = |sql: &'static str, params: &'static [(&'static str, &'static str)]| {
        let models = &database.models;
        async move {
            let params: Vec<_> =
                params.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            models.run_query(&tenant("a"), &query(sql), &params).await.map_err(|e| e.to_string())
        }
    };
    let sql = "select n, count(*) as c from things -- of one tenant: \n\
               where n >= :least and \"user\" = :who group by n order by n;";
    let rows: Value = serde_json::from_str(&run(sql, &[("least", "4")]).await.unwrap()).unwrap();
    assert_eq!(rows, json!([{"n": 4, "c": 2}, {"n": 5, "c": 2}]));
    for (sql, params, expected) in [
        (sql, &[][..], "q needs the parameter least"),
        (sql, &[("least", "x")], "least: \"x\" is not a whole number"),
        (sql, &[("least", "1"), ("most", "1")], "has no parameter most; it has: least, who"),
        (sql, &[("least", "1"), ("least", "2")], "is given twice"),
        ("select 1 / 0 + :least", &[("least", "1")], "division by zero"),
        (
            "select * from generate_series(1, 20000) where :least = 1",
            &[("least", "1")],
            "more than 10000 rows",
        ),
        ("select 1) x; drop table rm.things_v1; select (:least", &[("least", "1")], "fails"),
        (
            "select set_config('flexcore.tenant', 'b', true), :least",
            &[("least", "1")],
            "permission denied",
        ),
        (
            "select * from flexcore.rebuilds where :least = 1",
            &[("least", "1")],
            "permission denied",
        ),
        ("select * from no_such where :least = 1", &[("least", "1")], "q fails: relation"),
    ] {
        let error = run(sql, params).await.unwrap_err();
        assert!(error.contains(expected), "{sql}: {error}");
    }
    let settings = Settings { statement_timeout: Duration::from_millis(50), ..Settings::default() };
    let hasty = ReadModels::connect(&database.url, settings).await.unwrap();
    let slow = query("select max(generate_series) from generate_series(1, 100000000 * :least)");
    let params = [("least".to_owned(), "1".to_owned())];
    let error = hasty.run_query(&tenant("a"), &slow, &params).await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    // Another declaration than the one that serves: it was prepared against that.
    let newer = QueryDefinition { fingerprints: vec!["g".to_owned()], ..query("select :least, x") };
    let error = database.models.run_query(&tenant("a"), &newer, &params).await.unwrap_err();
    assert!(matches!(error, Error::NotBuilt(_)), "{error:?}");
}

#[tokio::test]
async fn one_waits_for_ones_own_writes() {
    let database = Database::new().await;
    let model = model("things", "f", &COLUMNS, []);
    let version = database.serving(&model).await;
    let position = |sequence| Position { slot: Slot::new(3).unwrap(), sequence };
    let models = database.models.clone();
    let short = Duration::from_millis(60);
    models.wait(&[name("things")], &[], short).await.unwrap();
    let error = models.wait(&[name("things")], &[position(1)], short).await.unwrap_err();
    assert!(matches!(error, Error::NotYet { wanted: 1, passed: 0, .. }), "{error:?}");
    let error = models.wait(&[name("nothing")], &[position(1)], short).await.unwrap_err();
    assert!(matches!(error, Error::NotBuilt(_)), "{error:?}");
    let waiters: Vec<_> = (1..=200)
        .map(|sequence| {
            let models = models.clone();
            let long = Duration::from_secs(20);
            let at = [position(sequence), position(1)];
            tokio::spawn(async move { models.wait(&[name("things")], &at, long).await })
        })
        .collect();
    tokio::time::sleep(short).await;
    models.apply(&[part(&version, Vec::new(), 0, 100)]).await.unwrap();
    let finished = || waiters.iter().filter(|waiter| waiter.is_finished()).count();
    while finished() < 100 {
        tokio::time::sleep(short).await;
    }
    tokio::time::sleep(short).await;
    assert_eq!(finished(), 100);
    models.apply(&[part(&version, Vec::new(), 100, 200)]).await.unwrap();
    for waiter in waiters {
        waiter.await.unwrap().unwrap();
    }
}

/// Whoever comes when so many wait is told so at once, and takes nothing from those who wait.
#[tokio::test]
async fn beyond_so_many_who_wait_the_next_is_told_so_until_one_gives_up() {
    let database = Database::new().await;
    let version = database.serving(&model("things", "f", &COLUMNS, [])).await;
    let position = Position { slot: Slot::FIRST, sequence: 1 };
    let looked = database.models.look(&[name("things")], &[position]).await.unwrap();
    let (unreached, long) = (looked.unwrap(), Duration::from_secs(60));
    let mut waiting: Vec<_> = (0..WAITERS_MAX).map(|_| Box::pin(unreached.reached(long))).collect();
    for waits in &mut waiting {
        assert!(futures::poll!(waits.as_mut()).is_pending());
    }
    let refused = unreached.reached(long).await;
    assert!(matches!(refused, Err(Error::TooManyWaiters)), "{refused:?}");
    drop(waiting.pop());
    let deadline = tokio::time::Instant::now() + long;
    let late = loop {
        let mut late = Box::pin(unreached.reached(long));
        match futures::poll!(late.as_mut()) {
            Poll::Pending => break late,
            Poll::Ready(Err(Error::TooManyWaiters)) => {}
            Poll::Ready(other) => panic!("{other:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "no place in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    waiting.push(late);
    database.models.apply(&[part(&version, Vec::new(), 0, 1)]).await.unwrap();
    for waits in waiting {
        assert!(waits.await.unwrap());
    }
}
