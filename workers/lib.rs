//! The workers: what keeps FlexCore running. One file a worker; this is the complete list. [`places`] and
//! [`queue`] are what they have in common.

pub mod command;
#[cfg(feature = "defects")]
mod defects;
pub mod places;
pub mod plugin;
pub mod projection;
pub mod queue;

use std::time::Duration;

use async_nats::{Message, Subject};
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

/// How the reply subjects begin that get an answer: inboxes, and what the broker puts in place of one between
/// accounts. We may publish where a sender may not, so an answer to any other could get into the log.
const INBOXES: [&str; 2] = ["_INBOX.", "_R_."];

/// Where the answer to a question goes; `None`: it gets none.
pub(crate) fn inbox(message: &Message) -> Option<Subject> {
    let is_inbox = |reply: &Subject| INBOXES.iter().any(|begin| reply.starts_with(begin));
    message.reply.clone().filter(is_inbox)
}
