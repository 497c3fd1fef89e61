//! The kit holds a plugin to its contract.

use std::process::{Command, Stdio};

use flexcore_sdk::testing::{self, Kit};
use serde_json::{Value, json};

use crate::LAB;

#[tokio::test]
async fn a_plugin_of_the_sdk_does_what_every_plugin_has_to_do() {
    testing::conforms(LAB).await;
}

#[tokio::test]
#[should_panic(expected = "the host would refuse this input of \"small\"")]
async fn an_input_that_does_not_fit_is_told() {
    let _ = testing::start(LAB).await.call("small", json!(10)).await;
}

#[tokio::test]
#[should_panic(expected = "\"wrong\" breaks its own schema")]
async fn an_output_that_does_not_fit_is_told() {
    let _ = testing::start(LAB).await.call("wrong", Value::Null).await;
}

#[tokio::test]
#[should_panic(expected = "without a host its exit status is 1")]
async fn what_is_no_plugin_does_not_conform() {
    testing::conforms("/bin/true").await;
}

/// The host would refuse each call of it.
#[tokio::test]
#[should_panic(expected = "it has schemas that can be read: the schema of the input")]
async fn a_schema_that_is_none_does_not_conform() {
    Kit::new(LAB).argument("unreadable").conforms().await;
}

/// By whom it was started does not matter: its author has to mend it.
#[test]
fn a_plugin_that_cannot_be_described_does_not_start() {
    let mut command = Command::new(LAB);
    let ended = command.arg("broken").stdin(Stdio::null()).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("two functions called \"echo\""), "{said}");
}
