//! Commands over HTTP: answers, repetitions and refusals, each refusal with a problem document that
//! gives advice.

use serde_json::{Value, json};

use crate::support::{Dev, Http, eventually, http::raw};

const OPEN: &str = r#"{"owner":"Ann","team":"red"}"#;
const ONE: &str = r#"{"amount":1}"#;

/// The events of an account; none when nothing was ever recorded.
async fn events(http: &Http, id: &str) -> Vec<Value> {
    let answer = http.get(&format!("/v1/aggregates/account/{id}/events?limit=1000")).await;
    match answer.status {
        404 => Vec::new(),
        _ => answer.ok().as_array().unwrap().clone(),
    }
}

#[tokio::test]
async fn an_accepted_command_has_a_version_a_position_and_a_cloud_event() {
    let http = Dev::shared().http("accepted");
    let answer = http.command("a-1", "open", &[("idempotency-key", "\"k-1\"")], OPEN).await;
    let body = answer.ok();
    assert_eq!((&body["version"], &body["replayed"]), (&json!(1), &json!(false)));
    assert_eq!(body["command_id"], json!("k-1"));
    assert_eq!((answer.header("etag"), answer.header("idempotency-key")), ("\"1\"", "k-1"));
    let position: flexcore_domain::Position = body["position"].as_str().unwrap().parse().unwrap();
    assert!(position.sequence > 0);
    let answer = http.command("a-1", "split", &[], r#"{"parts":3}"#).await;
    assert_eq!(answer.ok()["version"], json!(4), "one command, three events");
    let answer = http.command("a-1", "split", &[], r#"{"parts":0}"#).await;
    let body = answer.ok();
    assert_eq!(
        (&body["version"], &body["position"]),
        (&json!(4), &Value::Null),
        "nothing to record"
    );
    let events = events(&http, "a-1").await;
    assert_eq!(events.len(), 4);
    for (version, event) in (1..).zip(&events) {
        assert_eq!(event["specversion"], json!("1.0"));
        assert_eq!(event["sequence"], json!(version));
        assert_eq!((&event["subject"], &event["tenant"]), (&json!("a-1"), &json!("accepted")));
    }
    assert_eq!(events[0]["type"], json!("account.opened"));
    assert_eq!(events[0]["commandid"], json!("k-1"));
    assert_eq!(events[0]["data"]["owner"], json!("Ann"));
    let of_split: Vec<&Value> = events[1..].iter().map(|event| &event["commandid"]).collect();
    assert!(of_split.iter().all(|id| *id == of_split[0]) && of_split[0] != &json!("k-1"));
    let state = http.get("/v1/aggregates/account/a-1").await;
    assert_eq!(state.header("etag"), "\"4\"");
    assert_eq!(state.ok()["state"]["balance"], json!(3));
    let before = http.get("/v1/aggregates/account/a-1?at_version=2").await.ok();
    assert_eq!((&before["version"], &before["state"]["balance"]), (&json!(2), &json!(1)));
    http.get("/v1/aggregates/account/none").await.problem(404, "no-such-aggregate");
}

#[tokio::test]
async fn the_same_key_and_body_take_effect_once_and_another_body_is_refused() {
    let http = Dev::shared().http("repeated");
    http.command("a-1", "open", &[], OPEN).await.ok();
    let key = [("idempotency-key", "pay-1")];
    let first = http.command("a-1", "deposit", &key, ONE).await.ok();
    // Something else happens in between.
    http.command("a-1", "deposit", &[], ONE).await.ok();
    let again = http.command("a-1", "deposit", &key, ONE).await;
    assert_eq!(again.header("etag"), "\"2\"", "what happened then");
    let mut replayed = first.clone();
    replayed["replayed"] = json!(true);
    assert_eq!(again.ok(), replayed);
    // Clients serialise anew when they repeat.
    for way in [r#" { "amount" : 1 } "#, r#"{"\u0061mount":1.0}"#, r#"{"amount":10e-1}"#] {
        assert_eq!(http.command("a-1", "deposit", &key, way).await.ok(), replayed, "{way}");
    }
    for (command, body) in [("deposit", r#"{"amount":2}"#), ("withdraw", ONE)] {
        let answer = http.command("a-1", command, &key, body).await;
        answer.problem(422, "idempotency-key-reused");
    }
    assert_eq!(events(&http, "a-1").await.len(), 3);
    // The key is the aggregate's own, and the tenant's.
    http.command("a-2", "open", &key, OPEN).await.ok();
    let other = Dev::shared().http("repeated_2");
    assert_eq!(other.command("a-1", "open", &key, OPEN).await.ok()["replayed"], json!(false));
    let concurrent = (0..16).map(|_| async {
        let key = [("idempotency-key", "pay-2")];
        http.another().command("a-1", "deposit", &key, ONE).await.ok()
    });
    let answers = futures::future::join_all(concurrent).await;
    let fresh = answers.iter().filter(|answer| answer["replayed"] == json!(false)).count();
    assert_eq!(fresh, 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer["version"] == json!(4)), "{answers:?}");
}

#[tokio::test]
async fn if_match_is_held_to() {
    let http = Dev::shared().http("matched");
    let with = |tag: &'static str| [("if-match", tag)];
    http.command("a-1", "open", &with("\"0\""), OPEN).await.ok();
    let problem = http.command("a-1", "open", &with("\"0\""), OPEN).await;
    assert_eq!(problem.problem(412, "version-mismatch")["version"], json!(1));
    http.command("a-1", "deposit", &with("\"1\""), ONE).await.ok();
    for wrong in ["\"1\"", "\"3\"", "\"18446744073709551615\""] {
        let answer = http.command("a-1", "deposit", &with(wrong), ONE).await;
        assert_eq!(answer.problem(412, "version-mismatch")["version"], json!(2));
    }
    let malformed = [
        "2",
        "\"2",
        "W/\"2\"",
        "*",
        "\"2\", \"3\"",
        "\"\"",
        "\"-1\"",
        "\"02\"",
        "\"two\"",
        "\"2 \"",
    ];
    for tag in malformed {
        let answer = http.command("a-1", "deposit", &with(tag), ONE).await;
        answer.problem(400, "invalid-header");
    }
    let twice = [("if-match", "\"2\""), ("if-match", "\"2\"")];
    http.command("a-1", "deposit", &twice, ONE).await.problem(400, "invalid-header");
    let racing = (0..8).map(|_| async {
        http.another().command("a-1", "deposit", &with("\"2\""), ONE).await.status
    });
    let mut statuses = futures::future::join_all(racing).await;
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412, 412, 412, 412, 412, 412], "one of them wins");
    assert_eq!(events(&http, "a-1").await.len(), 3);
}

