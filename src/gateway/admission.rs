//! Who may come in: rates by tenant, and bounds on what is under way. What does not fit is turned
//! away at once, so that nothing queues here and what was let in is answered in time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use flexcore_domain::{AggregateKey, Tenant};
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
    aggregates: Counts<AggregateKey>,
    reads: Semaphore,
    streams: Counts<Tenant>,
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
            aggregates: Counts::default(),
            reads: Semaphore::new(limits::READS_MAX),
            streams: Counts::default(),
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

    /// A place among the commands that wait for this aggregate. Fails when all are taken.
    pub(crate) fn aggregate(&self, key: &AggregateKey) -> Result<Place<AggregateKey>, Problem> {
        let most = limits::COMMANDS_PER_AGGREGATE_MAX;
        self.aggregates.enter(key, most, usize::MAX).ok_or_else(|| {
            shed("aggregate");
            let detail = "too many commands for this aggregate are under way; nothing was done";
            Problem::new(&problems::OVERLOADED, detail)
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
    pub(crate) fn stream(&self, tenant: &Tenant) -> Result<Place<Tenant>, Problem> {
        let (most, most_of_all) = (limits::STREAMS_PER_TENANT_MAX, limits::STREAMS_MAX);
        self.streams.enter(tenant, most, most_of_all).ok_or_else(|| {
            shed("streams");
            let detail =
                format!("a tenant has at most {most} event streams, the gateway {most_of_all}");
            Problem::new(&problems::OVERLOADED, detail)
        })
    }
}

/// How many places each has taken; who has none is not in it.
struct Counts<K>(Arc<Mutex<Taken<K>>>);

struct Taken<K> {
    of: HashMap<K, usize>,
    in_all: usize,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Taken { of: HashMap::new(), in_all: 0 })))
    }
}

impl<K: Clone + Eq + Hash> Counts<K> {
    /// A place, unless this one or all together have so many already.
    fn enter(&self, who: &K, most: usize, most_of_all: usize) -> Option<Place<K>> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.of.get(who).copied().unwrap_or(0);
        if own >= most || taken.in_all >= most_of_all {
            return None;
        }
        taken.of.insert(who.clone(), own + 1);
        taken.in_all += 1;
        Some(Place { counts: self.0.clone(), who: who.clone() })
    }
}

/// A place that is free again when this is dropped.
pub(crate) struct Place<K: Eq + Hash> {
    counts: Arc<Mutex<Taken<K>>>,
    who: K,
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        taken.in_all -= 1;
        if let Some(own) = taken.of.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&self.who);
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

    use flexcore_domain::{AggregateId, AggregateName};

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
    fn an_aggregate_that_everybody_wants_leaves_places_for_others() {
        let admission = admission(1);
        let [hot, cold] = ["hot", "cold"]
            .map(|id| {
                (Tenant::parse("one"), AggregateName::parse("flight"), AggregateId::parse(id))
            })
            .map(|(one, flight, id)| AggregateKey::new(one.unwrap(), flight.unwrap(), id.unwrap()));
        let mut waiting: Vec<_> = (0..limits::COMMANDS_PER_AGGREGATE_MAX)
            .map(|_| admission.aggregate(&hot).ok().unwrap())
            .collect();
        let response = admission.aggregate(&hot).err().expect("one too many").render(None);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (503, &"1".parse().unwrap())
        );
        assert!(admission.aggregate(&cold).is_ok());
        waiting.pop();
        assert!(admission.aggregate(&hot).is_ok());
        drop(waiting);
        assert!(admission.aggregates.0.lock().unwrap().of.is_empty());
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
        assert!(admission.streams.0.lock().unwrap().of.is_empty());
    }
}
