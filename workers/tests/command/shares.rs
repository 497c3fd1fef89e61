//! One tenant at many times its share: another one is refused nothing.

use std::sync::atomic::{AtomicUsize, Ordering};

use flexcore_domain::StateReply;
use flexcore_eventstore::commands::CommandPublisher;
use futures::future::join_all;

use super::*;
use crate::deciders::{busy, busy_fold, deployed};

/// Time for deciding a command.
const TAKES: Duration = Duration::from_millis(1);

pub(crate) fn key_of(tenant: &str, id: usize) -> AggregateKey {
    AggregateKey::new(
        Tenant::parse(tenant).unwrap(),
        AggregateName::parse("counter").unwrap(),
        AggregateId::parse(&format!("c{id}")).unwrap(),
    )
}

/// A worker of one lane, and who owns which slot.
async fn one_lane(rig: &Rig) -> (BTreeMap<u16, u64>, CancellationToken) {
    one_lane_with(rig, Arc::new(|_| Some(Box::new(slow(TAKES))))).await
}

async fn one_lane_with(
    rig: &Rig,
    native: command::NativeDeciders,
) -> (BTreeMap<u16, u64>, CancellationToken) {
    let settings = command::Settings { lanes: 1, native, ..command::Settings::default() };
    rig.work_alone(Catalog::default(), settings).await
}

