//! The decider: the rules of one kind of aggregate as two pure functions, `decide` and `evolve`.
//! Written in JavaScript (the `script` crate) or in Rust ([`Native`]).

use std::{marker::PhantomData, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    commit::Event,
    json::{Payload, Violation},
    limits::STATE_BYTES_MAX,
    names::{ActorName, AggregateId, CommandId, CommandName, EventName, Tenant},
};

/// An aggregate's state as JSON text: what its decider's `evolve` returned last. `null` before the
/// first event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State(Arc<str>);

impl State {
    /// The state of an aggregate without events.
    #[must_use]
    pub fn none() -> Self {
        Self("null".into())
    }

    /// A state that a decider produced, as JSON text.
    #[must_use]
    pub fn from_json(text: &str) -> Self {
        Self(text.into())
    }

    /// JSON text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a decider is told beside the state and the payload: its only source of time and identity.
#[derive(Clone, Debug)]
pub struct Context {
    /// Whose aggregate it is.
    pub tenant: Tenant,
    /// The aggregate's id.
    pub id: AggregateId,
    /// The aggregate's version before the command.
    pub version: u64,
    /// The command's id.
    pub command_id: CommandId,
    /// Who sent the command.
    pub actor: ActorName,
    /// When the worker took the command up, in milliseconds since 1970-01-01 UTC; never before the
    /// aggregate's last event.
    pub now_ms: i64,
}

/// An event as `decide` returned it, already checked against its schema.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The event's name, such as `departed`.
    pub event: EventName,
    /// Version of the event's schema.
    pub schema_version: u32,
    /// The event's data, JSON.
    pub data: Box<RawValue>,
}

/// What came of a command that was accepted.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The events, in order. None: accepted, with nothing to record.
    pub events: Vec<NewEvent>,
    /// The state after them.
    pub state: State,
}

/// Why a decider did not accept a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The rules say no: an answer, not an error.
    #[error("{code}: {message}")]
    Rejected {
        /// A stable word for programs, such as `already_departed`.
        code: String,
        /// A sentence for people.
        message: String,
    },
    /// The aggregate has no such command.
    #[error("unknown command; this aggregate accepts: {}", known.join(", "))]
    UnknownCommand {
        /// The commands that there are.
        known: Vec<String>,
    },
    /// The payload does not match the command's schema.
    #[error("the payload does not match its schema")]
    InvalidPayload {
        /// Which field, and why.
        violations: Vec<Violation>,
    },
    /// The decider itself failed: it threw, or returned an undeclared or invalid event. The state is
    /// as before.
    #[error("{0}")]
    Faulty(String),
    /// It used more processor time or memory than it may. The machine may have had a part in it: the
    /// same may succeed later. The state is as before.
    #[error("{0}")]
    Exhausted(String),
}

/// The rules of one kind of aggregate. Same input, same answer: no clock, no randomness, no effect.
pub trait Decider {
    /// Decides on a command. Returns the events and the state after them; fails with a
    /// [`Refusal`], the state being unchanged then.
    fn decide(
        &mut self,
        state: &State,
        command: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal>;

    /// Folds recorded events into the state, older schemas being upcast first. Fails with
    /// [`Refusal::Faulty`] when an event cannot be applied, and with [`Refusal::Exhausted`].
    fn evolve(&mut self, state: &State, events: &[Event]) -> Result<State, Refusal>;
}

/// The rules of one kind of aggregate, written in Rust with types of their own.
pub trait Rules {
    /// The state; its default is that of an aggregate without events.
    type State: Default + Serialize + DeserializeOwned;
    /// The commands; serialised as `{"<name>": payload}` (serde's external tagging, snake case).
    type Command: DeserializeOwned;
    /// The events; serialised as `{"<name>": data}`.
    type Event: Serialize + DeserializeOwned;

    /// The names of the commands, for the error that lists them.
    const COMMANDS: &'static [&'static str];

    /// Decides on a command; `Err((code, message))` is a rejection.
    fn decide(
        state: &Self::State,
        command: Self::Command,
        context: &Context,
    ) -> Result<Vec<Self::Event>, (&'static str, String)>;

    /// The state after the event.
    fn evolve(state: Self::State, event: &Self::Event) -> Self::State;
}

/// [`Rules`] in Rust as a [`Decider`].
pub struct Native<R>(PhantomData<R>);

impl<R> Default for Native<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

fn faulty(error: impl std::fmt::Display) -> Refusal {
    Refusal::Faulty(error.to_string())
}

impl<R: Rules> Native<R> {
    fn read(state: &State) -> Result<R::State, Refusal> {
        match state.as_str() {
            "null" => Ok(R::State::default()),
            text => serde_json::from_str(text).map_err(faulty),
        }
    }

