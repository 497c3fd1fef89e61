//! Subscribe: the log in order, from any place on, checked as it is read.

use std::{fmt::Display, sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{Consumer, DeliverPolicy, pull},
};
use bytes::Bytes;
use flexcore_broker::ephemeral::{self, Ephemeral, Lost, PULL_BYTES_MIN};
use flexcore_domain::{AggregateKey, Commit, Slot, Tenant};
use flexcore_resilience::{Backoff, lasts};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::{
    Error, EventStore, Recorded,
    interest::{Aggregates, Interest},
    links::{LINKS_MAX, Links},
    load, subjects, topology,
};

/// The commits that are handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The whole log. Missing stream sequences are noticed.
    Everything,
    /// One slot's.
    Slot(Slot),
    /// Those of some aggregates. All other commits are neither handed out nor decoded nor hashed,
    /// so that missing messages are noticed by the versions of their aggregates alone.
    Of(Arc<Interest>),
    /// One tenant's. They are not checked against one another: who follows a tenant needs little
    /// memory.
    Tenant(Tenant),
    /// Those of some aggregates: from the beginning of the log on only the last of each, and those
    /// that follow.
    LastOf(Vec<Aggregates>),
}

impl Filter {
    /// The consumer's filter.
    pub(crate) fn subjects(&self) -> Vec<String> {
        vec![match self {
            Self::Everything => subjects::ALL.to_owned(),
            Self::Slot(slot) => subjects::of_slot(*slot),
            Self::Of(interest) => return interest.subjects(),
            Self::Tenant(tenant) => subjects::of_tenant(tenant),
            Self::LastOf(all) => return Aggregates::subjects_of(all),
        }]
    }

    /// True if a message is passed over that the consumer's subjects let through.
    fn passes_over(&self, subject: &str) -> bool {
        matches!(self, Self::Of(interest) if !interest.has(subject))
    }

    /// Messages and bytes of one pull request.
    fn pull(&self) -> (usize, usize) {
        match self {
            Self::Tenant(_) => (CLIENTS_MESSAGES_MAX, PULL_BYTES_MIN),
            _ => (PULL_MESSAGES_MAX, PULL_BYTES_MAX),
        }
    }
}

/// Messages of one pull request, and bytes: enough to keep reading while a batch is folded, and little
/// enough for a dozen readers on one connection.
const PULL_MESSAGES_MAX: usize = 2_000;
const PULL_BYTES_MAX: usize = 4 << 20;
/// Bytes of commits that a reader is handed at once, so that large ones do not pile up in memory.
const BATCH_BYTES_MAX: usize = 16 << 20;
/// The same for one tenant's events, of which a client reads and there may be hundreds.
const CLIENTS_MESSAGES_MAX: usize = 64;
/// Between two makings of a consumer of which nothing came.
const RETRY: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(3) };
/// Time between a waiting reader's looks for messages that were lost on their way.
const LOOK_EVERY: Duration = Duration::from_secs(5);

const ANOTHER_LOG: &str = "the log is not the one that was read so far";

/// The next thing in the log.
#[derive(Debug)]
pub enum Read {
    /// Commits, in order; none when none came in time.
    Commits(Vec<Recorded>),
    /// A message that is not what it should be. Readers lose this one message of the log; reading
    /// goes on behind it.
    Broken(Box<Broken>),
}

/// A message that is no commit, or none that follows the one before it.
#[derive(Debug)]
pub struct Broken {
    /// Its stream sequence.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its aggregate; `None`: nobody's, since the subject is not one of an aggregate. Later commits
    /// of the aggregate are delivered, unchecked: whoever folds them holds them back.
    pub key: Option<AggregateKey>,
    /// Its content, where that can be read.
    pub commit: Option<Commit>,
    /// Its body.
    pub body: Bytes,
    /// The fault in it.
    pub reason: String,
}

/// Why a message does not count as a commit, and what of it can be read.
struct Unread {
    key: Option<AggregateKey>,
    commit: Option<Commit>,
    error: Error,
}

/// A reader of the log.
pub struct Subscription {
    pub(crate) store: EventStore,
    pub(crate) filter: Filter,
    next_sequence: u64,
    /// The last commit that was read: its stream sequence, and its link in the hash chain.
    last: Option<(u64, flexcore_domain::Hash)>,
    /// `None`: it has to be made anew.
    source: Option<Source>,
    /// None is made before that.
    resume_at: Instant,
    /// Makings in a row of which nothing came.
    retries: u32,
    /// `None`: commits are not checked against one another.
    links: Option<Links>,
    /// Comes with the next read, because commits before it were read together with it.
    next: Option<Box<Broken>>,
}

/// The consumer that messages come from, given back when this is dropped.
struct Source {
    messages: pull::Stream,
    consumer: Arc<Consumer<pull::Config>>,
    /// Number of messages that have come. Messages that the broker counts beyond that were lost
    /// with a connection.
    came: u64,
    lost: Lost,
    look: Interval,
    looking: FuturesUnordered<BoxFuture<'static, Result<u64, flexcore_broker::Error>>>,
    _kept: Ephemeral,
}

