//! Commands while the broker is away, and while a slot changes its owner.

use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber, connection::State};
use flexcore_cluster::{Member, drain, look};
use flexcore_domain::{Outcome, Position, Slot, command::header};
use flexcore_eventstore::EventStore;
use flexcore_gateway::Settings;
use futures::StreamExt;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{
    JSON,
    support::{COMMANDS, Gateway, bearer, read, serve, settings, start},
};

const QUEUE: &str = "FLEX_COMMANDS";
/// The broker's answer while a stream has no leader.
const NO_LEADER: &str = r#"{"error":{"code":503,"err_code":10008,
    "description":"JetStream system temporarily unavailable"}}"#;
/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

async fn next(messages: &mut Subscriber) -> Message {
    tokio::time::timeout(PATIENCE, messages.next()).await.expect("a message").unwrap()
}

/// The secret is deleted, and a worker starts, which makes another one.
async fn made_anew(gateway: &Gateway) -> EventStore {
    let jetstream = gateway.store.jetstream();
    jetstream.publish("$KV.flex_secrets.seal", "".into()).await.unwrap().await.unwrap();
    let client = async_nats::connect(gateway.servers.nats_url()).await.unwrap();
    EventStore::open(client, gateway.store.settings().clone()).await.unwrap()
}

/// It would go on with seals that no worker takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_an_old_secret_hears_so_from_a_worker() {
    let secret_every = Duration::from_secs(3_600);
    let gateway = start(Settings { secret_every, ..settings() }).await;
    let former = gateway.store.secret();
    let worker = made_anew(&gateway).await;
    assert_eq!(gateway.command("depart", "", "{}").await.status, 200);
    assert_eq!(gateway.store.secret(), former);
    gateway.command("wrong_seal", "", "{}").await.problem(503, "outcome-unknown");
    assert_ne!(gateway.store.secret(), former);
    assert_eq!(gateway.store.secret(), worker.secret());
    gateway.servers.stop().await;
}

