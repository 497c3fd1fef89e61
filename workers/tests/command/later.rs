//! Deciders that answer later, asked by a worker on a real broker.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use flexcore_domain::{Decider as _, Refusal};
use flexcore_workers::command::{
    LaterDecider, NoDecision, Proposals, ProposedEvent, Settings, ToDecide,
};
use futures::{FutureExt as _, future::pending};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::shares::{ask, key_of};

/// Time that such a decider has.
const TIME: Duration = Duration::from_secs(2);

/// A worker of one lane, so that who holds up the lane holds up all. This answers the nth question that
/// its decider is asked.
pub(crate) fn decided_by<F>(
    answer: impl Fn(usize, ToDecide) -> F + Send + std::marker::Sync + 'static,
) -> Settings
where
    F: Future<Output = Proposals> + Send + 'static,
{
    let asked = AtomicUsize::new(0);
    let decider: LaterDecider =
        Arc::new(move |to_decide| answer(asked.fetch_add(1, Ordering::Relaxed), to_decide).boxed());
    let native: command::NativeDeciders = Arc::new(|_| Some(Box::new(Accepts(1))));
    let later: command::LaterDeciders = Arc::new(move |_, _, _| Some(decider.clone()));
    Settings { lanes: 1, native, later, ..Settings::default() }
}

pub(crate) fn accept(asked: &ToDecide) -> Proposals {
    let ToDecide { state, command, context } = asked;
    let decided = Accepts(1).decide(state, &command.name, &command.payload, context);
    let decision = decided.map_err(NoDecision::Refused)?;
    let proposed = decision.events.into_iter().map(|it| ProposedEvent {
        event: it.event.to_string(),
        data: it.data.get().to_owned().into(),
    });
    Ok(proposed.collect())
}

