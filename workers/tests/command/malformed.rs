//! Commands that no client library would send, published byte for byte.

use async_nats::ConnectOptions;
use flexcore_eventstore::{
    commands::command_subject,
    renewed::{Connection, Renewed, watched},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::*;

/// Publishes over a plain connection; returns once the broker has it.
async fn publish(rig: &Rig, subject: &[u8], headers: &[u8], body: &[u8]) {
    let url = rig.servers.nats_url();
    let stream = TcpStream::connect(url.trim_start_matches("nats://")).await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    lines.next_line().await.unwrap();
    let connect = b"CONNECT {\"verbose\":false,\"headers\":true}\r\n";
    let (head, all) = (headers.len(), headers.len() + body.len());
    let sizes = format!(" {head} {all}\r\n");
    let parts = [&connect[..], b"HPUB ", subject, sizes.as_bytes(), headers, body, b"\r\nPING\r\n"];
    writer.write_all(&parts.concat()).await.unwrap();
    while lines.next_line().await.unwrap().unwrap() != "PONG" {}
}

async fn connection(url: &str) -> Result<Connection, String> {
    let (options, ended) = watched(ConnectOptions::new(), |_| {});
    let client = options.connect(url).await.map_err(|error| error.to_string())?;
    Ok(Connection { client, ended })
}

/// Its log, with reads over connections of their own, as a process has it.
async fn apart(rig: &Rig) -> EventStore {
    let url = rig.servers.nats_url();
    let client = async_nats::connect(&url).await.unwrap();
    let first = connection(&url).await.unwrap();
    let commands = Renewed::new(first, move || {
        let url = url.clone();
        Box::pin(async move { connection(&url).await })
    });
    rig.store.clone().read_over(&client, &client, commands).await.unwrap()
}

/// The reasons of what was put aside.
async fn reasons(rig: &Rig) -> Vec<String> {
    let stream = rig.store.jetstream().get_stream(topology::DEAD).await.unwrap();
    let mut reasons = Vec::new();
    for at in 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(at).await.unwrap();
        reasons.push(message.headers.get(header::DEAD_REASON).unwrap().to_string());
    }
    reasons
}

/// An invalid header ended the reader's connection whenever it came, and a status in the first line
/// was taken for the broker's: the slot's stored commands of all tenants stood still for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_can_read_is_put_aside_and_the_next_is_done() {
    let mut rig = Rig::start().await;
    rig.store = apart(&rig).await;
    let subject = command_subject(&rig.key, &CommandName::parse("add").unwrap());
    // Some servers take the status away; the rest has no id.
    let cases: [(&[u8], &str); 7] = [
        (b"NATS/1.0\r\nA: b\rC: d\r\n\r\n", "no proper value"),
        (b"NATS/1.0\r\nNats-Msg-Id: a\r\nX: \xff\xfe\r\n\r\n", "not UTF-8"),
        (b"NATS/1.0\r\nno colon\r\nNats-Msg-Id: b\r\n\r\n", "no colon"),
        (b"NATS/1.0\r\n\xc3\xa9: x\r\n\r\n", "no proper name"),
        (b"NATS/1.0 404 No Messages\r\n\r\n", "needs an id"),
        (b"NATS/1.0 409 Consumer Deleted\r\n\r\n", "needs an id"),
        (b"NATS/1.0 100 Idle Heartbeat\r\n\r\n", "needs an id"),
    ];
    rig.put("before").await;
    for (number, (headers, _)) in cases.iter().enumerate() {
        publish(&rig, subject.as_bytes(), headers, b"{}").await;
        rig.put(&format!("after-{number}")).await;
    }
    // In the subject, too; the slot is the one of the queue's subject.
    let odd = [format!("cmdq.{}.", rig.key.slot()).as_bytes(), b"t.counter.\xff\xfe.add"].concat();
    publish(&rig, &odd, b"NATS/1.0\r\nNats-Msg-Id: c\r\n\r\n", b"{}").await;
    rig.put("last").await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    let after = (0..cases.len()).map(|number| format!("after-{number}"));
    let all = std::iter::once("before".to_owned()).chain(after).chain(["last".to_owned()]);
    assert_eq!(rig.recorded().await, all.collect::<Vec<_>>());
    let reasons = reasons(&rig).await;
    // The subject is the broker's to refuse.
    assert!(reasons.len() >= cases.len(), "{reasons:?}");
    for (reason, (_, why)) in reasons.iter().zip(cases) {
        assert!(reason.contains(why) || reason.contains("a status"), "{reason}");
    }
    worker.abort();
    rig.servers.stop().await;
}

/// The client that reads the queue ended for good over a carriage return within a value: the stored commands
/// of all tenants waited until the process was started again, and the next such message could come at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_ends_a_client_for_good_is_put_aside_and_everybody_goes_on() {
    const TIMES: usize = 5;
    let mut rig = Rig::start().await;
    rig.store = apart(&rig).await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.put("before").await;
    rig.settled().await;
    let name = CommandName::parse("add").unwrap();
    let headers = b"NATS/1.0\r\nA: b\rC: d\r\n\r\n";
    for number in 0..TIMES {
        // Each in a slot of its own, whose reader has met none yet.
        let key = AggregateKey::new(
            Tenant::parse("hostile").unwrap(),
            AggregateName::parse("counter").unwrap(),
            AggregateId::parse(&format!("h{number}")).unwrap(),
        );
        let subject = command_subject(&key, &name);
        publish(&rig, subject.as_bytes(), headers, b"{}").await;
        rig.put(&format!("after-{number}")).await;
        rig.settled().await;
    }
    let after = (0..TIMES).map(|number| format!("after-{number}"));
    let all = std::iter::once("before".to_owned()).chain(after);
    assert_eq!(rig.recorded().await, all.collect::<Vec<_>>());
    let reasons = reasons(&rig).await;
    assert_eq!(reasons, ["one of its headers has no proper value"; TIMES]);
    worker.abort();
    rig.servers.stop().await;
}
