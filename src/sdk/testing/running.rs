//! A plugin that runs, in a test.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use flexcore_plugin::{
    Error, Line, Plugin,
    contract::{CallOutcome, CallRequest, Client, Context, DecisionResult, Description, Question},
    limits::BATCH_ITEMS_MAX,
};
use serde_json::Value;

use super::schemas::Schemas;
use crate::{Failure, Refused};

/// Longest wait for an answer in a test, unless the test says otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The tenant, and the actor, of calls in tests.
pub(super) const TEST: &str = "test";

/// What a plugin has logged so far.
pub(super) type Lines = Arc<Mutex<Vec<Line>>>;

/// A plugin that runs. When it is dropped, its process is killed.
pub struct Running {
    plugin: Plugin,
    client: Client,
    description: Description,
    schemas: Schemas,
    lines: Lines,
    calls: AtomicU64,
}

impl Running {
    pub(super) async fn new(plugin: Plugin, lines: Lines) -> Self {
        let client = Client::new(plugin.connection());
        let described = client.describe().await;
        let description = described.unwrap_or_else(|error| panic!("{error}"));
        let schemas = Schemas::of(&description).unwrap_or_else(|why| panic!("{why}"));
        Self { plugin, client, description, schemas, lines, calls: AtomicU64::new(0) }
    }

    /// What the plugin says that it can do.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The plugin's client, for what this kit has no words for.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The plugin's process.
    #[must_use]
    pub fn plugin(&self) -> &Plugin {
        &self.plugin
    }

    /// Configures the tenant of the calls that follow.
    ///
    /// # Panics
    /// If the configuration does not fit the plugin's schema: the host would refuse it.
    pub async fn configure(&self, configuration: &Value) -> Result<(), Failure> {
        let fits = self.schemas.configuration(configuration);
        fits.unwrap_or_else(|why| panic!("the host would refuse this configuration: {why}"));
        let json = configuration.to_string().into();
        let configured = self.client.configure(TEST, json, PATIENCE).await;
        configured.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Calls a function.
    ///
    /// # Panics
    /// If the input does not fit the function's schema: the host would refuse it. If the output
    /// does not, or the plugin breaks the contract otherwise.
    pub async fn call(&self, function: &str, input: Value) -> Result<Value, Failure> {
        self.input_fits(function, &input);
        let outcome = self.call_as(self.context(), function, &input, PATIENCE).await;
        self.output(function, outcome.unwrap_or_else(|error| panic!("{function}: {error}")))
    }

    /// Calls a function on somebody's behalf, within a time; nothing is held to a schema. The outer
    /// error is that of a call without an answer, such as one that was late.
    pub async fn call_as(
        &self,
        context: Context,
        function: &str,
        input: &Value,
        within: Duration,
    ) -> Result<CallOutcome, Error> {
        let input = input.to_string().into();
        let function = function.to_owned();
        self.client.call(CallRequest { context: Some(context), function, input }, within).await
    }

    /// Calls a function for each input, on one stream. The results are in the order of the inputs.
    ///
    /// # Panics
    /// As [`Running::call`].
    pub async fn stream(&self, function: &str, inputs: &[Value]) -> Vec<Result<Value, Failure>> {
        let stream = self.client.stream(self.context(), function, PATIENCE);
        let mut results = Vec::new();
        for inputs in inputs.chunks(BATCH_ITEMS_MAX) {
            let each = inputs.iter().inspect(|input| self.input_fits(function, input));
            let batch = stream.send(each.map(|input| input.to_string().into()).collect()).await;
            let batch = batch.unwrap_or_else(|error| panic!("{function}: {error}"));
            let batch = batch.results().await.unwrap_or_else(|error| panic!("{function}: {error}"));
            results.extend(batch.into_iter().map(|outcome| self.output(function, outcome)));
        }
        stream.finish().await.unwrap_or_else(|error| panic!("{function}: {error}"));
        results
    }

    /// Asks for a decision on a command of an aggregate with this state; `null` is none. Returns
    /// names and data of the events.
    ///
    /// # Panics
    /// If the plugin breaks the contract, or answers otherwise when it is asked again.
    pub async fn decide(
        &self,
        command: &str,
        state: &Value,
        payload: &Value,
    ) -> Result<Vec<(String, Value)>, Refused> {
        let question = Question {
            context: Some(self.context()),
            aggregate: TEST.to_owned(),
            id: TEST.to_owned(),
            command: command.to_owned(),
            command_id: TEST.to_owned(),
            state: state.to_string().into(),
            payload: payload.to_string().into(),
            ..Question::default()
        };
        let decider = self.client.decider();
        let decided = decider.ask(question.clone(), PATIENCE).await;
        let decided = decided.unwrap_or_else(|error| panic!("{command}: {error}"));
        let again = decider.ask(question, PATIENCE).await;
        let again = again.unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(decided, again, "{command}: the same question has the same answer");
        match decided {
            DecisionResult::Rejected(failure) => Err(Refused::Rejected(failure)),
            DecisionResult::Failure(failure) => Err(Refused::Failed(failure)),
            DecisionResult::Events(events) => {
                let event = |event: flexcore_plugin::contract::Event| {
                    (event.event, json(command, &event.data))
                };
                Ok(events.events.into_iter().map(event).collect())
            }
        }
    }

    /// What the plugin has logged so far.
    #[must_use]
    pub fn logged(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a line of the log with this text.
    ///
    /// # Panics
    /// If it does not come in time.
    pub async fn until_logged(&self, text: &str) -> Line {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let found = self.logged().into_iter().find(|line| line.message.contains(text));
            if let Some(line) = found {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the plugin does not log {text:?}, but {:?}", self.logged());
    }

    /// Ends the plugin as the host does.
    ///
    /// # Panics
    /// If it has to be killed, or its exit status is not 0.
    pub async fn stop(self) {
        ends(&self.plugin).await;
    }

    /// On behalf of a tenant of tests, under a key of its own.
    pub fn context(&self) -> Context {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        Context {
            tenant: TEST.to_owned(),
            actor: TEST.to_owned(),
            idempotency_key: format!("{TEST}-{number}"),
            ..Context::default()
        }
    }

    fn input_fits(&self, function: &str, input: &Value) {
        let fits = self.schemas.input(function, input);
        fits.unwrap_or_else(|why| {
            panic!("the host would refuse this input of {function:?}: {why}")
        });
    }

    fn output(&self, function: &str, outcome: CallOutcome) -> Result<Value, Failure> {
        let output = json(function, &outcome?);
        let fits = self.schemas.output(function, &output);
        fits.unwrap_or_else(|why| panic!("{function:?} breaks its own schema: {why}: {output}"));
        Ok(output)
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("plugin", &self.plugin).finish_non_exhaustive()
    }
}

/// Ends a plugin, which has to end well.
pub(super) async fn ends(plugin: &Plugin) {
    let ended = plugin.stop().await;
    assert!(ended.status.is_some_and(|status| status.success()), "the plugin's end: {ended}");
}

fn json(what: &str, bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|error| panic!("{what}: {error}"))
}
