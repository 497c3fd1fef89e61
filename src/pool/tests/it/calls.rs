//! What becomes of calls, also of those whose instance ends.

use std::time::Duration;

use flexcore_plugin::contract::Context;
use flexcore_pool::{Pool, PoolCall, PoolError, PoolState, Spec};
use serde_json::json;

use crate::harness::{PATIENCE, call, kill, pid, ready, spec, until, until_gone};

#[tokio::test]
async fn a_function_is_called() {
    let pool = ready(spec("one")).await;
    assert_eq!(call(&pool, "echo", "[1, 2]").await.unwrap(), "[1, 2]");
    let failed = call(&pool, "fail", "null").await.unwrap_err();
    let PoolError::Failed(failure) = failed else { panic!("{failed}") };
    assert!(failure.code == "not_now" && failure.temporary);
    assert_eq!(call(&pool, "nothing", "null").await, Err(PoolError::UnknownFunction));
    assert_eq!(call(&pool, "bad", "null").await, Err(PoolError::UnknownFunction));
    let large = " ".repeat(5 * 1024 * 1024);
    assert_eq!(call(&pool, "echo", &large).await, Err(PoolError::TooLarge));
    call(&pool, "print", "null").await.unwrap();
    until(&pool, "a printed line", |_| {
        pool.lines().iter().any(|line| line == "WARN something was printed")
    })
    .await;
    let status = pool.status();
    assert_eq!((status.state, status.instances, status.ready), (PoolState::Ready, 1, 1));
    assert_eq!((status.calls, status.errors, status.restarts), (6, 4, 0));
    assert!(status.memory_bytes > 0 && status.p99 >= status.p50 && status.reason.is_none());
    assert_eq!(status.description.unwrap().functions.len(), 11);
    pool.stop(PATIENCE).await;
    let stopped = call(&pool, "echo", "1").await.unwrap_err();
    assert!(matches!(stopped, PoolError::Away(_)), "{stopped}");
}

#[tokio::test]
async fn an_output_has_a_limit_of_the_caller() {
    let pool = ready(Spec { output_bytes_max: 1_024, ..spec("one") }).await;
    let input = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    call(&pool, "echo", &input(500)).await.unwrap();
    let large = call(&pool, "echo", &input(1_024)).await.unwrap_err();
    assert!(matches!(large, PoolError::Faulty(_)), "{large}");
    call(&pool, "echo", "1").await.unwrap();
}

#[tokio::test]
async fn more_calls_than_there_are_places_are_refused_and_late_ones_are_given_up() {
    let pool = ready(Spec { concurrency: 2, ..spec("one") }).await;
    let sleep = |ms: &'static str| call(&pool, "sleep", ms);
    let third = async {
        until(&pool, "two calls", |status| status.state == PoolState::Busy).await;
        assert_eq!(pool.status().under_way, 2);
        call(&pool, "echo", "1").await
    };
    let (first, second, third) = tokio::join!(sleep("1500"), sleep("1500"), third);
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(third, Err(PoolError::Busy));
    let (function, context) = ("sleep".to_owned(), Context::default());
    let late = PoolCall { function, context, input: "60000".into() };
    let late = pool.call(late, Duration::from_millis(100)).await;
    assert_eq!(late.unwrap_err(), PoolError::Late);
    until(&pool, "no call", |status| status.under_way == 0).await;
}

#[tokio::test]
async fn what_is_killed_comes_back() {
    let pool = ready(spec("one")).await;
    let first = pid(&pool).await;
    kill(first);
    until(&pool, "another process", |status| status.restarts == 1 && status.ready == 1).await;
    assert_ne!(pid(&pool).await, first);
    assert_eq!(pool.status().state, PoolState::Ready);
}

#[tokio::test]
async fn a_call_under_which_the_plugin_ended_is_repeated_only_if_it_may_be() {
    let pool = ready(spec("one")).await;
    let crashed = call(&pool, "crash", "null").await.unwrap_err();
    assert!(matches!(crashed, PoolError::Unknown(_)), "{crashed}");
    pool.ready(PATIENCE).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = json!(folder.path().join("there")).to_string();
    assert_eq!(call(&pool, "crash_once", &file).await.unwrap(), "\"again\"");
    assert_eq!(pool.status().restarts, 2);
}

#[tokio::test]
async fn a_call_under_which_a_replaced_version_ended_is_repeated_by_the_new_one() {
    let pool = ready(spec("one")).await;
    let old = pid(&pool).await;
    let replaced = async {
        until(&pool, "a call", |status| status.under_way == 1).await;
        pool.upgrade(spec("two")).await.unwrap();
        kill(old);
    };
    let (called, ()) = tokio::join!(call(&pool, "nap", "5000"), replaced);
    assert_eq!(called.unwrap(), "\"two\"");
}

#[tokio::test]
async fn another_instance_takes_the_calls_of_one_that_ended() {
    let pool = ready(Spec { instances: 2, ..spec("one") }).await;
    until(&pool, "both", |status| status.ready == 2).await;
    let first = pid(&pool).await;
    kill(first);
    until_gone(first).await;
    for _ in 0..20 {
        call(&pool, "echo", "1").await.unwrap();
    }
    until(&pool, "both again", |status| status.ready == 2).await;
}

#[tokio::test]
async fn what_does_not_start_says_why() {
    let pool = Pool::new(spec("ends"));
    until(&pool, "a reason", |status| status.reason.is_some()).await;
    let why = pool.ready(Duration::from_millis(50)).await.unwrap_err();
    assert!(why.to_string().contains("no luck today"), "{why}");
    let called = call(&pool, "echo", "1").await.unwrap_err();
    assert!(matches!(called, PoolError::Away(_)), "{called}");
    until(&pool, "more tries", |status| status.restarts >= 2).await;
    let state = pool.status().state;
    assert!(matches!(state, PoolState::Starting | PoolState::BackingOff), "{state}");
    pool.stop(PATIENCE).await;
}

#[tokio::test]
async fn when_the_last_clone_is_dropped_its_processes_are_killed() {
    let pool = ready(spec("one")).await;
    let process = pid(&pool).await;
    let clone = pool.clone();
    drop(pool);
    assert_eq!(pid(&clone).await, process);
    drop(clone);
    until_gone(process).await;
}

#[tokio::test]
async fn a_foreign_plugin_is_called_by_reflection() {
    let pool = ready(Spec { contract: false, ..spec("described") }).await;
    let describe = "flexcore.plugin.v1.Plugin/Describe";
    let described = pool.call_method("test", describe, json!({}), PATIENCE).await.unwrap();
    assert_eq!(described["name"], "lab");
    let wrong = pool.call_method("test", describe, json!({ "x": 1 }), PATIENCE).await.unwrap_err();
    let PoolError::Failed(failure) = wrong else { panic!("{wrong}") };
    assert_eq!(failure.code, "invalid_input");
    for other in ["flexcore.plugin.v1.Plugin/None", "None", "x.Y/Z"] {
        let none = pool.call_method("test", other, json!({}), PATIENCE).await;
        assert_eq!(none, Err(PoolError::UnknownFunction), "{other}");
    }
    assert_eq!(call(&pool, "echo", "1").await, Err(PoolError::UnknownFunction));
}
