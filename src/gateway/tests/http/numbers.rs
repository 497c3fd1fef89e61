//! Numbers that clients choose, where they meet arithmetic.

use std::{collections::BTreeSet, time::Duration};

use flexcore_eventstore::Expected;
use futures::{StreamExt as _, stream};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    commit, plugins,
    support::{Gateway, bearer, settings, start},
    until,
};

/// The end of counting, one more and one less; and texts that are no number.
const NUMBERS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "+1",
    "255",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775806",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551614",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999999999999",
    "1e308",
    "NaN",
    "%D9%A1",
];

/// A place for a number in each kind of text: `#` stands for it. The list has every text that the API's
/// document names, also those with no number in them.
const TEXTS: &[(&str, &[&str])] = &[
    ("after", POSITIONS),
    ("Last-Event-ID", POSITIONS),
    ("min_position", POSITIONS),
    // The numbers in it are tried where it is read, with its rows.
    ("cursor", &["#"]),
    ("If-Match", &["\"#\""]),
    ("If-None-Match", &["\"#\"", "W/\"#\""]),
    ("Prefer", &["wait=#", "respond-async, wait=#"]),
    ("Idempotency-Key", &[]),
    ("Flexcore-Correlation-Id", &[]),
    ("Flexcore-Causation-Id", &[]),
    ("fields", &[]),
    ("sort", &[]),
    ("force", &[]),
];
const POSITIONS: &[&str] = &["1-0-#", "1-#-1"];
/// Parts of paths and parameters that name something, and what they name here.
const NAMES: &[(&str, &str)] = &[
    ("aggregate", "flight"),
    ("id", "UA1"),
    ("command_id", "c-1"),
    ("read_model", "flights"),
    ("name", "delays"),
    ("code", "not-found"),
    ("plugin", "greeter"),
    ("function", "greet"),
];
/// What goes with a parameter: a wait needs a position, and a position a short wait.
const BESIDE: &[(&str, &str)] = &[("min_position", "wait_ms=1"), ("wait_ms", "min_position=1-0-1")];

/// Where numbers stand in a parameter's values.
fn texts(parameter: &Value) -> &'static [&'static str] {
    let is_number = |schema: &Value| schema["type"] == "integer" || schema["type"] == "number";
    if is_number(&parameter["schema"]) {
        return &["#"];
    }
    // A filter of a read model is a text whatever its column has.
    let column = &parameter["x-column-type"];
    if column.is_object() {
        return if is_number(column) { &["#", "gte.#", "in.1,#"] } else { &[] };
    }
    let name = parameter["name"].as_str().unwrap();
    if NAMES.iter().any(|(known, _)| *known == name) {
        return &[];
    }
    let known = TEXTS.iter().find(|(known, _)| *known == name);
    known.unwrap_or_else(|| panic!("{name}: say in TEXTS where a number stands in it")).1
}

/// The parameters of a path, as the document has them.
fn parameters<'a>(document: &'a Value, path: &str) -> Vec<&'a Value> {
    let operations = document["paths"][path].as_object().into_iter().flat_map(Map::values);
    let all = operations.filter_map(|operation| operation["parameters"].as_array()).flatten();
    let whole = |parameter: &'a Value| match parameter["$ref"].as_str() {
        Some(place) => document.pointer(place.trim_start_matches('#')).unwrap(),
        None => parameter,
    };
    all.map(whole).collect()
}

/// The path with names in it.
fn named(path: &str) -> String {
    let named = NAMES
        .iter()
        .fold(path.to_owned(), |path, (part, name)| path.replace(&format!("{{{part}}}"), name));
    assert!(!named.contains('{'), "{named}: say in NAMES what it names");
    named
}

/// What a request needs beside this parameter.
fn beside(all: &[&Value], name: &str) -> Vec<String> {
    let is_needed =
        |it: &Value| it["in"] == "query" && it["required"] == true && it["name"] != name;
    let with_value = |it: &Value| {
        let needed = it["name"].as_str().unwrap();
        let known = NAMES.iter().find(|(known, _)| *known == needed);
        format!("{needed}={}", known.map_or("1", |(_, value)| *value))
    };
    let needed = all.iter().filter(|it| is_needed(it)).map(|it| with_value(it));
    let beside = BESIDE.iter().filter(|(of, _)| *of == name).map(|(_, it)| (*it).to_owned());
    needed.chain(beside).collect()
}

/// Every place where the API takes a number, by its document: a path with its query, and a header.
fn places(document: &Value) -> BTreeSet<(String, String)> {
    let mut places = BTreeSet::new();
    for path in document["paths"].as_object().unwrap().keys() {
        let (mut all, path) = (parameters(document, path), named(path));
        // It takes what the query takes that it explains.
        if let Some(explained) = path.strip_suffix("/explain") {
            all.extend(parameters(document, explained));
        }
        for parameter in &all {
            let name = parameter["name"].as_str().unwrap();
            for text in texts(parameter) {
                let (mut query, mut header) = (beside(&all, name), String::new());
                match parameter["in"].as_str() {
                    Some("query") => query.insert(0, format!("{name}={text}")),
                    Some("header") => header = format!("{name}: {text}"),
                    place => panic!("{name}: a number in {place:?}"),
                }
                let query = query.join("&");
                let mark = if query.is_empty() { "" } else { "?" };
                places.insert((format!("{path}{mark}{query}"), header));
            }
        }
    }
    places
}

