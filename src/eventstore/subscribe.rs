//! Subscribe: the log in order, from any place on, checked as it is read.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher},
    time::Duration,
};

use async_nats::jetstream::{
    self,
    consumer::{DeliverPolicy, pull},
};
use flexcore_domain::{AggregateKey, Hash, Tenant};
use futures::{FutureExt, StreamExt};

use crate::{
    Error, EventStore, Recorded,
    ephemeral::{self, Ephemeral, PULL_BYTES_MAX},
    load, topology,
};

/// Which commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The whole log. Missing stream sequences are noticed.
    Everything,
    /// One tenant's.
    Tenant(Tenant),
    /// Deployments of applications.
    Applications,
}

impl Filter {
    fn subject(&self) -> String {
        match self {
            Self::Everything => "evt.>".to_owned(),
            Self::Tenant(tenant) => format!("evt.*.{tenant}.>"),
            Self::Applications => crate::catalog::SUBJECTS.to_owned(),
        }
    }
}

/// Messages of one pull request: enough to keep reading while a batch is folded.
const PULL_MESSAGES_MAX: usize = 2_000;
/// Aggregates whose last link is remembered, about 64 bytes each. Beyond it the table is emptied,
/// and links are checked again from each aggregate's next commit on.
const LINKS_MAX: usize = 1_000_000;
/// First and longest pause before a lost consumer is made anew.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(3);

/// A reader of the log.
pub struct Subscription {
    store: EventStore,
    filter: Filter,
    next_sequence: u64,
    messages: Option<pull::Stream>,
    /// The consumer that the messages come from: given back as soon as it is not needed.
    consumer: Option<Ephemeral>,
    pending_at_start: u64,
    retry_after: Duration,
    links: Links,
}

impl EventStore {
    /// The commits that the filter names, from this stream sequence on (0 and 1: from the first),
    /// and then as they come. Fails when the broker is away.
    pub async fn subscribe(
        &self,
        filter: Filter,
        from_sequence: u64,
    ) -> Result<Subscription, Error> {
        let mut subscription = Subscription {
            store: self.clone(),
            filter,
            next_sequence: from_sequence.max(1),
            messages: None,
            consumer: None,
            pending_at_start: 0,
            retry_after: RETRY_FIRST,
            links: Links::default(),
        };
        let (messages, pending) = subscription.consume().await?;
        subscription.messages = Some(messages);
        subscription.pending_at_start = pending;
        Ok(subscription)
    }
}

impl Subscription {
    /// Commits that matched the filter when the subscription was made.
    #[must_use]
    pub fn pending_at_start(&self) -> u64 {
        self.pending_at_start
    }

    /// The next commits in log order, up to `max`; waits up to `wait` for the first, and returns
    /// none when none came. A lost connection is mended inside. Fails only for what needs a
    /// person: [`Error::Gap`], [`Error::BrokenChain`] and [`Error::Corrupt`]; the failing commit
    /// comes again on the next call.
    pub async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Recorded>, Error> {
        let deadline = tokio::time::Instant::now() + wait;
        let (mut batch, mut size_bytes) = (Vec::new(), 0);
        while batch.len() < max && size_bytes < PULL_BYTES_MAX {
            let Some(messages) = &mut self.messages else {
                if !batch.is_empty() || !self.reconnect(deadline).await {
                    return Ok(batch);
                }
                continue;
            };
            let received = if batch.is_empty() {
                match tokio::time::timeout_at(deadline, messages.next()).await {
                    Ok(received) => received,
                    Err(_) => return Ok(batch),
                }
            } else {
                // Unconstrained: tokio's cooperative budget would end every batch at 128.
                match tokio::task::unconstrained(messages.next()).now_or_never() {
                    Some(received) => received,
                    None => return Ok(batch),
                }
            };
            match received {
                Some(Ok(message)) => match self.read(&message) {
                    Ok(Some(recorded)) => {
                        size_bytes += recorded.body.len();
                        batch.push(recorded);
                    }
                    Ok(None) => {}
                    Err(error) => return self.stop_at(error, batch),
                },
                Some(Err(error)) => {
                    tracing::debug!(%error, "reading the log was interrupted");
                    self.messages = None;
                }
                None => self.messages = None,
            }
        }
        Ok(batch)
    }

    /// What was read before a failure is delivered first; the failing message is then read again.
    fn stop_at(&mut self, error: Error, batch: Vec<Recorded>) -> Result<Vec<Recorded>, Error> {
        self.messages = None;
        if batch.is_empty() { Err(error) } else { Ok(batch) }
    }

    fn read(&mut self, message: &jetstream::Message) -> Result<Option<Recorded>, Error> {
        let sequence = match message.info() {
            Ok(info) => info.stream_sequence,
            Err(error) => return Err(self.corrupt(message, 0, &error.to_string())),
        };
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
        let key = message
            .subject
            .strip_prefix("evt.")
            .and_then(AggregateKey::from_subject_part)
            .ok_or_else(|| self.corrupt(message, sequence, "not an aggregate's subject"))?;
        let recorded = load::decode(key, sequence, message.headers.as_ref(), &message.payload)?;
        if self.filter == Filter::Everything {
            self.links.check(&recorded)?;
        }
        self.next_sequence = sequence + 1;
        Ok(Some(recorded))
    }

    fn corrupt(&self, message: &jetstream::Message, sequence: u64, reason: &str) -> Error {
        Error::Corrupt { subject: message.subject.to_string(), sequence, reason: reason.to_owned() }
    }

    /// Makes the consumer anew; false when the deadline came first.
    async fn reconnect(&mut self, deadline: tokio::time::Instant) -> bool {
        match self.consume().await {
            Ok((messages, _)) => {
                self.messages = Some(messages);
                self.retry_after = RETRY_FIRST;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the log yet");
                let resume = tokio::time::Instant::now() + self.retry_after;
                self.retry_after = (self.retry_after * 2).min(RETRY_LONGEST);
                tokio::time::sleep_until(resume.min(deadline)).await;
                resume < deadline
            }
        }
    }

    async fn consume(&mut self) -> Result<(pull::Stream, u64), Error> {
        self.consumer = None;
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next_sequence },
            filter_subject: self.filter.subject(),
            ..pull::Config::default()
        };
        let jetstream = &self.store.jetstream;
        let (reader, consumer) = Ephemeral::create(jetstream, topology::EVENTS, config).await?;
        let pending = consumer.cached_info().num_pending;
        let messages = ephemeral::messages(&consumer, PULL_MESSAGES_MAX).await?;
        self.consumer = Some(reader);
        Ok((messages, pending))
    }
}

/// The last link of each aggregate read so far.
#[derive(Default)]
pub(crate) struct Links {
    last: HashMap<u64, (u64, Hash)>,
}

impl Links {
    /// Checks a commit against the one before it, where that one was read, and remembers it.
    fn check(&mut self, recorded: &Recorded) -> Result<(), Error> {
        let key = &recorded.commit.key;
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let place = hasher.finish();
        let before = recorded.commit.version_before();
        match self.last.get(&place) {
            Some((version, hash)) => load::check_link(key, recorded, *version, Some(hash))?,
            None if before == 0 => load::check_link(key, recorded, 0, Some(&Hash::ZERO))?,
            None => {}
        }
        if self.last.len() >= LINKS_MAX {
            self.last.clear();
        }
        self.last.insert(place, (recorded.commit.version(), recorded.hash));
        Ok(())
    }
}
