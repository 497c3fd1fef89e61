//! The gateway over sockets: answers to good, bad and hostile requests.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod broker;
mod connections;
mod managed;
mod numbers;
mod plugins;
mod postgres;
mod strangers;
mod support;

use std::{num::NonZeroU32, time::Duration};

use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit, Event,
    EventName, Provenance, Tenant,
};
use flexcore_eventstore::Expected;
use flexcore_gateway::{Settings, limits};
use support::{Gateway, bearer, read, settings, start, token};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const JSON: &str = "Content-Type: application/json\r\n";

async fn accepts_commands(gateway: &Gateway) {
    let parent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let more = format!("Idempotency-Key: \"k-1\"\r\nIf-Match: \"4\"\r\n{parent}");
    let answer = gateway.command("depart", &more, "{}").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.body,
        r#"{"version":5,"position":"1-7-42","command_id":"k-1","replayed":false}"#
    );
    assert_eq!(answer.header("etag"), Some("\"5\""));
    assert_eq!(answer.header("idempotency-key"), Some("k-1"));
    assert!(answer.header("traceparent").unwrap().contains("4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(answer.header("ratelimit-policy"), Some("\"tenant\";q=100000;w=1"));
    assert!(answer.header("ratelimit").unwrap().starts_with("\"tenant\";r="));
    assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
    let made = gateway.command("depart", "", "{}").await;
    let id = made.json()["command_id"].as_str().unwrap().to_owned();
    assert_eq!(made.header("idempotency-key"), Some(id.as_str()));
}

async fn says_what_came_of_commands(gateway: &Gateway) {
    let rejected = gateway.command("reject", "", "{}").await.problem(409, "rejected");
    assert_eq!((&rejected["code"], &rejected["detail"]), (&"gone".into(), &"It left.".into()));
    let invalid = gateway.command("invalid", "", "{}").await.problem(422, "invalid-payload");
    assert_eq!(invalid["errors"][0]["field"], "/a");
    let unknown = gateway.command("unknown", "", "{}").await.problem(404, "unknown-command");
    assert_eq!(unknown["known"][0], "depart");
    gateway.command("unknown_kind", "", "{}").await.problem(404, "unknown-aggregate");
    gateway.command("conflict", "", "{}").await.problem(409, "conflict");
    let stale = gateway.command("conflict", "If-Match: \"4\"\r\n", "{}").await;
    assert_eq!(stale.problem(412, "version-mismatch")["version"], 5);
    gateway.command("mismatch", "", "{}").await.problem(422, "idempotency-key-reused");
    gateway.command("faulty", "", "{}").await.problem(422, "faulty-decider");
    let overloaded = gateway.command("overloaded", "", "{}").await;
    overloaded.problem(503, "overloaded");
    assert_eq!(overloaded.header("retry-after"), Some("3"));
    let full = gateway.command("full", "", "{}").await;
    full.problem(507, "storage-full");
    assert!(full.header("retry-after").is_some() && !full.body.contains("secret"), "{full:?}");
    let unknown = gateway.command("unavailable", "", "{}").await;
    unknown.problem(503, "outcome-unknown");
    assert!(!unknown.body.contains("secret") && unknown.header("idempotency-key").is_some());
}

async fn answers_by_the_clients_deadline(gateway: &Gateway) {
    let started = std::time::Instant::now();
    let late = gateway.command("silent", "Flexcore-Timeout-Ms: 300\r\n", "{}").await;
    late.problem(503, "outcome-unknown");
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(5), "{took:?}");
    let asked = std::time::Instant::now();
    let hasty = format!("{}Flexcore-Timeout-Ms: 300\r\n", bearer());
    let path = "/v1/commands/c?aggregate=flight&id=silent";
    gateway.send("GET", path, &hasty, "").await.problem(503, "unavailable");
    let took = asked.elapsed();
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(5), "{took:?}");
    for wrong in ["0", "-1", "soon", "1.5"] {
        let header = format!("Flexcore-Timeout-Ms: {wrong}\r\n");
        gateway.command("depart", &header, "{}").await.problem(400, "bad-request");
        for path in [
            "/v1/commands/c?aggregate=flight&id=UA1",
            "/v1/aggregates/flight/UA1",
            "/v1/aggregates/flight/UA1/events",
            "/v1/query/flights",
            "/v1/queries/delays",
        ] {
            let header = format!("{}{header}", bearer());
            gateway.send("GET", path, &header, "").await.problem(400, "bad-request");
        }
    }
}

