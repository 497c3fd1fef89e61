//! Control arms: with a defect switched on in the workers, the checker must find violations.

use std::time::Duration;

use futures::{StreamExt as _, stream};

use super::SHORT_LEASE;
use crate::{
    checker::{
        REST,
        answers::{ANSWERED, ENDS, INSIDE, UNDER_WAY},
        commands::{
            ACCEPTED, COMMITS, IN_THE_LOG, LATE, QUEUED_ORDER, REFUSED, TURNED_AWAY, UNKNOWN,
        },
        epochs::{self, EPOCHS},
        log::HEARD,
        reads::{ROWS, STATES},
        resources::HELD,
        rows::{FOLD, FORWARD, TOGETHER},
        stored::STORED,
    },
    cluster::Shape,
    load::Pace,
    report::{Report, Section},
    rig::Rig,
    small,
};

/// A defect (`defects.rs` of workers, gateway and read models), its effect, and the checks that
/// have to find it.
type Arm = (&'static str, &'static str, &'static [&'static str]);

/// Every arm of a small installation.
const ARMS: [Arm; 16] = [
    ("double-stored", "does stored commands twice", &[STORED, COMMITS]),
    ("forget-old", "forgets commands of long ago", &[LATE, COMMITS]),
    ("lose-stored", "loses stored commands", &[STORED]),
    ("acknowledge-before-append", "answers before the log has it", &[ACCEPTED]),
    ("reorder-stored", "lets stored commands be overtaken", &[QUEUED_ORDER]),
    ("leak-tenant", "shows another tenant's rows", &[ROWS]),
    ("old-state", "tells states of long ago", &[STATES]),
    ("skip-row", "leaves events out of the rows", &[FOLD, TOGETHER, REST]),
    ("half-commit", "does half of a command, and does not know", &[UNKNOWN, COMMITS]),
    ("deny-done", "says that nothing was done where it was", &[TURNED_AWAY, COMMITS]),
    ("wrong-reason", "refuses for a reason that is none", &[REFUSED]),
    ("miss-event", "leaves commits out of an event stream", &[HEARD]),
    ("checkpoint-back", "sets checkpoints back", &[FORWARD]),
    ("answer-500", "answers with 500", &[ANSWERED, INSIDE]),
    ("end-at-once", "ends with what is under way", &[ENDS, UNDER_WAY]),
    ("leak-descriptor", "leaves a descriptor open with each request", &[HELD]),
];
/// Arms of a slice, which has little time. They take turns by the seed, so that all have come after some runs.
const IN_A_SLICE: usize = 6;
/// Arms of a slice that run at once: CI has two cores, and most of an arm is waiting, for its load and for
/// rest. An arm that the other slows down still finds its defect.
const AT_ONCE: usize = 2;
/// Those that may not find it then. The one needs many batches within its time; the other stops the process
/// at a moment that a busy machine puts off.
const ALONE: [&str; 2] = ["checkpoint-back", "end-at-once"];

/// The small installation without a defect, which must pass, and with each; or with those whose turn it is.
pub(crate) async fn small(seed: u64, all: bool, report: &mut Report) {
    let mut whole = small::run("no defect", None, &[], seed).await;
    whole.without = &[(TURNED_AWAY, "nothing fails"), (UNKNOWN, "nothing fails")];
    report.add(whole);
    let chosen = if all { ARMS.to_vec() } else { turn(seed) };
    let runs = chosen.into_iter().map(|(defect, what, checks)| async move {
        small::run(&format!("defect: {what}"), Some(defect), checks, seed).await
    });
    let at_once = if all { 1 } else { AT_ONCE };
    let sections: Vec<Section> = stream::iter(runs).buffered(at_once).collect().await;
    sections.into_iter().for_each(|section| report.add(section));
}

/// The arms of a slice with this seed.
fn turn(seed: u64) -> Vec<Arm> {
    let mut arms = ARMS.to_vec();
    arms.retain(|(defect, ..)| !ALONE.contains(defect));
    let first = usize::try_from(seed % arms.len() as u64).unwrap();
    arms.rotate_left(first);
    arms.truncate(IN_A_SLICE);
    arms
}

/// A worker that answers before the log has the commit loses it when it is killed.
pub(crate) async fn acknowledge_before_append(seed: u64) -> Section {
    let defect = ("FLEXCORE_DEFECT".to_owned(), "acknowledge-before-append".to_owned());
    let shape = Shape { environment: vec![defect], ..Shape::default() };
    let name = "defect: answers before the log has it, and is killed";
    let mut rig = Rig::quiet(name, seed, shape).await;
    rig.load(Pace::steady(60)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    rig.fault("SIGKILL of worker-1");
    rig.cluster.kill("worker-1");
    tokio::time::sleep(Duration::from_secs(2)).await;
    rig.cluster.run("worker-1");
    rig.section.control = &[ACCEPTED, IN_THE_LOG];
    rig.finish_with_the_log_alone().await
}

/// A worker that was paused for longer than its lease goes on projecting what others own by now, and
/// Postgres lets it.
pub(crate) async fn no_fence(seed: u64) -> Section {
    let defect = ("FLEXCORE_DEFECT".to_owned(), "no-fence".to_owned());
    let shape =
        Shape { environment: vec![defect], lease: SHORT_LEASE, workers: 2, ..Shape::default() };
    let mut rig = Rig::quiet("defect: nothing fences a stale owner", seed, shape).await;
    rig.load(Pace::steady(60)).await;
    let node = projecting(&rig).await;
    rig.fault(&format!("{node} is paused for longer than its lease"));
    rig.cluster.node(&node).signal("STOP");
    tokio::time::sleep(SHORT_LEASE * 2).await;
    rig.cluster.node(&node).signal("CONT");
    tokio::time::sleep(Duration::from_secs(4)).await;
    rig.section.control = &[EPOCHS];
    rig.finish_with_the_snapshots_alone(epochs::checkpoints_epochs_never_go_back).await
}

/// A worker that projects some of `balances`.
async fn projecting(rig: &Rig) -> String {
    loop {
        for node in rig.cluster.names_of("worker") {
            let name = "flexcore_projection_events_total{read_model=\"balances\"}";
            if rig.cluster.metric(&node, name).await.is_some_and(|events| events > 0.0) {
                return node;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(arms: Vec<Arm>) -> BTreeSet<&'static str> {
        arms.into_iter().map(|(defect, ..)| defect).collect()
    }

    #[test]
    fn every_arm_that_another_one_does_not_disturb_has_its_turn_in_a_slice() {
        let mut come = BTreeSet::from(ALONE);
        for seed in 0..ARMS.len() as u64 {
            let turn = names(turn(seed));
            assert_eq!(turn.len(), IN_A_SLICE, "{seed}");
            assert!(ALONE.iter().all(|defect| !turn.contains(defect)), "{seed}: {turn:?}");
            come.extend(turn);
        }
        assert_eq!(come, names(ARMS.to_vec()));
        assert_eq!(names(turn(u64::MAX)).len(), IN_A_SLICE);
    }
}
