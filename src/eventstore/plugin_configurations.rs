//! Configurations of plugins, one of each tenant, each sealed for its plugin and tenant. They are in a bucket and
//! not in the log: what is taken away is gone.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{DeliverPolicy, pull},
    },
};
use bytes::Bytes;
use flexcore_broker::{
    bucket::{Bucket, subject},
    ephemeral::{self, Ephemeral, PULL_BYTES_MIN},
};
use flexcore_domain::{Name, Tenant, plugin_configuration::CONFIGURATION_BYTES_MAX};
use flexcore_resilience::{Backoff, lasts};
use futures::StreamExt as _;
use tokio::time::timeout;

use crate::{
    Error, EventStore, REQUEST_TIMEOUT,
    sealed::{SEAL_BYTES, SecretsKey, Unopened},
    topology::PLUGIN_CONFIGURATIONS as STREAM,
    unavailable,
};

/// Largest sealed configuration, in bytes.
pub const SEALED_BYTES_MAX: usize = CONFIGURATION_BYTES_MAX + SEAL_BYTES;

/// Messages that are pulled at once: heads alone.
const MESSAGES_AT_ONCE: usize = 1_000;

/// The pause before changes are followed anew. 10 s at most: a change is noticed soon after the broker is back.
const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(10) };

/// Time without a change after which the stream is asked whether one was lost on its way: nothing is acknowledged.
/// 10 s.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Advice where a process has no key.
const NO_KEY: &str = "this process has no key for secrets: give it 64 hexadecimal digits by FLEXCORE_SECRETS_KEY, \
                      or a file with them by --secrets-key-file; `openssl rand -hex 32` makes a key, and all \
                      processes of an installation need the same";

/// Why a configuration cannot be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Locked {
    /// This process has no key.
    #[error("{}", NO_KEY)]
    NoKey,
    /// The configuration does not open with the key.
    #[error("the configuration cannot be read: {0}")]
    Unopened(#[from] Unopened),
}

/// The key of the bucket, which a configuration is sealed for. Neither name has a dot.
fn place(plugin: &Name, tenant: &str) -> String {
    format!("{plugin}.{tenant}")
}

impl EventStore {
    /// The same, with the key for secrets; `None`: this process has none.
    #[must_use]
    pub fn with_secrets_key(self, secrets_key: Option<SecretsKey>) -> Self {
        Self { secrets_key, ..self }
    }

    /// Seals a configuration, which is JSON, for its plugin and tenant. Fails where this process has no key.
    pub fn seal_plugin_configuration(
        &self,
        plugin: &Name,
        tenant: &Tenant,
        configuration: &[u8],
    ) -> Result<Bytes, Locked> {
        let key = self.secrets_key.as_ref().ok_or(Locked::NoKey)?;
        Ok(key.seal(&place(plugin, tenant.as_str()), configuration))
    }

    /// Opens a sealed configuration. Fails where this process has no key, or not that one, and where it was
    /// sealed for another plugin or tenant.
    pub fn open_plugin_configuration(
        &self,
        plugin: &Name,
        tenant: &Tenant,
        sealed: &[u8],
    ) -> Result<Bytes, Locked> {
        let key = self.secrets_key.as_ref().ok_or(Locked::NoKey)?;
        Ok(key.open(&place(plugin, tenant.as_str()), sealed)?)
    }

    /// Stores a sealed configuration in place of the one before. Fails with [`Error::TooLarge`] beyond
    /// [`SEALED_BYTES_MAX`], and when the broker is away or has no room.
    #[boxed::async_recursion]
    pub async fn put_plugin_configuration(
        &self,
        plugin: &Name,
        tenant: &Tenant,
        sealed: Bytes,
    ) -> Result<(), Error> {
        if sealed.len() > SEALED_BYTES_MAX {
            let what = format!("a configuration has at most {CONFIGURATION_BYTES_MAX} bytes");
            return Err(Error::TooLarge(what));
        }
        let key = place(plugin, tenant.as_str());
        let written = self.configurations().write(&key, HeaderMap::new(), sealed, None).await;
        written.map(drop).map_err(Error::from)
    }

