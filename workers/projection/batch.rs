//! From commits of the log to what each version does with them. Pure.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use flexcore_domain::{AggregateKey, Commit, Event, EventName, Hash, Slot};
use flexcore_eventstore::{Broken, Recorded};
use flexcore_readmodel::{Change, Mark, Move, Parked, Part, Portions, Reads, Unfit, Version};
use serde_json::value::RawValue;

/// An event, by its commit's stream sequence and its place in it, and what it is brought to.
pub(super) type EventAt = (u64, usize, Hash);

/// New data of events, by an upcast or a plugin; or why there is none.
pub(super) type Upcasted = HashMap<EventAt, Result<Box<RawValue>, String>>;

/// Most aggregates that a version holds back, some 150 bytes each. It stops before it would be one more.
pub(super) const HELD_MAX: usize = 100_000;

/// Most commits of a batch: larger ones gain nothing (measured: 183k rows/s at 1,000, 200k at
/// 5,000) and make a failure dearer.
pub(super) const COMMITS_MAX: usize = 5_000;
/// Bytes of changes after which a batch ends, though more commits were read: a literal or a field that
/// many columns take makes much of an event of a few bytes. One commit is a batch, whatever it becomes.
const CHANGES_BYTES_MAX: usize = 64 << 20;

/// What an event that is put aside takes in memory, in bytes, or less; its reason comes on top.
const PARKED_BYTES: usize = 256;
/// An event that fits nothing counts as so many bytes: each is published by itself, so that of these a batch
/// has some 8,000.
const DEAD_BYTES: usize = 8 << 10;

/// A version and where its checkpoints are.
pub(super) struct Model {
    pub(super) version: Arc<Version>,
    /// By portion; `None`: another worker has it.
    checkpoints: Vec<Option<Checkpoint>>,
    /// Aggregates of which it takes no more, since their commits do not follow one another.
    pub(super) held: HashSet<AggregateKey>,
    /// It came to an event that is newer than its declaration, and stays before it: a later
    /// declaration is on its way, or deployed and being built, and takes over.
    pub(super) waits: bool,
}

/// Where a portion of a version is.
#[derive(Clone, Copy)]
struct Checkpoint {
    /// All that it follows up to here is in its rows.
    position: u64,
    /// As Postgres has it.
    kept: u64,
}

impl Model {
    /// `kept` is what Postgres has, by slot.
    pub(super) fn new(version: Arc<Version>, kept: &[u64], held: HashSet<AggregateKey>) -> Self {
        let portions = &version.portions;
        let mut checkpoints = vec![None; usize::from(portions.count)];
        for number in portions.epochs.keys().copied() {
            let slots = Slot::all().filter(|slot| portions.of(*slot) == number);
            // They are read in the order of the log, so that what one has passed all have.
            let position = slots.map(|slot| kept[usize::from(slot.number())]).max().unwrap_or(0);
            let kept = kept[usize::from(Portions::row(number).number())];
            checkpoints[usize::from(number)] = Some(Checkpoint { position, kept });
        }
        Self { version, checkpoints, held, waits: false }
    }

    /// The stream sequence up to which nothing is to be read again.
    pub(super) fn position(&self) -> u64 {
        self.checkpoints.iter().flatten().map(|it| it.position).min().unwrap_or(0)
    }

    /// True if it has not passed the commit yet, and reads on.
    pub(super) fn takes(&self, recorded: &Recorded) -> bool {
        let checkpoint = self.checkpoints[self.portion(recorded.slot())];
        !self.waits && checkpoint.is_some_and(|it| recorded.sequence > it.position)
    }

    fn portion(&self, slot: Slot) -> usize {
        usize::from(self.version.portions.of(slot))
    }

    /// Moves its checkpoints, where they are behind: all up to here was read. `hash` is that of the
    /// commit here.
    fn move_to(&mut self, to: u64, hash: Option<Hash>) -> Vec<Move> {
        let mut moves = Vec::new();
        for (number, checkpoint) in (0..).zip(&mut self.checkpoints) {
            let Some(it) = checkpoint.as_mut().filter(|it| it.position < to) else { continue };
            moves.push(Move { slot: Portions::row(number), from: it.kept, to, hash });
            *it = Checkpoint { position: to, kept: to };
        }
        moves
    }

