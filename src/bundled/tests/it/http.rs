//! `http` and real servers.

use std::{
    future::ready,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::Request,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::map_request,
    response::{IntoResponse as _, Redirect, Response},
    routing::any,
};
use flexcore_sdk::testing::Running;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{kit, tls};

const LOOPBACK: &str = "127.0.0.1/32";
/// Bytes of the largest body of an answer.
const LARGEST: usize = 640 * 1024;

/// What was asked, and in which words.
async fn echo(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let told = Json(json!({
        "method": method.as_str(),
        "uri": uri.to_string(),
        "host": header("host"),
        "authorization": header("authorization"),
        "team": header("x-team"),
        "own": header("x-own"),
        "key": header("idempotency-key"),
        "type": header("content-type"),
        "body": String::from_utf8_lossy(&body),
    }));
    (StatusCode::CREATED, [(header::SET_COOKIE, "a=1"), (header::ETAG, "\"x\"")], told)
        .into_response()
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_secs(60)).await;
    "late"
}

/// A server on loopback, and a count of the requests that it has had.
async fn server(routes: Router) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let count = move |request: Request| {
        counted.fetch_add(1, Ordering::Relaxed);
        ready(request)
    };
    let routes = routes.layer(map_request(count));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (address, asked)
}

async fn started(networks: &[&str], configuration: Value) -> Running {
    let plugin = kit("http", networks).start().await;
    plugin.configure(&configuration).await.unwrap();
    plugin
}

fn open() -> Value {
    json!({"hosts": ["*:*"], "networks": [LOOPBACK]})
}

#[tokio::test]
async fn it_asks_as_told_and_tells_the_answer() {
    let (address, _) = server(Router::new().fallback(any(echo))).await;
    let plugin = started(
        &[LOOPBACK],
        json!({
            "hosts": [format!("127.0.0.1:{}", address.port())],
            "headers": {"X-Team": "flights"},
            "secrets": [{
                "host": "127.0.0.1:*", "header": "Authorization", "value": "s3cr3t", "plain": true,
            }],
            "networks": [LOOPBACK],
        }),
    )
    .await;
    let url = format!("http://{address}/a%20b?c=d");
    let input = json!({
        "method": "PUT",
        "url": url,
        "headers": {"X-Own": "mine", "Authorization": "mine"},
        "json": {"n": 1},
    });
    let answer = plugin.call("fetch", input).await.unwrap();
    assert_eq!((&answer["status"], &answer["url"]), (&json!(201), &json!(url)));
    assert_eq!(answer["headers"]["set-cookie"], "a=1");
    let expected = json!({
        "method": "PUT",
        "uri": "/a%20b?c=d",
        "host": address.to_string(),
        "authorization": "s3cr3t",
        "team": "flights",
        "own": "mine",
        "key": null,
        "type": "application/json",
        "body": r#"{"n":1}"#,
    });
    assert_eq!(answer["json"], expected);
    let head = plugin.call("fetch", json!({"method": "HEAD", "url": url})).await.unwrap();
    assert_eq!((&head["status"], &head["text"]), (&json!(201), &json!("")));
    let input = json!({"method": "POST", "url": url, "text": "hello"});
    let answer = plugin.call("send", input).await.unwrap();
    assert_eq!(answer["json"]["body"], "hello");
    assert!(answer["json"]["key"].as_str().unwrap().starts_with("test-"), "{answer}");
    let other = json!({"method": "GET", "url": "http://127.0.0.1:1/"});
    assert_eq!(plugin.call("fetch", other).await.unwrap_err().code, "not_allowed");
    plugin.stop().await;
}

#[tokio::test]
async fn however_an_inner_address_is_spelt_nobody_is_asked() {
    let (address, asked) = server(Router::new().fallback(any(echo))).await;
    let plugin = started(&[], json!({"hosts": ["*:*"]})).await;
    let port = address.port();
    for host in [
        "127.0.0.1",
        "127.1",
        "127.0.0.1.",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "2130706433",
        "%31%32%37.0.0.1",
        "①②⑦.⓪.⓪.①",
        "localhost",
        "LOCALHOST.",
        "0",
        "0.0.0.0",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fc00::1]",
        "169.254.169.254",
        "10.0.0.1",
        "100.64.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let input = json!({"method": "GET", "url": format!("http://{host}:{port}/")});
        let failure = plugin.call("fetch", input).await.unwrap_err();
        assert_eq!(
            (&*failure.code, failure.temporary),
            ("not_allowed", false),
            "{host}: {failure}"
        );
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let refused = plugin.configure(&open()).await.unwrap_err();
    assert_eq!(refused.code, "not_permitted");
    plugin.stop().await;
}

