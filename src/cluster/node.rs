//! A member's task: keeps its leases, follows the map, and leads when it is its turn.

mod leader;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_nats::{Message, Subscriber, connection::State};
use flexcore_broker::bucket::{Condition, Entry, subject};
use flexcore_resilience::{Backoff, jitter};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Assigned, Error, Guard, MemberId, Record, STREAM, Serves, Settings, WorkKind, WorkName,
    bucket::{Bucket, DRAIN, LEADER, MAP, MEMBER, parsed},
    fence::Fence,
    lease::{Found, Lease, Step, Terms, Written},
    overdue::Overdue,
    plan::Map,
    unavailable,
};

/// Renewals in the time of a lease: some may be lost.
pub(crate) const RENEWALS: u32 = 6;
/// Time between a member's looks for changes that no hint told of.
const LOOK_EVERY: Duration = Duration::from_millis(1_000);
/// A hint comes when something is sent, which is before several brokers have agreed on it and anybody
/// can read it. So after a hint there are so many further looks, and a pause before each.
const LOOKS_AGAIN: u32 = 5;
const AGAIN: Backoff =
    Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(320) };
/// Time for which the leader waits for more news after some, so that many members cost one look.
const GATHER: Duration = Duration::from_millis(20);
/// Pause after a write or a look without an answer.
const RETRY: Duration = Duration::from_millis(250);
/// Time without an answer after which another server is tried. It is longer than the broker's
/// election of a leader takes, when it refuses at once, since everything else in the process is
/// disturbed.
const SILENCE_MAX: Duration = Duration::from_secs(8);
/// Longest time for taking leave.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// The content of the key `leader`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Leadership {
    /// `None`: it was given up.
    pub(crate) member: Option<MemberId>,
    /// Of the leader; `None`: the sequence of this message.
    pub(crate) epoch: Option<u64>,
    #[serde(default)]
    pub(crate) beat: u64,
}

/// The receivers of a change.
type Told = (watch::Sender<Arc<Map>>, watch::Sender<Assigned>);

/// When to stop.
pub(crate) struct Ends {
    /// Leading, and being given anything to serve.
    pub(crate) resigning: CancellationToken,
    /// Altogether.
    pub(crate) leaving: CancellationToken,
}

pub(crate) struct Node {
    bucket: Bucket,
    id: MemberId,
    record: Record,
    kinds: Vec<WorkKind>,
    shared_out: Vec<WorkKind>,
    ttl: Duration,
    renew_every: Duration,
    guard: Guard,
    own: Lease,
    renew_at: Instant,
    lead: Lease,
    lead_at: Instant,
    may_lead: bool,
    /// The map as last read, with its sequence.
    map: (Arc<Map>, u64),
    fence: Fence,
    look_at: Instant,
    looked: Instant,
    /// The further looks that are due after a hint, counted from 1.
    again: Range<u32>,
    /// As the leader last read them, without what each renewal changes.
    members: BTreeMap<MemberId, Record>,
    /// Whom a wish to drain names that is not there, and since when.
    strays: BTreeMap<MemberId, Instant>,
    overdue: Overdue,
    overdue_leader: Overdue,
    silent_since: Option<Instant>,
    pub(crate) told: Option<Told>,
}

impl Node {
    pub(crate) fn new(bucket: Bucket, id: MemberId, settings: &Settings, guard: Guard) -> Self {
        let ttl_ms = u64::try_from(settings.lease.as_millis()).unwrap_or(u64::MAX);
        let terms = Terms { ttl_ms, margin_ms: ttl_ms / u64::from(RENEWALS) };
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = Record {
            kinds: settings.kinds.iter().map(|kind| kind.name.into()).collect(),
            role: settings.role.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_s: started.as_secs(),
            serves: settings
                .kinds
                .iter()
                .map(|kind| (kind.name.into(), Serves::default()))
                .collect(),
            ..Record::default()
        };
        let now = Instant::now();
        Self {
            bucket,
            id,
            record,
            kinds: settings.kinds.clone(),
            shared_out: settings.shared_out.clone(),
            ttl: settings.lease,
            renew_every: settings.lease / RENEWALS,
            guard,
            own: Lease::own(terms),
            renew_at: now,
            lead: Lease::new(terms),
            lead_at: now,
            may_lead: !settings.kinds.is_empty(),
            map: (Arc::default(), 0),
            fence: Fence::default(),
            look_at: now,
            looked: now,
            again: 0..0,
            members: BTreeMap::new(),
            strays: BTreeMap::new(),
            overdue: Overdue::default(),
            overdue_leader: Overdue::default(),
            silent_since: None,
            told: None,
        }
    }

