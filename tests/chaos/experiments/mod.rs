//! The experiments, each a file.

mod control;
mod kill;
mod partition;
mod powercut;

use std::time::Instant;

use crate::{host::say, report::Report};

/// Every experiment by its name, in the order in which they are run.
pub(crate) const NAMES: [&str; 4] = ["kill", "partition", "powercut", "control"];

/// How much of it.
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

/// Runs one and adds what came of it.
pub(crate) async fn run(name: &str, seed: u64, extent: Extent, report: &mut Report) {
    let started = Instant::now();
    match name {
        "kill" => report.add(kill::run(seed, extent).await),
        "partition" => report.add(partition::run(seed, extent).await),
        "powercut" => {
            report.add(powercut::run(seed, extent).await);
            report.add(powercut::control(seed).await);
        }
        "control" => report.add(control::acknowledge_before_append(seed).await),
        other => unreachable!("BUG: {other} is not in the list"),
    }
    say(&format!("{name}: {:.0} s", started.elapsed().as_secs_f64()));
}
