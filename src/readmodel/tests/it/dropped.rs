//! Schemas, tables and the login of queries that somebody dropped while nobody ran.

use flexcore_definition::ColumnType;
use flexcore_readmodel::{ReadModels, Settings};
use sqlx::AssertSqlSafe;

use crate::database::{Database, model, query, tenant};

/// Processes that start at once.
const STARTS: usize = 4;

/// Every start after that once waited for ever, since the migrations were noted as done.
#[tokio::test]
async fn whatever_was_dropped_is_there_again_after_the_next_start() {
    let database = Database::new().await;
    let model = model("things", "f", &[("k", ColumnType::Text)], []);
    database.serving(&model).await;
    for dropped in [
        "drop schema rm, flexcore cascade; drop owned by LOGIN; drop role LOGIN",
        "drop schema rm, flexcore cascade; delete from public._sqlx_migrations where version = 11",
        "drop schema flexcore cascade",
        "drop schema rm cascade",
        "drop table flexcore.query_login cascade",
        "drop table flexcore.troubles cascade",
    ] {
        let login = database.one("select name from flexcore.query_login").await;
        let sql = dropped.replace("LOGIN", &format!("\"{login}\""));
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&database.admin).await.unwrap();
        let start = |_| {
            let url = database.url.clone();
            tokio::spawn(async move {
                let models = ReadModels::connect(&url, Settings::default()).await.unwrap();
                models.migrate().await.map(|()| models)
            })
        };
        let starts: Vec<_> = (0..STARTS).map(start).collect();
        let mut started = Vec::new();
        for start in starts {
            let models = start.await.unwrap();
            started.push(models.unwrap_or_else(|error| panic!("{dropped}: {error}")));
        }
        // Nothing serves: it is all to be built again.
        database.serving(&model).await;
        for models in started {
            let rows = models.run_query(&tenant("a"), &query("select k from rm.things"), &[]).await;
            assert_eq!(rows.unwrap(), "[]", "{dropped}");
        }
    }
}