    /// Its record.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Stores the first record. Returns hints: whatever is published to the bucket.
    pub(crate) async fn start(&mut self) -> Result<Subscriber, Error> {
        let all = subject(STREAM, ">");
        let hints = self.bucket.client.subscribe(all).await.map_err(unavailable)?;
        self.bucket.client.flush().await.map_err(unavailable)?;
        self.renew().await;
        if !self.own.holds(self.now_ms()) {
            return Err(Error::Unavailable("the member's record is not stored".to_owned()));
        }
        self.tick().await;
        Ok(hints)
    }

    fn now_ms(&self) -> u64 {
        self.guard.now_ms()
    }

    pub(crate) async fn run(
        mut self,
        mut hints: Subscriber,
        mut reports: mpsc::UnboundedReceiver<(WorkKind, Serves)>,
        mut looks: mpsc::UnboundedReceiver<()>,
        ends: Ends,
    ) {
        loop {
            let wake = self.wake_at();
            tokio::select! {
                () = ends.leaving.cancelled() => break,
                () = ends.resigning.cancelled(), if !self.record.leaving => {
                    // First: the next leader then plans without us from the beginning.
                    self.record.leaving = true;
                    self.renew().await;
                    self.resign().await;
                }
                () = tokio::time::sleep_until(wake) => {}
                Some(hint) = hints.next() => self.hinted(&hint),
                Some(()) = looks.recv() => {
                    // Everybody who waits for an owner asks: one look is for all.
                    while looks.try_recv().is_ok() {}
                    self.look_at = self.look_at.min(self.looked + GATHER);
                }
                Some((kind, serves)) = reports.recv() => self.reported(kind, serves),
            }
            // All of them: the guard may rise in this tick, by what is served as far as we know.
            while let Ok((kind, serves)) = reports.try_recv() {
                self.reported(kind, serves);
            }
            self.tick().await;
        }
        let _ = tokio::time::timeout(LEAVE_MAX, self.leave()).await;
    }

    fn reported(&mut self, kind: WorkKind, serves: Serves) {
        if self.record.serves.insert(kind.name.into(), serves.clone()) != Some(serves) {
            self.renew_at = Instant::now();
        }
    }

    /// When something is due. The end of the lease is: what was assigned is void then.
    fn wake_at(&self) -> Instant {
        let next = self.renew_at.min(self.look_at);
        let next = if self.may_lead { next.min(self.lead_at) } else { next };
        let left_ms = self.own.until_ms().saturating_sub(self.now_ms());
        if left_ms == 0 { next } else { next.min(Instant::now() + Duration::from_millis(left_ms)) }
    }

    /// Something was published to a key. It may have been refused, so it is only a reason to look.
    fn hinted(&mut self, hint: &Message) {
        let now = Instant::now();
        let key = hint.subject.strip_prefix(&*subject(STREAM, "")).unwrap_or_default();
        let leads = self.lead.holds(self.now_ms());
        match key.split_once('.').unwrap_or((key, "")) {
            (MAP, _) => self.look_soon(now),
            (LEADER, _) if !leads => self.lead_at = self.lead_at.min(now + jitter(RETRY / 10)),
            (LEADER, _) => {
                let leader = serde_json::from_slice::<Leadership>(&hint.payload);
                let ours = leader.is_ok_and(|leader| leader.member.as_ref() == Some(&self.id));
                // Somebody took it from us, or wants to.
                if !ours {
                    self.lead_at = now;
                }
            }
            // Somebody deleted it: our right to act ends with it.
            (MEMBER, id) if id == self.id.as_str() && hint.payload.is_empty() => {
                self.renew_at = now;
            }
            (MEMBER, id) if leads && self.knows(id, &hint.payload) => {}
            (MEMBER | DRAIN, _) if leads => self.look_soon(now + GATHER),
            _ => {}
        }
    }

