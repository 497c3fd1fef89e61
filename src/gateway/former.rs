//! Named queries while a changed read model is built: the version in use may lack what the new text of a
//! query reads, and has what the former text reads.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{self, Arc, PoisonError},
    time::Duration,
};

use flexcore_definition::{Catalog, QueryDefinition};
use flexcore_domain::Name;
use flexcore_eventstore::{EventStore, catalog};
use flexcore_readmodel::{Error, ReadModels};
use tokio::sync::Mutex;

/// Longest wait for a former declaration, which is some looks into the log: without it the question is
/// answered as if there were none.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// The read models that serve, each with its fingerprint.
pub(crate) type Fingerprints = BTreeMap<Name, String>;

/// What was found last, by application. Of each one query is looked for at a time, whoever asks: one that is
/// deployed again and again has only its own wait.
#[derive(Default)]
pub(crate) struct Former(sync::Mutex<HashMap<Name, Queries>>);

/// Those of one application, by name.
type Queries = Arc<Mutex<HashMap<Name, Found>>>;

/// A query as it was declared over what serves.
struct Found {
    /// Version of its application when it was looked for.
    deployed: u32,
    serving: Fingerprints,
    /// `None`: it never was.
    query: Option<Arc<QueryDefinition>>,
}

/// What serves in place of a read model that is declared beside the query; `None`: all serve as declared.
pub(crate) async fn serving(
    rows: ReadModels,
    query: &QueryDefinition,
) -> Result<Option<Fingerprints>, Error> {
    let serving = rows.serving().await?.into_iter();
    let serving: Fingerprints = serving.map(|it| (it.read_model, it.fingerprint)).collect();
    let mut read = query.reads.iter().zip(&query.fingerprints);
    let is_declared = read.all(|(name, fingerprint)| serving.get(name) == Some(fingerprint));
    Ok((!is_declared).then_some(serving))
}

impl Former {
    /// The query as it was declared last over what serves, from the log of deployments. `None`: it never
    /// was, or the broker is away.
    pub(crate) async fn query(
        &self,
        store: &EventStore,
        deployed: &Catalog,
        query: &Name,
        serving: Fingerprints,
    ) -> Option<Arc<QueryDefinition>> {
        let look = self.look(store, deployed, query, serving);
        tokio::time::timeout(LOOK_MAX, look).await.ok().flatten()
    }

    async fn look(
        &self,
        store: &EventStore,
        deployed: &Catalog,
        query: &Name,
        serving: Fingerprints,
    ) -> Option<Arc<QueryDefinition>> {
        let mut applications = deployed.applications.values();
        let application = applications.find(|app| app.queries.contains_key(query))?;
        let deployed = application.version;
        let queries = self.of(&application.name);
        let mut all = queries.lock().await;
        if let Some(found) = all.get(query)
            && (found.deployed, &found.serving) == (deployed, &serving)
        {
            return found.query.clone();
        }
        let former = catalog::former_query(store, &application.name, query, &serving).await.ok()?;
        all.insert(query.clone(), Found { deployed, serving, query: former.clone() });
        former
    }

    fn of(&self, application: &Name) -> Queries {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(application.clone()).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A look into the log of one application's deployments held up what was known of all others.
    #[tokio::test]
    async fn a_look_for_one_application_holds_up_no_other() {
        let (former, name) = (Former::default(), |text| Name::parse(text).unwrap());
        let looking = former.of(&name("hostile"));
        let _looks = looking.lock().await;
        assert!(former.of(&name("hostile")).try_lock().is_err());
        assert!(former.of(&name("calm")).try_lock().is_ok());
    }
}
