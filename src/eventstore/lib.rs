//! The event store on NATS JetStream: topology, append, load, snapshot, subscribe, verify.
//!
//! One command is one commit is one message on its aggregate's own subject. Appends carry the
//! sequence that the subject must end with, so that of two writers one wins; commits are chained by
//! hash, so that a reader sees what is missing or changed.

mod aside;
pub mod catalog;
pub mod commands;
mod dead;
mod deployed;
mod direct;
mod errors;
mod files;
mod find;
pub mod folded;
mod growth;
pub mod headers;
mod identity;
mod interest;
mod kept;
mod links;
mod load;
mod lookup;
mod outcomes;
pub mod plugin_configurations;
pub mod plugins;
mod profile;
mod recognise;
mod remade;
pub mod sealed;
mod secret;
mod seen;
pub mod snapshot;
mod subjects;
mod subscribe;
mod swept;
pub mod topology;
pub mod verify;

use std::{fmt, sync::Arc};

use async_nats::jetstream;
use flexcore_broker::{acknowledged, context, inbox, leader::Leaders, publish, room, size};
use flexcore_domain::{Commit, Hash, Position, Slot, commit::Encoded, limits::COMMIT_BYTES_MAX};
use flexcore_queue::Queue;

pub use find::Before;
pub use flexcore_broker::{REQUEST_TIMEOUT, renewed};
pub use growth::{Growth, ServerUse};
pub use interest::{Aggregates, Interest};
pub use links::LINKS_MAX;
pub use load::{LOAD_COMMITS_MAX, Page};
pub use outcomes::KeptOutcome;
pub use profile::Profile;
pub use subjects::{address, subject};
pub use subscribe::{Broken, Filter, Read, Subscription};

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What an acknowledgement promises; checked against the server's own settings.
    pub profile: Profile,
    /// Copies of each stream: 1, 3 or 5.
    pub replicas: usize,
    /// Where each server's monitoring answers, such as `http://127.0.0.1:8222`: there the profile is
    /// checked.
    pub monitor_urls: Vec<String>,
}

impl Settings {
    /// How commits go out: in atomic batches where what is acknowledged has been synced.
    fn commit_groups(&self) -> Option<publish::Groups> {
        let linger = match self.replicas {
            1 => publish::Linger::ForMostOfTheLast,
            _ => publish::Linger::WhenLarge,
        };
        let groups = publish::Groups { order: publish::Order::Expecting, linger };
        (self.profile == Profile::PowerLoss).then_some(groups)
    }

    /// How commands go out: in atomic batches where the one server syncs each by itself. With more
    /// replicas they are pipelined, so that a lost batch does not hold up those behind it, whose
    /// order is kept.
    fn command_groups(&self) -> Option<publish::Groups> {
        let linger = publish::Linger::ForMostOfTheLast;
        let groups = publish::Groups { order: publish::Order::Ordered, linger };
        (self.profile == Profile::PowerLoss && self.replicas == 1).then_some(groups)
    }
}

