//! Admission of requests: rates by tenant, and bounds on work under way, which tenants share.
//! Requests that do not fit are turned away. An admitted request is begun at once, unless its
//! tenant wants more than its share while another one is there that does not. Then it waits for its
//! own tenant's requests, in a place that costs no processor time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use flexcore_domain::{AggregateKey, Tenant};
use flexcore_resilience::{Beside, Deadline, HeldPlace, Shares};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{Settings, error::Problem, limits, problems};

type Rates =
    RateLimiter<Tenant, DefaultKeyedStateStore<Tenant>, DefaultClock, StateInformationMiddleware>;

/// Requests between two looks at how many tenants are remembered.
const SWEEP_EVERY: usize = 4_096;

pub(crate) struct Admission {
    rates: Rates,
    policy: HeaderValue,
    checks: AtomicUsize,
    commands: Shares<Tenant>,
    aggregates: Shares<AggregateKey>,
    reads: Shares<Tenant>,
    calls: Shares<Tenant>,
    uploads: Arc<Semaphore>,
    under_way: Shares<Tenant>,
    turned_away: Shares<Tenant>,
    queries: Shares<Tenant>,
    streams: Shares<Tenant>,
}

/// The values of `RateLimit` fields for a request that was let in.
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
    /// `connections` are those that queries have to Postgres.
    pub(crate) fn new(settings: &Settings, connections: usize) -> Self {
        let rate = settings.requests_per_second;
        let requests = Beside::new(limits::BESIDE, limits::BESIDE_FEW);
        let queries = Beside::new(connections / limits::QUERIES_BESIDE, 1);
        Self {
            rates: RateLimiter::keyed(Quota::per_second(rate)).with_middleware(),
            policy: HeaderValue::try_from(format!("\"tenant\";q={rate};w=1"))
                .expect("BUG: digits and ASCII"),
            checks: AtomicUsize::new(0),
            commands: Shares::new(settings.commands_max, 1),
            aggregates: Shares::limited(usize::MAX, 1, limits::COMMANDS_PER_AGGREGATE_MAX),
            reads: Shares::new(limits::READS_MAX, 1),
            calls: Shares::new(limits::CALLS_MAX, 1),
            uploads: Arc::new(Semaphore::new(limits::UPLOADS_MAX)),
            under_way: Shares::new(usize::MAX, 1).beside(requests),
            turned_away: Shares::new(limits::TURNED_AWAY_MAX, 1),
            queries: Shares::new(connections, limits::QUERIES_TIMES).beside(queries),
            streams: Shares::limited(limits::STREAMS_MAX, 1, limits::STREAMS_PER_TENANT_MAX),
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

    /// A place for a command. Fails when the tenant has its share.
    pub(crate) fn command(&self, tenant: &Tenant) -> Result<HeldPlace<Tenant>, Problem> {
        self.commands.enter(tenant).ok_or_else(|| {
            shed("commands");
            Problem::new(&problems::OVERLOADED, "too many commands are under way; nothing was done")
        })
    }

    /// A place among the commands that wait for this aggregate. Fails when all are taken.
    pub(crate) fn aggregate(&self, key: &AggregateKey) -> Result<HeldPlace<AggregateKey>, Problem> {
        self.aggregates.enter(key).ok_or_else(|| {
            shed("aggregate");
            let detail = "too many commands for this aggregate are under way; nothing was done";
            Problem::new(&problems::OVERLOADED, detail)
        })
    }

    /// A place for a read. Fails when the tenant has its share.
    pub(crate) async fn read(&self, tenant: &Tenant) -> Result<HeldPlace<Tenant>, Problem> {
        if let Some(place) = self.reads.enter(tenant) {
            return Ok(place);
        }
        shed("reads");
        let problem = Problem::new(&problems::OVERLOADED, "too many reads are under way");
        Err(self.refuse(tenant, problem, Deadline::after(limits::ANSWER_TIMEOUT)).await)
    }

    /// A place for a call of a plugin. Fails when the tenant has its share.
    pub(crate) async fn call(
        &self,
        tenant: &Tenant,
        deadline: Deadline,
    ) -> Result<HeldPlace<Tenant>, Problem> {
        if let Some(place) = self.calls.enter(tenant) {
            return Ok(place);
        }
        shed("calls");
        let detail = "too many calls of plugins are under way; nothing was done";
        Err(self.refuse(tenant, Problem::new(&problems::OVERLOADED, detail), deadline).await)
    }

    /// A place for the upload of a plugin: the platform's own tenant alone asks for one. Fails when all are taken.
    pub(crate) fn upload(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.uploads.clone().try_acquire_owned().map_err(|_| {
            shed("uploads");
            let detail = "another plugin is being uploaded; nothing was done";
            Problem::new(&problems::OVERLOADED, detail)
        })
    }

    /// Waits until the tenant may have one more question for the workers under way. Fails when half of
    /// the time has passed: what would be begun then may have no answer in time.
    pub(crate) async fn turn(
        &self,
        tenant: &Tenant,
        deadline: Deadline,
    ) -> Result<HeldPlace<Tenant>, Problem> {
        let patience = deadline.remaining(Instant::now()) / 2;
        let turn = tokio::time::timeout(patience, self.under_way.wait(tenant)).await;
        turn.map_err(|_| {
            shed("turn");
            let detail = "your tenant's other requests are before it; nothing was done";
            Problem::new(&problems::OVERLOADED, detail)
        })
    }

    /// Tells a refusal, later when somebody else would notice the flood: a client that is refused at once
    /// comes again at once, and each time costs what all share.
    pub(crate) async fn refuse(
        &self,
        tenant: &Tenant,
        problem: Problem,
        deadline: Deadline,
    ) -> Problem {
        if self.under_way.is_beside(tenant)
            && let Some(_place) = self.turned_away.enter(tenant)
        {
            let half = deadline.remaining(Instant::now()) / 2;
            tokio::time::sleep(half.min(limits::REFUSED_AFTER)).await;
        }
        problem
    }

    /// A place for a query in Postgres, as soon as the tenant has one.
    pub(crate) async fn query(&self, tenant: &Tenant) -> HeldPlace<Tenant> {
        self.queries.wait(tenant).await
    }

    /// A place for an event stream, free again when it is dropped. Fails when the tenant has its
    /// share.
    pub(crate) fn stream(&self, tenant: &Tenant) -> Result<HeldPlace<Tenant>, Problem> {
        let (most, most_of_all) = (limits::STREAMS_PER_TENANT_MAX, limits::STREAMS_MAX);
        self.streams.enter(tenant).ok_or_else(|| {
            shed("streams");
            let detail =
                format!("a tenant has at most {most} event streams, the gateway {most_of_all}");
            Problem::new(&problems::OVERLOADED, detail)
        })
    }
}

/// Counts what was turned away.
pub(crate) fn shed(reason: &'static str) {
    metrics::counter!("flexcore_http_shed_total", "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use flexcore_domain::{AggregateId, AggregateName};

    use super::*;

    fn admission(rate: u32) -> Admission {
        let requests_per_second = NonZeroU32::new(rate).unwrap();
        let settings = Settings { requests_per_second, commands_max: 4, ..Settings::default() };
        Admission::new(&settings, 16)
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

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    /// Number of places for a tenant that takes all it can, and whether another one gets one then.
    fn flood<T>(enter: impl Fn(&Tenant) -> Result<T, Problem>) -> (usize, bool) {
        let taken: Vec<T> = std::iter::from_fn(|| enter(&tenant("flood")).ok()).collect();
        (taken.len(), enter(&tenant("calm")).is_ok())
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let (admission, one) = (admission(1), tenant("one"));
        let (first, _second) = (admission.command(&one).unwrap(), admission.command(&one).unwrap());
        assert_eq!(admission.command(&one).map(drop).unwrap_err().status(), 503);
        drop(first);
        assert!(admission.command(&one).is_ok());
    }

    #[tokio::test]
    async fn a_tenant_that_takes_all_it_can_has_nobody_else_refused() {
        let admission = admission(1);
        assert_eq!(flood(|tenant| admission.command(tenant)), (2, true));
        let read = |tenant: &Tenant| {
            futures::FutureExt::now_or_never(admission.read(tenant)).expect("it is told at once")
        };
        assert_eq!(flood(read), (limits::READS_MAX / 2, true));
        let call = |tenant: &Tenant| {
            let soon = Deadline::after(Duration::from_secs(10));
            let call = admission.call(tenant, soon);
            futures::FutureExt::now_or_never(call).expect("it is told at once")
        };
        assert_eq!(flood(call), (limits::CALLS_MAX / 2, true));
        assert_eq!(flood(|tenant| admission.stream(tenant)), (32, true));
        let flood = tenant("flood");
        let mut held = Vec::new();
        while let Some(place) = futures::FutureExt::now_or_never(admission.query(&flood)) {
            held.push(place);
        }
        assert_eq!(held.len(), 12);
        let calm = tenant("calm");
        assert!(futures::FutureExt::now_or_never(admission.query(&calm)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_flood_asks_waits_while_another_one_is_there() {
        let admission = admission(1);
        let (flood, calm) = (tenant("flood"), tenant("calm"));
        let soon = || Deadline::after(Duration::from_secs(10));
        let turn = |tenant| {
            let turn = admission.turn(tenant, soon());
            futures::FutureExt::now_or_never(turn).map(Result::unwrap)
        };
        let held: Vec<_> = std::iter::from_fn(|| turn(&flood)).take(320).collect();
        assert_eq!(held.len(), 320, "alone it waits for nobody");
        assert!(!admission.under_way.is_beside(&flood));
        let first = turn(&calm).expect("it waits for nobody");
        let asked = Instant::now();
        let late = admission.turn(&flood, soon()).await;
        assert_eq!(late.err().expect("it has enough under way").status(), 503);
        assert_eq!(asked.elapsed(), Duration::from_secs(5), "half of its time");
        drop((first, held));
    }

    /// As SHARES.md says of two tenants: of so many that one wants, so many are before the other's.
    #[tokio::test]
    async fn a_flood_has_an_nth_part_of_its_share_under_way_beside_another_one() {
        let (flood, calm) = (tenant("flood"), tenant("calm"));
        let soon = Deadline::after(Duration::from_secs(10));
        for (wants, has) in [(32, 32), (64, 16), (320, 3)] {
            let admission = admission(1);
            let _other = admission.turn(&calm, soon).await.unwrap();
            let asked = (0..limits::BESIDE / 2 + wants).map(|_| admission.turn(&flood, soon));
            let mut asked: Vec<_> = asked.map(Box::pin).collect();
            let first: Vec<_> =
                asked.iter_mut().filter_map(futures::FutureExt::now_or_never).collect();
            assert_eq!(first.len(), limits::BESIDE / 2, "a share of them is begun at once");
            drop(first);
            assert_eq!(admission.under_way.taken() - 1, has, "of {wants}");
        }
    }

    #[tokio::test]
    async fn a_flood_of_queries_has_one_in_postgres_beside_another_one() {
        let admission = admission(1);
        let (flood, calm) = (tenant("flood"), tenant("calm"));
        let mut asked: Vec<_> = (0..500).map(|_| Box::pin(admission.query(&flood))).collect();
        let alone: Vec<_> = asked.iter_mut().filter_map(futures::FutureExt::now_or_never).collect();
        assert_eq!(alone.len(), 12);
        let _other = futures::FutureExt::now_or_never(admission.query(&calm)).expect("at once");
        drop(alone);
        assert_eq!(admission.queries.taken() - 1, 1);
    }

    #[tokio::test]
    async fn refusals_that_are_told_late_are_bounded_and_the_rest_is_told_at_once() {
        let admission = admission(1);
        let (flood, calm) = (tenant("flood"), tenant("calm"));
        let soon = Deadline::after(Duration::from_secs(60));
        let mut held = vec![admission.turn(&calm, soon).await.unwrap()];
        for _ in 0..limits::BESIDE / 2 {
            held.push(admission.turn(&flood, soon).await.unwrap());
        }
        let mut waits = Box::pin(admission.turn(&flood, soon));
        assert!(futures::poll!(waits.as_mut()).is_pending(), "it wants more than its share");
        let refusals = (0..limits::TURNED_AWAY_MAX).map(|_| {
            let refused = Problem::new(&problems::OVERLOADED, "too many");
            Box::pin(admission.refuse(&flood, refused, soon))
        });
        let mut refusals: Vec<_> = refusals.collect();
        let told = refusals.iter_mut().filter_map(futures::FutureExt::now_or_never).count();
        assert_eq!(told, limits::TURNED_AWAY_MAX / 2, "the other half is told late");
        assert!(admission.turned_away.enter(&calm).is_some(), "and another one has places");
        drop(refusals);
        assert_eq!(admission.turned_away.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_told_its_refusals_late_while_another_one_is_there() {
        let admission = admission(1);
        let (flood, calm) = (tenant("flood"), tenant("calm"));
        let refuse = async |tenant| {
            let asked = Instant::now();
            let refused = Problem::new(&problems::OVERLOADED, "too many");
            admission.refuse(tenant, refused, Deadline::after(Duration::from_secs(15))).await;
            asked.elapsed()
        };
        let soon = Deadline::after(Duration::from_secs(10));
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(admission.turn(&flood, soon).await.unwrap());
        }
        assert_eq!(refuse(&flood).await, Duration::ZERO, "it is alone");
        held.push(admission.turn(&calm, soon).await.unwrap());
        assert_eq!(refuse(&flood).await, limits::REFUSED_AFTER);
        assert_eq!(refuse(&calm).await, Duration::ZERO);
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
        assert_eq!(admission.aggregates.taken(), 0);
    }

    #[test]
    fn one_plugin_is_uploaded_at_a_time() {
        let admission = admission(1);
        let place = admission.upload().unwrap();
        assert_eq!(admission.upload().map(drop).unwrap_err().status(), 503);
        drop(place);
        assert!(admission.upload().is_ok());
    }

    #[test]
    fn streams_are_bounded_in_all() {
        let admission = admission(1);
        let mut open = Vec::new();
        for number in 0..1_000 {
            let other = tenant(&format!("t{number}"));
            while let Ok(place) = admission.stream(&other) {
                open.push(place);
            }
        }
        assert_eq!(open.len(), limits::STREAMS_MAX);
        drop(open);
        assert_eq!(admission.streams.taken(), 0);
    }
}