#[tokio::test]
async fn an_asynchronous_command_is_found_where_the_answer_says() {
    let http = Dev::shared().http("later");
    let prefer = [("prefer", "respond-async"), ("idempotency-key", "later-1")];
    let answer = http.command("a-1", "open", &prefer, OPEN).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.header("preference-applied"), "respond-async");
    assert_eq!((answer.header("retry-after"), answer.header("idempotency-key")), ("1", "later-1"));
    let location = answer.header("location").to_owned();
    let outcome = eventually("the outcome", async || {
        let answer = http.get(&location).await;
        match answer.status {
            200 => Ok(answer.json()),
            _ => Err(format!("{answer:?}")),
        }
    })
    .await;
    assert_eq!((&outcome["status"], &outcome["version"]), (&json!("accepted"), &json!(1)));
    assert_eq!(outcome["command_id"], json!("later-1"));
    // Repeated, it is recognised.
    let prefer = [("prefer", "respond-async, wait=10"), ("idempotency-key", "later-1")];
    let again = http.command("a-1", "open", &prefer, OPEN).await;
    assert_eq!((again.status, &again.json()["version"]), (200, &json!(1)), "{again:?}");
    // A rejection is an outcome.
    let prefer = [("prefer", "respond-async, wait=10"), ("idempotency-key", "later-2")];
    let rejected = http.command("a-1", "withdraw", &prefer, ONE).await;
    assert_eq!((rejected.status, &rejected.json()["code"]), (200, &json!("too_little")));
    assert_eq!(events(&http, "a-1").await.len(), 1);
    let never = http.get("/v1/commands/never-sent?aggregate=account&id=a-1").await;
    never.problem(404, "no-outcome");
    // A header that means nothing is refused at once.
    http.command("a-1", "nothing", &prefer, "{}").await.problem(404, "unknown-command");
    let path = "/v1/commands/nobody/a-1/open";
    let headers = [("content-type", "application/json"), ("prefer", "respond-async")];
    http.send("POST", path, &headers, OPEN).await.problem(404, "unknown-aggregate");
}

