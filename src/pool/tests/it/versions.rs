//! One version in the place of another.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use flexcore_pool::{PoolError, Spec};

use crate::harness::{call, is_alive, pid, ready, spec, until, until_gone};

#[tokio::test]
async fn an_upgrade_loses_no_call() {
    let pool = ready(spec("one")).await;
    let (old, done) = (pid(&pool).await, AtomicBool::new(false));
    let calls = async {
        let mut versions = Vec::new();
        while !done.load(Ordering::Relaxed) {
            versions.push(call(&pool, "sleep", "5").await.unwrap());
        }
        versions
    };
    let upgrade = async {
        // It is under way when the old version is replaced, and answered by that.
        let (slow, upgraded) =
            tokio::join!(call(&pool, "sleep", "1500"), pool.upgrade(spec("two")));
        upgraded.unwrap();
        assert_eq!(slow.unwrap(), "\"one\"");
        assert_eq!(call(&pool, "version", "null").await.unwrap(), "\"two\"");
        // The last calls begin after that.
        tokio::time::sleep(Duration::from_millis(200)).await;
        done.store(true, Ordering::Relaxed);
    };
    let (versions, ()) = tokio::join!(calls, upgrade);
    assert_eq!(versions.first().map(String::as_str), Some("\"one\""));
    assert_eq!(versions.last().map(String::as_str), Some("\"two\""));
    until_gone(old).await;
}

#[tokio::test]
async fn a_version_that_does_not_start_leaves_the_old_one_in_service() {
    let pool = ready(spec("one")).await;
    let old = pid(&pool).await;
    let why = pool.upgrade(spec("ends")).await.unwrap_err();
    assert!(why.to_string().contains("no luck today"), "{why}");
    assert_eq!(pid(&pool).await, old);
    assert_eq!(call(&pool, "version", "null").await.unwrap(), "\"one\"");
}

#[tokio::test]
async fn a_restart_is_another_process() {
    let pool = ready(Spec { instances: 2, ..spec("one") }).await;
    let old = pid(&pool).await;
    pool.restart().await.unwrap();
    assert_eq!(pool.status().ready, 2);
    assert_ne!(pid(&pool).await, old);
    until_gone(old).await;
}

#[tokio::test]
async fn a_stop_waits_for_calls_under_way() {
    let pool = ready(spec("one")).await;
    let process = pid(&pool).await;
    let slow = call(&pool, "sleep", "500");
    let stop = async {
        until(&pool, "a call", |status| status.under_way == 1).await;
        pool.stop().await;
    };
    let (slow, ()) = tokio::join!(slow, stop);
    assert_eq!(slow.unwrap(), "\"one\"");
    assert!(!is_alive(process));
    let upgraded = pool.upgrade(spec("two")).await.unwrap_err();
    assert!(matches!(upgraded, PoolError::Away(_)), "{upgraded}");
    assert!(pool.restart().await.is_err());
}