/// The consumer has to be made anew.
struct Interrupted;

impl Source {
    /// The next message with its stream sequence; `None`: none came in time.
    async fn next(
        &mut self,
        deadline: Instant,
    ) -> Result<Option<(jetstream::Message, u64)>, Interrupted> {
        loop {
            tokio::select! {
                biased;
                received = self.messages.next() => return self.take(received).map(Some),
                () = tokio::time::sleep_until(deadline) => return Ok(None),
                Some(there) = self.looking.next() => match there {
                    Ok(there) if !self.lost.some(self.came, there) => {}
                    Ok(_) => {
                        tracing::debug!("messages of the log were lost on their way");
                        return Err(Interrupted);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the reader of the log does not answer");
                        return Err(Interrupted);
                    }
                },
                _ = self.look.tick(), if self.looking.is_empty() => {
                    self.looking.push(ephemeral::handed_out(&self.consumer).boxed());
                }
            }
        }
    }

    /// The next message if it is here already.
    fn next_now(&mut self) -> Result<Option<(jetstream::Message, u64)>, Interrupted> {
        // Unconstrained: tokio's cooperative budget would end every batch at 128.
        let received = tokio::task::unconstrained(self.messages.next()).now_or_never();
        received.map(|received| self.take(received)).transpose()
    }

    fn take<E: Display>(
        &mut self,
        received: Option<Result<jetstream::Message, E>>,
    ) -> Result<(jetstream::Message, u64), Interrupted> {
        let message = match received.ok_or(Interrupted)? {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "reading the log was interrupted");
                return Err(Interrupted);
            }
        };
        let place = message.info().map(|info| (info.consumer_sequence, info.stream_sequence));
        match place {
            Ok((number, sequence)) if number == self.came + 1 => {
                self.came = number;
                Ok((message, sequence))
            }
            _ => {
                tracing::debug!("messages of the log were lost on their way");
                Err(Interrupted)
            }
        }
    }
}

impl EventStore {
    /// The commits that the filter names, from this stream sequence on (0 and 1: from the first),
    /// and then as they come. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn subscribe(
        &self,
        filter: Filter,
        from_sequence: u64,
    ) -> Result<Subscription, Error> {
        let links = match filter {
            Filter::Tenant(_) => None,
            _ => Some(Links::with_room_for(LINKS_MAX)),
        };
        self.subscribe_with(filter, from_sequence, links).await
    }

    /// As [`Self::subscribe`], with these links; `None`: commits are not checked against one another.
    pub(crate) async fn subscribe_with(
        &self,
        filter: Filter,
        from_sequence: u64,
        links: Option<Links>,
    ) -> Result<Subscription, Error> {
        let mut subscription = Subscription {
            store: self.clone(),
            filter,
            next_sequence: from_sequence.max(1),
            last: None,
            source: None,
            resume_at: Instant::now(),
            retries: 0,
            links,
            next: None,
        };
        subscription.source = Some(subscription.consume().await?);
        Ok(subscription)
    }
}

impl Subscription {
    /// Stream sequence of the last message that was delivered; 0: none.
    #[must_use]
    pub fn read_to(&self) -> u64 {
        self.next.as_ref().map_or(self.next_sequence, |broken| broken.sequence) - 1
    }

    /// The result of checking commits against one another; `None`: they are not checked.
    pub(crate) fn links(&self) -> Option<&Links> {
        self.links.as_ref()
    }

    /// The next commits in log order, up to `max`, or what is broken next; waits up to `wait` for the
    /// first, and returns no commits when none came. A lost connection is mended inside. Fails only
    /// for what needs a person: with [`Error::Gap`] when messages are missing, and with
    /// [`Error::Misconfigured`] when the log is another one than before. The failing message comes
    /// again on the next call.
    #[boxed::async_recursion]
    pub async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Read, Error> {
        if let Some(broken) = self.next.take() {
            return Ok(Read::Broken(broken));
        }
        let deadline = Instant::now() + wait;
        let (mut batch, mut size_bytes) = (Vec::new(), 0);
        while batch.len() < max && size_bytes < BATCH_BYTES_MAX {
            let Some(source) = &mut self.source else {
                if !batch.is_empty() || !self.reconnect(deadline).await? {
                    return Ok(Read::Commits(batch));
                }
                continue;
            };
            let received =
                if batch.is_empty() { source.next(deadline).await } else { source.next_now() };
            match received {
                Ok(Some((message, sequence))) => match self.read(&message, sequence) {
                    Ok(Some(Ok(recorded))) => {
                        size_bytes += recorded.body.len();
                        batch.push(recorded);
                    }
                    Ok(Some(Err(broken))) if batch.is_empty() => return Ok(Read::Broken(broken)),
                    Ok(Some(Err(broken))) => {
                        self.next = Some(broken);
                        break;
                    }
                    Ok(None) => {}
                    Err(error) => return self.stop_at(error, batch),
                },
                Ok(None) => break,
                Err(Interrupted) => self.source = None,
            }
        }
        Ok(Read::Commits(batch))
    }

