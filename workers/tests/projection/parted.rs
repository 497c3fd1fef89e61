//! A read model whose batches end the connection to Postgres.

use super::*;

const BAD: &str = "ledger";

/// `sums`, and the same again under another name.
fn both() -> Arc<Catalog> {
    let mut application = bank(sums("1"));
    let bad = ReadModelDefinition { name: name(BAD), ..sums("ledger") };
    application.read_models.insert(name(BAD), Arc::new(bad));
    let mut catalog = Catalog::default();
    catalog.put(application);
    Arc::new(catalog)
}

/// All that were read together with it once stood still for as long.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_whose_batches_end_the_connection_stands_still_alone() {
    let rig = Rig::start().await;
    rig.catalog.send_replace(both());
    let (stop, worker) = rig.work().await;
    let first = rig.pay("a", "x", &ones(3)).await;
    for model in ["sums", BAD] {
        passes(&rig, model, first).await;
    }
    let mut admin = PgConnection::connect(&rig.servers.postgres_url().unwrap()).await.unwrap();
    let ends = "create function public.ends() returns trigger language plpgsql security definer as \
                $$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$; \
                create trigger ends before insert or update on rm.ledger_v1 \
                for each row execute function public.ends()";
    sqlx::raw_sql(ends).execute(&mut admin).await.unwrap();
    let second = rig.pay("b", "x", &ones(3)).await;
    passes(&rig, "sums", second).await;
    let short = Duration::from_millis(300);
    assert!(rig.read_models.wait(&[name(BAD)], &[second], short).await.is_err());

    sqlx::raw_sql("drop trigger ends on rm.ledger_v1").execute(&mut admin).await.unwrap();
    passes(&rig, BAD, second).await;
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}
