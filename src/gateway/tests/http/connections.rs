//! Connections: those that one tenant takes, those that say nothing, those that ask for nothing, and more
//! than there are.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flexcore_gateway::Settings;
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::support::{Answer, Gateway, read, settings, start, token};

const ALL: usize = 64;

/// Frames of HTTP/2.
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\x0012345678";
const SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
/// How a client begins, with empty settings.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn start_small() -> Gateway {
    start(Settings { connections_max: ALL, ..settings() }).await
}

/// A connection with a question that no worker answers.
async fn ask(gateway: &Gateway, tenant: &str) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let token = token(tenant, Duration::from_secs(600));
    let question = format!(
        "GET /v1/commands/c?aggregate=flight&id=silent HTTP/1.1\r\nHost: x\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(question.as_bytes()).await.unwrap();
    stream
}

/// Somebody else comes again and again, each time on a new connection.
async fn is_answered_at_once(gateway: &Gateway) {
    for _ in 0..20 {
        let asked = Instant::now();
        let answer = gateway.get("/v1/commands/c?aggregate=flight&id=ready").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_takes_all_it_can_leaves_connections_to_others() {
    let gateway = start_small().await;
    let mut flood = Vec::new();
    for _ in 0..2 * ALL {
        flood.push(ask(&gateway, "flood").await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    is_answered_at_once(&gateway).await;
    let answers: FuturesUnordered<_> = flood.iter_mut().map(read).collect();
    // Some that were to be told so gave way to the others' connections.
    let told = |answer: &Answer| std::future::ready(answer.status != 0);
    let refused = answers.filter(told).next().await.expect("it has more than its share");
    let document = refused.problem(503, "overloaded");
    assert!(document["detail"].as_str().unwrap().contains("its share of the connections"));
    let said = ["retry-after", "connection"].map(|name| refused.header(name));
    assert_eq!(said, [Some("1"), Some("close")]);
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_say_nothing_make_room() {
    let gateway = start_small().await;
    for opening in ["", "GET / HT"] {
        let began = Instant::now();
        let mut silent = Vec::new();
        for _ in 0..2 * ALL {
            let mut stream = TcpStream::connect(gateway.address).await.unwrap();
            let _ = stream.write_all(opening.as_bytes()).await;
            silent.push(stream);
        }
        is_answered_at_once(&gateway).await;
        read(&mut silent[0]).await;
        let elapsed = began.elapsed();
        assert!(elapsed < Duration::from_secs(4), "closed for its silence: {elapsed:?}");
    }
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_have_requests_a_new_one_is_told_so() {
    let gateway = start_small().await;
    let mut held = Vec::new();
    for number in 0..ALL {
        held.push(ask(&gateway, &format!("t{number}")).await);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let full = gateway.send("GET", "/livez", "", "").await;
    assert_eq!((full.status, full.header("retry-after")), (503, Some("1")), "{full:?}");
    // A client takes what comes before its question for a broken connection.
    let mut silent = TcpStream::connect(gateway.address).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), silent.peek(&mut [0])).await;
    assert!(early.is_err(), "answered before it was asked: {early:?}");
    silent.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(read(&mut silent).await.status, 503);
    drop(held);
    gateway.servers.stop().await;
}

/// Sends this frame of HTTP/2 as fast as it goes, until the gateway closes.
async fn floods(gateway: &Gateway, frame: &[u8]) {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(BEGIN).await.unwrap();
    let (mut from, mut to) = stream.split();
    let frames = frame.repeat(1_000);
    let writes = async { while to.write_all(&frames).await.is_ok() {} };
    let reads = async {
        let mut sink = [0; 4_096];
        while from.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    tokio::join!(writes, reads);
}

/// Four strangers' pings left six answers of a hundred to everybody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_frames_that_ask_for_nothing_is_cut_off() {
    let gateway = start_small().await;
    for frame in [PING, SETTINGS] {
        let flood = join_all((0..4).map(|_| floods(&gateway, frame)));
        let cut_off = timeout(Duration::from_secs(10), flood);
        let (cut_off, ()) = tokio::join!(cut_off, is_answered_at_once(&gateway));
        assert!(cut_off.is_ok(), "it goes on: {frame:?}");
    }
    gateway.servers.stop().await;
}

/// One that says often how much it has read, since its windows are small.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_http2_with_large_answers_and_many_requests_is_not_cut_off() {
    let gateway = start_small().await;
    let stream = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(4_096_u32).initial_connection_window_size(65_535_u32);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = |path: &'static str| {
        let mut sender = sender.clone();
        async move {
            let request = Request::get(format!("http://x{path}")).body(Empty::<Bytes>::new());
            let answer = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
            answer.into_body().collect().await.unwrap().to_bytes().len()
        }
    };
    let mut bytes = 0;
    for path in ["/openapi.json", "/livez"].repeat(20) {
        bytes += join_all((0..20).map(|_| ask(path))).await.iter().sum::<usize>();
    }
    assert!(bytes > 4 << 20, "{bytes}");
    assert!(!connection.is_finished(), "it is one connection for all");
    drop(sender);
    gateway.servers.stop().await;
}
