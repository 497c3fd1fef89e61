//! The catalog: deployed applications, stored in the log and followed by every running process.
//!
//! A process reads what is in force, not what was: the last deployment of each application, and each
//! that follows. Former ones are read where a read model still goes by one ([`declarations`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use flexcore_definition::{Application, Catalog, QueryDefinition, ReadModelDefinition, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit, Event,
    EventName, Name, Provenance, Tenant,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Aggregates, Error, EventStore, Expected, Recorded,
    folded::{Fold, States},
    plugins, topology, unavailable,
};

/// The aggregate of that tenant whose commits are the deployments: no application may have one of this
/// name, or its commands would write to the same subjects.
pub const AGGREGATE: &str = "application";
/// The aggregates of that tenant to which the platform itself writes: no application may have one of these
/// names.
pub const RESERVED: [&str; 2] = [AGGREGATE, plugins::AGGREGATE];
const DEPLOYED: &str = "deployed";
/// Most applications that are listed as unreadable: looking up what was in force takes a question each.
/// Of more the log of the process tells.
const UNREADABLE_MAX: usize = 1_000;
/// Most deployments in which a query's former declaration is looked for: a client waits for it, and
/// what serves is seldom older than the deployment before.
const FORMER_MAX: usize = 32;

/// Data of the event `application.deployed`.
#[derive(Serialize, Deserialize)]
struct Deployed {
    version: u32,
    files: Vec<SourceFile>,
}

/// An application as it is deployed, and where its next deployment goes.
pub struct Deployment {
    /// The application; `None`: never deployed.
    pub application: Option<Application>,
    /// What its subject ends with.
    pub expected: Expected,
    /// Stream sequence of the last deployment of any application when this was read; 0: none.
    last: u64,
    /// When that was deployed, in milliseconds since 1970-01-01 UTC.
    pub time_ms: i64,
}

impl Deployment {
    /// The application's version; 0: never deployed.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.application.as_ref().map_or(0, |application| application.version)
    }
}

/// True if the platform alone writes to it. No command goes to such an aggregate, also where an application
/// has one of this name from before it was reserved.
#[must_use]
pub fn is_reserved(key: &AggregateKey) -> bool {
    key.tenant().as_str() == Tenant::PLATFORM && RESERVED.contains(&key.aggregate().as_str())
}

fn tenant() -> Tenant {
    Tenant::parse(Tenant::PLATFORM).expect("BUG: a valid tenant")
}

fn aggregate() -> AggregateName {
    AggregateName::parse(AGGREGATE).expect("BUG: a valid aggregate")
}

/// Those whose commits are deployments.
fn aggregates() -> Aggregates {
    Aggregates { tenant: Some(tenant()), name: aggregate() }
}

fn key(name: &Name) -> AggregateKey {
    let id = AggregateId::parse(name.as_str()).expect("BUG: every name is an id");
    AggregateKey::new(tenant(), aggregate(), id)
}

/// Stream sequence of the last deployment of any application; 0: none.
async fn last(store: &EventStore) -> Result<u64, Error> {
    store.leaders.last_on(topology::EVENTS, &aggregates().subjects(), 0).await.map_err(Error::from)
}

/// The application as it is deployed now. Fails when the broker is away or the stored files no
/// longer read.
#[boxed::async_recursion]
pub async fn deployment(store: &EventStore, name: &Name) -> Result<Deployment, Error> {
    // First: what is deployed after this was read makes `deploy` fail.
    let last = last(store).await?;
    let Some(recorded) = store.last_deployed(&key(name)).await? else {
        let (expected, time_ms) = (Expected::default(), i64::MIN);
        return Ok(Deployment { application: None, expected, last, time_ms });
    };
    let expected = Expected { sequence: recorded.sequence, hash: recorded.hash };
    let time_ms = recorded.commit.time_ms;
    Ok(Deployment { application: Some(read(&recorded)?), expected, last, time_ms })
}

