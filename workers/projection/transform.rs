//! Transformations: events go through a plugin's function before their rows change. Many calls are under way at
//! once; what comes of them is used in the order of the log.

mod alone;
mod call;

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use async_nats::Client;
use flexcore_domain::{Event, Hash, Name, Tenant};
use flexcore_eventstore::Recorded;
use flexcore_readmodel::{Reads, Transformed};
use flexcore_resilience::Backoff;
use futures::{StreamExt as _, stream::FuturesUnordered};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    batch::{EventAt, Model, Upcasted, made},
    failure::Failure,
    upcast::bytes_of,
    waiting::{Call, Suspects, Waiting, Whose},
};
use call::Came;

/// Calls of one reader that are under way. 32: with calls of 10 ms some 3,000 events a second; a plugin has 64
/// places where its manifest says nothing else, of which a tenant has three quarters.
const CALLS_MAX: usize = 32;
/// Bytes of results after which no further commit's events are sent for a batch.
const MADE_BYTES_MAX: usize = 32 << 20;
/// After which no more commits are begun with: what is there is written first, so that rows move on.
const TRANSFORM_FOR: Duration = Duration::from_secs(5);
/// Pauses before a plugin that is busy is asked again.
const BUSY_PAUSES: Backoff =
    Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(500) };
/// A plugin that has been busy for so long, and has done nothing for this reader, is taken to be away.
const BUSY_FOR: Duration = Duration::from_secs(5);

/// The transformations of what a reader feeds.
pub(super) struct Transforms {
    client: Client,
    waiting: Waiting,
    /// Calls that may be under way now: fewer where the plugin was busy.
    calls_max: usize,
    /// Calls that ended since that changed.
    ended: usize,
}

/// An event on its way through a plugin.
#[derive(Clone, Copy)]
struct Passing<'a> {
    at: EventAt,
    /// The read model that is fed.
    read_model: &'a Name,
    recorded: &'a Recorded,
    event: &'a Event,
    transformed: &'a Transformed,
    /// What its data were brought to first, by an upcast.
    upcast: Option<Hash>,
}

/// The events of a batch, in the order of the log, as they are sent.
struct Round<'a> {
    left: VecDeque<Passing<'a>>,
    /// Events that are asked for alone, and so at the beginning of a round.
    suspects: Suspects,
    began: Instant,
    /// Bytes of results that fit.
    room: usize,
    /// The last commit that was begun with.
    last: Option<u64>,
    /// How often in a row the plugin was busy, since when, and until when it is left alone.
    busy: u32,
    busy_since: Option<Instant>,
    rests_until: Instant,
}

impl Transforms {
    pub(super) fn new(client: Client, waiting: Waiting) -> Self {
        Self { client, waiting, calls_max: CALLS_MAX, ended: 0 }
    }

    /// Sends the commits' events that some model needs transformed, and puts what comes of them beside the
    /// upcasts. Those that are there are not sent again. Returns how many of the commits have what they need; none
    /// when it is told to stop, or when an event of the first one is to be asked for alone, in the next run. Fails
    /// when a plugin gives no answer now for an event of the first commit that lacks one.
    pub(super) async fn run(
        &mut self,
        models: &[Model],
        commits: &[Recorded],
        upcasted: &mut Upcasted,
        stop: &CancellationToken,
    ) -> Result<usize, Failure> {
        let left = wanted(models, commits, upcasted);
        if left.is_empty() {
            // What comes before the checkpoints is read again: then nothing has gone on.
            let takes = |commit: &Recorded| models.iter().any(|model| model.takes(commit));
            if commits.iter().any(takes) {
                self.goes_on(models);
            }
            return Ok(commits.len());
        }
        let all: Vec<EventAt> = left.iter().map(|passing| passing.at).collect();
        let used = upcasted.values().map(bytes_of).sum();
        let room = MADE_BYTES_MAX.saturating_sub(used);
        let mut round = Round::new(left, room, self.waiting.suspects.clone());
        let away = match self.alone(&mut round, upcasted, stop).await {
            None if !stop.is_cancelled() => self.pass(&mut round, upcasted, stop).await,
            away => away,
        };
        let ready = match all.iter().find(|at| !upcasted.contains_key(*at)) {
            Some((sequence, ..)) => commits.partition_point(|it| it.sequence < *sequence),
            None => commits.len(),
        };
        match away {
            Some(reason) if ready == 0 => Err(Failure::Plugin(reason)),
            Some(_) => Ok(ready),
            None => {
                if ready > 0 && !stop.is_cancelled() {
                    self.goes_on(models);
                }
                Ok(ready)
            }
        }
    }

