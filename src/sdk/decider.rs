//! Deciding on commands of aggregates.

use std::sync::Arc;

use bytes::Bytes;
use flexcore_plugin::contract::{self, Decision, DecisionResult, Events};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Failure, panics::caught_now};

/// Decides on one command. No clock, no chance, no effect: the same question has the same answer.
pub(crate) type Decide = Arc<dyn Fn(&Question) -> Result<Vec<Event>, Refused> + Send + Sync>;

/// A command that waits for its decision, and the aggregate before it.
#[derive(Clone, Debug)]
pub struct Question(contract::Question);

impl Question {
    /// The aggregate's name.
    #[must_use]
    pub fn aggregate(&self) -> &str {
        &self.0.aggregate
    }

    /// The aggregate's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The aggregate's version before the command; 0 before its first event.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// The command's name.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.0.command
    }

    /// The command's id.
    #[must_use]
    pub fn command_id(&self) -> &str {
        &self.0.command_id
    }

    /// When the command was taken up, in milliseconds since 1970-01-01 UTC: the only clock of a
    /// decision.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.0.now_ms
    }

    /// Whose aggregate it is.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.0.context.as_ref().map_or("", |context| &context.tenant)
    }

    /// Who sent the command, as recorded.
    #[must_use]
    pub fn actor(&self) -> &str {
        self.0.context.as_ref().map_or("", |context| &context.actor)
    }

    /// The aggregate's state; none before its first event.
    pub fn state<S: DeserializeOwned>(&self) -> Result<Option<S>, Failure> {
        read("state", &self.0.state)
    }

    /// What the command says.
    pub fn payload<P: DeserializeOwned>(&self) -> Result<P, Failure> {
        read("payload", &self.0.payload)
    }
}

fn read<T: DeserializeOwned>(what: &str, json: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let what = format!("the {what} does not fit at line {line}, column {column}");
        Failure::new("invalid_question", what)
    })
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event(contract::Event);

impl Event {
    /// An event of this name, as the aggregate declares it. Fails where the data is no JSON.
    pub fn new(event: &str, data: &impl Serialize) -> Result<Self, Failure> {
        let data = serde_json::to_vec(data).map_err(|error| {
            Failure::new("invalid_event", format_args!("{event} is no JSON: {error}"))
        })?;
        Ok(Self(contract::Event { event: event.to_owned(), data: Bytes::from(data) }))
    }
}

/// Why there are no events.
#[derive(Clone, Debug, PartialEq)]
pub enum Refused {
    /// The rules say no.
    Rejected(Failure),
    /// The plugin cannot decide.
    Failed(Failure),
}

impl Refused {
    /// The rules say no: a stable word for programs (`[a-z][a-z0-9_]{0,39}`), and a sentence.
    pub fn rejected(code: &str, message: impl std::fmt::Display) -> Self {
        Self::Rejected(Failure::new(code, message))
    }
}

/// So that `?` works on what reads a question.
impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Decides on each question. A panic is the failure of one.
pub(crate) fn decide(decide: &Decide, questions: Vec<contract::Question>) -> Vec<Decision> {
    let one = |question| {
        let question = Question(question);
        let decided = caught_now(|| decide(&question)).map_err(Refused::Failed).flatten();
        let result = match decided {
            Ok(events) => {
                let events = events.into_iter().map(|event| event.0).collect();
                DecisionResult::Events(Events { events })
            }
            Err(Refused::Rejected(failure)) => DecisionResult::Rejected(failure),
            Err(Refused::Failed(failure)) => DecisionResult::Failure(failure),
        };
        Decision { result: Some(result) }
    };
    questions.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn counter(question: &Question) -> Result<Vec<Event>, Refused> {
        let count = question.state::<u32>()?.unwrap_or_default();
        let by = question.payload::<u32>()?;
        match question.command() {
            "add" if count + by > 10 => Err(Refused::rejected("too_many", "ten at most")),
            "add" => Ok(vec![Event::new("added", &json!({ "by": by }))?]),
            _ => panic!("there is no such command"),
        }
    }

    fn ask(command: &str, state: &'static str, payload: &'static str) -> contract::Question {
        contract::Question {
            command: command.to_owned(),
            state: state.into(),
            payload: payload.into(),
            ..Default::default()
        }
    }

    #[test]
    fn each_question_has_its_own_answer() {
        let questions = vec![
            ask("add", "null", "3"),
            ask("add", "8", "3"),
            ask("remove", "8", "3"),
            ask("add", "\"x\"", "3"),
            ask("add", "7", "3"),
        ];
        let decisions = decide(&(Arc::new(counter) as Decide), questions);
        let codes: Vec<_> = decisions
            .into_iter()
            .map(|decision| match decision.result.unwrap() {
                DecisionResult::Events(events) => events.events[0].event.clone(),
                DecisionResult::Rejected(failure) => format!("no: {}", failure.code),
                DecisionResult::Failure(failure) => failure.code,
            })
            .collect();
        assert_eq!(codes, ["added", "no: too_many", "panicked", "invalid_question", "added"]);
    }
}
