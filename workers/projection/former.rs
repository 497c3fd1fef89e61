//! Declarations of former deployments, looked up in the log when a version goes by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flexcore_definition::{Catalog, ReadModelDefinition};
use flexcore_domain::Name;
use flexcore_eventstore::{self as eventstore, EventStore, catalog};

/// Declarations of former deployments, by which versions still go that serve until their successors
/// are built.
#[derive(Default)]
pub(super) struct Former {
    found: BTreeMap<String, Arc<ReadModelDefinition>>,
    /// Fingerprints that were looked for, found or not.
    asked: BTreeSet<String>,
}

impl Former {
    /// The catalog with the former deployments that were found.
    pub(super) fn beside(&self, catalog: &Arc<Catalog>) -> Arc<Catalog> {
        if self.found.is_empty() {
            return catalog.clone();
        }
        let mut catalog = Catalog::clone(catalog);
        catalog.declarations.extend(self.found.clone());
        Arc::new(catalog)
    }

    /// Looks up in the log those that were not looked up before; false when there is no such thing.
    /// Fails when the broker is away.
    pub(super) async fn look_up(
        &mut self,
        store: &EventStore,
        unknown: &[(Name, String)],
    ) -> Result<bool, eventstore::Error> {
        let mut wanted: BTreeMap<&Name, BTreeSet<String>> = BTreeMap::new();
        for (application, fingerprint) in unknown {
            if !self.asked.contains(fingerprint) {
                wanted.entry(application).or_default().insert(fingerprint.clone());
            }
        }
        let some = !wanted.is_empty();
        for (application, wanted) in wanted {
            let asked = wanted.clone();
            self.found.extend(catalog::declarations(store, application, wanted).await?);
            self.asked.extend(asked);
        }
        Ok(some)
    }
}
