//! The deciders of one lane: JavaScript from the catalog, Rust where it is registered. Made when
//! first used, kept until another deployment changes them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use bytes::Bytes;
use flexcore_definition::{AggregateDefinition, Catalog};
use flexcore_domain::{
    AggregateKey, AggregateName, Command, CommandName, Context, Decider, Decision, Event,
    EventName, Hash, Name, NewEvent, Refusal, State,
};
use flexcore_script::{
    Proposed, ScriptDecider,
    threads::{Of, Scripts},
};
use futures::future::BoxFuture;
use serde_json::value::RawValue;

/// Deciders written in Rust: a fresh one for an aggregate, or `None` when JavaScript decides.
pub type NativeDeciders = Arc<dyn Fn(&AggregateName) -> Option<Box<dyn Decider>> + Send + Sync>;

/// A decider that answers later, such as a plugin's. The caller bounds its time.
pub type LaterDecider = Arc<dyn Fn(ToDecide) -> BoxFuture<'static, Proposals> + Send + Sync>;

/// The deciders of commands that answer later, by what is deployed; `None`: this command's is called on the lane's
/// thread. The events that they propose are checked and folded there in any case.
pub type LaterDeciders =
    Arc<dyn Fn(&Catalog, &AggregateName, &CommandName) -> Option<LaterDecider> + Send + Sync>;

/// The answer of such a decider: events, or why there are none.
pub type Proposals = Result<Vec<ProposedEvent>, NoDecision>;

/// An event as a decider that answers later proposes it. Nothing about it has been checked.
#[derive(Clone, Debug)]
pub struct ProposedEvent {
    /// Its name.
    pub event: String,
    /// Its data: JSON, if the decider keeps to its contract.
    pub data: Bytes,
}

/// All that a decider is told of a command.
#[derive(Clone, Debug)]
pub struct ToDecide {
    /// The aggregate's state.
    pub state: State,
    /// The command.
    pub command: Command,
    /// The rest that it may know.
    pub context: Context,
}

/// Why a decider that answers later gave no decision.
#[derive(Clone, Debug)]
pub enum NoDecision {
    /// It says so. [`Refusal::Exhausted`]: it did not answer in time.
    Refused(Refusal),
    /// It cannot be asked just now: clients are told so, stored commands wait for it.
    Away(String),
    /// It has too much to do, or this process has: clients are told so, stored commands come again.
    Busy(String),
}

/// Names the functions that fold an aggregate's events, `evolve` and `upcast`: under others a state is
/// void, in memory as in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(Arc<str>);

/// The deciders of one lane, as the lane sees them. They are called on its script thread.
pub(super) struct Deciders {
    catalog: Arc<Catalog>,
    native: NativeDeciders,
    later: LaterDeciders,
    scripts: Scripts<Made>,
    /// The thread's deciders are those of another catalog.
    outdated: bool,
    /// Of the aggregates that are declared, once they are asked for, with what they were made from.
    fingerprints: HashMap<AggregateName, (Arc<AggregateDefinition>, Fingerprint)>,
    /// Of the others.
    native_fingerprint: Fingerprint,
}

/// The deciders that a script thread has made.
pub(super) type Made = HashMap<AggregateName, One>;

pub(super) struct One {
    /// `None`: written in Rust.
    definition: Option<Arc<AggregateDefinition>>,
    decider: OwnDecider,
}

/// A decider that is called on the script thread.
enum OwnDecider {
    Native(Box<dyn Decider>),
    Script(Box<ScriptDecider>),
}

impl OwnDecider {
    fn as_dyn(&mut self) -> &mut dyn Decider {
        match self {
            Self::Native(native) => native.as_mut(),
            Self::Script(script) => script.as_mut(),
        }
    }

    /// Fails where a command need not be asked about, since it is none of the aggregate's, or its payload does not
    /// fit. The rules that are written in Rust read it themselves.
    fn admit(&self, command: &Command) -> Result<(), Refusal> {
        match self {
            Self::Native(_) => Ok(()),
            Self::Script(script) => {
                script.decided_by(&command.name, &command.payload).map(|_plugin| ())
            }
        }
    }

    /// The decision that proposed events make.
    fn conclude(
        &mut self,
        state: &State,
        version: u64,
        command: &CommandName,
        proposed: &[ProposedEvent],
    ) -> Result<Decision, Refusal> {
        let native = match self {
            Self::Native(native) => native,
            Self::Script(script) => {
                let proposed: Vec<Proposed<'_>> = proposed
                    .iter()
                    .map(|it| Proposed { event: &it.event, data: &it.data })
                    .collect();
                return script.conclude(state, command, version, &proposed);
            }
        };
        let events = proposed.iter().map(ProposedEvent::read).collect::<Result<Vec<_>, _>>()?;
        let recorded = |(event, number): (&NewEvent, u64)| Event {
            event: event.event.clone(),
            version: version.saturating_add(number),
            schema_version: event.schema_version,
            data: event.data.clone(),
        };
        let recorded: Vec<Event> = events.iter().zip(1..).map(recorded).collect();
        let state = native.evolve(state, &recorded)?;
        Ok(Decision { events, state })
    }
}

