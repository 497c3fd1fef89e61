//! Secondary indexes as they are declared, by the worker.

use flexcore_definition::Index;

use super::*;

fn indexed(fingerprint: &str, columns: &[&str]) -> ReadModelDefinition {
    let index = |column: &&str| Index { columns: vec![(name(column), false)] };
    ReadModelDefinition { indexes: columns.iter().map(index).collect(), ..sums(fingerprint) }
}

impl Rig {
    /// The versions that serve or are built, each with the columns of its indexes.
    async fn indexes(&self) -> String {
        let row = sqlx::query(
            // From tables alone: what Postgres works out of an index fails while one is dropped.
            "select coalesce(string_agg(line, ' ' order by line), '') from ( \
                 select 'v' || p.version || ' ' || p.state || coalesce(': ' || string_agg( \
                     x.attname, ', ' order by x.attname), '') \
                 from flexcore.projections p left join ( \
                     select t.relname, a.attname::text from pg_index i \
                     join pg_class t on t.oid = i.indrelid join pg_class c on c.oid = i.indexrelid \
                     join pg_attribute a on a.attrelid = c.oid and a.attnum = 2 \
                     where c.relname like '\\_i%' \
                 ) x on x.relname = p.read_model || '_v' || p.version \
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

    /// From now on Postgres makes no index, with this error, and counts who tries.
    async fn refuse_indexes(&self, errcode: &str) {
        let refuse = format!(
            "create sequence public.tries; \
             create function refuse() returns event_trigger language plpgsql as $$ begin \
             perform nextval('public.tries'); \
             raise exception 'not now' using errcode = '{errcode}'; end $$; \
             create event trigger refuse on ddl_command_start when tag in ('CREATE INDEX') \
             execute function refuse()"
        );
        sqlx::raw_sql(AssertSqlSafe(refuse)).execute(&self.admin().await).await.unwrap();
    }

    /// The report on the read model's indexes, once there is one.
    async fn trouble(&self) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(trouble) = self.read_models.troubles().await.unwrap().remove("sums") {
                return trouble;
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody is told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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
    let index_pause = Duration::from_millis(500);
    let (stop, worker) =
        rig.work_as(projection::Settings { index_pause, ..Default::default() }).await;
    rig.caught_up(paid).await;
    // At once, not soon.
    assert_eq!(rig.indexes().await, "v1 serving: total");
    rig.catalog.send_replace(catalog([indexed("1", &["count"])]));
    rig.becomes("v1 serving: count").await;
    rig.catalog.send_replace(catalog([indexed("1", &[])]));
    rig.becomes("v1 serving").await;

    // One that cannot be made is its read model's trouble, and is made when it can.
    let admin = rig.admin().await;
    // Not even when Postgres says that no retry helps is it left for ever.
    rig.refuse_indexes("42501").await;
    rig.catalog.send_replace(catalog([indexed("1", &["total"])]));
    let trouble = rig.trouble().await;
    assert!(
        trouble.contains("an index cannot be made") && trouble.contains("not now"),
        "{trouble}"
    );
    let paid = rig.pay("b", "h", &ones(5)).await;
    rig.caught_up(paid).await;
    sqlx::raw_sql("drop event trigger refuse").execute(&admin).await.unwrap();
    rig.becomes("v1 serving: total").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while rig.read_models.troubles().await.unwrap().contains_key("sums") {
        assert!(tokio::time::Instant::now() < deadline, "it is over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    worker.await.unwrap();
}

/// A disk without room for the index kept a new read model from serving, and was filled again every few
/// seconds; nobody was told.
#[tokio::test]
async fn a_version_serves_without_the_index_that_cannot_be_made() {
    let rig = Rig::start().await;
    rig.refuse_indexes("53100").await;
    rig.catalog.send_replace(catalog([indexed("1", &["total"])]));
    let paid = rig.pay("a", "g", &ones(5)).await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(paid).await;
    assert_eq!(rig.rows().await, json!([{"group": "g", "count": 5, "total": 5}]));
    let trouble = rig.trouble().await;
    assert!(trouble.contains("an index cannot be made: not now"), "{trouble}");
    // Time for several looks of the worker.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tries =
        sqlx::query("select last_value from public.tries").fetch_one(&rig.admin().await).await;
    let tries: i64 = sqlx::Row::try_get(&tries.unwrap(), 0).unwrap();
    assert_eq!((rig.indexes().await.as_str(), tries), ("v1 serving", 1));
    stop.cancel();
    worker.await.unwrap();
}
