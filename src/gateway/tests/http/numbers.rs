//! Numbers that clients choose, where they meet arithmetic.

use std::time::Duration;

use flexcore_eventstore::Expected;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    commit,
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

/// Every place where the API takes a number: a path, or a header of a command. `#` is the number.
const PATHS: [&str; 13] = [
    "/v1/events?after=1-0-#",
    "/v1/events?after=1-#-1",
    "/v1/aggregates/flight/UA1?at_version=#",
    "/v1/aggregates/flight/UA1/events?after_version=#",
    "/v1/aggregates/flight/UA1/events?limit=#",
    "/v1/query/flights?limit=#",
    "/v1/query/flights?delay=gte.#",
    "/v1/query/flights/explain?delay=gte.#",
    "/v1/query/flights/explain?limit=#",
    "/v1/queries/delays?least=#",
    "/v1/queries/delays/explain?least=#",
    "/v1/query/flights?min_position=1-0-#&wait_ms=1",
    "/v1/query/flights?min_position=1-0-1&wait_ms=#",
];
const HEADERS: [(&str, &str); 10] = [
    ("/v1/events", "Last-Event-ID: 1-0-#"),
    ("/v1/aggregates/flight/UA1", "If-None-Match: \"#\""),
    ("/v1/aggregates/flight/UA1", "Flexcore-Timeout-Ms: #"),
    ("/v1/query/flights", "Flexcore-Timeout-Ms: #"),
    ("/v1/queries/delays", "Flexcore-Timeout-Ms: #"),
    ("/v1/commands/c-1?aggregate=flight&id=UA1", "Flexcore-Timeout-Ms: #"),
    ("/v1/commands/flight/UA1/depart", "Prefer: respond-async, wait=#"),
    ("/v1/commands/flight/UA1/conflict", "If-Match: \"#\""),
    ("/v1/commands/flight/UA1/conflict", "Prefer: wait=#"),
    ("/v1/commands/flight/UA1/conflict", "Flexcore-Timeout-Ms: #"),
];

/// The status of the answer; 0 when the gateway hung up, as it does when a request panics.
async fn status(gateway: &Gateway, path: &str, header: &str) -> u16 {
    let command = path.starts_with("/v1/commands/flight/");
    let (method, body) = if command { ("POST", "{}") } else { ("GET", "") };
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
    let mut wrong = Vec::new();
    for number in NUMBERS {
        for path in PATHS {
            let path = path.replace('#', number);
            let status = status(&gateway, &path, "").await;
            if !is_answer(number, status) {
                wrong.push(format!("{status} to {path}"));
            }
        }
        for (path, header) in HEADERS {
            let header = format!("{}\r\n", header.replace('#', number));
            let status = status(&gateway, path, &header).await;
            if !is_answer(number, status) {
                wrong.push(format!("{status} to {path} with {header:?}"));
            }
        }
    }
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