#[tokio::test]
async fn redirects_are_followed_when_asked_for_and_checked_each_time() {
    let (other, _) = server(Router::new().fallback(any(echo))).await;
    let there = format!("http://{other}/there");
    let inside = format!("http://127.0.0.2:{}/", other.port());
    let to = |url: String| any(move || ready(Redirect::temporary(&url).into_response()));
    let seen = there.clone();
    let routes = Router::new()
        .route("/away", to(there))
        .route("/inside", to(inside))
        .route("/round", to("/round".to_owned()))
        .route("/see", any(move || ready(Redirect::to(&seen).into_response())));
    let (address, asked) = server(routes).await;
    let plugin = started(&[LOOPBACK], open()).await;
    let input = |path: &str, redirects: u8| {
        json!({
            "method": "PUT",
            "url": format!("http://{address}{path}"),
            "headers": {"Authorization": "mine", "X-Own": "mine"},
            "text": "hello",
            "redirects": redirects,
        })
    };
    let answer = plugin.call("fetch", input("/away", 0)).await.unwrap();
    assert_eq!(answer["status"], 307);
    let answer = plugin.call("fetch", input("/away", 1)).await.unwrap();
    assert_eq!(answer["url"], format!("http://{other}/there"));
    let told = &answer["json"];
    assert_eq!((&told["method"], &told["body"]), (&json!("PUT"), &json!("hello")));
    assert_eq!((&told["authorization"], &told["own"]), (&Value::Null, &Value::Null));
    let answer = plugin.call("fetch", input("/see", 1)).await.unwrap();
    let told = &answer["json"];
    assert_eq!((&told["method"], &told["body"]), (&json!("GET"), &json!("")));
    let failure = plugin.call("fetch", input("/inside", 5)).await.unwrap_err();
    assert_eq!(failure.code, "not_allowed");
    // The first request was made.
    let failure = plugin.call("send", input("/inside", 5)).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("unknown_outcome", false));
    assert!(failure.message.contains("not_allowed"), "{failure}");
    asked.store(0, Ordering::Relaxed);
    let failure = plugin.call("fetch", input("/round", 3)).await.unwrap_err();
    assert_eq!(failure.code, "too_many_redirects");
    assert_eq!(asked.load(Ordering::Relaxed), 4);
    plugin.stop().await;
}

#[tokio::test]
async fn an_answer_has_a_size_and_a_time() {
    let large = || ready("x".repeat(LARGEST + 1));
    let largest = || ready("x".repeat(LARGEST));
    let quotes = || ready("\"".repeat(LARGEST));
    let routes = Router::new()
        .route("/large", any(large))
        .route("/largest", any(largest))
        .route("/quotes", any(quotes))
        .route("/slow", any(slow));
    let (address, asked) = server(routes).await;
    let plugin = started(&[LOOPBACK], open()).await;
    let input = |method: &str, path: &str| {
        let url = format!("http://{address}{path}");
        json!({"method": method, "url": url})
    };
    let failure = plugin.call("fetch", input("GET", "/large")).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("too_large", false));
    let answer = plugin.call("fetch", input("GET", "/largest")).await.unwrap();
    assert_eq!(answer["text"].as_str().unwrap().len(), LARGEST);
    let failure = plugin.call("send", input("POST", "/large")).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("unknown_outcome", false));
    // It was done, and its answer has to be handed on.
    let answer = plugin.call("send", input("POST", "/quotes")).await.unwrap();
    assert_eq!(answer["base64"].as_str().unwrap().len(), LARGEST.div_ceil(3) * 4);
    assert!(answer.to_string().len() < 960 * 1024, "what a worker hands on");
    asked.store(0, Ordering::Relaxed);
    let mut more = input("POST", "/large");
    more["bytes_max"] = json!(LARGEST + 1);
    let refused = plugin.call_as(plugin.context(), "send", &more, Duration::from_secs(10)).await;
    assert_eq!(refused.unwrap().unwrap_err().code, "invalid_input");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "it is refused before it is sent");
    let url = format!("http://{address}/slow");
    let slow = |method: &str| json!({"method": method, "url": url, "timeout_ms": 200});
    let failure = plugin.call("fetch", slow("GET")).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("late", true));
    let failure = plugin.call("send", slow("POST")).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("unknown_outcome", false));
    plugin.stop().await;
}

/// Says this to whoever asks, and no more.
async fn saying(says: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(&says).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    address
}

#[tokio::test]
async fn an_endpoint_that_lies_harms_nobody() {
    let plugin = started(&[LOOPBACK], open()).await;
    let header = |bytes: usize| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(bytes));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(1_000));
    for (says, codes) in [
        ("+OK hello\r\n".to_owned(), &["broken_answer"][..]),
        (header(1024 * 1024), &["broken_answer"]),
        (many, &["broken_answer"]),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc".to_owned(), &["no_answer", "late"]),
        (String::new(), &["no_answer", "late"]),
    ] {
        let address = saying(says.into_bytes()).await;
        let url = format!("http://{address}/");
        let input = json!({"method": "GET", "url": url, "timeout_ms": 2_000});
        let failure = plugin.call("fetch", input.clone()).await.unwrap_err();
        assert!(codes.contains(&&*failure.code), "{failure}");
        let mut input = input;
        input["method"] = json!("POST");
        let failure = plugin.call("send", input).await.unwrap_err();
        assert_eq!((&*failure.code, failure.temporary), ("unknown_outcome", false), "{failure}");
    }
    plugin.stop().await;
}

#[tokio::test]
async fn a_server_is_trusted_that_an_authority_vouches_for() {
    let (acceptor, certificate) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    let mut configuration = open();
    configuration["authorities"] = json!(certificate);
    let plugin = started(&[LOOPBACK], configuration).await;
    let input = |host: &str| json!({"method": "GET", "url": format!("https://{host}:{port}/")});
    let answer = plugin.call("fetch", input("localhost")).await.unwrap();
    assert_eq!(answer["text"], "hi");
    let other_name = plugin.call("fetch", input("127.0.0.1")).await.unwrap_err();
    assert_eq!((&*other_name.code, other_name.temporary), ("not_trusted", false));
    plugin.configure(&open()).await.unwrap();
    let unknown = plugin.call("fetch", input("localhost")).await.unwrap_err();
    assert_eq!((&*unknown.code, unknown.temporary), ("not_trusted", false));
    plugin.stop().await;
}
