//! Functions, as their callers see them.

use std::time::Duration;

use flexcore_plugin::{Error, Level};
use flexcore_sdk::testing::{self, Context, Kit};
use serde_json::{Value, json};

use crate::LAB;

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_function_hears_on_whose_behalf_it_is_called() {
    let plugin = testing::start(LAB).await;
    let context = Context {
        tenant: "acme".to_owned(),
        actor: "ann".to_owned(),
        idempotency_key: "k1".to_owned(),
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned(),
        ..Context::default()
    };
    let told = plugin.call_as(context.clone(), "about", &Value::Null, LONG).await;
    let mut told: Value = serde_json::from_slice(&told.unwrap().unwrap()).unwrap();
    let remaining = told["remaining_ms"].take().as_u64().unwrap();
    assert!((15_000..=20_000).contains(&remaining), "{remaining}");
    let expected = json!({
        "tenant": "acme", "actor": "ann", "key": "k1", "trace": context.traceparent,
        "remaining_ms": null,
    });
    assert_eq!(told, expected);
    plugin.stop().await;
}

#[tokio::test]
async fn a_call_whose_time_is_over_is_dropped() {
    let plugin = testing::start(LAB).await;
    for (function, input) in [("sleep", json!(60_000)), ("work", Value::Null)] {
        let late = plugin.call_as(plugin.context(), function, &input, SHORT).await;
        let error = late.unwrap_err();
        assert!(matches!(error, Error::Late { .. }), "{function}: {error}");
        plugin.until_logged(&format!("{function} has ended")).await;
    }
    plugin.until_logged("progress").await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_call_whose_caller_goes_away_is_dropped() {
    let plugin = testing::start(LAB).await;
    {
        let input = json!(60_000);
        let call = plugin.call_as(plugin.context(), "sleep", &input, LONG);
        let begun = plugin.until_logged("sleep has begun");
        tokio::select! {
            answer = call => panic!("{answer:?}"),
            _ = begun => {}
        }
    }
    plugin.until_logged("sleep has ended").await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_panic_is_a_failure_and_a_line_of_the_log() {
    let plugin = testing::start(LAB).await;
    for _ in 0..3 {
        let failure = plugin.call("panic", Value::Null).await.unwrap_err();
        assert_eq!(failure.code, "panicked");
    }
    let line = plugin.until_logged("as asked").await;
    assert_eq!(line.level, Level::Error);
    assert_eq!(line.fields["function"], "panic");
    assert_eq!(plugin.call("echo", json!([1])).await.unwrap(), json!([1]));
    plugin.stop().await;
}

#[tokio::test]
async fn failures_say_what_they_are() {
    let plugin = testing::start(LAB).await;
    let failure = plugin.call("fail", json!({ "code": "gone" })).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("gone", false));
    assert_eq!(failure.details, r#"{"why":"a test"}"#);
    let input = json!({ "code": "busy", "pause_ms": 1_500 });
    let failure = plugin.call("fail", input).await.unwrap_err();
    assert_eq!((failure.temporary, failure.retry_after_ms), (true, 1_500));
    // The SDK does not let the contract be broken.
    let failure = plugin.call("fail", json!({ "code": "Not A Code" })).await.unwrap_err();
    assert_eq!(failure.code, "broken_answer");
    plugin.stop().await;
}

#[tokio::test]
async fn the_log_has_levels_and_fields() {
    let plugin = testing::start(LAB).await;
    plugin.call("log", Value::Null).await.unwrap();
    let line = plugin.until_logged("one").await;
    assert_eq!((line.level, &*line.message), (Level::Warn, "one\ntwo"));
    assert_eq!(line.module.as_deref(), Some("flexcore_sdk_lab"));
    assert_eq!(line.fields["count"], 3);
    assert_eq!(line.fields["name"], "x");
    assert_eq!(line.fields["tenant"], "test");
    assert!(plugin.logged().iter().all(|line| line.level != Level::Debug));
    plugin.stop().await;
    let plugin = Kit::new(LAB).variable("RUST_LOG", "debug").start().await;
    plugin.call("log", Value::Null).await.unwrap();
    plugin.until_logged("too much").await;
    plugin.stop().await;
}

#[tokio::test]
async fn each_tenant_has_its_configuration() {
    let plugin = testing::start(LAB).await;
    let settings = || plugin.call("settings", Value::Null);
    assert_eq!(settings().await.unwrap_err().code, "not_configured");
    plugin.configure(&json!({ "url": "https://a" })).await.unwrap();
    assert_eq!(settings().await.unwrap(), "a");
    let other = Context { tenant: "acme".to_owned(), ..Context::default() };
    let other = plugin.call_as(other, "settings", &Value::Null, LONG).await.unwrap();
    assert_eq!(other.unwrap_err().code, "not_configured");
    plugin.configure(&json!({ "url": "https://b" })).await.unwrap();
    assert_eq!(settings().await.unwrap(), "b");
    let failure = plugin.configure(&json!({ "url": "http://b" })).await.unwrap_err();
    assert_eq!(failure.code, "no_https");
    assert_eq!(settings().await.unwrap_err(), failure);
    plugin.stop().await;
}

#[tokio::test]
async fn many_calls_go_on_one_stream() {
    let plugin = testing::start(LAB).await;
    let inputs: Vec<_> = (0..3_000).map(Value::from).collect();
    let outputs = plugin.stream("echo", &inputs).await;
    let outputs: Vec<_> = outputs.into_iter().map(Result::unwrap).collect();
    assert_eq!(outputs, inputs);
    let most = plugin.stream("busy", &inputs[..200]).await;
    let most = most.into_iter().map(|most| most.unwrap().as_u64().unwrap()).max();
    assert_eq!(most, Some(4));
    let failed = plugin.stream("panic", &inputs[..3]).await;
    assert!(failed.iter().all(|failed| failed.as_ref().unwrap_err().code == "panicked"));
    let keys = plugin.stream("about", &[Value::Null, Value::Null]).await;
    let keys: Vec<_> = keys.into_iter().map(|about| about.unwrap()["key"].clone()).collect();
    assert_ne!(keys[0], keys[1], "one for each call");
    let unknown = plugin.stream("nothing", &inputs[..2]).await;
    assert_eq!(unknown[1].as_ref().unwrap_err().code, "unknown_function");
    plugin.stop().await;
}

#[tokio::test]
async fn it_is_called_in_every_way_that_it_can_be_started() {
    for (tls, multiplex) in [(false, false), (false, true), (true, true)] {
        let plugin = Kit::new(LAB).tls(tls).multiplex(multiplex).start().await;
        assert_eq!(plugin.call("echo", json!("x")).await.unwrap(), "x");
        plugin.stop().await;
    }
}