/// A worker that owns every slot, and their epochs.
async fn work(rig: &Rig, settings: Settings) -> BTreeMap<u16, u64> {
    rig.work_alone(Catalog::default(), settings).await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decider_that_answers_late_holds_up_its_own_aggregate_alone() {
    let rig = Rig::start().await;
    let begun = Arc::new(Notify::new());
    let notes = begun.clone();
    let settings = decided_by(move |nth, asked| {
        let notes = notes.clone();
        async move {
            if nth == 0 {
                notes.notify_one();
                sleep(TIME / 2).await;
            }
            accept(&asked)
        }
    });
    let epochs = work(&rig, settings).await;
    let client = rig.store.client();
    let late = async { (ask(client, &epochs, rig.key.clone()).await, Instant::now()) };
    let other = async {
        begun.notified().await;
        (ask(client, &epochs, key_of("acme", 2)).await, Instant::now())
    };
    let ((late, late_at), (other, other_at)) = tokio::join!(late, other);
    for outcome in [late, other] {
        assert!(matches!(outcome, Outcome::Accepted { version: 1, .. }), "{outcome:?}");
    }
    assert!(other_at < late_at, "the lane stood still");
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_too_late_is_an_answer_that_does_not_come() {
    let rig = Rig::start().await;
    let came = Arc::new(AtomicBool::new(false));
    let notes = came.clone();
    let settings = decided_by(move |nth, asked| {
        let notes = notes.clone();
        async move {
            if nth == 0 {
                sleep(TIME + Duration::from_millis(500)).await;
                notes.store(true, Ordering::Relaxed);
            }
            accept(&asked)
        }
    });
    let epochs = work(&rig, settings).await;
    let client = rig.store.client();
    let told = ask(client, &epochs, rig.key.clone()).await;
    let Outcome::Faulty { message } = told else { panic!("{told:?}") };
    assert!(message.contains("did not answer within 2 s"), "{message}");
    sleep(Duration::from_secs(1)).await;
    assert!(!came.load(Ordering::Relaxed), "it was worked on beyond its time");
    // The same id: nothing has come of it so far.
    let again = ask(client, &epochs, rig.key.clone()).await;
    let first = matches!(again, Outcome::Accepted { version: 1, replayed: false, .. });
    assert!(first, "{again:?}");
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decider_that_fails_is_an_answer_and_the_lane_goes_on() {
    let rig = Rig::start().await;
    let settings = decided_by(|nth, asked| async move {
        match nth {
            0 => panic!("a bug, on purpose"),
            1 => Err(NoDecision::Refused(Refusal::Rejected {
                code: "closed".to_owned(),
                message: "not today".to_owned(),
            })),
            2 => Err(NoDecision::Away("it starts again".to_owned())),
            _ => accept(&asked),
        }
    });
    // It is gone when the action is performed: there when the lane looks, and not at the next look.
    let (later, looks) = (settings.later.clone(), AtomicUsize::new(0));
    let gone: command::LaterDeciders =
        Arc::new(move |catalog, name, command| match name.as_str() {
            "gone" if looks.fetch_add(1, Ordering::Relaxed) > 0 => None,
            _ => later(catalog, name, command),
        });
    let epochs = work(&rig, Settings { later: gone, ..settings }).await;
    let client = rig.store.client();
    let told = ask(client, &epochs, rig.key.clone()).await;
    let Outcome::Faulty { message } = &told else { panic!("{told:?}") };
    assert!(message.contains("panicked"), "{message}");
    let told = ask(client, &epochs, rig.key.clone()).await;
    assert!(matches!(&told, Outcome::Rejected { code, .. } if code == "closed"), "{told:?}");
    let told = ask(client, &epochs, rig.key.clone()).await;
    let Outcome::Away { message } = &told else { panic!("{told:?}") };
    assert!(message.contains("it starts again"), "{message}");
    let (tenant, id) = (rig.key.tenant().clone(), rig.key.id().clone());
    let key = AggregateKey::new(tenant, AggregateName::parse("gone").unwrap(), id);
    let told = ask(client, &epochs, key).await;
    let Outcome::Away { message } = &told else { panic!("{told:?}") };
    assert!(message.contains("not there any more"), "{message}");
    let told = ask(client, &epochs, rig.key.clone()).await;
    assert!(matches!(told, Outcome::Accepted { version: 1, .. }), "{told:?}");
    rig.servers.stop().await;
}

/// It is not put aside, however often its decider cannot be asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_command_waits_for_a_decider_that_is_away() {
    let rig = Rig::start().await;
    let settings = decided_by(|nth, asked| async move {
        if nth < 6 { Err(NoDecision::Away("it starts".to_owned())) } else { accept(&asked) }
    });
    rig.put("first").await;
    rig.put("second").await;
    work(&rig, settings).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["first", "second"]);
    assert_eq!(rig.dead().await, 0);
    rig.servers.stop().await;
}

/// Its client would be in doubt, and the command would be decided twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_waits_for_the_decider_that_it_has_asked() {
    let rig = Rig::start().await;
    let (begun, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let notes = (begun.clone(), goes_on.clone());
    let settings = decided_by(move |_, asked| {
        let (begun, goes_on) = notes.clone();
        async move {
            begun.notify_one();
            goes_on.notified().await;
            accept(&asked)
        }
    });
    let (member, stop) = (rig.member(LEASE).await, CancellationToken::new());
    let worker = rig.work_with(member.clone(), settings, stop.clone());
    let epoch = everything(&member).await[&rig.key.slot().number()];
    let mut answers = timeout(PATIENCE, rig.ask(epoch, &begun)).await.unwrap();
    stop.cancel();
    sleep(TIME / 4).await;
    assert!(!worker.is_finished(), "an answer is owed");
    goes_on.notify_one();
    let answer = timeout(PATIENCE, answers.next()).await.unwrap().unwrap();
    let outcome: Outcome = serde_json::from_slice(&answer.payload).unwrap();
    assert!(matches!(outcome, Outcome::Accepted { version: 1, .. }), "{outcome:?}");
    timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
    rig.servers.stop().await;
}

/// The next owner asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_worker_died_while_its_decider_was_asked_is_done_once() {
    let rig = Rig::start().await;
    rig.put("stored").await;
    let begun = Arc::new(Notify::new());
    let notes = begun.clone();
    let settings = decided_by(move |_, _| {
        notes.notify_one();
        pending()
    });
    // All of it ends at once with its runtime, and says goodbye to nobody.
    let process = Runtime::new().unwrap();
    let (url, opened) = (rig.servers.nats_url(), rig.store.settings().clone());
    process.spawn(async move {
        let client = async_nats::connect(url).await.unwrap();
        let store = EventStore::open(client, opened).await.unwrap();
        let membership = flexcore_cluster::Settings::new("first", "worker", [COMMANDS]);
        let membership = flexcore_cluster::Settings { lease: LEASE_MIN, ..membership };
        let member = Member::join(store.client(), membership).await.unwrap();
        let (_deployed, catalog) = watch::channel(Arc::new(Catalog::default()));
        command::run(store, catalog, member, settings, CancellationToken::new()).await
    });
    timeout(PATIENCE, begun.notified()).await.unwrap();
    process.shutdown_background();
    let settings = decided_by(|_, asked| async move { accept(&asked) });
    work(&rig, settings).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["stored"]);
    assert_eq!(rig.dead().await, 0);
    rig.servers.stop().await;
}
