//! Collects evidence at the end: the log as the broker holds it, outcomes, rows, checkpoints.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
};
use flexcore_domain::{AggregateKey, Commit as Envelope, Hash, command::header};
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, Row as _};

use crate::history::HOT;

/// Messages of the log that are read at once.
const PAGE: usize = 2_000;
/// A stream that gives nothing for this long, before its end, has lost it.
const NOTHING_FOR: Duration = Duration::from_secs(15);
/// Postgres that does not answer within this time is looked at later.
const POSTGRES_WAIT: Duration = Duration::from_secs(5);

/// A commit in the log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Commit {
    pub(crate) sequence: u64,
    /// When the broker stored it, in milliseconds since 1970.
    pub(crate) stored_ms: u64,
    pub(crate) slot: i16,
    pub(crate) tenant: String,
    pub(crate) account: String,
    /// The command's id.
    pub(crate) key: String,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) changes: Vec<Change>,
    /// It carries the hash that its predecessor and its body give.
    pub(crate) chained: bool,
}

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    pub(crate) event: String,
    pub(crate) branch: String,
    pub(crate) amount: i64,
    pub(crate) tag: String,
}

/// The log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Of accounts, in order.
    pub(crate) commits: Vec<Commit>,
    /// Stream sequences of everything, in the order read.
    pub(crate) sequences: Vec<u64>,
    /// Messages that are no commit.
    pub(crate) unreadable: Vec<String>,
}

/// A row of `balances`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    pub(crate) branch: String,
    pub(crate) changes: i64,
    pub(crate) deposited: i64,
    pub(crate) withdrawn: i64,
    pub(crate) version: i64,
}

/// A row of `branches`: accounts, changes, deposited, withdrawn.
pub(crate) type Branch = [i64; 4];

/// Every row of the two read models, by tenant and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) balances: BTreeMap<(String, String), Row>,
    pub(crate) branches: BTreeMap<(String, String), Branch>,
}

/// Rows and checkpoints as one transaction sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// By version of a read model and slot: position and epoch.
    pub(crate) checkpoints: BTreeMap<(i64, i16), (i64, i64)>,
    /// The version of `balances` that serves.
    pub(crate) serving: i64,
    /// Only hot accounts and those of this generation were looked at.
    pub(crate) generation: u64,
    /// By tenant and account.
    pub(crate) versions: BTreeMap<(String, String), u64>,
}

/// Reads the whole log, over a consumer of its own.
pub(crate) async fn log(client: &async_nats::Client) -> Result<Log, String> {
    let mut log = Log::default();
    let mut links: BTreeMap<String, Hash> = BTreeMap::new();
    each(client, "FLEX_EVENTS", |message, sequence, stored_ms| {
        log.sequences.push(sequence);
        let subject = message.subject.as_str();
        let key = subject.strip_prefix("evt.").and_then(AggregateKey::from_subject_part);
        let read = key.ok_or("strange subject".to_owned()).and_then(|key| {
            Envelope::decode(key, &message.payload).map_err(|error| error.to_string())
        });
        let commit = match read {
            Ok(commit) => commit,
            Err(error) => return log.unreadable.push(format!("{sequence} of {subject}: {error}")),
        };
        let link = links.entry(subject.to_owned()).or_insert(Hash::ZERO);
        *link = Hash::chain(link, &message.payload);
        let carried = message.headers.as_ref().and_then(|headers| headers.get(header::HASH));
        let chained = carried.is_some_and(|hash| hash.as_str() == link.to_string());
        if commit.key.aggregate().as_str() == "account" {
            log.commits.push(of(&commit, sequence, stored_ms, chained));
        }
    })
    .await?;
    Ok(log)
}

impl Change {
    /// An event of this name, with this data.
    pub(crate) fn of(event: &str, data: &Value) -> Self {
        let text = |field: &str| data[field].as_str().unwrap_or_default().to_owned();
        let amount = data["amount"].as_i64().unwrap_or(0);
        Self { event: event.to_owned(), branch: text("branch"), amount, tag: text("tag") }
    }
}

