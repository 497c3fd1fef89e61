//! From commits of the log to what each version does with them. Pure.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use flexcore_domain::{AggregateKey, Commit, Event, EventName, SLOTS, Slot};
use flexcore_eventstore::{Broken, Recorded};
use flexcore_readmodel::{Change, Move, Parked, Part, Reads, Unfit, Version};

use super::upcast::Upcasted;

/// A version and where its checkpoint is.
pub(super) struct Model {
    pub(super) version: Arc<Version>,
    /// By slot.
    pub(super) positions: Vec<u64>,
    /// Aggregates of which it takes no more, since their commits do not follow one another.
    pub(super) held: HashSet<AggregateKey>,
    /// It came to an event that is newer than its declaration, and stays before it: a later
    /// declaration is on its way, or deployed and being built, and takes over.
    pub(super) waits: bool,
}

impl Model {
    /// The stream sequence that every slot has passed.
    pub(super) fn position(&self) -> u64 {
        self.positions.iter().copied().min().unwrap_or(0)
    }

    /// Whether it has not passed the commit yet, and reads on.
    pub(super) fn takes(&self, recorded: &Recorded) -> bool {
        !self.waits && recorded.sequence > self.positions[usize::from(recorded.slot().number())]
    }

    /// Whether the commit has an event that is newer than the model's declaration.
    fn waits_at(&self, commit: &Commit) -> bool {
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
        let mut end = 0;
        for (at, recorded) in commits.iter().enumerate() {
            if model.waits {
                break;
            }
            if model.takes(recorded) && model.waits_at(&recorded.commit) {
                model.waits = true;
                tracing::warn!(
                    read_model = %model.version.read_model,
                    version = model.version.number,
                    sequence = recorded.sequence,
                    "an event is newer than the declaration: the next version takes over from here"
                );
                break;
            }
            end = recorded.sequence;
            if !model.takes(recorded) {
                continue;
            }
            model.positions[usize::from(recorded.slot().number())] = recorded.sequence;
            if !model.held.is_empty() && model.held.contains(&recorded.commit.key) {
                parked.extend(held_back(&model.version, recorded.sequence, &recorded.commit));
                continue;
            }
            for (nth, event) in recorded.commit.events.iter().enumerate() {
                match change(&model.version, recorded, (at, nth), upcasted) {
                    Ok(Some(change)) => {
                        changes.push(change);
                        origins.push((at, nth));
                    }
                    Ok(None) => {}
                    Err(unfit) => batch.dead.push(Dead::new(part, recorded, event, unfit.0)),
                }
            }
        }
        if all_slots {
            model.positions.iter_mut().for_each(|position| *position = end.max(*position));
        }
        let moves = moves(&before, &model.positions, &commits);
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
        let moves = vec![Move { slot: key.slot(), from, to, hash: None }];
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
    (at, nth): (usize, usize),
    upcasted: &Upcasted,
) -> Result<Option<Change>, Unfit> {
    let (commit, event) = (&recorded.commit, &recorded.commit.events[nth]);
    if !version.plan.may_differ(event).1 {
        return version.plan.change(commit, event, &event.data);
    }
    match version.plan.reads(commit, event) {
        Reads::Upcast(followed) => match upcasted.get(&(at, nth, followed.fingerprint)) {
            Some(Ok(data)) => version.plan.change(commit, event, data),
            Some(Err(reason)) => Err(Unfit(reason.clone())),
            None => Err(Unfit("upcast: it was left out".to_owned())),
        },
        _ => version.plan.change(commit, event, &event.data),
    }
}

fn moves(before: &[u64], after: &[u64], commits: &[Recorded]) -> Vec<Move> {
    // A position that moves is the place of a commit of the batch.
    let hash = |to: u64| {
        let at = commits.binary_search_by_key(&to, |recorded| recorded.sequence);
        commits[at.expect("BUG: a checkpoint moves to a commit")].hash
    };
    (0..SLOTS)
        .filter_map(Slot::new)
        .zip(before.iter().zip(after))
        .filter(|(_, (from, to))| from != to)
        .map(|(slot, (from, to))| Move { slot, from: *from, to: *to, hash: Some(hash(*to)) })
        .collect()
}
