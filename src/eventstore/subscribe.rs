//! Subscribe: the log in order, from any place on, checked as it is read.

use std::{fmt::Display, sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{Consumer, DeliverPolicy, pull},
};
use flexcore_domain::{AggregateKey, Tenant};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::{
    Error, EventStore, Recorded,
    ephemeral::{self, Ephemeral, Lost, PULL_BYTES_MAX},
    links::{LINKS_MAX, Links},
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
/// First and longest time between two makings of a consumer of which nothing came.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(3);
/// How often a reader that waits looks whether messages were lost on their way.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A reader of the log.
pub struct Subscription {
    store: EventStore,
    filter: Filter,
    next_sequence: u64,
    /// `None`: it has to be made anew.
    source: Option<Source>,
    /// None is made before that.
    resume_at: Instant,
    retry_after: Duration,
    links: Links,
}

/// The consumer that messages come from, given back when this is dropped.
struct Source {
    messages: pull::Stream,
    consumer: Arc<Consumer<pull::Config>>,
    /// How many have come. What the broker counts further than that was lost with a connection.
    came: u64,
    lost: Lost,
    look: Interval,
    looking: FuturesUnordered<BoxFuture<'static, Result<u64, Error>>>,
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
    pub async fn subscribe(
        &self,
        filter: Filter,
        from_sequence: u64,
    ) -> Result<Subscription, Error> {
        let mut subscription = Subscription {
            store: self.clone(),
            filter,
            next_sequence: from_sequence.max(1),
            source: None,
            resume_at: Instant::now(),
            retry_after: RETRY_FIRST,
            links: Links::with_room_for(LINKS_MAX),
        };
        subscription.source = Some(subscription.consume().await?);
        Ok(subscription)
    }
}

impl Subscription {
    /// Stream sequence of the last commit that was read; 0: none.
    #[must_use]
    pub fn read_to(&self) -> u64 {
        self.next_sequence - 1
    }

    /// The next commits in log order, up to `max`; waits up to `wait` for the first, and returns
    /// none when none came. A lost connection is mended inside. Fails only for what needs a
    /// person: [`Error::Gap`], [`Error::BrokenChain`] and [`Error::Corrupt`]; the failing commit
    /// comes again on the next call.
    pub async fn next_batch(&mut self, max: usize, wait: Duration) -> Result<Vec<Recorded>, Error> {
        let deadline = Instant::now() + wait;
        let (mut batch, mut size_bytes) = (Vec::new(), 0);
        while batch.len() < max && size_bytes < PULL_BYTES_MAX {
            let Some(source) = &mut self.source else {
                if !batch.is_empty() || !self.reconnect(deadline).await {
                    return Ok(batch);
                }
                continue;
            };
            let received =
                if batch.is_empty() { source.next(deadline).await } else { source.next_now() };
            match received {
                Ok(Some((message, sequence))) => match self.read(&message, sequence) {
                    Ok(Some(recorded)) => {
                        size_bytes += recorded.body.len();
                        batch.push(recorded);
                    }
                    Ok(None) => {}
                    Err(error) => return self.stop_at(error, batch),
                },
                Ok(None) => return Ok(batch),
                Err(Interrupted) => self.source = None,
            }
        }
        Ok(batch)
    }

    /// What was read before a failure is delivered first; the failing message is then read again.
    fn stop_at(&mut self, error: Error, batch: Vec<Recorded>) -> Result<Vec<Recorded>, Error> {
        self.source = None;
        if batch.is_empty() { Err(error) } else { Ok(batch) }
    }

    fn read(
        &mut self,
        message: &jetstream::Message,
        sequence: u64,
    ) -> Result<Option<Recorded>, Error> {
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
            .ok_or_else(|| Error::Corrupt {
                subject: message.subject.to_string(),
                sequence,
                reason: "not an aggregate's subject".to_owned(),
            })?;
        let recorded = load::decode(key, sequence, message.headers.as_ref(), &message.payload)?;
        if self.filter == Filter::Everything {
            self.links.check(&recorded)?;
        }
        self.next_sequence = sequence + 1;
        self.retry_after = RETRY_FIRST;
        Ok(Some(recorded))
    }

    /// Makes the consumer anew, or tries to; false when the deadline came first.
    async fn reconnect(&mut self, deadline: Instant) -> bool {
        tokio::time::sleep_until(self.resume_at.min(deadline)).await;
        if deadline < self.resume_at {
            return false;
        }
        // One that is made may be out of reach, or gone again at once.
        self.resume_at = Instant::now() + self.retry_after;
        self.retry_after = (self.retry_after * 2).min(RETRY_LONGEST);
        match self.consume().await {
            Ok(source) => self.source = Some(source),
            Err(error) => tracing::debug!(%error, "cannot read the log yet"),
        }
        true
    }

    async fn consume(&mut self) -> Result<Source, Error> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next_sequence },
            filter_subject: self.filter.subject(),
            ..pull::Config::default()
        };
        let jetstream = &self.store.jetstream;
        let (kept, consumer) = Ephemeral::create(jetstream, topology::EVENTS, config).await?;
        let messages = ephemeral::messages(&consumer, PULL_MESSAGES_MAX).await?;
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
