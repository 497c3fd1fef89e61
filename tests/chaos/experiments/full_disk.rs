//! Disks of brokers are full: one, which the others do without, and all of them, when commands are refused
//! and nothing is in doubt. With room again, and the servers started again, everything goes on.

use std::time::Duration;

use super::Extent;
use crate::{
    checker::Verdict,
    cluster::Shape,
    disk,
    history::Told,
    load::Pace,
    report::Section,
    rig::{CALM, LOG_LEADER, RECOVERY_MOST, Rig},
};

const BROKERS: [&str; 3] = ["nats-1", "nats-2", "nats-3"];
/// Number of cases in a full run.
const TRIALS: usize = 5;
/// Time for which the disk is full.
const LENGTH: Duration = Duration::from_secs(45);
/// Earlier requests are in doubt: the brokers stop in the middle of them. As long as a worker's
/// lease has not ended, the worker is asked, and cannot tell the outcome.
const TOLD_WITHIN: Duration = Duration::from_secs(28);

pub(crate) async fn run(seed: u64, extent: Extent) -> Section {
    let shape = Shape { disks: true, ..Shape::default() };
    let mut rig = Rig::start("full disk", seed, shape, Pace::steady(60)).await;
    for _ in 0..extent.of(1, TRIALS) {
        let leader = rig.member_of(LOG_LEADER).await;
        let fault = full(&mut rig, &[&leader]).await;
        rig.recovers("a full disk of the log's leader", fault, CALM, RECOVERY_MOST).await;
        full(&mut rig, &BROKERS).await;
        let fault = rig.fault("there is room again");
        rig.recovers("full disks of all brokers", fault, CALM, RECOVERY_MOST).await;
    }
    rig.finish().await
}

/// Fills these brokers' disks, waits, makes room, and starts them again. Gives the moment of the filling.
async fn full(rig: &mut Rig, brokers: &[&str]) -> u64 {
    let fault = rig.fault(&format!("full: the disks of {}", brokers.join(", ")));
    for broker in brokers {
        disk::fill(&rig.cluster.net.folder, broker);
    }
    tokio::time::sleep(LENGTH).await;
    if brokers.len() == BROKERS.len() {
        said(rig, fault).await;
    }
    for broker in brokers {
        disk::make_room(&rig.cluster.net.folder, broker);
        rig.cluster.kill(broker);
        rig.cluster.run(broker);
    }
    fault
}

/// The gateway's answers while nothing can be written.
async fn said(rig: &mut Rig, fault_ns: u64) {
    let mut verdict = Verdict::new(13, "a full disk is said, in metrics and answers");
    let told_ns = fault_ns + u64::try_from(TOLD_WITHIN.as_nanos()).unwrap();
    for gateway in rig.cluster.names_of("gateway") {
        let full = rig.cluster.metric(&gateway, "flexcore_broker_full").await;
        verdict.hold(full == Some(1.0), || format!("{gateway}: flexcore_broker_full {full:?}"));
    }
    for call in rig.history.calls().into_iter().filter(|call| call.start_ns > told_ns) {
        let known = match &call.told {
            Told::TurnedAway { .. } | Told::Refused { .. } | Told::NotSent => true,
            // A client that repeats a recorded command learns that it was recorded.
            Told::Accepted { replayed, .. } => *replayed,
            // The broker itself does not answer, and the harness asks it, too.
            Told::NoAnswer { .. } => call.way == crate::history::Way::Publish,
            Told::Queued | Told::Unknown { .. } => false,
        };
        verdict.hold(known, || format!("{call:?}"));
    }
    rig.section.verdicts.push(verdict);
}
