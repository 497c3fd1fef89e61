//! Random SIGKILLs, of pairs too; what was killed is started again after a pause.

use std::time::Duration;

use rand::{RngExt as _, seq::IndexedRandom as _};

use super::Extent;
use crate::{
    cluster::Shape,
    load::Pace,
    report::Section,
    rig::{LOG_LEADER, Rig},
};

/// What is killed, with how often among the others.
const VICTIMS: [(&[&str], u32); 7] = [
    (&["worker"], 4),
    (&["gateway"], 2),
    (&["nats"], 2),
    (&[LOG_LEADER], 2),
    (&["postgres"], 2),
    (&["worker", "gateway"], 1),
    (&["worker", "postgres"], 1),
];
/// How long everything must go well before the next.
const CALM: Duration = Duration::from_millis(1_500);
/// Then it is given up waiting.
const RECOVERY_MOST: Duration = Duration::from_secs(45);

pub(crate) async fn run(seed: u64, extent: Extent) -> Section {
    let pace = Pace::steady(extent.of(100, 150));
    let mut rig = Rig::start("kill", seed, Shape::default(), pace).await;
    let kills = extent.of(6, 100);
    for number in 0..kills {
        // A slice has one of each kind at least.
        let kinds = if number < VICTIMS.len() {
            VICTIMS[number].0
        } else {
            VICTIMS.choose_weighted(&mut rig.random, |(_, weight)| *weight).unwrap().0
        };
        let mut victims = Vec::new();
        for kind in kinds {
            victims.push(rig.member_of(kind).await);
        }
        let fault = rig.fault(&format!("SIGKILL of {}", victims.join(" and ")));
        victims.iter().for_each(|victim| rig.cluster.kill(victim));
        let pause = Duration::from_millis(rig.random.random_range(200..3_000));
        tokio::time::sleep(pause).await;
        victims.iter().for_each(|victim| rig.cluster.run(victim));
        let name = format!("SIGKILL of {}", kinds.join(" and "));
        rig.recovers(&name, fault, CALM, RECOVERY_MOST).await;
    }
    rig.finish().await
}
