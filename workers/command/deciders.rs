//! The deciders of one lane: JavaScript from the catalog, Rust where it is registered. Made when
//! first used, kept until another deployment changes them.

use std::{collections::HashMap, sync::Arc};

use flexcore_domain::{
    AggregateName, Catalog, Decider, Hash, Outcome, definition::AggregateDefinition,
};
use flexcore_script::ScriptDecider;

/// Deciders written in Rust: a fresh one for an aggregate, or `None` when JavaScript decides.
pub type NativeDeciders = Arc<dyn Fn(&AggregateName) -> Option<Box<dyn Decider>> + Send + Sync>;

/// Fingerprint of deciders in Rust: their snapshots are void with another version of FlexCore.
const NATIVE_FINGERPRINT: &str = concat!("rust-", env!("CARGO_PKG_VERSION"));

/// The deciders of one lane.
pub(super) struct Deciders {
    catalog: Arc<Catalog>,
    native: NativeDeciders,
    made: HashMap<AggregateName, Made>,
    /// Of the aggregates that are declared, once they are asked for.
    fingerprints: HashMap<AggregateName, String>,
}

struct Made {
    /// `None`: written in Rust.
    definition: Option<Arc<AggregateDefinition>>,
    decider: Box<dyn Decider>,
}

impl Deciders {
    /// Deciders of this catalog. Those in Rust go first.
    #[must_use]
    pub(super) fn new(catalog: Arc<Catalog>, native: NativeDeciders) -> Self {
        Self { catalog, native, made: HashMap::new(), fingerprints: HashMap::new() }
    }

    /// Goes over to another catalog. Unchanged deciders are kept.
    pub(super) fn follow(&mut self, catalog: Arc<Catalog>) {
        self.made.retain(|name, made| match (&made.definition, catalog.aggregate(name.as_str())) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (definition, _) => definition.is_none(),
        });
        self.fingerprints.clear();
        self.catalog = catalog;
    }

    /// The decider of an aggregate, or the answer when there is none that works.
    pub(super) fn get(&mut self, name: &AggregateName) -> Result<&mut dyn Decider, Outcome> {
        if !self.made.contains_key(name) {
            let made = self.make(name)?;
            self.made.insert(name.clone(), made);
        }
        let made = self.made.get_mut(name).expect("BUG: just inserted");
        Ok(made.decider.as_mut())
    }

    fn make(&self, name: &AggregateName) -> Result<Made, Outcome> {
        if let Some(decider) = (self.native)(name) {
            return Ok(Made { definition: None, decider });
        }
        let definition = self.catalog.aggregate(name.as_str()).ok_or_else(|| {
            let apps = self.catalog.applications.values();
            let known = apps.flat_map(|app| app.aggregates.keys()).map(ToString::to_string);
            Outcome::UnknownAggregate { known: known.collect() }
        })?;
        let decider = ScriptDecider::new(definition.clone()).map_err(|problems| {
            let message = problems.first().map(ToString::to_string).unwrap_or_default();
            Outcome::Faulty { message }
        })?;
        Ok(Made { definition: Some(definition.clone()), decider: Box::new(decider) })
    }

    /// What a snapshot must carry to be used: it names the functions that folded it.
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
