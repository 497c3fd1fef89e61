//! No session goes back to the others with a transaction open on it, and nobody waits for a check.

use std::time::Duration;

use flexcore_definition::ColumnType;
use flexcore_readmodel::{Error, ReadModels, Settings};
use sqlx::AssertSqlSafe;

use crate::{
    database::{Database, catalog, data, model},
    queries::application,
};

/// Takes the lock under which tables are made, for a whole session.
const TABLES_LOCK: &str = "select pg_advisory_lock(x'666c657870726f6a'::bigint)";

/// With a lock that was not had in time each session of the pool once stayed in a transaction that had
/// failed, and every projection of the worker stopped.
#[tokio::test]
async fn a_transaction_that_fails_to_begin_stops_nothing_else() {
    let database = Database::new().await;
    let settings = Settings { connections_max: 1, ..Settings::default() };
    let models = ReadModels::connect(&database.url, settings).await.unwrap();
    let mut other = database.admin.acquire().await.unwrap();
    sqlx::raw_sql(TABLES_LOCK).execute(&mut *other).await.unwrap();
    let wanted = catalog([model("things", "f", &[("k", ColumnType::Text)], [])]);
    let locked = models.versions(&wanted, &|_, _| Some(1)).await;
    assert!(matches!(locked, Err(Error::Unavailable(_))), "{:?}", locked.map(|_| ()));
    models.ping().await.unwrap();
    // The same for a caller that gives up while it begins.
    let given_up = models.versions(&wanted, &|_, _| Some(1));
    assert!(tokio::time::timeout(Duration::from_millis(500), given_up).await.is_err());
    // Its session is busy until the lock's time is over.
    tokio::time::sleep(Duration::from_secs(6)).await;
    models.ping().await.unwrap();
    let open = "select count(*)::text from pg_stat_activity \
                where state like 'idle in transaction%' and datname = current_database()";
    assert_eq!(database.one(open).await, "0");
    drop(other.close().await);
    let built = models.versions(&wanted, &|_, _| Some(1)).await.unwrap();
    assert_eq!(built.run.len(), 1);
}

/// A check once held the lock under which tables are made, for as long as it took.
#[tokio::test]
async fn nobody_waits_for_a_check_nor_a_check_for_them() {
    let database = Database::new().await;
    let mut other = database.admin.acquire().await.unwrap();
    sqlx::raw_sql(TABLES_LOCK).execute(&mut *other).await.unwrap();
    let application = application(&[("all", "", "select k from rm.things")]);
    let checked = database.models.check_queries(&application);
    let checked = tokio::time::timeout(Duration::from_secs(30), checked).await.unwrap();
    assert!(checked.unwrap().is_empty());
    drop(other.close().await);
    // The work of a check, which then stands still.
    let mut check = database.admin.begin().await.unwrap();
    let stage = "alter schema rm rename to flexcore_rm_in_use; create schema rm";
    sqlx::raw_sql(AssertSqlSafe(stage)).execute(&mut *check).await.unwrap();
    let set = [("n", flexcore_definition::Operation::Set, data("n"))];
    let columns = [("k", ColumnType::Text), ("n", ColumnType::Integer)];
    let model = model("things", "f", &columns, [("set", crate::database::change(&set))]);
    let served = tokio::time::timeout(Duration::from_secs(30), database.serving(&model));
    served.await.unwrap();
    check.rollback().await.unwrap();
}