#[test]
fn a_new_number_of_the_document_has_a_place() {
    let document = json!({
        "paths": {
            "/v1/new/{id}": {"get": {"parameters": [
                {"$ref": "#/components/parameters/id"},
                {"name": "new", "in": "query", "schema": {"type": "integer"}},
                {"name": "aggregate", "in": "query", "required": true, "schema": {"type": "string"}},
                {"name": "New", "in": "header", "schema": {"type": "number"}},
            ]}},
            "/v1/query/flights": {"get": {"parameters": [
                {"name": "id", "in": "query", "x-column-type": {"type": "string"}},
                {"name": "min_position", "in": "query", "schema": {"type": "string"}},
            ]}},
            "/v1/query/{read_model}/explain": {"get": {}},
            "/livez": {"get": {}},
        },
        "components": {"parameters": {"id": {"name": "id", "in": "path", "required": true}}},
    });
    let found = places(&document);
    let found: Vec<_> = found.iter().map(|(path, header)| format!("{path} {header}")).collect();
    let expected = [
        "/v1/new/UA1?aggregate=flight New: #",
        "/v1/new/UA1?new=#&aggregate=flight ",
        "/v1/query/flights/explain?min_position=1-#-1&wait_ms=1 ",
        "/v1/query/flights/explain?min_position=1-0-#&wait_ms=1 ",
        "/v1/query/flights?min_position=1-#-1&wait_ms=1 ",
        "/v1/query/flights?min_position=1-0-#&wait_ms=1 ",
    ];
    assert_eq!(found, expected);
    let unknown = json!({"name": "new", "in": "query", "schema": {"type": "string"}});
    std::panic::catch_unwind(|| texts(&unknown)).expect_err("nobody says if it has a number");
    // The example application's contract has no text that is not said either.
    let contract = include_str!("../../../../schemas/openapi.json");
    let found = places(&serde_json::from_str(contract).unwrap());
    assert!(found.len() > 100, "{found:#?}");
}

/// The status of the answer; 0 when the gateway hung up, as it does when a request panics.
async fn status(gateway: &Gateway, path: &str, header: &str) -> u16 {
    let done = ["/v1/commands/flight/", "/v1/plugins/greeter/"];
    let is_done = done.iter().any(|prefix| path.starts_with(prefix));
    let (method, body) = if is_done { ("POST", "{}") } else { ("GET", "") };
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{}{header}\r\n{body}",
        body.len(),
        bearer()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    let read = tokio::time::timeout(Duration::from_secs(40), stream.read_exact(&mut head));
    if read.await.expect("an answer in time").is_err() {
        return 0;
    }
    String::from_utf8_lossy(&head[9..]).parse().unwrap()
}

/// Whether an answer to this number is one. Without Postgres a query that is well formed is answered 503,
/// or has waited in vain. A place that did not take `1` would not be one that takes a number.
fn is_answer(number: &str, status: u16) -> bool {
    let takes = number != "1" || !matches!(status, 400 | 404 | 422);
    takes && matches!(status, 200..=499 | 503 | 504)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_that_a_client_sends_is_more_than_a_bad_request() {
    let gateway = start(settings()).await;
    gateway.store.append(&commit("acme", "UA1", 1..=2), Expected::default()).await.unwrap();
    plugins::install(&gateway, "greeter", "").await;
    // As schemas/openapi.json, of the application that is deployed here.
    let places = places(&gateway.get("/openapi.json").await.json());
    assert!(places.len() > 40, "{places:#?}");
    let mut asked = Vec::new();
    for number in NUMBERS {
        for (path, header) in &places {
            let (path, header) = (path.replace('#', number), header.replace('#', number));
            let gateway = &gateway;
            asked.push(async move {
                let line = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
                let status = status(gateway, &path, &line).await;
                (!is_answer(number, status)).then(|| format!("{status} to {path} with {header:?}"))
            });
        }
    }
    // Some have to wait, as for a worker that is not there.
    let told = stream::iter(asked).buffer_unordered(8).collect::<Vec<_>>().await;
    let wrong: Vec<String> = told.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    gateway.servers.stop().await;
}

/// A client that is cut off resumes behind what it has been spared, not at its last event.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_how_far_it_is_when_nothing_in_it_is_for_its_client() {
    let gateway = start(settings()).await;
    let mut last = Expected::default();
    for version in 1..=1_100 {
        let next = commit("acme", "UA1", version..=version);
        let appended = gateway.store.append(&next, last).await.unwrap();
        last = Expected { sequence: appended.sequence, hash: appended.hash };
    }
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "GET /v1/events?aggregate=boat&after=1-0-1 HTTP/1.1\r\nHost: x\r\n{}\r\n",
        bearer()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = String::new();
    until(&mut stream, &mut seen, "retry: 1000\nid: 1-0-1\n\n").await;
    seen.clear();
    until(&mut stream, &mut seen, "\n\n").await;
    let id = seen.lines().find_map(|line| line.strip_prefix("id: ")).unwrap();
    let (_, sequence) = id.rsplit_once('-').unwrap();
    assert!(sequence.parse::<u64>().unwrap() >= 1_001, "{seen}");
    assert!(!seen.contains("data:") && !seen.contains("event:"), "{seen}");
    gateway.servers.stop().await;
}
