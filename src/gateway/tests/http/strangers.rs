//! Strangers: a flood of bad tokens, and those who must not notice it.

use std::{
    num::NonZeroU32,
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flexcore_gateway::{Settings, limits};
use futures::future::join_all;
use http_body_util::Empty;
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::{Answer, Gateway, bearer, settings, start, token};

/// Strangers at once, each with a connection of its own.
const FLOOD: usize = 16;

fn authorization(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// A token that is as it should be, but for its signature.
fn forged() -> String {
    let good = token("acme", Duration::from_secs(600));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    authorization(&format!("{message}.{first}{}", &signature[1..]))
}

/// Asks with a bad token again and again, and keeps the answers that are not about it.
async fn floods(gateway: &Gateway, bad: &str, others: &Mutex<Vec<Answer>>) {
    loop {
        let answer = gateway.send("GET", "/v1/events", bad, "").await;
        if answer.status != 401 {
            others.lock().unwrap().push(answer);
        }
    }
}

/// A tenant with a token that the gateway knows, one with new ones each time, whoever looks how the gateway
/// is, and services that look for its keys.
async fn are_answered(gateway: &Gateway) {
    for _ in 0..30 {
        let answer = gateway.command("depart", "", "{}").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let new = authorization(&token("other", Duration::from_secs(600)));
        let (asked, path) = (Instant::now(), "/v1/commands/c?aggregate=flight&id=ready");
        let answer = gateway.send("GET", path, &new, "").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        for always in ["/livez", "/readyz", "/metrics", "/.well-known/jwks.json"] {
            let answer = gateway.send("GET", always, "", "").await;
            assert_eq!(answer.status, 200, "{always}: {answer:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bad_tokens_is_told_so_and_nobody_else_is_refused() {
    let strangers_per_second = NonZeroU32::new(20).unwrap();
    let gateway = start(Settings { strangers_per_second, ..settings() }).await;
    let bad = forged();
    // Somebody who mistyped.
    let mistyped = gateway.send("GET", "/v1/events", &bad, "").await;
    let told = mistyped.problem(401, "unauthenticated");
    assert_eq!(told["detail"], "the token's signature is wrong");
    let refused = Mutex::default();
    let flood = join_all((0..FLOOD).map(|_| floods(&gateway, &bad, &refused)));
    tokio::select! {
        _ = flood => unreachable!("it goes on"),
        () = are_answered(&gateway) => {}
    }
    let refused = refused.into_inner().unwrap();
    assert!(!refused.is_empty(), "20 a second is the rate");
    for answer in refused {
        answer.problem(429, "rate-limited");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_missing_tokens_count_as_strangers_do() {
    let strangers_per_second = NonZeroU32::new(20).unwrap();
    let gateway = start(Settings { strangers_per_second, ..settings() }).await;
    let twice = bearer().repeat(2);
    let long = format!("/{}", "a".repeat(limits::URI_BYTES_MAX));
    for (path, headers) in [
        ("/openapi.json", ""),
        ("/v1/events", ""),
        ("/nothing", ""),
        // These were told so as fast as they could ask.
        ("/v1/events", twice.as_str()),
        (long.as_str(), ""),
    ] {
        let asked = (0..60).map(|_| gateway.send("GET", path, headers, ""));
        let answers = join_all(asked).await;
        let limited = answers.iter().filter(|answer| answer.status == 429);
        assert!(limited.count() > 0, "{path:.20}: 60 at once are over a rate of 20 a second");
    }
    // One whose time is over is told so, whatever strangers do.
    let brief = authorization(&token("acme", Duration::from_secs(1)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = (0..60).map(|_| gateway.send("GET", "/v1/events", &brief, ""));
    for answer in join_all(asked).await {
        let told = answer.problem(401, "unauthenticated");
        assert_eq!(told["detail"], "the token has expired");
    }
    gateway.servers.stop().await;
}

/// Every request without a place was refused as fast as it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_http2_that_asks_on_without_a_place_has_to_leave() {
    let strangers_per_second = NonZeroU32::new(1).unwrap();
    let few = Settings { strangers_per_second, strangers_max: 4, ..settings() };
    let gateway = start(few).await;
    let stream = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let asked = (0..32).map(|_| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get("http://x/v1/events").body(Empty::<Bytes>::new()).unwrap();
            // Those that it could not send any more have no answer.
            sender.send_request(request).await.map_or(0, |answer| answer.status().as_u16())
        }
    });
    let told = join_all(asked).await;
    assert!(told.contains(&429) && told.contains(&503), "{told:?}");
    let ended = tokio::time::timeout(Duration::from_secs(10), connection).await;
    assert!(ended.is_ok(), "it has to leave");
    drop(sender);
    gateway.servers.stop().await;
}
