//! A worker reads what its read models follow, and knows of the rest of the log all the same.

use futures::TryStreamExt as _;

use super::*;

/// Appends a commit to each of so many aggregates of another kind; returns the place of the last.
async fn others(rig: &Rig, kind: &str, count: usize) -> Position {
    let kind = AggregateName::parse(kind).unwrap();
    let mut last = None;
    for number in 0..count {
        let id = AggregateId::parse(&format!("o{number}")).unwrap();
        let key = AggregateKey::new(tenant(), kind.clone(), id);
        let commit = paid(&key, 1, "x", &json!(1));
        let appended = rig.store.append(&commit, Expected::default()).await.unwrap();
        last = Some(Position { slot: key.slot(), sequence: appended.sequence });
    }
    last.unwrap()
}

/// Number of the log's messages that its readers were handed.
async fn handed_out(rig: &Rig) -> u64 {
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let consumers: Vec<_> = log.consumers().try_collect().await.unwrap();
    consumers.iter().map(|consumer| consumer.delivered.consumer_sequence).sum()
}

/// Every worker once read, decoded and hashed the whole log, even the parts that it did not own.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reads_what_it_follows_and_passes_the_rest() {
    let rig = Rig::start().await;
    for number in 0..9 {
        others(&rig, &format!("kind{number}"), 30).await;
    }
    let own = rig.pay("a", "x", &ones(30)).await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(own).await;
    // While it was built, or by the reader that took over from there.
    let handed = handed_out(&rig).await;
    assert!(handed <= 60, "{handed}, once or twice the 30 of 300 commits");

    // A client that waits for a position that nobody follows is not kept waiting.
    let other = others(&rig, "more0", 3).await.sequence;
    let position = others(&rig, "more1", 3).await;
    rig.caught_up(position).await;
    let status = rig.read_models.status().await.unwrap();
    assert_eq!(status[0].lag(position.sequence), 0);
    assert!(other < position.sequence && handed_out(&rig).await <= 60);

    // While the log stands still nothing is written.
    let url = rig.servers.postgres_url().unwrap();
    let mut postgres = PgConnection::connect(&url).await.unwrap();
    let mut written = async || {
        let sql = "select string_agg(xmin::text, ' ' order by slot) from flexcore.checkpoints";
        let row = sqlx::query(sql).fetch_one(&mut postgres).await.unwrap();
        sqlx::Row::get::<String, _>(&row, 0)
    };
    let before = written().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(written().await, before);

    // Later events are applied, once, and not before they were read.
    rig.caught_up(rig.pay("b", "x", &ones(2)).await).await;
    stop.cancel();
    worker.await.unwrap();
    rig.pay("c", "x", &ones(2)).await;
    others(&rig, "more2", 1).await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("d", "x", &ones(1)).await).await;
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 35, "total": 35}]));
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}
