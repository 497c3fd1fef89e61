//! One version in the place of another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use flexcore_pool::{Pool, PoolError, PoolState, Spec};

use crate::harness::{PATIENCE, call, is_alive, pid, ready, spec, start, unfit, until, until_gone};

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
    assert!(!why.in_place && why.to_string().contains("no luck today"), "{why}");
    assert_eq!(pid(&pool).await, old);
    assert_eq!(call(&pool, "version", "null").await.unwrap(), "\"one\"");
}

#[tokio::test]
async fn a_version_that_does_not_start_takes_the_place_of_one_that_was_given_up_and_says_so() {
    let pool = Pool::new(unfit());
    until(&pool, "the end of it", |status| status.state == PoolState::Failed).await;
    let why = pool.upgrade(spec("ends")).await.unwrap_err();
    assert!(why.in_place, "{why}");
    assert!(pool.status().reason.unwrap().contains("no luck today"));
    pool.upgrade(spec("two")).await.unwrap();
    assert_eq!(call(&pool, "version", "null").await.unwrap(), "\"two\"");
}

#[tokio::test]
async fn a_version_whose_first_start_fails_is_tried_again() {
    let (pool, is_first) = (ready(spec("one")).await, AtomicBool::new(true));
    let flaky = move || start(if is_first.swap(false, Ordering::Relaxed) { "ends" } else { "two" });
    pool.upgrade(Spec { start: Arc::new(flaky), ..spec("two") }).await.unwrap();
    assert_eq!(call(&pool, "version", "null").await.unwrap(), "\"two\"");
}

/// It takes longer than an instance that is not well has.
#[tokio::test]
async fn a_long_call_is_answered_by_the_version_that_it_began_with() {
    let pool = ready(spec("one")).await;
    let (slow, upgraded) = tokio::join!(call(&pool, "sleep", "11500"), pool.upgrade(spec("two")));
    upgraded.unwrap();
    assert_eq!(slow.unwrap(), "\"one\"");
}

#[tokio::test]
async fn a_stop_gives_calls_the_time_that_it_is_told_those_of_replaced_versions_included() {
    let pool = ready(spec("one")).await;
    let old = pid(&pool).await;
    let stop = async {
        until(&pool, "a call", |status| status.under_way == 1).await;
        pool.upgrade(spec("two")).await.unwrap();
        let stopped = tokio::time::timeout(PATIENCE / 2, pool.stop(Duration::ZERO));
        stopped.await.unwrap();
    };
    let (slow, ()) = tokio::join!(call(&pool, "sleep", "60000"), stop);
    assert!(matches!(slow, Err(PoolError::Unknown(_))), "{slow:?}");
    assert!(!is_alive(old));
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
        pool.stop(PATIENCE).await;
    };
    let (slow, ()) = tokio::join!(slow, stop);
    assert_eq!(slow.unwrap(), "\"one\"");
    assert!(!is_alive(process));
    let upgraded = pool.upgrade(spec("two")).await.unwrap_err();
    assert!(!upgraded.in_place && matches!(upgraded.why, PoolError::Away(_)), "{upgraded}");
    assert!(pool.restart().await.is_err());
}
