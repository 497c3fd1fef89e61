//! Configurations of tenants: an instance gets one before its tenant's first call, and again when it has changed.
//! Nothing is given at a start, however many tenants there are.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use flexcore_plugin::{
    Error,
    contract::{Client, Description, Failure, is_unknown},
};
use futures::future::{BoxFuture, FutureExt as _, ready};
use tokio::time::Instant;

use crate::{
    limits::{CONFIGURE_MAX, CONFIGURE_WAIT, UNCONFIGURED_PAUSE, UNCONFIGURED_PAUSE_MAX},
    locked::locked,
};

/// Where the configurations of a plugin's tenants come from. The default: there are none.
#[derive(Clone)]
pub struct Configurations {
    number: Arc<dyn Fn(&str) -> u64 + Send + Sync>,
    read: Arc<Read>,
}

/// Reads the configuration of a tenant for a plugin that describes itself so.
type Read = dyn Fn(&str, &Arc<Description>) -> Reading + Send + Sync;

/// A configuration that is being read: JSON; `None`: there is none any more.
pub type Reading = BoxFuture<'static, Result<Option<Bytes>, Failure>>;

impl Configurations {
    /// The code of the failure of calls that are refused since there is no configuration with which the plugin works.
    pub const UNCONFIGURED: &str = "unconfigured";

    /// From these two. `number` says by its changes that a tenant's configuration has changed; 0: the tenant
    /// never had one. It is asked before each call, and must not block. `read` reads a tenant's
    /// configuration, which is JSON, for a plugin that describes itself so; its failure is the reason for which
    /// calls of this tenant are refused.
    pub fn new(
        number: impl Fn(&str) -> u64 + Send + Sync + 'static,
        read: impl Fn(&str, &Arc<Description>) -> Reading + Send + Sync + 'static,
    ) -> Self {
        Self { number: Arc::new(number), read: Arc::new(read) }
    }

    pub(crate) fn number(&self, tenant: &str) -> u64 {
        (self.number)(tenant)
    }
}

impl Default for Configurations {
    fn default() -> Self {
        Self::new(|_| 0, |_, _| ready(Ok(None)).boxed())
    }
}

/// Without the configurations, which have secrets.
impl fmt::Debug for Configurations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configurations").finish_non_exhaustive()
    }
}

/// What one process was given, by tenant: of those alone that have called, and have or had a configuration.
#[derive(Debug, Default)]
pub(crate) struct Configured(Mutex<HashMap<String, Arc<OfTenant>>>);

/// One tenant at one process.
#[derive(Debug, Default)]
pub(crate) struct OfTenant {
    /// Held while a configuration is being given: the next one is given after that, never beside it.
    pub(crate) given: Arc<tokio::sync::Mutex<Given>>,
    /// While one is being given: until when calls wait for it.
    until: Mutex<Option<Instant>>,
}

/// What was given of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// The number before it was read; 0: nothing was looked at yet.
    number: u64,
    /// The process may have a configuration of the tenant.
    was_sent: bool,
    /// Why it does not work with it.
    failure: Option<Failure>,
    /// When that may be over.
    again: Option<Instant>,
}

impl Configured {
    pub(crate) fn of(&self, tenant: &str) -> Arc<OfTenant> {
        let mut all = locked(&self.0);
        if let Some(given) = all.get(tenant) {
            return Arc::clone(given);
        }
        Arc::clone(all.entry(tenant.to_owned()).or_default())
    }
}

impl OfTenant {
    /// A configuration is being given from now on.
    pub(crate) fn begins(&self, now: Instant) {
        *locked(&self.until) = Some(now + CONFIGURE_WAIT);
    }

    /// None is being given any more.
    pub(crate) fn ends(&self) {
        *locked(&self.until) = None;
    }

    /// How long a call waits at most for the one that is being given: not at all once that is late.
    pub(crate) fn patience(&self, now: Instant) -> Duration {
        let until = *locked(&self.until);
        until.map_or(CONFIGURE_WAIT, |until| until.saturating_duration_since(now))
    }
}

impl Given {
    /// What holds for calls now, if this number was taken up. `None`: the configuration is to be given first.
    pub(crate) fn holds(&self, number: u64, now: Instant) -> Option<Result<(), Failure>> {
        if self.number != number || self.again.is_some_and(|again| now >= again) {
            return None;
        }
        Some(self.failure.clone().map_or(Ok(()), Err))
    }

