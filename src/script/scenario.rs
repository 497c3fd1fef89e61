//! Tests of applications: given these events, when this command comes, then these events follow or
//! the command is rejected. One YAML document a test:
//!
//! ```yaml
//! test: a lamp is switched on once
//! aggregate: lamp              # may be left out when the application has only one
//! given: [ { switched: { on: false } } ]
//! commands: [ { switch: { on: true } } ]   # each must be accepted; they come after `given`
//! when: { switch: { on: true } }
//! rejected: already            # or `invalid: /on`, or `then:` with a list of events
//! state: { on: true }          # optional: the state afterwards
//! ```
//!
//! The context is always that of aggregate `test`, actor `test`, 2013-01-01T00:00:00Z. Commands that a plugin
//! decides are put to whoever runs the test.

mod read;
mod run;

use std::sync::Arc;

use flexcore_definition::{AggregateDefinition, DecidedByPlugin, FileLine};
use flexcore_domain::{
    AggregateName, CommandName, Context, Event, Name, Payload, Refusal, State, Violation,
};
use serde::Serialize;
use serde_json::Value;

pub use read::read;
pub use run::run;

/// A command that a plugin decides, and all that it may know.
#[derive(Clone, Debug)]
pub struct PluginQuestion {
    /// The plugin, and where it is named.
    pub by: DecidedByPlugin,
    /// The aggregate's name.
    pub aggregate: AggregateName,
    /// The aggregate's state.
    pub state: State,
    /// The command.
    pub command: CommandName,
    /// Its payload, which matches its schema.
    pub payload: Payload,
    /// The rest that it may know.
    pub context: Context,
}

/// Names and data (JSON) of the events that a plugin decided, or why it did not accept the command. Nothing about
/// the events needs to have been checked.
pub type PluginDecided = Result<Vec<(String, Vec<u8>)>, Refusal>;

/// One test.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What it shows.
    pub name: String,
    /// Where it stands.
    pub place: FileLine,
    aggregate: Arc<AggregateDefinition>,
    given: Vec<Event>,
    commands: Vec<Step>,
    when: Step,
    then: Then,
    state: Option<(Value, FileLine)>,
}

impl Scenario {
    /// The plugins that decide commands of the test, each with where it is named.
    pub fn plugins(&self) -> impl Iterator<Item = (&Name, &FileLine)> {
        let steps = self.commands.iter().chain([&self.when]);
        let declared = steps.filter_map(move |step| self.aggregate.commands.get(&step.command));
        declared.filter_map(|it| it.decide.plugin()).map(|by| (&by.plugin, &by.place))
    }
}

/// A command, with its place.
#[derive(Clone, Debug)]
struct Step {
    command: CommandName,
    /// Or why a worker would refuse it.
    payload: Result<Payload, Vec<Violation>>,
    place: FileLine,
}

/// What must come of the command.
#[derive(Clone, Debug)]
struct Then {
    place: FileLine,
    expected: Expected,
}

#[derive(Clone, Debug)]
enum Expected {
    Events(Vec<(String, Value)>),
    Rejected(String),
    /// JSON pointer to a field of the payload that does not match its schema.
    Invalid(String),
}

/// What was expected, and what happened instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// `file:line` of the expectation.
    pub place: String,
    /// What was expected, as text.
    pub expected: String,
    /// What happened, as text.
    pub actual: String,
}
