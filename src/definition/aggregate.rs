//! An aggregate: its commands, its events, and the functions of both.

use std::{collections::BTreeMap, fmt, sync::Arc};

use flexcore_domain::{AggregateName, CommandName, EventName, Name};
use serde_json::Value;

use super::{
    FileLine, Schema,
    fields::{Fields, entries},
    notes::Notes,
    schema,
    yaml::{Data, Node},
};

/// Most commands of an aggregate, and most events: a table of each is kept by every worker.
pub(super) const MEMBERS_MAX: usize = 256;

/// Highest version of an event: that many upcasts one after the other.
pub(super) const EVENT_VERSION_MAX: u32 = 100;

/// Longest function, in bytes: every worker compiles it, and larger ones hold data, not rules.
pub(super) const FUNCTION_BYTES_MAX: usize = 64 * 1024;

/// A kind of aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct AggregateDefinition {
    /// Its name.
    pub name: AggregateName,
    /// One sentence for the API's documents.
    pub description: String,
    /// Where it stands.
    pub place: FileLine,
    /// The commands that it accepts.
    pub commands: BTreeMap<CommandName, CommandDefinition>,
    /// The events that it records.
    pub events: BTreeMap<EventName, EventDefinition>,
}

/// A command.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandDefinition {
    /// One sentence for the API's documents.
    pub description: String,
    /// Schema of the payload.
    pub payload: Schema,
    /// Its rules.
    pub decide: Decide,
}

/// The rules of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decide {
    /// `(state, command, context) => events`.
    Script(Function),
    /// An installed plugin has them.
    Plugin(DecidedByPlugin),
}

/// The plugin that decides on a command. What it decides is folded by `evolve`, as ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecidedByPlugin {
    /// The name under which the plugin is installed.
    pub plugin: Name,
    /// Where it is named.
    pub place: FileLine,
}

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct EventDefinition {
    /// Version of its schema, from 1.
    pub version: u32,
    /// Schema of the data.
    pub data: Schema,
    /// `(state, event) => state`.
    pub evolve: Function,
    /// From each older version to the next: `(data) => data`.
    pub upcast: BTreeMap<u32, Function>,
}

/// A JavaScript function expression, with the place of its first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Source text of a function expression, such as `(state, event) => ({...state})`.
    pub source: Arc<str>,
    /// Where it stands.
    pub place: FileLine,
}

/// One of an aggregate's functions. Displays as it is called in messages: `decide of depart`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FunctionId {
    /// `decide` of a command.
    Decide(CommandName),
    /// `evolve` of an event.
    Evolve(EventName),
    /// `upcast` of an event from a version.
    Upcast(EventName, u32),
}

impl FunctionId {
    /// The key under which it is declared.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Decide(_) => "decide",
            Self::Evolve(_) => "evolve",
            Self::Upcast(..) => "upcast",
        }
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of ", self.key())?;
        match self {
            Self::Decide(command) => write!(f, "{command}"),
            Self::Evolve(event) => write!(f, "{event}"),
            Self::Upcast(event, from) => write!(f, "{event} from {from}"),
        }
    }
}

impl Decide {
    /// Where it stands: the first line of the function, or that of the plugin's name.
    #[must_use]
    pub const fn place(&self) -> &FileLine {
        match self {
            Self::Script(function) => &function.place,
            Self::Plugin(by) => &by.place,
        }
    }

    /// The function; `None`: a plugin decides.
    #[must_use]
    pub const fn function(&self) -> Option<&Function> {
        match self {
            Self::Script(function) => Some(function),
            Self::Plugin(_) => None,
        }
    }

    /// The plugin; `None`: a function decides.
    #[must_use]
    pub const fn plugin(&self) -> Option<&DecidedByPlugin> {
        match self {
            Self::Script(_) => None,
            Self::Plugin(by) => Some(by),
        }
    }
}