/// Workers put aside all that it stored, and nobody told it: it asks for no outcome.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_only_stores_commands_reads_a_new_secret_by_itself() {
    let secret_every = Duration::from_millis(100);
    let gateway = start(Settings { secret_every, ..settings() }).await;
    let former = gateway.store.secret();
    let worker = made_anew(&gateway).await;
    assert_ne!(worker.secret(), former);
    let began = Instant::now();
    while gateway.store.secret() != worker.secret() {
        assert!(began.elapsed() < PATIENCE, "it goes on with the old one");
        let stored = gateway.command("depart", "Prefer: respond-async\r\n", "{}").await;
        assert_eq!(stored.status, 202, "{stored:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_command_is_stored_again_while_its_stream_is_away() {
    let gateway = start(settings()).await;
    let (client, jetstream) = (gateway.store.client(), gateway.store.jetstream());
    let config = jetstream.get_stream(QUEUE).await.unwrap().cached_info().config.clone();
    jetstream.delete_stream(QUEUE).await.unwrap();
    // No attempt helps: by its deadline the client learns its options.
    let began = Instant::now();
    let hasty = "Prefer: respond-async\r\nFlexcore-Timeout-Ms: 300\r\n";
    let unknown = gateway.command("depart", hasty, "{}").await;
    unknown.problem(503, "outcome-unknown");
    assert_eq!(unknown.header("retry-after"), Some("1"));
    assert!(unknown.header("idempotency-key").is_some(), "to be able to repeat it: {unknown:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());

    // The stream is back after the first attempt, and before the client would be told of it.
    let mut attempts = client.subscribe("cmd.>").await.unwrap();
    let queued = gateway.command("depart", "Prefer: respond-async\r\nIdempotency-Key: q\r\n", "{}");
    let returns = async {
        let first = next(&mut attempts).await;
        jetstream.create_stream(config).await.unwrap();
        client.publish(first.reply.clone().unwrap(), NO_LEADER.into()).await.unwrap();
        first
    };
    let (answer, first) = tokio::join!(queued, returns);
    assert_eq!(answer.status, 202, "{answer:?}");
    let second = next(&mut attempts).await;
    let id = |message: &Message| {
        message.headers.as_ref().unwrap().get(header::OWN_COMMAND_ID).map(ToString::to_string)
    };
    assert_eq!((id(&first).as_deref(), id(&second).as_deref()), (Some("q"), Some("q")));
    let stored = jetstream.get_stream(QUEUE).await.unwrap().cached_info().state.messages;
    assert_eq!(stored, 1);
    gateway.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_command_waits_for_a_broker_that_is_away_for_a_moment() {
    let mut gateway = start(settings()).await;
    gateway.servers.nats.kill().await.unwrap();
    let began = Instant::now();
    while gateway.store.client().connection_state() == State::Connected {
        assert!(began.elapsed() < PATIENCE, "still connected");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let hasty = "Prefer: respond-async\r\nFlexcore-Timeout-Ms: 300\r\n";
    let refused = gateway.command("depart", hasty, "{}").await;
    let document = refused.problem(503, "unavailable");
    assert_eq!(document["detail"], "nothing was done; try again");
    assert_eq!(refused.header("retry-after"), Some("1"));

    let mut queued = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "POST /v1/commands/flight/UA1/depart HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Length: 2\r\nPrefer: respond-async\r\n{}{JSON}\r\n{{}}",
        bearer()
    );
    queued.write_all(request.as_bytes()).await.unwrap();
    // Time for the first attempt, which finds nobody.
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.servers.nats.start_again().await.unwrap();
    let answer = read(&mut queued).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let stream = gateway.store.jetstream().get_stream(QUEUE).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 1, "the one that was refused is not in it");
    gateway.servers.stop().await;
}

/// The owner's answer to a command of this name.
fn outcome(request: &Message) -> Outcome {
    match request.subject.rsplit('.').next().unwrap() {
        "rejected_later" => {
            Outcome::Rejected { code: "gone".to_owned(), message: "It left.".to_owned() }
        }
        "conflict_later" => Outcome::Conflict { version: 5 },
        "overloaded_later" => Outcome::Overloaded { retry_after_s: 3 },
        _ => {
            let position = Some(Position { slot: Slot::new(7).unwrap(), sequence: 42 });
            Outcome::Accepted { version: 1, position, replayed: true }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_a_successor_of_who_was_asked_is_none() {
    let gateway = start(settings()).await;
    let client = gateway.store.client();
    let mut requests = client.subscribe("req.>").await.unwrap();
    let epoch = |request: &Message| request.subject.split('.').nth(1).unwrap().to_owned();
    let owners = async {
        let mut first = Vec::new();
        for _ in 0..4 {
            // The owner is never heard of again: each may be in the log, or get there yet.
            first.push(epoch(&next(&mut requests).await));
        }
        let owner = look(client).await.unwrap().leader.unwrap();
        let how = flexcore_cluster::Settings::new("successor", "worker", [COMMANDS]);
        let successor = Member::join(client, how).await.unwrap();
        let serving = tokio::spawn(serve(successor));
        drain(client, owner.as_str()).await.unwrap();
        for _ in 0..4 {
            let request = next(&mut requests).await;
            assert!(!first.contains(&epoch(&request)), "the same owner: {}", request.subject);
            let answer = serde_json::to_vec(&outcome(&request)).unwrap();
            client.publish(request.reply.unwrap(), answer.into()).await.unwrap();
        }
        serving.abort();
    };
    let (rejected, conflict, overloaded, accepted, ()) = tokio::join!(
        gateway.command("rejected_later", "", "{}"),
        gateway.command("conflict_later", "If-Match: \"4\"\r\n", "{}"),
        gateway.command("overloaded_later", "", "{}"),
        gateway.command("accepted_later", "", "{}"),
        owners,
    );
    for unknown in [rejected, conflict, overloaded] {
        unknown.problem(503, "outcome-unknown");
        assert!(unknown.header("idempotency-key").is_some(), "{unknown:?}");
        assert_eq!(unknown.header("retry-after"), Some("1"));
    }
    assert_eq!((accepted.status, &accepted.json()["replayed"]), (200, &true.into()));
    gateway.servers.stop().await;
}

/// At its limit the broker refuses, and has stored nothing: that is no doubt.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_for_the_queue_of_a_full_broker_is_told_so_and_taken_when_there_is_room() {
    let mut gateway = start(settings()).await;
    gateway.servers.nats.start_again_with_room(300_000).await.unwrap();
    let large = format!(r#"{{"note":"{}"}}"#, "x".repeat(200_000));
    let send = async |id: &str| {
        let headers = format!("Prefer: respond-async\r\nIdempotency-Key: {id}\r\n");
        gateway.command("depart", &headers, &large).await
    };
    let (mut taken, began) = (0, Instant::now());
    let full = loop {
        let answer = send(&format!("c-{taken}")).await;
        match answer.status {
            202 => taken += 1,
            507 => break answer,
            // The connection comes back.
            _ => assert!(began.elapsed() < PATIENCE && answer.status == 503, "{answer:?}"),
        }
        assert!(taken < 5, "there is room");
    };
    full.problem(507, "storage-full");
    assert!(full.header("retry-after").is_some(), "{full:?}");
    let stored = async || {
        let stream = gateway.store.jetstream().get_stream(QUEUE).await.unwrap();
        stream.cached_info().state.messages
    };
    assert_eq!(stored().await, taken, "what was refused is not stored");
    gateway.servers.nats.raise_room(64 << 30).unwrap();
    let began = Instant::now();
    while send(&format!("c-{taken}")).await.status != 202 {
        assert!(began.elapsed() < PATIENCE, "there is room again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stored().await, taken + 1);
    gateway.servers.stop().await;
}
