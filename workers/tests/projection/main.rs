//! The projection worker on a real broker and a real Postgres.
#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod broken;
mod deployments;
mod indexes;
mod large;
mod locked;
mod log;
mod owned;
mod parted;
mod rig;
mod shared;
mod transform;

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use flexcore_cluster::Member;
use flexcore_definition::{
    Application, Catalog, Column, ColumnType, Expression, FileLine, Operation, ReadModelDefinition,
    RowChange, SourceFile,
};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit, Event,
    EventName, Hash, Name, Position, Provenance, Tenant, command::header,
};
use flexcore_eventstore::{EventStore, Expected, Filter, Profile, Read, topology};
use flexcore_readmodel::{ReadModels, Rebuild, Select, VersionState};
use flexcore_servers::{Options, Servers, Sync};
use flexcore_workers::{PROJECTIONS, projection};
use serde_json::{Value, json, value::to_raw_value};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::rig::*;

#[tokio::test(flavor = "multi_thread")]
async fn events_become_rows_and_bad_ones_are_parked() {
    let rig = Rig::start().await;
    rig.pay("a", "x", &ones(20)).await;
    let (stop, worker) = rig.work().await;
    let second = rig.work().await;
    let amounts = [json!(5), json!("five"), json!(i64::MAX), json!(7)];
    let position = rig.pay("b", "y", &amounts).await;
    rig.caught_up(position).await;
    let max = i64::MAX;
    // 5 + MAX does not fit; what came after it does.
    let folded = json!([{"group": "x", "count": 20, "total": 20},
                        {"group": "y", "count": 2, "total": 12}]);
    assert_eq!(rig.rows().await, folded, "without {max}");
    let status = rig.read_models.status().await.unwrap();
    assert_eq!((status.len(), status[0].parked), (1, 2));
    let mut dead = rig.store.jetstream().get_stream("FLEX_DEAD").await.unwrap();
    assert_eq!(dead.info().await.unwrap().state.messages, 2);

    // Told to stop, the worker ends, and the one that stood by takes over.
    stop.cancel();
    worker.await.unwrap();
    let position = rig.pay("c", "x", &ones(3)).await;
    rig.caught_up(position).await;
    assert_eq!(rig.rows().await[0], json!({"group": "x", "count": 23, "total": 23}));
    second.0.cancel();
    second.1.await.unwrap();
    rig.servers.stop().await;
}

