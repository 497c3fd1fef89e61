//! What the contract asks of a message beyond its fields. Both sides look: whoever sends, so as not
//! to be refused, and whoever receives, since the other side may be wrong.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message as _;
use serde::de::IgnoredAny;

use super::messages::{
    CallOutcome, CallRequest, CallResponse, CallResult, ConfigureRequest, Context, DecideRequest,
    Decision, DecisionResult, Description, Event, Failure, Function, StreamRequest,
};
use crate::{
    Error,
    limits::{
        BATCH_BYTES_MAX, BATCH_ITEMS_MAX, CONFIGURATION_BYTES_MAX, DESCRIPTION_BYTES_MAX,
        DETAILS_BYTES_MAX, EVENT_NAME_BYTES_MAX, EVENTS_MAX, FUNCTIONS_MAX, INPUT_BYTES_MAX,
        OUTPUT_BYTES_MAX, WORD_BYTES_MAX,
    },
};

/// What a plugin says, or what its code returned, does not fit: the reason, to stand behind "the
/// plugin's answer: ".
pub(super) type Fault = String;

/// True for `[a-z][a-z0-9_]{0,39}`: names of functions, and codes of failures.
#[must_use]
pub fn is_word(text: &str) -> bool {
    let is_inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    text.len() <= WORD_BYTES_MAX
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(is_inside)
}

impl Description {
    /// Fails where it is not what the contract asks for, and says what.
    pub fn check(&self) -> Result<(), Error> {
        self.fault().map_or(Ok(()), |fault| Err(Error::Contract(fault)))
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        if self.name.is_empty() {
            return Some("its description has no name".to_owned());
        }
        let many = more("a number of functions", self.functions.len(), FUNCTIONS_MAX);
        let large = more("a description, in bytes,", self.encoded_len(), DESCRIPTION_BYTES_MAX);
        if let Some(fault) = many.or(large) {
            return Some(fault);
        }
        let mut names = HashSet::new();
        for function in &self.functions {
            if let Some(fault) = function.fault() {
                return Some(fault);
            }
            if !names.insert(&function.name) {
                return Some(format!("it has two functions called {:?}", function.name));
            }
        }
        schema("of the configuration", &self.configuration_schema)
    }
}

impl Function {
    fn fault(&self) -> Option<Fault> {
        let name = &self.name;
        if !is_word(name) {
            return Some(format!("{name:?} is no name of a function ([a-z][a-z0-9_]{{0,39}})"));
        }
        let input = schema(&format!("of the input of {name:?}"), &self.input_schema);
        input.or_else(|| schema(&format!("of the output of {name:?}"), &self.output_schema))
    }
}

impl CallRequest {
    pub(super) fn check(&self) -> Result<(), Error> {
        has_context(self.context.as_ref())?;
        Error::at_most("an input, in bytes,", self.input.len(), INPUT_BYTES_MAX)
    }
}

impl ConfigureRequest {
    pub(super) fn check(&self) -> Result<(), Error> {
        Error::at_most(
            "a configuration, in bytes,",
            self.configuration.len(),
            CONFIGURATION_BYTES_MAX,
        )
    }
}

impl StreamRequest {
    pub(super) fn check(&self) -> Result<(), Error> {
        Error::at_most("a number of inputs", self.inputs.len(), BATCH_ITEMS_MAX)?;
        let bytes = self.inputs.iter().map(Bytes::len).sum();
        Error::at_most("a batch of inputs, in bytes,", bytes, BATCH_BYTES_MAX)?;
        if self.number == 1 { has_context(self.context.as_ref()) } else { Ok(()) }
    }
}

impl DecideRequest {
    pub(super) fn check(&self) -> Result<(), Error> {
        Error::at_most("a number of questions", self.questions.len(), BATCH_ITEMS_MAX)?;
        let bytes = self.questions.iter().map(prost::Message::encoded_len).sum();
        Error::at_most("a batch of questions, in bytes,", bytes, BATCH_BYTES_MAX)?;
        self.questions.iter().try_for_each(|question| has_context(question.context.as_ref()))
    }
}

impl CallResponse {
    /// The output or failure in it.
    pub(super) fn taken(self) -> Result<CallOutcome, Fault> {
        match self.result {
            None => Err("it has neither output nor failure".to_owned()),
            Some(CallResult::Failure(failure)) => Ok(Err(taken(failure)?)),
            Some(CallResult::Output(output)) => {
                match more("an output, in bytes,", output.len(), OUTPUT_BYTES_MAX) {
                    Some(fault) => Err(fault),
                    None => json("its output", &output).map(|()| Ok(output)),
                }
            }
        }
    }
}

impl Decision {
    /// The events, rejection or failure in it.
    pub(super) fn taken(self) -> Result<DecisionResult, Fault> {
        match self.result {
            None => Err("it has neither events nor a failure".to_owned()),
            Some(DecisionResult::Failure(failure)) => Ok(DecisionResult::Failure(taken(failure)?)),
            Some(DecisionResult::Rejected(failure)) if failure.temporary => {
                Err("it is a rejection that is temporary: what the rules refuse stays refused"
                    .into())
            }
            Some(DecisionResult::Rejected(why)) => Ok(DecisionResult::Rejected(taken(why)?)),
            Some(DecisionResult::Events(events)) => {
                if let Some(fault) = more("a number of events", events.events.len(), EVENTS_MAX) {
                    return Err(fault);
                }
                events.events.iter().try_for_each(event)?;
                Ok(DecisionResult::Events(events))
            }
        }
    }
}

fn event(event: &Event) -> Result<(), Fault> {
    let name = &event.event;
    if name.is_empty() || name.len() > EVENT_NAME_BYTES_MAX {
        return Err(format!("the name of an event has {} bytes", name.len()));
    }
    json(&format!("its event {name:?}"), &event.data)
}

/// A failure of the plugin, if it is one of the contract.
pub(super) fn taken(failure: Failure) -> Result<Failure, Fault> {
    if !is_word(&failure.code) {
        let code: String = failure.code.chars().take(WORD_BYTES_MAX).collect();
        return Err(format!("{code:?} is no code of a failure ([a-z][a-z0-9_]{{0,39}})"));
    }
    if let Some(fault) =
        more("a size of details, in bytes,", failure.details.len(), DETAILS_BYTES_MAX)
    {
        return Err(fault);
    }
    if !failure.details.is_empty() {
        json("its details", &failure.details)?;
    }
    Ok(failure.taken())
}

/// Looks at JSON without building anything. Depth costs nothing: what is passed over is not
/// recursed into.
pub(super) fn json(what: &str, bytes: &[u8]) -> Result<(), Fault> {
    let text = std::str::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))?;
    let read = serde_json::from_str::<IgnoredAny>(text);
    read.map(|_| ()).map_err(|error| format!("{what} is no JSON: {error}"))
}

fn schema(what: &str, text: &str) -> Option<Fault> {
    let is_schema = |text: &str| text.trim_start().starts_with(['{', 't', 'f']);
    if text.is_empty() {
        return None;
    }
    if !is_schema(text) {
        return Some(format!("the schema {what} is no JSON object"));
    }
    json(&format!("the schema {what}"), text.as_bytes()).err()
}

fn more(what: &str, size: usize, limit: usize) -> Option<Fault> {
    (size > limit).then(|| format!("{what} of {size} is over the limit of {limit}"))
}

fn has_context(context: Option<&Context>) -> Result<(), Error> {
    context.map(|_| ()).ok_or_else(|| Error::Contract("a request has no context".to_owned()))
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
