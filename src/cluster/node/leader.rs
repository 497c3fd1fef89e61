//! The leader's own work: it looks which members are there, and writes the map.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flexcore_broker::bucket::Condition;
use flexcore_resilience::jitter;
use tokio::time::Instant;

use super::{Node, RETRY};
use crate::{
    Error, MemberId, Record,
    bucket::{DRAIN, LEADER, MAP, MEMBER, parsed},
    lease::Written,
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

    /// True if a record says nothing new, like most renewals.
    pub(super) fn knows(&self, id: &str, record: &[u8]) -> bool {
        let known = self.members.get(&MemberId(id.to_owned()));
        let record = serde_json::from_slice::<Record>(record).ok().map(Record::without_beat);
        known.is_some() && known == record.as_ref()
    }
}
