//! What a plugin can be called for.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use flexcore_plugin::contract::{self, CallResponse, CallResult};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tracing::Instrument as _;

use crate::{Call, Failure, call::About, panics::caught};

/// Calls of one stream that a function works on at once, unless it says another number. 16: they
/// wait for others most of the time.
const AT_ONCE: usize = 16;

type Running = Pin<Box<dyn Future<Output = Result<Bytes, Failure>> + Send>>;

/// JSON in, JSON out.
type Run = Arc<dyn Fn(Bytes, About) -> Running + Send + Sync>;

/// A function of a plugin.
#[derive(Clone)]
pub struct Function {
    pub(crate) described: contract::Function,
    pub(crate) at_once: usize,
    run: Run,
}

impl Function {
    /// A function that is called by this name (`[a-z][a-z0-9_]{0,39}`). Its input and its output
    /// are JSON as serde reads and writes them: a call whose input does not fit is answered with
    /// the failure `invalid_input`, and the function is not called.
    pub fn new<I, O, F, A>(name: &str, function: F) -> Self
    where
        I: DeserializeOwned + Send + 'static,
        O: Serialize + Send + 'static,
        F: Fn(Call<I>) -> A + Send + Sync + 'static,
        A: Future<Output = Result<O, Failure>> + Send + 'static,
    {
        let function = Arc::new(function);
        let run = move |input: Bytes, about: About| -> Running {
            let function = Arc::clone(&function);
            Box::pin(async move {
                let input = serde_json::from_slice(&input).map_err(|error| unfit(&error))?;
                let output = function(Call::new(input, about)).await?;
                let output = serde_json::to_vec(&output).map_err(|error| {
                    Failure::new("invalid_output", format_args!("the output is no JSON: {error}"))
                })?;
                Ok(Bytes::from(output))
            })
        };
        let described = contract::Function { name: name.to_owned(), ..Default::default() };
        Self { described, at_once: AT_ONCE, run: Arc::new(run) }
    }

    /// What it does, in one sentence.
    #[must_use]
    pub fn summary(mut self, summary: &str) -> Self {
        self.described.summary = summary.to_owned();
        self
    }

    /// A JSON Schema (2020-12) of its input, as JSON or as its text. The host checks inputs.
    #[must_use]
    pub fn input_schema(mut self, schema: impl Into<Value>) -> Self {
        self.described.input_schema = text(schema.into());
        self
    }

    /// A JSON Schema (2020-12) of its output, as JSON or as its text. The host shows it to callers,
    /// and does not check outputs; the kit for tests does.
    #[must_use]
    pub fn output_schema(mut self, schema: impl Into<Value>) -> Self {
        self.described.output_schema = text(schema.into());
        self
    }

    /// The same call again, under the same idempotency key, does nothing that the first did not
    /// do. Without this a call of unknown outcome is never repeated.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.described.idempotent = true;
        self
    }

    /// So many calls of one stream are worked on at once; 16 unless said otherwise.
    #[must_use]
    pub fn at_once(mut self, calls: usize) -> Self {
        self.at_once = calls.max(1);
        self
    }

    /// Calls it, in a span of its own: what it logs has the fields of the call. A panic is a
    /// failure.
    pub(crate) async fn answer(&self, input: Bytes, about: About) -> CallResponse {
        let context = Arc::clone(&about.context);
        let span = tracing::info_span!(
            "call",
            function = self.described.name,
            tenant = context.tenant,
            idempotency_key = said(&context.idempotency_key),
            traceparent = said(&context.traceparent),
        );
        response(caught((self.run)(input, about)).instrument(span).await)
    }
}

/// A field that is left out where there is nothing to say.
fn said(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

pub(crate) fn response(result: Result<Bytes, Failure>) -> CallResponse {
    let result = match result {
        Ok(output) => CallResult::Output(output),
        Err(failure) => CallResult::Failure(failure),
    };
    CallResponse { result: Some(result) }
}

/// serde's own words quote the input, which does not belong into a log.
fn unfit(error: &serde_json::Error) -> Failure {
    let what = if error.is_data() { "it does not fit" } else { "it is no JSON" };
    let (line, column) = (error.line(), error.column());
    let message = format!("the input at line {line}, column {column}: {what}");
    Failure::new("invalid_input", message)
}

/// A schema's text.
pub(crate) fn text(schema: Value) -> String {
    match schema {
        Value::String(text) => text,
        json => json.to_string(),
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("described", &self.described).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::Context;

    use super::*;
    use crate::configured::Configured;

    async fn called(function: &Function, input: &'static str) -> Result<Bytes, Failure> {
        let context =
            Context { tenant: "acme".to_owned(), timeout_ms: 1_000, ..Context::default() };
        let about = About::new(context, &Arc::<Configured>::default());
        match function.answer(input.into(), about).await.result.unwrap() {
            CallResult::Output(output) => Ok(output),
            CallResult::Failure(failure) => Err(failure),
        }
    }

    #[tokio::test]
    async fn json_goes_in_and_out() {
        let double = Function::new("double", |call: Call<u32>| async move {
            assert_eq!(call.tenant(), "acme");
            Ok::<_, Failure>(call.input * 2)
        });
        assert_eq!(called(&double, "21").await.unwrap(), "42");
        for input in ["-1", "\"x\"", "{", ""] {
            let failure = called(&double, input).await.unwrap_err();
            assert_eq!(failure.code, "invalid_input", "{input}");
        }
    }

    #[tokio::test]
    async fn a_panic_before_the_first_await_is_a_failure_too() {
        let panics = Function::new("panics", |call: Call<u32>| {
            assert!(call.input > 1, "too small");
            async { Ok::<u32, Failure>(1) }
        });
        assert_eq!(called(&panics, "1").await.unwrap_err().code, "panicked");
        assert_eq!(called(&panics, "2").await.unwrap(), "1");
    }

    #[test]
    fn schemas_are_json_or_its_text() {
        let function = Function::new("f", |_: Call<()>| async { Ok::<_, Failure>(()) })
            .input_schema(serde_json::json!({"type": "null"}))
            .output_schema("{}");
        assert_eq!(function.described.input_schema, r#"{"type":"null"}"#);
        assert_eq!(function.described.output_schema, "{}");
        assert!(!function.described.idempotent);
    }
}