async fn shows_the_cluster_to_the_platform_alone(gateway: &Gateway) {
    gateway.get("/v1/cluster").await.problem(403, "forbidden");
    let header =
        format!("Authorization: Bearer {}\r\n", token("flexcore", Duration::from_secs(60)));
    let report = gateway.send("GET", "/v1/cluster", &header, "").await;
    assert_eq!(report.status, 200, "{report:?}");
    let report = report.json();
    let member = &report["members"][0];
    assert_eq!((&member["id"], &member["role"]), (&report["leader"], &"worker".into()));
    assert_eq!(member["owns"]["command"].as_array().unwrap().len(), 64);
    assert_eq!(report["nats"]["healthy"], true);
}

async fn keeps_commands_from_the_platforms_own_aggregates(gateway: &Gateway) {
    let platform =
        format!("Authorization: Bearer {}\r\n", token("flexcore", Duration::from_secs(60)));
    for aggregate in flexcore_eventstore::catalog::RESERVED {
        let path = format!("/v1/commands/{aggregate}/x/reject");
        for prefer in ["", "Prefer: respond-async\r\n"] {
            let headers = format!("{platform}{JSON}{prefer}");
            let refused = gateway.send("POST", &path, &headers, "{}").await;
            refused.problem(404, "unknown-aggregate");
        }
        let of_a_tenant = format!("{}{JSON}", bearer());
        gateway.send("POST", &path, &of_a_tenant, "{}").await.problem(409, "rejected");
    }
}

async fn refuses_bad_commands(gateway: &Gateway) {
    let plain = format!("{}Content-Type: text/plain\r\n", bearer());
    let path = "/v1/commands/flight/UA1/depart";
    gateway.send("POST", path, &plain, "{}").await.problem(415, "unsupported-media-type");
    for body in ["", "{", "{}x", "\u{1}", "{\"a\":1"] {
        gateway.command("depart", "", body).await.problem(400, "malformed-json");
    }
    let huge = format!("\"{}\"", "a".repeat(256 * 1024));
    gateway.command("depart", "", &huge).await.problem(413, "payload-too-large");
    let chunks = format!("{:x}\r\n{huge}\r\n0\r\n\r\n", huge.len());
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n{}{JSON}\r\n",
        bearer()
    );
    gateway.raw(format!("{head}{chunks}").as_bytes()).await.problem(413, "payload-too-large");
    for header in ["If-Match: *", "If-Match: W/\"1\"", "If-Match: 1", "Idempotency-Key: a b"] {
        let answer = gateway.command("depart", &format!("{header}\r\n"), "{}").await;
        answer.problem(400, "invalid-header");
    }
    let headers = format!("{}{JSON}", bearer());
    let unknown = gateway.send("POST", &format!("{path}?x=1"), &headers, "{}").await;
    unknown.problem(400, "invalid-parameter");
}

