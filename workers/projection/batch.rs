//! From commits of the log to what each version does with them. Pure.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use flexcore_domain::{AggregateKey, Commit, Event, EventName, SLOTS, Slot};
use flexcore_eventstore::{Broken, Recorded};
use flexcore_readmodel::{Change, Move, Parked, Part, Unfit, Version};
use serde_json::value::RawValue;

use super::upcast::Upcasted;

/// A version and where its checkpoint is.
pub(super) struct Model {
    pub(super) version: Arc<Version>,
    /// By slot.
    pub(super) positions: Vec<u64>,
    /// Aggregates of which it takes no more, since their commits do not follow one another.
    pub(super) held: HashSet<AggregateKey>,
}

impl Model {
    /// The stream sequence that every slot has passed.
    pub(super) fn position(&self) -> u64 {
        self.positions.iter().copied().min().unwrap_or(0)
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

/// What the models do with the commits, each from where it is. Moves the models' positions: those of
/// the slots with commits, or all of them (`all_slots`), which the owner of all slots may do.
pub(super) fn make(
    models: &mut [Model],
    commits: Vec<Recorded>,
    all_slots: bool,
    upcasted: &Upcasted,
) -> Batch {
    let mut batch =
        Batch { parts: Vec::new(), origins: Vec::new(), dead: Vec::new(), commits: Vec::new() };
    for model in models {
        let part = batch.parts.len();
        let mut changes = Vec::new();
        let mut origins = Vec::new();
        let mut parked = Vec::new();
        let before = model.positions.clone();
        for (at, recorded) in commits.iter().enumerate() {
            let position = &mut model.positions[usize::from(recorded.slot().number())];
            if recorded.sequence <= *position {
                continue;
            }
            *position = recorded.sequence;
            if !model.held.is_empty() && model.held.contains(&recorded.commit.key) {
                parked.extend(held_back(&model.version, recorded.sequence, &recorded.commit));
                continue;
            }
            for (nth, event) in recorded.commit.events.iter().enumerate() {
                let newer = upcasted.get(&(at, nth));
                match change(&model.version, &recorded.commit, event, newer) {
                    Ok(Some(change)) => {
                        changes.push(change);
                        origins.push((at, nth));
                    }
                    Ok(None) => {}
                    Err(unfit) => batch.dead.push(Dead::new(part, recorded, event, unfit.0)),
                }
            }
        }
        let end = commits.last().map_or(0, |recorded| recorded.sequence);
        if all_slots {
            model.positions.iter_mut().for_each(|position| *position = end.max(*position));
        }
        let moves = moves(&before, &model.positions);
        let version = model.version.clone();
        batch.parts.push(Part { version, changes, parked, moves });
        batch.origins.push(origins);
    }
    batch.commits = commits;
    batch
}

/// What the models do with a message that breaks its aggregate: those that follow it put it aside, and
/// hold back what comes after it.
pub(super) fn make_of_broken(models: &mut [Model], broken: &Broken) -> Batch {
    let mut batch =
        Batch { parts: Vec::new(), origins: Vec::new(), dead: Vec::new(), commits: Vec::new() };
    let Some(key) = &broken.key else { return batch };
    for model in models.iter_mut().filter(|model| model.version.plan.follows(key.aggregate())) {
        if !model.held.insert(key.clone()) {
            // Read again, from where other slots' checkpoints are.
            continue;
        }
        let position = &mut model.positions[usize::from(key.slot().number())];
        let (from, to) = (*position, broken.sequence.max(*position));
        *position = to;
        let part = batch.parts.len();
        let moves = vec![Move { slot: key.slot(), from, to }];
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
    batch
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
    let concerned = commit.events.iter().filter(|event| version.plan.concerns(commit, event));
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
    commit: &Commit,
    event: &Event,
    newer: Option<&Result<Box<RawValue>, String>>,
) -> Result<Option<Change>, Unfit> {
    match newer {
        None => version.plan.change(commit, event, &event.data),
        Some(Ok(data)) => version.plan.change(commit, event, data),
        Some(Err(reason)) if version.plan.concerns(commit, event) => Err(Unfit(reason.clone())),
        Some(Err(_)) => Ok(None),
    }
}

fn moves(before: &[u64], after: &[u64]) -> Vec<Move> {
    (0..SLOTS)
        .filter_map(Slot::new)
        .zip(before.iter().zip(after))
        .filter(|(_, (from, to))| from != to)
        .map(|(slot, (from, to))| Move { slot, from: *from, to: *to })
        .collect()
}