pub(crate) async fn ask(
    client: &async_nats::Client,
    epochs: &BTreeMap<u16, u64>,
    key: AggregateKey,
) -> Outcome {
    let mut headers = HeaderMap::new();
    headers.insert(header::COMMAND_ID, "c-1");
    let subject = Command::request_subject(
        epochs[&key.slot().number()],
        &key,
        &CommandName::parse("add").unwrap(),
    );
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let sent = client.request_with_headers(subject.clone(), headers.clone(), "{}".into());
        match sent.await {
            Ok(answer) => return serde_json::from_slice(&answer.payload).unwrap(),
            // Nobody has subscribed yet.
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn store(publisher: &CommandPublisher, keys: impl Iterator<Item = AggregateKey>) {
    let (name, id) = (CommandName::parse("add").unwrap(), CommandId::parse("stored").unwrap());
    let mut sent = Vec::new();
    for key in keys {
        let headers = HeaderMap::new();
        sent.push(publisher.send(&key, &name, &id, headers, "{}".to_owned()).await.unwrap());
    }
    for sent in sent {
        sent.stored().await.unwrap();
    }
}

fn is_accepted(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Accepted { .. })
}

/// Has a command accepted, also where the machine is too busy for the first try.
async fn accepted(client: &async_nats::Client, epochs: &BTreeMap<u16, u64>, key: AggregateKey) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let outcome = ask(client, epochs, key.clone()).await;
        if is_accepted(&outcome) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{outcome:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Nobody waits for them: they took the places of those who do.
#[tokio::test(flavor = "multi_thread")]
async fn stored_commands_take_no_place_of_a_waiting_client() {
    const STORED: usize = 6_000;
    let rig = Rig::start().await;
    let publisher = rig.store.command_publisher();
    store(&publisher, (0..STORED).map(|id| key_of("flood", id))).await;
    let (epochs, stop) = one_lane(&rig).await;
    let client = rig.store.client();
    // As soon as a good part of them is in the lane. The broker may be too busy to say so in time.
    while !rig.store.last_sequence().await.is_ok_and(|last| last >= 200) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for id in 0..20 {
        let outcome = ask(client, &epochs, key_of("calm", id)).await;
        assert!(is_accepted(&outcome), "{outcome:?}");
    }
    let recorded = rig.store.last_sequence().await.unwrap();
    assert!(recorded < STORED as u64, "the flood was over: {recorded}");
    stop.cancel();
    rig.servers.stop().await;
}

/// Turns count commands, and one of these takes as long as a thousand others.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_functions_take_long_leaves_the_lane_to_others() {
    const CALM: usize = 40;
    const LONG: Duration = Duration::from_millis(100);
    let (rig, begun) = (Rig::start().await, Arc::new(AtomicUsize::new(0)));
    let hog = AggregateName::parse("hog").unwrap();
    let hog_id = |id| AggregateId::parse(&format!("h{id}")).unwrap();
    let key = |id| AggregateKey::new(Tenant::parse("hostile").unwrap(), hog.clone(), hog_id(id));
    store(&rig.store.command_publisher(), (0..200).map(key)).await;
    let (counted, theirs) = (begun.clone(), hog.clone());
    let native: command::NativeDeciders = Arc::new(move |aggregate| {
        if *aggregate == theirs {
            return Some(Box::new(busy(Duration::from_millis(100), counted.clone())));
        }
        Some(Box::new(slow(TAKES)))
    });
    let (epochs, stop) = one_lane_with(&rig, native).await;
    let client = rig.store.client();
    accepted(client, &epochs, key_of("calm", 0)).await;
    let (before, begin) = (begun.load(Ordering::Relaxed), tokio::time::Instant::now());
    for id in 1..=CALM {
        accepted(client, &epochs, key_of("calm", id)).await;
    }
    let meanwhile = begun.load(Ordering::Relaxed) - before;
    // Where the other one's commands take long since the machine is busy: its part of that time.
    let (used, elapsed) = (LONG * u32::try_from(meanwhile).unwrap(), begin.elapsed());
    assert!(
        meanwhile < CALM / 2 || used * 8 < elapsed,
        "{meanwhile} of them between {CALM} of the other tenant, {used:?} of {elapsed:?}"
    );
    while begun.load(Ordering::Relaxed) < before + meanwhile + 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    rig.servers.stop().await;
}

/// Keys of an aggregate of its own, of one tenant.
pub(crate) fn hog(id: usize) -> AggregateKey {
    let (tenant, name) = (Tenant::parse("hostile").unwrap(), AggregateName::parse("hog").unwrap());
    AggregateKey::new(tenant, name, AggregateId::parse(&format!("h{id}")).unwrap())
}

/// Appends a commit to an aggregate that has so many.
async fn append_to(rig: &Rig, key: AggregateKey, last: Expected, version: u64) -> Expected {
    let commit = Commit { key, ..rig.commit(&format!("c-{version}"), version) };
    let appended = rig.store.append(&commit, last).await.unwrap();
    Expected { sequence: appended.sequence, hash: appended.hash }
}

/// Waits until so many calls were begun.
pub(crate) async fn reaches(begun: &AtomicUsize, count: usize) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while begun.load(Ordering::Relaxed) < count {
        assert!(tokio::time::Instant::now() < deadline, "{begun:?} of {count}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// All that the other tenant had begun while it was alone was done first: hundreds of calls.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_command_of_whoever_comes_stands_behind_few_calls() {
    const THEIRS: usize = 300;
    let (rig, begun) = (Rig::start().await, Arc::new(AtomicUsize::new(0)));
    // They are there, so that they have to be loaded.
    for id in 0..THEIRS {
        append_to(&rig, hog(id), Expected::default(), 1).await;
    }
    store(&rig.store.command_publisher(), (0..THEIRS).map(hog)).await;
    let counted = begun.clone();
    let native: command::NativeDeciders = Arc::new(move |aggregate| {
        if aggregate.as_str() == "hog" {
            return Some(Box::new(busy(Duration::from_millis(50), counted.clone())));
        }
        Some(Box::new(slow(TAKES)))
    });
    let (epochs, stop) = one_lane_with(&rig, native).await;
    reaches(&begun, 5).await;
    let before = begun.load(Ordering::Relaxed);
    let outcome = ask(rig.store.client(), &epochs, key_of("calm", 0)).await;
    let meanwhile = begun.load(Ordering::Relaxed) - before;
    assert!(is_accepted(&outcome), "{outcome:?}");
    // A command's own time, loading and appending it, is long on a busy machine.
    assert!(meanwhile < 40, "{meanwhile} calls");
    assert!(before + meanwhile < THEIRS, "the flood was over");
    stop.cancel();
    rig.servers.stop().await;
}

/// A page of commits was folded in one go, however long its functions take.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_fold_lets_others_go_first() {
    const COMMITS: u64 = 400;
    let (rig, folded) = (Rig::start().await, Arc::new(AtomicUsize::new(0)));
    let mut last = Expected::default();
    for version in 1..=COMMITS {
        last = append_to(&rig, hog(0), last, version).await;
    }
    let counted = folded.clone();
    let native: command::NativeDeciders = Arc::new(move |aggregate| {
        if aggregate.as_str() == "hog" {
            return Some(Box::new(busy_fold(Duration::from_millis(50), counted.clone())));
        }
        Some(Box::new(slow(TAKES)))
    });
    let (epochs, stop) = one_lane_with(&rig, native).await;
    let client = rig.store.client().clone();
    let state = Command::state_subject(epochs[&hog(0).slot().number()], &hog(0));
    let asking = tokio::spawn(async move {
        loop {
            let asked = client.request(state.clone(), "".into()).await;
            if !asked.is_err_and(|error| error.to_string().contains("no responders")) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    reaches(&folded, 3).await;
    for id in 0..3 {
        let before = folded.load(Ordering::Relaxed);
        let outcome = ask(rig.store.client(), &epochs, key_of("calm", id)).await;
        assert!(is_accepted(&outcome), "{outcome:?}");
        let meanwhile = folded.load(Ordering::Relaxed) - before;
        assert!(meanwhile < 100, "{meanwhile} commits");
    }
    assert!(folded.load(Ordering::Relaxed) < 350, "the fold was over");
    asking.abort();
    stop.cancel();
    rig.servers.stop().await;
}

/// Bytes above the room that a tenant has are refused to it; the other tenant loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_asks_for_ten_times_its_share_has_nobody_else_refused() {
    const ROOM: usize = 2_048;
    let rig = Rig::start().await;
    let (epochs, stop) = one_lane(&rig).await;
    let client = rig.store.client();
    assert!(is_accepted(&ask(client, &epochs, key_of("calm", 0)).await));
    let flood = (0..10 * ROOM).map(|id| ask(client, &epochs, key_of("flood", id)));
    let calm = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = (1..30).map(|id| ask(client, &epochs, key_of("calm", id)));
        join_all(asked).await
    };
    let (flood, calm) = tokio::join!(join_all(flood), calm);
    let refused = |outcomes: &[Outcome]| outcomes.iter().filter(|o| !is_accepted(o)).count();
    assert_eq!(refused(&calm), 0, "{calm:?}");
    // The machine determines how many of them are accepted in time.
    let overloaded = |outcome: &&Outcome| matches!(outcome, Outcome::Overloaded { .. });
    assert!(flood.iter().any(|outcome| overloaded(&outcome)), "the flood was no flood");
    assert!(flood.iter().any(is_accepted), "it has a share");
    stop.cancel();
    rig.servers.stop().await;
}

/// Behind a flood in its own slot, too.
#[tokio::test(flavor = "multi_thread")]
async fn stored_commands_of_one_tenant_do_not_outnumber_anothers_in_a_lane() {
    let rig = Rig::start().await;
    let publisher = rig.store.command_publisher();
    store(&publisher, (0..6_000).map(|id| key_of("flood", id))).await;
    let calm = key_of("calm", 0);
    // In slots whose windows are not full of the flood it comes to its turn at once.
    store(&publisher, [calm.clone()].into_iter()).await;
    let (_epochs, stop) = one_lane(&rig).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while rig.store.load(&calm, 0).await.unwrap().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let recorded = rig.store.last_sequence().await.unwrap();
    assert!(recorded < 5_000, "{recorded} of the flood's came before");
    stop.cancel();
    rig.servers.stop().await;
}

/// An aggregate whose states take a while to be folded.
const SLOW_TO_FOLD: &str = "aggregate: counter
commands:
  add: { decide: '() => []' }
events:
  added:
    data: { type: object }
    evolve: |
      () => {
        let dust = 0;
        for (let i = 0; i < 100000; i++) dust += i % 7;
        return dust;
      }
";

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Each question that was given up left a thread behind that went on, and its place was free.
#[tokio::test(flavor = "multi_thread")]
async fn states_at_a_version_are_folded_so_many_at_once_whoever_gives_up() {
    const ASKED: usize = 100;
    let rig = Rig::start().await;
    let mut last = Expected::default();
    for version in 1..=100 {
        let commit = rig.commit(&format!("c-{version}"), version);
        let appended = rig.store.append(&commit, last).await.unwrap();
        last = Expected { sequence: appended.sequence, hash: appended.hash };
    }
    let (catalog, settings) = (deployed(SLOW_TO_FOLD), command::Settings::default());
    let (epochs, stop) = rig.work_alone(catalog, settings).await;
    let epoch = epochs[&rig.key.slot().number()];
    let subject = Command::state_subject(epoch, &rig.key);
    let ask = async |timeout_ms: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::AT_VERSION, "100");
        headers.insert("Flexcore-Timeout-Ms", timeout_ms);
        rig.store.client().request_with_headers(subject.clone(), headers, "".into()).await
    };
    let first = loop {
        match ask("8000").await {
            Ok(answer) => break answer,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let first: StateReply = serde_json::from_slice(&first.payload).unwrap();
    assert!(matches!(first, StateReply::Found { version: 100, .. }), "{first:?}");
    let before = threads();
    let asked = join_all((0..ASKED).map(|_| ask("1000")));
    let most = async {
        let mut most = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            most = most.max(threads());
        }
        most
    };
    let (_, most) = tokio::join!(asked, most);
    let more = most.saturating_sub(before);
    assert!(more < ASKED / 2, "{more} threads more");
    stop.cancel();
    rig.servers.stop().await;
}

/// Number of others' commits between a question and its answer, at the median: it waits only for
/// the work that others have under way.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_flood_has_stored_does_not_stand_before_a_waiting_client() {
    let rig = Rig::start().await;
    let publisher = rig.store.command_publisher();
    store(&publisher, (0..12_000).map(|id| key_of("flood", id))).await;
    let (epochs, stop) = one_lane(&rig).await;
    let client = rig.store.client();
    while !rig.store.last_sequence().await.is_ok_and(|last| last >= 200) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It comes into a full house once.
    assert!(is_accepted(&ask(client, &epochs, key_of("calm", 0)).await));
    let mut before = Vec::new();
    for id in 1..30 {
        let first = rig.store.last_sequence().await.unwrap();
        assert!(is_accepted(&ask(client, &epochs, key_of("calm", id)).await));
        before.push(rig.store.last_sequence().await.unwrap() - first);
    }
    let recorded = rig.store.last_sequence().await.unwrap();
    assert!(recorded < 12_000, "the flood was over: {recorded}");
    before.sort_unstable();
    assert!(before[15] < 50, "{before:?}");
    stop.cancel();
    rig.servers.stop().await;
}