/// Records a version of an application. Returns its version number. Fails with
/// [`Error::Conflict`] when another deployment came first, also of another application: it may have
/// taken a name that this one declares. Fails with [`Error::TooLarge`] when its files take more than
/// one message.
#[boxed::async_recursion]
pub async fn deploy(
    store: &EventStore,
    application: &Application,
    before: &Deployment,
    actor: &ActorName,
    now_ms: i64,
) -> Result<u32, Error> {
    let version = before.version() + 1;
    let deployed = Deployed { version, files: application.files.clone() };
    let data = serde_json::value::to_raw_value(&deployed).map_err(unavailable)?;
    let commit = Commit {
        key: key(&application.name),
        command_id: CommandId::parse(&format!("deploy-{version}")).expect("BUG: a valid id"),
        command_hash: CommandHash::of(DEPLOYED, data.get()),
        provenance: Provenance::of(actor.clone()),
        // As with every aggregate, hosts' clocks differ.
        time_ms: now_ms.max(before.time_ms),
        events: vec![Event {
            event: EventName::parse(DEPLOYED).expect("BUG: a valid event name"),
            version: u64::from(version),
            schema_version: 1,
            data,
        }],
    };
    let subjects = aggregates().subjects();
    let appended = store.append_among(&commit, &subjects, before.last, &before.expected.hash).await;
    appended.map_err(|error| match error {
        Error::TooLarge(why) => Error::TooLarge(format!(
            "the application's files are one message of the log: {why}; divide the application"
        )),
        other => other,
    })?;
    Ok(version)
}

/// The application that a deployment holds. Fails when this executable cannot read it. Its reader is
/// kept from ending the task that follows everybody's deployments.
fn read(recorded: &Recorded) -> Result<Application, Error> {
    let caught = catch_unwind(AssertUnwindSafe(|| read_files(recorded)));
    caught.unwrap_or_else(|_| {
        Err(Error::Corrupt {
            subject: crate::subject(&recorded.commit.key),
            sequence: recorded.sequence,
            reason: "reading it panicked".to_owned(),
        })
    })
}

fn read_files(recorded: &Recorded) -> Result<Application, Error> {
    let corrupt = |reason: String| Error::Corrupt {
        subject: crate::subject(&recorded.commit.key),
        sequence: recorded.sequence,
        reason,
    };
    let event = recorded.commit.events.last().ok_or_else(|| corrupt("no event".to_owned()))?;
    let deployed: Deployed =
        serde_json::from_str(event.data.get()).map_err(|error| corrupt(error.to_string()))?;
    let name = Name::parse(recorded.commit.key.id().as_str())
        .map_err(|error| corrupt(error.to_string()))?;
    let mut application = Application::read(name, deployed.files).map_err(|problems| {
        corrupt(problems.first().map(ToString::to_string).unwrap_or_default())
    })?;
    application.version = deployed.version;
    Ok(application)
}

/// The application's read models with these fingerprints, as it declares them or did: for versions of
/// read models that still go by former declarations. Deployments are read from the last one back,
/// until all are found. Fails when the broker is away.
#[boxed::async_recursion]
pub async fn declarations(
    store: &EventStore,
    name: &Name,
    mut wanted: BTreeSet<String>,
) -> Result<BTreeMap<String, Arc<ReadModelDefinition>>, Error> {
    let mut found = BTreeMap::new();
    let take = |application: Application| {
        for model in application.read_models.into_values() {
            if wanted.remove(&model.fingerprint) {
                found.insert(model.fingerprint.clone(), model);
            }
        }
        wanted.is_empty().then_some(())
    };
    find_back(store, name, take).await?;
    Ok(found)
}