    fn look_soon(&mut self, at: Instant) {
        self.look_at = self.look_at.min(at);
        self.again = 1..LOOKS_AGAIN + 1;
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        if self.renew_at <= now {
            self.renew().await;
        }
        if self.may_lead && self.lead_at <= now {
            self.contend().await;
        }
        if self.look_at <= now {
            let pause = self.again.next().map(|nth| AGAIN.after(nth));
            self.look_at = now + pause.unwrap_or_else(|| jitter(LOOK_EVERY));
            self.looked = now;
            // A plan follows from the map in force, never from one that was once read.
            let fresh = self.follow().await;
            if let (true, Some(epoch)) = (fresh, self.lead.epoch(self.now_ms())) {
                self.assign(epoch).await;
            }
        }
        self.raise();
        self.tell();
    }

    /// Renews the member's record.
    async fn renew(&mut self) {
        let key = format!("{MEMBER}.{}", self.id);
        let at = Instant::now();
        let again = match self.own.step(self.now_ms()) {
            Step::Read => match self.bucket.read(&key).await {
                Ok(entry) => {
                    let found = found(entry, |record: Record| Some((record.beat, record.epoch)));
                    self.own.found(found);
                    self.silent_since = None;
                    // Something foreign is in our place: it ends by itself, or is deleted.
                    if found == Found::Taken { jitter(RETRY) } else { Duration::ZERO }
                }
                Err(error) => self.silent(&error),
            },
            Step::Write { expected, beat, epoch } => {
                (self.record.beat, self.record.epoch) = (beat, epoch);
                let condition = Condition { key: &key, sequence: expected };
                let written =
                    self.bucket.write(&key, &self.record, Some(condition), Some(self.ttl)).await;
                self.own.written(written);
                self.answered(written, self.renew_every)
            }
        };
        self.renew_at = at + again;
        self.raise();
    }

    /// Sets the guard to what the lease allows. After a loss of the lease the process may serve yet
    /// what it had before: it may not act until it has reported that it does not.
    fn raise(&self) {
        let places = self.places(Map::of);
        let void = self.record.serves.iter().any(|(kind, serves)| {
            let has = places.get(kind);
            serves.places.iter().any(|number| !has.is_some_and(|has| has.contains_key(number)))
        });
        let holds = self.guard.holds();
        let until_ms = if void && !holds { 0 } else { self.own.until_ms() };
        self.guard.until_ms.store(until_ms, Ordering::Release);
    }

    /// Wins the leadership, keeps it, or looks whether it is free.
    async fn contend(&mut self) {
        let at = Instant::now();
        let led = self.lead.holds(self.now_ms());
        let again = match self.lead.step(self.now_ms()) {
            Step::Read => match self.bucket.read(LEADER).await {
                Ok(entry) => {
                    let found = self.found_leader(entry, at);
                    self.lead.found(found);
                    self.silent_since = None;
                    if found == Found::Taken { jitter(LOOK_EVERY) } else { Duration::ZERO }
                }
                Err(error) => self.silent(&error),
            },
            Step::Write { expected, beat, epoch } => {
                let value = Leadership { member: Some(self.id.clone()), epoch, beat };
                let condition = Condition { key: LEADER, sequence: expected };
                let written =
                    self.bucket.write(LEADER, &value, Some(condition), Some(self.ttl)).await;
                self.lead.written(written);
                self.answered(written, self.renew_every)
            }
        };
        self.lead_at = at + again;
        let epoch = self.lead.epoch(self.now_ms());
        match (led, epoch) {
            (false, Some(epoch)) => {
                tracing::info!(member = %self.id, epoch, "leads");
                metrics::counter!("flexcore_leader_changes_total").increment(1);
                self.look_at = at;
            }
            (true, None) => tracing::warn!(member = %self.id, "leads no longer"),
            _ => {}
        }
        metrics::gauge!("flexcore_leader").set(f64::from(u8::from(epoch.is_some())));
    }