    /// The sealed configuration that is stored; `None`: there is none. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn plugin_configuration(
        &self,
        plugin: &Name,
        tenant: &Tenant,
    ) -> Result<Option<Bytes>, Error> {
        let read = self.configurations().read(&place(plugin, tenant.as_str())).await;
        Ok(read.map_err(unavailable)?.and_then(|entry| entry.value))
    }

    /// Takes a configuration away. Returns false if there was none. Fails when the broker is away.
    #[boxed::async_recursion]
    pub async fn remove_plugin_configuration(
        &self,
        plugin: &Name,
        tenant: &Tenant,
    ) -> Result<bool, Error> {
        if self.plugin_configuration(plugin, tenant).await?.is_none() {
            return Ok(false);
        }
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        let key = place(plugin, tenant.as_str());
        self.configurations().write(&key, headers, Bytes::new(), None).await?;
        Ok(true)
    }

    /// The sequence of the last change of any configuration; 0: there was none. Fails when the broker is away.
    pub(crate) async fn plugin_configurations_end(&self) -> Result<u64, Error> {
        last_sequence(self).await
    }

    /// Deletes the configurations of all tenants of a plugin, and what is left of those that were taken away, up to
    /// this sequence. Fails when the broker is away.
    pub(crate) async fn purge_plugin_configurations(
        &self,
        plugin: &Name,
        up_to: u64,
    ) -> Result<(), Error> {
        // The broker takes 1, for nothing before the first one, as no limit at all.
        if up_to == 0 {
            return Ok(());
        }
        let stream = self.jetstream.get_stream_no_info(STREAM).await.map_err(unavailable)?;
        let all = subject(STREAM, &place(plugin, "*"));
        let purged = stream.purge().filter(all).sequence(up_to.saturating_add(1)).await;
        purged.map(drop).map_err(unavailable)
    }

    fn configurations(&self) -> Bucket {
        let (jetstream, acknowledged) = (self.jetstream.clone(), self.acknowledged.clone());
        Bucket { stream: STREAM, jetstream, acknowledged }
    }
}

/// Which configurations there are, followed without their values. Cheap to clone.
#[derive(Clone, Default)]
pub struct ConfigurationNumbers(Arc<RwLock<HashMap<String, u64>>>);

/// What follows their changes, once all are known.
pub struct ConfigurationChanges {
    store: EventStore,
    numbers: ConfigurationNumbers,
    followed: Option<Followed>,
}

struct Followed {
    messages: pull::Stream,
    /// The stream sequence up to which every change is known.
    known_to: u64,
    _kept: Ephemeral,
}

impl ConfigurationNumbers {
    /// Learns which configurations there are, as soon as the broker is there. Fails where waiting mends nothing.
    #[boxed::async_recursion]
    pub async fn learn(store: &EventStore) -> Result<(Self, ConfigurationChanges), Error> {
        let (numbers, mut failures) = (Self::default(), 0);
        let followed = loop {
            match numbers.follow_anew(store).await {
                Ok(followed) => break followed,
                Err(error) if error.is_passing() => rest(&error, &mut failures).await,
                Err(error) => return Err(error),
            }
        };
        let (store, known) = (store.clone(), numbers.clone());
        let changes = ConfigurationChanges { store, numbers: known, followed: Some(followed) };
        Ok((numbers, changes))
    }

    /// A number that changes with the tenant's configuration, and when it is taken away; 0: there never was one.
    #[must_use]
    pub fn of(&self, plugin: &Name, tenant: &str) -> u64 {
        let numbers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        numbers.get(&place(plugin, tenant)).copied().unwrap_or_default()
    }

