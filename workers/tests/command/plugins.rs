//! Commands that plugins decide: a command worker on a real broker, and who answers in place of a plugin worker.

use std::{collections::HashSet, sync::Mutex};

use bytes::Bytes;
use flexcore_domain::{
    Name, StateReply,
    plugin::decisions::{self, QUESTIONS_MAX, host_code},
};
use flexcore_plugin::contract::{
    DecideRequest, DecideResponse, Decision, DecisionResult, Event as Decided, Events, Failure,
    Question,
};
use futures::future::join_all;
use prost::Message as _;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    deciders::deployed,
    shares::{ask, key_of, store},
};

const COUNTER: &str = "aggregate: counter
decide: { plugin: rules }
commands:
  add: {}
events:
  added:
    data: { type: object }
    evolve: '(state) => (state ?? 0) + 1'
";

/// What is answered to a message with questions, by its number among all of them; `None`: nothing is.
type Answers = Option<(HeaderMap, Vec<u8>)>;

/// Takes the place of a plugin worker.
async fn plugin_worker<F>(rig: &Rig, answer: impl Fn(usize, DecideRequest) -> F + Send + 'static)
where
    F: Future<Output = Answers> + Send + 'static,
{
    let client = rig.store.client().clone();
    let subject = decisions::subject(&Name::parse("rules").unwrap());
    let mut questions = client.queue_subscribe(subject, "plugins".to_owned()).await.unwrap();
    client.flush().await.unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let Some(message) = questions.next().await else { return };
            let answered = answer(number, DecideRequest::decode(&*message.payload).unwrap());
            let (client, to) = (client.clone(), message.reply.unwrap());
            tokio::spawn(async move {
                if let Some((headers, body)) = answered.await {
                    client.publish_with_headers(to, headers, body.into()).await.unwrap();
                }
            });
        }
    });
}

fn accepted() -> DecisionResult {
    let event = Decided { event: "added".to_owned(), data: Bytes::from_static(b"{}") };
    DecisionResult::Events(Events { events: vec![event] })
}

fn each(request: &DecideRequest, of: impl Fn(&Question) -> DecisionResult) -> Answers {
    let decisions = request.questions.iter().map(|it| Decision { result: Some(of(it)) });
    let response = DecideResponse { number: request.number, decisions: decisions.collect() };
    Some((HeaderMap::new(), response.encode_to_vec()))
}

/// No decisions, and why.
fn refusal(word: &str) -> Answers {
    let mut headers = HeaderMap::new();
    headers.insert(decisions::header::REFUSAL, word);
    Some((headers, b"as asked".to_vec()))
}

fn late() -> DecisionResult {
    DecisionResult::Failure(Failure::new(host_code::LATE, "2 s"))
}

async fn work(rig: &Rig) -> BTreeMap<u16, u64> {
    let settings = command::Settings { lanes: 1, ..command::Settings::default() };
    rig.work_alone(deployed(COUNTER), settings).await.0
}

/// Each has a tenant of its own in its messages, and none waits for another one's.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_of_one_tenant_goes_together_and_others_go_beside_it() {
    let rig = Rig::start().await;
    let epochs = work(&rig).await;
    let seen: Arc<Mutex<Vec<(String, usize)>>> = Arc::default();
    let notes = seen.clone();
    plugin_worker(&rig, move |_, request| {
        let tenants = request.questions.iter().map(|it| it.context.clone().unwrap().tenant);
        let mut tenants: Vec<String> = tenants.collect();
        let count = tenants.len();
        tenants.dedup();
        assert_eq!(tenants.len(), 1, "{tenants:?}");
        let tenant = tenants.remove(0);
        notes.lock().unwrap().push((tenant.clone(), count));
        async move {
            if tenant == "hog" {
                sleep(Duration::from_millis(500)).await;
            }
            each(&request, |_| accepted())
        }
    })
    .await;
    let client = rig.store.client();
    let hogs = join_all((0..100).map(|id| ask(client, &epochs, key_of("hog", id))));
    let calm = async {
        sleep(Duration::from_millis(20)).await;
        let began = Instant::now();
        let told = ask(client, &epochs, key_of("calm", 0)).await;
        (told, began.elapsed())
    };
    let (hogs, (calm, took)) = tokio::join!(hogs, calm);
    for told in hogs.iter().chain([&calm]) {
        assert!(matches!(told, Outcome::Accepted { version: 1, .. }), "{told:?}");
    }
    assert!(took < Duration::from_millis(500), "{took:?}");
    let seen = seen.lock().unwrap().clone();
    let of_hog: Vec<usize> = seen.iter().filter(|it| it.0 == "hog").map(|it| it.1).collect();
    assert_eq!(of_hog.iter().sum::<usize>(), 100);
    assert!(of_hog.iter().all(|count| *count <= QUESTIONS_MAX), "{of_hog:?}");
    assert!(of_hog.len() < 50, "{of_hog:?}");
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_nobody_runs_or_that_is_silent_is_an_outage() {
    let rig = Rig::start().await;
    rig.put("stored").await;
    let epochs = work(&rig).await;
    let client = rig.store.client();
    // Not the aggregate in which a stored command waits.
    let told = ask(client, &epochs, key_of("acme", 2)).await;
    let Outcome::Away { message } = told else { panic!("{told:?}") };
    assert!(message.contains("flexcore plugin show rules"), "{message}");
    assert_eq!(rig.dead().await, 0);
    // A worker that was killed with the question says nothing; the next one does.
    plugin_worker(&rig, |number, request| async move {
        if number == 0 { None } else { each(&request, |_| accepted()) }
    })
    .await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["stored"]);
    assert_eq!(rig.dead().await, 0);
    rig.servers.stop().await;
}

