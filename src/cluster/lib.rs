//! Membership, leader election and slot assignment, in one KV bucket of the broker.
//!
//! Every process is a member: a record under a key of its own, with a lease. One member leads, by a
//! lease on one key, and writes the map that says who serves which slot. Members follow the map, and
//! say in their records what they serve.
//!
//! | key | holds |
//! | --- | --- |
//! | `leader` | who leads, with the epoch: the sequence of the write that won |
//! | `member.<id>` | a member's record |
//! | `map` | who serves which place; written only while `leader` is at the leader's own sequence |
//! | `drain.<id>` | that this member is to serve nothing any more |
//!
//! Leases keep two members from the same work for most of the time. The epoch makes it safe: the
//! resource that a member works on refuses work under an older one.

mod assigned;
mod bucket;
mod fence;
mod guard;
mod lease;
mod member;
#[cfg(test)]
mod model_tests;
mod node;
mod overdue;
mod owners;
mod plan;
#[cfg(test)]
mod plan_tests;
mod settings;
mod size;
mod view;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use assigned::Assigned;
pub use guard::Guard;
pub use lease::{Found, Lease, Step, Terms, Written};
pub use member::Member;
pub use owners::{Answered, Owners, Unanswered};
pub use plan::{Map, Place, plan};
pub use settings::Settings;
pub use view::{Seat, View, drain, look, reset, undrain};

/// Duration of a lease unless configured: longer than the broker needs to elect a leader of a
/// stream after a server's death (4 to 7 s), so that this does not cost anybody a lease.
pub const LEASE: Duration = Duration::from_secs(12);
/// Shortest lease: renewed several times, with room for an answer that is slow.
pub const LEASE_MIN: Duration = Duration::from_secs(3);
/// Longest lease: what a dead member's slots would stand still.
pub const LEASE_MAX: Duration = Duration::from_secs(60);

/// The name of the bucket's stream.
pub const STREAM: &str = "KV_flex_cluster";

/// Why the cluster's state could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The broker did not answer, or not in time.
    #[error("the cluster's state is unavailable: {0}")]
    Unavailable(String),
    /// The bucket would not do what it is for.
    #[error(
        "the stream {} has {what} {found} in place of {wanted}: change it with `nats stream edit`, or \
         delete it while no process runs, to have it made anew",
        STREAM
    )]
    Misconfigured {
        /// The setting.
        what: &'static str,
        /// The required value.
        wanted: String,
        /// The found value.
        found: String,
    },
    /// The broker takes no message as large as a record of the cluster may get.
    #[error(
        "the broker takes messages of {found} bytes at most, and the cluster needs {needed}: raise \
         max_payload in its configuration"
    )]
    SmallMessages {
        /// Its `max_payload`.
        found: usize,
        /// The least value.
        needed: usize,
    },
    /// A member says too much of itself.
    #[error("the member's record would take {bytes} bytes, and at most {bytes_max} are stored")]
    LargeMember {
        /// The load of a member that serves all that it can.
        bytes: usize,
        /// The permitted load.
        bytes_max: usize,
    },
    /// There is no such member.
    #[error("no member {id:?}; there are: {}", known.join(", "))]
    UnknownMember {
        /// As it was given.
        id: String,
        /// Those that there are.
        known: Vec<String>,
    },
}

impl Error {
    /// True if waiting may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

fn unavailable(error: impl fmt::Display) -> Error {
    Error::Unavailable(error.to_string())
}

/// A kind of work that is shared out among members. The crate whose work it is declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkKind {
    /// Its name in records and the map. Members of every version read it there: it never changes.
    pub name: &'static str,
    /// Number of its places.
    pub places: u16,
    /// What people call its places: the head of a column.
    pub heading: &'static str,
}

/// The name of a kind of work, as a record or the map has it. A member of another version may have
/// written it, which does kinds of work that this one does not know.
pub type WorkName = Cow<'static, str>;

/// Most characters of a name in a member's id.
const NAME_CHARS_MAX: usize = 40;
/// Characters of the random part.
const RANDOM_CHARS: usize = 8;

/// A random part of an id.
fn random() -> String {
    let mut random = uuid::Uuid::new_v4().simple().to_string();
    random.truncate(RANDOM_CHARS);
    random
}

/// A member's id: its name and a random part, so that a process that was started again is another
/// member.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MemberId(String);

impl MemberId {
    /// An id of this name, which is cut down to what a subject may hold.
    #[must_use]
    pub fn new(name: &str, random: &str) -> Self {
        let fits =
            |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let name: String = name.chars().take(NAME_CHARS_MAX).map(fits).collect();
        Self(format!("{name}-{random}"))
    }

    /// One of the longest that there are.
    fn longest() -> Self {
        Self::new(&"m".repeat(NAME_CHARS_MAX), &"0".repeat(RANDOM_CHARS))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A member's record about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The kinds that it can serve; none for a gateway.
    pub kinds: BTreeSet<WorkName>,
    /// Its role, for people: `gateway`, `worker`, `dev`.
    pub role: String,
    /// The version of the executable.
    pub version: String,
    /// When it started, seconds since 1970-01-01 UTC.
    pub started_s: u64,
    /// The places that it serves, by kind.
    pub serves: BTreeMap<WorkName, Serves>,
    /// It is about to end, and is to serve nothing any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// The number of the attempt that wrote this.
    #[serde(default)]
    beat: u64,
    /// The sequence of the member's first record since it last lost its lease: what it was given
    /// before is void.
    #[serde(default)]
    epoch: Option<u64>,
}

/// The places of one kind that a member serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serves {
    /// The sequence of the map that it has followed.
    pub followed: u64,
    /// The places that it serves, or is just leaving.
    pub places: BTreeSet<u16>,
}

impl Record {
    /// Its content, whichever renewal writes it.
    fn without_beat(self) -> Self {
        Self { beat: 0, ..self }
    }

    /// True if it knows that it was to leave a place, and has left.
    fn has_left(&self, kind: WorkKind, number: u16, since: u64) -> bool {
        self.serves
            .get(kind.name)
            .is_some_and(|serves| serves.followed > since && !serves.places.contains(&number))
    }
}