impl ProposedEvent {
    /// As one of rules that are written in Rust, whose events have no schema but their types.
    fn read(&self) -> Result<NewEvent, Refusal> {
        let faulty = |error: &dyn std::fmt::Display| Refusal::Faulty(error.to_string());
        let event = EventName::parse(&self.event).map_err(|error| faulty(&error))?;
        let data: Box<RawValue> =
            serde_json::from_slice(&self.data).map_err(|error| faulty(&error))?;
        Ok(NewEvent { event, schema_version: 1, data })
    }
}

impl Fingerprint {
    /// SHA-256 over what folds events into a state.
    pub(super) fn of(definition: &AggregateDefinition) -> Self {
        let mut hash = Hash::ZERO;
        for (name, event) in &definition.events {
            hash = Hash::chain(&hash, format!("{name} {}", event.version).as_bytes());
            hash = Hash::chain(&hash, event.evolve.source.as_bytes());
            for upcast in event.upcast.values() {
                hash = Hash::chain(&hash, upcast.source.as_bytes());
            }
        }
        Self(hash.to_string().into())
    }

    /// Of deciders in Rust: what they folded is void with another version of FlexCore.
    pub(super) fn native() -> Self {
        Self(concat!("rust-", env!("CARGO_PKG_VERSION")).into())
    }

    /// As a snapshot carries it.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a decider has no answer.
pub(super) enum Fault {
    /// There is none.
    Undeclared { known: Vec<String> },
    /// It cannot be made. It was compiled when it was deployed, so that it has met a limit.
    Unmade(String),
    /// It says so, or did not come back.
    Refused(Refusal),
}

impl Deciders {
    /// Deciders of this catalog. Those in Rust go first.
    #[must_use]
    pub(super) fn new(
        catalog: Arc<Catalog>,
        native: NativeDeciders,
        later: LaterDeciders,
        scripts: Scripts<Made>,
    ) -> Self {
        Self {
            catalog,
            native,
            later,
            scripts,
            outdated: false,
            fingerprints: HashMap::new(),
            native_fingerprint: Fingerprint::native(),
        }
    }

    /// The command's decider, if it is one that answers later.
    pub(super) fn later(&self, command: &Command) -> Option<LaterDecider> {
        (self.later)(&self.catalog, command.key.aggregate(), &command.name)
    }

    /// The plugin that decides on a command, if one does.
    pub(super) fn plugin(&self, command: &Command) -> Option<&Name> {
        let definition = self.catalog.aggregate(command.key.aggregate().as_str())?;
        Some(&definition.commands.get(&command.name)?.decide.plugin()?.plugin)
    }

    /// Checks a command before a decider that answers later is asked. Fails as deciding on it would.
    pub(super) async fn admit(&mut self, command: &Command) -> Result<(), Fault> {
        let own = command.clone();
        self.call(&command.key, move |decider| decider.admit(&own)).await
    }

    /// The decision that events make which were proposed on this state and version: they are checked, and folded.
    pub(super) async fn conclude(
        &mut self,
        (state, version): (&State, u64),
        command: &Command,
        proposed: Vec<ProposedEvent>,
    ) -> Result<Decision, Fault> {
        let (state, name) = (state.clone(), command.name.clone());
        let concluded =
            move |decider: &mut OwnDecider| decider.conclude(&state, version, &name, &proposed);
        self.call(&command.key, concluded).await
    }

    /// Goes over to another catalog. Unchanged deciders are kept, and so are states ([`Fingerprint`]).
    pub(super) fn follow(&mut self, catalog: Arc<Catalog>) {
        self.outdated = true;
        self.fingerprints.retain(|name, (of, _)| {
            catalog.aggregate(name.as_str()).is_some_and(|now| Arc::ptr_eq(of, now))
        });
        self.catalog = catalog;
    }

    /// Decides on a command.
    pub(super) async fn decide(
        &mut self,
        state: &State,
        command: &Command,
        context: Context,
    ) -> Result<Decision, Fault> {
        let (state, name, payload) = (state.clone(), command.name.clone(), command.payload.clone());
        let decided = move |decider: &mut OwnDecider| {
            decider.as_dyn().decide(&state, &name, &payload, &context)
        };
        self.call(&command.key, decided).await
    }

    /// Folds events into a state. Gives the events back, unless they were left with a call that does
    /// not end.
    pub(super) async fn evolve(
        &mut self,
        key: &AggregateKey,
        state: &State,
        events: Vec<Event>,
    ) -> Result<(Vec<Event>, State), Fault> {
        let state = state.clone();
        self.call(key, move |decider| {
            let after = decider.as_dyn().evolve(&state, &events)?;
            Ok((events, after))
        })
        .await
    }

