//! Shared parts of the tests: a broker, members that serve what they are assigned, and a floor that
//! shows which member serves which place.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, jetstream};
use flexcore_cluster::{Member, MemberId, Settings, WorkKind};
use flexcore_servers::{Options, Servers, Sync, Want};
use tokio_util::task::AbortOnDropHandle;

pub(crate) const COMMAND: WorkKind = WorkKind { name: "command", places: 64, heading: "slots" };
pub(crate) const PROJECTION: WorkKind =
    WorkKind { name: "projection", places: 16, heading: "projections" };
pub(crate) const KINDS: [WorkKind; 2] = [COMMAND, PROJECTION];

/// The shortest lease, so that the tests are fast.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

pub(crate) async fn broker() -> Servers {
    let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
    let options = Options { want: Want::Nats, sync: Sync::Lazy, ..Options::new(cache) };
    Servers::start(&options).await.unwrap()
}

/// The member that serves each place.
#[derive(Default)]
pub(crate) struct Floor {
    serving: Mutex<BTreeMap<(WorkKind, u16), BTreeMap<MemberId, u64>>>,
    highest: Mutex<BTreeMap<(WorkKind, u16), (u64, MemberId)>>,
    wrong: Mutex<Vec<String>>,
}

impl Floor {
    fn starts(&self, kind: WorkKind, number: u16, member: &MemberId, epoch: u64) {
        let place = (kind, number);
        let mut serving = self.serving.lock().unwrap();
        let here = serving.entry(place).or_default();
        here.insert(member.clone(), epoch);
        let mut wrong = self.wrong.lock().unwrap();
        if here.len() > 1 {
            wrong.push(format!("two serve {place:?}: {here:?}"));
        }
        let mut highest = self.highest.lock().unwrap();
        let (top, by) = highest.entry(place).or_insert((0, member.clone()));
        if epoch < *top || epoch == *top && by != member {
            wrong.push(format!("{place:?} of {member} has {epoch}, after {top} of {by}"));
        }
        (*top, *by) = (epoch, member.clone());
    }

    fn stops(&self, kind: WorkKind, number: u16, member: &MemberId) {
        let mut serving = self.serving.lock().unwrap();
        if let Some(here) = serving.get_mut(&(kind, number)) {
            here.remove(member);
        }
    }

    /// It was killed.
    fn vanishes(&self, member: &MemberId) {
        for here in self.serving.lock().unwrap().values_mut() {
            here.remove(member);
        }
    }

    /// Number of places of a kind that a member serves.
    pub(crate) fn count(&self, kind: WorkKind, member: &MemberId) -> usize {
        let serving = self.serving.lock().unwrap();
        serving.iter().filter(|((of, _), here)| *of == kind && here.contains_key(member)).count()
    }

    /// The greatest epoch of any place.
    pub(crate) fn highest(&self) -> u64 {
        self.highest.lock().unwrap().values().map(|(epoch, _)| *epoch).max().unwrap_or(0)
    }

    /// The lowest epoch under which something of this kind is served.
    pub(crate) fn lowest(&self, kind: WorkKind) -> u64 {
        let serving = self.serving.lock().unwrap();
        let of = serving.iter().filter(|((of, _), _)| *of == kind);
        of.flat_map(|(_, here)| here.values()).min().copied().unwrap_or(0)
    }

    /// Nothing was ever served by two at once, or under an epoch that is not above the others'.
    pub(crate) fn check(&self) {
        let wrong = self.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}

/// A member that serves what it is assigned.
pub(crate) struct Worker {
    pub(crate) member: Member,
    pub(crate) client: async_nats::Client,
    floor: Arc<Floor>,
    serves: Option<AbortOnDropHandle<()>>,
}

impl Worker {
    pub(crate) async fn join(servers: &Servers, floor: &Arc<Floor>, name: &str) -> Self {
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let settings = Settings { lease: LEASE, ..Settings::new(name, "worker", KINDS) };
        let member = Member::join(&client, settings).await.unwrap();
        let serves = tokio::spawn(serve(member.clone(), floor.clone()));
        let serves = Some(AbortOnDropHandle::new(serves));
        Self { member, client, floor: floor.clone(), serves }
    }

    pub(crate) fn count(&self, kind: WorkKind) -> usize {
        self.floor.count(kind, self.member.id())
    }

    /// Ends at once, as by SIGKILL: nobody is told.
    pub(crate) fn kill(mut self) {
        drop(self.serves.take());
        self.floor.vanishes(self.member.id());
    }

    /// Ends in order.
    pub(crate) async fn leave(mut self) {
        drop(self.serves.take());
        self.floor.vanishes(self.member.id());
        self.member.leave().await;
    }
}

async fn serve(member: Member, floor: Arc<Floor>) {
    let id = member.id().clone();
    let mut assigned = member.assigned();
    let mut serving: BTreeMap<(WorkKind, u16), u64> = BTreeMap::new();
    loop {
        let now = assigned.borrow_and_update().clone();
        let mut wanted = BTreeMap::new();
        for kind in KINDS {
            wanted.extend(now.of(kind).into_iter().map(|(n, epoch)| ((kind, n), epoch)));
        }
        let ends: Vec<_> = serving.iter().filter(|(at, e)| wanted.get(at) != Some(e)).collect();
        let ends: Vec<_> = ends.into_iter().map(|(at, _)| *at).collect();
        // Leaving takes time: a member that is given the place meanwhile is one too many.
        if !ends.is_empty() && now.followed > 0 {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        for (kind, number) in ends {
            serving.remove(&(kind, number));
            floor.stops(kind, number, &id);
        }
        for ((kind, number), epoch) in wanted {
            if serving.insert((kind, number), epoch).is_none() {
                floor.starts(kind, number, &id, epoch);
            }
        }
        for kind in KINDS {
            let places: BTreeSet<u16> =
                serving.keys().filter(|(of, _)| *of == kind).map(|(_, n)| *n).collect();
            member.report(kind, now.followed, places);
        }
        if assigned.changed().await.is_err() {
            return;
        }
    }
}

/// Waits until it is so; fails after the time. Returns how long it took.
pub(crate) async fn until(what: &str, longest: Duration, so: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < longest, "not within {longest:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// Writes a key as it is, if `on` is at a sequence.
pub(crate) async fn put(
    client: &async_nats::Client,
    key: &str,
    value: &str,
    on: Option<(&str, u64)>,
) -> Result<u64, jetstream::context::PublishErrorKind> {
    let mut headers = HeaderMap::new();
    if value.is_empty() {
        headers.insert("KV-Operation", "DEL");
    }
    if let Some((on, sequence)) = on {
        headers.insert("Nats-Expected-Last-Subject-Sequence", sequence.to_string());
        let subject = format!("$KV.flex_cluster.{on}");
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", subject);
    }
    let context = jetstream::new(client.clone());
    let subject = format!("$KV.flex_cluster.{key}");
    let sent = context.publish_with_headers(subject, headers, value.to_owned().into()).await;
    let sent = sent.map_err(|error| error.kind())?;
    sent.await.map(|stored| stored.sequence).map_err(|error| error.kind())
}

/// A key's sequence and value.
pub(crate) async fn get(client: &async_nats::Client, key: &str) -> Option<(u64, String)> {
    let stream = jetstream::new(client.clone()).get_stream(flexcore_cluster::STREAM).await.unwrap();
    let subject = format!("$KV.flex_cluster.{key}");
    let message = stream.get_last_raw_message_by_subject(&subject).await.ok()?;
    Some((message.sequence, String::from_utf8(message.payload.to_vec()).unwrap()))
}