/// The scheduler's cooperative budget once ended every batch at 128 commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_all_that_is_there() {
    let rig = Rig::start().await;
    rig.pay("a", "x", &ones(600)).await;
    let mut log = rig.store.subscribe(Filter::Everything, 1).await.unwrap();
    let mut read = async |max| match log.next_batch(max, PATIENCE).await.unwrap() {
        Read::Commits(commits) => commits,
        broken => panic!("{broken:?}"),
    };
    let first = read(1).await;
    assert_eq!(first[0].sequence, 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rest = read(1_000).await;
    assert_eq!((rest.len(), rest[598].sequence), (599, 600));
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_and_rebuilt_while_it_serves() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    let position = rig.pay("a", "x", &ones(30)).await;
    rig.caught_up(position).await;
    let before = rig.rows().await;
    let request = rig.read_models.request_rebuild("sums").await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while rig.read_models.rebuild(request).await.unwrap() != (Rebuild::Done { version: 2 }) {
        assert_eq!(rig.rows().await, before, "it serves all the while");
        assert!(tokio::time::Instant::now() < deadline);
    }
    assert_eq!(rig.rows().await, before);
    rig.catalog.send_replace(catalog([sums("1"), sums("2")]));
    loop {
        let status = rig.read_models.status().await.unwrap();
        assert_eq!(rig.rows().await, before);
        if status.len() == 1 && status[0].version == 3 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status:?}");
    }
    let position = rig.pay("b", "x", &ones(3)).await;
    rig.caught_up(position).await;
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 33, "total": 33}]));
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// A worker that started while a changed declaration was being built once left the old version as
/// it stood until the new one served.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_while_a_successor_is_built_fills_both() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    let position = rig.pay("a", "x", &ones(3)).await;
    rig.caught_up(position).await;
    stop.cancel();
    worker.await.unwrap();
    rig.catalog.send_replace(catalog([sums("1"), sums("2")]));
    // The view stays as it is while somebody reads it in a transaction, so the new version cannot
    // take over.
    let url = rig.servers.postgres_url().unwrap();
    let mut reader = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("begin; select * from rm.sums").execute(&mut reader).await.unwrap();
    let (stop, worker) = rig.work().await;
    let position = rig.pay("b", "x", &ones(3)).await;
    rig.caught_up(position).await;
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 6, "total": 6}]));
    let status = rig.read_models.status().await.unwrap();
    let serving = status.iter().find(|status| status.state == VersionState::Serving).unwrap();
    assert_eq!((status.len(), serving.version), (2, 1));
    reader.close().await.unwrap();
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// An event that got a version and an upcast once left the rows as they were, while what came later
/// was upcast for rules that did not know of it.
#[tokio::test(flavor = "multi_thread")]
async fn each_version_folds_as_its_own_deployment_says() {
    let rig = Rig::start().await;
    let mut catalog = Catalog::default();
    catalog.put(units(1));
    rig.catalog.send_replace(Arc::new(catalog.clone()));
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("a", "x", &ones(3)).await).await;

    // The view stays as it is while somebody reads it in a transaction, so that the version in use
    // goes on beside its successor.
    let url = rig.servers.postgres_url().unwrap();
    let mut reader = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("begin; select * from rm.sums").execute(&mut reader).await.unwrap();
    catalog.put(units(2));
    rig.catalog.send_replace(Arc::new(catalog));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while rig.read_models.status().await.unwrap().len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "no new version is built");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.caught_up(rig.pay("b", "x", &ones(1)).await).await;
    let row = |count: u32, total: u32| json!([{"group": "x", "count": count, "total": total}]);
    assert_eq!(rig.rows().await, row(4, 4), "older events as the old rules know them");
    let newer = rig.pay_as(2, "c", "x", &[json!(500)]).await;
    // A break in the log, which the version in use has not come to: it waits before the newer event.
    forge(&rig, "a", 4, &Hash::ZERO).await;
    let end = rig.store.last_sequence().await.unwrap();
    let built = async || {
        let status = rig.read_models.status().await.unwrap();
        status.iter().any(|s| s.state == VersionState::Building && s.position >= end)
    };
    while !built().await {
        assert!(tokio::time::Instant::now() < deadline, "the successor stops");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rig.rows().await, row(4, 4), "what the old rules do not know is not guessed at");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = rig.read_models.status().await.unwrap();
    let in_use = status.iter().find(|s| s.state == VersionState::Serving).unwrap();
    assert!(in_use.position < newer.sequence, "it has passed what it has not read: {in_use:?}");

    reader.close().await.unwrap();
    rig.caught_up(newer).await;
    assert_eq!(rig.rows().await, row(5, 900));
    let request = rig.read_models.request_rebuild("sums").await.unwrap();
    while rig.read_models.rebuild(request).await.unwrap() != (Rebuild::Done { version: 3 }) {
        assert!(tokio::time::Instant::now() < deadline, "no rebuild");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(rig.rows().await, row(5, 900), "a rebuild gives the same");
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_the_broker_may_die_and_come_back() {
    let mut rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    let mut paid = 0;
    for round in 0..3 {
        let position = rig.pay(&format!("a{round}"), "x", &ones(50)).await;
        if round == 1 {
            rig.caught_up(position).await;
        }
        rig.servers.postgres.as_mut().unwrap().kill().await.unwrap();
        rig.pay(&format!("b{round}"), "x", &ones(50)).await;
        rig.servers.postgres.as_mut().unwrap().start_again().await.unwrap();
        rig.servers.nats.kill().await.unwrap();
        rig.servers.nats.start_again().await.unwrap();
        paid += 100;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let position = rig.pay("last", "x", &ones(1)).await;
    rig.caught_up(position).await;
    let expected = json!([{"group": "x", "count": paid + 1, "total": paid + 1}]);
    assert_eq!(rig.rows().await, expected, "each exactly once");
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// A server that takes over is read only at first, and an administrator may cancel a statement. Either once
/// stopped every projection until somebody started its worker again.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_is_read_only_for_a_while_stops_nothing() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("a", "x", &ones(3)).await).await;
    let mut admin = PgConnection::connect(&rig.servers.postgres_url().unwrap()).await.unwrap();
    let name: String =
        sqlx::query_scalar("select current_database()").fetch_one(&mut admin).await.unwrap();
    let end = "select pg_terminate_backend(pid) from pg_stat_activity \
               where datname = current_database() and pid <> pg_backend_pid()";
    for read_only in ["on", "off"] {
        let set = format!("alter database {name} set default_transaction_read_only = {read_only}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut admin).await.unwrap();
        sqlx::raw_sql(end).execute(&mut admin).await.unwrap();
        rig.pay(read_only, "x", &ones(1)).await;
        // For the worker to meet it, more than once.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    rig.caught_up(rig.pay("b", "x", &ones(1)).await).await;
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 6, "total": 6}]));
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// A leader that was deposed says what it had; once that stopped every projection until somebody started
/// its worker again.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_too_early_for_a_while_stops_nothing() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("a", "x", &ones(3)).await).await;
    stop.cancel();
    worker.await.unwrap();
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    rig.store.jetstream().delete_stream(topology::EVENTS).await.unwrap();
    rig.store.jetstream().create_stream(log.cached_info().config.clone()).await.unwrap();
    let (stop, worker) = rig.work().await;
    // For the worker to look, and to find that the log ends before its checkpoint.
    tokio::time::sleep(Duration::from_secs(3)).await;
    // The same commits again: it has heard of its followers, and is the log that it was.
    rig.pay("a", "x", &ones(3)).await;
    rig.caught_up(rig.pay("c", "z", &ones(1)).await).await;
    let expected = json!([{"group": "x", "count": 3, "total": 3},
                          {"group": "z", "count": 1, "total": 1}]);
    assert_eq!(rig.rows().await, expected);
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// Somebody writes to the log who may not: a commit of the account whose link follows from this hash.
async fn forge(rig: &Rig, id: &str, version: u64, previous: &Hash) {
    let key = AggregateKey::new(tenant(), aggregate(), AggregateId::parse(id).unwrap());
    let encoded = paid(&key, version, "x", &json!(1)).encode(previous);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(header::HASH, encoded.hash.to_string());
    let subject = flexcore_eventstore::subject(&key);
    let log = rig.store.jetstream();
    let sent = log.publish_with_headers(subject, headers, encoded.body.into()).await.unwrap();
    sent.await.unwrap();
}

/// It once stopped every projection of every tenant, until somebody mended the log.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_that_is_broken_is_held_back_and_nothing_else_is() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("a", "x", &ones(3)).await).await;
    forge(&rig, "a", 4, &Hash::ZERO).await;
    forge(&rig, "a", 5, &Hash::ZERO).await;
    let junk = rig.store.jetstream().publish("evt.junk", "junk".into()).await.unwrap();
    junk.await.unwrap();
    rig.caught_up(rig.pay("b", "y", &ones(3)).await).await;
    let rows = json!([{"group": "x", "count": 3, "total": 3},
                      {"group": "y", "count": 3, "total": 3}]);
    assert_eq!(rig.rows().await, rows);
    let told = async || {
        let status = rig.read_models.status().await.unwrap();
        assert_eq!(status.len(), 1, "{status:?}");
        (status[0].parked, status[0].held)
    };
    assert_eq!(told().await, (2, 1));
    assert_eq!(rig.read_models.held_in_all().await.unwrap(), 1);
    let mut dead = rig.store.jetstream().get_stream("FLEX_DEAD").await.unwrap();
    assert_eq!(dead.info().await.unwrap().state.messages, 1, "where it breaks");

    // A worker that starts does not see the break, but what was written down of it.
    stop.cancel();
    worker.await.unwrap();
    forge(&rig, "a", 6, &Hash::ZERO).await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("c", "z", &ones(1)).await).await;
    assert_eq!(told().await, (3, 1));
    let rows = json!([{"group": "x", "count": 3, "total": 3},
                      {"group": "y", "count": 3, "total": 3},
                      {"group": "z", "count": 1, "total": 1}]);
    assert_eq!(rig.rows().await, rows);

    // Built anew it begins with nothing held back, and comes to the break as it stands in the log.
    let request = rig.read_models.request_rebuild("sums").await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while rig.read_models.rebuild(request).await.unwrap() != (Rebuild::Done { version: 2 }) {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.caught_up(rig.pay("d", "z", &ones(1)).await).await;
    assert_eq!(rig.rows().await[0], rows[0]);
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// It once went on by what had been deployed so far, beside others that knew better.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hears_of_no_deployment_any_more_ends() {
    let rig = Rig::start().await;
    let (deployed, followed) = watch::channel(catalog([sums("1")]));
    let membership = flexcore_cluster::Settings::new("test", "worker", [PROJECTIONS]);
    let member = Member::join(rig.store.client(), membership).await.unwrap();
    let running = tokio::spawn(projection::run(
        rig.store.clone(),
        rig.read_models.clone(),
        followed,
        member,
        projection::Settings::default(),
        CancellationToken::new(),
    ));
    rig.caught_up(rig.pay("a", "x", &ones(1)).await).await;
    assert!(!running.is_finished());
    drop(deployed);
    let ended = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    assert!(ended.unwrap_err().to_string().contains("not followed any more"));
    rig.servers.stop().await;
}
