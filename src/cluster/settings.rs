//! Settings of a process that becomes a member.

use std::{collections::BTreeSet, time::Duration};

use crate::{Kind, LEASE};

/// Settings of a process as a member.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name, for people; its id is the first 40 characters of this and a random part.
    pub name: String,
    /// Its role, for people: `gateway`, `worker`, `dev`.
    pub role: String,
    /// The kinds that it can serve. One that serves something can lead.
    pub kinds: BTreeSet<Kind>,
    /// Duration of its leases, in whole seconds.
    pub lease: Duration,
    /// Copies of the bucket, when it has to be made.
    pub replicas: usize,
}

impl Settings {
    /// A member of this name and role that serves these kinds.
    #[must_use]
    pub fn new(name: &str, role: &str, kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self {
            name: name.to_owned(),
            role: role.to_owned(),
            kinds: kinds.into_iter().collect(),
            lease: LEASE,
            replicas: 1,
        }
    }
}