    /// Reads the configuration and gives it to the process. Returns what holds for calls now. Fails where the
    /// process may have ended.
    pub(crate) async fn give(
        &mut self,
        client: &Client,
        description: &Arc<Description>,
        from: &Configurations,
        (tenant, number): (&str, u64),
    ) -> Result<Result<(), Failure>, Error> {
        let configuration = match (from.read)(tenant, description).await {
            Ok(configuration) => configuration,
            Err(failure) => return Ok(self.take(number, Some(failure))),
        };
        if configuration.is_none() && !self.was_sent {
            return Ok(self.take(number, None));
        }
        self.was_sent = true;
        let json = configuration.unwrap_or_else(|| Bytes::from_static(b"null"));
        let failure = match client.configure(tenant, json, CONFIGURE_MAX).await {
            Ok(answered) => answered.err().as_ref().map(refused),
            Err(Error::Late { .. }) => Some(Failure::passing(UNCONFIGURED, SLOW)),
            Err(error @ (Error::Contract(_) | Error::TooLarge { .. })) => {
                Some(Failure::new(UNCONFIGURED, error))
            }
            Err(error @ Error::Status { .. }) if !is_unknown(&error) => {
                Some(Failure::new(UNCONFIGURED, error))
            }
            Err(error) => return Err(error),
        };
        Ok(self.take(number, failure))
    }

    /// The plugin has not said what it thinks of it, and lives.
    pub(crate) fn fails(&mut self, number: u64, error: &Error) -> Result<(), Failure> {
        let message = format!("the plugin did not take this tenant's configuration: {error}");
        self.take(number, Some(Failure::passing(UNCONFIGURED, message)))
    }

    fn take(&mut self, number: u64, failure: Option<Failure>) -> Result<(), Failure> {
        let passing = failure.as_ref().filter(|failure| failure.temporary);
        self.again = passing.map(|failure| Instant::now() + pause(failure));
        self.number = number;
        self.failure.clone_from(&failure);
        failure.map_or(Ok(()), Err)
    }
}

const UNCONFIGURED: &str = Configurations::UNCONFIGURED;

const SLOW: &str = "the plugin did not take this tenant's configuration in time; no call was made";

/// The plugin's failure, as a caller has it: no call was made.
fn refused(failure: &Failure) -> Failure {
    let message = format!("the plugin does not work with this tenant's configuration: {failure}");
    Failure {
        temporary: failure.temporary,
        retry_after_ms: failure.retry_after_ms,
        ..Failure::new(UNCONFIGURED, message)
    }
}

/// The time after which a configuration is given once more.
fn pause(failure: &Failure) -> Duration {
    match failure.retry_after_ms {
        0 => UNCONFIGURED_PAUSE,
        asked => Duration::from_millis(asked).clamp(UNCONFIGURED_PAUSE, UNCONFIGURED_PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_passing_failure_holds_for_a_while_and_another_one_until_something_changes() {
        let mut given = Given::default();
        assert_eq!(given.holds(1, Instant::now()), None);
        let _ = given.take(1, None);
        assert_eq!(given.holds(1, Instant::now()), Some(Ok(())));
        assert_eq!(given.holds(2, Instant::now()), None, "it has changed");
        let wrong = refused(&Failure::new("no_host", "it has no host"));
        assert!(wrong.message.ends_with("no_host: it has no host") && !wrong.temporary);
        let _ = given.take(2, Some(wrong.clone()));
        tokio::time::advance(Duration::from_secs(3_600)).await;
        assert_eq!(given.holds(2, Instant::now()), Some(Err(wrong)));
        let away = Failure::passing("away", "x").retry_after(UNCONFIGURED_PAUSE * 4);
        let _ = given.take(3, Some(refused(&away)));
        tokio::time::advance(UNCONFIGURED_PAUSE * 3).await;
        assert!(matches!(given.holds(3, Instant::now()), Some(Err(_))));
        tokio::time::advance(UNCONFIGURED_PAUSE * 3).await;
        assert_eq!(given.holds(3, Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_a_configuration_that_is_being_given_unless_it_is_late() {
        let of = OfTenant::default();
        assert_eq!(of.patience(Instant::now()), CONFIGURE_WAIT);
        of.begins(Instant::now());
        tokio::time::advance(CONFIGURE_WAIT / 2).await;
        assert_eq!(of.patience(Instant::now()), CONFIGURE_WAIT / 2);
        tokio::time::advance(CONFIGURE_WAIT).await;
        assert_eq!(of.patience(Instant::now()), Duration::ZERO);
        of.ends();
        assert_eq!(of.patience(Instant::now()), CONFIGURE_WAIT);
    }

    #[test]
    fn a_plugin_that_asks_for_an_hour_is_asked_sooner() {
        let asked = |pause| Failure::passing("away", "x").retry_after(pause);
        for (given, expected) in [
            (Failure::passing("away", "x"), UNCONFIGURED_PAUSE),
            (asked(Duration::from_millis(1)), UNCONFIGURED_PAUSE),
            (asked(Duration::from_secs(3_600)), UNCONFIGURED_PAUSE_MAX),
        ] {
            assert_eq!(pause(&given), expected);
        }
    }

    #[test]
    fn a_tenant_has_one_state_and_no_other_has_it() {
        let configured = Configured::default();
        assert!(Arc::ptr_eq(&configured.of("acme"), &configured.of("acme")));
        assert!(!Arc::ptr_eq(&configured.of("acme"), &configured.of("globex")));
    }
}
