//! The plugin of the benches: this executable, written with our SDK.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context;
use flexcore_plugin::{
    Checked, Cookie, Plugin, Start, contract,
    guard::{Bounds, Sandbox},
    limits::{ANSWER_BYTES_MAX, START_WAIT},
};
use flexcore_sdk::{Call, Event, Failure, Function, Question, Refused};
use flexcore_workers::plugin::GUARD;
use serde::{Deserialize, Serialize};

/// The only argument of a process that is the plugin.
const ARGUMENT: &str = "bench-plugin";

/// Its function.
pub(crate) const UPPER: &str = "upper";

/// If this process was started as the plugin of the benches, is that, until its host ends it: for the
/// beginning of `main`. Returns the exit status then.
#[must_use]
pub fn entered() -> Option<ExitCode> {
    let is_it = std::env::args_os().nth(1).is_some_and(|first| first == ARGUMENT);
    is_it.then(|| flexcore_sdk::run(plugin()))
}

/// The executable and its arguments, by which it is this plugin.
pub(crate) fn program() -> anyhow::Result<(PathBuf, &'static str)> {
    let file = std::env::current_exe().context("which executable runs is not known")?;
    Ok((file, ARGUMENT))
}

/// Starts it with TLS, as a worker starts plugins.
pub(crate) async fn start() -> anyhow::Result<Plugin> {
    let (file, argument) = program()?;
    let file = Checked::open(&file, None)?;
    let started = Plugin::start(Start {
        arguments: vec![OsString::from(argument)],
        cookie: Cookie::flexcore(),
        versions: vec![contract::VERSION],
        ..base(file, true)
    });
    Ok(started.await?)
}

/// A start without arguments and cookie, with no bounds, as workers start what their manifests say
/// nothing of.
pub(crate) fn base(file: Checked, tls: bool) -> Start {
    Start {
        file,
        guard: GUARD.into(),
        arguments: Vec::new(),
        environment: Vec::new(),
        cookie: Cookie { key: String::new(), value: String::new() },
        versions: Vec::new(),
        tls,
        multiplex: false,
        start_wait: START_WAIT,
        answer_bytes_max: ANSWER_BYTES_MAX,
        bounds: Bounds::default(),
        sandbox: Sandbox::default(),
        output: Arc::new(|_| {}),
    }
}

fn plugin() -> flexcore_sdk::Plugin {
    let upper = Function::new(UPPER, upper).summary("The text in upper case.").idempotent();
    flexcore_sdk::Plugin::new("bench", env!("CARGO_PKG_VERSION"))
        .summary("For benches.")
        .function(upper)
        .decider(decide)
}

async fn upper(call: Call<String>) -> Result<String, Failure> {
    Ok(call.input.to_ascii_uppercase())
}

/// The part of the counter's state that its rules look at.
#[derive(Deserialize)]
struct CounterState {
    closed: bool,
}

/// The command's payload, and the event's data.
#[derive(Deserialize, Serialize)]
struct Added {
    by: u64,
    at: String,
    open: bool,
    note: String,
}

/// The rules of the benches' application, which has them in JavaScript.
fn decide(question: &Question) -> Result<Vec<Event>, Refused> {
    let state: Option<CounterState> = question.state()?;
    if state.is_some_and(|state| state.closed) {
        return Err(Refused::rejected("closed", "nothing can be added any more"));
    }
    let added: Added = question.payload()?;
    Ok(vec![Event::new("added", &added)?])
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::Event as Recorded;

    use super::*;
    use crate::counter::payload;

    #[test]
    fn what_is_added_is_what_the_command_says() {
        let payload = payload(7);
        let added: Added = serde_json::from_str(&payload).unwrap();
        assert_eq!(serde_json::to_string(&added).unwrap(), payload);
        let recorded = Recorded { event: "added".to_owned(), data: payload.into_bytes().into() };
        let event = Event::new("added", &added).unwrap();
        assert_eq!(format!("{event:?}"), format!("Event({recorded:?})"));
    }

    #[test]
    fn nobody_else_is_the_plugin() {
        assert!(entered().is_none());
    }
}
