//! The plugin on the real host.

use flexcore_sdk::testing;
use serde_json::json;

const PLUGIN: &str = env!("CARGO_BIN_EXE_greeter");

#[tokio::test]
async fn it_greets_as_configured() {
    let plugin = testing::start(PLUGIN).await;
    plugin.configure(&json!({ "greeting": "Good day" })).await.unwrap();
    let greeted = plugin.call("greet", json!({ "name": " Ada " })).await.unwrap();
    assert_eq!(greeted, json!({ "text": "Good day, Ada!" }));
    plugin.until_logged("greeting").await;
    plugin.stop().await;
}

#[tokio::test]
async fn it_greets_without_a_configuration_but_not_without_a_name() {
    let plugin = testing::start(PLUGIN).await;
    let greeted = plugin.call("greet", json!({ "name": "Ada" })).await.unwrap();
    assert_eq!(greeted, json!({ "text": "Hello, Ada!" }));
    let failure = plugin.call("greet", json!({ "name": " " })).await.unwrap_err();
    assert_eq!(failure.code, "no_name");
    plugin.stop().await;
}

#[tokio::test]
async fn it_is_a_plugin() {
    testing::conforms(PLUGIN).await;
}