    async fn call<T: Send + 'static>(
        &mut self,
        key: &AggregateKey,
        call: impl FnOnce(&mut OwnDecider) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Fault> {
        let definition = self.catalog.aggregate(key.aggregate().as_str()).cloned();
        let of = Of { key: key.clone(), definition: definition.clone() };
        let (name, native) = (key.aggregate().clone(), self.native.clone());
        let news = self.outdated.then(|| self.catalog.clone());
        let job = move |made: &mut Made| {
            if let Some(catalog) = news {
                retain(made, &catalog);
            }
            let decider = get(made, name, definition, &native)?;
            Ok(call(decider).map_err(Fault::Refused))
        };
        let called = self.scripts.call(of, job).await;
        // Without an answer it may never have been made, and the thread knows nothing of the news.
        self.outdated &= called.is_err();
        match called {
            Ok(Ok(answer)) => answer,
            Ok(Err(Some(unmade))) => Err(Fault::Unmade(unmade)),
            Ok(Err(None)) => {
                let apps = self.catalog.applications.values();
                let known = apps.flat_map(|app| app.aggregates.keys()).map(ToString::to_string);
                Err(Fault::Undeclared { known: known.collect() })
            }
            Err(refusal) => Err(Fault::Refused(refusal)),
        }
    }

    #[cfg(test)]
    pub(super) fn scripts(&self) -> Scripts<Made> {
        self.scripts.clone()
    }

    /// The mark that a state must carry to be used: it names the functions that folded it.
    pub(super) fn fingerprint(&mut self, name: &AggregateName) -> Fingerprint {
        if let Some((_, known)) = self.fingerprints.get(name) {
            return known.clone();
        }
        let Some(definition) = self.catalog.aggregate(name.as_str()) else {
            return self.native_fingerprint.clone();
        };
        let fingerprint = Fingerprint::of(definition);
        let known = (definition.clone(), fingerprint.clone());
        self.fingerprints.insert(name.clone(), known);
        fingerprint
    }
}

/// Drops the deciders that another deployment has changed.
fn retain(made: &mut Made, catalog: &Catalog) {
    made.retain(|name, one| match (&one.definition, catalog.aggregate(name.as_str())) {
        (Some(old), Some(new)) => Arc::ptr_eq(old, new),
        (definition, _) => definition.is_none(),
    });
}

/// The decider of an aggregate. Fails with why it cannot be made; without a reason where the aggregate
/// is not declared.
fn get<'a>(
    made: &'a mut Made,
    name: AggregateName,
    definition: Option<Arc<AggregateDefinition>>,
    native: &NativeDeciders,
) -> Result<&'a mut OwnDecider, Option<String>> {
    let one = match made.entry(name) {
        Entry::Occupied(one) => one.into_mut(),
        Entry::Vacant(place) => {
            let one = match native(place.key()) {
                Some(decider) => One { definition: None, decider: OwnDecider::Native(decider) },
                None => {
                    let definition = definition.ok_or(None)?;
                    let decider = ScriptDecider::new(definition.clone()).map_err(|problems| {
                        Some(problems.first().map(ToString::to_string).unwrap_or_default())
                    })?;
                    let decider = OwnDecider::Script(Box::new(decider));
                    One { definition: Some(definition), decider }
                }
            };
            place.insert(one)
        }
    };
    Ok(&mut one.decider)
}

#[cfg(test)]
mod tests {
    use flexcore_definition::{Application, SourceFile};
    use flexcore_domain::Name;

    use super::*;

    const THING: &str = "aggregate: thing
description: A thing.
commands:
  go: { decide: '() => []' }
events:
  gone:
    data: { type: object }
    evolve: '(state) => 1'
    version: 2
    upcast: { 1: '(data) => data' }
";

    /// With this in place of that.
    fn fingerprint(that: &str, this: &str) -> Fingerprint {
        assert!(THING.contains(that), "{that}");
        let text = THING.replacen(that, this, 1);
        let files = vec![SourceFile { path: "a.yaml".to_owned(), text }];
        let application = Application::read(Name::parse("things").unwrap(), files).unwrap();
        Fingerprint::of(application.aggregates.values().next().unwrap())
    }

    #[test]
    fn all_that_folds_a_state_is_in_its_fingerprint_and_nothing_else() {
        let now = fingerprint("thing", "thing");
        for (that, this) in [
            ("(state) => 1", "(state) => 2"),
            ("(data) => data", "(data) => ({})"),
            ("gone:", "left:"),
            ("  gone:\n", "  came: { evolve: '(state) => 1' }\n  gone:\n"),
            ("2\n    upcast: {", "3\n    upcast: { 2: '(data) => data',"),
        ] {
            assert_ne!(fingerprint(that, this), now, "{this}");
        }
        for (that, this) in [
            ("A thing.", "Another thing."),
            ("() => []", "() => [] // nothing"),
            ("go:", "leave:"),
            ("type: object", "type: string"),
        ] {
            assert_eq!(fingerprint(that, this), now, "{this}");
        }
    }
}
