//! Postgres fails in every way that there is, as seen from the gateways. Their breaker opens soon,
//! queries then fail at once, one probe at a time looks whether it is back, commands do not notice,
//! and afterwards everything is as before.

use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::time::sleep;

use super::Extent;
use crate::{
    checker::{Verdict, answers, commands, reads},
    cluster::{Cluster, Shape},
    fake_postgres::Way,
    history::Told,
    http::Ask,
    load::Pace,
    report::{Section, quantile},
    rig::Rig,
};

/// Where the fake listens.
const PORT: u16 = 15_432;
/// The gateway that is looked at.
const GATEWAY: &str = "gateway-1";
/// Failures that it may take to open.
const FAILURES_MOST: usize = 20;
/// An answer is at once when it comes within this time.
const AT_ONCE: Duration = Duration::from_millis(10);
/// An answer that takes longer has asked Postgres: it is a probe.
const PROBE: Duration = Duration::from_millis(100);
/// Queries at a time.
const CLIENTS: usize = 4;
/// Longest time from Postgres' return until queries are answered again: the breaker's longest
/// pause, three probes, and a connection.
const BACK_MOST: Duration = Duration::from_secs(10);

const WAYS: [Way; 5] = [Way::Errors, Way::Hang, Way::Drip, Way::Reset, Way::HalfReset];

pub(crate) async fn run(seed: u64, extent: Extent) -> Section {
    let shape = Shape { fake_postgres: Some(PORT), ..Shape::default() };
    let pace = Pace { reads: 0, ..Pace::steady(30) };
    let mut rig = Rig::start("breaker", seed, shape, pace).await;
    rig.section.without = &[
        (reads::ROWS, "its own clients ask"),
        (reads::STATES, "its own clients ask"),
        (commands::TURNED_AWAY, "nothing is in the commands' way"),
        (commands::UNKNOWN, "nothing is in the commands' way"),
    ];
    let ways = extent.of(&WAYS[1..2], &WAYS[..]);
    for way in ways {
        fails(&mut rig, *way, Duration::from_secs(extent.of(5, 15))).await;
    }
    rig.finish().await
}

/// A query and how it went.
#[derive(Debug)]
struct Query {
    begun: Instant,
    took: Duration,
    /// 0: there was no answer.
    status: u16,
    retry_after: bool,
}

async fn query(cluster: &Cluster) -> Query {
    let begun = Instant::now();
    let ask = Ask::get("/v1/query/branches?limit=1", &cluster.tokens[0]);
    let answer = cluster.client.send(&cluster.gateway(1), &ask, Duration::from_secs(20)).await;
    let (status, retry_after) =
        answer.map_or((0, false), |answer| (answer.status, answer.header("retry-after").is_some()));
    Query { begun, took: begun.elapsed(), status, retry_after }
}

/// The breaker's state: 0 closed, 1 open, 2 half open.
async fn state(cluster: &Cluster) -> Option<u8> {
    let name = "flexcore_breaker_state{target=\"postgres\"}";
    cluster.metric(GATEWAY, name).await.map(|state| state as u8)
}

