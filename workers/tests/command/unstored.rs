//! Commits that can never be stored, and commits that can't be now.

use std::time::Duration;

use flexcore_eventstore::commands::command_subject;

use super::*;
use crate::{
    deciders::{Fails, Large},
    remade::{give_back, take_away},
};

/// The largest message that the client library lets through: headers that fill a block, and the
/// rest.
fn fullest(store: &EventStore) -> (HeaderMap, bytes::Bytes) {
    let mut headers = HeaderMap::new();
    for number in 0..6 {
        headers.insert(format!("X-Filler-{number}").as_str(), "x".repeat(10_000));
    }
    headers.insert(header::COMMAND_ID, "huge");
    let lines = headers.iter().map(|(name, values)| {
        let name: &str = name.as_ref();
        name.len() + values.last().unwrap().as_str().len() + ": \r\n".len()
    });
    let block = "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>();
    (headers, vec![b'x'; store.client().max_payload() - block].into())
}

/// Putting it aside adds headers, and the client library took none more: its slot stood still for ever.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_command_that_there_can_be_is_put_aside_and_the_next_is_done() {
    let rig = Rig::start().await;
    // As a stream that was made before its messages had a largest size.
    let queue = rig.store.jetstream().get_stream(topology::COMMANDS).await.unwrap();
    let mut config = queue.cached_info().config.clone();
    config.max_message_size = -1;
    rig.store.jetstream().update_stream(config).await.unwrap();
    let (headers, body) = fullest(&rig.store);
    let bytes = body.len().to_string();
    let subject = command_subject(&rig.key, &CommandName::parse("add").unwrap());
    let sent = rig.store.jetstream().publish_with_headers(subject, headers, body).await;
    sent.unwrap().await.unwrap();
    rig.put("next").await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["next"]);
    let dead = rig.store.jetstream().get_stream(topology::DEAD).await.unwrap();
    let dead = dead.get_last_raw_message_by_subject("dead.>").await.unwrap();
    assert_eq!(dead.headers.get(header::DEAD_BODY_BYTES).unwrap().as_str(), bytes);
    assert!(matches!(rig.outcome("huge").await, Some(Outcome::Dead { .. })));
    worker.abort();
    rig.servers.stop().await;
}

/// Each event is small, and in their envelopes they pass the largest message.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_too_large_is_put_aside_and_the_next_is_done() {
    let rig = Rig::start().await;
    rig.put("large").await;
    rig.put("next").await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Large("large"))))).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["next"]);
    let Some(Outcome::Dead { reason }) = rig.outcome("large").await else { panic!("not dead") };
    assert!(reason.contains("too large for one commit"), "{reason}");
    assert!(reason.contains("at most 983040"), "{reason}");
    worker.abort();
    rig.servers.stop().await;
}

/// Each try once left another copy, which took the room of the tenant's other dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_aside_is_so_once_however_long_its_outcome_cannot_be_kept() {
    let rig = Rig::start().await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Fails)))).await;
    rig.put("first").await;
    rig.settled().await;
    take_away(&rig, topology::OUTCOMES).await;
    rig.put("bad").await;
    until(async || (rig.dead().await > 1).then_some(())).await;
    // Five tries or so.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(rig.dead().await, 2);
    give_back(&rig, topology::OUTCOMES).await;
    rig.settled().await;
    assert_eq!(rig.dead().await, 2);
    assert!(matches!(rig.outcome("bad").await, Some(Outcome::Dead { .. })));
    worker.abort();
    rig.servers.stop().await;
}

/// Owner after owner was counted as if it had died of the command, and then it was put aside.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_begun_with_a_command_that_cannot_be_read() {
    let rig = Rig::start().await;
    rig.put("waits").await;
    // Its outcome cannot be looked up.
    take_away(&rig, topology::OUTCOMES).await;
    let worker = rig.work(Arc::new(|_| Some(Box::new(Accepts(1))))).await;
    let progress = rig.store.jetstream().get_stream(topology::PROGRESS).await.unwrap();
    let subject = format!("$KV.flex_queue.{}", rig.key.slot());
    let begun = async || {
        let record = progress.get_last_raw_message_by_subject(&subject).await.ok()?;
        let record: serde_json::Value = serde_json::from_slice(&record.payload).unwrap();
        record["begun"].as_u64()
    };
    until(begun).await;
    // Some tries.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(begun().await, Some(0));
    give_back(&rig, topology::OUTCOMES).await;
    rig.settled().await;
    assert_eq!(rig.dead().await, 0);
    worker.abort();
    rig.servers.stop().await;
}

/// It never came, or it is too long ago: "pending" would be waited for for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_gone_is_not_pending_for_ever() {
    let rig = Rig::start().await;
    let member = rig.member(LEASE).await;
    rig.put("waits").await;
    // Another one has the slot's queue, so nobody takes it up.
    let queue = rig.store.command_queue();
    let claim = queue.claim(rig.key.slot().number(), u64::MAX / 2).await.unwrap();
    let worker =
        rig.work_as(member.clone(), Arc::new(|_| Some(Box::new(Panics))), CancellationToken::new());
    let epoch = everything(&member).await[&rig.key.slot().number()];
    let ask = async |id: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, id);
        let subject = Command::outcome_subject(epoch, &rig.key);
        until(async || {
            let (subject, headers) = (subject.clone(), headers.clone());
            let asked = rig.store.client().request_with_headers(subject, headers, "".into());
            // Until the worker has subscribed, nobody answers.
            Some(serde_json::from_slice::<Outcome>(&asked.await.ok()?.payload).unwrap())
        })
        .await
    };
    assert_eq!(ask("waits").await, Outcome::Pending);
    assert_eq!(ask("never-sent").await, Outcome::Unknown);
    let told = Outcome::Rejected { code: "closed".to_owned(), message: "not today".to_owned() };
    let id = CommandId::parse("waits").unwrap();
    rig.store.save_outcome(&rig.key, &id, crate::repeats::stamp(1), &told).await.unwrap();
    claim.settle(1).await.unwrap();
    assert_eq!(ask("waits").await, told);
    // As when its days are over, or others have taken the room.
    let outcomes = rig.store.jetstream().get_stream(topology::OUTCOMES).await.unwrap();
    outcomes.purge().await.unwrap();
    assert_eq!(ask("waits").await, Outcome::Unknown);
    worker.abort();
    rig.servers.stop().await;
}