    /// What goes through a plugin waits no longer.
    fn goes_on(&self, models: &[Model]) {
        let through = models.iter().filter(|model| model.version.plan.is_transformed());
        self.waiting.is_over(through.map(|model| model.version.id()));
    }

    /// Calls until all is done that fits, or it is told to stop. Returns the first reason for which there is no
    /// answer; then it begins nothing more.
    async fn pass(
        &mut self,
        round: &mut Round<'_>,
        upcasted: &mut Upcasted,
        stop: &CancellationToken,
    ) -> Option<String> {
        let (mut calls, mut away) = (FuturesUnordered::new(), None);
        loop {
            let is_resting = Instant::now() < round.rests_until;
            while !is_resting && away.is_none() && calls.len() < self.calls_max {
                let Some(passing) = round.next() else { break };
                match prepare(&passing, upcasted) {
                    Ok(call) => calls.push(called(self.client.clone(), passing, call)),
                    Err(reason) => round.done(passing, Err(reason), upcasted),
                }
            }
            if calls.is_empty() && (away.is_some() || !round.may_begin()) {
                return away;
            }
            let (passing, came) = tokio::select! {
                () = stop.cancelled() => return None,
                Some(ended) = calls.next() => ended,
                () = sleep_until(round.rests_until), if is_resting => continue,
            };
            away = away.or(self.took(round, passing, came, upcasted));
        }
    }

    /// Keeps what came of a call. Returns the reason where there is no answer now.
    fn took<'a>(
        &mut self,
        round: &mut Round<'a>,
        passing: Passing<'a>,
        came: Came,
        upcasted: &mut Upcasted,
    ) -> Option<String> {
        let came = match came {
            Came::Data(data) => {
                self.keep(&passing, upcasted);
                Ok(data)
            }
            Came::Nothing(reason) => Err(reason),
            Came::Ended(reason) | Came::Failing(reason) => {
                // It may be the fault of any that were under way together, or the plugin's.
                self.waiting.suspects.note(passing.at, &reason, Instant::now());
                return Some(reason);
            }
            Came::Busy(reason) => return self.busy(round, passing).then_some(reason),
            Came::Away(reason) => return Some(reason),
        };
        self.well(round);
        round.done(passing, came, upcasted);
        None
    }

    /// Keeps a call that had an answer, if there are not enough of its transformation yet.
    fn keep(&self, passing: &Passing<'_>, upcasted: &Upcasted) {
        let (suspects, fingerprint) = (&self.waiting.suspects, passing.transformed.fingerprint);
        let tenant = passing.tenant();
        if !suspects.keeps(&fingerprint, tenant)
            && let Ok(call) = prepare(passing, upcasted)
        {
            suspects.keep(fingerprint, tenant.clone(), call);
        }
    }

    /// The plugin has answered: after some answers it gets one call more at once.
    fn well(&mut self, round: &mut Round<'_>) {
        (round.busy, round.busy_since) = (0, None);
        self.ended += 1;
        if self.ended >= self.calls_max && self.calls_max < CALLS_MAX {
            (self.calls_max, self.ended) = (self.calls_max + 1, 0);
        }
    }

    /// The plugin has as much to do as it takes: it gets half as many calls at once, after a pause. Returns true
    /// when that has gone on for too long.
    fn busy<'a>(&mut self, round: &mut Round<'a>, passing: Passing<'a>) -> bool {
        let now = Instant::now();
        round.left.push_front(passing);
        // All that were sent at once may be refused at once.
        if now >= round.rests_until {
            (self.calls_max, self.ended) = ((self.calls_max / 2).max(1), 0);
            round.busy += 1;
            round.rests_until = now + BUSY_PAUSES.jittered(round.busy);
        }
        now - *round.busy_since.get_or_insert(now) >= BUSY_FOR
    }
}

