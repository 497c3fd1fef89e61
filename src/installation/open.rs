//! Opening an installation: its servers are connected to and checked. No role runs before it is asked for.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use flexcore_cluster::{self as cluster, Member, Owners};
use flexcore_definition::Catalog;
use flexcore_domain::AggregateKey;
use flexcore_eventstore::{
    self as eventstore, EventStore, Profile, folded::States, plugins::InstalledPlugins,
    sealed::SecretsKey,
};
use flexcore_readmodel::{self as readmodel, ReadModels};
use flexcore_workers::COMMANDS;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::connect::{Broker, RETRY, connection, renewed};

/// Where the servers are.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// The broker's servers.
    pub nats: Broker,
    /// Where each server's monitoring answers.
    pub nats_monitors: Vec<String>,
    /// Copies of each stream.
    pub replicas: usize,
    /// URL of the database.
    pub postgres: String,
    /// The login for queries; `None`: one is made.
    pub postgres_query: Option<String>,
}

/// An installation: the log is open and checked, the read models are migrated, what is deployed and
/// installed is followed.
#[derive(Clone)]
pub struct Installation {
    /// The log.
    pub store: EventStore,
    /// The read models.
    pub read_models: ReadModels,
    /// The deployed applications.
    pub catalog: watch::Receiver<Arc<Catalog>>,
    /// The installed plugins.
    pub plugins: watch::Receiver<Arc<InstalledPlugins>>,
    /// This process in the cluster.
    pub member: Member,
    /// Cancelled when the client of a connection that is not made anew has ended for good: the first one, that
    /// for pages, and that for streams.
    pub ended: [CancellationToken; 3],
}

impl Installation {
    /// Opens once. Fails when a server is away or contradicts the profile.
    #[boxed::async_recursion]
    pub async fn open(
        endpoints: &Endpoints,
        profile: Profile,
        membership: &cluster::Settings,
    ) -> anyhow::Result<Self> {
        if profile == Profile::Relaxed {
            tracing::warn!(
                "profile relaxed: acknowledged commands may be lost in a power cut; use it for \
                 benches and data that may be lost"
            );
        }
        let main = connection(&endpoints.nats).await?;
        let settings = eventstore::Settings {
            profile,
            replicas: endpoints.replicas,
            monitor_urls: endpoints.nats_monitors.clone(),
        };
        let store = EventStore::open(main.client, settings).await?;
        let pages = connection(&endpoints.nats).await?;
        let streams = connection(&endpoints.nats).await?;
        let commands = renewed(&endpoints.nats).await?;
        let store = store.read_over(&pages.client, &streams.client, commands).await?;
        let ended = [main.ended, pages.ended, streams.ended];
        let query_url = endpoints.postgres_query.clone();
        let settings = readmodel::Settings { query_url, ..readmodel::Settings::default() };
        let read_models = ReadModels::connect(&endpoints.postgres, settings).await?;
        if profile == Profile::PowerLoss {
            read_models.check_durable().await?;
        }
        read_models.migrate().await.context("no read models")?;
        read_models.check_login().await.context("no queries")?;
        // All of them have one reader: another state is added here.
        let mut states = States::default();
        let catalog = states.add(eventstore::catalog::fold());
        let plugins = states.add(eventstore::plugins::fold());
        let whole = states.follow(&store).await?;
        let (catalog, plugins) = (catalog.whole(&whole), plugins.whole(&whole));
        let member = Member::join(store.client(), membership.clone()).await?;
        Ok(Self { store, read_models, catalog, plugins, member, ended })
    }

    /// The same, with the key for secrets; `None`: this process has none.
    #[must_use]
    pub fn with_secrets_key(self, key: Option<SecretsKey>) -> Self {
        Self { store: self.store.with_secrets_key(key), ..self }
    }

    /// Opens as soon as the servers are there, saying meanwhile what is missing. Fails when the
    /// token is cancelled first, and when the servers contradict the profile or refuse what is asked:
    /// waiting mends that never.
    #[boxed::async_recursion]
    pub async fn open_when_there(
        endpoints: &Endpoints,
        profile: Profile,
        membership: &cluster::Settings,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let (mut attempts, mut refused) = (0, 0);
        loop {
            let error = match Self::open(endpoints, profile, membership).await {
                Ok(installation) => return Ok(installation),
                Err(error) => error,
            };
            refused = match again(&error) {
                Again::Never => return Err(error),
                Again::Sometimes if refused + 1 == REFUSED_MAX => return Err(error),
                Again::Sometimes => refused + 1,
                Again::WhenThere => 0,
            };
            tracing::warn!(error = format!("{error:#}"), "waiting for the servers");
            tokio::select! {
                () = stop.cancelled() => return Err(error),
                () = tokio::time::sleep(RETRY.jittered(attempts + 1)) => attempts += 1,
            }
        }
    }
}

/// Refusals of Postgres, one after the other, that end a start: processes that start at once change the same
/// entries of its catalogues, and it lets one of them do so.
const REFUSED_MAX: u32 = 5;

/// Whether a start that has failed may succeed if nobody mends anything.
#[derive(Debug, PartialEq, Eq)]
enum Again {
    /// Something is away, or is not ready yet.
    WhenThere,
    /// Something was refused, perhaps for the sake of another process.
    Sometimes,
    Never,
}

fn again(error: &anyhow::Error) -> Again {
    let log = error.downcast_ref().map(eventstore::Error::is_passing);
    let members = error.downcast_ref().map(cluster::Error::is_passing);
    if [log, members].contains(&Some(false)) {
        return Again::Never;
    }
    match error.downcast_ref() {
        Some(readmodel::Error::Misconfigured(_)) => Again::Never,
        Some(readmodel::Error::Database(_)) => Again::Sometimes,
        _ => Again::WhenThere,
    }
}

/// Longest wait for a worker's answer.
const ANSWER_MAX: Duration = Duration::from_secs(15);

impl Installation {
    /// Asks the worker that owns the aggregate's slot; `question` makes subject and headers for the
    /// owner's epoch.
    pub async fn ask(
        &self,
        key: &AggregateKey,
        payload: bytes::Bytes,
        question: impl Fn(u64, Duration) -> (String, async_nats::HeaderMap),
    ) -> anyhow::Result<async_nats::Message> {
        let owners = Owners::of(COMMANDS, self.store.client(), &self.member);
        let number = key.slot().number();
        let asked = owners.ask(number, ANSWER_MAX, payload, question);
        let answer = asked.await.map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
        Ok(answer.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database that refuses what is asked was waited for like a server that is away.
    #[test]
    fn what_a_person_must_mend_is_not_waited_for() {
        let text = || "why".to_owned();
        let told = |error: anyhow::Error| again(&error.context("no read models"));
        let log = |error: eventstore::Error| told(error.into());
        let rows = |error: readmodel::Error| told(error.into());
        let small = cluster::Error::SmallMessages { found: 1, needed: 2 };
        for (found, expected) in [
            (log(eventstore::Error::Misconfigured(text())), Again::Never),
            (log(eventstore::Error::Unavailable(text())), Again::WhenThere),
            (rows(readmodel::Error::Misconfigured(text())), Again::Never),
            (rows(readmodel::Error::Database(text())), Again::Sometimes),
            (rows(readmodel::Error::Unavailable(text())), Again::WhenThere),
            (told(small.into()), Again::Never),
            (told(cluster::Error::Unavailable(text()).into()), Again::WhenThere),
            (told(anyhow::anyhow!("anything else")), Again::WhenThere),
        ] {
            assert_eq!(found, expected);
        }
    }
}
