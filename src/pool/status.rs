//! What a pool tells of itself.

use std::{fmt, sync::Arc, time::Duration};

use flexcore_plugin::contract::Description;

use crate::lifecycle::Stage;

/// The state of a pool: that of its best instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// It is being started.
    Starting,
    /// It takes calls.
    Ready,
    /// Every ready instance has as many calls under way as it may have.
    Busy,
    /// It takes no more calls, and is being ended.
    Draining,
    /// It has ended, and is started again after a pause.
    BackingOff,
    /// It was given up: until it is restarted or upgraded, and where the reason may pass, for some
    /// five minutes at most.
    Failed,
}

impl PoolState {
    /// As reports call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Draining => "draining",
            Self::BackingOff => "backing_off",
            Self::Failed => "failed",
        }
    }

    /// Of instances at these stages; `is_full`: those that are ready can take no more calls.
    pub(crate) fn of(stages: &[Stage], is_full: bool) -> Self {
        let best = [
            (Stage::Ready, if is_full { Self::Busy } else { Self::Ready }),
            (Stage::Starting, Self::Starting),
            (Stage::BackingOff, Self::BackingOff),
            (Stage::Draining, Self::Draining),
            (Stage::Failed, Self::Failed),
        ];
        let found = best.into_iter().find(|(stage, _)| stages.contains(stage));
        found.map_or(Self::Draining, |(_, state)| state)
    }
}

impl fmt::Display for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What a pool is and has done, all its versions together where it counts something.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolStatus {
    /// Its state.
    pub state: PoolState,
    /// Instances that it is to have; 0 once it was stopped.
    pub instances: usize,
    /// Those that take calls.
    pub ready: usize,
    /// Starts of an instance that had ended, or could not be started.
    pub restarts: u64,
    /// Calls so far.
    pub calls: u64,
    /// Calls without an output.
    pub errors: u64,
    /// Calls under way.
    pub under_way: usize,
    /// Half of the last 1,024 calls with an output took as long at most. Zero before the first.
    pub p50: Duration,
    /// 99 of 100 of them took as long at most.
    pub p99: Duration,
    /// Memory of its processes and all that they have started, in bytes; up to 10 s old.
    pub memory_bytes: u64,
    /// Why an instance is not ready.
    pub reason: Option<String>,
    /// What the plugin says of itself, while an instance is ready; none of foreign ones.
    pub description: Option<Arc<Description>>,
    /// The measures of its sandbox that were asked for, by name: `holds`, or why not. Empty while
    /// no instance is ready.
    pub sandbox: Vec<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_instance_counts() {
        let all = [Stage::Gone, Stage::Failed, Stage::BackingOff, Stage::Starting, Stage::Ready];
        let states = (1..=all.len()).map(|count| PoolState::of(&all[..count], false));
        let words: Vec<_> = states.map(PoolState::word).collect();
        assert_eq!(words, ["draining", "failed", "backing_off", "starting", "ready"]);
        assert_eq!(PoolState::of(&all, true), PoolState::Busy);
        assert_eq!(PoolState::of(&[], false), PoolState::Draining);
    }
}
