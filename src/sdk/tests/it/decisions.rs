//! Deciders.

use std::time::Duration;

use flexcore_plugin::contract::{DecisionResult, Question};
use flexcore_sdk::{Refused, testing};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::LAB;

#[tokio::test]
async fn a_decider_accepts_rejects_and_fails() {
    let plugin = testing::start(LAB).await;
    let added = plugin.decide("add", &Value::Null, &json!(3)).await.unwrap();
    assert_eq!(added, [("added".to_owned(), json!({ "by": 3 }))]);
    assert!(plugin.decide("nothing", &json!(1), &Value::Null).await.unwrap().is_empty());
    let refused = plugin.decide("add", &json!(9), &json!(2)).await.unwrap_err();
    assert!(matches!(refused, Refused::Rejected(why) if why.code == "too_many"));
    for (command, state, code) in [
        ("panic", json!(1), "panicked"),
        ("add", json!("x"), "invalid_question"),
        ("remove", json!(1), "unknown_command"),
    ] {
        let refused = plugin.decide(command, &state, &json!(1)).await.unwrap_err();
        assert!(matches!(&refused, Refused::Failed(why) if why.code == code), "{refused:?}");
    }
    plugin.stop().await;
}

#[tokio::test]
async fn many_ask_at_once() {
    let plugin = testing::start(LAB).await;
    let decider = plugin.client().decider();
    let ask = |number: u32| {
        let question = Question {
            context: Some(plugin.context()),
            command: "add".to_owned(),
            state: "0".into(),
            payload: (number % 20).to_string().into(),
            ..Question::default()
        };
        let decided = decider.ask(question, Duration::from_secs(20));
        async move {
            let is_accepted = matches!(decided.await.unwrap(), DecisionResult::Events(_));
            assert_eq!(is_accepted, number % 20 <= 10, "{number}");
        }
    };
    join_all((0..5_000).map(ask)).await;
    plugin.stop().await;
}
