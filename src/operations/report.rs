//! The cluster as it is: members, leader, who owns what, how far the projections are, and the servers.

use std::{collections::BTreeMap, time::Duration};

use flexcore_cluster::{self as cluster, View};
use flexcore_domain::Name;
use flexcore_eventstore::{EventStore, topology};
use flexcore_readmodel::{self as readmodel, ReadModels};
use serde::Serialize;

/// Longest wait for one server: what does not answer is reported as such.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// A report on a cluster.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Members, leader, and who owns what.
    #[serde(flatten)]
    pub view: View,
    /// The progress of each read model.
    pub projections: Vec<Projection>,
    /// Read models of which no version could be made yet, each with the reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unmade: BTreeMap<String, String>,
    /// The broker.
    pub nats: Nats,
    /// The database.
    pub postgres: Health,
}

/// The progress of a read model.
#[derive(Debug, Serialize)]
pub struct Projection {
    /// The read model.
    pub read_model: Name,
    /// Its version.
    pub version: i32,
    /// Says if it is built or serves.
    pub state: readmodel::VersionState,
    /// Commits between it and the end of the log.
    pub lag: u64,
    /// Events that it could not apply.
    pub parked: u64,
    /// Aggregates that it holds back since a break in the log.
    pub held: u64,
    /// Why it cannot be changed or removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The health of a server.
#[derive(Debug, Serialize)]
pub struct Health {
    /// True if it answers.
    pub healthy: bool,
    /// The fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The broker, as the log's stream shows it.
#[derive(Debug, Serialize)]
pub struct Nats {
    /// True if every copy of the log is up to date.
    #[serde(flatten)]
    pub health: Health,
    /// The server that leads the log's stream.
    pub leader: Option<String>,
    /// The servers with further copies.
    pub replicas: Vec<Replica>,
    /// Messages in the log.
    pub messages: u64,
    /// Stream sequence of the log's last message.
    pub last_sequence: u64,
}

/// A further copy of the log.
#[derive(Debug, Serialize)]
pub struct Replica {
    /// The server's name.
    pub name: String,
    /// True if it is up to date.
    pub current: bool,
    /// True if it was not heard of for some time.
    pub offline: bool,
    /// Operations that it lacks.
    pub lag: u64,
}

/// Looks at the cluster. Fails when the broker does not answer at all.
#[boxed::async_recursion]
pub async fn report(
    store: &EventStore,
    read_models: &ReadModels,
) -> Result<Report, cluster::Error> {
    let view = cluster::look(store.client()).await?;
    let rows = async {
        let all = read_models.status().await?;
        Ok::<_, readmodel::Error>((all, read_models.troubles().await?))
    };
    let (nats, rows) = tokio::join!(nats(store), within(rows));
    let (projections, unmade, postgres) = match rows {
        Ok((all, mut unmade)) => {
            unmade.retain(|name, _| all.iter().all(|one| one.read_model.as_str() != name));
            let of = |status: readmodel::Status| Projection {
                lag: status.lag(nats.last_sequence),
                parked: status.parked,
                held: status.held,
                read_model: status.read_model,
                version: status.version,
                state: status.state,
                trouble: status.trouble,
            };
            (all.into_iter().map(of).collect(), unmade, Health::well())
        }
        Err(problem) => (Vec::new(), BTreeMap::new(), Health::ill(problem)),
    };
    Ok(Report { view, projections, unmade, nats, postgres })
}

impl Report {
    /// True if there is a leader, everything has an owner, and both servers and all read models are
    /// well.
    pub fn is_well(&self) -> bool {
        self.view.leader.is_some()
            && !self.view.unowned.is_empty()
            && self.view.unowned.values().all(Vec::is_empty)
            && self.nats.health.healthy
            && self.postgres.healthy
            && self.projections.iter().all(|one| one.trouble.is_none())
            && self.unmade.is_empty()
    }
}

impl Health {
    fn well() -> Self {
        Self { healthy: true, problem: None }
    }

    fn ill(problem: String) -> Self {
        Self { healthy: false, problem: Some(problem) }
    }
}

async fn within<T, E: std::fmt::Display>(
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_MAX, asked).await {
        Ok(answered) => answered.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn nats(store: &EventStore) -> Nats {
    let none =
        |health| Nats { health, leader: None, replicas: Vec::new(), messages: 0, last_sequence: 0 };
    let stream = match within(store.jetstream().get_stream(topology::EVENTS)).await {
        Ok(stream) => stream,
        Err(problem) => return none(Health::ill(problem)),
    };
    let info = stream.cached_info();
    let servers = info.cluster.as_ref();
    let replicas: Vec<Replica> = servers
        .map_or(&[][..], |cluster| cluster.replicas.as_slice())
        .iter()
        .map(|peer| Replica {
            name: peer.name.clone(),
            current: peer.current,
            offline: peer.offline,
            lag: peer.lag.unwrap_or(0),
        })
        .collect();
    let behind: Vec<&str> = replicas
        .iter()
        .filter(|replica| !replica.current || replica.offline)
        .map(|replica| replica.name.as_str())
        .collect();
    let health = match behind.as_slice() {
        [] => Health::well(),
        behind => Health::ill(format!("not up to date: {}", behind.join(", "))),
    };
    Nats {
        health,
        leader: servers.and_then(|cluster| cluster.leader.clone()),
        replicas,
        messages: info.state.messages,
        last_sequence: info.state.last_sequence,
    }
}
