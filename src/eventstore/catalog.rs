//! The catalog: deployed applications, stored in the log and followed by every running process.

use std::{sync::Arc, time::Duration};

use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, Application, Catalog, CommandHash,
    CommandId, Commit, Event, EventName, Name, Tenant, definition::SourceFile,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Error, EventStore, Expected, Filter, Recorded, topology, unavailable};

/// The platform's own tenant, to which applications belong: a token of it sees the cluster.
pub const TENANT: &str = "flexcore";
/// Subjects of deployments.
pub(crate) const SUBJECTS: &str = "evt.*.flexcore.application.*";
/// The aggregate of that tenant whose commits are the deployments: no application may have one of this
/// name, or its commands would write to the same subjects.
pub const AGGREGATE: &str = "application";
const DEPLOYED: &str = "deployed";

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
}

fn key(name: &Name) -> AggregateKey {
    AggregateKey::new(
        Tenant::parse(TENANT).expect("BUG: a valid tenant"),
        AggregateName::parse(AGGREGATE).expect("BUG: a valid aggregate"),
        AggregateId::parse(name.as_str()).expect("BUG: every name is an id"),
    )
}

/// The application as it is deployed now. Fails when the broker is away or the stored files no
/// longer read.
pub async fn deployment(store: &EventStore, name: &Name) -> Result<Deployment, Error> {
    let commits = store.load(&key(name), 0).await?;
    let Some(last) = commits.last() else {
        return Ok(Deployment { application: None, expected: Expected::default() });
    };
    let expected = Expected { sequence: last.sequence, hash: last.hash };
    Ok(Deployment { application: Some(read(last)?), expected })
}

/// Records a version of an application. Returns its version number. Fails with
/// [`Error::Conflict`] when another deployment came first, and with [`Error::TooLarge`] when its files
/// take more than one message.
pub async fn deploy(
    store: &EventStore,
    application: &Application,
    before: &Deployment,
    actor: &ActorName,
    now_ms: i64,
) -> Result<u32, Error> {
    let version = before.application.as_ref().map_or(0, |application| application.version) + 1;
    let deployed = Deployed { version, files: application.files.clone() };
    let data = serde_json::value::to_raw_value(&deployed).map_err(unavailable)?;
    let commit = Commit {
        key: key(&application.name),
        command_id: CommandId::parse(&format!("deploy-{version}")).expect("BUG: a valid id"),
        command_hash: CommandHash::of(DEPLOYED, data.get()),
        actor: actor.clone(),
        correlation_id: None,
        causation_id: None,
        traceparent: None,
        time_ms: now_ms,
        events: vec![Event {
            event: EventName::parse(DEPLOYED).expect("BUG: a valid event name"),
            version: u64::from(version),
            schema_version: 1,
            data,
        }],
    };
    store.append(&commit, before.expected).await.map_err(|error| match error {
        Error::TooLarge(why) => Error::TooLarge(format!(
            "the application's files are one message of the log: {why}; divide the application"
        )),
        other => other,
    })?;
    Ok(version)
}

fn read(recorded: &Recorded) -> Result<Application, Error> {
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

/// How long one wait for a deployment lasts before the task looks whether anybody still follows.
const WAIT: Duration = Duration::from_secs(5);

/// Follows the deployments: what is deployed now, and every change after it. Ends when every
/// receiver is gone. A stored version that this executable cannot read is logged and left out.
/// Fails when the broker is away.
pub async fn watch(store: &EventStore) -> Result<watch::Receiver<Arc<Catalog>>, Error> {
    let mut subscription = store.subscribe(Filter::Applications, 1).await?;
    let mut catalog = Catalog::default();
    // Not as many as there are where it is read: that replica may be behind.
    let last = store.last_on(topology::EVENTS, SUBJECTS, 0).await?;
    while subscription.read_to() < last {
        let batch = subscription.next_batch(100, crate::REQUEST_TIMEOUT).await?;
        if batch.is_empty() {
            return Err(unavailable("the deployed applications cannot be read in time"));
        }
        put(&mut catalog, &batch);
    }
    let (sender, receiver) = watch::channel(Arc::new(catalog.clone()));
    tokio::spawn(async move {
        while !sender.is_closed() {
            match subscription.next_batch(100, WAIT).await {
                Ok(batch) if batch.is_empty() => {}
                Ok(batch) => {
                    put(&mut catalog, &batch);
                    sender.send_replace(Arc::new(catalog.clone()));
                }
                Err(error) => {
                    tracing::error!(%error, "deployments are not followed any more");
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

fn put(catalog: &mut Catalog, batch: &[Recorded]) {
    for recorded in batch {
        match read(recorded) {
            Ok(application) => {
                tracing::info!(
                    application = %application.name,
                    version = application.version,
                    "application in force"
                );
                catalog.put(application);
            }
            Err(error) => tracing::error!(%error, "a deployed application cannot be read"),
        }
    }
}
