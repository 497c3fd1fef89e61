//! A table that somebody has locked.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use super::*;

/// The read model whose table is locked here, and in no other test of this process.
const LOCKED: &str = "ledger";

/// The metrics of this process.
fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

/// What the metric says of the read model.
fn is_unmanaged() -> bool {
    let row = format!("flexcore_read_model_unmanaged{{read_model=\"{LOCKED}\"}} 1");
    metrics().render().lines().any(|line| line == row)
}

fn ledger() -> ReadModelDefinition {
    ReadModelDefinition { name: name(LOCKED), ..sums("ledger") }
}

/// `sums`, and the same again under another name.
fn both() -> Arc<Catalog> {
    let mut application = bank(sums("1"));
    application.read_models.insert(name(LOCKED), Arc::new(ledger()));
    let mut catalog = Catalog::default();
    catalog.put(application);
    Arc::new(catalog)
}

/// It stopped every read model of the worker for as long, without a word, and the worker's end with them.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_table_delays_its_own_read_model_and_nothing_else() {
    metrics();
    let rig = Rig::start().await;
    rig.catalog.send_replace(both());
    let (stop, worker) = rig.work().await;
    let first = rig.pay("a", "x", &ones(3)).await;
    for model in ["sums", LOCKED] {
        passes(&rig, model, first).await;
    }
    let mut admin = PgConnection::connect(&rig.servers.postgres_url().unwrap()).await.unwrap();
    let lock = "begin; lock table rm.ledger_v1 in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut admin).await.unwrap();
    let second = rig.pay("b", "x", &ones(3)).await;
    passes(&rig, "sums", second).await;
    let told = async || rig.read_models.troubles().await.unwrap();
    until("nobody is told", async || is_unmanaged() && told().await.contains_key(LOCKED)).await;
    let troubles = told().await;
    assert!(troubles[LOCKED].contains("somebody has locked its table"), "{troubles:?}");
    assert_eq!(troubles.len(), 1, "{troubles:?}");

    // Under the lock a worker ends in time, and another one begins.
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(20), worker).await;
    ended.expect("the worker waits for the lock").unwrap();
    let (stop, worker) = rig.work().await;
    let third = rig.pay("c", "y", &ones(2)).await;
    passes(&rig, "sums", third).await;
    let short = Duration::from_millis(100);
    assert!(rig.read_models.wait(&[name(LOCKED)], &[second], short).await.is_err());

    sqlx::raw_sql("rollback").execute(&mut admin).await.unwrap();
    passes(&rig, LOCKED, third).await;
    until("it is told still", async || !is_unmanaged() && told().await.is_empty()).await;
    let fourth = rig.pay("d", "y", &ones(2)).await;
    for model in ["sums", LOCKED] {
        passes(&rig, model, fourth).await;
    }
    let all = Select::default();
    let page = rig.read_models.select(&tenant(), &ledger(), &all).await.unwrap();
    let rows: Value = serde_json::from_str(&page.rows).unwrap();
    assert_eq!(rows, rig.rows().await, "nothing is lost or doubled");
    let row = |group: &str, count: u32| json!({"group": group, "count": count, "total": count});
    assert_eq!(rows, json!([row("x", 6), row("y", 4)]));
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}
