//! Read models: typed queries, pages, one's own writes, one's own rows only, rebuilds, and events
//! that cannot be applied.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Dev, Http,
    app::{self, Files},
    eventually,
    process::{succeeded, texts},
};

/// Opens an account and puts these amounts in; returns the last position.
async fn account(http: &Http, id: &str, team: &str, amounts: &[u32]) -> String {
    let open = json!({"owner": format!("Owner of {id}"), "team": team, "rate": amounts.len()});
    let mut answer = http.command(id, "open", &[], open.to_string()).await.ok();
    for amount in amounts {
        let deposit = json!({"amount": amount, "note": format!("{amount} for {id}")});
        answer = http.command(id, "deposit", &[], deposit.to_string()).await.ok();
    }
    answer["position"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn queries_are_typed_and_say_what_there_is() {
    let http = Dev::shared().http("typed");
    let positions = [
        account(&http, "a-1", "red", &[10, 20]).await,
        account(&http, "a-2", "red", &[]).await,
        account(&http, "b-1", "blue", &[5]).await,
    ];
    let at = positions.join(",");
    let ids = async |filter: &str| {
        let rows = http.rows(&format!("/v1/query/accounts?min_position={at}&{filter}")).await;
        let ids = rows.iter().map(|row| row["account"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>().join(" ")
    };
    for (filter, expected) in [
        ("", "a-1 a-2 b-1"),
        ("team=red", "a-1 a-2"),
        ("team=ne.red", "b-1"),
        ("team=in.red,blue&deposits=gte.1", "a-1 b-1"),
        ("account=prefix.a-", "a-1 a-2"),
        ("deposited=gt.5&deposited=lt.31", "a-1"),
        ("rate=lte.0.5", "a-2"),
        ("active=true&sort=-deposited,account", "a-1 b-1 a-2"),
        ("largest=is.null", "a-2"),
        ("largest=is.not_null&sort=largest", "b-1 a-1"),
        ("since=2026-01-01&opened_at=gt.2026-01-01T00:00:00Z", "a-1 a-2 b-1"),
        ("opened_at=lt.2026-01-01T00:00:00Z", ""),
        ("owner=Owner+of%20a-1", "a-1"),
        ("team=red'%20or%20'1'='1", ""),
        ("team=%22;drop%20table%20rm.accounts", ""),
        ("limit=2", "a-1 a-2"),
    ] {
        assert_eq!(ids(filter).await, expected, "{filter}");
    }
    let row = &http.rows("/v1/query/accounts?account=a-1").await[0];
    let (opened_at, row) = (row["opened_at"].clone(), row.clone());
    assert!(opened_at.as_str().is_some_and(|text| text.contains('T')), "{row}");
    assert_eq!(
        row,
        json!({
            "account": "a-1", "owner": "Owner of a-1", "team": "red", "rate": 2,
            "since": "2026-01-01", "opened_at": opened_at, "deposits": 2, "deposited": 30,
            "withdrawn": 0, "largest": 20, "note": "20 for a-1", "version": 3, "active": true,
        })
    );
    let fields = http.rows("/v1/query/accounts?account=b-1&fields=team,deposited").await;
    assert_eq!(fields, [json!({"team": "blue", "deposited": 5})]);
    let teams = http.rows(&format!("/v1/query/teams?min_position={at}")).await;
    let team = |team, accounts, deposits, deposited| {
        json!({"team": team, "accounts": accounts, "deposits": deposits, "deposited": deposited,
               "withdrawn": 0})
    };
    assert_eq!(teams, [team("blue", 1, 1, 5), team("red", 2, 2, 30)]);
    let richest = http.rows(&format!("/v1/queries/richest?at_least=5&min_position={at}")).await;
    let expected =
        [json!({"account": "a-1", "balance": 30}), json!({"account": "b-1", "balance": 5})];
    assert_eq!(richest, expected);
    assert_eq!(http.rows("/v1/queries/richest").await.len(), 3, "the default holds");
    // A row that is deleted is gone.
    let closed = http.command("b-1", "close", &[], "{}").await.ok();
    let at = closed["position"].as_str().unwrap();
    assert!(
        http.rows(&format!("/v1/query/accounts?account=b-1&min_position={at}")).await.is_empty()
    );
}

#[tokio::test]
async fn wrong_questions_are_refused() {
    let http = Dev::shared().http("wrong");
    let unknown = http.get("/v1/query/accounts?colour=red").await.problem(400, "unknown-column");
    assert!(unknown["known"].as_array().unwrap().contains(&json!("team")), "{unknown}");
    for path in ["fields=account,colour", "sort=-colour", "tenant=wrong", "xmin=1"] {
        let answer = http.get(&format!("/v1/query/accounts?{path}")).await;
        answer.problem(400, "unknown-column");
    }
    for path in [
        "/v1/query/accounts?deposits=many",
        "/v1/query/accounts?deposits=1.5",
        "/v1/query/accounts?deposits=99999999999999999999",
        "/v1/query/accounts?rate=NaNs",
        "/v1/query/accounts?active=perhaps",
        "/v1/query/accounts?since=2026-02-30",
        "/v1/query/accounts?opened_at=noon",
        "/v1/query/accounts?deposits=prefix.1",
        "/v1/query/accounts?limit=0",
        "/v1/query/accounts?limit=1001",
        "/v1/query/accounts?limit=many",
        "/v1/query/accounts?cursor=nonsense",
        "/v1/query/accounts?sort=team,team",
        "/v1/query/accounts?team=a%00b",
        "/v1/query/accounts?min_position=nonsense",
        "/v1/query/accounts?min_position=1-64-1",
        "/v1/query/accounts?min_position=1-1-1&wait_ms=soon",
        "/v1/queries/richest?at_least=much",
        "/v1/queries/richest?at_most=1",
        "/v1/queries/richest?at_least=1&at_least=2",
    ] {
        http.get(path).await.problem(400, "invalid-parameter");
    }
    let unknown = http.get("/v1/query/acounts").await.problem(404, "unknown-read-model");
    assert!(unknown["known"].as_array().unwrap().contains(&json!("accounts")), "{unknown}");
    let unknown = http.get("/v1/queries/poorest").await.problem(404, "unknown-query");
    assert!(unknown["known"].as_array().unwrap().contains(&json!("richest")), "{unknown}");
    let far = "/v1/query/accounts?min_position=1-0-99999999&wait_ms=100";
    let answer = http.get(far).await;
    answer.problem(503, "position-not-reached");
    assert_eq!(answer.header("retry-after"), "1");
}

#[tokio::test]
async fn pages_follow_each_other_without_repetition_while_rows_come_in() {
    let http = Dev::shared().http("pages");
    let mut before = BTreeSet::new();
    let mut at = Vec::new();
    for number in 0..40 {
        let id = format!("p-{number:02}0");
        at.push(account(&http, &id, if number % 3 == 0 { "red" } else { "blue" }, &[]).await);
        before.insert(id);
    }
    let at = at.join(",");
    for (round, sort) in
        ["", "&sort=-account", "&sort=team,-account", "&sort=-largest"].iter().enumerate()
    {
        let stop = CancellationToken::new();
        let (writer, stopped) = (http.another(), stop.clone());
        let prefix = format!("q{round}");
        let writing = tokio::spawn(async move {
            let mut number = 0;
            while !stopped.is_cancelled() {
                account(&writer, &format!("{prefix}-{number}"), "green", &[]).await;
                number += 1;
            }
        });
        let mut seen: Vec<String> = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/v1/query/accounts?limit=7{sort}&min_position={at}{cursor}");
            let page = http.get(&path).await.ok();
            let rows = page["rows"].as_array().unwrap();
            assert!(rows.len() <= 7);
            seen.extend(rows.iter().map(|row| row["account"].as_str().unwrap().to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        stop.cancel();
        writing.await.unwrap();
        let distinct: BTreeSet<String> = seen.iter().cloned().collect();
        assert_eq!(distinct.len(), seen.len(), "{sort}: a row came twice: {seen:?}");
        assert!(distinct.is_superset(&before), "{sort}: a row was left out: {seen:?}");
    }
    let page = http.get("/v1/query/accounts?limit=7").await.ok();
    let cursor = page["next_cursor"].as_str().unwrap();
    let other = format!("/v1/query/accounts?limit=7&team=red&cursor={cursor}");
    http.get(&other).await.problem(400, "invalid-parameter");
}

#[tokio::test]
async fn with_min_position_one_reads_ones_own_writes_under_load() {
    let dev = Dev::shared();
    let http = dev.http("own");
    account(&http, "shared", "all", &[]).await;
    let clients = (0..8).map(|client| {
        let http = http.another();
        async move {
            let id = format!("w-{client}");
            account(&http, &id, "all", &[]).await;
            for number in 1..=25_u64 {
                let deposited = http.command(&id, "deposit", &[], r#"{"amount":1}"#).await.ok();
                let of_all = http.command("shared", "deposit", &[], r#"{"amount":1}"#).await.ok();
                let [one, all] = [deposited, of_all.clone()].map(|d| d["position"].to_string());
                let at = format!("{one},{all}").replace('"', "");
                let path = format!("/v1/query/accounts?account={id}&min_position={at}");
                assert_eq!(http.rows(&path).await[0]["deposits"], json!(number));
                let path = format!("/v1/query/accounts?account=shared&min_position={at}");
                let (row, version) =
                    (http.rows(&path).await[0].clone(), of_all["version"].as_u64().unwrap());
                assert!(row["version"].as_u64().unwrap() >= version, "{row} is before {version}");
            }
        }
    });
    futures::future::join_all(clients).await;
    let rows = http.rows("/v1/query/accounts?account=shared").await;
    assert_eq!(rows[0]["deposits"], json!(8 * 25));
}

/// Runs statements in a transaction that is rolled back; returns the rows of the last.
async fn rolled_back(sql: &mut PgConnection, first: &str, last: &str) -> Result<usize, String> {
    sql.execute(AssertSqlSafe(format!("begin; {first}"))).await.unwrap();
    let result = sqlx::query(AssertSqlSafe(last.to_owned())).fetch_all(&mut *sql).await;
    sql.execute("rollback").await.unwrap();
    result.map(|rows| rows.len()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn no_tenant_sees_anothers_rows() {
    let dev = Dev::shared();
    let (one, two) = (dev.http("tenant_one"), dev.http("tenant_two"));
    let at = account(&one, "secret-1", "red", &[41]).await;
    for path in [
        format!("/v1/query/accounts?min_position={at}"),
        format!("/v1/query/teams?min_position={at}"),
        format!("/v1/queries/richest?min_position={at}"),
    ] {
        assert_eq!(two.rows(&path).await, [] as [Value; 0], "{path}");
        assert_eq!(one.rows(&path).await.len(), 1, "{path}");
    }
    two.get("/v1/aggregates/account/secret-1").await.problem(404, "no-such-aggregate");
    two.get("/v1/aggregates/account/secret-1/events").await.problem(404, "no-such-aggregate");
    // The same ids are other aggregates.
    let other = account(&two, "secret-1", "blue", &[]).await;
    let rows = two.rows(&format!("/v1/query/accounts?min_position={other}")).await;
    assert_eq!((rows.len(), &rows[0]["team"]), (1, &json!("blue")));

    // The login of queries sees nothing without the seal of a session.
    let mut sql = dev.sql().await;
    let login = "select name || ':' || password from flexcore.query_login";
    let login: String = sqlx::query(login).fetch_one(&mut sql).await.unwrap().get(0);
    let (_, server) = dev.ready.postgres.split_once('@').unwrap();
    let url = format!("postgres://{login}@{server}");
    let mut queries = PgConnection::connect(&url).await.unwrap();
    for set in ["", "set local flexcore.tenant = 'tenant_one'"] {
        let refused =
            rolled_back(&mut queries, set, "select * from rm.accounts").await.unwrap_err();
        assert!(refused.contains("flexcore.tenant is not sealed"), "{refused}");
    }
    for forbidden in [
        "update rm.accounts set owner = 'me'",
        "delete from rm.accounts",
        "select * from flexcore.checkpoints",
        "select * from flexcore.parked",
        "create table rm.mine (a int)",
    ] {
        let refused = rolled_back(&mut queries, "", forbidden).await.expect_err(forbidden);
        assert!(refused.contains("permission denied"), "{refused}");
    }
}

/// A checksum over all that a tenant's rows say.
async fn checksum(sql: &mut PgConnection, view: &str, tenant: &str) -> String {
    let statement = format!(
        "select md5(coalesce(string_agg(row_to_json(v)::text, E'\\n' order by row_to_json(v)::text), '')) \
         || ' ' || count(*) from rm.{view} v where tenant = $1"
    );
    let row = sqlx::query(AssertSqlSafe(statement)).bind(tenant).fetch_one(sql).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn a_rebuild_gives_the_same_rows_and_blocks_nobody() {
    let dev = Dev::shared();
    let http = dev.http("rebuilt");
    let mut at = String::new();
    for number in 0..30 {
        at = account(&http, &format!("r-{number}"), &format!("team_{}", number % 7), &[1, 2]).await;
    }
    http.rows(&format!("/v1/query/teams?min_position={at}")).await;
    http.rows(&format!("/v1/query/accounts?min_position={at}")).await;
    let mut sql = dev.sql().await;
    let before = [
        checksum(&mut sql, "teams", "rebuilt").await,
        checksum(&mut sql, "accounts", "rebuilt").await,
    ];
    assert!(before[0].ends_with(" 7") && before[1].ends_with(" 30"), "{before:?}");
    let stop = CancellationToken::new();
    let (reader, stopped) = (http.another(), stop.clone());
    let reading = tokio::spawn(async move {
        let mut read = 0;
        while !stopped.is_cancelled() {
            assert_eq!(reader.rows("/v1/query/teams").await.len(), 7);
            assert_eq!(reader.rows("/v1/query/accounts?limit=100").await.len(), 30);
            read += 1;
        }
        read
    });
    for view in ["teams", "accounts"] {
        let arguments = ["rebuild", view, "--json"];
        let output = dev.run_async(&arguments).await;
        let done: Value = serde_json::from_str(&succeeded(&arguments, &output)).unwrap();
        assert_eq!(done["read_model"], json!(view), "{done}");
        assert!(done["version"].as_u64().is_some_and(|version| version >= 2), "{done}");
    }
    stop.cancel();
    assert!(reading.await.unwrap() > 3, "reading went on");
    let after = [
        checksum(&mut sql, "teams", "rebuilt").await,
        checksum(&mut sql, "accounts", "rebuilt").await,
    ];
    assert_eq!(after, before);
    // Later events arrive in the new version.
    let at = account(&http, "r-new", "team_0", &[]).await;
    let rows = http.rows(&format!("/v1/query/accounts?account=r-new&min_position={at}")).await;
    assert_eq!(rows.len(), 1);
    let unknown = dev.run_async(&["rebuild", "nothing"]).await;
    let (_, err) = texts(&unknown);
    assert!(!unknown.status.success() && err.contains("no read model nothing"), "{err}");
}

const PARKING: &str = r#"aggregate: car
commands:
  park:
    payload:
      type: object
      required: [lot, fee]
      properties: { lot: { type: string }, fee: { type: number } }
    decide: |
      (state, data) => [{ event: "parked", data }]
events:
  parked:
    data:
      type: object
      required: [lot, fee]
      properties: { lot: { type: string }, fee: { type: number } }
    evolve: |
      (state, event) => event.data
---
read_model: lots
columns: { lot: text, cars: integer, fees: number }
key: [lot]
on:
  car.parked:
    key: { lot: $.lot }
    add: { cars: 1, fees: $.fee }
---
read_model: cars
columns: { id: text, times: integer }
key: [id]
on:
  car.parked:
    key: { id: $id }
    add: { times: 1 }
"#;

#[tokio::test]
async fn an_event_that_cannot_be_applied_is_parked_and_the_rest_goes_on() {
    let dev = Dev::shared();
    app::deploy(&dev, &Files::one("parking", PARKING));
    let http = dev.http("parking");
    let park = async |id: &str, lot: &str, fee: f64| {
        let path = format!("/v1/commands/car/{id}/park");
        let body = json!({"lot": lot, "fee": fee}).to_string();
        let answer = http.send("POST", &path, &[("content-type", "application/json")], body).await;
        answer.ok()["position"].as_str().unwrap().to_owned()
    };
    eventually("the read models to serve", async || {
        let answers = [http.get("/v1/query/lots").await, http.get("/v1/query/cars").await];
        let served = answers.iter().all(|answer| answer.status == 200);
        if served { Ok(()) } else { Err(format!("{answers:?}")) }
    })
    .await;
    park("c-1", "north", 1.5).await;
    let bad = [
        park("c-2", &"x".repeat(3_000), 1.0).await,
        park("c-3", "north\u{0}", 1.0).await,
        park("c-4", "south", 1e308).await,
    ];
    let last = park("c-4", "south", 1e308).await;
    let at = [bad.join(","), last, park("c-1", "north", 2.0).await].join(",");
    let lots = http.rows(&format!("/v1/query/lots?min_position={at}")).await;
    let lot = |lot: &str, cars: u32, fees: f64| json!({"lot": lot, "cars": cars, "fees": fees});
    assert_eq!(lots, [lot("north", 2, 3.5), lot("south", 1, 1e308)]);
    let cars = http.rows(&format!("/v1/query/cars?min_position={at}")).await;
    let car = |id: &str, times: u32| json!({"id": id, "times": times});
    let expected = [car("c-1", 2), car("c-2", 1), car("c-3", 1), car("c-4", 2)];
    assert_eq!(cars, expected, "the other read model could apply all");

    let mut sql = dev.sql().await;
    let parked = "select k.aggregate_id, k.event, k.reason from flexcore.parked k \
                  where k.tenant = 'parking' order by k.sequence";
    let parked = sqlx::query(parked).fetch_all(&mut sql).await.unwrap();
    let ids: Vec<String> = parked.iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, ["c-2", "c-3", "c-4"]);
    for row in &parked {
        assert_eq!(row.get::<String, _>(1), "parked");
        assert!(row.get::<String, _>(2).len() > 10, "{row:?}");
    }
    let listed = dev.succeed(&["dead", "list", "--kind", "projection", "--json"]);
    let listed: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_us = |dead: &&Value| dead["kind"].as_str().unwrap().starts_with("projection.lots.");
    let ours: Vec<&Value> = listed.iter().filter(of_us).collect();
    assert_eq!(ours.len(), 3, "{listed:?}");
    assert!(ours[0]["reason"].as_str().unwrap().contains("key has 3000 bytes"), "{}", ours[0]);
    let number = ours[0]["number"].to_string();
    let requeue = dev.run(&["dead", "requeue", &number]);
    let (_, err) = texts(&requeue);
    assert!(!requeue.status.success() && err.contains("flexcore rebuild"), "{err}");
    eventually("the count of what was parked", async || {
        let metrics = Http::new(&dev.ready.http, "").get("/metrics").await;
        let text = String::from_utf8(metrics.body.to_vec()).unwrap();
        let line = "flexcore_projection_parked_total{read_model=\"lots\"} 3";
        if text.lines().any(|found| found == line) { Ok(()) } else { Err(text) }
    })
    .await;
}
