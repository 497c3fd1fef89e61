//! Members that come, go, and hand over.

use std::{sync::Arc, time::Duration};

use flexcore_cluster::{Error, Member, Settings, drain, look, undrain};

use crate::floor::{COMMAND, Floor, LEASE, PROJECTION, Worker, broker, until};

const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn the_first_member_leads_and_serves_everything() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let everything = || a.count(COMMAND) == 64 && a.count(PROJECTION) == 16;
    until("serves everything", SOON, everything).await;
    let view = look(&a.client).await.unwrap();
    assert_eq!(view.leader.as_ref(), Some(a.member.id()));
    assert_eq!(view.epoch, Some(a.member.map().borrow().epoch));
    let [seat] = &view.members[..] else { panic!("{view:?}") };
    assert!(seat.leads && !seat.draining && seat.role == "worker");
    assert_eq!(seat.owns[COMMAND.name].len(), 64);
    assert!(view.unowned.values().all(Vec::is_empty), "{view:?}");
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_member_is_handed_its_half_without_two_serving_at_once() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    until("a serves everything", SOON, || a.count(COMMAND) == 64).await;
    let b = Worker::join(&servers, &floor, "b").await;
    let half = || [&a, &b].iter().all(|w| w.count(COMMAND) == 32 && w.count(PROJECTION) == 8);
    until("half each", SOON, half).await;
    let c = Worker::join(&servers, &floor, "c").await;
    let third = || {
        let counts = [&a, &b, &c].map(|w| w.count(COMMAND));
        counts.iter().sum::<usize>() == 64 && counts.iter().all(|count| (21..=22).contains(count))
    };
    until("a third each", SOON, third).await;
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_hands_everything_over_within_a_second() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    let before = look(&b.client).await.unwrap();
    assert_eq!(before.leader.as_ref(), Some(a.member.id()));
    let guard = a.member.guard();
    a.leave().await;
    assert!(!guard.holds());
    let took = until("b serves everything", Duration::from_secs(1), || {
        b.count(COMMAND) == 64 && b.count(PROJECTION) == 16
    });
    println_took("after a leader left", took.await);
    let after = look(&b.client).await.unwrap();
    assert_eq!(after.leader.as_ref(), Some(b.member.id()));
    assert!(after.epoch > before.epoch);
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_resigns_is_told_to_leave_its_places_and_gets_no_others() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    until("a serves everything", SOON, || a.count(COMMAND) == 64).await;
    assert!(a.member.is_alone(COMMAND).await);
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    assert!(!a.member.is_alone(COMMAND).await);
    assert_eq!(look(&b.client).await.unwrap().leader.as_ref(), Some(a.member.id()));
    // It is the leader: another has to be found first.
    a.member.resign();
    let took = until("b serves everything", Duration::from_secs(1), || {
        b.count(COMMAND) == 64 && b.count(PROJECTION) == 16
    });
    println_took("after a leader resigned", took.await);
    assert_eq!((a.count(COMMAND), a.count(PROJECTION)), (0, 0));
    let view = look(&b.client).await.unwrap();
    assert_eq!(view.leader.as_ref(), Some(b.member.id()));
    let seat = view.members.iter().find(|seat| seat.id == *a.member.id()).unwrap();
    assert!(b.member.is_alone(COMMAND).await, "the other is about to end");
    assert!(seat.draining && a.member.guard().holds(), "it is a member yet: {seat:?}");
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_when_its_lease_has_ended() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    let highest = floor.highest();
    let (guard, leader) = (a.member.guard(), a.member.id().clone());
    assert_eq!(look(&b.client).await.unwrap().leader, Some(leader));
    a.kill();
    assert!(guard.holds(), "nobody has said otherwise");
    let took = until("b serves everything", LEASE + Duration::from_secs(2), || {
        b.count(COMMAND) == 64 && b.count(PROJECTION) == 16
    });
    println_took("after a leader was killed", took.await);
    assert!(!guard.holds(), "before anybody else serves");
    assert!(floor.highest() > highest);
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_member_serves_nothing_until_it_is_taken_back() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let a = Worker::join(&servers, &floor, "a").await;
    let b = Worker::join(&servers, &floor, "b").await;
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    let id = a.member.id().as_str();
    let unknown = drain(&b.client, "nobody").await;
    assert!(matches!(unknown, Err(Error::UnknownMember { known, .. }) if known.len() == 2));
    drain(&b.client, id).await.unwrap();
    until("b serves everything", SOON, || b.count(COMMAND) == 64).await;
    assert_eq!((a.count(COMMAND), a.count(PROJECTION)), (0, 0));
    let draining = |view: flexcore_cluster::View| {
        view.members.into_iter().filter(|seat| seat.draining).map(|seat| seat.id).collect()
    };
    let drained: Vec<_> = draining(look(&b.client).await.unwrap());
    assert_eq!(drained, [a.member.id().clone()]);
    undrain(&b.client, id).await.unwrap();
    let drained: Vec<_> = draining(look(&b.client).await.unwrap());
    assert!(drained.is_empty(), "at once: {drained:?}");
    assert!(undrain(&b.client, id).await.is_err(), "it is not drained any more");
    until("half each", SOON, || b.count(COMMAND) == 32 && a.count(COMMAND) == 32).await;
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_start_at_once_make_one_bucket_and_share() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let join = |name| Worker::join(&servers, &floor, name);
    let (a, b, c, d) = tokio::join!(join("a"), join("b"), join("c"), join("d"));
    let all = [a, b, c, d];
    until("a quarter each", SOON, || all.iter().all(|w| w.count(COMMAND) == 16)).await;
    floor.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_a_member_that_follows_and_never_leads() {
    let (servers, floor) = (broker().await, Arc::new(Floor::default()));
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let gateway = Member::join(&client, Settings::new("g", "gateway", [])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(look(&client).await.unwrap().leader, None);
    let a = Worker::join(&servers, &floor, "a").await;
    let map = gateway.map();
    let owner = || map.borrow().owner(COMMAND, 63).map(|(owner, _)| owner.clone());
    until("the gateway knows", SOON, || owner().as_ref() == Some(a.member.id())).await;
    assert!(gateway.assigned().borrow().places.is_empty());
    let subscriptions = servers_subscriptions(&servers).await;
    gateway.leave().await;
    gateway.leave().await;
    until("the record is gone", SOON, || !gateway.guard().holds()).await;
    // Its hints; the inbox stays with the connection.
    assert_eq!(servers_subscriptions(&servers).await, subscriptions - 1);
}

/// Subscriptions of all clients.
async fn servers_subscriptions(servers: &flexcore_servers::Servers) -> u64 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    tokio::time::sleep(Duration::from_millis(100)).await;
    let address = servers.nats_monitor_url().replace("http://", "");
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /connz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let connections = body["connections"].as_array().unwrap();
    connections.iter().map(|connection| connection["subscriptions"].as_u64().unwrap()).sum()
}

#[expect(clippy::print_stderr, reason = "a figure for whoever runs the test by hand")]
fn println_took(what: &str, took: Duration) {
    eprintln!("{what}: {took:?}");
}