/// A broker that reaches its limit refuses leases and progress, too: the log stops before that.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_stored_commands_wait_and_go_on_in_order_when_there_is_some() {
    let mut rig = Rig::start().await;
    let member = rig.member(LEASE_MIN).await;
    let guard = member.guard();
    let why = fill(&mut rig).await;
    assert!(why.contains("of 980000 bytes are taken"), "{why}");
    for id in ["a", "b", "c"] {
        put_as_a_client(&rig, id).await;
    }
    let worker = rig.work_as(
        member.clone(),
        Arc::new(|_| Some(Box::new(Accepts(1)))),
        CancellationToken::new(),
    );
    let told = ask_to_add(&rig, &member, &other(&rig)).await;
    assert!(matches!(told, Outcome::NoRoom { .. }), "{told:?}");
    // Longer than a lease: it is renewed all the same.
    tokio::time::sleep(LEASE_MIN + Duration::from_secs(1)).await;
    assert!(guard.holds(), "the leases have ended");
    // A client of the same aggregate comes behind what is stored for it, and waits with that.
    let told = ask_to_add(&rig, &member, &rig.key).await;
    assert!(matches!(told, Outcome::NoRoom { .. }), "{told:?}");
    assert_eq!((rig.store.queue_depth().await.unwrap(), rig.recorded().await.len()), (3, 1));
    rig.servers.nats.raise_room(64 << 30).unwrap();
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["filler", "a", "b", "c"]);
    worker.abort();
    rig.servers.stop().await;
}

/// Its load waited behind others until its time was over, and its outcome was called unknown.
#[tokio::test(flavor = "multi_thread")]
async fn without_room_a_client_does_not_wait_for_a_load_that_does_not_come() {
    let mut rig = Rig::start().await;
    let member = rig.member(LEASE).await;
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let mut config = log.cached_info().config.clone();
    config.allow_direct = false;
    rig.store.jetstream().update_stream(config).await.unwrap();
    fill(&mut rig).await;
    // From now on this one is asked in place of the log, and does not answer.
    let asked = format!("$JS.API.DIRECT.GET.{}", topology::EVENTS);
    let mut silent = rig.store.client().subscribe(asked).await.unwrap();
    rig.store.client().flush().await.unwrap();
    let worker = rig.work_as(
        member.clone(),
        Arc::new(|_| Some(Box::new(Accepts(1)))),
        CancellationToken::new(),
    );
    let told = ask_to_add(&rig, &member, &other(&rig)).await;
    assert!(matches!(told, Outcome::NoRoom { .. }), "{told:?}");
    assert!(silent.next().await.is_some(), "it was loaded");
    worker.abort();
    rig.servers.stop().await;
}

/// Leaves no room in the broker: a tenth of it is kept free, and the existing content is more than the rest.
/// Returns what is said of that.
async fn fill(rig: &mut Rig) -> String {
    rig.store.append(&filler(rig), Expected::default()).await.unwrap();
    rig.servers.nats.start_again_with_room(980_000).await.unwrap();
    let rig = &*rig;
    let full = until(async || match rig.store.append(&filler(rig), Expected::default()).await {
        Err(flexcore_eventstore::Error::NoRoom(why)) => Some(why),
        _ => None,
    });
    full.await
}

/// An aggregate for which nothing is stored.
fn other(rig: &Rig) -> AggregateKey {
    let id = AggregateId::parse("other").unwrap();
    AggregateKey::new(rig.key.tenant().clone(), rig.key.aggregate().clone(), id)
}

/// The answer of the slot's owner to a client, who waits for less time than an answer of the broker may take.
async fn ask_to_add(rig: &Rig, member: &Member, key: &AggregateKey) -> Outcome {
    let epoch = everything(member).await[&key.slot().number()];
    let subject = Command::request_subject(epoch, key, &CommandName::parse("add").unwrap());
    let mut headers = HeaderMap::new();
    headers.insert(header::COMMAND_ID, "waits");
    headers.insert(flexcore_resilience::HEADER, "3000");
    let told = until(async || {
        let client = rig.store.client();
        let asked =
            client.request_with_headers(subject.clone(), headers.clone(), "{}".into()).await;
        // Until the worker has subscribed, nobody answers.
        Some(serde_json::from_slice::<Outcome>(&asked.ok()?.payload).unwrap())
    });
    told.await
}

/// A client of the queue does not know how much room there is.
async fn put_as_a_client(rig: &Rig, id: &str) {
    let subject = command_subject(&rig.key, &CommandName::parse("add").unwrap());
    let mut headers = HeaderMap::new();
    headers.insert(header::OWN_COMMAND_ID, id);
    let sent = rig.store.jetstream().publish_with_headers(subject, headers, "{}".into()).await;
    sent.unwrap().await.unwrap();
}

/// A commit of some 900,000 bytes.
fn filler(rig: &Rig) -> Commit {
    let mut filler = rig.commit("filler", 1);
    filler.events[0].data = RawValue::from_string(format!("\"{}\"", "x".repeat(900_000))).unwrap();
    filler
}
