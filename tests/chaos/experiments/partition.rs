//! Nodes cut off from the others for a while: both ways, or one.

use std::time::Duration;

use super::Extent;
use crate::{
    cluster::Shape,
    load::Pace,
    netns::{self, Cut},
    report::Section,
    rig::{LOG_LEADER, Rig},
};

const VICTIMS: [&str; 5] = ["nats", LOG_LEADER, "worker", "postgres", "gateway"];
const LENGTHS_MS: [u64; 3] = [200, 2_000, 10_000];
const CALM: Duration = Duration::from_millis(1_500);
const RECOVERY_MOST: Duration = Duration::from_secs(60);

pub(crate) async fn run(seed: u64, extent: Extent) -> Section {
    let pace = Pace::steady(extent.of(100, 150));
    let mut rig = Rig::start("partition", seed, Shape::default(), pace).await;
    let all = LENGTHS_MS.iter().flat_map(|length| {
        Cut::ALL.iter().flat_map(move |cut| VICTIMS.iter().map(move |victim| (length, cut, victim)))
    });
    // One length and one way for each victim in a slice, all ways in turn.
    let some = (0..).zip(VICTIMS.iter()).map(|(n, victim)| {
        (&LENGTHS_MS[1], &Cut::ALL[(n + usize::from(seed % 2 == 0)) % 3], victim)
    });
    let chosen: Vec<_> = if extent == Extent::Full { all.collect() } else { some.collect() };
    for (length, cut, kind) in chosen {
        let victim = rig.member_of(kind).await;
        let fault = rig.fault(&format!("{victim} cut off ({cut:?}) for {length} ms"));
        netns::cut(&victim, *cut);
        tokio::time::sleep(Duration::from_millis(*length)).await;
        netns::heal(&victim);
        let name = format!("cut of {kind} for {length} ms");
        rig.recovers(&name, fault, CALM, RECOVERY_MOST).await;
    }
    rig.finish().await
}
