//! Commands that no client library would send, published byte for byte.

use flexcore_eventstore::commands::command_subject;
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

/// An invalid header ended the reader's connection whenever it came, and a status in the first line
/// was taken for the broker's: the slot's stored commands of all tenants stood still for ever.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_can_read_is_put_aside_and_the_next_is_done() {
    let mut rig = Rig::start().await;
    let apart = async_nats::connect(rig.servers.nats_url()).await.unwrap();
    rig.store = rig.store.read_over(&apart, &apart, &apart).await.unwrap();
    let subject = command_subject(&rig.key, &CommandName::parse("add").unwrap());
    // Some servers take the status away; the rest has no id.
    let cases: [(&[u8], &str); 6] = [
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
    let stream = rig.store.jetstream().get_stream(topology::DEAD).await.unwrap();
    let mut reasons = Vec::new();
    for at in 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(at).await.unwrap();
        reasons.push(message.headers.get(header::DEAD_REASON).unwrap().to_string());
    }
    // The subject is the broker's to refuse.
    assert!(reasons.len() >= cases.len(), "{reasons:?}");
    for (reason, (_, why)) in reasons.iter().zip(cases) {
        assert!(reason.contains(why) || reason.contains("a status"), "{reason}");
    }
    worker.abort();
    rig.servers.stop().await;
}
