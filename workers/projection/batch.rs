//! From commits of the log to what each version does with them. Pure.

use std::sync::Arc;

use bytes::Bytes;
use flexcore_domain::{Commit, Event, SLOTS, Slot};
use flexcore_eventstore::Recorded;
use flexcore_readmodel::{Change, Move, Parked, Part, Unfit, Version};
use serde_json::value::RawValue;

use super::upcast::Upcasted;

/// A version and where its checkpoint is.
pub(super) struct Model {
    pub(super) version: Arc<Version>,
    /// By slot.
    pub(super) positions: Vec<u64>,
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
        let before = model.positions.clone();
        for (at, recorded) in commits.iter().enumerate() {
            let position = &mut model.positions[usize::from(recorded.slot().number())];
            if recorded.sequence <= *position {
                continue;
            }
            *position = recorded.sequence;
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
        batch.parts.push(Part { version, changes, parked: Vec::new(), moves });
        batch.origins.push(origins);
    }
    batch.commits = commits;
    batch
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
