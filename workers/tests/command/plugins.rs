//! Commands that plugins decide: a command worker on a real broker, and who answers in place of a plugin worker.

use std::{collections::HashSet, sync::Mutex};

use bytes::Bytes;
use flexcore_domain::{
    Name,
    plugin::decisions::{self, QUESTIONS_MAX, host_code},
};
use flexcore_plugin::contract::{
    DecideRequest, DecideResponse, Decision, DecisionResult, Event as Decided, Events, Failure,
    Question,
};
use futures::future::join_all;
use prost::Message as _;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    deciders::deployed,
    shares::{ask, key_of},
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
    let Outcome::Unavailable { message } = told else { panic!("{told:?}") };
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
    plugin_worker(&rig, |number, request| async move {
        let word = match number {
            0 => "not_for_tenant",
            1 => "busy",
            2 => {
                return each(&request, |_| {
                    DecisionResult::Failure(Failure::new(host_code::LATE, "2 s"))
                });
            }
            _ => return each(&request, |_| DecisionResult::Rejected(Failure::new("closed", "no"))),
        };
        let mut headers = HeaderMap::new();
        headers.insert(decisions::header::REFUSAL, word);
        Some((headers, b"as asked".to_vec()))
    })
    .await;
    let client = rig.store.client();
    let mut told = Vec::new();
    for id in 0..4 {
        told.push(ask(client, &epochs, key_of("acme", id)).await);
    }
    assert!(matches!(&told[0], Outcome::Faulty { message } if message.contains("as asked")));
    assert!(matches!(&told[1], Outcome::Unavailable { message } if message.contains("as asked")));
    assert!(matches!(&told[2], Outcome::Faulty { message } if message.contains("2 s")));
    assert!(matches!(&told[3], Outcome::Rejected { code, .. } if code == "closed"), "{told:?}");
    rig.servers.stop().await;
}