/// Why the log did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The aggregate has a later commit than expected. Load and decide again.
    #[error("conflict: the aggregate was changed meanwhile")]
    Conflict,
    /// The broker did not answer, or not in time. An append's outcome is unknown then: load the
    /// tail and look for the command id.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// The message is larger than the broker takes. Nothing was stored, and nothing will be however
    /// often it is sent: say so to whoever made it.
    #[error("too large to be stored: {0}")]
    TooLarge(String),
    /// The broker's storage has no room for more. Nothing was stored: send it again later.
    #[error("the broker's storage is full: {0}")]
    NoRoom(String),
    /// The tenant has its share of what all have stored. Nothing was stored: send it again later.
    #[error("{0}")]
    TooMuch(String),
    /// Messages are missing from the log: a replica lost them or they were deleted.
    #[error(
        "gap in the log: {subject} jumps to {found} where {expected} follows; \
         compare the replicas' message counts before anything else"
    )]
    Gap {
        /// `FLEX_EVENTS` for stream sequences, else the subject whose versions jump.
        subject: String,
        /// What should have come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A commit does not carry the hash that its predecessor and body give.
    #[error(
        "broken hash chain at stream sequence {sequence} of {subject}: changed after it was written"
    )]
    BrokenChain {
        /// The aggregate's subject.
        subject: String,
        /// The commit's stream sequence.
        sequence: u64,
    },
    /// A message of the log is no commit.
    #[error("stream sequence {sequence} of {subject} is not a commit: {reason}")]
    Corrupt {
        /// The message's subject.
        subject: String,
        /// Its stream sequence.
        sequence: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The queue's leader has fewer commands than were settled. A leader that was cut off says so until it
    /// hears that it was deposed; if it stays so, the queue has lost its end.
    #[error(
        "the queue ends at {last}, before what is settled, {settled}: a server that was cut off says so \
         for a while. If it stays so, the queue has lost its end. Delete the stream {progress} then: a worker \
         makes it anew within seconds, and what is left in the queue is done again"
    )]
    QueueBehind {
        /// The stream that holds how far the queue is settled.
        progress: &'static str,
        /// The last sequence that the leader has.
        last: u64,
        /// The sequence up to which commands are settled.
        settled: u64,
    },
    /// The server or a stream contradicts the settings.
    #[error("{0}")]
    Misconfigured(String),
    /// A plugin's file is not stored, or is not what its name says: the text says what to do.
    #[error("{0}")]
    PluginFile(String),
    /// A file on this machine's disk cannot be read or written.
    #[error("{0}")]
    LocalFile(String),
    /// Rows were folded from another log.
    #[error(transparent)]
    OtherLog(#[from] flexcore_domain::log::OtherLog),
}

impl Error {
    /// Whether doing the same again may succeed without anybody's help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unavailable(_)
            | Self::NoRoom(_)
            | Self::TooMuch(_)
            | Self::Conflict
            | Self::LocalFile(_)
            | Self::QueueBehind { .. } => true,
            Self::TooLarge(_)
            | Self::Gap { .. }
            | Self::BrokenChain { .. }
            | Self::Corrupt { .. }
            | Self::Misconfigured(_)
            | Self::PluginFile(_)
            | Self::OtherLog(_) => false,
        }
    }
}

pub(crate) fn unavailable(error: impl fmt::Display) -> Error {
    Error::Unavailable(error.to_string())
}

/// What the aggregate's subject must end with for an append to succeed. The default: no commit yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Stream sequence of the aggregate's last commit; 0: none.
    pub sequence: u64,
    /// That commit's link in the hash chain.
    pub hash: Hash,
}

impl Default for Expected {
    fn default() -> Self {
        Self { sequence: 0, hash: Hash::ZERO }
    }
}

/// Where a commit was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its stream sequence.
    pub sequence: u64,
    /// Its link in the hash chain.
    pub hash: Hash,
}

/// A commit as it stands in the log.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its stream sequence.
    pub sequence: u64,
    /// Its link in the hash chain.
    pub hash: Hash,
    /// Its body, as it stands in the log.
    pub body: bytes::Bytes,
    /// What it says.
    pub commit: Commit,
}

impl Recorded {
    /// Its slot.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.commit.key.slot()
    }

    /// Whether its hash is the one that follows from its predecessor's and its body.
    #[must_use]
    pub fn follows(&self, previous: &Hash) -> bool {
        Hash::chain(previous, &self.body) == self.hash
    }

    /// Its place in the log, as clients pass it on.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { slot: self.slot(), sequence: self.sequence }
    }
}

/// Room for the headers of a commit, those of a batch included: they are about 300 bytes.
const COMMIT_HEADERS_BYTES: usize = 1_024;

/// A handle on the log; cheap to clone.
#[derive(Clone)]
pub struct EventStore {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    settings: Arc<Settings>,
    acknowledged: acknowledged::Acknowledged,
    events: publish::Publisher,
    inbox: inbox::Inbox,
    room: room::Room,
    quick: load::Way,
    bulk: load::Way,
    /// Where streams are read in bulk.
    streams: jetstream::Context,
    /// Stored commands.
    queue: Queue,
    /// What was written to streams that tenants share.
    kept: kept::Kept,
    /// What this process has stored in the queue.
    share: commands::Share,
    /// There are other replicas than the leader, or may be.
    asks_leader: bool,
    leaders: Leaders,
    /// `None` on a handle that was attached.
    secret: Option<Arc<secret::Held>>,
    secrets_key: Option<sealed::SecretsKey>,
}