/// One aggregate, a hundred stored commands that take a while, and a client that has little time: it is
/// answered in its turn, or it is certain that nothing was done.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_an_aggregate_does_not_stand_behind_all_that_is_stored_for_it() {
    const STORED: usize = 200;
    let rig = Rig::start().await;
    let publisher = rig.store.command_publisher();
    let (hot, name) = (key_of("acme", 0), CommandName::parse("add").unwrap());
    for number in 0..STORED {
        let id = CommandId::parse(&format!("stored-{number}")).unwrap();
        publisher.publish(&hot, &name, &id, HeaderMap::new(), "{}".to_owned()).await.unwrap();
    }
    let (epochs, stop) = one_lane(&rig).await;
    while !rig.store.last_sequence().await.is_ok_and(|last| last >= 5) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let outcome = ask(rig.store.client(), &epochs, hot.clone()).await;
    let Outcome::Accepted { version, .. } = outcome else { panic!("{outcome:?}") };
    assert!(version < STORED as u64 / 2, "{version}");
    stop.cancel();
    rig.servers.stop().await;
}

/// More than are begun in the time that their senders give: each is told that it is done, or that nothing
/// was done, and so it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_begun_in_time_is_never_done() {
    const ASKED: usize = 1_500;
    let rig = Rig::start().await;
    let (epochs, stop) = one_lane(&rig).await;
    let client = rig.store.client();
    assert!(is_accepted(&ask(client, &epochs, key_of("calm", 0)).await));
    let add = CommandName::parse("add").unwrap();
    let asked = join_all((0..ASKED).map(async |id| {
        let key = key_of("hasty", id);
        let subject = Command::request_subject(epochs[&key.slot().number()], &key, &add);
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, "c-1");
        headers.insert("Flexcore-Timeout-Ms", "400");
        let answer = client.request_with_headers(subject, headers, "{}".into()).await.unwrap();
        serde_json::from_slice::<Outcome>(&answer.payload).unwrap()
    }));
    let told = asked.await;
    // Behind them all in the lane.
    assert!(is_accepted(&ask(client, &epochs, key_of("calm", 1)).await));
    let (mut done, mut nothing) = (0, 0);
    for (id, outcome) in told.iter().enumerate() {
        let commits = rig.store.load(&key_of("hasty", id), 0).await.unwrap().len();
        match outcome {
            Outcome::Accepted { .. } => {
                assert_eq!(commits, 1, "{id}");
                done += 1;
            }
            Outcome::Overloaded { .. } => {
                assert_eq!(commits, 0, "{id}");
                nothing += 1;
            }
            other => assert!(matches!(other, Outcome::Unavailable { .. }), "{other:?}"),
        }
    }
    assert!(done > 0 && nothing > 0, "{done} done, {nothing} not begun");
    stop.cancel();
    rig.servers.stop().await;
}
