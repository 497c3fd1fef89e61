//! `flexcore plugin try`: a plugin that is not installed runs on the real host, and is asked by lines of JSON. Test
//! kits of other languages stand on it.

use std::{
    io::{self, BufRead as _, Read as _, Write},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use flexcore_plugin::{
    contract::{
        CallOutcome, CallRequest, Client, Context, DecisionResult, Description, Failure, Question,
    },
    limits::{BATCH_ITEMS_MAX, JSON_BYTES_MAX},
};
use flexcore_sdk::testing::Schemas;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json, value::RawValue};
use tokio::sync::mpsc;

use crate::{
    json_text, out,
    plugin_check::UnderTest,
    program::{Running, shown, told, with_plugin},
};

/// Start a plugin that is not installed, and ask it by lines of JSON: for tests
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  echo '{\"do\": \"call\", \"function\": \"greet\", \"input\": {\"name\": \"Ann\"}}' | flexcore plugin try greeter

Each line of standard input is a question, and is answered by one line:
  {\"do\": \"describe\"}                                      {\"description\": …}
  {\"do\": \"call\", \"function\": …, \"input\": …}               {\"output\": …}, {\"failure\": …}
  {\"do\": \"stream\", \"function\": …, \"inputs\": […]}          {\"results\": [{\"output\": …}, …]}
  {\"do\": \"configure\", \"configuration\": …}                 {\"configured\": true}, {\"failure\": …}
  {\"do\": \"decide\", \"command\": …, \"state\": …, \"payload\": …}
                                                          {\"events\": […]}, {\"rejected\": …}, {\"failure\": …}
or by {\"error\": …} where the host would refuse it, or the plugin breaks the contract. Further keys, where they
have a meaning: tenant, actor, key, timeout_ms, aggregate, id, version, now_ms. What the plugin logs goes to
standard error. At the end of the input it is ended. Exit code 0: it has ended as it has to.")]
pub(crate) struct Try {
    #[command(flatten)]
    under_test: UnderTest,
}

/// Of questions that do not say another one. As for an application's author, nothing is real here.
const TEST: &str = "test";

/// Longest wait for an answer, unless the question says otherwise, in milliseconds.
const TIMEOUT_MS: u64 = 20_000;

/// A line of standard input.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Asked {
    Describe {},
    Call {
        function: String,
        #[serde(default)]
        input: Value,
        tenant: Option<String>,
        actor: Option<String>,
        key: Option<String>,
        timeout_ms: Option<u64>,
    },
    Stream {
        function: String,
        inputs: Vec<Value>,
        tenant: Option<String>,
        actor: Option<String>,
        key: Option<String>,
        timeout_ms: Option<u64>,
    },
    Configure {
        configuration: Value,
        tenant: Option<String>,
    },
    Decide {
        command: String,
        #[serde(default)]
        state: Value,
        #[serde(default)]
        payload: Value,
        aggregate: Option<String>,
        id: Option<String>,
        version: Option<u64>,
        now_ms: Option<i64>,
        tenant: Option<String>,
        actor: Option<String>,
        timeout_ms: Option<u64>,
    },
}

/// The JSON in a line of standard input, as it stands there: what is read loses numbers and keys.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    configuration: Option<&'a RawValue>,
    #[serde(borrow)]
    state: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// A line of standard output.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum TriedAnswer {
    Description(Value),
    Output(Box<RawValue>),
    Results(Vec<TriedAnswer>),
    Configured(bool),
    Events(Vec<Event>),
    Rejected(Value),
    Failure(Value),
    Error(String),
}

/// An event of a decision.
#[derive(Serialize)]
struct Event {
    event: String,
    data: Box<RawValue>,
}

pub(crate) async fn run(args: &Try, out: &mut dyn Write) -> anyhow::Result<bool> {
    let program = args.under_test.program().await?;
    with_plugin(&program, async move |running: &Running| talk(running, out).await).await
}

async fn talk(running: &Running, out: &mut dyn Write) -> anyhow::Result<bool> {
    let client = Client::new(running.plugin.connection());
    let description = client.describe().await.map_err(told)?;
    let schemas = Schemas::of(&description).map_err(|why| anyhow!("{}", shown(&why)))?;
    let mut tried = Tried { client, description, schemas, asked: 0 };
    let mut lines = lines();
    while let Some(read) = lines.recv().await {
        let line = read.context("reading standard input")?;
        let answer = match question(&line) {
            Ok(asked) => tried.answer(asked).await,
            Err(why) => Err(why),
        };
        out::json(out, &answer.unwrap_or_else(TriedAnswer::Error))?;
        out.flush()?;
    }
    let ended = running.plugin.stop().await;
    let is_well = ended.status.is_some_and(|status| status.success());
    ensure!(is_well, "the plugin's end: {ended}");
    Ok(true)
}

/// Reads a line. Fails where it is no question, and where the host would refuse the JSON in it: a number that
/// was read and is written again may be another one.
fn question(line: &[u8]) -> Result<Asked, String> {
    let wrong = |error: serde_json::Error| format!("the question: {error}");
    let asked = serde_json::from_slice(line).map_err(wrong)?;
    let Written { input, inputs, configuration, state, payload } =
        serde_json::from_slice(line).map_err(wrong)?;
    let one = [input, configuration, state, payload].into_iter().flatten();
    for json in one.chain(inputs.into_iter().flatten()) {
        let checked = json_text::checked(json.get().as_bytes());
        checked.map_err(|why| format!("the host would refuse this JSON: {why}"))?;
    }
    Ok(asked)
}

/// The lines of standard input, by a thread that nobody waits for: it may be reading for ever.
fn lines() -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (to, lines) = mpsc::channel(1);
    thread::spawn(move || {
        let mut input = io::stdin().lock();
        while let Some(read) = line(&mut input).transpose() {
            let is_last = read.is_err();
            if to.blocking_send(read).is_err() || is_last {
                return;
            }
        }
    });
    lines
}

/// The next line; `None` at the end.
fn line(input: &mut impl io::BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    input.take(JSON_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
    if line.len() > JSON_BYTES_MAX {
        return Err(io::Error::other(format!("a line has more than {JSON_BYTES_MAX} bytes")));
    }
    Ok((!line.is_empty()).then_some(line))
}

/// A plugin that is asked.
struct Tried {
    client: Client,
    description: Description,
    schemas: Schemas,
    asked: u64,
}

/// What is printed, or why there is no answer.
type Told = Result<TriedAnswer, String>;

impl Tried {
    async fn answer(&mut self, asked: Asked) -> Told {
        self.asked += 1;
        match asked {
            Asked::Describe {} => Ok(described(&self.description)),
            Asked::Call { function, input, tenant, actor, key, timeout_ms } => {
                let context = self.context(tenant, actor, key);
                self.call(context, function, &input, within(timeout_ms)).await
            }
            Asked::Stream { function, inputs, tenant, actor, key, timeout_ms } => {
                let context = self.context(tenant, actor, key);
                self.stream(context, &function, &inputs, within(timeout_ms)).await
            }
            Asked::Configure { configuration, tenant } => {
                self.configure(&tenant.unwrap_or_else(test), &configuration).await
            }
            Asked::Decide {
                command,
                state,
                payload,
                aggregate,
                id,
                version,
                now_ms,
                tenant,
                actor,
                timeout_ms,
            } => {
                let question = Question {
                    context: Some(self.context(tenant, actor, None)),
                    aggregate: aggregate.unwrap_or_else(test),
                    id: id.unwrap_or_else(test),
                    version: version.unwrap_or_default(),
                    command,
                    command_id: format!("{TEST}-{}", self.asked),
                    now_ms: now_ms.unwrap_or_default(),
                    state: state.to_string().into(),
                    payload: payload.to_string().into(),
                };
                self.decide(question, within(timeout_ms)).await
            }
        }
    }

    fn context(
        &self,
        tenant: Option<String>,
        actor: Option<String>,
        key: Option<String>,
    ) -> Context {
        Context {
            tenant: tenant.unwrap_or_else(test),
            actor: actor.unwrap_or_else(test),
            idempotency_key: key.unwrap_or_else(|| format!("{TEST}-{}", self.asked)),
            ..Context::default()
        }
    }

    async fn call(
        &self,
        context: Context,
        function: String,
        input: &Value,
        within: Duration,
    ) -> Told {
        self.input_fits(&function, input)?;
        let input = input.to_string().into();
        let name = function.clone();
        let request = CallRequest { context: Some(context), function, input };
        let outcome = self.client.call(request, within).await;
        self.outcome(&name, outcome.map_err(|error| shown(&error.to_string()))?)
    }

    async fn stream(
        &self,
        context: Context,
        function: &str,
        inputs: &[Value],
        within: Duration,
    ) -> Told {
        inputs.iter().try_for_each(|input| self.input_fits(function, input))?;
        let said = |error: flexcore_plugin::Error| shown(&error.to_string());
        let stream = self.client.stream(context, function, within);
        let mut results = Vec::new();
        for inputs in inputs.chunks(BATCH_ITEMS_MAX) {
            let inputs = inputs.iter().map(|input| input.to_string().into()).collect();
            let batch = stream.send(inputs).await.map_err(said)?;
            for outcome in batch.results().await.map_err(said)? {
                results.push(self.outcome(function, outcome)?);
            }
        }
        stream.finish().await.map_err(said)?;
        Ok(TriedAnswer::Results(results))
    }

    async fn configure(&self, tenant: &str, configuration: &Value) -> Told {
        if !configuration.is_null() {
            let fits = self.schemas.configuration(configuration);
            fits.map_err(|why| format!("the host would refuse this configuration: {why}"))?;
        }
        let (json, within) = (configuration.to_string().into(), within(None));
        let configured = self.client.configure(tenant, json, within).await;
        match configured.map_err(|error| shown(&error.to_string()))? {
            Ok(()) => Ok(TriedAnswer::Configured(true)),
            Err(failure) => Ok(TriedAnswer::Failure(failed(&failure))),
        }
    }

    /// Asks twice: the same question has to have the same answer.
    async fn decide(&self, question: Question, within: Duration) -> Told {
        let decider = self.client.decider();
        let said = |error: flexcore_plugin::Error| shown(&error.to_string());
        let decided = decider.ask(question.clone(), within).await.map_err(said)?;
        let again = decider.ask(question, within).await.map_err(said)?;
        if decided != again {
            return Err("the same question has two answers".to_owned());
        }
        match decided {
            DecisionResult::Rejected(why) => Ok(TriedAnswer::Rejected(failed(&why))),
            DecisionResult::Failure(why) => Ok(TriedAnswer::Failure(failed(&why))),
            DecisionResult::Events(events) => {
                let mut all = Vec::new();
                for event in events.events {
                    all.push(Event { event: event.event, data: as_it_came(&event.data)? });
                }
                Ok(TriedAnswer::Events(all))
            }
        }
    }

    fn input_fits(&self, function: &str, input: &Value) -> Result<(), String> {
        let fits = self.schemas.input(function, input);
        fits.map_err(|why| format!("the host would refuse this input of {function:?}: {why}"))
    }

    fn outcome(&self, function: &str, outcome: CallOutcome) -> Told {
        let output = match outcome {
            Ok(output) => output,
            Err(failure) => return Ok(TriedAnswer::Failure(failed(&failure))),
        };
        let fits = self.schemas.output(function, &read(&output)?);
        fits.map_err(|why| format!("{function:?} breaks its own schema: {why}"))?;
        Ok(TriedAnswer::Output(as_it_came(&output)?))
    }
}

fn test() -> String {
    TEST.to_owned()
}

fn within(timeout_ms: Option<u64>) -> Duration {
    Duration::from_millis(timeout_ms.unwrap_or(TIMEOUT_MS))
}

fn read(data: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(data).map_err(|error| format!("the plugin's JSON: {error}"))
}

/// The plugin's JSON, on one line.
fn as_it_came(data: &[u8]) -> Result<Box<RawValue>, String> {
    let wrong = |error: serde_json::Error| format!("the plugin's JSON: {error}");
    let json: &RawValue = serde_json::from_slice(data).map_err(wrong)?;
    RawValue::from_string(json_text::line(json)).map_err(wrong)
}

fn failed(failure: &Failure) -> Value {
    let mut told = Map::new();
    told.insert("code".to_owned(), failure.code.clone().into());
    told.insert("message".to_owned(), failure.message.clone().into());
    told.insert("temporary".to_owned(), failure.temporary.into());
    if failure.retry_after_ms > 0 {
        told.insert("retry_after_ms".to_owned(), failure.retry_after_ms.into());
    }
    // It has been checked to be JSON where there is any.
    if let Ok(details) = read(&failure.details) {
        told.insert("details".to_owned(), details);
    }
    told.into()
}

fn described(description: &Description) -> TriedAnswer {
    let schema = |text: &str| read(text.as_bytes()).unwrap_or_default();
    let functions: Vec<Value> = description
        .functions
        .iter()
        .map(|function| {
            json!({
                "name": function.name,
                "summary": function.summary,
                "input_schema": schema(&function.input_schema),
                "output_schema": schema(&function.output_schema),
                "idempotent": function.idempotent,
            })
        })
        .collect();
    TriedAnswer::Description(json!({
        "name": description.name,
        "version": description.version,
        "summary": description.summary,
        "functions": functions,
        "configuration_schema": schema(&description.configuration_schema),
        "decides": description.decides,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Result<Asked, String> {
        question(text.as_bytes())
    }

    #[test]
    fn a_question_has_no_keys_that_mean_nothing() {
        let call = asked(r#"{"do": "call", "function": "f", "key": "k"}"#).unwrap();
        let Asked::Call { function, input, key, tenant, .. } = call else { panic!("no call") };
        assert_eq!((&*function, input, key.as_deref()), ("f", Value::Null, Some("k")));
        assert_eq!(tenant, None);
        for wrong in [
            r#"{"do": "call", "function": "f", "imput": 1}"#,
            r#"{"do": "call"}"#,
            r#"{"do": "undo"}"#,
            r#"{"function": "f"}"#,
            "{",
        ] {
            asked(wrong).unwrap_err();
        }
    }

    /// An input was read and written again, and an output, too: both were other numbers then.
    #[test]
    fn json_goes_in_as_the_host_takes_it_and_comes_out_as_it_came() {
        for wrong in [
            r#"{"do": "call", "function": "f", "input": 123456789012345678901234567890}"#,
            r#"{"do": "call", "function": "f", "input": {"a": 1, "a": 2}}"#,
            r#"{"do": "stream", "function": "f", "inputs": [1, 9007199254740993]}"#,
            r#"{"do": "configure", "configuration": {"a": 1, "a": 2}}"#,
            r#"{"do": "decide", "command": "c", "payload": 9007199254740993}"#,
        ] {
            let why = asked(wrong).unwrap_err();
            assert!(why.starts_with("the host would refuse this JSON: "), "{wrong}: {why}");
        }
        let output = as_it_came(b"{\n \"a\": 1208925819614629174706176 }").unwrap();
        let answer =
            TriedAnswer::Results(vec![TriedAnswer::Output(output), TriedAnswer::Configured(true)]);
        let told = serde_json::to_string(&answer).unwrap();
        let expected =
            r#"{"results":[{"output":{"a":1208925819614629174706176}},{"configured":true}]}"#;
        assert_eq!(told, expected);
    }

    #[test]
    fn lines_have_an_end_and_a_limit() {
        let mut input = &b"one\ntwo"[..];
        assert_eq!(line(&mut input).unwrap().unwrap(), b"one\n");
        assert_eq!(line(&mut input).unwrap().unwrap(), b"two");
        assert_eq!(line(&mut input).unwrap(), None);
        let large = vec![b'x'; JSON_BYTES_MAX + 1];
        line(&mut &*large).unwrap_err();
        assert_eq!(line(&mut &large[1..]).unwrap().unwrap().len(), JSON_BYTES_MAX);
    }

    #[test]
    fn a_failure_is_told_whole() {
        let failure = Failure::passing("busy", "full")
            .retry_after(Duration::from_millis(5))
            .details(&json!({ "queue": 3 }));
        let expected = json!({
            "code": "busy", "message": "full", "temporary": true, "retry_after_ms": 5,
            "details": { "queue": 3 },
        });
        assert_eq!(failed(&failure), expected);
        assert_eq!(failed(&Failure::new("gone", "it is gone")).get("details"), None);
    }
}