#[tokio::test]
async fn refusals_say_what_there_is_and_which_field_is_wrong() {
    let http = Dev::shared().http("refused");
    let json_type = [("content-type", "application/json")];
    let answer = http.send("POST", "/v1/commands/acount/a-1/open", &json_type, OPEN).await;
    let known = answer.problem(404, "unknown-aggregate")["known"].clone();
    assert!(known.as_array().unwrap().contains(&json!("account")), "{known}");
    let answer = http.command("a-1", "opne", &[], OPEN).await;
    let known = answer.problem(404, "unknown-command")["known"].clone();
    assert!(known.as_array().unwrap().contains(&json!("deposit")), "{known}");
    let answer = http.command("a-1", "deposit", &[], ONE).await;
    assert_eq!(answer.problem(409, "rejected")["code"], json!("not_open"));
    for (command, body, field) in [
        ("deposit", "{}", ""),
        ("deposit", r#"{"amount":0}"#, "/amount"),
        ("deposit", r#"{"amount":"1"}"#, "/amount"),
        ("deposit", r#"{"amount":1.5}"#, "/amount"),
        ("deposit", r#"{"amount":1e300}"#, "/amount"),
        ("deposit", r#"{"amount":1,"note":7}"#, "/note"),
        ("deposit", r#"{"amount":1,"more":1}"#, ""),
        ("deposit", "[1]", ""),
        ("deposit", "null", ""),
        ("open", r#"{"owner":"","team":"red"}"#, "/owner"),
        ("open", r#"{"owner":"Ann","team":"Red Team"}"#, "/team"),
        ("open", r#"{"owner":"Ann","team":"red","since":"yesterday"}"#, "/since"),
    ] {
        let answer = http.command("a-1", command, &[], body).await;
        let errors = answer.problem(422, "invalid-payload")["errors"].clone();
        let errors = errors.as_array().unwrap();
        let found = errors.iter().find(|error| error["field"] == json!(field));
        let found = found.unwrap_or_else(|| panic!("{body}: {errors:?}"));
        assert!(found["reason"].as_str().is_some_and(|reason| reason.len() > 5), "{body}: {found}");
    }
    assert!(events(&http, "a-1").await.is_empty(), "a refusal leaves nothing");
}

#[tokio::test]
async fn json_that_is_none_is_refused() {
    let http = Dev::shared().http("malformed");
    http.command("a-1", "open", &[], OPEN).await.ok();
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_objects = r#"{"amount":"#.repeat(40) + "1" + &"}".repeat(40);
    for body in [
        "",
        "{",
        "nonsense",
        r#"{"amount":1}{"amount":1}"#,
        r#"{"amount":1,}"#,
        r#"{"amount":01}"#,
        r#"{"amount":NaN}"#,
        r#"{'amount':1}"#,
        "{\"amount\":1}\0",
        "{\"note\":\"\u{1}\",\"amount\":1}",
        r#"{"amount":1,"amount":2}"#,
        r#"{"amount":1,"\u0061mount":2}"#,
        r#"{"amount":1,"note":"\ud800"}"#,
        r#"{"amount":9007199254740993}"#,
        deep.as_str(),
        deep_objects.as_str(),
    ] {
        let answer = http.command("a-1", "deposit", &[], body.to_owned()).await;
        let problem = answer.problem(400, "malformed-json");
        assert!(problem["errors"].as_array().is_some_and(|e| !e.is_empty()), "{problem}");
    }
    let not_text =
        http.command("a-1", "deposit", &[], b"{\"amount\":1,\"note\":\"\xff\"}".to_vec());
    not_text.await.problem(400, "malformed-json");
    let huge = format!(r#"{{"amount":1,"note":"{}"}}"#, "x".repeat(1 << 20));
    let head = format!(
        "POST /v1/commands/account/a-1/deposit HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        http.authority(),
        http.token(),
        huge.len()
    );
    let answer = raw(http.authority(), (head + &huge).as_bytes()).await;
    answer.problem(413, "payload-too-large");
    let path = "/v1/commands/account/a-1/deposit";
    for media in ["text/plain", "application/xml", "application/json; charset=utf-16", ""] {
        let answer = http.send("POST", path, &[("content-type", media)], ONE).await;
        answer.problem(415, "unsupported-media-type");
    }
    let packed = [("content-type", "application/json"), ("content-encoding", "gzip")];
    http.send("POST", path, &packed, ONE).await.problem(415, "unsupported-media-type");
    for key in ["", "a b", "a.b", "ä", &"k".repeat(129)] {
        let answer = http.command("a-1", "deposit", &[("idempotency-key", key)], ONE).await;
        answer.problem(400, "invalid-header");
    }
    assert_eq!(events(&http, "a-1").await.len(), 1, "only the opening");
}

#[tokio::test]
async fn hostile_names_reach_nothing() {
    let dev = Dev::shared();
    let http = dev.http("hostile");
    let long = "a".repeat(129);
    for id in [
        "a.b",
        "a%2Eb",
        "*",
        "%2A",
        "%3E",
        "a%20b",
        "%00",
        "a%00b",
        "%0D%0A",
        "a%0d%0ab",
        "%2F",
        "..%2F..",
        "%2e%2e",
        "%25",
        "%252e",
        "a%ff",
        "%C3%A4",
        "a;b",
        "a'b",
        "%22",
        long.as_str(),
    ] {
        for path in [
            format!("/v1/commands/account/{id}/open"),
            format!("/v1/commands/{id}/a-1/open"),
            format!("/v1/commands/account/a-1/{id}"),
        ] {
            let headers = [("content-type", "application/json")];
            let answer = http.send("POST", &path, &headers, OPEN).await;
            answer.problem(400, "invalid-name");
        }
        for path in [
            format!("/v1/aggregates/account/{id}"),
            format!("/v1/aggregates/account/{id}/events"),
            format!("/v1/query/{id}"),
            format!("/v1/queries/{id}"),
        ] {
            http.get(&path).await.problem(400, "invalid-name");
        }
    }
    for name in ["Account", "1account", "_account", &"a".repeat(41)] {
        let path = format!("/v1/aggregates/{name}/a-1");
        http.get(&path).await.problem(400, "invalid-name");
    }
    assert_eq!(http.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn hostile_bytes_get_an_answer_or_nothing() {
    let dev = Dev::shared();
    let http = dev.http("bytes");
    let (host, token) = (http.authority(), http.token());
    let head = |path: &str, more: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\nconnection: close\r\n{more}content-length: 12\r\n\r\n\
             {{\"amount\":1}}"
        )
    };
    let post = async |path: &str, more: &str| raw(host, head(path, more).as_bytes()).await;
    let long = format!("/v1/commands/account/{}/open", "a".repeat(1 << 20));
    let answer = post(&long, "").await;
    assert!([414, 431].contains(&answer.status), "{answer:?}");
    let header = format!("x-long: {}\r\n", "a".repeat(1 << 20));
    let answer = post("/v1/commands/account/a-1/open", &header).await;
    assert_eq!(answer.status, 431, "{answer:?}");
    // Real spaces, line ends and NUL in the request line end the request; nobody is called.
    for path in [
        "/v1/commands/account/a b/open",
        "/v1/aggregates/account/\0",
        "/v1/aggregates/account/>",
        "/\r\n/v1/events",
    ] {
        let answer = post(path, "").await;
        assert_eq!(answer.status, 400, "{path:?}: {answer:?}");
    }
    let smuggled = "transfer-encoding: chunked\r\n";
    let answer = post("/v1/commands/account/a-1/deposit", smuggled).await;
    assert!([400, 404, 409].contains(&answer.status), "{answer:?}");
    assert!(events(&http, "a-1").await.is_empty());
    assert_eq!(http.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn without_a_good_token_nothing_is_told() {
    let dev = Dev::shared();
    let good = dev.http("tokens");
    good.command("a-1", "open", &[], OPEN).await.ok();
    let [head, claims, signature] = good.token().split('.').collect::<Vec<_>>()[..] else {
        panic!("a token has three parts")
    };
    let other = dev.http("others");
    let stolen_claims = other.token().split('.').nth(1).unwrap();
    let mut forged: Vec<String> = vec![
        String::new(),
        "x".to_owned(),
        format!("{head}.{claims}"),
        format!("{head}.{claims}."),
        format!("{head}.{stolen_claims}.{signature}"),
        format!("eyJhbGciOiJub25lIn0.{claims}."),
        format!("{head}.{claims}.{}", &signature[..signature.len() - 4]),
        "a".repeat(20_000),
    ];
    forged.extend(["tokens", "a b"].map(str::to_owned));
    for token in forged {
        let header = format!("Bearer {token}");
        let bare = Http::new(&dev.ready.http, "");
        for path in ["/v1/aggregates/account/a-1", "/v1/query/accounts", "/v1/nothing"] {
            let headers = [("authorization", header.as_str())];
            let answer = bare.send("GET", path, &headers, "").await;
            answer.problem(401, "unauthenticated");
            assert!(answer.header("www-authenticate").starts_with("Bearer"));
        }
    }
    let bare = Http::new(&dev.ready.http, "");
    bare.command("a-1", "deposit", &[], ONE).await.problem(401, "unauthenticated");
    let short = dev.succeed(&["token", "--tenant", "tokens", "--lifetime", "1"]);
    let short = Http::new(&dev.ready.http, short.trim());
    eventually("the token to expire", async || {
        match short.get("/v1/aggregates/account/a-1").await.status {
            401 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(events(&good, "a-1").await.len(), 1);
    let bad = dev.run(&["token", "--tenant", "A.B"]);
    assert_eq!(bad.status.code(), Some(2), "a usage error");
}

#[tokio::test]
async fn other_paths_and_methods_are_problems_too() {
    let http = Dev::shared().http("paths");
    http.get("/v1/nothing").await.problem(404, "not-found");
    http.get("/nothing").await.problem(404, "not-found");
    let answer = http.send("DELETE", "/v1/aggregates/account/a-1", &[], "").await;
    answer.problem(405, "method-not-allowed");
    assert!(answer.header("allow").contains("GET"), "{answer:?}");
    for path in [
        "/v1/aggregates/account/a-1?at_version=x",
        "/v1/aggregates/account/a-1?at_version=-1",
        "/v1/aggregates/account/a-1?nothing=1",
        "/v1/aggregates/account/a-1?at_version=1&at_version=2",
        "/v1/aggregates/account/a-1?%ff=1",
        "/v1/aggregates/account/a-1/events?limit=0",
        "/v1/aggregates/account/a-1/events?limit=1001",
        "/v1/commands/k-1",
        "/v1/commands/k-1?aggregate=account",
    ] {
        http.get(path).await.problem(400, "invalid-parameter");
    }
    for path in ["/v1/commands/k-1?aggregate=account&id=a.b", "/v1/commands/a.b?aggregate=a&id=b"] {
        http.get(path).await.problem(400, "invalid-name");
    }
}
