//! The deciders of one lane: JavaScript from the catalog, Rust where it is registered. Made when
//! first used, kept until another deployment changes them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use flexcore_definition::{AggregateDefinition, Catalog};
use flexcore_domain::{
    AggregateKey, AggregateName, Command, Context, Decider, Decision, Event, Hash, Refusal, State,
};
use flexcore_script::{
    ScriptDecider,
    threads::{Of, Scripts},
};
use futures::future::BoxFuture;

/// Deciders written in Rust: a fresh one for an aggregate, or `None` when JavaScript decides.
pub type NativeDeciders = Arc<dyn Fn(&AggregateName) -> Option<Box<dyn Decider>> + Send + Sync>;

/// A decider that answers later, such as a plugin's. The caller bounds its time.
pub type LaterDecider =
    Arc<dyn Fn(ToDecide) -> BoxFuture<'static, Result<Decision, NoDecision>> + Send + Sync>;

/// The aggregates' deciders that answer later; `None`: this aggregate's is called on the lane's thread.
/// Their events are folded there in any case.
pub type LaterDeciders = Arc<dyn Fn(&AggregateName) -> Option<LaterDecider> + Send + Sync>;

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
}

/// Fingerprint of deciders in Rust: their snapshots are void with another version of FlexCore.
const NATIVE_FINGERPRINT: &str = concat!("rust-", env!("CARGO_PKG_VERSION"));

/// The deciders of one lane, as the lane sees them. They are called on its script thread.
pub(super) struct Deciders {
    catalog: Arc<Catalog>,
    native: NativeDeciders,
    later: LaterDeciders,
    scripts: Scripts<Made>,
    /// The thread's deciders are those of another catalog.
    outdated: bool,
    /// Of the aggregates that are declared, once they are asked for.
    fingerprints: HashMap<AggregateName, String>,
}

/// The deciders that a script thread has made.
pub(super) type Made = HashMap<AggregateName, One>;

pub(super) struct One {
    /// `None`: written in Rust.
    definition: Option<Arc<AggregateDefinition>>,
    decider: Box<dyn Decider>,
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
        Self { catalog, native, later, scripts, outdated: false, fingerprints: HashMap::new() }
    }

    /// True if the aggregate's decider is asked, and answers later.
    pub(super) fn answers_later(&self, name: &AggregateName) -> bool {
        (self.later)(name).is_some()
    }

    /// Goes over to another catalog. Unchanged deciders are kept.
    pub(super) fn follow(&mut self, catalog: Arc<Catalog>) {
        self.outdated = true;
        self.fingerprints.clear();
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
        self.call(&command.key, move |decider| decider.decide(&state, &name, &payload, &context))
            .await
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
            let after = decider.evolve(&state, &events)?;
            Ok((events, after))
        })
        .await
    }

    async fn call<T: Send + 'static>(
        &mut self,
        key: &AggregateKey,
        call: impl FnOnce(&mut dyn Decider) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Fault> {
        let definition = self.catalog.aggregate(key.aggregate().as_str()).cloned();
        let of = Of { key: key.clone(), definition: definition.clone() };
        let (name, native) = (key.aggregate().clone(), self.native.clone());
        let news = std::mem::take(&mut self.outdated).then(|| self.catalog.clone());
        let job = move |made: &mut Made| {
            if let Some(catalog) = news {
                retain(made, &catalog);
            }
            let decider = get(made, name, definition, &native)?;
            Ok(call(decider).map_err(Fault::Refused))
        };
        match self.scripts.call(of, job).await {
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

    /// The mark that a snapshot must carry to be used: it names the functions that folded it.
    pub(super) fn fingerprint(&mut self, name: &AggregateName) -> String {
        if let Some(known) = self.fingerprints.get(name) {
            return known.clone();
        }
        let Some(definition) = self.catalog.aggregate(name.as_str()) else {
            return NATIVE_FINGERPRINT.to_owned();
        };
        let fingerprint = of_events(definition);
        self.fingerprints.insert(name.clone(), fingerprint.clone());
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
) -> Result<&'a mut dyn Decider, Option<String>> {
    let one = match made.entry(name) {
        Entry::Occupied(one) => one.into_mut(),
        Entry::Vacant(place) => {
            let one = match native(place.key()) {
                Some(decider) => One { definition: None, decider },
                None => {
                    let definition = definition.ok_or(None)?;
                    let decider = ScriptDecider::new(definition.clone()).map_err(|problems| {
                        Some(problems.first().map(ToString::to_string).unwrap_or_default())
                    })?;
                    One { definition: Some(definition), decider: Box::new(decider) }
                }
            };
            place.insert(one)
        }
    };
    Ok(one.decider.as_mut())
}

/// SHA-256 over what folds events into a state.
pub(super) fn of_events(definition: &AggregateDefinition) -> String {
    let mut hash = Hash::ZERO;
    for (name, event) in &definition.events {
        hash = Hash::chain(&hash, format!("{name} {}", event.version).as_bytes());
        hash = Hash::chain(&hash, event.evolve.source.as_bytes());
        for upcast in event.upcast.values() {
            hash = Hash::chain(&hash, upcast.source.as_bytes());
        }
    }
    hash.to_string()
}
