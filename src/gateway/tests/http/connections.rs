//! Connections: those that one tenant takes, those that say nothing, and more than there are.

use std::time::{Duration, Instant};

use flexcore_gateway::Settings;
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{Answer, Gateway, read, settings, start, token};

const ALL: usize = 64;

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