impl EventStore {
    /// Checks the server against the profile, creates the streams that are missing and checks those
    /// that are there. Fails with [`Error::Misconfigured`] when one contradicts the settings.
    #[boxed::async_recursion]
    pub async fn open(client: async_nats::Client, settings: Settings) -> Result<Self, Error> {
        topology::check_profile(&client, &settings).await?;
        let jetstream = jetstream::new(client.clone());
        topology::create(&jetstream, &settings).await?;
        let store = Self::attach(client, settings).await?;
        let secret = Some(Arc::new(secret::Held::new(secret::open(&store).await?)));
        let asks_leader = store.settings.replicas > 1;
        let room = room::Room::watch(&store.settings.monitor_urls);
        Ok(Self { asks_leader, room, secret, ..store })
    }

    /// A handle on a log that another process has opened, for tools: nothing is created or checked,
    /// so it may have more replicas than the settings say.
    #[boxed::async_recursion]
    pub async fn attach(client: async_nats::Client, settings: Settings) -> Result<Self, Error> {
        let jetstream = context(&client);
        let inbox = inbox::Inbox::open(&client).await?;
        let (quick, bulk) = (load::Way::quick(inbox.clone()), load::Way::bulk(inbox.clone()));
        let streams = jetstream.clone();
        let acknowledged = acknowledged::Acknowledged::open(&client).await?;
        let events = publish::Publisher::start(&acknowledged, settings.commit_groups());
        let leaders = Leaders::over(inbox.clone());
        let asks_leader = true;
        let settings = Arc::new(settings);
        let queue = Queue {
            described: commands::STORED,
            jetstream: jetstream.clone(),
            reading: renewed::Renewed::never(jetstream.clone()),
            acknowledged: acknowledged.clone(),
            inbox: inbox.clone(),
        };
        let room = room::Room::default();
        Ok(Self {
            client,
            jetstream,
            settings,
            acknowledged,
            events,
            inbox,
            room,
            quick,
            bulk,
            streams,
            queue,
            kept: kept::Kept::default(),
            share: commands::Share::default(),
            asks_leader,
            leaders,
            secret: None,
            secrets_key: None,
        })
    }

    /// The same log, with reads in bulk over connections of their own: pages of aggregates over one,
    /// streams over the next, stored commands over the last. The broker cuts a connection off whose
    /// reader is too slow for what it asks for, and the client drops one over which a stored command
    /// comes that it cannot read, or ends: nothing else must be on it, and it is made anew. Fails when a
    /// subscription is refused.
    #[boxed::async_recursion]
    pub async fn read_over(
        self,
        pages: &async_nats::Client,
        streams: &async_nats::Client,
        commands: renewed::Renewed,
    ) -> Result<Self, Error> {
        let bulk = load::Way::bulk(inbox::Inbox::open(pages).await?);
        let queue = Queue { reading: commands, ..self.queue };
        Ok(Self { bulk, streams: context(streams), queue, ..self })
    }

