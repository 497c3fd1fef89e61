//! The experiments, each a file.

mod breaker;
mod control;
mod election;
mod exhaustion;
mod full_disk;
mod hostile;
mod kill;
mod partition;
mod powercut;

use std::time::{Duration, Instant};

use crate::{
    cluster::Shape,
    host::say,
    load::Pace,
    report::{Report, Section},
    rig::Rig,
};

/// Every experiment by its name, in the order in which they are run.
pub(crate) const NAMES: [&str; 9] = [
    "kill",
    "partition",
    "election",
    "exhaustion",
    "powercut",
    "disk",
    "breaker",
    "hostile",
    "control",
];
/// Those of a slice.
pub(crate) const SLICE: [&str; 4] = ["together", "powercut", "hostile", "some controls"];

/// The size of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Within a few minutes in all, on two cores.
    Slice,
    /// As much as it takes to say something.
    Full,
}

impl Extent {
    fn of<T>(self, slice: T, full: T) -> T {
        if self == Self::Slice { slice } else { full }
    }
}

/// The lease of members where the experiment waits for its end, shorter so that more of it fits in
/// the time; otherwise the default.
const SHORT_LEASE: Duration = Duration::from_secs(4);

/// Runs one and adds its results.
pub(crate) async fn run(name: &str, seed: u64, extent: Extent, report: &mut Report) {
    let started = Instant::now();
    match name {
        "together" => report.add(together(seed).await),
        "kill" => {
            let mut rig = Rig::start(name, seed, Shape::default(), pace(extent)).await;
            kill::faults(&mut rig, extent).await;
            report.add(rig.finish().await);
        }
        "partition" => {
            let mut rig = Rig::start(name, seed, Shape::default(), pace(extent)).await;
            partition::faults(&mut rig, extent, seed).await;
            report.add(rig.finish().await);
        }
        "election" => {
            let shape = Shape { lease: SHORT_LEASE, ..Shape::default() };
            let mut rig = Rig::start(name, seed, shape, pace(extent)).await;
            election::faults(&mut rig, extent).await;
            report.add(rig.finish().await);
        }
        "exhaustion" => {
            let rig = Rig::quiet(name, seed, Shape::default()).await;
            report.add(exhaustion::run(rig, extent).await);
        }
        "powercut" => {
            report.add(powercut::run(seed, extent).await);
            // A slice has no time to prove the rig again.
            if extent == Extent::Full {
                report.add(powercut::control(seed).await);
            }
        }
        "disk" => report.add(full_disk::run(seed, extent).await),
        "hostile" => report.add(hostile::run(seed, extent).await),
        "breaker" => report.add(breaker::run(seed, extent).await),
        "some controls" => control::small(seed, false, report).await,
        "control" => {
            control::small(seed, true, report).await;
            report.add(control::acknowledge_before_append(seed).await);
            report.add(control::no_fence(seed).await);
        }
        other => unreachable!("BUG: {other} is not in the list"),
    }
    say(&format!("{name}: {:.0} s", started.elapsed().as_secs_f64()));
}

/// Kill, partition and election on one cluster: a slice has no time for three.
async fn together(seed: u64) -> Section {
    let shape = Shape { lease: SHORT_LEASE, ..Shape::default() };
    let name = "kill, partition, election";
    let mut rig = Rig::start(name, seed, shape, pace(Extent::Slice)).await;
    kill::faults(&mut rig, Extent::Slice).await;
    partition::faults(&mut rig, Extent::Slice, seed).await;
    election::faults(&mut rig, Extent::Slice).await;
    rig.finish().await
}

fn pace(extent: Extent) -> Pace {
    Pace::steady(extent.of(100, 150))
}
