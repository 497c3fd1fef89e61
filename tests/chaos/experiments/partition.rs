//! Nodes cut off from the others for a while: both ways, or one.

use std::time::Duration;

use super::Extent;
use crate::{
    netns::{self, Cut},
    rig::{CALM, LOG_LEADER, RECOVERY_MOST, Rig},
};

const VICTIMS: [&str; 5] = ["nats", LOG_LEADER, "worker", "postgres", "gateway"];
/// Number of cases in a full run: each length, way and victim twice, and some of them once more.
const TRIALS: usize = 100;
const LENGTHS_MS: [u64; 3] = [200, 2_000, 10_000];

pub(crate) async fn faults(rig: &mut Rig, extent: Extent, seed: u64) {
    let all = LENGTHS_MS.iter().flat_map(|length| {
        Cut::ALL.iter().flat_map(move |cut| VICTIMS.iter().map(move |victim| (length, cut, victim)))
    });
    // One length and one way for each victim in a slice.
    let way = |n: usize| &Cut::ALL[(n + usize::from(seed.is_multiple_of(2))) % Cut::ALL.len()];
    let some = (0..).zip(VICTIMS.iter()).map(|(n, victim)| (&LENGTHS_MS[1], way(n), victim));
    let chosen: Vec<_> = match extent {
        Extent::Full => all.cycle().take(TRIALS).collect(),
        Extent::Slice => some.collect(),
    };
    for (length, cut, kind) in chosen {
        let victim = rig.member_of(kind).await;
        let fault = rig.fault(&format!("{victim} cut off ({cut:?}) for {length} ms"));
        netns::cut(&victim, *cut);
        tokio::time::sleep(Duration::from_millis(*length)).await;
        netns::heal(&victim);
        rig.recovers(&format!("cut of {kind} for {length} ms"), fault, CALM, RECOVERY_MOST).await;
    }
}
