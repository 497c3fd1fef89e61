//! Rows and the log that they are of: another log, an older backup, and tables that somebody dropped.

use flexcore_domain::log::OtherLog;
use flexcore_eventstore as eventstore;

use super::*;

/// Puts an empty log in place of the one that there is, by the same identity or another.
async fn replace_log(rig: &Rig, identity: Option<&str>) {
    let jetstream = rig.store.jetstream();
    let mut config =
        jetstream.get_stream(topology::EVENTS).await.unwrap().cached_info().config.clone();
    let identity = identity.map(|identity| ("flexcore-log".to_owned(), identity.to_owned()));
    config.metadata.extend(identity);
    jetstream.delete_stream(topology::EVENTS).await.unwrap();
    jetstream.create_stream(config).await.unwrap();
}

async fn refusal(rig: &Rig) -> Option<OtherLog> {
    let marks = rig.read_models.marks().await.unwrap();
    match rig.store.recognise(&marks).await {
        Err(eventstore::Error::OtherLog(other)) => Some(other),
        Ok(_) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Two logs under one set of rows once gave half of the new rows and ghosts of the old.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_another_log_are_left_alone_until_it_is_taken_on() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("a", "x", &ones(3)).await).await;
    let before = rig.rows().await;
    assert_eq!(refusal(&rig).await, None);

    // Under a running worker: another log, and then an older backup that went on.
    let of = |group: &str, count: u32| json!({"group": group, "count": count, "total": count});
    let rounds = [(Some("another"), "b", 5, before), (None, "d", 9, json!([of("y", 5)]))];
    for (identity, id, count, before) in rounds {
        replace_log(&rig, identity).await;
        let position = rig.pay(id, "y", &ones(count)).await;
        let other = refusal(&rig).await.expect("the rows are of another log");
        match identity {
            Some(_) => assert!(matches!(other, OtherLog::Identity { .. }), "{other}"),
            None => assert!(matches!(other, OtherLog::History { .. }), "{other}"),
        }
        assert!(other.to_string().contains("flexcore rebuild --from-this-log"), "{other}");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(rig.rows().await, before, "nothing was written");
        let log = rig.store.log().await.unwrap().identity;
        let dropped = rig.read_models.adopt_log(&log).await.unwrap();
        assert_eq!(dropped, [name("sums")]);
        rig.caught_up(position).await;
        let count = u32::try_from(count).unwrap();
        assert_eq!(rig.rows().await, json!([of("y", count)]), "this log's rows, and no ghosts");
        assert_eq!(refusal(&rig).await, None);
    }
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// Everything of ours, and the login of queries.
const ALL: &str = "drop schema rm, flexcore cascade; drop owned by LOGIN; drop role LOGIN";

/// Somebody drops this, where `LOGIN` stands for the login of queries.
async fn drop_from(url: &str, sql: &str) {
    let mut admin = PgConnection::connect(url).await.unwrap();
    let login = "select name from flexcore.query_login";
    let login: String = sqlx::query_scalar(login).fetch_one(&mut admin).await.unwrap();
    let sql = sql.replace("LOGIN", &login);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
}

/// Schemas that were dropped under a running worker once stayed so, and everybody was ready.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_somebody_drops_are_made_anew_and_filled() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    let url = rig.servers.postgres_url().unwrap();
    // As a gateway has it: other sessions, which are kept while everything is made anew.
    let gateway = ReadModels::connect(&url, flexcore_readmodel::Settings::default()).await.unwrap();
    let mut paid = 1;
    rig.caught_up(rig.pay("a", "x", &ones(1)).await).await;
    for dropped in [
        "drop schema rm, flexcore cascade",
        "drop schema flexcore cascade",
        "drop schema rm cascade",
        "drop table flexcore.checkpoints cascade",
        "drop view rm.sums",
        "drop table rm.sums_v cascade",
        ALL,
    ] {
        let serving = async || {
            let all = rig.read_models.status().await.unwrap();
            all.into_iter().find(|status| status.state == VersionState::Serving).unwrap().version
        };
        let sql = dropped.replace("sums_v", &format!("sums_v{}", serving().await));
        drop_from(&url, &sql).await;
        paid += 1;
        rig.pay(&format!("a{paid}"), "x", &ones(1)).await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let select = async || {
            let any = Select::default();
            gateway.select(&tenant(), &sums("any"), &any).await.map(|page| page.rows)
        };
        let expected = json!([{"group": "x", "count": paid, "total": paid}]);
        loop {
            let found = select().await;
            let rows = found.as_ref().ok().map(|rows| serde_json::from_str::<Value>(rows).unwrap());
            if rows.as_ref() == Some(&expected) {
                break;
            }
            if let Err(error) = &found {
                use flexcore_readmodel::Error;
                let is_building = matches!(error, Error::NotBuilt(_) | Error::Gone(_));
                assert!(is_building, "{dropped}: a gateway says {error}");
            }
            assert!(tokio::time::Instant::now() < deadline, "{dropped}: {found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// The same where nobody runs: the next start finds a database with nothing of ours.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_with_the_login_while_nobody_ran_is_made_anew_by_the_next_start() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("a", "x", &ones(1)).await).await;
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 1, "total": 1}]));
    stop.cancel();
    worker.await.unwrap();
    let url = rig.servers.postgres_url().unwrap();
    drop_from(&url, ALL).await;

    let settings = flexcore_readmodel::Settings::default();
    let read_models = ReadModels::connect(&url, settings).await.unwrap();
    read_models.migrate().await.unwrap();
    let rig = Rig { read_models, ..rig };
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("b", "x", &ones(1)).await).await;
    assert_eq!(rig.rows().await, json!([{"group": "x", "count": 2, "total": 2}]));
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}

/// A table that workers seldom read was missed by nobody: without the login's all queries were refused.
#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_seldom_read_are_made_anew_too() {
    let rig = Rig::start().await;
    let (stop, worker) = rig.work().await;
    rig.caught_up(rig.pay("a", "x", &ones(1)).await).await;
    let url = rig.servers.postgres_url().unwrap();
    for table in ["query_login", "rebuilds", "parked", "troubles", "log"] {
        let dropped = format!("drop table flexcore.{table} cascade");
        drop_from(&url, &dropped).await;
        let mut admin = PgConnection::connect(&url).await.unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let there = format!("select to_regclass('flexcore.{table}') is not null");
        loop {
            let there = sqlx::query_scalar(AssertSqlSafe(there.clone()));
            if there.fetch_one(&mut admin).await.unwrap() {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{table} is missed by nobody");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        rig.caught_up(rig.pay(table, "x", &ones(1)).await).await;
    }
    let models = ReadModels::connect(&url, flexcore_readmodel::Settings::default()).await.unwrap();
    let page = models.select(&tenant(), &sums("any"), &Select::default()).await.unwrap();
    let rows: Value = serde_json::from_str(&page.rows).unwrap();
    assert_eq!(rows, json!([{"group": "x", "count": 6, "total": 6}]));
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}
