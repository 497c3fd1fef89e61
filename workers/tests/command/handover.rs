//! Slots that change hands while much is stored for them.

use std::sync::atomic::{AtomicUsize, Ordering};

use flexcore_workers::command::NoDecision;
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::{
    deciders::busy,
    later::{accept, decided_by},
    shares::{ask, hog, key_of, reaches},
};

/// Processor time for deciding a command of a tenant that is to rest.
const TAKES: Duration = Duration::from_millis(30);
const AGGREGATES: usize = 50;
/// Commands of each, stored one after the other.
const EACH: usize = 4;
/// Time for a slot's hand-over. Whoever sends a command waits 5 s for it, and a worker that does not come
/// to an end is not waited for after 10 s.
const HANDED_OVER: Duration = Duration::from_secs(4);

/// Deciders of one lane: an aggregate that takes long, and others that do not.
fn settings(begun: &Arc<AtomicUsize>) -> command::Settings {
    let counted = begun.clone();
    let native: command::NativeDeciders = Arc::new(move |aggregate| {
        if aggregate.as_str() == "hog" {
            return Some(Box::new(busy(TAKES, counted.clone())));
        }
        Some(Box::new(Accepts(1)))
    });
    command::Settings { lanes: 1, native, ..command::Settings::default() }
}

fn stored_id(nth: usize) -> String {
    format!("stored-{nth}")
}

/// Stores the commands of the tenant that is to rest.
async fn store_all(rig: &Rig) {
    let (publisher, name) = (rig.store.command_publisher(), CommandName::parse("add").unwrap());
    for nth in 0..EACH {
        let id = CommandId::parse(&stored_id(nth)).unwrap();
        for number in 0..AGGREGATES {
            let headers = HeaderMap::new();
            publisher.publish(&hog(number), &name, &id, headers, "{}".to_owned()).await.unwrap();
        }
    }
}

/// Asks the owner of the aggregate's slot, whoever that is.
async fn ask_owner(owners: &Owners, key: &AggregateKey) -> Outcome {
    let name = CommandName::parse("add").unwrap();
    let question = |epoch, _| {
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, "c-1");
        (Command::request_subject(epoch, key, &name), headers)
    };
    let asked = owners.ask(key.slot().number(), PATIENCE, "{}".into(), question).await;
    let answered = asked.unwrap_or_else(|unanswered| panic!("{key:?}: {unanswered}"));
    serde_json::from_slice(&answered.message.payload).unwrap()
}

/// Sends a command to an aggregate of its own every 50 ms, until it is told to stop. Returns what came of
/// them.
async fn keep_asking(owners: Owners, stop: CancellationToken) -> Vec<Outcome> {
    let mut asked = Vec::new();
    while !stop.is_cancelled() {
        let (owners, key) = (owners.clone(), key_of("calm", asked.len()));
        asked.push(tokio::spawn(async move { ask_owner(&owners, &key).await }));
        sleep(Duration::from_millis(50)).await;
    }
    join_all(asked).await.into_iter().map(Result::unwrap).collect()
}

/// A slot had no owner for 10 s, and clients of all tenants in it were told so after 5 s.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_tenant_has_stored_does_not_hold_up_a_slots_hand_over() {
    let (rig, begun) = (Rig::start().await, Arc::new(AtomicUsize::new(0)));
    store_all(&rig).await;
    let first = rig.member(LEASE).await;
    let mut keeps = first.assigned();
    let worker = rig.work_with(first.clone(), settings(&begun), CancellationToken::new());
    let epochs = everything(&first).await;
    // When it is answered, the worker listens.
    let early = ask(rig.store.client(), &epochs, key_of("early", 0)).await;
    assert!(matches!(early, Outcome::Accepted { .. }), "{early:?}");
    let owners = Owners::of(COMMANDS, rig.store.client(), &first);
    let calm = CancellationToken::new();
    let asking = tokio::spawn(keep_asking(owners, calm.clone()));
    reaches(&begun, 20).await;
    let second = rig.member(LEASE).await;
    let mut gets = second.assigned();
    let other = rig.work_with(second.clone(), settings(&begun), CancellationToken::new());
    let leaves = keeps.wait_for(|now| now.of(COMMANDS).len() == 32);
    drop(timeout(PATIENCE, leaves).await.unwrap().unwrap());
    let began = Instant::now();
    let half = gets.wait_for(|now| now.of(COMMANDS).len() == 32);
    drop(timeout(PATIENCE, half).await.unwrap().unwrap());
    let took = began.elapsed();
    assert!(begun.load(Ordering::Relaxed) < AGGREGATES * EACH, "all of it was done before");
    assert!(took < HANDED_OVER, "{took:?}");
    // Those who asked just before the end, too.
    sleep(Duration::from_millis(500)).await;
    calm.cancel();
    let outcomes = timeout(PATIENCE, asking).await.unwrap().unwrap();
    for outcome in &outcomes {
        assert!(matches!(outcome, Outcome::Accepted { version: 1, .. }), "{outcome:?}");
    }
    rig.settled().await;
    let all: Vec<String> = (0..EACH).map(stored_id).collect();
    for number in 0..AGGREGATES {
        let commits = rig.store.load(&hog(number), 0).await.unwrap();
        let ids = commits.iter().map(|recorded| recorded.commit.command_id.to_string());
        assert_eq!(ids.collect::<Vec<_>>(), all, "h{number}: each once, and in order");
    }
    assert_eq!(rig.dead().await, 0);
    worker.abort();
    other.abort();
    rig.servers.stop().await;
}