    fn write(state: &R::State) -> Result<State, Refusal> {
        let text = serde_json::to_string(state).map_err(faulty)?;
        if text.len() > STATE_BYTES_MAX {
            let bytes = text.len();
            return Err(faulty(format!("the state has {bytes} bytes; at most {STATE_BYTES_MAX}")));
        }
        Ok(State(text.into()))
    }
}

fn tagged<T: DeserializeOwned>(tag: &str, body: &str) -> Result<T, serde_json::Error> {
    serde_json::from_str(&format!("{{\"{tag}\":{body}}}"))
}

impl<R: Rules> Decider for Native<R> {
    fn decide(
        &mut self,
        state: &State,
        command: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal> {
        if !R::COMMANDS.contains(&command.as_str()) {
            let known = R::COMMANDS.iter().map(ToString::to_string).collect();
            return Err(Refusal::UnknownCommand { known });
        }
        let typed = tagged(command.as_str(), payload.as_str()).map_err(|error| {
            let violations = vec![Violation { field: String::new(), reason: error.to_string() }];
            Refusal::InvalidPayload { violations }
        })?;
        let mut after = Self::read(state)?;
        let events = R::decide(&after, typed, context)
            .map_err(|(code, message)| Refusal::Rejected { code: code.to_owned(), message })?;
        let mut recorded = Vec::with_capacity(events.len());
        for event in events {
            let value = serde_json::to_value(&event).map_err(faulty)?;
            let (name, data) = value
                .as_object()
                .and_then(|object| object.iter().next())
                .ok_or_else(|| faulty("an event must serialise as {name: data}"))?;
            recorded.push(NewEvent {
                event: EventName::parse(name).map_err(faulty)?,
                schema_version: 1,
                data: serde_json::value::to_raw_value(data).map_err(faulty)?,
            });
            after = R::evolve(after, &event);
        }
        Ok(Decision { events: recorded, state: Self::write(&after)? })
    }

    fn evolve(&mut self, state: &State, events: &[Event]) -> Result<State, Refusal> {
        let mut after = Self::read(state)?;
        for event in events {
            let typed = tagged(event.event.as_str(), event.data.get()).map_err(faulty)?;
            after = R::evolve(after, &typed);
        }
        Self::write(&after)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// Its state is a text of the length that the last command asked for.
    struct Grows;

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Grow {
        To(usize),
    }

    #[derive(Deserialize, Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Grown {
        To(usize),
    }

    impl Rules for Grows {
        type State = String;
        type Command = Grow;
        type Event = Grown;
        const COMMANDS: &'static [&'static str] = &["to"];

        fn decide(
            _: &String,
            Grow::To(length): Grow,
            _: &Context,
        ) -> Result<Vec<Grown>, (&'static str, String)> {
            Ok(vec![Grown::To(length)])
        }

        fn evolve(_: String, Grown::To(length): &Grown) -> String {
            "x".repeat(*length)
        }
    }

    /// A state is one message of a snapshot, and one of an answer: a script's is bounded, too.
    #[test]
    fn a_state_in_rust_is_as_large_as_one_of_a_script_and_no_larger() {
        let context = Context {
            tenant: Tenant::parse("acme").unwrap(),
            id: AggregateId::parse("a").unwrap(),
            version: 0,
            command_id: CommandId::parse("c").unwrap(),
            actor: ActorName::parse("ann").unwrap(),
            now_ms: 0,
        };
        let grow = |bytes: usize| {
            let (name, length) = (CommandName::parse("to").unwrap(), bytes - "\"\"".len());
            let payload = Payload::parse(length.to_string().as_bytes()).unwrap();
            Native::<Grows>::default().decide(&State::none(), &name, &payload, &context)
        };
        for (bytes, fits) in
            [(STATE_BYTES_MAX - 1, true), (STATE_BYTES_MAX, true), (STATE_BYTES_MAX + 1, false)]
        {
            let decided = grow(bytes);
            assert_eq!(decided.is_ok(), fits, "{bytes}");
            assert_eq!(matches!(decided, Err(Refusal::Faulty(_))), !fits, "{bytes}");
        }
    }
}