impl Passing<'_> {
    fn tenant(&self) -> &Tenant {
        self.recorded.commit.key.tenant()
    }

    fn whose(&self) -> Whose {
        (self.read_model.clone(), self.tenant().clone())
    }
}

impl<'a> Round<'a> {
    fn new(left: VecDeque<Passing<'a>>, room: usize, suspects: Suspects) -> Self {
        let now = Instant::now();
        let (last, busy_since) = (None, None);
        Self { left, suspects, began: now, room, last, busy: 0, busy_since, rests_until: now }
    }

    /// True if there is an event to begin with: one of a commit that was begun with already, or of the next one
    /// where there is room and time. The first commit is begun with in any case. One that is to be asked for alone
    /// ends the round.
    fn may_begin(&self) -> bool {
        let is_enough = self.room == 0 || self.began.elapsed() >= TRANSFORM_FOR;
        let Some(next) = self.left.front() else { return false };
        if self.suspects.has(&next.at) {
            return false;
        }
        !is_enough || self.last.is_none_or(|last| next.at.0 <= last)
    }

    fn next(&mut self) -> Option<Passing<'a>> {
        if !self.may_begin() {
            return None;
        }
        let next = self.left.pop_front()?;
        self.last = self.last.max(Some(next.at.0));
        Some(next)
    }

    /// Keeps what came of the first event.
    fn first_done(&mut self, came: Result<Box<RawValue>, String>, upcasted: &mut Upcasted) {
        if let Some(first) = self.left.pop_front() {
            self.last = self.last.max(Some(first.at.0));
            self.done(first, came, upcasted);
        }
    }

    /// Keeps what came of an event.
    fn done(
        &mut self,
        passing: Passing<'a>,
        came: Result<Box<RawValue>, String>,
        upcasted: &mut Upcasted,
    ) {
        self.room = self.room.saturating_sub(bytes_of(&came));
        upcasted.insert(passing.at, came);
    }
}

/// The events that go through a plugin, in the order of the log, less those that have gone.
fn wanted<'a>(
    models: &'a [Model],
    commits: &'a [Recorded],
    upcasted: &Upcasted,
) -> VecDeque<Passing<'a>> {
    let (mut wanted, mut seen) = (Vec::new(), HashSet::new());
    for model in models.iter().filter(|model| model.version.plan.is_transformed()) {
        let plan = &model.version.plan;
        let taken = commits.iter().filter(|recorded| model.takes(recorded));
        // It stays before an event that is newer than its declaration.
        for recorded in taken.take_while(|recorded| !model.waits_at(&recorded.commit)) {
            if model.held.contains(&recorded.commit.key) {
                continue;
            }
            for (nth, event) in recorded.commit.events.iter().enumerate() {
                let Some(transformed) = plan.transforms(&recorded.commit, event) else { continue };
                let at = (recorded.sequence, nth, transformed.fingerprint);
                if upcasted.contains_key(&at) || !seen.insert(at) {
                    continue;
                }
                let upcast = match plan.reads(&recorded.commit, event) {
                    Reads::Upcast(followed) => Some(followed.fingerprint),
                    _ => None,
                };
                let read_model = &model.version.read_model;
                wanted.push(Passing { at, read_model, recorded, event, transformed, upcast });
            }
        }
    }
    wanted.sort_by_key(|passing| passing.at.0);
    wanted.into()
}

/// Fails with the reason for which the event is parked.
fn prepare(passing: &Passing<'_>, upcasted: &Upcasted) -> Result<Call, String> {
    let Passing { at: (sequence, nth, _), recorded, event, transformed, upcast, .. } = *passing;
    let data: &RawValue = match upcast {
        Some(to) => made(upcasted, &(sequence, nth, to)).map_err(|unfit| unfit.0)?,
        None => &event.data,
    };
    call::prepare(transformed, recorded, (nth, event), data)
}

