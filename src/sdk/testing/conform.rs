//! What every plugin has to do.

use std::{process::Stdio, time::Duration};

use flexcore_plugin::{
    Cookie, Error,
    contract::{CallOutcome, CallRequest},
    limits::INPUT_BYTES_MAX,
};
use serde_json::Value;
use tokio::{process::Command, time::timeout};
use tonic::Code;

use super::{
    kit::Kit,
    running::{PATIENCE, Running},
};

/// A call that is given up is given up so soon.
const SOON: Duration = Duration::from_millis(1);

impl Kit {
    /// Holds the plugin to what every plugin has to do: describe itself, refuse what the contract
    /// does not allow, and end when it is told to; with TLS and without. It is called with what is
    /// no JSON alone, so that its functions do nothing.
    ///
    /// # Panics
    /// If it does something else.
    pub async fn conforms(&self) {
        it_is_not_started_by_hand(self).await;
        for tls in [true, false] {
            let plugin = self.clone().tls(tls).start().await;
            it_describes_itself_as_before(&plugin).await;
            it_refuses_what_it_does_not_have(&plugin).await;
            it_refuses_what_is_no_json(&plugin).await;
            it_refuses_what_is_too_large(&plugin).await;
            it_answers_batches(&plugin).await;
            it_decides_again_as_before(&plugin).await;
            it_takes_a_call_that_is_given_up(&plugin).await;
            it_is_well(&plugin).await;
            plugin.stop().await;
        }
    }
}

/// People are told what it is, and nothing is on standard output, which is a host's.
async fn it_is_not_started_by_hand(kit: &Kit) {
    let mut command = Command::new(&kit.file);
    command.env_remove(Cookie::flexcore().key).stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(PATIENCE, command.output()).await;
    let ended = ended.expect("a plugin that no host has started ends at once");
    let ended = ended.unwrap_or_else(|error| panic!("{}: {error}", kit.file.display()));
    assert_eq!(ended.status.code(), Some(1), "without a host its exit status is 1");
    assert!(ended.stdout.is_empty(), "without a host it prints nothing to standard output");
    assert!(!ended.stderr.is_empty(), "without a host it says so on standard error");
}

async fn it_describes_itself_as_before(plugin: &Running) {
    for _ in 0..2 {
        let described = plugin.client().describe().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(&described, plugin.description(), "it describes itself the same each time");
    }
}

async fn it_refuses_what_it_does_not_have(plugin: &Running) {
    let none = "f".repeat(40);
    refused("a function that it does not have", call(plugin, &none, "null".into()).await);
}

async fn it_refuses_what_is_no_json(plugin: &Running) {
    for function in names(plugin) {
        for input in ["{", "", "\u{0}"] {
            let answer = call(plugin, &function, input.into()).await;
            refused(&format!("{input:?} as an input of {function:?}"), answer);
        }
    }
}

async fn it_refuses_what_is_too_large(plugin: &Running) {
    for function in names(plugin) {
        let large = "[".repeat(INPUT_BYTES_MAX + 1);
        let answer = call(plugin, &function, large).await;
        refused(&format!("an input of {function:?} over the limit"), answer);
    }
}

/// The client holds the numbers of batches and results to those that were asked.
async fn it_answers_batches(plugin: &Running) {
    for function in names(plugin) {
        let stream = plugin.client().stream(plugin.context(), &function, PATIENCE);
        for number in 1..=2 {
            let batch = stream.send(vec!["{".into(); 3]).await;
            let batch = batch.unwrap_or_else(|error| panic!("batch {number}: {error}"));
            for outcome in batch.results().await.unwrap_or_else(|error| panic!("{error}")) {
                refused(&format!("what is no JSON in a batch of {function:?}"), Ok(outcome));
            }
        }
        stream.finish().await.unwrap_or_else(|error| panic!("the end of a stream: {error}"));
    }
}

/// A command that it does not know: whatever it says to that.
async fn it_decides_again_as_before(plugin: &Running) {
    if plugin.description().decides {
        let _ = plugin.decide("no_such_command", &Value::Null, &Value::Null).await;
    }
}

async fn it_takes_a_call_that_is_given_up(plugin: &Running) {
    for function in names(plugin) {
        let large = "[".repeat(INPUT_BYTES_MAX);
        // It is given up, or refused by then.
        let _ = timeout(SOON, call(plugin, &function, large)).await;
    }
    it_describes_itself_as_before(plugin).await;
}

async fn it_is_well(plugin: &Running) {
    plugin.plugin().check().await.unwrap_or_else(|error| panic!("its health: {error}"));
}

fn names(plugin: &Running) -> Vec<String> {
    plugin.description().functions.iter().map(|function| function.name.clone()).collect()
}

async fn call(plugin: &Running, function: &str, input: String) -> Result<CallOutcome, Error> {
    let (context, function) = (Some(plugin.context()), function.to_owned());
    let request = CallRequest { context, function, input: input.into() };
    plugin.client().call_unchecked(request, PATIENCE).await
}

/// A refusal is a failure for good, or a status that says that nothing was done. Libraries have
/// codes of their own for messages that are too large for them.
fn refused(what: &str, answer: Result<CallOutcome, Error>) {
    let codes = [Code::InvalidArgument, Code::NotFound, Code::ResourceExhausted, Code::OutOfRange];
    match answer {
        Ok(Ok(output)) => panic!("{what} is answered with {output:?}"),
        Ok(Err(failure)) => assert!(!failure.temporary, "{what} is refused for now: {failure}"),
        Err(Error::Status { status, .. }) if codes.contains(&status.code()) => {}
        Err(error) => panic!("{what}: {error}"),
    }
}
