//! Queries whose Postgres is slow, or away; read models that are not as they should be.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flexcore_definition::{Application, Catalog, SourceFile};
use flexcore_domain::{ActorName, Name};
use flexcore_eventstore::catalog::{deploy, deployment};
use flexcore_readmodel::{Ahead, ReadModels};
use flexcore_servers::Want;
use sqlx::Connection as _;

use crate::support::{Gateway, bearer, settings, start_on, token};

/// Queries until the breaker has opened; returns how many that took.
async fn query_until_left_alone(gateway: &Gateway) -> usize {
    let mut queries = 0;
    while queries < 20 {
        let (one, two) =
            tokio::join!(gateway.get("/v1/query/flights"), gateway.get("/v1/queries/delays"));
        for answer in [one, two] {
            let document = answer.problem(503, "unavailable");
            if document["detail"].as_str().unwrap().contains("not retried for now") {
                return queries;
            }
            queries += 1;
        }
    }
    panic!("still asked after {queries} queries");
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_gives_a_query_up_when_its_client_does() {
    let gateway = start_on(settings(), Want::Both).await;
    // More than a tenant has connections, and each would take as long as any query may.
    let hasty = format!("{}Flexcore-Timeout-Ms: 300\r\n", bearer());
    let queries = (0..20).map(|_| gateway.send("GET", "/v1/queries/delays?least=30", &hasty, ""));
    let began = Instant::now();
    let mut given_up = 0;
    for answer in futures::future::join_all(queries).await {
        let has_place = answer.json()["type"] != "/problems/overloaded";
        answer.problem(503, if has_place { "unavailable" } else { "overloaded" });
        given_up += usize::from(has_place);
    }
    assert!(given_up >= 5, "enough to open the circuit, if they counted: {given_up}");
    let answer = gateway.get("/v1/queries/delays").await;
    let took = began.elapsed();
    assert_eq!(answer.body, r#"{"rows":[{"slept":""}]}"#, "the circuit is closed: {answer:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    gateway.servers.stop().await;
}

/// Five of them in a row, of whichever tenant, once had everybody's queries refused.
#[tokio::test(flavor = "multi_thread")]
async fn queries_that_take_too_long_get_nobody_else_refused() {
    let gateway = start_on(settings(), Want::Both).await;
    let queries = (0..6).map(|_| gateway.get("/v1/queries/delays?least=30"));
    for answer in futures::future::join_all(queries).await {
        answer.problem(504, "query-timeout");
    }
    let answer = gateway.get("/v1/queries/delays").await;
    assert_eq!(answer.body, r#"{"rows":[{"slept":""}]}"#, "{answer:?}");
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_away_queries_are_answered_at_once_and_commands_go_on() {
    let mut gateway = start_on(settings(), Want::Both).await;
    gateway.get("/v1/query/flights").await.problem(503, "read-model-building");
    gateway.servers.postgres.as_mut().unwrap().kill().await.unwrap();
    let queries = query_until_left_alone(&gateway).await;
    assert!(queries <= 6, "five failures, and one beside the fifth: {queries}");
    let mut fastest = Duration::MAX;
    for path in ["/v1/query/flights", "/v1/queries/delays", "/v1/query/flights?min_position=1-7-9"]
    {
        let began = Instant::now();
        let refused = gateway.get(path).await;
        fastest = fastest.min(began.elapsed());
        refused.problem(503, "unavailable");
        let wait_s: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=5).contains(&wait_s), "{refused:?}");
    }
    // The fastest, because this machine may be busy with other tests.
    assert!(fastest < Duration::from_millis(10), "{fastest:?}");
    assert_eq!(gateway.command("depart", "", "{}").await.status, 200);
    assert_eq!(gateway.get("/v1/aggregates/flight/UA1").await.status, 200);

    gateway.servers.postgres.as_mut().unwrap().start_again().await.unwrap();
    let back = Instant::now();
    while gateway.get("/v1/query/flights").await.json()["type"] != "/problems/read-model-building" {
        assert!(back.elapsed() < Duration::from_secs(10), "it is not asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    gateway.servers.stop().await;
}

/// Waits until `/readyz` says this; with 200 while the gateway is of use, as it is without read models.
async fn told(gateway: &Gateway, status: &str, why: &str) {
    let since = Instant::now();
    loop {
        let answer = gateway.get("/readyz").await;
        let said = answer.json()["status"].clone();
        assert_eq!(answer.status == 200, said != "not ready", "{answer:?}");
        if said == status && answer.body.contains(why) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(20), "not {status} {why}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `/readyz` once said "ready" in both cases.
#[tokio::test(flavor = "multi_thread")]
async fn read_models_that_cannot_be_changed_and_dropped_ones_are_told() {
    let gateway = start_on(settings(), Want::Both).await;
    let url = gateway.servers.postgres_url().unwrap();
    let rows = ReadModels::connect(&url, flexcore_readmodel::Settings::default()).await.unwrap();
    let ours = |_: &_, _| Some(1);
    told(&gateway, "ready", "").await;
    let troubles = BTreeMap::from([("flights".to_owned(), "a view hangs on it".to_owned())]);
    rows.note_troubles(&ours, &troubles).await.unwrap();
    told(&gateway, "degraded", "flights is in trouble").await;
    rows.note_troubles(&ours, &BTreeMap::new()).await.unwrap();
    told(&gateway, "ready", "").await;
    let mut admin = sqlx::PgConnection::connect(&url).await.unwrap();
    let drop = "drop schema rm, flexcore cascade";
    sqlx::raw_sql(drop).execute(&mut admin).await.unwrap();
    told(&gateway, "degraded", "their tables were dropped").await;
    assert!(rows.make_anew().await.unwrap());
    told(&gateway, "ready", "").await;
    gateway.servers.stop().await;
}

/// What was deployed before what the gateway has: its query reads one read model more.
const FORMER: &str = r#"
aggregate: flight
description: One.
commands:
  depart:
    description: Leaves.
    decide: |
      () => [{ event: "departed", data: {} }]
events:
  departed:
    evolve: |
      (state) => state
---
read_model: flights
description: Rows.
columns: { id: text, delay: integer }
key: [id]
on:
  flight.departed:
    key: { id: $id }
    add: { delay: 1 }
---
read_model: gates
description: Rows.
columns: { id: text, used: integer }
key: [id]
on:
  flight.departed:
    key: { id: $id }
    add: { used: 1 }
---
query: delays
description: Delays.
reads: [flights, gates]
parameters: { most: integer }
sql: |
  select f.id, g.used from rm.flights f join rm.gates g on g.id = f.id where f.delay <= :most
"#;

/// Has the read models of [`FORMER`] built and serving. Returns the database's URL.
async fn built(gateway: &Gateway) -> String {
    let files = vec![SourceFile { path: "app.yaml".to_owned(), text: FORMER.to_owned() }];
    let former = Application::read(Name::parse("flights").unwrap(), files).unwrap();
    let before = deployment(&gateway.store, &former.name).await.unwrap();
    let actor = ActorName::parse("apply").unwrap();
    deploy(&gateway.store, &former, &before, &actor, 0).await.unwrap();
    let url = gateway.servers.postgres_url().unwrap();
    let rows = ReadModels::connect(&url, flexcore_readmodel::Settings::default()).await.unwrap();
    let mut catalog = Catalog::default();
    catalog.put(former);
    for version in rows.versions(&catalog, &|_: &_, _| Some(1)).await.unwrap().run {
        assert!(rows.promote(&version, &mut Ahead::default()).await.unwrap());
    }
    url
}

/// A look had 5 ms then: what was busy for longer was answered 504, not to be asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_whose_wait_is_used_up_is_looked_at_all_the_same() {
    let gateway = start_on(settings(), Want::Both).await;
    let url = built(&gateway).await;
    let mut admin = sqlx::PgConnection::connect(&url).await.unwrap();
    let busy = "begin; lock table flexcore.checkpoints in access exclusive mode";
    sqlx::raw_sql(busy).execute(&mut admin).await.unwrap();
    let path = "/v1/query/flights?min_position=1-7-9&wait_ms=0";
    let hasty = format!("{}Flexcore-Timeout-Ms: 200\r\n", bearer());
    gateway.send("GET", path, &hasty, "").await.problem(503, "unavailable");
    let asked = gateway.get(path);
    let rests = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sqlx::raw_sql("rollback").execute(&mut admin).await.unwrap();
    };
    let (answer, ()) = tokio::join!(asked, rests);
    let late = answer.problem(503, "position-not-reached");
    assert!(late["detail"].as_str().unwrap().contains("flights"), "{late}");
    gateway.servers.stop().await;
}

/// Only what the new declaration reads was waited for, and a client did not find its own write.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_by_its_former_declaration_waits_for_what_that_reads() {
    let gateway = start_on(settings(), Want::Both).await;
    let url = built(&gateway).await;
    let mut admin = sqlx::PgConnection::connect(&url).await.unwrap();
    // The log reaches there: otherwise the rows are those of another one, which the gateway sees in time.
    let asked = "/v1/queries/delays?most=9&min_position=1-7-1&wait_ms=2000";
    let comes = "update flexcore.checkpoints set seen = 1 where projection_id = \
                 (select id from flexcore.projections where read_model = $1)";
    for read_model in ["flights", "gates"] {
        let late = gateway.get(asked).await.problem(503, "position-not-reached");
        assert!(late["detail"].as_str().unwrap().contains(read_model), "{late}");
        sqlx::query(comes).bind(read_model).execute(&mut admin).await.unwrap();
    }
    assert_eq!(gateway.get(asked).await.body, r#"{"rows":[]}"#);
    gateway.servers.stop().await;
}

/// Asks for every path that the index names, without a token, and for one that it does not name.
async fn asked_by_a_stranger(gateway: &Gateway) -> String {
    let index = gateway.send("GET", "/", "", "").await.body;
    let named = index.split('"').map(|word| word.trim_start_matches("GET "));
    let named = named.map(|word| word.trim_start_matches("POST ").replace(['{', '}'], ""));
    let paths = named.filter(|path| path.starts_with('/')).chain(["/nowhere".to_owned()]);
    let mut said = String::new();
    for path in paths {
        let answer = gateway.send("GET", &path, "", "").await;
        said += &format!("{path} {answer:?}\n");
    }
    assert!(said.matches("/problems/unauthenticated").count() >= 10, "{said}");
    said
}

/// What Postgres said of a trouble once stood in `/readyz`, with the names of other people's objects.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_learn_no_word_of_postgres_or_the_broker() {
    let mut gateway = start_on(settings(), Want::Both).await;
    let url = gateway.servers.postgres_url().unwrap();
    let rows = ReadModels::connect(&url, flexcore_readmodel::Settings::default()).await.unwrap();
    let mut admin = sqlx::PgConnection::connect(&url).await.unwrap();
    let says_nothing = async |gateway: &Gateway| {
        let said = asked_by_a_stranger(gateway).await;
        for secret in ["secret_payroll", "secret log", "127.0.0.1", "os error", "depends"] {
            assert!(!said.contains(secret), "{secret}: {said}");
        }
    };
    let what = "cannot drop view rm.flights: view secret_payroll depends on it";
    let troubles = BTreeMap::from([("flights".to_owned(), what.to_owned())]);
    rows.note_troubles(&|_: &_, _| Some(1), &troubles).await.unwrap();
    told(&gateway, "degraded", "flights is in trouble: `flexcore cluster` says why").await;
    says_nothing(&gateway).await;
    let platform = token("flexcore", Duration::from_secs(60));
    let platform = format!("Authorization: Bearer {platform}\r\n");
    let report = gateway.send("GET", "/v1/cluster", &platform, "").await.json();
    assert_eq!(report["unmade"], serde_json::json!({"flights": what}), "the whole of it");

    let other = "insert into flexcore.log (identity) values ('secret log')";
    sqlx::raw_sql(other).execute(&mut admin).await.unwrap();
    told(&gateway, "degraded", "they are of another log").await;
    says_nothing(&gateway).await;
    gateway.servers.postgres.as_mut().unwrap().kill().await.unwrap();
    told(&gateway, "degraded", "\"postgres\"").await;
    says_nothing(&gateway).await;
    gateway.servers.nats.kill().await.unwrap();
    told(&gateway, "not ready", "\"nats\"").await;
    says_nothing(&gateway).await;
    gateway.servers.stop().await;
}
