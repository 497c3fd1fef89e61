//! No tenant sees another's rows, whatever a query does.

use flexcore_domain::definition::{ColumnKind, Operation};
use serde_json::json;

use crate::database::{Database, change, changes, commit, data, model, part};

const COLUMNS: [(&str, ColumnKind); 2] = [("k", ColumnKind::Text), ("n", ColumnKind::Integer)];

#[tokio::test]
async fn rows_are_those_of_the_tenant_or_none() {
    let database = Database::new().await;
    let set = [("set", change(&[("n", Operation::Set, data("n"))]))];
    let version = database.serving(&model("things", "f", &COLUMNS, set)).await;
    let row = |of, n: i64| {
        changes(&version, &commit(of, "set", 1, &json!({"k": "x", "n": n}))).unwrap().unwrap()
    };
    let rows = vec![row("a", 1), row("b", 2)];
    database.models.apply(&[part(&version, rows, 0, 1)]).await.unwrap();

    let as_query = |set: &'static str, sql: &'static str| {
        let admin = &database.admin;
        async move {
            let mut transaction = admin.begin().await.unwrap();
            sqlx::raw_sql("set local role flexcore_query")
                .execute(&mut *transaction)
                .await
                .unwrap();
            sqlx::raw_sql(set).execute(&mut *transaction).await.unwrap();
            let rows = sqlx::query(sql).fetch_all(&mut *transaction).await;
            rows.map(|rows| rows.len()).map_err(|error| error.to_string())
        }
    };
    let of_a = "set local flexcore.tenant = 'a'";
    for sql in ["select * from rm.things", "select * from rm.things_v1"] {
        assert_eq!(as_query(of_a, sql).await, Ok(1), "{sql}");
        assert_eq!(as_query("set local flexcore.tenant = 'c'", sql).await, Ok(0), "{sql}");
        for unset in ["select 1", "set local flexcore.tenant = ''"] {
            assert!(as_query(unset, sql).await.is_err(), "{sql} after {unset}");
        }
    }
    for sql in [
        "update rm.things set n = 3 returning n",
        "delete from rm.things_v1 returning n",
        "insert into rm.things_v1 values ('a', 'y', 1) returning n",
        "select * from flexcore.checkpoints",
        "select * from flexcore.parked",
    ] {
        assert!(as_query(of_a, sql).await.unwrap_err().contains("permission denied"), "{sql}");
    }
    let owner = database
        .one(
            "select tableowner::text from pg_tables \
        where schemaname = 'rm' and tablename = 'things_v1'",
        )
        .await;
    assert!(!owner.starts_with("flexcore_"), "{owner}");
    let forced = "select (relrowsecurity and relforcerowsecurity)::text from pg_class \
        where oid = 'rm.things_v1'::regclass";
    assert_eq!(database.one(forced).await, "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_migrate_at_once_share_their_roles() {
    let databases = [Database::empty().await, Database::empty().await, Database::empty().await];
    let tasks: Vec<_> = databases
        .iter()
        .flat_map(|database| [database.models.clone(), database.models.clone()])
        .map(|models| tokio::spawn(async move { models.migrate().await }))
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    for database in &databases {
        assert_eq!(database.one("select count(*)::text from flexcore.projections").await, "0");
    }
}