impl AggregateDefinition {
    /// All its functions. Commands that a plugin decides have none.
    pub fn functions(&self) -> impl Iterator<Item = (FunctionId, &Function)> {
        let of_events = self.events.iter().flat_map(|(name, event)| {
            let upcast = event.upcast.iter();
            let upcast = upcast.map(|(from, it)| (FunctionId::Upcast(name.clone(), *from), it));
            [(FunctionId::Evolve(name.clone()), &event.evolve)].into_iter().chain(upcast)
        });
        let of_commands = self.commands.iter().filter_map(|(name, it)| {
            Some((FunctionId::Decide(name.clone()), it.decide.function()?))
        });
        of_events.chain(of_commands)
    }

    /// The commands that plugins decide, each with its plugin.
    pub fn decided_by_plugins(&self) -> impl Iterator<Item = (&CommandName, &DecidedByPlugin)> {
        self.commands.iter().filter_map(|(name, it)| Some((name, it.decide.plugin()?)))
    }
}

/// The decider of commands that name none.
enum Inherited {
    /// The aggregate names none either.
    Nothing,
    /// It does, with a mistake that is noted already.
    Mistaken,
    Plugin(DecidedByPlugin),
}

pub(super) fn read(node: &Node, notes: &mut Notes) -> Option<AggregateDefinition> {
    let known = ["aggregate", "description", "decide", "commands", "events"];
    let fields = Fields::of(node, "an aggregate", &known, notes)?;
    let name = fields.required("aggregate", notes)?;
    let text = notes.text(name, "an aggregate's name")?;
    let name = notes.name(AggregateName::parse, text, name.line);
    let inherited = match fields.get("decide") {
        None => Inherited::Nothing,
        Some(node) => by_plugin(node, notes).map_or(Inherited::Mistaken, Inherited::Plugin),
    };
    let command =
        |node: &Node, what: &str, notes: &mut Notes| command(node, what, &inherited, notes);
    let commands = fields
        .required("commands", notes)
        .and_then(|node| members(node, "command", CommandName::parse, command, notes));
    let events = fields
        .required("events", notes)
        .and_then(|node| members(node, "event", EventName::parse, event, notes));
    Some(AggregateDefinition {
        name: name?,
        description: fields.text_or_empty("description", notes),
        place: notes.place(node.line),
        commands: commands?,
        events: events?,
    })
}

/// The members of `commands` or `events`, by name.
fn members<K: Ord, V, E: std::fmt::Display>(
    node: &Node,
    what: &str,
    parse: impl Fn(&str) -> Result<K, E>,
    read: impl Fn(&Node, &str, &mut Notes) -> Option<V>,
    notes: &mut Notes,
) -> Option<BTreeMap<K, V>> {
    let entries = entries(node, &format!("`{what}s`"), notes)?;
    if entries.is_empty() || entries.len() > MEMBERS_MAX {
        return notes.add(node.line, format!("an aggregate has 1 to {MEMBERS_MAX} {what}s"));
    }
    let mut found = BTreeMap::new();
    for (key, node) in entries {
        let name = notes.name(&parse, &key.text, key.line);
        let member = read(node, &format!("{what} `{}`", key.text), notes);
        if let (Some(name), Some(member)) = (name, member) {
            found.insert(name, member);
        }
    }
    // Incomplete only when a note says so; the whole is refused then.
    Some(found)
}

fn command(
    node: &Node,
    what: &str,
    inherited: &Inherited,
    notes: &mut Notes,
) -> Option<CommandDefinition> {
    let fields = Fields::of(node, what, &["description", "payload", "decide"], notes)?;
    let payload = match fields.get("payload") {
        Some(node) => schema::read(node, notes),
        None => Some(schema::empty(notes.place(node.line))),
    };
    let decide = match (fields.get("decide"), inherited) {
        (None, Inherited::Plugin(by)) => Some(Decide::Plugin(by.clone())),
        (None, Inherited::Mistaken) => None,
        _ => fields.required("decide", notes).and_then(|node| decide(node, notes)),
    };
    let description = fields.text_or_empty("description", notes);
    Some(CommandDefinition { description, payload: payload?, decide: decide? })
}

