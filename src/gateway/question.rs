//! Questions for the worker that owns an aggregate's slot.

use std::fmt;

use async_nats::{HeaderMap, connection};
use bytes::Bytes;
use flexcore_cluster::Unanswered;
use flexcore_domain::{
    AggregateKey, Command, CommandId, CommandName, Outcome, StateReply, TraceParent,
    command::header as field,
};
use flexcore_eventstore::headers::QUEUE_SEQUENCE;
use flexcore_resilience::{self as resilience, Deadline};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{error::Problem, shared::Shared};

/// A question that is answered with a `T`.
pub(crate) struct Question<'a, T> {
    key: &'a AggregateKey,
    subject: Subject<'a>,
    headers: HeaderMap,
    payload: Bytes,
    deadline: Deadline,
    /// The question may be taken up twice, by an owner and its successor: whether the successor's answer
    /// holds whatever the first one does.
    is_final: fn(&T) -> bool,
    /// When it is unknown what came of the question.
    lost: fn(&dyn fmt::Display) -> Problem,
}

/// What is asked.
enum Subject<'a> {
    Command(&'a CommandName),
    Outcome,
    State,
}

impl<'a> Question<'a, Outcome> {
    /// Has a command done; its id is in the headers.
    pub(crate) fn command(
        key: &'a AggregateKey,
        name: &'a CommandName,
        headers: HeaderMap,
        payload: Bytes,
        deadline: Deadline,
    ) -> Self {
        let (subject, lost) = (Subject::Command(name), Problem::outcome_unknown);
        Self { key, subject, headers, payload, deadline, is_final: is_recorded, lost }
    }

    /// Asks what came of a command: of the stored one that has this sequence in the queue, or of whichever has
    /// this id.
    pub(crate) fn outcome(
        key: &'a AggregateKey,
        id: &CommandId,
        stored: Option<u64>,
        deadline: Deadline,
    ) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(field::COMMAND_ID, id.as_str());
        if let Some(sequence) = stored {
            headers.insert(QUEUE_SEQUENCE, sequence.to_string());
        }
        Self::read(key, Subject::Outcome, headers, deadline)
    }
}

impl<'a> Question<'a, StateReply> {
    /// Asks for the aggregate's state, now or at a version.
    pub(crate) fn state(
        key: &'a AggregateKey,
        at: Option<u64>,
        trace: &TraceParent,
        deadline: Deadline,
    ) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(field::TRACEPARENT, trace.as_str());
        if let Some(version) = at {
            headers.insert(field::AT_VERSION, version.to_string());
        }
        Self::read(key, Subject::State, headers, deadline)
    }
}

impl<'a, T: DeserializeOwned> Question<'a, T> {
    /// One that changes nothing.
    fn read(
        key: &'a AggregateKey,
        subject: Subject<'a>,
        headers: HeaderMap,
        deadline: Deadline,
    ) -> Self {
        let (payload, lost) = (Bytes::new(), Problem::unavailable);
        Self { key, subject, headers, payload, deadline, is_final: |_| true, lost }
    }

    /// Asks the slot's owner. Fails with "unavailable" when the question certainly was not taken up.
    pub(crate) async fn ask(self, shared: &Shared) -> Result<T, Problem> {
        if shared.store.client().connection_state() != connection::State::Connected {
            return Err(Problem::unavailable(&"not connected to the broker"));
        }
        let Self { key, deadline, payload, lost, .. } = self;
        let question = |epoch, _| {
            let mut headers = self.headers.clone();
            let left = deadline.encode(Instant::now()).unwrap_or_else(|| "1".to_owned());
            headers.insert(resilience::HEADER, left);
            let subject = match self.subject {
                Subject::Command(name) => Command::request_subject(epoch, key, name),
                Subject::Outcome => Command::outcome_subject(epoch, key),
                Subject::State => Command::state_subject(epoch, key),
            };
            (subject, headers)
        };
        let number = key.slot().number();
        let within = deadline.remaining(Instant::now());
        let asked = shared.owners.ask(number, within, payload, question);
        let answer = asked.await.map_err(|error| match error {
            Unanswered::NoOwner => Problem::unavailable(&error),
            Unanswered::InDoubt(_) => lost(&error),
        })?;
        let said = serde_json::from_slice(&answer.message.payload).map_err(|error| {
            Problem::internal(&format!("a worker's answer does not parse: {error}"))
        })?;
        if answer.repeated && !(self.is_final)(&said) {
            return Err(lost(&"the slot's owner has changed meanwhile"));
        }
        Ok(said)
    }
}

/// Whether an owner's answer to a command holds although an earlier owner was asked, too: what it has
/// found in the log does. What it refuses, for whatever reason, the earlier one may have recorded, or do
/// so yet.
fn is_recorded(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Accepted { position: Some(_), .. } | Outcome::IdMismatch)
}