/// The application's query of this name as it was declared last over read models that serve: they
/// are given by name, each with its fingerprint. `None`: in none of the last 32 deployments. Fails when
/// the broker is away.
#[boxed::async_recursion]
pub async fn former_query(
    store: &EventStore,
    name: &Name,
    query: &Name,
    serving: &BTreeMap<Name, String>,
) -> Result<Option<Arc<QueryDefinition>>, Error> {
    let fits = |query: &Arc<QueryDefinition>| {
        let mut read = query.reads.iter().zip(&query.fingerprints);
        read.all(|(name, fingerprint)| serving.get(name) == Some(fingerprint))
    };
    let mut left = FORMER_MAX;
    let take = |mut application: Application| {
        left -= 1;
        let former = application.queries.remove(query).filter(fits);
        (former.is_some() || left == 0).then_some(former)
    };
    Ok(find_back(store, name, take).await?.flatten())
}

/// Goes through the deployments of an application that can be read, from the last one back, until one
/// gives something.
async fn find_back<T>(
    store: &EventStore,
    name: &Name,
    mut of: impl FnMut(Application) -> Option<T> + Send,
) -> Result<Option<T>, Error> {
    let key = key(name);
    let end = last(store).await? + 1;
    let mut next = store.deployed_before(&key, end).await?;
    while let Some(recorded) = next {
        if let Some(found) = read(&recorded).ok().and_then(&mut of) {
            return Ok(Some(found));
        }
        next = store.deployed_before(&key, recorded.sequence).await?;
    }
    Ok(None)
}

/// The catalog as a state that a process follows: what is deployed now, and every change after it. A
/// stored version that this executable cannot read is logged and listed as such, and the one before it
/// stays in force.
#[must_use]
pub fn fold() -> Fold<Catalog> {
    Fold {
        name: "the deployed applications",
        of: aggregates(),
        put,
        unreadable,
        complete: |store, catalog| Box::pin(former(store, catalog)),
    }
}

/// Follows the deployments alone, for tools. Ends when every receiver is gone. Fails when the broker is
/// away.
#[boxed::async_recursion]
pub async fn watch(store: &EventStore) -> Result<watch::Receiver<Arc<Catalog>>, Error> {
    let mut states = States::default();
    let catalog = states.add(fold());
    Ok(catalog.whole(&states.follow(store).await?))
}

fn put(catalog: &mut Catalog, recorded: &Recorded) {
    match read(recorded) {
        Ok(application) => {
            tracing::info!(
                application = %application.name,
                version = application.version,
                "application in force"
            );
            is_unreadable(&application.name, false);
            catalog.unreadable.remove(&application.name);
            catalog.put(application);
        }
        Err(error) => unreadable(catalog, &recorded.commit.key, error.to_string()),
    }
}

/// A deployment that cannot be read leaves the one before it in force.
fn unreadable(catalog: &mut Catalog, key: &AggregateKey, reason: String) {
    // Any other id was not written by a deployment.
    let Ok(name) = Name::parse(key.id().as_str()) else { return };
    tracing::error!(
        application = %name,
        reason,
        "a deployed version cannot be read here; the one before it stays in force"
    );
    if catalog.unreadable.len() < UNREADABLE_MAX || catalog.unreadable.contains_key(&name) {
        is_unreadable(&name, true);
        catalog.unreadable.insert(name, reason);
    }
}

/// Looks up which deployment is in force of applications whose last one cannot be read, where that is
/// not known: in a process that has just started.
async fn former(store: &EventStore, catalog: &mut Catalog) -> Result<(), Error> {
    let names = catalog.unreadable.keys().filter(|name| !catalog.applications.contains_key(*name));
    for name in names.cloned().collect::<Vec<_>>() {
        if let Some(application) = find_back(store, &name, Some).await? {
            catalog.put(application);
        }
    }
    Ok(())
}

fn is_unreadable(name: &Name, is: bool) {
    metrics::gauge!("flexcore_deployment_unreadable", "application" => name.to_string())
        .set(f64::from(u8::from(is)));
}