    /// Reads the map. Returns whether it could.
    async fn follow(&mut self) -> bool {
        let entry = match self.bucket.read(MAP).await {
            Ok(entry) => entry,
            Err(error) => {
                self.look_at = Instant::now() + self.silent(&error);
                return false;
            }
        };
        self.silent_since = None;
        let at = entry.as_ref().map_or(0, |entry| entry.sequence);
        self.fence.saw(at);
        match entry {
            Some(entry) if entry.value.is_some() => {
                if at != self.map.1
                    && let Some(map) = parsed::<Map>(&entry)
                {
                    self.map = (Arc::new(map), at);
                }
            }
            _ => self.map = (Arc::default(), 0),
        }
        true
    }

    /// Tells what is assigned, if that has changed: nothing, while our lease does not hold.
    fn tell(&self) {
        let Some((map, assigned)) = &self.told else { return };
        let holds = self.own.holds(self.now_ms());
        map.send_if_modified(|known| {
            let changed = *known != self.map.0;
            *known = self.map.0.clone();
            changed
        });
        let now = Assigned {
            followed: if holds { self.map.1 } else { 0 },
            places: if holds { self.places(Map::of) } else { BTreeMap::new() },
            leaving: if holds { self.places(Map::left_by) } else { BTreeMap::new() },
        };
        assigned.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }

    /// The places that the map gives us, without those from before we last lost the lease.
    fn places(
        &self,
        which: impl Fn(&Map, &MemberId, WorkKind) -> BTreeMap<u16, u64>,
    ) -> BTreeMap<WorkName, BTreeMap<u16, u64>> {
        let Some(tenure) = self.own.tenure() else { return BTreeMap::new() };
        let of = |kind: &WorkKind| {
            let mut places = which(&self.map.0, &self.id, *kind);
            places.retain(|_, epoch| *epoch >= tenure);
            (kind.name.into(), places)
        };
        self.kinds.iter().map(of).collect()
    }

    /// Counts answers. Returns when to try next.
    fn answered(&mut self, written: Written, next: Duration) -> Duration {
        match written {
            Written::Stored(_) => {
                self.silent_since = None;
                next
            }
            Written::Refused => {
                self.silent_since = None;
                Duration::ZERO
            }
            Written::Unknown => self.silent(&"no answer"),
        }
    }

    /// After some time without an answer the connection is made anew: a server that is cut off from
    /// the others may still talk to us.
    fn silent(&mut self, error: &dyn std::fmt::Display) -> Duration {
        let now = Instant::now();
        let silent = now.duration_since(*self.silent_since.get_or_insert(now));
        tracing::debug!(%error, ?silent, "the cluster's bucket does not answer");
        let client = &self.bucket.client;
        if silent >= SILENCE_MAX && client.connection_state() == State::Connected {
            self.silent_since = Some(now);
            tracing::warn!("the broker does not answer: another server is tried");
            let client = client.clone();
            tokio::spawn(async move { client.force_reconnect().await });
        }
        jitter(RETRY)
    }

    /// Gives up the leadership for good.
    async fn resign(&mut self) {
        self.may_lead = false;
        if let Some(sequence) = self.lead.sequence() {
            let condition = Condition { key: LEADER, sequence };
            let free = Leadership::default();
            self.bucket.write(LEADER, &free, Some(condition), Some(self.ttl)).await;
        }
        self.lead.written(Written::Refused);
    }

    /// Gives up the leadership, then the record.
    async fn leave(&mut self) {
        self.guard.until_ms.store(0, Ordering::Release);
        self.resign().await;
        // Any record that is there is ours, also one that a write without an answer has stored.
        self.bucket.delete(&format!("{MEMBER}.{}", self.id), None).await;
    }
}

/// An entry about its key. `ours` gives beat and epoch; `None`: somebody else's. A beat of 0, which
/// no attempt has, says that the key was given up.
fn found<T: for<'a> Deserialize<'a>>(
    entry: Option<Entry>,
    ours: impl FnOnce(T) -> Option<(u64, Option<u64>)>,
) -> Found {
    let Some(entry) = entry else { return Found::Free(0) };
    let sequence = entry.sequence;
    // One that does not parse is of a later version, or foreign: it ends with its time to live.
    match (entry.value.is_some(), parsed::<T>(&entry)) {
        (false, _) => Found::Free(sequence),
        (true, None) => Found::Taken,
        (true, Some(value)) => match ours(value) {
            None => Found::Taken,
            Some((0, _)) => Found::Free(sequence),
            Some((beat, epoch)) => Found::Ours { sequence, beat, epoch },
        },
    }
}