    /// Reads the last message of each key, and returns what hears of further ones.
    async fn follow_anew(&self, store: &EventStore) -> Result<Followed, Error> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::LastPerSubject,
            filter_subject: subject(STREAM, ">"),
            headers_only: true,
            ..pull::Config::default()
        };
        let known_to = last_sequence(store).await?;
        let name = ephemeral::unique(&store.jetstream, "configurations");
        let (kept, consumer) = Ephemeral::create(&store.jetstream, STREAM, name, config).await?;
        let mut left = consumer.cached_info().num_pending;
        let messages = ephemeral::messages(&consumer, MESSAGES_AT_ONCE, PULL_BYTES_MIN).await?;
        let mut followed = Followed { messages, known_to, _kept: kept };
        let mut found = HashMap::new();
        while left > 0 {
            let next = timeout(REQUEST_TIMEOUT, followed.messages.next()).await;
            let next = next.map_err(|_| unavailable("configurations cannot be read in time"))?;
            let message =
                next.ok_or_else(|| unavailable("configurations are not read any more"))?;
            let message = message.map_err(unavailable)?;
            let (key, number, pending) = read(&message)?;
            found.insert(key, number);
            followed.known_to = followed.known_to.max(number);
            left = pending;
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(followed)
    }

    /// Takes the next change up, or looks whether there should have been one. Fails when the reader has ended, and
    /// when it has missed something.
    async fn hear(&self, store: &EventStore, followed: &mut Followed) -> Result<(), Error> {
        let Ok(next) = timeout(LOOK_EVERY, followed.messages.next()).await else {
            let is_whole = last_sequence(store).await? == followed.known_to;
            return if is_whole { Ok(()) } else { Err(unavailable("a change did not come")) };
        };
        let message = next.ok_or_else(|| unavailable("the reader has ended"))?;
        let (key, number, _) = read(&message.map_err(unavailable)?)?;
        followed.known_to = known_after(followed.known_to, number)?;
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, number);
        Ok(())
    }
}

/// The sequence up to which every change is known once this one has come. Fails where one before it has not: it was
/// lost on its way, and the end of the stream does not show that. One that another took the place of before it came
/// is missed in vain.
fn known_after(known_to: u64, number: u64) -> Result<u64, Error> {
    if number > known_to.saturating_add(1) {
        return Err(unavailable(format!("change {number} came behind {known_to}")));
    }
    Ok(known_to.max(number))
}

/// The stream sequence of the last change.
async fn last_sequence(store: &EventStore) -> Result<u64, Error> {
    let stream = store.jetstream.get_stream(STREAM).await.map_err(unavailable)?;
    Ok(stream.cached_info().state.last_sequence)
}

/// A message's key, its sequence, and how many are left behind it.
fn read(message: &jetstream::Message) -> Result<(String, u64, u64), Error> {
    let info = message.info().map_err(unavailable)?;
    let key = message.subject.strip_prefix(&subject(STREAM, "")).unwrap_or_default().to_owned();
    Ok((key, info.stream_sequence, info.pending))
}

impl ConfigurationChanges {
    /// Follows the changes, until it is dropped. While the broker is away, what was known last holds.
    #[boxed::async_recursion]
    pub async fn follow(mut self) {
        let mut failures = 0;
        loop {
            let heard = match &mut self.followed {
                Some(followed) => self.numbers.hear(&self.store, followed).await,
                None => match self.numbers.follow_anew(&self.store).await {
                    Ok(followed) => {
                        self.followed = Some(followed);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            match heard {
                Ok(()) => failures = 0,
                Err(error) => {
                    self.followed = None;
                    rest(&error, &mut failures).await;
                }
            }
        }
    }
}

/// Waits before the next try, and says at times why. What stays wrong is tried on: it may be mended meanwhile.
async fn rest(error: &Error, failures: &mut u32) {
    *failures = failures.saturating_add(1);
    if lasts(*failures) {
        tracing::warn!(%error, failures = *failures, "configurations of plugins are not followed");
    }
    tokio::time::sleep(AGAIN.jittered(*failures)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_did_not_come_is_missed_when_the_next_one_comes() {
        assert_eq!(known_after(0, 1).unwrap(), 1);
        assert_eq!(known_after(7, 8).unwrap(), 8);
        // The server that hands changes out may be behind the one that has said where they end.
        assert_eq!(known_after(7, 7).unwrap(), 7);
        for (known_to, number) in [(0, 2), (7, 9), (7, u64::MAX)] {
            assert!(known_after(known_to, number).unwrap_err().is_passing());
        }
    }

    #[test]
    fn a_place_is_of_one_plugin_and_one_tenant() {
        let name = |text: &str| Name::parse(text).unwrap();
        assert_eq!(place(&name("http"), "acme"), "http.acme");
        assert_ne!(place(&name("a"), "b_c"), place(&name("a_b"), "c"));
        let numbers = ConfigurationNumbers::default();
        numbers.0.write().unwrap().insert("http.acme".to_owned(), 7);
        assert_eq!(numbers.of(&name("http"), "acme"), 7);
        assert_eq!(numbers.of(&name("http"), "globex"), 0);
    }
}
