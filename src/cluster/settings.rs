//! Settings of a process that becomes a member.

use std::time::Duration;

use crate::{LEASE, WorkKind};

/// Settings of a process as a member.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name, for people; its id is the first 40 characters of this and a random part.
    pub name: String,
    /// Its role, for people: `gateway`, `worker`, `dev`.
    pub role: String,
    /// The kinds that it can serve. One that serves something can lead.
    pub kinds: Vec<WorkKind>,
    /// The kinds that it shares out when it leads: all that there are, whether it can serve them or not.
    /// Others, which a member of another version has in the map, it leaves as they are.
    pub shared_out: Vec<WorkKind>,
    /// Duration of its leases, in whole seconds.
    pub lease: Duration,
    /// Copies of the bucket, when it has to be made.
    pub replicas: usize,
}

impl Settings {
    /// A member of this name and role that serves these kinds, and shares out no others.
    #[must_use]
    pub fn new(name: &str, role: &str, kinds: impl IntoIterator<Item = WorkKind>) -> Self {
        let kinds: Vec<_> = kinds.into_iter().collect();
        Self {
            name: name.to_owned(),
            role: role.to_owned(),
            shared_out: kinds.clone(),
            kinds,
            lease: LEASE,
            replicas: 1,
        }
    }
}