fn of(commit: &Envelope, sequence: u64, stored_ms: u64, chained: bool) -> Commit {
    let changes = commit.events.iter().map(|event| {
        let data: Value = serde_json::from_str(event.data.get()).unwrap_or_default();
        Change::of(event.event.as_str(), &data)
    });
    Commit {
        sequence,
        stored_ms,
        slot: i16::try_from(commit.key.slot().number()).unwrap(),
        tenant: commit.key.tenant().to_string(),
        account: commit.key.id().as_str().to_owned(),
        key: commit.command_id.to_string(),
        first: commit.version_before() + 1,
        last: commit.version(),
        changes: changes.collect(),
        chained,
    }
}

/// Hands over every message of a stream with its sequence and time, each once.
pub(crate) async fn each(
    client: &async_nats::Client,
    stream: &str,
    mut take: impl FnMut(&async_nats::Message, u64, u64),
) -> Result<(), String> {
    let (mut came_at, mut reached) = (Instant::now(), 0);
    loop {
        let before = reached;
        let read = read(client, stream, &mut reached, &mut take).await;
        if reached > before {
            came_at = Instant::now();
        }
        match read {
            Ok(last) if reached >= last => return Ok(()),
            _ if came_at.elapsed() < NOTHING_FOR => {}
            Ok(last) => return Err(format!("{stream}: nothing comes after {reached} of {last}")),
            Err(error) => return Err(format!("{stream}: after {reached}: {error}")),
        }
        // A consumer goes with its broker, and may be on one that does not have the end yet.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Reads on after the message that was reached, until nothing comes for a while. Gives the last that
/// the stream's leader had.
async fn read(
    client: &async_nats::Client,
    stream: &str,
    reached: &mut u64,
    take: &mut impl FnMut(&async_nats::Message, u64, u64),
) -> Result<u64, async_nats::Error> {
    let stream = jetstream::new(client.clone()).get_stream(stream).await?;
    let last = stream.cached_info().state.last_sequence;
    let config = pull::Config {
        ack_policy: jetstream::consumer::AckPolicy::None,
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: *reached + 1 },
        inactive_threshold: Duration::from_secs(30),
        num_replicas: 1,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer = stream.create_consumer(config).await?;
    while *reached < last {
        let page = consumer.fetch().max_messages(PAGE).expires(Duration::from_secs(5));
        let (mut messages, before) = (page.messages().await?, *reached);
        while let Some(message) = messages.next().await {
            let message = message?;
            let info = message.info()?;
            let stored = info.published.unix_timestamp_nanos() / 1_000_000;
            *reached = info.stream_sequence;
            take(&message.message, *reached, u64::try_from(stored).unwrap());
        }
        if *reached == before {
            break;
        }
    }
    // Otherwise it goes by itself, after a while.
    drop(stream.delete_consumer(&consumer.cached_info().name).await);
    Ok(last)
}

/// A connection to Postgres, past row-level security.
pub(crate) async fn postgres(url: &str) -> Result<PgConnection, String> {
    let connecting = tokio::time::timeout(POSTGRES_WAIT, PgConnection::connect(url)).await;
    connecting.map_err(|_| "no connection".to_owned())?.map_err(|error| error.to_string())
}

/// Every row.
pub(crate) async fn rows(postgres: &mut PgConnection) -> Result<Rows, sqlx::Error> {
    // A row that an event is missing from may lack a value: then it is wrong, and no riddle.
    let balances = "select tenant, account, coalesce(branch, ''), coalesce(changes, -1), \
                    coalesce(deposited, -1), coalesce(withdrawn, -1), coalesce(version, -1) \
                    from rm.balances";
    let branches = "select tenant, branch, coalesce(accounts, -1), coalesce(changes, -1), \
                    coalesce(deposited, -1), coalesce(withdrawn, -1) from rm.branches";
    let mut rows = Rows::default();
    for row in sqlx::query(balances).fetch_all(&mut *postgres).await? {
        let (changes, deposited) = (row.try_get(3)?, row.try_get(4)?);
        let (branch, withdrawn, version) = (row.try_get(2)?, row.try_get(5)?, row.try_get(6)?);
        let row_of = Row { branch, changes, deposited, withdrawn, version };
        rows.balances.insert((row.try_get(0)?, row.try_get(1)?), row_of);
    }
    for row in sqlx::query(branches).fetch_all(&mut *postgres).await? {
        let sums = [row.try_get(2)?, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?];
        rows.branches.insert((row.try_get(0)?, row.try_get(1)?), sums);
    }
    Ok(rows)
}

/// Rows of one generation's accounts, and all checkpoints, as one transaction sees them.
pub(crate) async fn snapshot(
    postgres: &mut PgConnection,
    generation: u64,
) -> Result<Snapshot, sqlx::Error> {
    let mut snapshot = Snapshot { generation, ..Snapshot::default() };
    let mut transaction =
        postgres.begin_with("begin isolation level repeatable read, read only").await?;
    let serving = "select id from flexcore.projections where read_model = 'balances' \
                   and state = 'serving'";
    if let Some(row) = sqlx::query(serving).fetch_optional(&mut *transaction).await? {
        snapshot.serving = row.try_get(0)?;
    }
    // A portion's checkpoint moves in one row, for all its slots.
    let checkpoints = "select c.projection_id, c.slot, \
                              max(c.position) over (partition by p.id, c.slot % p.portions), c.epoch \
                       from flexcore.checkpoints c \
                       join flexcore.projections p on p.id = c.projection_id";
    for row in sqlx::query(checkpoints).fetch_all(&mut *transaction).await? {
        let place = (row.try_get(2)?, row.try_get(3)?);
        snapshot.checkpoints.insert((row.try_get(0)?, row.try_get(1)?), place);
    }
    let versions = "select tenant, account, version from rm.balances \
                    where account like $1 or account = $2";
    let pattern = format!("%-g{generation}");
    for row in sqlx::query(versions).bind(pattern).bind(HOT).fetch_all(&mut *transaction).await? {
        let version: i64 = row.try_get(2)?;
        snapshot.versions.insert((row.try_get(0)?, row.try_get(1)?), version.cast_unsigned());
    }
    transaction.commit().await?;
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use flexcore_servers::{Options, Servers, Want};
    use tokio::{runtime::Handle, task::block_in_place};

    use super::*;

    const MESSAGES: u64 = 5_000;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn reading_goes_on_where_its_consumer_was_lost() {
        let options = Options { want: Want::Nats, ..Options::new(crate::cluster::cache()) };
        let mut servers = Servers::start(&options).await.unwrap();
        let client = crate::talk::connect(&[servers.nats_url()]).await;
        let jetstream = jetstream::new(client.clone());
        jetstream
            .create_stream(jetstream::stream::Config {
                name: "S".to_owned(),
                subjects: vec!["s".to_owned()],
                ..Default::default()
            })
            .await
            .unwrap();
        for number in 1..=MESSAGES {
            let sent = jetstream.publish("s", number.to_string().into()).await.unwrap();
            if number % 500 == 0 {
                sent.await.unwrap();
            }
        }
        let mut read = Vec::new();
        each(&client, "S", |message, sequence, _| {
            let number: u64 = std::str::from_utf8(&message.payload).unwrap().parse().unwrap();
            assert_eq!(number, sequence);
            read.push(sequence);
            if sequence == MESSAGES / 2 {
                // It is in memory.
                block_in_place(|| Handle::current().block_on(servers.nats.kill())).unwrap();
                block_in_place(|| Handle::current().block_on(servers.nats.start_again())).unwrap();
            }
        })
        .await
        .unwrap();
        assert!(read.iter().copied().eq(1..=MESSAGES));
        servers.stop().await;
    }
}
