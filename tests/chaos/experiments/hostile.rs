//! One tenant floods, sends the largest and the malformed, and has deployed functions that never end,
//! while the others go on: their invariants hold, nobody turns them away (of a debug build's commands a few
//! may be), and their p99 keeps a bound that a stretch of the same run without it gives.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::Extent;
use crate::{
    checker::{Verdict, commands},
    cluster::Shape,
    history::{Call, Read, Told},
    hostile::{Hostile, TENANT},
    limits::{BESIDE_HOSTILE_MS, BESIDE_HOSTILE_TIMES, TURNED_AWAY_OF},
    load::Pace,
    report::{Section, quantile},
    rig::Rig,
};

/// Its definitions.
const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/hostile");
/// The line of theirs that an event begins with, and what it says in the middle of the second stretch: older
/// events need an upcast that the engine does not come back from.
const EVENT: &str = "  kept:\n";
const WITH_UPCAST: &str = r#"  kept:
    version: 2
    upcast:
      1: |
        () => {
          const one = "a".repeat(1e3).repeat(1e4), other = one.slice(1) + "a";
          for (let n = 0; n < 4000; n++) one === other;
          return {};
        }
"#;
/// Time for which the others are watched without it, and then beside it.
const QUIET: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(60));
const BESIDE: (Duration, Duration) = (Duration::from_secs(12), Duration::from_secs(60));
/// Calls of functions that a worker left behind, or that ended long after their time.
const RUNAWAYS: &str = "flexcore_script_runaways_total";
/// Queries of a gateway that go on after their time limit, and how often it is asked for them.
const UNSTOPPED: &str = "flexcore_queries_unstopped";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The others' load, in requests a second, and how long it runs before the first stretch.
const RATE: u64 = 60;
const WARM_UP: Duration = Duration::from_secs(2);
/// Name of the second stretch.
const BESIDE_IT: &str = "beside it";

pub(crate) async fn run(seed: u64, extent: Extent) -> Section {
    let mut rig = Rig::start("hostile", seed, Shape::default(), Pace::steady(RATE)).await;
    rig.section.without =
        &[(commands::TURNED_AWAY, "nothing fails"), (commands::UNKNOWN, "nothing fails")];
    faults(&mut rig, extent).await;
    rig.finish().await
}

/// Both stretches.
async fn faults(rig: &mut Rig, extent: Extent) {
    tokio::time::sleep(WARM_UP).await;
    let token = rig.cluster.token(TENANT);
    let quiet_ns = rig.fault("nothing yet");
    tokio::time::sleep(extent.of(QUIET.0, QUIET.1)).await;
    let hostile_ns = rig.fault("a tenant deploys what it has, and floods");
    let mut deployed = tried(|| rig.cluster.flexcore(&["apply", DEFINITIONS]));
    let hostile = Hostile::start(&rig.cluster.place(), &token, rig.seed);
    let half = extent.of(BESIDE.0, BESIDE.1) / 2;
    let mut unstopped = unstopped_for(rig, half).await;
    let later = with_upcast(Path::new(DEFINITIONS), &rig.cluster.net.folder);
    let apply = || rig.cluster.flexcore(&["apply", later.to_str().unwrap()]);
    deployed = deployed.and_then(|_| tried(apply));
    unstopped = unstopped.max(unstopped_for(rig, half).await);
    let end_ns = rig.fault("it stops");
    let (done, answers) = hostile.stop().await;
    let runaways = sum(rig, "worker", RUNAWAYS).await;
    rig.unload().await;
    let (calls, reads) = (rig.history.calls(), rig.history.reads());
    let section = &mut rig.section;
    // A slice has no time to be sure of it, and a debug build does not ask for the query.
    let is_sure = extent == Extent::Full && !cfg!(debug_assertions);
    let ran_on = is_sure.then_some([runaways, unstopped]);
    section.verdicts.extend([at_work(deployed, done, ran_on), answers]);
    let [published, answered, served, malformed] = done;
    let told = format!(
        "it published {published} commands; {malformed} were stored whose headers nobody can read; gateways \
         answered it {answered} times, {served} times with 2xx"
    );
    section.notes.push(told);
    section.notes.push(format!("{runaways} calls into the engine ran on"));
    section.notes.push(format!("{unstopped} queries ran on at once that Postgres did not stop"));
    let quiet = judge(section, &calls, &reads, "without it", quiet_ns..hostile_ns);
    let beside = judge(section, &calls, &reads, BESIDE_IT, hostile_ns..end_ns);
    section.verdicts.push(bounded(&quiet, &beside));
}