async fn fails(rig: &mut Rig, way: Way, length: Duration) {
    let fault = rig.fault(&format!("Postgres: {way:?}"));
    rig.fake().behave(way);
    let mut asked = opens(rig, way).await;
    asked.extend(while_open(rig, way, length).await);
    let back = Instant::now();
    rig.fake().behave(Way::Pass);
    let mut verdict = Verdict::new(0, "queries are answered again soon after Postgres is back");
    loop {
        let last = query(&rig.cluster).await;
        let answered = last.status == 200;
        asked.push(last);
        if answered && state(&rig.cluster).await == Some(0) || back.elapsed() > BACK_MOST * 2 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    let took = back.elapsed();
    verdict.hold(took <= BACK_MOST, || format!("{way:?}: {took:?} after it was back"));
    rig.section.verdicts.push(verdict);
    rig.section.time(format!("queries again after {way:?}"), took.as_secs_f64() * 1e3);
    rig.section.verdicts.push(nothing_failed_inside(way, &asked));
    commands_unharmed(rig, way, fault);
}

/// The check of all answers, of this experiment's own queries.
fn nothing_failed_inside(way: Way, asked: &[Query]) -> Verdict {
    let mut verdict = Verdict::new(13, answers::INSIDE);
    for query in asked.iter().filter(|query| query.status > 0) {
        let holds = answers::is_of_use(query.status, query.retry_after, true);
        verdict.hold(holds, || format!("{way:?}: {query:?}"));
    }
    verdict
}

/// Asks until the breaker is open, and counts the failures until then. Gives the queries.
async fn opens(rig: &mut Rig, way: Way) -> Vec<Query> {
    let (mut queries, mut failures, begun) = (Vec::new(), 0, Instant::now());
    // Half of the connections fail, and those that are open already do not at first.
    while state(&rig.cluster).await == Some(0) && begun.elapsed() < Duration::from_secs(60) {
        let asked = join_all((0..CLIENTS).map(|_| query(&rig.cluster))).await;
        failures += asked.iter().filter(|query| query.status != 200).count();
        queries.extend(asked);
    }
    let mut verdict = Verdict::new(0, "the breaker opens within 20 failures");
    let open = state(&rig.cluster).await != Some(0);
    verdict.hold(open && failures <= FAILURES_MOST + CLIENTS, || {
        format!("{way:?}: open {open} after {failures} failures")
    });
    rig.section.verdicts.push(verdict);
    rig.section.time(format!("opening at {way:?}"), begun.elapsed().as_secs_f64() * 1e3);
    queries
}

/// Asks on while it is open: at once, but for one probe at a time. Gives the queries.
async fn while_open(rig: &mut Rig, way: Way, length: Duration) -> Vec<Query> {
    let begun = Instant::now();
    let cluster = &rig.cluster;
    let client = || async {
        let mut asked = Vec::new();
        while begun.elapsed() < length {
            asked.push(query(cluster).await);
            sleep(Duration::from_millis(20)).await;
        }
        asked
    };
    let asked = join_all((0..CLIENTS).map(|_| client())).await;
    let mut asked: Vec<Query> = asked.into_iter().flatten().collect();
    asked.sort_by_key(|query| query.begun);
    let mut fast = Verdict::new(0, "an open breaker fails 99 of 100 queries within 10 ms");
    let mut refusals = Vec::new();
    let mut alone = Verdict::new(0, "one probe at a time");
    // Errors and resets come fast themselves: only what hangs tells probes from refusals.
    let mut probing_until = begun;
    for query in asked.iter().filter(|query| query.status == 503) {
        if query.took < PROBE {
            refusals.push(query.took.as_secs_f64() * 1e3);
            continue;
        }
        alone.hold(query.begun >= probing_until, || format!("{way:?}: {query:?}"));
        probing_until = probing_until.max(query.begun + query.took);
    }
    // The processors are shared with everything else: now and then one waits for its turn.
    let p99 = quantile(&refusals, 0.99);
    fast.hold(p99 <= AT_ONCE.as_secs_f64() * 1e3, || format!("{way:?}: {p99:.1} ms"));
    fast.n = refusals.len();
    rig.section.verdicts.extend([fast, alone]);
    for ms in refusals {
        rig.section.time(format!("refusal during {way:?}"), ms);
    }
    asked
}

fn commands_unharmed(rig: &mut Rig, way: Way, from_ns: u64) {
    let mut verdict = Verdict::new(13, "commands do not notice that Postgres fails");
    let calls = rig.history.calls();
    for call in calls.iter().filter(|call| call.gateway > 0 && call.start_ns >= from_ns) {
        let soon = call.end_ns - call.start_ns < 1_000_000_000;
        let known =
            matches!(call.told, Told::Accepted { .. } | Told::Queued | Told::Refused { .. });
        verdict.hold(soon && known, || format!("{way:?}: {call:?}"));
    }
    rig.section.verdicts.push(verdict);
}
