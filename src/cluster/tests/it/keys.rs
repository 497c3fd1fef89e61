//! Keys that somebody else writes or deletes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, context::PublishErrorKind};
use flexcore_cluster::{Error, LEASE_MAX, Member, Settings, look};

use crate::floor::{COMMAND, Floor, KINDS, LEASE, Worker, broker, get, put, until};

const SOON: Duration = Duration::from_secs(3);

async fn pair() -> (flexcore_servers::Servers, Arc<Floor>, Worker, Worker) {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    (servers, floor, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_leadership_is_won_anew_under_a_greater_epoch() {
    let (_servers, floor, a, b) = pair().await;
    let before = look(&b.client).await.unwrap().epoch.unwrap();
    put(&b.client, "leader", "", None).await.unwrap();
    until("a map of a greater epoch", SOON, || a.member.map().borrow().epoch > before).await;
    assert!(a.member.guard().holds() && b.member.guard().holds());
    assert_eq!((a.count(COMMAND), b.count(COMMAND)), (32, 32), "nothing moves");
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_map_is_written_again_with_greater_epochs() {
    let (servers, floor, a, b) = pair().await;
    let highest = floor.highest();
    put(&b.client, "map", "", None).await.unwrap();
    until("everything is served anew", SOON, || {
        let all = [&a, &b].map(|w| w.count(COMMAND));
        all == [32, 32] && floor.lowest(COMMAND) > highest
    })
    .await;
    // A member that comes now reads it too.
    let c = Worker::join(&servers, &floor, "c").await;
    until("c has its share", SOON, || c.count(COMMAND) == 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_record_ends_the_right_to_act_at_once_and_voids_what_was_given() {
    let servers = broker().await;
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    // Its renewals are far apart: what happens soon is no renewal.
    let settings = Settings { lease: LEASE_MAX, ..Settings::new("m", "worker", [COMMAND]) };
    let member = Member::join(&client, settings).await.unwrap();
    let (guard, assigned) = (member.guard(), member.assigned());
    let count = || assigned.borrow().of(COMMAND).len();
    until("it is assigned everything", SOON, || count() == 64).await;
    let before = assigned.borrow().clone();
    member.report(COMMAND, before.followed, (0..64).collect());
    let key = format!("member.{}", member.id());
    let (mut known, start) = (String::new(), Instant::now());
    while !known.contains("63]") && start.elapsed() < SOON {
        known = get(&client, &key).await.unwrap().1;
    }
    put(&client, &key, "", None).await.unwrap();
    until("its guard falls", SOON, || !guard.holds()).await;
    let lowest = || assigned.borrow().of(COMMAND).values().min().copied().unwrap_or(0);
    let highest = before.of(COMMAND).into_values().max().unwrap();
    until("it is given everything anew", SOON, || lowest() > highest && count() == 64).await;
    until("its guard is up again", SOON, || guard.holds()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leader_changes_nothing() {
    let (servers, floor, a, b) = pair().await;
    let (old, _) = get(&a.client, "leader").await.unwrap();
    let ghost = r#"{"member":"ghost-1","epoch":null,"beat":1}"#;
    put(&b.client, "leader", ghost, None).await.unwrap();
    let (_, map) = get(&a.client, "map").await.unwrap();
    let late = put(&a.client, "map", &map, Some(("leader", old))).await;
    assert_eq!(late, Err(PublishErrorKind::WrongLastSequence));
    // Nobody leads but the ghost: a new member gets nothing, and the map stays as it is.
    let c = Worker::join(&servers, &floor, "c").await;
    tokio::time::sleep(LEASE / 2).await;
    assert_eq!(c.count(COMMAND), 0);
    assert_eq!(get(&a.client, "map").await.unwrap().1, map);
    put(&b.client, "leader", "", None).await.unwrap();
    until("c has its share", SOON, || c.count(COMMAND) == 21).await;
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_record_in_a_members_place_does_not_keep_it_busy() {
    let (_servers, _floor, a, b) = pair().await;
    let key = format!("member.{}", b.member.id());
    put(&a.client, &key, "not a record", None).await.unwrap();
    until("its guard falls", LEASE, || !b.member.guard().holds()).await;
    let sent = || b.client.statistics().out_messages.load(std::sync::atomic::Ordering::Relaxed);
    let before = sent();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sent = sent() - before;
    assert!(sent < 50, "{sent} requests in a second");
    put(&a.client, &key, "", None).await.unwrap();
    until("it is back", SOON, || b.member.guard().holds()).await;
}

/// Several brokers have to agree on a write after its hint has come: who looks at once sees nothing new.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_comes_after_its_hint_is_found_soon() {
    let servers = broker().await;
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let gateway = Member::join(&client, Settings::new("g", "gateway", [])).await.unwrap();
    let context = jetstream::new(client.clone());
    let bucket = context.get_stream(flexcore_cluster::STREAM).await.unwrap();
    let map = gateway.map();
    let mut fastest = SOON;
    for epoch in 1..=5 {
        let written = format!(r#"{{"epoch":{epoch},"leader":"x","places":{{}}}}"#);
        put(&client, "map", &written, None).await.unwrap();
        until("it is known", SOON, || map.borrow().epoch == epoch).await;
        // A hint of something that is refused; then a change that gives none.
        put(&client, "map", "{}", Some(("map", 1))).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(100)).await;
        bucket.purge().filter("$KV.flex_cluster.map").await.unwrap();
        fastest = fastest.min(until("it is gone", SOON, || map.borrow().epoch == 0).await);
    }
    // Without a fresh hint it takes 400 ms at least. The fastest: this machine may be busy.
    assert!(fastest < Duration::from_millis(300), "{fastest:?}");
}

/// A replica that is behind would answer from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_cannot_hold_leases_is_refused() {
    let servers = broker().await;
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let bucket = jetstream::stream::Config {
        name: flexcore_cluster::STREAM.to_owned(),
        subjects: vec!["$KV.flex_cluster.>".to_owned()],
        max_messages_per_subject: 1,
        allow_message_ttl: true,
        allow_direct: true,
        ..Default::default()
    };
    jetstream::new(client.clone()).create_stream(bucket).await.unwrap();
    let joined = Member::join(&client, Settings::new("a", "worker", KINDS)).await;
    let Err(error) = joined else { panic!("it joins") };
    let contradicts = matches!(error, Error::Misconfigured { what: "allow_direct", .. });
    assert!(contradicts, "{error}");
}