/// Does it, up to three times. Postgres is asked to prepare the queries of what is deployed, and may be busy with
/// the tenant's own.
fn tried<T, E>(mut once: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    once().or_else(|_| once()).or_else(|_| once())
}

/// The definitions with the upcast, in a folder below this one that has their name.
fn with_upcast(definitions: &Path, below: &Path) -> PathBuf {
    let later = below.join("later").join(definitions.file_name().unwrap());
    fs::create_dir_all(&later).unwrap();
    for path in fs::read_dir(definitions).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = fs::read_to_string(&path).unwrap().replace(EVENT, WITH_UPCAST);
            fs::write(later.join(path.file_name().unwrap()), text).unwrap();
        }
    }
    later
}

/// Waits so long. Gives how many queries went on at once after their time limit meanwhile, at the most.
async fn unstopped_for(rig: &Rig, length: Duration) -> f64 {
    let (begun, mut most) = (Instant::now(), 0.0_f64);
    while begun.elapsed() < length {
        most = most.max(sum(rig, "gateway", UNSTOPPED).await);
        tokio::time::sleep(LOOK_EVERY).await;
    }
    most
}

/// A metric, summed over all nodes of a role that tell it.
async fn sum(rig: &Rig, role: &'static str, metric: &str) -> f64 {
    let mut sum = 0.0;
    for node in rig.cluster.names_of(role) {
        sum += rig.cluster.metric(&node, metric).await.unwrap_or(0.0);
    }
    sum
}

/// Holds that there is something to bear: without it the others' times say nothing. Where calls and queries that
/// ran on are given, there must be some of each.
fn at_work(
    deployed: Result<String, String>,
    [published, _, served, malformed]: [u64; 4],
    ran_on: Option<[f64; 2]>,
) -> Verdict {
    let mut verdict = Verdict::new(0, "a hostile tenant deploys, and floods over NATS and HTTP");
    verdict.hold(deployed.is_ok(), || format!("its definitions were refused: {deployed:?}"));
    verdict.hold(published > 0, || "it published nothing".to_owned());
    verdict.hold(malformed > 0, || "no broker stored what no client could have sent".to_owned());
    verdict.hold(served > 0, || "no gateway did anything for it".to_owned());
    if let Some([runaways, unstopped]) = ran_on {
        verdict.hold(runaways > 0.0, || "no call into the engine ran on".to_owned());
        verdict.hold(unstopped > 0.0, || "no query ran on".to_owned());
    }
    verdict
}

/// Holds that each of the others' commands of a stretch was answered; beside the tenant a few may be turned
/// away, see [`TURNED_AWAY_OF`]. Gives the times of those that were sent to a gateway, in milliseconds.
fn judge(
    section: &mut Section,
    calls: &[Call],
    reads: &[Read],
    when: &str,
    stretch: Range<u64>,
) -> Vec<f64> {
    let mut verdict = Verdict::new(0, "the others' commands are answered, and not turned away");
    let mut times = Vec::new();
    let sent: Vec<&Call> = calls.iter().filter(|c| stretch.contains(&c.start_ns)).collect();
    let is_turned_away = |call: &Call| matches!(call.told, Told::TurnedAway { .. });
    let turned_away = sent.iter().filter(|call| is_turned_away(call)).count();
    let few = when == BESIDE_IT && turned_away.saturating_mul(TURNED_AWAY_OF) <= sent.len();
    for call in &sent {
        let holds = call.told.is_known() || (few && is_turned_away(call));
        verdict.hold(holds, || format!("{when}: {call:?}"));
        if call.gateway > 0 {
            times.push((call.end_ns - call.start_ns) as f64 / 1e6);
        }
    }
    section.verdicts.push(verdict);
    for ms in &times {
        section.time(format!("the others' commands {when}"), *ms);
    }
    let [p50, p99] = [0.5, 0.99].map(|part| quantile(&times, part));
    let asked: Vec<&Read> = reads.iter().filter(|r| stretch.contains(&r.start_ns)).collect();
    let open = asked.iter().filter(|read| read.seen.is_passing()).count();
    section.notes.push(format!(
        "{when}: {} commands of the others at gateways, p50 {p50:.0} ms, p99 {p99:.0} ms; {turned_away} \
         of all {} turned away; {} of their questions, {open} without an answer",
        times.len(),
        sent.len(),
        asked.len()
    ));
    times
}