async fn refuses_hostile_paths(gateway: &Gateway) {
    let headers = format!("{}{JSON}", bearer());
    for id in ["%2e", "a%2Eb", "%2A", "%3E", "a%20b", "a%00b", "a%0d%0ab", "%C3%A4", "%2F", "%FF"] {
        for path in [
            format!("/v1/commands/flight/{id}/depart"),
            format!("/v1/commands/{id}/UA1/depart"),
            format!("/v1/commands/flight/UA1/{id}"),
        ] {
            let answer = gateway.send("POST", &path, &headers, "{}").await;
            answer.problem(400, "invalid-name");
        }
        for path in ["/v1/aggregates/flight/", "/v1/query/", "/v1/queries/"] {
            gateway.get(&format!("{path}{id}")).await.problem(400, "invalid-name");
        }
    }
    let long = format!("/v1/commands/flight/{}/depart", "a".repeat(10_000));
    gateway.send("POST", &long, &headers, "{}").await.problem(414, "uri-too-long");
    let huge = format!("/v1/commands/flight/{}/depart", "a".repeat(1 << 20));
    let refused = gateway.send("POST", &huge, &headers, "{}").await;
    assert_eq!(refused.json()["type"], "/problems/headers-too-large", "{refused:?}");
    let nonsense = gateway.raw(b"\x00\x01\r\n\r\n").await;
    assert_eq!(nonsense.json()["type"], "/problems/bad-request", "{nonsense:?}");
    for hosts in ["", "Host: x\r\nHost: y\r\n"] {
        let request = format!("GET /openapi.json HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        gateway.raw(request.as_bytes()).await.problem(400, "bad-request");
    }
    let cookies = format!("{}Cookie: {}\r\n", bearer(), "a".repeat(30_000));
    gateway.send("GET", "/v1/events", &cookies, "").await.problem(431, "headers-too-large");
}

async fn needs_a_token(gateway: &Gateway) {
    let bare = gateway.send("GET", "/v1/events", "", "").await;
    bare.problem(401, "unauthenticated");
    assert_eq!(bare.header("www-authenticate"), Some("Bearer realm=\"flexcore\""));
    gateway.send("GET", "/v1/nothing", "", "").await.problem(401, "unauthenticated");
    for value in ["Basic YTpi", "Bearer", "Bearer a.b.c", "bearer x"] {
        let header = format!("Authorization: {value}\r\n");
        let answer = gateway.send("GET", "/v1/events", &header, "").await;
        answer.problem(401, "unauthenticated");
    }
    let forged = bearer().replace(". ", ".").replacen("eyJ", "eyK", 1);
    let answer = gateway.send("GET", "/v1/events", &forged, "").await;
    answer.problem(401, "unauthenticated");
    assert!(answer.header("www-authenticate").unwrap().contains("error=\"invalid_token\""));
    let twice = format!("{0}{0}", bearer());
    gateway.send("GET", "/v1/events", &twice, "").await.problem(400, "invalid-header");
}

async fn answers_what_is_not_there(gateway: &Gateway) {
    gateway.get("/nothing").await.problem(404, "not-found");
    let wrong = gateway.send("DELETE", "/v1/events", &bearer(), "").await;
    wrong.problem(405, "method-not-allowed");
    assert_eq!(wrong.header("allow"), Some("GET,HEAD"));
    gateway.get("/v1/query/nothing").await.problem(404, "unknown-read-model");
    gateway.get("/v1/queries/nothing").await.problem(404, "unknown-query");
    gateway.get("/v1/query/nothing/explain").await.problem(404, "unknown-read-model");
    gateway.get("/v1/queries/nothing/explain").await.problem(404, "unknown-query");
    gateway.get("/v1/query/flights/explain").await.problem(503, "unavailable");
    let column = gateway.get("/v1/query/flights?colour=red").await.problem(400, "unknown-column");
    assert_eq!(column["known"][1], "delay");
    gateway.get("/v1/query/flights?delay=much").await.problem(400, "invalid-parameter");
    gateway.get("/v1/query/flights?min_position=x").await.problem(400, "invalid-parameter");
    gateway.get("/v1/queries/delays?other=1").await.problem(400, "invalid-parameter");
    gateway.get("/v1/query/flights").await.problem(503, "unavailable");
    gateway.get("/v1/events?colour=red").await.problem(400, "invalid-parameter");
    gateway.get("/v1/events?after=x").await.problem(400, "invalid-parameter");
}

async fn shows_states(gateway: &Gateway) {
    let state = gateway.get("/v1/aggregates/flight/UA1").await;
    assert_eq!(state.body, r#"{"aggregate":"flight","id":"UA1","version":3,"state":{"a":1}}"#);
    assert_eq!(state.header("etag"), Some("\"3\""));
    let headers = format!("{}If-None-Match: \"3\"\r\n", bearer());
    let same = gateway.send("GET", "/v1/aggregates/flight/UA1", &headers, "").await;
    assert_eq!((same.status, same.body.as_str()), (304, ""));
    let older = gateway.get("/v1/aggregates/flight/UA1?at_version=2").await;
    assert_eq!(older.json()["version"], 2);
    gateway.get("/v1/aggregates/flight/UA1?at_version=9").await.problem(400, "invalid-parameter");
    gateway.get("/v1/aggregates/flight/missing").await.problem(404, "no-such-aggregate");
    gateway.get("/v1/aggregates/ship/missing").await.problem(404, "unknown-aggregate");
}

async fn queues_commands(gateway: &Gateway) {
    let queued = gateway.command("depart", "Prefer: respond-async\r\n", "{}").await;
    assert_eq!(queued.status, 202, "{queued:?}");
    assert_eq!(queued.header("preference-applied"), Some("respond-async"));
    assert_eq!(queued.header("retry-after"), Some("1"));
    let body = queued.json();
    assert_eq!(body["status"], "pending");
    let location = queued.header("location").unwrap();
    let id = body["command_id"].as_str().unwrap();
    assert_eq!(location, format!("/v1/commands/{id}?aggregate=flight&id=UA1"));
    assert_eq!(gateway.get(location).await.json()["status"], "accepted");
    let waited = gateway.command("depart", "Prefer: respond-async, wait=5\r\n", "{}").await;
    assert_eq!((waited.status, &waited.json()["status"]), (200, &"accepted".into()));
    let stream = gateway.store.jetstream().get_stream("FLEX_COMMANDS").await.unwrap();
    // An earlier command of this id would have another outcome.
    let last = stream.cached_info().state.last_sequence;
    assert!(last > 1 && waited.json()["version"] == last, "{last}: {waited:?}");
    let stored = stream.get_raw_message(1).await.unwrap();
    assert!(stored.subject.ends_with(".acme.flight.UA1.depart"), "{}", stored.subject);
    let unknown = gateway.command("fly", "Prefer: respond-async\r\n", "{}").await;
    unknown.problem(404, "unknown-command");
    let pending = gateway.get("/v1/commands/c?aggregate=flight&id=pending").await;
    assert_eq!((pending.status, &pending.json()["status"]), (202, &"pending".into()));
    let dead = gateway.get("/v1/commands/c?aggregate=flight&id=dead").await;
    assert_eq!((dead.status, &dead.json()["reason"]), (200, &"why".into()));
    let gone = gateway.get("/v1/commands/c?aggregate=flight&id=gone").await;
    gone.problem(404, "no-outcome");
    gateway.get("/v1/commands/c?aggregate=flight").await.problem(400, "invalid-parameter");
}

async fn serves_documents_without_a_token(gateway: &Gateway) {
    for path in ["/", "/openapi.json", "/asyncapi.json", "/.well-known/jwks.json", "/livez"] {
        let answer = gateway.send("GET", path, "", "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json();
    }
    let advice = gateway.send("GET", "/problems/outcome-unknown", "", "").await;
    assert!(advice.body.contains("same Idempotency-Key"));
    gateway.send("GET", "/problems/nothing", "", "").await.problem(404, "not-found");
    assert_eq!(gateway.send("GET", "/metrics", "", "").await.body, "# metrics\n");
    // Commands do not need it.
    let degraded = gateway.send("GET", "/readyz", "", "").await;
    assert_eq!((degraded.status, degraded.json()["status"].as_str()), (200, Some("degraded")));
    assert_eq!(degraded.json()["missing"][0]["what"], "postgres", "{degraded:?}");
    assert_eq!(gateway.send("GET", "/startupz", "", "").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_gets_its_answer() {
    let gateway = start(settings()).await;
    accepts_commands(&gateway).await;
    says_what_came_of_commands(&gateway).await;
    answers_by_the_clients_deadline(&gateway).await;
    shows_the_cluster_to_the_platform_alone(&gateway).await;
    keeps_commands_from_the_platforms_own_aggregates(&gateway).await;
    refuses_bad_commands(&gateway).await;
    refuses_hostile_paths(&gateway).await;
    needs_a_token(&gateway).await;
    answers_what_is_not_there(&gateway).await;
    shows_states(&gateway).await;
    queues_commands(&gateway).await;
    serves_documents_without_a_token(&gateway).await;
    gateway.servers.stop().await;
}

fn commit(tenant: &str, id: &str, versions: std::ops::RangeInclusive<u64>) -> Commit {
    let event = |version| Event {
        event: EventName::parse("departed").unwrap(),
        version,
        schema_version: 1,
        data: serde_json::value::RawValue::from_string(format!("{{\"n\":{version}}}")).unwrap(),
    };
    Commit {
        key: AggregateKey::new(
            Tenant::parse(tenant).unwrap(),
            AggregateName::parse("flight").unwrap(),
            AggregateId::parse(id).unwrap(),
        ),
        command_id: CommandId::parse(&format!("c{}", versions.start())).unwrap(),
        command_hash: CommandHash::of("", ""),
        provenance: Provenance::of(ActorName::parse("alice").unwrap()),
        time_ms: 0,
        events: versions.map(event).collect(),
    }
}

/// Reads until the text is there.
async fn until(stream: &mut TcpStream, seen: &mut String, text: &str) {
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer));
        let length = read.await.unwrap_or_else(|_| panic!("no {text:?} in {seen:?}")).unwrap();
        assert!(length > 0, "closed before {text:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

async fn open_stream(gateway: &Gateway, token: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "GET /v1/events?aggregate=flight HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {token}\r\n{more}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn events_stream_to_their_tenant_and_resume() {
    let gateway = start(settings()).await;
    let token_of = |tenant| token(tenant, Duration::from_secs(600));
    let mut live = open_stream(&gateway, &token_of("acme"), "").await;
    let mut seen = String::new();
    until(&mut live, &mut seen, "retry: 1000").await;
    let none = Expected::default();
    gateway.store.append(&commit("other", "X1", 1..=1), none).await.unwrap();
    let first = gateway.store.append(&commit("acme", "UA1", 1..=2), none).await.unwrap();
    let expected = Expected { sequence: first.sequence, hash: first.hash };
    gateway.store.append(&commit("acme", "UA1", 3..=3), expected).await.unwrap();
    until(&mut live, &mut seen, "\"n\":3").await;
    assert!(seen.contains("\"n\":1") && !seen.contains("X1"), "{seen}");

    let mut ids = seen.lines().filter_map(|line| line.strip_prefix("id: "));
    assert_eq!(ids.next(), Some("1-0-0"), "where it began");
    let id = ids.next().unwrap().trim().to_owned();
    let again = format!("Last-Event-ID: {id}\r\n");
    let mut resumed = open_stream(&gateway, &token_of("acme"), &again).await;
    let mut rest = String::new();
    until(&mut resumed, &mut rest, "\"n\":3").await;
    assert!(!rest.contains("\"n\":2"), "{rest}");

    let page = gateway.get("/v1/aggregates/flight/UA1/events?after_version=1&limit=1").await;
    assert_eq!(page.header("content-type"), Some("application/cloudevents-batch+json"));
    assert_eq!(
        (page.json().as_array().unwrap().len(), &page.json()[0]["sequence"]),
        (1, &2.into())
    );
    let next = "</v1/aggregates/flight/UA1/events?after_version=2&limit=1>; rel=\"next\"";
    assert_eq!(page.header("link"), Some(next));
    let all = gateway.get("/v1/aggregates/flight/UA1/events").await;
    assert_eq!((all.json().as_array().unwrap().len(), all.header("link")), (3, None));
    gateway.get("/v1/aggregates/flight/X1/events").await.problem(404, "no-such-aggregate");

    let mut brief = open_stream(&gateway, &token("acme", Duration::from_secs(2)), "").await;
    until(&mut brief, &mut String::new(), "the token has expired").await;
    gateway.shutdown.cancel();
    until(&mut live, &mut seen, "the gateway is stopping").await;
    gateway.served.await.unwrap().unwrap();
    gateway.servers.stop().await;
}

async fn turns_commands_away(gateway: &Gateway) {
    // They hold their places for commands: their bodies do not come.
    let slow = async |id: &str| {
        let mut slow = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!(
            "POST /v1/commands/flight/{id}/depart HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: 2\r\n{}{JSON}\r\n",
            bearer()
        );
        slow.write_all(head.as_bytes()).await.unwrap();
        slow
    };
    let crowd = (0..limits::COMMANDS_PER_AGGREGATE_MAX).map(|_| slow("UA1"));
    let crowd = futures::future::join_all(crowd).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let shed = gateway.command("depart", "", "{}").await;
    shed.problem(503, "overloaded");
    assert_eq!(shed.header("retry-after"), Some("1"));
    let queued = gateway.command("depart", "Prefer: respond-async\r\n", "{}").await;
    assert_eq!(queued.status, 202, "{queued:?}");
    // The last place, which the crowd has left to others.
    let mut other = slow("UA2").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let headers = format!("{}{JSON}", bearer());
    let shed = gateway.send("POST", "/v1/commands/flight/UA3/depart", &headers, "{}").await;
    shed.problem(503, "overloaded");
    drop(crowd);
    other.write_all(b"{}").await.unwrap();
    assert_eq!(read(&mut other).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_is_turned_away_with_an_answer() {
    let few = Settings {
        requests_per_second: NonZeroU32::new(40).unwrap(),
        // One tenant has a half of them.
        commands_max: 2 * limits::COMMANDS_PER_AGGREGATE_MAX + 1,
        ..settings()
    };
    let gateway = start(few).await;
    turns_commands_away(&gateway).await;
    let path = "/v1/commands/c?aggregate=flight&id=UA1";
    let mut limited = None;
    for _ in 0..4 {
        let answers = futures::future::join_all((0..30).map(|_| gateway.get(path))).await;
        limited = limited.or(answers.into_iter().find(|answer| answer.status != 200));
    }
    let limited = limited.expect("120 requests at once are over a rate of 40 a second");
    limited.problem(429, "rate-limited");
    assert_eq!(limited.header("retry-after"), Some("1"));
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_dawdle_are_let_go() {
    let gateway = start(settings()).await;
    let started = std::time::Instant::now();
    let mut dawdlers = Vec::new();
    for opening in ["", "GET / HT"] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        dawdlers.push(tokio::spawn(async move { read(&mut stream).await }));
    }
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/commands/flight/UA1/depart HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Length: 2\r\n{}{JSON}\r\n{{",
        bearer()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    read(&mut stream).await.problem(408, "request-timeout");
    for dawdler in dawdlers {
        dawdler.await.unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(20));
    gateway.shutdown.cancel();
    gateway.served.await.unwrap().unwrap();
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_is_under_way() {
    let gateway = start(settings()).await;
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/commands/flight/UA1/depart HTTP/1.1\r\nHost: x\r\n\
         Content-Length: 2\r\n{}{JSON}\r\n",
        bearer()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.shutdown.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let unready = gateway.send("GET", "/readyz", "", "").await;
    assert_eq!(unready.json()["missing"][0]["what"], "gateway");
    tokio::time::sleep(limits::DRAIN_NOTICE + Duration::from_millis(100)).await;
    assert!(TcpStream::connect(gateway.address).await.is_err(), "still listening");
    slow.write_all(b"{}").await.unwrap();
    assert_eq!(read(&mut slow).await.status, 200);
    gateway.served.await.unwrap().unwrap();
    gateway.servers.stop().await;
}