    /// Commits that were read before a failure are delivered first; the failing message is then
    /// read again.
    fn stop_at(&mut self, error: Error, batch: Vec<Recorded>) -> Result<Read, Error> {
        self.source = None;
        if batch.is_empty() { Err(error) } else { Ok(Read::Commits(batch)) }
    }

    /// Reads a message; `None`: it was read before.
    fn read(
        &mut self,
        message: &jetstream::Message,
        sequence: u64,
    ) -> Result<Option<Result<Recorded, Box<Broken>>>, Error> {
        if sequence < self.next_sequence {
            return Ok(None);
        }
        if self.filter == Filter::Everything && sequence != self.next_sequence {
            return Err(Error::Gap {
                subject: topology::EVENTS.to_owned(),
                expected: self.next_sequence,
                found: sequence,
            });
        }
        if self.filter.passes_over(&message.subject) {
            self.next_sequence = sequence + 1;
            return Ok(None);
        }
        let read = match self.decode(message, sequence) {
            Ok(recorded) => Ok(recorded),
            Err(unread) => {
                let Unread { key, commit, error } = *unread;
                if let Some(key) = &key {
                    self.breaks(key);
                }
                Err(Box::new(Broken {
                    sequence,
                    subject: message.subject.to_string(),
                    key,
                    commit,
                    body: message.payload.clone(),
                    reason: error.to_string(),
                }))
            }
        };
        self.next_sequence = sequence + 1;
        if let Ok(recorded) = &read {
            self.last = Some((sequence, recorded.hash));
        }
        self.retries = 0;
        Ok(Some(read))
    }

    /// Remembers that the aggregate is broken, and counts it.
    fn breaks(&mut self, key: &AggregateKey) {
        if self.links.as_mut().is_none_or(|links| links.break_off(key)) {
            metrics::counter!("flexcore_log_broken_total").increment(1);
        }
    }

    /// The commit that a message is, when it follows the one before it; else whose it should be, what
    /// it says, and why it does not count.
    fn decode(
        &mut self,
        message: &jetstream::Message,
        sequence: u64,
    ) -> Result<Recorded, Box<Unread>> {
        let Some(key) = subjects::key(&message.subject) else {
            let subject = message.subject.escape_debug().to_string();
            let reason = "not an aggregate's subject".to_owned();
            let error = Error::Corrupt { subject, sequence, reason };
            return Err(Box::new(Unread { key: None, commit: None, error }));
        };
        let headers = message.headers.as_ref();
        let recorded = match load::decode(key.clone(), sequence, headers, &message.payload) {
            Ok(recorded) => recorded,
            Err(error) => {
                return Err(Box::new(Unread { key: Some(key), commit: None, error }));
            }
        };
        match self.links.as_mut().map_or(Ok(()), |links| links.check(&recorded)) {
            Ok(()) => Ok(recorded),
            Err(error) => {
                let commit = Some(recorded.commit);
                Err(Box::new(Unread { key: Some(key), commit, error }))
            }
        }
    }

    /// Makes the consumer anew, or tries to; false when the deadline came first. Fails when it would
    /// fail each time.
    async fn reconnect(&mut self, deadline: Instant) -> Result<bool, Error> {
        tokio::time::sleep_until(self.resume_at.min(deadline)).await;
        if deadline < self.resume_at {
            return Ok(false);
        }
        // One that is made may be out of reach, or gone again at once.
        self.retries = self.retries.saturating_add(1);
        self.resume_at = Instant::now() + RETRY.after(self.retries);
        match self.consume().await {
            Ok(source) => self.source = Some(source),
            Err(error) if error.is_passing() && lasts(self.retries) => {
                tracing::warn!(%error, tries = self.retries, "cannot read the log");
            }
            Err(error) if error.is_passing() => tracing::debug!(%error, "cannot read the log yet"),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    async fn consume(&mut self) -> Result<Source, Error> {
        // Another log, or an older backup, would go on in the middle of what this one said. One that
        // ends before may be that of a leader that was deposed and does not know.
        if let Some((sequence, hash)) = self.last {
            match self.store.hash_at(sequence).await? {
                Some(found) if found == hash => {}
                Some(_) => return Err(Error::Misconfigured(ANOTHER_LOG.to_owned())),
                None => return Err(crate::unavailable(ANOTHER_LOG)),
            }
        }
        let deliver_policy = match (&self.filter, self.next_sequence) {
            (Filter::LastOf(_), 1) => DeliverPolicy::LastPerSubject,
            (_, start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
        };
        let filter_subjects = self.filter.subjects();
        let config = pull::Config { deliver_policy, filter_subjects, ..pull::Config::default() };
        let jetstream = &self.store.streams;
        let name = ephemeral::unique(jetstream, "reader");
        let (kept, consumer) = Ephemeral::create(jetstream, topology::EVENTS, name, config).await?;
        let (messages_max, bytes_max) = self.filter.pull();
        let messages = ephemeral::messages(&consumer, messages_max, bytes_max).await?;
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Source {
            messages,
            consumer: Arc::new(consumer),
            came: 0,
            lost: Lost::default(),
            look,
            looking: FuturesUnordered::new(),
            _kept: kept,
        })
    }
}
