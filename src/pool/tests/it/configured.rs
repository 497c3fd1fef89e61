//! Configurations of tenants: when an instance gets them, and what becomes of calls where it cannot work with one.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use flexcore_plugin::contract::{Context, DecisionResult, Description, Failure, Question};
use flexcore_pool::{Configurations, Pool, PoolCall, PoolError, Spec};
use futures::{FutureExt as _, future::ready as at_once};
use serde_json::{Value, json};

use crate::harness::{PATIENCE, kill, pid, ready, spec, until};

/// What tenants have: by tenant the number, and the configuration or why it cannot be read.
#[derive(Clone, Default)]
struct Held(Arc<Mutex<BTreeMap<String, (u64, Found)>>>);

type Found = Result<Option<Value>, Failure>;

impl Held {
    fn set(&self, tenant: &str, configuration: Option<Value>) {
        self.put(tenant, Ok(configuration));
    }

    fn put(&self, tenant: &str, configuration: Found) {
        let mut held = self.0.lock().unwrap();
        let number = held.get(tenant).map_or(1, |(number, _)| number + 1);
        held.insert(tenant.to_owned(), (number, configuration));
    }

    fn spec(&self) -> Spec {
        let (numbers, configurations) = (self.clone(), self.clone());
        let number = move |tenant: &str| {
            numbers.0.lock().unwrap().get(tenant).map_or(0, |(number, _)| *number)
        };
        let read = move |tenant: &str, _: &Arc<Description>| {
            let held = configurations.0.lock().unwrap().get(tenant).cloned();
            let found = held.map_or(Ok(None), |(_, found)| found);
            at_once(found.map(|json| json.map(|json| Bytes::from(json.to_string())))).boxed()
        };
        Spec { configurations: Configurations::new(number, read), ..spec("one") }
    }
}

async fn asked(pool: &Pool, tenant: &str, function: &str) -> Result<Value, PoolError> {
    let context = Context { tenant: tenant.to_owned(), ..Context::default() };
    let call = PoolCall { function: function.to_owned(), context, input: "null".into() };
    let called = pool.call(call, PATIENCE).await;
    called.map(|output| serde_json::from_slice(&output).unwrap())
}

async fn configuration(pool: &Pool, tenant: &str) -> Value {
    asked(pool, tenant, "configuration").await.unwrap()
}

