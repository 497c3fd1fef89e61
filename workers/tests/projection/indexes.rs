//! Secondary indexes as they are declared, by the worker.

use flexcore_domain::definition::Index;

use super::*;

fn indexed(fingerprint: &str, columns: &[&str]) -> ReadModelDefinition {
    let index = |column: &&str| Index { columns: vec![(name(column), false)] };
    ReadModelDefinition { indexes: columns.iter().map(index).collect(), ..sums(fingerprint) }
}

impl Rig {
    /// The versions that serve or are built, each with the columns of its indexes.
    async fn indexes(&self) -> String {
        let row = sqlx::query(
            "select coalesce(string_agg(line, ' ' order by line), '') from ( \
                 select 'v' || p.version || ' ' || p.state || coalesce(': ' || string_agg( \
                     substring(x.indexdef from 'tenant, (\\w+)'), ', ' order by x.indexdef), '') \
                 from flexcore.projections p left join pg_indexes x \
                     on x.tablename = p.read_model || '_v' || p.version \
                     and x.indexname like '\\_i%' \
                 where p.state <> 'retired' group by p.version, p.state \
             ) as lines (line)",
        )
        .fetch_one(&self.admin().await)
        .await
        .unwrap();
        sqlx::Row::try_get(&row, 0).unwrap()
    }

    async fn admin(&self) -> sqlx::PgPool {
        sqlx::PgPool::connect(&self.servers.postgres_url().unwrap()).await.unwrap()
    }

    async fn becomes(&self, expected: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found = self.indexes().await;
            if found == expected {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{found} and not {expected}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn indexes_come_and_go_in_place_and_a_new_version_has_them_before_it_serves() {
    let rig = Rig::start().await;
    rig.catalog.send_replace(catalog([indexed("1", &["total"])]));
    let paid = rig.pay("a", "g", &ones(5)).await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(paid).await;
    // At once, not soon.
    assert_eq!(rig.indexes().await, "v1 serving: total");
    rig.catalog.send_replace(catalog([indexed("1", &["count"])]));
    rig.becomes("v1 serving: count").await;
    rig.catalog.send_replace(catalog([indexed("1", &[])]));
    rig.becomes("v1 serving").await;

    // One that cannot be made is its read model's trouble, and is made when it can.
    let admin = rig.admin().await;
    let refuse = "create function refuse() returns event_trigger language plpgsql as $$ begin \
                  raise exception 'not now' using errcode = '53100'; end $$; \
                  create event trigger refuse on ddl_command_start when tag in ('CREATE INDEX') \
                  execute function refuse()";
    sqlx::raw_sql(refuse).execute(&admin).await.unwrap();
    rig.catalog.send_replace(catalog([indexed("1", &["total"])]));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !rig.read_models.troubles().await.unwrap().contains_key("sums") {
        assert!(tokio::time::Instant::now() < deadline, "nobody is told");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let trouble = rig.read_models.troubles().await.unwrap()["sums"].clone();
    assert!(
        trouble.contains("an index cannot be made") && trouble.contains("not now"),
        "{trouble}"
    );
    let paid = rig.pay("b", "h", &ones(5)).await;
    rig.caught_up(paid).await;
    sqlx::raw_sql("drop event trigger refuse").execute(&admin).await.unwrap();
    rig.becomes("v1 serving: total").await;
    while rig.read_models.troubles().await.unwrap().contains_key("sums") {
        assert!(tokio::time::Instant::now() < deadline + PATIENCE, "it is over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    worker.await.unwrap();
}
