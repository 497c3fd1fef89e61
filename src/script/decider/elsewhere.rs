//! Commands that a plugin decides: their payload is checked before the plugin is asked, and what it decides is
//! checked and folded here, as what JavaScript decides.

use flexcore_definition::{AggregateDefinition, Decide, DecidedByPlugin};
use flexcore_domain::{
    CommandName, Decision, Event, NewEvent, Payload, Refusal, State,
    json::check_within,
    limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX},
};
use serde_json::{Value, value::to_raw_value};

use super::{ScriptDecider, check_payload};
use crate::{
    clock::processor_time,
    limits::{CODE_CHARS_MAX, DECIDE_MAX},
    violations,
};

/// An event as a plugin decided it. Nothing about it has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Proposed<'a> {
    /// Its name.
    pub event: &'a str,
    /// Its data: JSON, if the plugin keeps to the contract.
    pub data: &'a [u8],
}

impl ScriptDecider {
    /// The plugin that decides on a command, once its payload is checked against its schema; `None`: a
    /// function of this decider does. Fails with [`Refusal::UnknownCommand`] and [`Refusal::InvalidPayload`].
    pub fn decided_by(
        &self,
        command: &CommandName,
        payload: &Payload,
    ) -> Result<Option<DecidedByPlugin>, Refusal> {
        let declared = self.definition.commands.get(command);
        let declared = declared.ok_or_else(|| unknown(&self.definition))?;
        check_payload(&declared.payload, payload)?;
        Ok(declared.decide.plugin().cloned())
    }

    /// The decision that the events of a plugin make, or of another decider, on this state and version. Fails with
    /// [`Refusal::Faulty`] where an event is not declared, is too large, or does not match its schema, and where
    /// `evolve` throws; with [`Refusal::Exhausted`] when the checks or `evolve` used too much.
    pub fn conclude(
        &mut self,
        state: &State,
        command: &CommandName,
        version: u64,
        proposed: &[Proposed<'_>],
    ) -> Result<Decision, Refusal> {
        let definition = self.definition.clone();
        let declared = definition.commands.get(command).ok_or_else(|| unknown(&definition))?;
        let of = Of { command, decide: &declared.decide };
        let events = checked(&definition, &of, proposed)?;
        if events.is_empty() {
            return Ok(Decision { events, state: state.clone() });
        }
        let recorded = |(event, number): (&NewEvent, u64)| Event {
            event: event.event.clone(),
            version: version.saturating_add(number),
            schema_version: event.schema_version,
            data: event.data.clone(),
        };
        let recorded: Vec<Event> = events.iter().zip(1..).map(recorded).collect();
        // An accepted event must be foldable on a slower machine, which has more time for it.
        let state = self.folded(state, &recorded, DECIDE_MAX)?;
        Ok(Decision { events, state })
    }
}

/// The command that was decided, and where its decider is named.
struct Of<'a> {
    command: &'a CommandName,
    decide: &'a Decide,
}

impl Of<'_> {
    fn said(&self, why: &str) -> String {
        let Self { command, decide } = self;
        let place = decide.place();
        match decide.plugin() {
            Some(by) => format!("{place}: decide of {command}: plugin {}: {why}", by.plugin),
            None => format!("{place}: decide of {command}: {why}"),
        }
    }

    fn faulty(&self, why: &str) -> Refusal {
        Refusal::Faulty(self.said(why))
    }
}

/// Why a plugin's command cannot be decided by a function.
pub(super) fn no_function(command: &CommandName, decide: &Decide) -> Refusal {
    Of { command, decide }
        .faulty("it decides, and was not asked: this worker or tool asks no plugins")
}

pub(super) fn unknown(definition: &AggregateDefinition) -> Refusal {
    let known = definition.commands.keys().map(ToString::to_string).collect();
    Refusal::UnknownCommand { known }
}

/// The events as they are recorded: of the declared version, as compact JSON.
fn checked(
    definition: &AggregateDefinition,
    of: &Of<'_>,
    proposed: &[Proposed<'_>],
) -> Result<Vec<NewEvent>, Refusal> {
    if proposed.len() > COMMIT_EVENTS_MAX {
        let why = format!("{} events; at most {COMMIT_EVENTS_MAX}", proposed.len());
        return Err(of.faulty(&why));
    }
    // Nothing can stop a check, and each of many may be short.
    let until = processor_time() + DECIDE_MAX;
    let (mut events, mut bytes) = (Vec::with_capacity(proposed.len()), 0_usize);
    for Proposed { event, data } in proposed {
        let (name, declared) = definition.events.get_key_value(*event).ok_or_else(|| {
            let shown: String =
                event.chars().take(CODE_CHARS_MAX).flat_map(char::escape_debug).collect();
            of.faulty(&format!("the event \"{shown}\" is not declared"))
        })?;
        let wrong = |why: String| of.faulty(&format!("the event {name}: {why}"));
        let value = read(data).map_err(wrong)?;
        let checked = violations::check(&declared.data, &value);
        checked
            .map_err(|found| wrong(format!("it does not match its schema: {}", listed(&found))))?;
        let data = to_raw_value(&value).expect("BUG: a value is JSON");
        bytes = bytes.saturating_add(data.get().len());
        if bytes > COMMIT_BYTES_MAX {
            let why = format!("the events have more than {COMMIT_BYTES_MAX} bytes");
            return Err(of.faulty(&why));
        }
        if processor_time() > until {
            let limit = DECIDE_MAX.as_millis();
            let why = format!("checks of its events used more than {limit} ms of processor time");
            return Err(Refusal::Exhausted(of.said(&why)));
        }
        events.push(NewEvent { event: name.clone(), schema_version: declared.version, data });
    }
    Ok(events)
}

/// What a payload may be, an event may be: nothing that JavaScript would take for something else.
fn read(data: &[u8]) -> Result<Value, String> {
    let text = check_within(data, COMMIT_BYTES_MAX).map_err(|found| listed(&found))?;
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn listed(found: &[flexcore_domain::Violation]) -> String {
    let listed =
        found.iter().map(|it| format!("{} {}", it.field, it.reason).trim_start().to_owned());
    listed.collect::<Vec<_>>().join("; ")
}