/// Behind a client that is answered, stored commands of its aggregate were begun for as long as there were
/// any.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_to_be_left_answers_its_clients_and_begins_nothing_that_is_stored() {
    let (rig, asked) = (Rig::start().await, Arc::new(AtomicUsize::new(0)));
    let (begun, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let notes = (begun.clone(), goes_on.clone(), asked.clone());
    let settings = decided_by(move |nth, to_decide| {
        let (begun, goes_on, asked) = notes.clone();
        async move {
            asked.fetch_add(1, Ordering::Relaxed);
            begun.notify_one();
            if nth == 0 {
                goes_on.notified().await;
            }
            accept(&to_decide)
        }
    });
    let (member, stop) = (rig.member(LEASE).await, CancellationToken::new());
    let worker = rig.work_with(member.clone(), settings, stop.clone());
    let epoch = everything(&member).await[&rig.key.slot().number()];
    let mut answers = timeout(PATIENCE, rig.ask(epoch, &begun)).await.unwrap();
    for id in ["stored-0", "stored-1"] {
        rig.put(id).await;
    }
    // Until they wait in the lane. The decider has two seconds in all.
    sleep(Duration::from_millis(150)).await;
    stop.cancel();
    // Until the lane begins no more of them.
    sleep(Duration::from_millis(1_200)).await;
    assert!(!worker.is_finished(), "an answer is owed");
    goes_on.notify_one();
    let answer = timeout(PATIENCE, answers.next()).await.unwrap().unwrap();
    let outcome: Outcome = serde_json::from_slice(&answer.payload).unwrap();
    assert!(matches!(outcome, Outcome::Accepted { version: 1, .. }), "{outcome:?}");
    timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
    assert_eq!(asked.load(Ordering::Relaxed), 1, "stored ones are for the next owner");
    assert_eq!(rig.recorded().await, ["c-1"]);
    member.leave().await;
    let settings = decided_by(|_, to_decide| async move { accept(&to_decide) });
    let (_epochs, stop) = rig.work_alone(Catalog::default(), settings).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["c-1", "stored-0", "stored-1"]);
    stop.cancel();
    rig.servers.stop().await;
}

/// It is under way for as long as its decider is away. Ten workers that were stopped meanwhile had it put
/// aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_gives_back_what_is_under_way_and_has_not_died_of_it() {
    let (rig, begun) = (Rig::start().await, Arc::new(Notify::new()));
    for id in ["first", "second"] {
        rig.put(id).await;
    }
    let notes = begun.clone();
    let settings = decided_by(move |_, _| {
        notes.notify_one();
        async { Err(NoDecision::Away("it starts".to_owned())) }
    });
    let (member, stop) = (rig.member(LEASE).await, CancellationToken::new());
    let worker = rig.work_with(member.clone(), settings, stop.clone());
    timeout(PATIENCE, begun.notified()).await.unwrap();
    assert_eq!(rig.begun_by_the_dead().await, 1, "it would count as dead if it were killed now");
    stop.cancel();
    let stopped = Instant::now();
    timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
    assert!(stopped.elapsed() < HANDED_OVER, "{:?}", stopped.elapsed());
    assert_eq!(rig.begun_by_the_dead().await, 0);
    member.leave().await;
    let settings = decided_by(|_, to_decide| async move { accept(&to_decide) });
    let (_epochs, stop) = rig.work_alone(Catalog::default(), settings).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["first", "second"]);
    assert_eq!(rig.dead().await, 0);
    stop.cancel();
    rig.servers.stop().await;
}
