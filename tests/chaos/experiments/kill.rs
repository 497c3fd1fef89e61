//! Random SIGKILLs, of pairs too, and of brokers whose disk is lost with them; killed processes are
//! started again after a pause. And SIGTERMs of gateways and workers, which must not fail anybody's
//! request.

use std::{
    fs,
    time::{Duration, Instant},
};

use rand::{RngExt as _, seq::IndexedRandom as _};

use super::Extent;
use crate::{
    checker::answers::Stop,
    rig::{CALM, LOG_LEADER, LOST_NATS, RECOVERY_MOST, Rig},
};

/// The victims, each with its weight.
const VICTIMS: [(&[&str], u32); 9] = [
    (&["worker"], 4),
    (&["gateway"], 2),
    (&["nats"], 2),
    (&[LOG_LEADER], 2),
    (&["postgres"], 2),
    (&["worker", "gateway"], 1),
    (&["worker", "postgres"], 1),
    (&["worker", "nats"], 1),
    (&[LOST_NATS], 1),
];
/// Most time that a worker's death may cost beyond its lease.
const WORKER_BEYOND_LEASE_MS: f64 = 3_000.0;
/// Most time that the death of the log's leading broker may cost.
const LOG_LEADER_MOST_MS: f64 = 10_000.0;

pub(crate) async fn faults(rig: &mut Rig, extent: Extent) {
    // One of each kind first, as far as a slice goes.
    let mut chosen: Vec<&[&str]> = VICTIMS.iter().map(|(kinds, _)| *kinds).collect();
    while chosen.len() < extent.of(0, 100) {
        let (kinds, _) = VICTIMS.choose_weighted(&mut rig.random, |(_, weight)| *weight).unwrap();
        chosen.push(kinds);
    }
    for kinds in chosen.into_iter().take(extent.of(6, 100)) {
        let mut victims = Vec::new();
        for kind in kinds {
            victims.push(rig.member_of(kind).await);
        }
        let disk = if *kinds == [LOST_NATS] { ", its disk is lost" } else { "" };
        let fault = rig.fault(&format!("SIGKILL of {}{disk}", victims.join(" and ")));
        victims.iter().for_each(|victim| rig.cluster.kill(victim));
        if *kinds == [LOST_NATS] {
            fs::remove_dir_all(rig.cluster.data(&victims[0]).join("store")).unwrap();
        }
        let pause = Duration::from_millis(rig.random.random_range(200..3_000));
        tokio::time::sleep(pause).await;
        victims.iter().for_each(|victim| rig.cluster.run(victim));
        let name = format!("SIGKILL of {}", kinds.join(" and "));
        rig.recovers(&name, fault, CALM, RECOVERY_MOST).await;
        // The time of the next is its own.
        rig.cluster.brokers_ready().await;
        rig.cluster.ready().await;
    }
    for _ in 0..extent.of(1, 10) {
        for kind in ["gateway", "worker"] {
            let node = rig.member_of(kind).await;
            terminate(rig, &node).await;
        }
    }
    let lease_ms = rig.cluster.shape.lease.as_secs_f64() * 1e3;
    let worker = "a killed worker costs 3 s beyond its lease at most";
    let most = lease_ms + WORKER_BEYOND_LEASE_MS;
    rig.section.hold_time(0, worker, "recovery from SIGKILL of worker", most);
    // Brokers elect by the clock: on a busy machine one time of a slice says little.
    if extent == Extent::Full {
        let broker = "a killed leader of the log costs 10 s at most";
        let name = format!("recovery from SIGKILL of {LOG_LEADER}");
        rig.section.hold_time(0, broker, &name, LOG_LEADER_MOST_MS);
    }
}

/// Asks a node to end while requests are under way, and starts it again.
async fn terminate(rig: &mut Rig, node: &str) {
    let gateway: Option<usize> =
        node.strip_prefix("gateway-").and_then(|number| number.parse().ok());
    rig.burst(gateway.unwrap_or(1)).await;
    let from_ns = rig.fault(&format!("SIGTERM of {node}"));
    let start = Instant::now();
    rig.cluster.node(node).signal("TERM");
    let ended = rig.cluster.node(node).ends(Duration::from_secs(31)).await;
    let ended = ended.map(|(status, _)| (status.code(), start.elapsed()));
    rig.stops.push(Stop { node: node.to_owned(), gateway, from_ns, ended });
    rig.cluster.kill(node);
    rig.cluster.run(node);
    let kind = if gateway.is_some() { "gateway" } else { "worker" };
    rig.recovers(&format!("SIGTERM of {kind}"), from_ns, CALM, RECOVERY_MOST).await;
    rig.cluster.ready().await;
}
