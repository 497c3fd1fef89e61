//! One read model among several workers: each keeps the rows of its slots, and all of them together
//! those that one would.

use std::{collections::BTreeSet, sync::atomic::AtomicBool, sync::atomic::Ordering};

use futures::TryStreamExt as _;
use tokio::runtime::Runtime;

use super::*;

const ACCOUNTS: usize = 64;
/// Tasks that pay accounts.
const PAYERS: usize = 4;
/// So short that the shares of a worker that is killed soon have another owner.
const LEASE: Duration = Duration::from_secs(5);

/// Number and sum of the payments to each account, and the version of the last one.
fn accounts(shared: bool) -> Application {
    let text = format!(
        "aggregate: account
commands:
  pay: {{ decide: '() => []' }}
events:
  paid: {{ data: {{ type: object }}, evolve: (state) => state }}
---
read_model: accounts
shared: {shared}
columns: {{ id: text, count: integer, total: integer, last: integer }}
key: [id]
on:
  account.paid:
    key: {{ id: $id }}
    add: {{ count: 1, total: $.amount }}
    set: {{ last: $version }}
"
    );
    let files = vec![SourceFile { path: "bank.yaml".to_owned(), text }];
    Application::read(name("bank"), files).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// A worker that can be killed: everything of it runs on a runtime of its own.
struct Killable {
    runtime: Runtime,
    stop: CancellationToken,
    ended: JoinHandle<()>,
}

impl Killable {
    fn start(rig: &Rig) -> Self {
        let runtime = Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let (nats, postgres) = (rig.servers.nats_url(), rig.servers.postgres_url().unwrap());
        let (catalog, stopped) = (rig.catalog.subscribe(), stop.clone());
        let settings = rig.store.settings().clone();
        let ended = runtime.spawn(async move {
            let client = async_nats::connect(nats).await.unwrap();
            let store = EventStore::open(client, settings).await.unwrap();
            let settings = flexcore_readmodel::Settings::default();
            let read_models = ReadModels::connect(&postgres, settings).await.unwrap();
            let kinds = [PROJECTIONS];
            let membership = flexcore_cluster::Settings {
                lease: LEASE,
                ..flexcore_cluster::Settings::new("test", "worker", kinds)
            };
            let member = Member::join(store.client(), membership).await.unwrap();
            let settings = projection::Settings::default();
            projection::run(store, read_models, catalog, member.clone(), settings, stopped)
                .await
                .unwrap();
            member.leave().await;
        });
        Self { runtime, stop, ended }
    }

    /// As SIGKILL does: nothing is handed over.
    fn kill(self) {
        self.runtime.shutdown_background();
    }

    /// As SIGTERM does.
    async fn stop(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
        self.runtime.shutdown_background();
    }
}

/// Pays accounts until told to stop; returns each one's row and the place of its last commit.
async fn pay(rig: Arc<Rig>, payer: usize, stop: Arc<AtomicBool>) -> Vec<(Value, Position)> {
    let mut last = BTreeMap::new();
    for round in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for number in (payer..ACCOUNTS).step_by(PAYERS) {
            let id = format!("a{number:02}");
            let key = AggregateKey::new(tenant(), aggregate(), AggregateId::parse(&id).unwrap());
            let commit = paid(&key, round, "x", &json!(round));
            let (expected, total, _) =
                last.remove(&id).unwrap_or((Expected::default(), 0, key.slot()));
            let appended = rig.store.append(&commit, expected).await.unwrap();
            let expected = Expected { sequence: appended.sequence, hash: appended.hash };
            last.insert(id, (expected, total + round, key.slot()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let row = |(id, (expected, total, slot)): (String, (Expected, u64, _))| {
        // 1 + 2 + … + count = total.
        let count = (((8 * total + 1) as f64).sqrt() as u64 - 1) / 2;
        let row = json!({"id": id, "count": count, "total": total, "last": count});
        (row, Position { slot, sequence: expected.sequence })
    };
    last.into_iter().map(row).collect()
}

async fn rows(rig: &Rig) -> Value {
    let model = accounts(true).read_models["accounts"].clone();
    let select = Select { limit: 1_000, ..Select::default() };
    let page = rig.read_models.select(&tenant(), &model, &select).await.unwrap();
    serde_json::from_str(&page.rows).unwrap()
}

/// The subjects that the log's readers are handed, each as often as it is.
async fn subjects(rig: &Rig) -> Vec<Vec<String>> {
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let consumers: Vec<_> = log.consumers().try_collect().await.unwrap();
    let of = |consumer: async_nats::jetstream::consumer::Info| {
        let one = Some(consumer.config.filter_subject).filter(|one| !one.is_empty());
        one.into_iter().chain(consumer.config.filter_subjects).collect()
    };
    consumers.into_iter().map(of).collect()
}

/// Waits until this holds.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn serves(rig: &Rig, version: i32) {
    until("the version serves", async || {
        let all = rig.read_models.status().await.unwrap();
        all.iter().any(|it| it.version == version && it.state == VersionState::Serving)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_share_a_read_model_keep_the_rows_that_one_would() {
    let rig = Arc::new(Rig::start().await);
    let mut catalog = Catalog::default();
    catalog.put(accounts(true));
    rig.catalog.send_replace(Arc::new(catalog.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let payers: Vec<_> =
        (0..PAYERS).map(|payer| tokio::spawn(pay(rig.clone(), payer, stop.clone()))).collect();
    let [first, second] = [Killable::start(&rig), Killable::start(&rig)];
    serves(&rig, 1).await;
    until("two workers share it", async || {
        let all = subjects(&rig).await;
        let each: BTreeSet<&String> = all.iter().flatten().collect();
        // Nobody reads what another one owns.
        all.len() == 2 && all.iter().all(|of| of.len() == 32) && each.len() == 64
    })
    .await;

    // Portions move while accounts are paid: two more workers, one that is killed, one that stops.
    let [third, fourth] = [Killable::start(&rig), Killable::start(&rig)];
    until("four workers share it", async || {
        let all = subjects(&rig).await;
        all.iter().filter(|of| of.len() == 16).count() == 4
    })
    .await;
    first.kill();
    tokio::time::sleep(Duration::from_secs(1)).await;
    second.stop().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut expected, mut positions) = (Vec::new(), Vec::new());
    for payer in payers {
        for (row, position) in payer.await.unwrap() {
            expected.push(row);
            positions.push(position);
        }
    }
    expected.sort_by_key(|row| row["id"].as_str().unwrap().to_owned());
    let expected = Value::Array(expected);
    let wait = async || rig.read_models.wait(&[name("accounts")], &positions, PATIENCE).await;
    wait().await.unwrap();
    assert_eq!(rows(&rig).await, expected, "each commit once, in order");
    let status = rig.read_models.status().await.unwrap();
    assert_eq!((status[0].portions, status[0].parked), (16, 0));

    // Built again by two workers, and then by one that has all portions.
    rig.read_models.request_rebuild("accounts").await.unwrap();
    serves(&rig, 2).await;
    wait().await.unwrap();
    assert_eq!(rows(&rig).await, expected, "built by two");
    catalog.put(accounts(false));
    rig.catalog.send_replace(Arc::new(catalog));
    serves(&rig, 3).await;
    wait().await.unwrap();
    assert_eq!(rows(&rig).await, expected, "built by one");
    third.stop().await;
    fourth.stop().await;
    Arc::into_inner(rig).unwrap().servers.stop().await;
}

/// Looks at the rows again and again until told to stop: none of them goes back. Returns how often it looked.
async fn watch(rig: Arc<Rig>, stop: Arc<AtomicBool>) -> usize {
    let (mut before, mut looks) = (BTreeMap::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let mut now = BTreeMap::new();
        for row in rows(&rig).await.as_array().unwrap() {
            now.insert(row["id"].to_string(), row["count"].as_u64().unwrap());
        }
        for (id, count) in &before {
            assert!(now.get(id) >= Some(count), "{id} went back from {count} to {:?}", now.get(id));
        }
        (before, looks) = (now, looks + 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    looks
}

/// Each portion has come as far as the serving version when a version takes over, with any reader.
#[tokio::test(flavor = "multi_thread")]
async fn no_row_goes_back_when_versions_take_over_while_accounts_are_paid() {
    let rig = Arc::new(Rig::start().await);
    let deploy = |shared| {
        let mut catalog = Catalog::default();
        catalog.put(accounts(shared));
        rig.catalog.send_replace(Arc::new(catalog));
    };
    deploy(true);
    let stop = Arc::new(AtomicBool::new(false));
    let payers: Vec<_> =
        (0..PAYERS).map(|payer| tokio::spawn(pay(rig.clone(), payer, stop.clone()))).collect();
    let [first, second] = [Killable::start(&rig), Killable::start(&rig)];
    serves(&rig, 1).await;
    until("two workers share it", async || subjects(&rig).await.len() == 2).await;
    let watcher = tokio::spawn(watch(rig.clone(), stop.clone()));
    for version in 2..4 {
        rig.read_models.request_rebuild("accounts").await.unwrap();
        serves(&rig, version).await;
    }
    deploy(false);
    serves(&rig, 4).await;
    deploy(true);
    serves(&rig, 5).await;
    stop.store(true, Ordering::Relaxed);
    assert!(watcher.await.unwrap() > 20);
    for payer in payers {
        payer.await.unwrap();
    }
    first.stop().await;
    second.stop().await;
    Arc::into_inner(rig).unwrap().servers.stop().await;
}