/// The answer to a request with a command's id, when somebody listens.
async fn request<T: DeserializeOwned>(rig: &Rig, subject: &str, id: &str) -> T {
    let mut headers = HeaderMap::new();
    headers.insert(header::COMMAND_ID, id);
    let client = rig.store.client();
    let send = async || {
        let sent = client.request_with_headers(subject.to_owned(), headers.clone(), "{}".into());
        sent.await.ok()
    };
    serde_json::from_slice(&until(send).await.payload).unwrap()
}

/// Whoever asked for it was told after 8 s that nothing had been done, and might send the command again under another
/// id.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_goes_on_while_a_stored_command_waits_for_its_plugin() {
    let rig = Rig::start().await;
    rig.put("stored").await;
    let count = "commands:\n  count: { decide: \"() => [{ event: 'added', data: {} }]\" }";
    let catalog = deployed(&COUNTER.replace("commands:", count));
    let settings = command::Settings { lanes: 1, ..command::Settings::default() };
    let (epochs, _stop) = rig.work_alone(catalog, settings).await;
    let told = ask(rig.store.client(), &epochs, rig.key.clone()).await;
    assert!(matches!(told, Outcome::Away { .. }), "{told:?}");
    // So that the stored one waits, too.
    sleep(Duration::from_secs(1)).await;
    let epoch = epochs[&rig.key.slot().number()];
    let state = Command::state_subject(epoch, &rig.key);
    let told: StateReply = request(&rig, &state, "c-1").await;
    assert!(matches!(told, StateReply::NotFound), "{told:?}");
    let outcome = Command::outcome_subject(epoch, &rig.key);
    let told: Outcome = request(&rig, &outcome, "stored").await;
    assert!(matches!(told, Outcome::Pending), "{told:?}");
    let name = CommandName::parse("count").unwrap();
    let count = Command::request_subject(epoch, &rig.key, &name);
    let told: Outcome = request(&rig, &count, "counted").await;
    assert!(matches!(told, Outcome::Accepted { version: 1, .. }), "{told:?}");
    let told: StateReply = request(&rig, &state, "c-1").await;
    assert!(matches!(told, StateReply::Found { version: 1, .. }), "{told:?}");
    plugin_worker(&rig, |_, request| async move { each(&request, |_| accepted()) }).await;
    rig.settled().await;
    assert_eq!(rig.recorded().await, ["counted", "stored"]);
    assert_eq!(rig.dead().await, 0);
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_room_beside_others_is_asked_for_alone() {
    let rig = Rig::start().await;
    let epochs = work(&rig).await;
    let seen: Arc<Mutex<HashSet<String>>> = Arc::default();
    let notes = seen.clone();
    plugin_worker(&rig, move |_, request| {
        let is_new = |it: &Question| notes.lock().unwrap().insert(it.id.clone());
        let new = request.questions.iter().filter(|it| is_new(it)).count();
        assert!(new == request.questions.len() || (new, request.questions.len()) == (0, 1));
        async move {
            // So that others gather behind the first ones.
            sleep(Duration::from_millis(50)).await;
            each(&request, |_| match new {
                0 => accepted(),
                _ => DecisionResult::Failure(Failure::passing(host_code::ALONE, "as asked")),
            })
        }
    })
    .await;
    let client = rig.store.client();
    let told = join_all((0..10).map(|id| ask(client, &epochs, key_of("acme", id)))).await;
    for told in &told {
        assert!(matches!(told, Outcome::Accepted { version: 1, .. }), "{told:?}");
    }
    assert_eq!(seen.lock().unwrap().len(), 10);
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_refuses_is_understood() {
    let rig = Rig::start().await;
    let epochs = work(&rig).await;
    plugin_worker(&rig, |_, request| async move {
        match &*request.questions[0].id {
            "c0" => refusal("not_for_tenant"),
            "c1" => refusal("busy"),
            "c2" => each(&request, |_| late()),
            _ => each(&request, |_| DecisionResult::Rejected(Failure::new("closed", "no"))),
        }
    })
    .await;
    let client = rig.store.client();
    let mut told = Vec::new();
    for id in 0..4 {
        told.push(ask(client, &epochs, key_of("acme", id)).await);
    }
    assert!(matches!(&told[0], Outcome::Faulty { message } if message.contains("as asked")));
    assert!(matches!(&told[1], Outcome::Away { message } if message.contains("as asked")));
    assert!(matches!(&told[2], Outcome::Faulty { message } if message.contains("2 s")));
    assert!(matches!(&told[3], Outcome::Rejected { code, .. } if code == "closed"), "{told:?}");
    rig.servers.stop().await;
}

/// One of two workers that starts its plugin again and again answered for both.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_a_worker_cannot_ask_goes_to_another_one() {
    let rig = Rig::start().await;
    let epochs = work(&rig).await;
    plugin_worker(&rig, |number, request| async move {
        match number {
            0 => refusal("away"),
            1 => refusal("busy"),
            2 => each(&request, |_| {
                DecisionResult::Failure(Failure::passing(host_code::AWAY, "it starts"))
            }),
            _ => each(&request, |_| accepted()),
        }
    })
    .await;
    let told = ask(rig.store.client(), &epochs, key_of("acme", 0)).await;
    assert!(matches!(told, Outcome::Accepted { version: 1, .. }), "{told:?}");
    rig.servers.stop().await;
}

