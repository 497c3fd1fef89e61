//! Events that are small in the log, and large in the rows.

use super::*;

const COLUMNS: usize = 60;

/// `long`: a row for each event, with many columns that are set so.
fn long(from: &Expression) -> ReadModelDefinition {
    let names: Vec<Name> = (0..COLUMNS).map(|at| name(&format!("c{at}"))).collect();
    let text = |name: &Name| Column { name: name.clone(), column_type: ColumnType::Text };
    let key = Column { name: name("key"), column_type: ColumnType::Integer };
    let change = RowChange {
        transform: None,
        key: vec![Expression::Version],
        delete: false,
        operations: names.iter().map(|it| (it.clone(), Operation::Set, from.clone())).collect(),
    };
    ReadModelDefinition {
        name: name("long"),
        columns: std::iter::once(key).chain(names.iter().map(text)).collect(),
        key: vec![name("key")],
        on: BTreeMap::from([((aggregate(), EventName::parse("paid").unwrap()), change)]),
        ..sums("long")
    }
}

/// Records so many events, 256 a commit; each pays 1, and has this text.
async fn pay(rig: &Rig, commits: u64, text: &str) -> Position {
    let key = AggregateKey::new(tenant(), aggregate(), AggregateId::parse("a").unwrap());
    let data = to_raw_value(&json!({"group": "x", "amount": 1, "text": text})).unwrap();
    let mut expected = Expected::default();
    for nth in 0..commits {
        let mut commit = paid(&key, nth * 256 + 1, "x", &json!(1));
        let first = commit.events.remove(0);
        commit.events = (0..256)
            .map(|at| Event { version: first.version + at, data: data.clone(), ..first.clone() })
            .collect();
        let appended = rig.store.append(&commit, expected).await.unwrap();
        expected = Expected { sequence: appended.sequence, hash: appended.hash };
    }
    Position { slot: key.slot(), sequence: expected.sequence }
}

async fn work_with(rig: &Rig, model: ReadModelDefinition) -> (CancellationToken, JoinHandle<()>) {
    let mut application = bank(sums("1"));
    application.read_models.insert(model.name.clone(), Arc::new(model));
    let mut catalog = Catalog::default();
    catalog.put(application);
    rig.catalog.send_replace(Arc::new(catalog));
    rig.work().await
}

/// The batch was once one statement of more than a gigabyte, which Postgres refuses by ending the connection.
/// It was tried again for ever, and every read model of the worker stood still.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_becomes_a_gigabyte_is_cut() {
    let rig = Rig::start().await;
    let position = pay(&rig, 11, "").await;
    let literal = Expression::Literal(json!("x".repeat(7_000)));
    let (stop, worker) = work_with(&rig, long(&literal)).await;
    passes(&rig, "long", position).await;
    passes(&rig, "sums", position).await;
    let expected = json!([{"group": "x", "count": 2_816, "total": 2_816}]);
    assert_eq!(rig.rows().await, expected, "each once, in whichever batch");
    let mut admin = PgConnection::connect(&rig.servers.postgres_url().unwrap()).await.unwrap();
    let written = "select count(*) || ' ' || min(length(c59)) from rm.long";
    let written: String = sqlx::query_scalar(written).fetch_one(&mut admin).await.unwrap();
    assert_eq!(written, "2816 7000");
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// An upcast that makes much of an event of a few bytes; a whole batch of it was once held in memory.
#[tokio::test(flavor = "multi_thread")]
async fn upcasts_that_make_much_are_cut_and_done_once() {
    let rig = Rig::start().await;
    let position = pay(&rig, 2, "").await;
    let text = "aggregate: account
commands:
  pay: { decide: '() => []' }
events:
  paid:
    version: 2
    upcast:
      1: \"(data) => ({ ...data, text: 'x'.repeat(200000) })\"
    data: { type: object }
    evolve: (state) => state
---
read_model: sums
columns: { group: text, count: integer, total: integer, text: text }
key: [group]
on:
  account.paid:
    key: { group: $.group }
    set: { text: $.text }
    add: { count: 1, total: $.amount }
";
    let files = vec![SourceFile { path: "bank.yaml".to_owned(), text: text.to_owned() }];
    let mut catalog = Catalog::default();
    catalog.put(Application::read(name("bank"), files).unwrap());
    rig.catalog.send_replace(Arc::new(catalog));
    let (stop, worker) = rig.work().await;
    passes(&rig, "sums", position).await;
    let expected = json!([{"group": "x", "count": 512, "total": 512}]);
    assert_eq!(rig.rows().await, expected);
    assert_eq!(rig.read_models.status().await.unwrap()[0].parked, 0);
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}
