//! The cluster as people see it, and what they may ask of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Error, Map, MemberId, Record, WorkName,
    bucket::{Bucket, DRAIN, LEADER, MAP, MEMBER, REQUEST_TIMEOUT, parsed},
    lease::Written,
    node::Leadership,
};

/// A member and its places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Its id.
    pub id: MemberId,
    /// `gateway`, `worker`, `dev`.
    pub role: String,
    /// The version of its executable.
    pub version: String,
    /// When it started, seconds since 1970-01-01 UTC.
    pub started_s: u64,
    /// True if it leads.
    pub leads: bool,
    /// It is to serve nothing any more.
    pub draining: bool,
    /// The places that it owns, by kind.
    pub owns: BTreeMap<WorkName, Vec<u16>>,
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The leader; `None`: nobody just now.
    pub leader: Option<MemberId>,
    /// The leader's epoch.
    pub epoch: Option<u64>,
    /// The members that hold their leases.
    pub members: Vec<Seat>,
    /// Places without an owner, by kind. It names no kind before the first leader has written the map.
    pub unowned: BTreeMap<WorkName, Vec<u16>>,
}

/// Looks at the cluster. Fails when the broker does not answer.
#[boxed::async_recursion]
pub async fn look(client: &async_nats::Client) -> Result<View, Error> {
    let bucket = Bucket::attach(client).await?;
    let leader = bucket.read(LEADER).await?;
    let sequence = leader.as_ref().map(|entry| entry.sequence);
    let leader = leader.as_ref().and_then(parsed::<Leadership>).unwrap_or_default();
    let map: Map = bucket.read(MAP).await?.as_ref().and_then(parsed).unwrap_or_default();
    let drained = names(&bucket, DRAIN).await?;
    let mut members = Vec::new();
    for (id, entry) in bucket.entries(MEMBER).await? {
        let Some(record) = parsed::<Record>(&entry) else { continue };
        let draining = record.leaving || drained.contains(&id);
        let id = MemberId(id);
        members.push(Seat {
            leads: leader.member.as_ref() == Some(&id),
            owns: record
                .kinds
                .into_iter()
                .map(|kind| (kind.clone(), owned(&map, &kind, Some(&id))))
                .collect(),
            role: record.role,
            version: record.version,
            started_s: record.started_s,
            draining,
            id,
        });
    }
    let unowned = map.places.keys().map(|kind| (kind.clone(), owned(&map, kind, None))).collect();
    let epoch = leader.member.as_ref().and(leader.epoch.or(sequence));
    Ok(View { leader: leader.member, epoch, members, unowned })
}

async fn names(bucket: &Bucket, prefix: &str) -> Result<Vec<String>, Error> {
    Ok(bucket.entries(prefix).await?.into_iter().map(|(name, _)| name).collect())
}

fn owned(map: &Map, kind: &str, by: Option<&MemberId>) -> Vec<u16> {
    let places = map.places.get(kind).map_or(&[][..], Vec::as_slice);
    let places = (0..).zip(places).filter(|(_, place)| place.owner.as_ref() == by);
    places.map(|(number, _)| number).collect()
}

/// Asks that a member serves nothing any more; it stays a member. Fails with
/// [`Error::UnknownMember`].
#[boxed::async_recursion]
pub async fn drain(client: &async_nats::Client, id: &str) -> Result<(), Error> {
    let bucket = Bucket::attach(client).await?;
    let known = names(&bucket, MEMBER).await?;
    if !known.iter().any(|known| known == id) {
        return Err(Error::UnknownMember { id: id.to_owned(), known });
    }
    stored(bucket.write(&format!("{DRAIN}.{id}"), &true, None, None).await)
}

/// Takes [`drain`] back.
#[boxed::async_recursion]
pub async fn undrain(client: &async_nats::Client, id: &str) -> Result<(), Error> {
    let bucket = Bucket::attach(client).await?;
    let known = names(&bucket, DRAIN).await?;
    if !known.iter().any(|known| known == id) {
        return Err(Error::UnknownMember { id: id.to_owned(), known });
    }
    stored(bucket.delete(&format!("{DRAIN}.{id}"), None).await)
}

fn stored(written: Written) -> Result<(), Error> {
    match written {
        Written::Stored(_) => Ok(()),
        Written::Refused | Written::Unknown => {
            Err(Error::Unavailable("the request has no answer: make it again".to_owned()))
        }
    }
}

/// Forgets every member: for the one process that owns the broker, when it starts.
#[boxed::async_recursion]
pub async fn reset(client: &async_nats::Client, replicas: usize) -> Result<(), Error> {
    Bucket::open(client, replicas, REQUEST_TIMEOUT).await?.clear().await
}
