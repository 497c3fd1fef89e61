//! Changes in a new version of an application, and a check that recorded events stay readable.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use super::{
    AggregateDefinition, Application, CommandDefinition, Decide, EventDefinition, FileLine, Index,
    Parameter, QueryDefinition, ReadModelDefinition, problem::Problem,
};

/// Changes from one version to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Each change in words; empty: nothing changes.
    pub changes: Vec<String>,
    /// Changes that would make recorded events unreadable, each with the reason and the way out.
    pub refusals: Vec<Problem>,
}

/// Compares two versions of an application.
#[must_use]
pub fn compare(old: &Application, new: &Application) -> Comparison {
    let mut comparison = Comparison::default();
    let of_application = FileLine { file: new.name.as_str().into(), line: 1 };
    let entries = pairs(&old.aggregates, &new.aggregates);
    for (name, old, new) in entries {
        match (old, new) {
            (Some(old), Some(new)) => comparison.aggregate(old, new),
            (None, Some(_)) => comparison.changes.push(format!("aggregate {name} is new")),
            _ => comparison.refuse(
                &of_application,
                format!(
                    "aggregate `{name}` is gone, but its events are in the log for ever; keep its \
                     events at least"
                ),
            ),
        }
    }
    for (name, old, new) in pairs(&old.read_models, &new.read_models) {
        if let (Some(old), Some(new)) = (old, new) {
            comparison.indexes(old, new);
        }
        let change = match (old, new) {
            (Some(old), Some(new)) if old.fingerprint != new.fingerprint => {
                "changes: a new version is built from the log beside the one in use"
            }
            (Some(old), Some(new)) if old.description != new.description => {
                "has another description"
            }
            (Some(_), Some(_)) => continue,
            (None, _) => "is new: it is built from the log",
            (Some(_), None) => "is removed, and its table with it",
        };
        comparison.changes.push(format!("read model {name} {change}"));
    }
    for (name, old, new) in pairs(&old.queries, &new.queries) {
        let change = match (old, new) {
            (Some(old), Some(new)) if same_query(old, new) => continue,
            (Some(_), Some(_)) => "changes",
            (None, _) => "is new",
            (Some(_), None) => "is removed",
        };
        comparison.changes.push(format!("query {name} {change}"));
    }
    comparison
}

/// The things in either version, by name.
fn pairs<'a, K: Ord, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> Vec<(&'a K, Option<&'a V>, Option<&'a V>)> {
    let mut found: Vec<_> =
        old.iter().map(|(key, value)| (key, Some(value), new.get(key))).collect();
    let added = new.iter().filter(|(key, _)| !old.contains_key(key));
    found.extend(added.map(|(key, value)| (key, None, Some(value))));
    found.sort_by_key(|(key, _, _)| *key);
    found
}

fn same_query(old: &Arc<QueryDefinition>, new: &Arc<QueryDefinition>) -> bool {
    let parameter = |p: &Parameter| (p.name.clone(), p.column_type, p.default.clone());
    let whole = |query: &QueryDefinition| {
        let parameters: Vec<_> = query.parameters.iter().map(parameter).collect();
        (query.description.clone(), query.sql.clone(), query.reads.clone(), parameters)
    };
    whole(old) == whole(new)
}

/// The change of a command, in words.
fn changed(old: &CommandDefinition, new: &CommandDefinition) -> Option<String> {
    let payload = old.payload.json != new.payload.json;
    match (payload, other_rules(&old.decide, &new.decide)) {
        (true, Some(rules)) => Some(format!("has another payload and {rules}")),
        (true, None) => Some("has another payload".to_owned()),
        (false, Some(rules)) => Some(format!("has {rules}")),
        (false, None) if old.description != new.description => {
            Some("has another description".to_owned())
        }
        (false, None) => None,
    }
}

/// The rules that a command gets, in words; `None`: it has them already.
fn other_rules(old: &Decide, new: &Decide) -> Option<String> {
    match (old, new) {
        (Decide::Script(old), Decide::Script(new)) if old.source == new.source => None,
        (Decide::Script(_), Decide::Script(_)) => Some("other rules".to_owned()),
        (Decide::Plugin(old), Decide::Plugin(new)) if old.plugin == new.plugin => None,
        (_, Decide::Plugin(new)) => Some(format!("the rules of plugin {}", new.plugin)),
        (Decide::Plugin(old), Decide::Script(_)) => {
            Some(format!("rules of its own in place of those of plugin {}", old.plugin))
        }
    }
}

impl Comparison {
    fn refuse(&mut self, place: &FileLine, message: String) {
        self.refusals.push(Problem { place: place.clone(), message });
    }

    fn indexes(&mut self, old: &ReadModelDefinition, new: &ReadModelDefinition) {
        let name = &new.name;
        let only = |these: &[Index], others: &[Index]| {
            let gone = these.iter().filter(|index| !others.contains(index));
            gone.cloned().collect::<Vec<_>>()
        };
        for index in only(&new.indexes, &old.indexes) {
            let change = format!(
                "read model {name}: index {index} is new: it is built while rows are read and written"
            );
            self.changes.push(change);
        }
        for index in only(&old.indexes, &new.indexes) {
            self.changes.push(format!("read model {name}: index {index} is removed"));
        }
    }

    fn aggregate(&mut self, old: &AggregateDefinition, new: &AggregateDefinition) {
        let aggregate = &new.name;
        if old.description != new.description {
            self.changes.push(format!("aggregate {aggregate} has another description"));
        }
        for (name, old, new) in pairs(&old.commands, &new.commands) {
            let change = match (old, new) {
                (None, _) => "is new".to_owned(),
                (_, None) => "is removed".to_owned(),
                (Some(old), Some(new)) => match changed(old, new) {
                    Some(change) => change,
                    None => continue,
                },
            };
            self.changes.push(format!("command {aggregate}.{name} {change}"));
        }
        for (name, old, other) in pairs(&old.events, &new.events) {
            let event = format!("{aggregate}.{name}");
            match (old, other) {
                (Some(old), Some(new)) => self.event(&event, old, new),
                (None, _) => self.changes.push(format!("event {event} is new")),
                (_, None) => self.refuse(
                    &new.place,
                    format!("event `{event}` is gone, but may be in the log for ever; keep it"),
                ),
            }
        }
    }

    fn event(&mut self, event: &dyn Display, old: &EventDefinition, new: &EventDefinition) {
        let place = &new.data.place;
        let (before, after) = (old.version, new.version);
        let other_data = old.data.json != new.data.json;
        if after < before {
            let message = format!("event `{event}` goes back from version {before} to {after}");
            self.refuse(place, message);
        } else if after > before + 1 {
            let message = format!(
                "event `{event}` goes from version {before} to {after}; raise it by one at a time"
            );
            self.refuse(place, message);
        } else if other_data && after == before {
            let message = format!(
                "event `{event}` has another schema, but its version is still {before}; write \
                 `version: {}` and `upcast: {{ {before}: … }}`",
                before + 1
            );
            self.refuse(place, message);
        }
        for (from, function) in &old.upcast {
            match new.upcast.get(from) {
                Some(other) if other.source != function.source => self.refuse(
                    &other.place,
                    format!(
                        "the upcast of `{event}` from version {from} is another one; state and rows \
                         that were folded with the old one would be wrong"
                    ),
                ),
                // A missing one is noted when the new version is read.
                _ => {}
            }
        }
        if after == before + 1 {
            let change = format!("event {event} goes from version {before} to {after}");
            self.changes.push(change);
        }
        if old.evolve.source != new.evolve.source {
            self.changes.push(format!("event {event} evolves the state in another way"));
        }
    }
}
