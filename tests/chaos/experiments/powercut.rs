//! Power fails everywhere at once: brokers and Postgres are stopped while they write, their disks are
//! cut, and every process is killed. Nothing that was acknowledged may be missing afterwards. The control arm
//! lets the brokers write lazily, and must lose something: else the rig proves nothing.

use std::time::{Duration, Instant};

use flexcore_servers::Sync;
use rand::RngExt as _;

use super::Extent;
use crate::{
    checker::commands,
    cluster::Shape,
    disk,
    load::Pace,
    report::Section,
    rig::{CALM, RECOVERY_MOST, Rig},
};

/// The members whose disks are cut.
const DISKS: [&str; 4] = ["nats-1", "nats-2", "nats-3", "postgres"];

/// Number of cases in a full run.
const TRIALS: usize = 100;

pub(crate) async fn run(seed: u64, extent: Extent) -> Section {
    let shape = Shape { disks: true, ..Shape::default() };
    // Clients ask on while nothing is there: with more of them a full run does not fit into memory.
    let mut rig = Rig::start("powercut", seed, shape, Pace::steady(extent.of(100, 60))).await;
    for _ in 0..extent.of(1, TRIALS) {
        let under_load = Duration::from_millis(rig.random.random_range(2_000..6_000));
        tokio::time::sleep(under_load).await;
        let fault = fail(&mut rig);
        for node in DISKS {
            disk::mount(&rig.cluster.net.folder, node);
            rig.cluster.run(node);
        }
        let rest: Vec<String> =
            rig.cluster.names_of("worker").chain(rig.cluster.names_of("gateway")).collect();
        rest.iter().for_each(|node| rig.cluster.run(node));
        rig.recovers("a power cut of everything", fault, CALM, RECOVERY_MOST).await;
    }
    rig.finish().await
}

/// The control arm.
pub(crate) async fn control(seed: u64) -> Section {
    let shape = Shape { disks: true, sync: Sync::Lazy, ..Shape::default() };
    let mut rig = Rig::quiet("powercut with lazy writes", seed, shape).await;
    rig.load(Pace::steady(100)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    fail(&mut rig);
    for node in &DISKS[..3] {
        disk::mount(&rig.cluster.net.folder, node);
        rig.cluster.run(node);
    }
    rig.section.control = &[commands::ACCEPTED, commands::IN_THE_LOG];
    rig.finish_with_the_log_alone().await
}

/// Cuts the disks, kills everything, and takes the disks away. Gives the moment of the cut.
fn fail(rig: &mut Rig) -> u64 {
    let fault = rig.fault("the power fails everywhere");
    // Without power nobody acts on a disk that fails: a broker that lives on for a moment may
    // acknowledge a message that it could not sync.
    let nodes: Vec<String> = rig.cluster.nodes.keys().cloned().collect();
    let is_disk = |node: &&String| DISKS.contains(&node.as_str());
    nodes.iter().filter(is_disk).for_each(|node| rig.cluster.freeze(node));
    let started = Instant::now();
    disk::cut(&rig.cluster.net.folder, &DISKS);
    let took = started.elapsed();
    nodes.iter().for_each(|node| rig.cluster.kill(node));
    for node in DISKS {
        disk::unmount(&rig.cluster.net.folder, node);
    }
    rig.section.time("cutting the four disks", took.as_secs_f64() * 1e3);
    fault
}