async fn called(client: Client, passing: Passing<'_>, call: Call) -> (Passing<'_>, Came) {
    let came = call::make(&client, call, &passing.transformed.transform).await;
    (passing, came)
}

#[cfg(test)]
mod tests {
    use flexcore_definition::{FileLine, Transform};
    use flexcore_domain::{
        ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit,
        EventName, Provenance,
    };

    use super::*;

    fn recorded(sequence: u64) -> Recorded {
        let aggregate = AggregateName::parse("flight").unwrap();
        let (tenant, id) = (Tenant::parse("acme").unwrap(), AggregateId::parse("7").unwrap());
        let event = Event {
            event: EventName::parse("departed").unwrap(),
            version: 1,
            schema_version: 1,
            data: RawValue::from_string("{}".to_owned()).unwrap(),
        };
        let commit = Commit {
            key: AggregateKey::new(tenant, aggregate, id),
            command_id: CommandId::parse("c").unwrap(),
            command_hash: CommandHash::of("", ""),
            provenance: Provenance::of(ActorName::parse("a").unwrap()),
            time_ms: 5,
            events: vec![event.clone(), event],
        };
        Recorded { sequence, hash: Hash::ZERO, body: bytes::Bytes::new(), commit }
    }

    fn transformed() -> Transformed {
        let transform = Transform {
            plugin: Name::parse("geo").unwrap(),
            function: "locate".to_owned(),
            version: "1".to_owned(),
            place: FileLine::default(),
        };
        Transformed { transform, version: None, fingerprint: Hash::ZERO }
    }

    /// A batch has whole commits, and one at least.
    #[test]
    fn a_full_round_ends_with_the_commit_that_was_begun() {
        let (commits, of) = ([recorded(4), recorded(9)], &transformed());
        let read_model = &Name::parse("flights").unwrap();
        let all = commits.iter().flat_map(|recorded| {
            let events = recorded.commit.events.iter().enumerate();
            events.map(move |(nth, event)| Passing {
                at: (recorded.sequence, nth, Hash::ZERO),
                read_model,
                recorded,
                event,
                transformed: of,
                upcast: None,
            })
        });
        let mut round = Round::new(all.collect(), 10, Suspects::default());
        let mut made = Upcasted::new();
        let first = round.next().unwrap();
        let large = RawValue::from_string("\"a long text\"".to_owned()).unwrap();
        round.done(first, Ok(large), &mut made);
        let second = round.next().unwrap();
        assert_eq!((first.at.0, second.at.0, second.at.1), (4, 4, 1));
        assert!(!round.may_begin() && round.next().is_none(), "the next commit is for later");
        // The plugin was busy: it is of a commit that was begun with.
        round.left.push_front(second);
        assert_eq!(round.next().map(|passing| passing.at), Some(second.at));
        assert!(round.next().is_none());
        assert_eq!(made.len(), 1);
        let mut round = Round::new(round.left, 10, Suspects::default());
        assert_eq!(round.next().map(|passing| passing.at.0), Some(9));
    }

    /// It would end the plugin under all that are under way with it.
    #[test]
    fn an_event_that_is_suspected_is_not_sent_with_others() {
        let (commit, of, suspects) = (recorded(4), &transformed(), Suspects::default());
        let read_model = &Name::parse("flights").unwrap();
        let events = commit.commit.events.iter().enumerate();
        let all = events.map(|(nth, event)| Passing {
            at: (commit.sequence, nth, Hash::ZERO),
            read_model,
            recorded: &commit,
            event,
            transformed: of,
            upcast: None,
        });
        let mut round = Round::new(all.collect(), 10, suspects.clone());
        suspects.note((4, 1, Hash::ZERO), "it ended", Instant::now());
        assert_eq!(round.next().map(|passing| passing.at.1), Some(0));
        assert!(!round.may_begin() && round.next().is_none(), "it is for the next round");
        let mut made = Upcasted::new();
        round.first_done(Err("why".to_owned()), &mut made);
        assert!(round.left.is_empty() && made.contains_key(&(4, 1, Hash::ZERO)));
    }
}
