//! More breaks in the log than a read model holds back.

use super::*;

/// `sums`, and the same of another kind of aggregates.
fn both() -> Arc<Catalog> {
    let kind = AggregateName::parse("other").unwrap();
    let mut others = ReadModelDefinition { name: name("others"), ..sums("others") };
    let on = std::mem::take(&mut others.on).into_iter();
    others.on = on.map(|((_, event), change)| ((kind.clone(), event), change)).collect();
    let mut application = bank(sums("1"));
    application.read_models.insert(others.name.clone(), Arc::new(others));
    let mut catalog = Catalog::default();
    catalog.put(application);
    Arc::new(catalog)
}

/// The thousandth broken aggregate once stopped every read model of every tenant.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_that_would_hold_back_too_many_aggregates_stops_alone() {
    let rig = Rig::start().await;
    rig.catalog.send_replace(both());
    let key = |kind: AggregateName, id: &str| {
        AggregateKey::new(tenant(), kind, AggregateId::parse(id).unwrap())
    };
    let breaks = async |id: &str| {
        let subject = flexcore_eventstore::subject(&key(aggregate(), id));
        let sent = rig.store.jetstream().publish(subject, "junk".into()).await.unwrap();
        sent.await.unwrap();
    };
    let other = async |id: &str| {
        let key = key(AggregateName::parse("other").unwrap(), id);
        let commit = paid(&key, 1, "x", &json!(1));
        let appended = rig.store.append(&commit, Expected::default()).await.unwrap();
        Position { slot: key.slot(), sequence: appended.sequence }
    };
    let settings = projection::Settings { held_max: 2, ..Default::default() };
    let (stop, worker) = rig.work_as(settings).await;
    breaks("1").await;
    breaks("2").await;
    passes(&rig, "sums", rig.pay("a", "x", &ones(3)).await).await;
    passes(&rig, "others", other("1").await).await;

    breaks("3").await;
    let late = rig.pay("b", "x", &ones(2)).await;
    passes(&rig, "others", other("2").await).await;
    let short = Duration::from_millis(300);
    assert!(rig.read_models.wait(&[name("sums")], &[late], short).await.is_err());
    let row = |count: u32| json!([{"group": "x", "count": count, "total": count}]);
    assert_eq!(rig.rows().await, row(3), "nothing of behind the break");
    let troubles = async || rig.read_models.troubles().await.unwrap();
    until("nobody is told", async || {
        let told = troubles().await;
        told.len() == 1 && told.get("sums").is_some_and(|what| what.contains("has stopped"))
    })
    .await;
    stop.cancel();
    worker.await.unwrap();

    let (stop, worker) = rig.work().await;
    passes(&rig, "sums", late).await;
    assert_eq!(rig.rows().await, row(5));
    assert_eq!(rig.read_models.held_in_all().await.unwrap(), 3);
    until("the trouble is over", async || troubles().await.is_empty()).await;
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// Behind a break that was the log's last message a read model that had no part in it was once told to stand
/// still.
#[tokio::test(flavor = "multi_thread")]
async fn read_models_pass_a_break_at_the_end_of_the_log() {
    let rig = Rig::start().await;
    rig.catalog.send_replace(both());
    let (stop, worker) = rig.work().await;
    passes(&rig, "sums", rig.pay("a", "x", &ones(3)).await).await;
    // The second is of an aggregate that is held back already.
    for _ in 0..2 {
        let key = AggregateKey::new(tenant(), aggregate(), AggregateId::parse("b").unwrap());
        let subject = flexcore_eventstore::subject(&key);
        let sent = rig.store.jetstream().publish(subject, "junk".into()).await.unwrap();
        let last = sent.await.unwrap().sequence;
        until("one stands still", async || {
            let all = rig.read_models.status().await.unwrap();
            all.len() == 2 && all.iter().all(|status| status.lag(last) == 0)
        })
        .await;
    }
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}
