//! A broker that goes away.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream;
use flexcore_cluster::{drain, look};

use crate::floor::{COMMAND, Floor, LEASE, Worker, broker, get, put, until};

const SOON: Duration = Duration::from_secs(3);
/// After the broker is back: clients wait between attempts to connect.
const BACK: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn without_the_broker_guards_fall_by_their_own_clock_and_all_returns_with_it() {
    let (mut servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    drain(&a.client, b.member.id().as_str()).await.unwrap();
    until("b is drained", SOON, || a.count(COMMAND) == 64).await;
    servers.nats.kill().await.unwrap();
    let fell =
        until("guards fall", LEASE, || !a.member.guard().holds() && !b.member.guard().holds());
    assert!(fell.await > LEASE / 3, "while the lease is good they hold");
    until("nothing is assigned", SOON, || a.member.assigned().borrow().places.is_empty()).await;
    tokio::time::sleep(LEASE).await;
    servers.nats.start_again().await.unwrap();
    until("guards hold", BACK, || a.member.guard().holds() && b.member.guard().holds()).await;
    until("a serves everything", BACK, || a.count(COMMAND) == 64).await;
    // The wish to drain outlives the record of whom it names.
    assert_eq!(b.count(COMMAND), 0);
    let view = look(&a.client).await.unwrap();
    assert!(view.members.iter().any(|seat| seat.draining), "{view:?}");
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_absence_of_the_broker_costs_nobody_anything() {
    let (mut servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    let (highest, epoch) = (floor.highest(), a.member.map().borrow().epoch);
    servers.nats.kill().await.unwrap();
    servers.nats.start_again().await.unwrap();
    tokio::time::sleep(LEASE).await;
    assert!(a.member.guard().holds() && b.member.guard().holds());
    assert_eq!((floor.highest(), a.member.map().borrow().epoch), (highest, epoch));
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_gone_is_made_anew_with_greater_epochs() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    let highest = floor.highest();
    let context = jetstream::new(a.client.clone());
    context.delete_stream(flexcore_cluster::STREAM).await.unwrap();
    until("everything is served anew", BACK, || {
        let all = [&a, &b].map(|w| w.count(COMMAND));
        all == [32, 32] && floor.lowest(COMMAND) > highest
    })
    .await;
}

/// A broker that is killed may bring ended leases back, and never free them.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_leader_and_a_dead_member_that_the_broker_keeps_are_ended() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    // Without a time to live: the broker frees neither.
    let (_, record) = get(&a.client, &format!("member.{}", b.member.id())).await.unwrap();
    put(&a.client, "member.ghost-1", &record, None).await.unwrap();
    let all = || a.count(COMMAND) + b.count(COMMAND);
    until("places of the dead one", SOON, || all() < 60).await;
    let dead = r#"{"member":"ghost-1","epoch":null,"beat":1}"#;
    put(&a.client, "leader", dead, None).await.unwrap();
    until("the living serve everything", LEASE * 5, || all() == 64).await;
    let view = look(&a.client).await.unwrap();
    let living = [a.member.id(), b.member.id()];
    assert!(view.leader.is_some_and(|leader| living.contains(&&leader)));
    assert!(view.members.iter().all(|seat| living.contains(&&seat.id)), "{:?}", view.members);
    assert!(a.member.guard().holds() && b.member.guard().holds());
    floor.check();
}
