//! One tenant floods, sends the largest and the malformed, and has deployed functions that never end,
//! while the others go on: their invariants hold, nobody turns them away, and what it costs them in time
//! stands beside a stretch of the same run without it.

use std::time::Duration;

use super::Extent;
use crate::{
    checker::{Verdict, commands},
    cluster::Shape,
    history::{Call, Told},
    hostile::{Hostile, TENANT},
    load::Pace,
    report::{Section, quantile},
    rig::Rig,
};

/// Its definitions.
const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/hostile");
/// Time for which the others are watched without it, and with it.
const STRETCH: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// The others' load, in requests a second.
const RATE: u64 = 60;

pub(crate) async fn run(seed: u64, extent: Extent) -> Section {
    let mut rig = Rig::start("hostile", seed, Shape::default(), Pace::steady(RATE)).await;
    rig.section.without =
        &[(commands::TURNED_AWAY, "nothing fails"), (commands::UNKNOWN, "nothing fails")];
    let token = rig.cluster.token(TENANT);
    let length = extent.of(STRETCH.0, STRETCH.1);
    let from_ns = rig.fault("nothing yet");
    tokio::time::sleep(length).await;
    let calm_ns = rig.fault("a tenant deploys what it has, and floods");
    let deployed = rig.cluster.flexcore(&["apply", DEFINITIONS]);
    let refused = deployed.err().map(|error| format!("its definitions were refused: {error}"));
    rig.section.notes.extend(refused);
    let hostile = Hostile::start(&rig.cluster.place(), &token, seed);
    tokio::time::sleep(length).await;
    let end_ns = rig.fault("it stops");
    hostile.stop().await;
    rig.unload().await;
    let calls = rig.history.calls();
    judge(&mut rig.section, &calls, "without it", from_ns..calm_ns);
    judge(&mut rig.section, &calls, "beside it", calm_ns..end_ns);
    rig.finish().await
}

/// Times the others' commands of a stretch, and holds that each was answered.
fn judge(section: &mut Section, calls: &[Call], when: &str, stretch: std::ops::Range<u64>) {
    let mut verdict = Verdict::new(0, "the others' commands are answered, and not turned away");
    let mut times = Vec::new();
    for call in calls.iter().filter(|call| call.gateway > 0 && stretch.contains(&call.start_ns)) {
        let answered =
            matches!(call.told, Told::Accepted { .. } | Told::Queued | Told::Refused { .. });
        verdict.hold(answered, || format!("{when}: {call:?}"));
        times.push((call.end_ns - call.start_ns) as f64 / 1e6);
    }
    for ms in &times {
        section.time(format!("the others' commands {when}"), *ms);
    }
    let p99 = quantile(&times, 0.99);
    section.notes.push(format!("{when}: {} commands of the others, p99 {p99:.0} ms", times.len()));
    section.verdicts.push(verdict);
}