/// A function, or the plugin that has the rules.
fn decide(node: &Node, notes: &mut Notes) -> Option<Decide> {
    match &node.data {
        Data::Map(_) => by_plugin(node, notes).map(Decide::Plugin),
        _ => function(node, notes).map(Decide::Script),
    }
}

/// `{plugin: NAME}`.
fn by_plugin(node: &Node, notes: &mut Notes) -> Option<DecidedByPlugin> {
    if matches!(&node.data, Data::Scalar(Value::String(_))) {
        let message = "an aggregate's `decide` names a plugin, as in `decide: { plugin: pricing }`; a \
                       function stands in its command";
        return notes.add(node.line, message);
    }
    let fields = Fields::of(node, "`decide`", &["plugin"], notes)?;
    let named = fields.required("plugin", notes)?;
    let text = notes.text(named, "a plugin's name")?;
    let plugin = notes.name(Name::parse, text, named.line)?;
    Some(DecidedByPlugin { plugin, place: notes.place(named.line) })
}

fn event(node: &Node, what: &str, notes: &mut Notes) -> Option<EventDefinition> {
    let known = ["description", "version", "data", "evolve", "upcast"];
    let fields = Fields::of(node, what, &known, notes)?;
    fields.text_or_empty("description", notes);
    let version = match fields.get("version") {
        Some(node) => version(node, notes),
        None => Some(1),
    };
    let data = match fields.get("data") {
        Some(node) => schema::read(node, notes),
        None => Some(schema::empty(notes.place(node.line))),
    };
    let evolve = fields.required("evolve", notes).and_then(|node| function(node, notes));
    let upcast = upcasts(&fields, version.unwrap_or(1), notes);
    Some(EventDefinition { version: version?, data: data?, evolve: evolve?, upcast: upcast? })
}

fn version(node: &Node, notes: &mut Notes) -> Option<u32> {
    let number = match &node.data {
        Data::Scalar(Value::Number(number)) => number.as_u64(),
        _ => None,
    };
    match number.and_then(|number| u32::try_from(number).ok()) {
        Some(version) if (1..=EVENT_VERSION_MAX).contains(&version) => Some(version),
        _ => notes.add(node.line, format!("`version` is a whole number, 1 to {EVENT_VERSION_MAX}")),
    }
}

/// One upcast from each older version to the next.
fn upcasts(
    fields: &Fields<'_>,
    version: u32,
    notes: &mut Notes,
) -> Option<BTreeMap<u32, Function>> {
    let mut found = BTreeMap::new();
    let node = fields.get("upcast");
    let entries = node.map_or(Some([].as_slice()), |node| entries(node, "`upcast`", notes))?;
    for (key, node) in entries {
        match key.text.parse::<u32>() {
            Ok(from) if (1..version).contains(&from) => {
                if let Some(function) = function(node, notes) {
                    found.insert(from, function);
                }
            }
            _ => {
                let message = format!(
                    "`upcast` has the older versions as keys, of which version {version} has {}",
                    version - 1
                );
                notes.add::<()>(key.line, message);
            }
        }
    }
    for from in
        (1..version).filter(|from| !entries.iter().any(|(key, _)| key.text == from.to_string()))
    {
        let line = node.map_or(fields.line, |node| node.line);
        let message =
            format!("`upcast` from version {from} is missing: events of it may be in the log");
        notes.add::<()>(line, message);
    }
    Some(found)
}

fn function(node: &Node, notes: &mut Notes) -> Option<Function> {
    let text = notes.text(node, "a function")?;
    let trimmed = text.trim_end().trim_end_matches(';');
    if trimmed.trim().is_empty() {
        return notes.add(node.line, "a function is missing here");
    }
    if trimmed.len() > FUNCTION_BYTES_MAX {
        let size = trimmed.len();
        let message = format!("a function of {size} bytes; at most {FUNCTION_BYTES_MAX}");
        return notes.add(node.line, message);
    }
    Some(Function { source: Arc::from(trimmed), place: notes.place(node.text_line) })
}
