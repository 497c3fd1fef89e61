//! The leader's own work: it looks which members are there, and writes the map.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flexcore_broker::bucket::{Condition, Entry};
use flexcore_resilience::jitter;
use tokio::time::Instant;

use super::{Leadership, Node, RETRY, found};
use crate::{
    Error, MemberId, Record,
    bucket::{DRAIN, LEADER, MAP, MEMBER, parsed},
    lease::{Found, Written},
    plan::plan,
};

/// Time for which a wish to drain an absent member is kept: leases end while the broker is away,
/// and the members come back under their ids.
const DRAIN_KEPT: Duration = Duration::from_secs(600);

impl Node {
    /// As the leader: writes the map that follows from who is there. The write is refused unless the
    /// key `leader` is still at the sequence of our own last write.
    pub(super) async fn assign(&mut self, epoch: u64) {
        let (members, leaving) = match self.members().await {
            Ok(read) => read,
            Err(error) => {
                self.look_at = Instant::now() + self.silent(&error);
                return;
            }
        };
        let Some(sequence) = self.lead.sequence() else { return };
        let Some(fence) = self.fence.next(sequence, &members) else {
            self.lead_at = Instant::now();
            return;
        };
        if !members.contains_key(&self.id) && self.own.holds(self.now_ms()) {
            // A look that is older than our own record.
            return;
        }
        let mut next = plan(&self.shared_out, &self.map.0, &members, &leaving, fence);
        (next.epoch, next.leader) = (epoch, self.id.clone());
        if next == *self.map.0 {
            return;
        }
        let condition = Condition { key: LEADER, sequence };
        match self.bucket.write(MAP, &next, Some(condition), None).await {
            Written::Stored(at) => {
                self.fence.saw(at);
                self.map = (Arc::new(next), at);
            }
            Written::Refused => {
                self.lead.written(Written::Refused);
                self.lead_at = Instant::now();
            }
            Written::Unknown => {
                self.fence.unanswered(sequence);
                self.lead_at = Instant::now();
                self.look_at = Instant::now() + jitter(RETRY);
            }
        }
    }

    /// The members that there are, and those that are to serve nothing.
    async fn members(&mut self) -> Result<(BTreeMap<MemberId, Record>, BTreeSet<MemberId>), Error> {
        let entries = self.bucket.entries(MEMBER).await?;
        let entries = self.without_overdue(entries).await;
        let members: BTreeMap<MemberId, Record> = entries
            .into_iter()
            .filter_map(|(id, entry)| {
                let record = parsed::<Record>(&entry)?;
                let epoch = record.epoch.or(Some(entry.sequence));
                Some((MemberId(id), Record { epoch, ..record }))
            })
            .collect();
        let drained = self.bucket.entries(DRAIN).await?;
        let drained = drained.into_iter().map(|(id, _)| MemberId(id));
        let (mut leaving, strays): (BTreeSet<_>, BTreeSet<_>) =
            drained.partition(|id| members.contains_key(id));
        let about_to_end = members.iter().filter(|(_, record)| record.leaving);
        leaving.extend(about_to_end.map(|(id, _)| id.clone()));
        let now = Instant::now();
        self.strays.retain(|id, _| strays.contains(id));
        for id in strays {
            let since = *self.strays.entry(id.clone()).or_insert(now);
            if now.duration_since(since) > DRAIN_KEPT {
                let Some(sequence) = self.lead.sequence() else { break };
                let condition = Condition { key: LEADER, sequence };
                self.bucket.delete(&format!("{DRAIN}.{id}"), Some(condition)).await;
            }
        }
        self.members = members
            .iter()
            .map(|(id, record)| (id.clone(), record.clone().without_beat()))
            .collect();
        Ok((members, leaving))
    }

    /// An entry about the key `leader`. A leader whose lease has ended does not hold it.
    pub(super) fn found_leader(&mut self, entry: Option<Entry>, at: Instant) -> Found {
        let lease = entry.as_ref().map(|entry| (entry.sequence, entry.ttl.unwrap_or(self.ttl)));
        let found = found(entry, |leader: Leadership| match &leader.member {
            None => Some((0, None)),
            Some(member) if *member == self.id => Some((leader.beat, leader.epoch)),
            Some(_) => None,
        });
        match (found, lease) {
            (Found::Taken, Some((sequence, lease)))
                if self.overdue_leader.is(LEADER, sequence, lease, at) =>
            {
                tracing::warn!("the broker keeps a leader whose lease has ended: it is replaced");
                Found::Free(sequence)
            }
            _ => found,
        }
    }

    /// Deletes the records whose leases have ended. Returns the others.
    async fn without_overdue(&mut self, entries: Vec<(String, Entry)>) -> Vec<(String, Entry)> {
        let now = Instant::now();
        self.overdue.retain(|id| entries.iter().any(|(of, _)| of == id));
        let (ended, living): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(id, entry)| {
            let lease = entry.ttl.unwrap_or(self.ttl);
            *id != self.id.0 && self.overdue.is(id, entry.sequence, lease, now)
        });
        for (id, entry) in ended {
            tracing::warn!(
                member = id,
                "the broker keeps a member whose lease has ended: it is deleted"
            );
            let key = format!("{MEMBER}.{id}");
            let condition = Condition { key: &key, sequence: entry.sequence };
            self.bucket.delete(&key, Some(condition)).await;
        }
        living
    }

    /// True if a record says nothing new, like most renewals.
    pub(super) fn knows(&self, id: &str, record: &[u8]) -> bool {
        let known = self.members.get(&MemberId(id.to_owned()));
        let record = serde_json::from_slice::<Record>(record).ok().map(Record::without_beat);
        known.is_some() && known == record.as_ref()
    }
}
