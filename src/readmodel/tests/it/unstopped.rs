//! Statements that Postgres cannot stop. A process of its that is frozen stands for one that computes and
//! never looks whether it is to stop.

use std::{process::Command, time::Duration};

use flexcore_definition::ColumnType;
use flexcore_readmodel::{Error, ReadModels, Settings};

use crate::database::{Database, model, query, tenant};

/// Processes of Postgres, frozen for as long as this lives.
struct Frozen(Vec<String>);

impl Frozen {
    fn new(pids: Vec<String>) -> Self {
        let frozen = Self(pids);
        frozen.signal("-STOP");
        frozen
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).args(&self.0).status().unwrap();
        assert!(status.success(), "kill {signal} {:?}", self.0);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

#[tokio::test]
async fn a_query_that_cannot_be_stopped_keeps_its_place() {
    let database = Database::new().await;
    database.serving(&model("things", "f", &[("k", ColumnType::Text)], [])).await;
    let settings = Settings {
        connections_max: 4,
        acquire_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(3),
        clean_wait: Duration::from_millis(100),
        ..Settings::default()
    };
    let models = ReadModels::connect(&database.url, settings).await.unwrap();
    let run = |of: &'static str, sql: &'static str| {
        let models = models.clone();
        async move { models.run_query(&tenant(of), &query(sql), &[]).await }
    };
    let slow = "select max(n) from generate_series(1, 1000000000) as slow (n)";
    let asked: Vec<_> = (0..3).map(|_| tokio::spawn(run("a", slow))).collect();
    let running = "select string_agg(pid::text, ' ') from pg_stat_activity \
                   where state = 'active' and query like '%as slow%' and pid <> pg_backend_pid()";
    let mut pids = Vec::new();
    while pids.len() < asked.len() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        pids = database.one(running).await.split_whitespace().map(str::to_owned).collect();
    }
    let frozen = Frozen::new(pids);
    for asked in asked {
        let given_up = tokio::time::timeout(Duration::from_secs(20), asked).await.unwrap().unwrap();
        assert!(matches!(given_up, Err(Error::Timeout(_))), "{given_up:?}");
    }
    // Long enough that their sessions are given up.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let refused = run("a", "select 1 as n").await;
    assert!(matches!(refused, Err(Error::NoPlace)), "{refused:?}");
    assert_eq!(run("b", "select 1 as n").await.unwrap(), r#"[{"n":1}]"#);
    drop(frozen);
    while run("a", "select 1 as n").await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
