//! Faults that can be switched on in the workers: see `src/readmodel/defects.rs`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flexcore_domain::{Command, CommandId, Decision, Outcome, Position, commit::Commit};
use flexcore_eventstore::{Appended, Expected};
pub(crate) use flexcore_readmodel::defects::is_on;
use flexcore_readmodel::{
    Part,
    defects::{NO_FENCE, is_due},
};
use tokio::sync::mpsc;

/// A command worker answers before the log has the commit.
pub(crate) const EARLY_ANSWER: &str = "acknowledge-before-append";

/// A stored command is done twice, under its own id.
const DOUBLE_STORED: &str = "double-stored";

/// A stored command is passed over.
const LOSE_STORED: &str = "lose-stored";

/// A stored command waits while others overtake it.
const REORDER_STORED: &str = "reorder-stored";

/// A client is told that nothing was done, and its command is in the log.
const DENY_DONE: &str = "deny-done";

/// A client is told a reason that its aggregate does not give.
const WRONG_REASON: &str = "wrong-reason";

/// An event is not applied, and its place is passed.
const SKIP_ROW: &str = "skip-row";

/// A checkpoint goes back by one commit, again and again.
const CHECKPOINT_BACK: &str = "checkpoint-back";

/// Batches that are applied before checkpoints go back: what is there in the beginning is built.
const BATCHES_FIRST: usize = 40;

/// An aggregate has forgotten all commands but the last ones, which it remembers whole.
pub(crate) const FORGET_OLD: &str = "forget-old";

/// Of a command's events the first half is recorded, and who waits for it is told that nobody knows.
const HALF_COMMIT: &str = "half-commit";

/// A suffix that makes a command's id unknown.
const DISGUISE: &str = "-twice";

/// Time for which a stored command waits while others overtake it.
const OVERTAKEN_AFTER: Duration = Duration::from_millis(700);

/// Time for which an append that was answered already waits: long enough to be killed before it.
pub(crate) const APPEND_DELAY: Duration = Duration::from_millis(500);

/// Where a stored command's number and outcome are sent.
type Told = mpsc::UnboundedSender<(u64, Outcome)>;

/// Hands a stored command to its lane: not at all, later, or twice.
pub(crate) fn queued(
    hand: impl Fn(Command, u64, Told) + Send + 'static,
    command: Command,
    number: u64,
    to: Told,
) {
    if is_due(LOSE_STORED) {
        let position = Some(Position { slot: command.key.slot(), sequence: 1 });
        // The receiver is the reader itself.
        let _ = to.send((number, Outcome::Accepted { version: 1, position, replayed: false }));
    } else if is_due(REORDER_STORED) {
        tokio::spawn(async move {
            tokio::time::sleep(OVERTAKEN_AFTER).await;
            hand(command, number, to);
        });
    } else if is_due(DOUBLE_STORED) {
        let id = CommandId::parse(&format!("{}{DISGUISE}", command.id));
        let again = id.map(|id| Command { id, ..command.clone() });
        hand(command, number, to);
        if let Ok(again) = again {
            // Nobody hears of it.
            hand(again, number, mpsc::unbounded_channel().0);
        }
    } else {
        hand(command, number, to);
    }
}

/// A commit under the id of its command, whatever that was disguised as.
pub(crate) fn undisguised(commit: Arc<Commit>) -> Arc<Commit> {
    let id = commit.command_id.as_str().strip_suffix(DISGUISE).map(CommandId::parse);
    match id {
        Some(Ok(command_id)) => Arc::new(Commit { command_id, ..Arc::unwrap_or_clone(commit) }),
        _ => commit,
    }
}

/// A decision as it is recorded: with half of its events, and the state after all of them.
pub(crate) fn halved(mut decision: Decision) -> Decision {
    if is_on(HALF_COMMIT) {
        decision.events.truncate(decision.events.len().div_ceil(2));
    }
    decision
}

/// The answer to a waiting client.
pub(crate) fn told(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Accepted { replayed: false, .. } if is_on(HALF_COMMIT) => {
            Outcome::Unavailable { message: "this is a defect".to_owned() }
        }
        Outcome::Accepted { .. } if is_due(DENY_DONE) => Outcome::Overloaded { retry_after_s: 1 },
        Outcome::Rejected { message, .. } if is_on(WRONG_REASON) => {
            Outcome::Rejected { code: "not_open".to_owned(), message }
        }
        outcome => outcome,
    }
}

/// The applied part of a batch, and the position that it reports.
pub(crate) fn skipped(mut parts: Vec<Part>) -> Vec<Part> {
    static BATCHES: AtomicUsize = AtomicUsize::new(0);
    parts.iter_mut().for_each(|part| part.changes.retain(|_| !is_due(SKIP_ROW)));
    if is_on(CHECKPOINT_BACK) && BATCHES.fetch_add(1, Ordering::Relaxed) > BATCHES_FIRST {
        let moves = parts.iter_mut().flat_map(|part| &mut part.moves);
        moves.for_each(|moved| moved.to = moved.from.saturating_sub(1));
    }
    parts
}

/// The log's answer, if all went well.
pub(crate) fn hoped_for(expected: Expected) -> Appended {
    Appended { sequence: expected.sequence + 1, hash: expected.hash }
}

/// The places that a worker owns, with all that it ever owned; without the fence.
pub(crate) fn never_let_go(owned: BTreeMap<u16, u64>) -> BTreeMap<u16, u64> {
    static EVER: Mutex<BTreeMap<u16, u64>> = Mutex::new(BTreeMap::new());
    if !is_on(NO_FENCE) {
        return owned;
    }
    let mut ever = EVER.lock().unwrap_or_else(PoisonError::into_inner);
    ever.extend(owned);
    ever.clone()
}
