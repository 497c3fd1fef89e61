//! The workers: what keeps FlexCore running. One file a worker; this is the complete list. [`places`] and
//! [`queue`] are what they have in common.

pub mod command;
#[cfg(feature = "defects")]
mod defects;
pub mod places;
pub mod projection;
pub mod queue;

use std::time::Duration;

use flexcore_cluster::WorkKind;
use flexcore_domain::{PORTIONS, SLOTS};

/// The slots of the command workers.
pub const COMMANDS: WorkKind = WorkKind { name: "command", places: SLOTS, heading: "slots" };
/// The shares of the projection workers: a read model belongs to one, by its name, or to all of them,
/// by slot.
pub const PROJECTIONS: WorkKind =
    WorkKind { name: "projection", places: PORTIONS, heading: "projections" };
/// All kinds of work.
pub const ALL_WORK: [WorkKind; 2] = [COMMANDS, PROJECTIONS];

/// Longest time that a worker that stops waits until the map says so. Until then it keeps receiving
/// and answering requests. A leader takes a twentieth of it; when it is the leader that stops,
/// another must be found first.
const TOLD_MAX: Duration = Duration::from_secs(2);
