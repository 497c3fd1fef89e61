//! Questions to owners that change meanwhile.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{Client, HeaderMap, Message, Subscriber};
use flexcore_cluster::{Answered, Map, Member, MemberId, Owners, Place, Settings, Unanswered};
use flexcore_servers::Servers;
use futures::StreamExt;

use crate::floor::{COMMAND, KINDS, broker, put};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A broker with a bucket, and nobody who writes its map.
async fn without_leader() -> (Servers, Client) {
    let servers = broker().await;
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let member = Member::join(&client, Settings::new("a", "worker", KINDS)).await.unwrap();
    member.leave().await;
    (servers, client)
}

/// Writes a map in which slot 0 has the owner of this epoch, or none.
async fn owned(client: &Client, epoch: Option<u64>) {
    let owner = epoch.map(|_| MemberId::new("owner", "1"));
    give(client, Place { owner, epoch: epoch.unwrap_or(0), ..Place::default() }).await;
}

/// Writes a map in which this is slot 0.
async fn give(client: &Client, place: Place) {
    let map =
        Map { places: BTreeMap::from([(COMMAND.name.into(), vec![place])]), ..Map::default() };
    put(client, "map", &serde_json::to_string(&map).unwrap(), None).await.unwrap();
}

async fn ask(owners: Owners, within: Duration) -> Result<Answered, Unanswered> {
    let question = |epoch, _| (format!("req.{epoch}"), HeaderMap::new());
    owners.ask(0, within, "do".into(), question).await
}

async fn next(requests: &mut Subscriber) -> Message {
    tokio::time::timeout(PATIENCE, requests.next()).await.expect("a request").unwrap()
}

async fn refuse(client: &Client, requests: &mut Subscriber) {
    let reply = next(requests).await.reply.unwrap();
    client.publish(reply, "no".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_whether_an_earlier_owner_was_asked() {
    let (_servers, client) = without_leader().await;
    owned(&client, Some(1)).await;
    let owners = Owners::attach(COMMAND, &client).await.unwrap();
    let mut first = client.subscribe("req.1").await.unwrap();
    let mut second = client.subscribe("req.2").await.unwrap();
    let asked = tokio::spawn(ask(owners.clone(), PATIENCE));
    refuse(&client, &mut first).await;
    assert!(!asked.await.unwrap().unwrap().repeated, "nobody else was asked");

    // The owner has the question when it loses the slot, and may still act on it.
    let asked = tokio::spawn(ask(owners.clone(), PATIENCE));
    next(&mut first).await;
    owned(&client, Some(2)).await;
    refuse(&client, &mut second).await;
    assert!(asked.await.unwrap().unwrap().repeated);
}

/// It may stop listening just then: a request that is lost that way is in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_to_leave_is_not_asked_any_more() {
    let (_servers, client) = without_leader().await;
    let owner = Some(MemberId::new("owner", "1"));
    give(&client, Place { owner, epoch: 1, leaving: true, ..Place::default() }).await;
    let owners = Owners::attach(COMMAND, &client).await.unwrap();
    let mut first = client.subscribe("req.1").await.unwrap();
    let mut second = client.subscribe("req.2").await.unwrap();
    let asked = tokio::spawn(ask(owners, PATIENCE));
    let early = tokio::time::timeout(Duration::from_millis(300), first.next()).await;
    assert!(early.is_err(), "{early:?}");
    owned(&client, Some(2)).await;
    refuse(&client, &mut second).await;
    assert!(!asked.await.unwrap().unwrap().repeated);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_took_nothing_up_leaves_no_doubt() {
    let (_servers, client) = without_leader().await;
    // Nobody listens under this epoch.
    owned(&client, Some(1)).await;
    let owners = Owners::attach(COMMAND, &client).await.unwrap();
    let nobody = ask(owners, Duration::from_millis(200)).await;
    assert_eq!(nobody.unwrap_err(), Unanswered::NoOwner);
    // When the news of a successor overtakes the broker's word that nobody listens there is doubt,
    // rightly: hence another try.
    let mut epoch = 1;
    let (owners, mut second) = loop {
        owned(&client, Some(epoch)).await;
        let owners = Owners::attach(COMMAND, &client).await.unwrap();
        let mut second = client.subscribe(format!("req.{}", epoch + 1)).await.unwrap();
        let asked = tokio::spawn(ask(owners.clone(), PATIENCE));
        owned(&client, Some(epoch + 1)).await;
        refuse(&client, &mut second).await;
        if !asked.await.unwrap().unwrap().repeated {
            break (owners, second);
        }
        epoch += 2;
        assert!(epoch < 10, "there is doubt each time");
    };
    // It was asked, and its successor does not listen.
    let asked = tokio::spawn(ask(owners, PATIENCE));
    next(&mut second).await;
    owned(&client, Some(epoch + 2)).await;
    let lost = asked.await.unwrap().unwrap_err();
    assert_eq!(lost, Unanswered::InDoubt("its owner has gone meanwhile".to_owned()));
}