/// The others' p99 beside it, against theirs without it. Of one stretch alone nothing is said: n is
/// the smaller number of the two.
fn bounded(quiet: &[f64], beside: &[f64]) -> Verdict {
    let mut verdict = Verdict::new(0, "beside a hostile tenant the others' p99 keeps its bound");
    let [quiet_ms, beside_ms] = [quiet, beside].map(|times| quantile(times, 0.99));
    let most_ms = quiet_ms * BESIDE_HOSTILE_TIMES + BESIDE_HOSTILE_MS;
    let n = quiet.len().min(beside.len());
    verdict.hold(n == 0 || beside_ms <= most_ms, || {
        let (n, quiet_n) = (beside.len(), quiet.len());
        format!(
            "{beside_ms:.0} ms of {n}, over {most_ms:.0}: {quiet_ms:.0} ms of {quiet_n} without it"
        )
    });
    verdict.n = n;
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Wanted, Way};

    fn call(start_ns: u64, way: Way, told: Told) -> Call {
        let (account, key) = ("a".to_owned(), "k".to_owned());
        Call {
            tenant: "alder",
            account,
            wanted: Wanted::Deposit { amount: 5, parts: 1 },
            tag: key.clone(),
            key,
            if_match: None,
            way,
            gateway: usize::from(way != Way::Publish),
            start_ns,
            end_ns: start_ns + 2_000_000,
            told,
        }
    }

    #[test]
    fn a_command_beside_a_hostile_tenant_without_an_answer_is_found() {
        let turned_away = Told::TurnedAway { status: 503, code: String::new(), retry_after: true };
        let lost = Told::NoAnswer { why: "no acknowledgement".to_owned() };
        for (way, told, violations) in [
            (Way::Wait, Told::Queued, 0),
            (Way::Wait, Told::Refused { status: 409, code: String::new() }, 0),
            (Way::Wait, turned_away, 1),
            (Way::Publish, Told::Queued, 0),
            (Way::Publish, lost, 1),
        ] {
            let calls = [5, 10, 20].map(|at| call(at, way, told.clone()));
            let mut section = Section::new("s");
            let times = judge(&mut section, &calls, &[], BESIDE_IT, 10..20);
            // What an acknowledgement of the broker takes is no time of a gateway.
            assert_eq!(times, vec![2.0; usize::from(way == Way::Wait)]);
            let verdict = &section.verdicts[0];
            assert_eq!((verdict.n, verdict.violations.len()), (1, violations), "{verdict:?}");
        }
    }

    #[test]
    fn beside_a_hostile_tenant_few_are_turned_away_in_a_debug_build_and_none_in_another() {
        let shed = || Told::TurnedAway { status: 503, code: String::new(), retry_after: true };
        let lost = || Told::NoAnswer { why: "no acknowledgement".to_owned() };
        let few = if cfg!(debug_assertions) { 0 } else { 5 };
        for (when, told, count, violations) in [
            (BESIDE_IT, shed(), 5, few),
            (BESIDE_IT, shed(), 6, 6),
            ("without it", shed(), 1, 1),
            // Nobody knows what came of it.
            (BESIDE_IT, lost(), 1, 1),
        ] {
            let others = (count..100).map(|_| call(10, Way::Wait, Told::Queued));
            let calls = (0..count).map(|_| call(10, Way::Wait, told.clone())).chain(others);
            let calls: Vec<Call> = calls.collect();
            let mut section = Section::new("s");
            judge(&mut section, &calls, &[], when, 10..20);
            let verdict = &section.verdicts[0];
            let found = (verdict.n, verdict.violations.len());
            assert_eq!(found, (100, violations), "{count} {told:?} {when}");
        }
    }

    #[test]
    fn a_p99_beyond_its_bound_is_found() {
        let most_ms = 30.0 * BESIDE_HOSTILE_TIMES + BESIDE_HOSTILE_MS;
        let quiet = [vec![30.0; 199], vec![9_000.0]].concat();
        // As far as the bound, which one in a hundred may pass; and beyond it.
        let (within, beyond) =
            ([vec![most_ms; 99], vec![9_000.0]].concat(), vec![most_ms + 1.0; 100]);
        let none = Vec::new();
        for (quiet, beside, n, violations) in [
            (&quiet, &within, 100, 0),
            (&quiet, &beyond, 100, 1),
            (&quiet, &none, 0, 0),
            (&none, &within, 0, 0),
        ] {
            let verdict = bounded(quiet, beside);
            assert_eq!((verdict.n, verdict.violations.len()), (n, violations), "{verdict:?}");
        }
    }

    #[test]
    fn a_deployment_is_tried_three_times() {
        let of = |fails: u32| {
            let mut times = 0;
            let told = tried(|| {
                times += 1;
                if times > fails { Ok(()) } else { Err(()) }
            });
            (told, times)
        };
        assert_eq!([of(0), of(2), of(3)], [(Ok(()), 1), (Ok(()), 3), (Err(()), 3)]);
    }

    #[test]
    fn one_event_gets_an_upcast_and_all_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let later = with_upcast(Path::new(DEFINITIONS), folder.path());
        assert_eq!(later.file_name().unwrap(), "hostile", "it is the application's name");
        let mut changed = Vec::new();
        for file in fs::read_dir(&later).unwrap().map(|entry| entry.unwrap().file_name()) {
            let [before, after] = [Path::new(DEFINITIONS), later.as_path()]
                .map(|folder| fs::read_to_string(folder.join(&file)).unwrap());
            if before != after {
                assert_eq!(before.replacen(EVENT, WITH_UPCAST, 1), after);
                changed.push(file);
            }
        }
        assert_eq!(changed, ["relic.yaml"]);
    }

    #[test]
    fn the_bound_is_reached_before_clients_give_up() {
        // A quiet p99 of a debug build on a slow machine.
        let most_ms = 200.0 * BESIDE_HOSTILE_TIMES + BESIDE_HOSTILE_MS;
        let within_ms = Pace::steady(RATE).within.as_secs_f64() * 1e3;
        assert!(most_ms < within_ms, "{most_ms} of {within_ms}");
    }

    #[test]
    fn a_hostile_tenant_that_does_nothing_is_found() {
        let refused = || Err("refused".to_owned());
        let ran_on = Some([1.0, 1.0]);
        for (deployed, done, ran_on, violations) in [
            (Ok(String::new()), [1, 1, 1, 1], ran_on, 0),
            (refused(), [1, 1, 1, 1], ran_on, 1),
            (Ok(String::new()), [0, 1, 1, 1], ran_on, 1),
            // Whoever may do nothing is turned away at the door.
            (Ok(String::new()), [1, 1, 0, 1], ran_on, 1),
            (Ok(String::new()), [1, 1, 1, 0], ran_on, 1),
            (Ok(String::new()), [1, 1, 1, 1], Some([0.0, 1.0]), 1),
            (Ok(String::new()), [1, 1, 1, 1], Some([1.0, 0.0]), 1),
            (Ok(String::new()), [1, 1, 1, 1], None, 0),
        ] {
            let verdict = at_work(deployed, done, ran_on);
            assert_eq!(verdict.violations.len(), violations, "{done:?} {ran_on:?}");
        }
    }
}