    /// Its checkpoints, for the note that there is nothing more.
    pub(super) fn marks(&self) -> impl Iterator<Item = Mark<'_>> {
        let owned = (0..).zip(&self.checkpoints);
        owned.filter(|_| !self.waits).filter_map(|(portion, checkpoint)| {
            let position = (*checkpoint)?.kept;
            Some(Mark { version: &self.version, portion, position })
        })
    }

    /// True if the commit has an event that is newer than the model's declaration.
    pub(super) fn waits_at(&self, commit: &Commit) -> bool {
        let plan = &self.version.plan;
        commit.events.iter().any(|event| {
            plan.may_differ(event).0 && matches!(plan.reads(commit, event), Reads::TooNew)
        })
    }
}

/// A batch, ready to be applied.
pub(super) struct Batch {
    pub(super) parts: Vec<Part>,
    /// For each part, where each of its changes came from: commit and event, by index.
    pub(super) origins: Vec<Vec<(usize, usize)>>,
    /// Events to put aside before the batch is applied, with the index of their part.
    pub(super) dead: Vec<Dead>,
    /// The commits that it was made from.
    pub(super) commits: Vec<Recorded>,
}

/// An event that a part cannot apply.
pub(super) struct Dead {
    pub(super) part: usize,
    pub(super) parked: Parked,
    /// The commit as it stands in the log.
    pub(super) body: Bytes,
}

impl Dead {
    pub(super) fn new(part: usize, recorded: &Recorded, event: &Event, reason: String) -> Self {
        let parked = Parked {
            sequence: recorded.sequence,
            event_version: event.version,
            key: recorded.commit.key.clone(),
            event: event.event.clone(),
            reason,
            holds: false,
        };
        Self { part, parked, body: recorded.body.clone() }
    }
}

/// What becomes of a batch's commits for one model.
#[derive(Default)]
struct Taken {
    changes: Vec<Change>,
    origins: Vec<(usize, usize)>,
    parked: Vec<Parked>,
    dead: Vec<(usize, usize, String)>,
    /// Up to here the model has read.
    end: Option<(u64, Hash)>,
}

/// Applies the commits to the models, each from its own position, until what becomes of them has
/// [`CHANGES_BYTES_MAX`]; returns the commits that are left. Moves the models' positions: what they
/// follow was read up to the last of the batch's commits, whoever of them it is for.
pub(super) fn make(
    models: &mut [Model],
    mut commits: Vec<Recorded>,
    upcasted: &Upcasted,
) -> (Batch, Vec<Recorded>) {
    let mut all: Vec<Taken> = models.iter().map(|_| Taken::default()).collect();
    let (mut count, mut bytes) = (0, 0_usize);
    while let Some(recorded) = commits.get(count).filter(|_| bytes < CHANGES_BYTES_MAX) {
        for (model, taken) in models.iter_mut().zip(&mut all) {
            bytes += take(model, taken, (count, recorded), upcasted);
        }
        count += 1;
    }
    let rest = commits.split_off(count);
    let (mut parts, mut origins, mut dead) = (Vec::new(), Vec::new(), Vec::new());
    for (part, (model, taken)) in models.iter_mut().zip(all).enumerate() {
        let moves = taken.end.map(|(end, hash)| model.move_to(end, Some(hash)));
        let moves = moves.unwrap_or_default();
        let Taken { changes, parked, .. } = taken;
        parts.push(Part { version: model.version.clone(), changes, parked, moves });
        origins.push(taken.origins);
        dead.extend(taken.dead.into_iter().map(|(at, nth, reason)| {
            let recorded = &commits[at];
            Dead::new(part, recorded, &recorded.commit.events[nth], reason)
        }));
    }
    (Batch { parts, origins, dead, commits }, rest)
}

/// Has a model take a commit, unless it waits; returns the bytes of what becomes of it.
fn take(
    model: &mut Model,
    taken: &mut Taken,
    (at, recorded): (usize, &Recorded),
    upcasted: &Upcasted,
) -> usize {
    if model.takes(recorded) && model.waits_at(&recorded.commit) {
        model.waits = true;
        tracing::warn!(
            read_model = %model.version.read_model,
            version = model.version.number,
            sequence = recorded.sequence,
            "an event is newer than the declaration: the next version takes over from here"
        );
    }
    if model.waits {
        return 0;
    }
    taken.end = Some((recorded.sequence, recorded.hash));
    if !model.takes(recorded) {
        return 0;
    }
    if !model.held.is_empty() && model.held.contains(&recorded.commit.key) {
        let before = taken.parked.len();
        taken.parked.extend(held_back(&model.version, recorded.sequence, &recorded.commit));
        return (taken.parked.len() - before) * PARKED_BYTES;
    }
    let mut bytes = 0;
    for nth in 0..recorded.commit.events.len() {
        match change(&model.version, recorded, nth, upcasted) {
            Ok(Some(change)) => {
                bytes += change.size_bytes();
                taken.changes.push(change);
                taken.origins.push((at, nth));
            }
            Ok(None) => {}
            Err(unfit) => {
                bytes += unfit.0.len() + DEAD_BYTES;
                taken.dead.push((at, nth, unfit.0));
            }
        }
    }
    bytes
}