    /// The connection below.
    #[must_use]
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// The connection's JetStream context.
    #[must_use]
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// How the log is kept.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Appends a commit. Returns its place when the broker has it as the profile promises. Fails
    /// with [`Error::Conflict`] when the aggregate does not end with `expected`, with
    /// [`Error::TooLarge`] or [`Error::NoRoom`] when nothing was stored for that reason, and with
    /// [`Error::Unavailable`] when the outcome is unknown.
    #[boxed::async_recursion]
    pub async fn append(&self, commit: &Commit, expected: Expected) -> Result<Appended, Error> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A caller that has gone away does not need the answer.
        self.append_then(commit, expected, move |result| drop(answer.send(result)));
        answered.await.map_err(|_| unavailable("shutting down"))?
    }

    /// Hands a commit over to be appended, and returns at once: the caller bounds how many are under
    /// way. `then` is told what [`Self::append`] would return; it must not block.
    pub fn append_then(
        &self,
        commit: &Commit,
        expected: Expected,
        then: impl FnOnce(Result<Appended, Error>) + Send + 'static,
    ) {
        let encoded = commit.encode(&expected.hash);
        if let Err(error) = self.takes_commit(&encoded) {
            count_refused(&error);
            return then(Err(error));
        }
        let started = std::time::Instant::now();
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in encoded.headers {
            headers.insert(name, value);
        }
        acknowledged::expect_last(&mut headers, expected.sequence);
        let hash = encoded.hash;
        let told = move |result: Result<u64, acknowledged::Unstored>| {
            metrics::histogram!("flexcore_append_seconds").record(started.elapsed().as_secs_f64());
            if result.as_ref().is_err_and(acknowledged::Unstored::is_conflict) {
                metrics::counter!("flexcore_append_conflicts_total").increment(1);
            }
            let appended = result.map(|sequence| Appended { sequence, hash }).map_err(Error::from);
            if let Err(error) = &appended {
                count_refused(error);
            }
            then(appended);
        };
        self.events.publish(subject(&commit.key), headers, encoded.body.into(), Box::new(told));
    }

    /// Fails with [`Error::NoRoom`] when the broker, as it was seen a few seconds ago, takes no more.
    /// Tells nothing where no monitoring address is known.
    pub fn check_room(&self) -> Result<(), Error> {
        Ok(self.room.check()?)
    }

    /// Whether one of the broker's servers, as it was seen a few seconds ago, nears the limit of its memory.
    /// False where no monitoring address is known, or no limit.
    #[must_use]
    pub fn broker_memory_is_near(&self) -> bool {
        self.room.memory_is_near()
    }

    /// Whether there is room for a commit, and it is within what the log keeps and the broker takes.
    /// Its size is that of the whole envelope, and its headers those that it is sent with.
    fn takes_commit(&self, encoded: &Encoded) -> Result<(), Error> {
        self.room.check()?;
        let max_payload = self.client.max_payload();
        let bytes_max = COMMIT_BYTES_MAX.min(max_payload.saturating_sub(COMMIT_HEADERS_BYTES));
        if encoded.body.len() > bytes_max {
            return Err(Error::TooLarge(size::too_large(encoded.body.len(), bytes_max)));
        }
        Ok(())
    }

    /// Appends a commit if the last message on these subjects, among which is its own, is at this
    /// sequence, and if its aggregate's last commit has this hash. Fails like [`Self::append`].
    pub(crate) async fn append_among(
        &self,
        commit: &Commit,
        subjects: &str,
        last: u64,
        previous: &Hash,
    ) -> Result<Appended, Error> {
        let encoded = commit.encode(previous);
        self.room.look(&self.settings.monitor_urls).await;
        self.takes_commit(&encoded)?;
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in encoded.headers {
            headers.insert(name, value);
        }
        acknowledged::expect_last_on(&mut headers, subjects, last);
        let (subject, body) = (subject(&commit.key), encoded.body.into());
        let sequence = self.acknowledged.store(subject, headers, body).await?;
        Ok(Appended { sequence, hash: encoded.hash })
    }

    /// The clock of a broker's server, in milliseconds since 1970-01-01 UTC: of the server that
    /// leads a small stream. Fails with [`Error::Unavailable`] when none answers at once.
    #[boxed::async_recursion]
    pub async fn broker_time_ms(&self) -> Result<i64, Error> {
        Ok(self.inbox.time_ms(topology::PROGRESS).await?)
    }

    /// Stream sequence of the log's last message; 0 when it is empty.
    #[boxed::async_recursion]
    pub async fn last_sequence(&self) -> Result<u64, Error> {
        Ok(self.log().await?.last_sequence)
    }
}

/// Counts a commit that the log has certainly not taken.
fn count_refused(error: &Error) {
    let reason = match error {
        Error::TooLarge(_) => "too_large",
        Error::NoRoom(_) => "no_room",
        _ => return,
    };
    metrics::counter!("flexcore_append_refused_total", "reason" => reason).increment(1);
}