/// How often an instance was given a configuration that names this file.
fn given(file: &Path) -> usize {
    fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn an_instance_gets_a_tenants_configuration_before_its_first_call_and_when_it_changes() {
    let held = Held::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given");
    let first = json!({"file": file, "a": 1});
    for number in 0..1_000 {
        held.set(&format!("t{number}"), Some(first.clone()));
    }
    let pool = ready(held.spec()).await;
    assert_eq!(configuration(&pool, "other").await, Value::Null);
    assert_eq!(given(&file), 0, "nobody has called yet");
    for _ in 0..10 {
        assert_eq!(configuration(&pool, "t1").await, first);
    }
    assert_eq!(given(&file), 1);
    let second = json!({"file": file, "a": 2});
    held.set("t1", Some(second.clone()));
    assert_eq!(configuration(&pool, "t1").await, second);
    assert_eq!(configuration(&pool, "t2").await, first);
    assert_eq!(given(&file), 3);
    kill(pid(&pool).await);
    until(&pool, "another process", |status| status.restarts == 1 && status.ready == 1).await;
    assert_eq!(configuration(&pool, "t1").await, second);
    held.set("t1", None);
    assert_eq!(configuration(&pool, "t1").await, Value::Null);
    assert_eq!(given(&file), 4);
}

/// Each of them would have given it.
#[tokio::test]
async fn calls_at_once_give_it_once() {
    let held = Held::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("given");
    held.set("acme", Some(json!({"file": file})));
    let pool = ready(held.spec()).await;
    let calls = (0..8).map(|_| configuration(&pool, "acme"));
    futures::future::join_all(calls).await;
    assert_eq!(given(&file), 1);
}

/// The next one was given beside it, and the plugin, which took the older one up last, used it for ever.
#[tokio::test]
async fn a_late_configuration_is_waited_for_before_the_next_one_is_given() {
    let held = Held::default();
    held.set("acme", Some(json!({"wait_ms": 13_000, "is": "old"})));
    let pool = ready(held.spec()).await;
    let (began, wait) = (Instant::now(), Duration::from_millis(100));
    let error = asked(&pool, "acme", "pid").await.unwrap_err();
    assert!(matches!(error, PoolError::Away(_)), "{error}");
    let new = json!({"is": "new"});
    held.set("acme", Some(new.clone()));
    let (late, error) = (Instant::now(), asked(&pool, "acme", "pid").await.unwrap_err());
    assert!(matches!(error, PoolError::Away(_)), "{error}");
    assert!(late.elapsed() < Duration::from_secs(2), "calls hold no places while it is late");
    assert_eq!(configuration(&pool, "other").await, Value::Null);
    while let Err(error) = asked(&pool, "acme", "pid").await {
        assert!(matches!(error, PoolError::Away(_)), "{error}");
        assert!(began.elapsed() < PATIENCE * 2, "{error}");
        tokio::time::sleep(wait).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(13), "the older one was not waited for");
    tokio::time::sleep(wait).await;
    assert_eq!(configuration(&pool, "acme").await, new);
}

#[tokio::test]
async fn calls_are_refused_with_the_plugins_reason_and_others_go_on() {
    let held = Held::default();
    held.set("acme", Some(json!({"do": "fail"})));
    held.set("globex", Some(json!({"do": "fail_for_now"})));
    held.put("sealed", Err(Failure::new("unconfigured", "another key")));
    let pool = ready(held.spec()).await;
    for (tenant, said, temporary) in [
        ("acme", "no_host: as asked", false),
        ("globex", "no_network: as asked", true),
        ("sealed", "another key", false),
    ] {
        for _ in 0..2 {
            let error = asked(&pool, tenant, "pid").await.unwrap_err();
            let PoolError::Failed(failure) = error else { panic!("{tenant}: {error}") };
            assert_eq!((&*failure.code, failure.temporary), ("unconfigured", temporary));
            assert!(failure.message.ends_with(said), "{failure}");
        }
    }
    assert_eq!(configuration(&pool, "other").await, Value::Null);
    held.set("acme", Some(json!({})));
    assert_eq!(configuration(&pool, "acme").await, json!({}));
    assert_eq!(pool.status().restarts, 0);
}

/// The decision was given up at once, as that of a plugin that is away.
#[tokio::test]
async fn questions_are_asked_again_where_the_plugin_ended_under_the_configuration() {
    let held = Held::default();
    let folder = tempfile::tempdir().unwrap();
    let (once, file) = (folder.path().join("once"), folder.path().join("given"));
    held.set("acme", Some(json!({"do": "crash_once", "once": once, "file": file})));
    let pool = ready(held.spec()).await;
    let question = |payload: &'static str| {
        let context = Context { tenant: "acme".to_owned(), ..Context::default() };
        let (command, payload) = ("add".to_owned(), payload.into());
        let state = "null".into();
        Question { context: Some(context), command, payload, state, ..Question::default() }
    };
    let asked = [(question("1"), PATIENCE), (question("2"), PATIENCE)];
    let told = pool.decide("acme", &asked).await;
    let data: Vec<&[u8]> = told
        .iter()
        .map(|one| match one {
            Ok(DecisionResult::Events(events)) => &*events.events[0].data,
            other => panic!("not decided: {other:?}"),
        })
        .collect();
    assert_eq!(data, [b"1", b"2"]);
    assert_eq!((given(&file), pool.status().restarts), (2, 1));
}

/// Each call of this tenant would end the calls of all others.
#[tokio::test]
async fn a_tenant_whose_configuration_ends_the_plugin_is_refused() {
    let held = Held::default();
    held.set("acme", Some(json!({"do": "crash"})));
    let pool = ready(held.spec()).await;
    let mut refused = false;
    for _ in 0..200 {
        pool.ready(PATIENCE).await.unwrap();
        let error = asked(&pool, "acme", "version").await.unwrap_err();
        refused =
            matches!(&error, PoolError::Failed(failure) if failure.code == "ended_under_calls");
        if refused {
            break;
        }
        assert!(matches!(error, PoolError::Away(_)), "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(refused);
    pool.ready(PATIENCE).await.unwrap();
    assert_eq!(configuration(&pool, "other").await, Value::Null);
}
