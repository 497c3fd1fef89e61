//! Who may come in: rates by tenant, and a bound on what is under way. What does not fit is turned
//! away at once, so that nothing queues here and what was let in is answered in time.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use flexcore_domain::Tenant;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{Settings, error::Problem, limits, problems};

type Rates =
    RateLimiter<Tenant, DefaultKeyedStateStore<Tenant>, DefaultClock, StateInformationMiddleware>;

/// Requests between two looks at how many tenants are remembered.
const SWEEP_EVERY: usize = 4_096;

pub(crate) struct Admission {
    rates: Rates,
    policy: HeaderValue,
    checks: AtomicUsize,
    commands: Semaphore,
    reads: Semaphore,
    streams: Arc<Mutex<HashMap<Tenant, usize>>>,
}

/// What `RateLimit` fields say of a request that was let in.
pub(crate) struct Rate {
    policy: HeaderValue,
    remaining: u32,
}

impl Rate {
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        write_rate(headers, &self.policy, self.remaining, 1);
    }
}

fn write_rate(headers: &mut HeaderMap, policy: &HeaderValue, remaining: u32, reset_s: u64) {
    let text = format!("\"tenant\";r={remaining};t={reset_s}");
    let value = HeaderValue::try_from(text).expect("BUG: digits and ASCII");
    headers.insert(HeaderName::from_static("ratelimit"), value);
    headers.insert(HeaderName::from_static("ratelimit-policy"), policy.clone());
}

impl Admission {
    pub(crate) fn new(settings: &Settings) -> Self {
        let rate = settings.requests_per_second;
        Self {
            rates: RateLimiter::keyed(Quota::per_second(rate)).with_middleware(),
            policy: HeaderValue::try_from(format!("\"tenant\";q={rate};w=1"))
                .expect("BUG: digits and ASCII"),
            checks: AtomicUsize::new(0),
            commands: Semaphore::new(settings.commands_max),
            reads: Semaphore::new(limits::READS_MAX),
            streams: Arc::default(),
        }
    }

    /// Counts a request of this tenant. Fails when its rate is used up.
    pub(crate) fn rate(&self, tenant: &Tenant) -> Result<Rate, Problem> {
        if self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(SWEEP_EVERY)
            && self.rates.len() > limits::TENANTS_MAX
        {
            self.rates.retain_recent();
        }
        match self.rates.check_key(tenant) {
            Ok(state) => Ok(Rate {
                policy: self.policy.clone(),
                remaining: state.remaining_burst_capacity(),
            }),
            Err(until) => {
                shed("rate");
                let wait = until.wait_time_from(DefaultClock::default().now());
                let wait_s = wait.as_secs() + 1;
                let mut headers = HeaderMap::new();
                write_rate(&mut headers, &self.policy, 0, wait_s);
                let mut problem = Problem::new(
                    &problems::RATE_LIMITED,
                    format!(
                        "your tenant may send {} requests a second",
                        until.quota().burst_size()
                    ),
                )
                .header(axum::http::header::RETRY_AFTER, wait_s.into());
                for (name, value) in headers.iter() {
                    problem = problem.header(name.clone(), value.clone());
                }
                Err(problem)
            }
        }
    }

    /// A place for a command. Fails when all are taken.
    pub(crate) fn command(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.commands.try_acquire().map_err(|_| {
            shed("commands");
            Problem::new(&problems::OVERLOADED, "too many commands are under way; nothing was done")
        })
    }

    /// A place for a read. Fails when all are taken.
    pub(crate) fn read(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.reads.try_acquire().map_err(|_| {
            shed("reads");
            Problem::new(&problems::OVERLOADED, "too many reads are under way")
        })
    }

    /// A place for an event stream, free again when it is dropped. Fails when the tenant's or all
    /// are taken.
    pub(crate) fn stream(&self, tenant: &Tenant) -> Result<StreamPlace, Problem> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = streams.values().sum();
        let own = streams.get(tenant).copied().unwrap_or(0);
        if own >= limits::STREAMS_PER_TENANT_MAX || all >= limits::STREAMS_MAX {
            shed("streams");
            let detail = format!(
                "a tenant has at most {} event streams, the gateway {}",
                limits::STREAMS_PER_TENANT_MAX,
                limits::STREAMS_MAX
            );
            return Err(Problem::new(&problems::OVERLOADED, detail));
        }
        streams.insert(tenant.clone(), own + 1);
        Ok(StreamPlace { streams: self.streams.clone(), tenant: tenant.clone() })
    }
}

/// A place among the event streams.
pub(crate) struct StreamPlace {
    streams: Arc<Mutex<HashMap<Tenant, usize>>>,
    tenant: Tenant,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = streams.get_mut(&self.tenant) {
            *open -= 1;
            if *open == 0 {
                streams.remove(&self.tenant);
            }
        }
    }
}

/// Counts what was turned away.
pub(crate) fn shed(reason: &'static str) {
    metrics::counter!("flexcore_http_shed_total", "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn admission(rate: u32) -> Admission {
        let requests_per_second = NonZeroU32::new(rate).unwrap();
        Admission::new(&Settings { requests_per_second, commands_max: 2, ..Settings::default() })
    }

    #[test]
    fn a_tenant_that_used_up_its_rate_does_not_hold_up_another() {
        let admission = admission(5);
        let [one, two] = ["one", "two"].map(|name| Tenant::parse(name).unwrap());
        for left in (0..5).rev() {
            assert_eq!(admission.rate(&one).ok().unwrap().remaining, left);
        }
        let problem = admission.rate(&one).err().expect("over the rate");
        let response = problem.render(None);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["ratelimit"], "\"tenant\";r=0;t=1");
        assert_eq!(response.headers()["ratelimit-policy"], "\"tenant\";q=5;w=1");
        assert!(admission.rate(&two).is_ok());
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let admission = admission(1);
        let (first, _second) = (admission.command().unwrap(), admission.command().unwrap());
        assert_eq!(admission.command().unwrap_err().status(), 503);
        drop(first);
        assert!(admission.command().is_ok());
    }

    #[test]
    fn streams_are_bounded_by_tenant_and_in_all() {
        let admission = admission(1);
        let tenant = Tenant::parse("one").unwrap();
        let mut open: Vec<_> = (0..limits::STREAMS_PER_TENANT_MAX)
            .map(|_| admission.stream(&tenant).ok().unwrap())
            .collect();
        assert!(admission.stream(&tenant).is_err());
        for number in 0.. {
            let other = Tenant::parse(&format!("t{number}")).unwrap();
            let Ok(place) = admission.stream(&other) else { break };
            open.push(place);
        }
        assert_eq!(open.len(), limits::STREAMS_MAX);
        drop(open);
        assert!(admission.streams.lock().unwrap().is_empty());
    }
}