/// The first batch of a reader, in commits, after so many have failed without applying any: the second and
/// each further one begins with half as many, down to one. It may be the batch that ends the connection.
pub(super) fn first_commits(failures: u32) -> usize {
    (COMMITS_MAX >> failures.saturating_sub(1).min(COMMITS_MAX.ilog2())).max(1)
}

/// Handles a message that breaks its aggregate: the models that follow it put it aside, and hold
/// back the later events. `None`: one of them would hold back more than so many aggregates.
pub(super) fn make_of_broken(
    models: &mut [Model],
    broken: &Broken,
    held_max: usize,
) -> Option<Batch> {
    let mut batch =
        Batch { parts: Vec::new(), origins: Vec::new(), dead: Vec::new(), commits: Vec::new() };
    let Some(key) = &broken.key else { return Some(batch) };
    // One that waits has not read up to here.
    let concerned =
        |model: &&mut Model| !model.waits && model.version.plan.follows(key.aggregate());
    for model in models.iter_mut().filter(concerned) {
        let is_owned = model.checkpoints[model.portion(key.slot())].is_some();
        if !is_owned || !model.held.insert(key.clone()) {
            // Of somebody else; or read again, from where another model is.
            continue;
        }
        if model.held.len() > held_max {
            return None;
        }
        let part = batch.parts.len();
        let moves = model.move_to(broken.sequence, None);
        let version = model.version.clone();
        batch.parts.push(Part { version, changes: Vec::new(), parked: Vec::new(), moves });
        batch.origins.push(Vec::new());
        let event = broken.commit.as_ref().and_then(|commit| commit.events.first());
        let parked = Parked {
            sequence: broken.sequence,
            event_version: event.map_or(0, |event| event.version),
            key: key.clone(),
            event: event.map_or_else(unreadable, |event| event.event.clone()),
            reason: broken.reason.clone(),
            holds: true,
        };
        batch.dead.push(Dead { part, parked, body: broken.body.clone() });
    }
    Some(batch)
}

/// Stands where an event's name cannot be read.
fn unreadable() -> EventName {
    EventName::parse("unreadable").expect("BUG: a valid name")
}

/// The events of a commit that a version would apply, had its aggregate not broken before.
fn held_back<'a>(
    version: &'a Version,
    sequence: u64,
    commit: &'a Commit,
) -> impl Iterator<Item = Parked> + 'a {
    let concerned = commit
        .events
        .iter()
        .filter(|event| !matches!(version.plan.reads(commit, event), Reads::Nothing));
    concerned.map(move |event| Parked {
        sequence,
        event_version: event.version,
        key: commit.key.clone(),
        event: event.event.clone(),
        reason: "held back: an earlier commit of its aggregate is broken".to_owned(),
        holds: false,
    })
}

fn change(
    version: &Version,
    recorded: &Recorded,
    nth: usize,
    upcasted: &Upcasted,
) -> Result<Option<Change>, Unfit> {
    let (commit, event) = (&recorded.commit, &recorded.commit.events[nth]);
    let plan = &version.plan;
    if let Some(transformed) = plan.transforms(commit, event) {
        let at = (recorded.sequence, nth, transformed.fingerprint);
        return plan.change(commit, event, made(upcasted, &at)?);
    }
    if !plan.may_differ(event).1 {
        return plan.change(commit, event, &event.data);
    }
    match plan.reads(commit, event) {
        Reads::Upcast(followed) => {
            let at = (recorded.sequence, nth, followed.fingerprint);
            plan.change(commit, event, made(upcasted, &at)?)
        }
        _ => plan.change(commit, event, &event.data),
    }
}

/// An event's new data. Fails with the reason for which there are none.
pub(super) fn made<'u>(upcasted: &'u Upcasted, at: &EventAt) -> Result<&'u RawValue, Unfit> {
    match upcasted.get(at) {
        Some(Ok(data)) => Ok(data),
        Some(Err(reason)) => Err(Unfit(reason.clone())),
        None => Err(Unfit("its new data were left out".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_that_fail_are_halved_down_to_one_commit() {
        let first = [0, 1, 2, 3, 13, 14, u32::MAX].map(first_commits);
        assert_eq!(first, [5_000, 5_000, 2_500, 1_250, 1, 1, 1]);
    }
}