/// Any of them may be why: none is faulty.
#[tokio::test(flavor = "multi_thread")]
async fn questions_that_are_late_beside_others_may_be_asked_again() {
    let rig = Rig::start().await;
    let epochs = work(&rig).await;
    plugin_worker(&rig, |_, request| async move {
        // So that others gather behind the first ones.
        sleep(Duration::from_millis(200)).await;
        let is_alone = request.questions.len() == 1;
        each(&request, |_| if is_alone { accepted() } else { late() })
    })
    .await;
    let client = rig.store.client();
    let told = join_all((0..10).map(|id| ask(client, &epochs, key_of("acme", id)))).await;
    let is_away = |told: &&Outcome| matches!(told, Outcome::Away { .. });
    let is_done = |told: &&Outcome| matches!(told, Outcome::Accepted { .. });
    let (done, away) = (told.iter().filter(is_done).count(), told.iter().filter(is_away).count());
    assert!(done + away == told.len() && away > 1, "{told:?}");
    rig.servers.stop().await;
}

/// What had waited here for long was sent with no time left, and was taken to be late: four times, and it was put
/// aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_has_too_much_to_do_puts_no_stored_command_aside() {
    const STORED: usize = 1_024;
    /// For a decision, one after another: 1,024 take a multiple of the time that four tries have.
    const TAKES: Duration = Duration::from_millis(8);
    let rig = Rig::start().await;
    let publisher = rig.store.command_publisher();
    store(&publisher, (0..STORED).map(|id| key_of("acme", id))).await;
    let turns = Arc::new(tokio::sync::Mutex::new(()));
    plugin_worker(&rig, move |_, request| {
        let (came, turns) = (Instant::now(), turns.clone());
        async move {
            let _turn = turns.lock().await;
            let mut results = Vec::new();
            for question in &request.questions {
                let timeout_ms = question.context.as_ref().map_or(0, |it| it.timeout_ms);
                let is_late = came.elapsed() + TAKES > Duration::from_millis(timeout_ms);
                if !is_late {
                    sleep(TAKES).await;
                }
                let result = if is_late { late() } else { accepted() };
                results.push(Decision { result: Some(result) });
            }
            let response = DecideResponse { number: request.number, decisions: results };
            Some((HeaderMap::new(), response.encode_to_vec()))
        }
    })
    .await;
    work(&rig).await;
    let began = Instant::now();
    while rig.store.queue_depth().await.unwrap() > 0 {
        assert!(began.elapsed() < PATIENCE * 3, "commands are left");
        assert_eq!(rig.dead().await, 0);
        sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(rig.dead().await, 0);
    assert!(rig.store.last_sequence().await.unwrap() >= STORED as u64);
    rig.servers.stop().await;
}
