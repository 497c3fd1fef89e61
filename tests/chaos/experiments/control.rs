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
/// Those of a slice: a command done twice, lost, answered too early and done out of order, a tenant's
/// rows shown to another, and an event that is in no row.
const SOME: [&str; 6] = [
    "double-stored",
    "lose-stored",
    "acknowledge-before-append",
    "reorder-stored",
    "leak-tenant",
    "skip-row",
];
/// Arms of a slice that run at once, since it has little time: CI has two cores, and most of an arm is
/// waiting, for its load and for rest. An arm that the other slows down still finds its defect.
const AT_ONCE: usize = 2;

/// The small installation without a defect, which must pass, and with each; or with some.
pub(crate) async fn small(seed: u64, all: bool, report: &mut Report) {
    let mut whole = small::run("no defect", None, &[], seed).await;
    whole.without = &[(TURNED_AWAY, "nothing fails"), (UNKNOWN, "nothing fails")];
    report.add(whole);
    let chosen = ARMS.into_iter().filter(|(defect, ..)| all || SOME.contains(defect));
    let runs = chosen.map(|(defect, what, checks)| async move {
        small::run(&format!("defect: {what}"), Some(defect), checks, seed).await
    });
    // Alone where all are run: some of them stop the process at a moment that another would put off.
    let at_once = if all { 1 } else { AT_ONCE };
    let sections: Vec<Section> = stream::iter(runs).buffered(at_once).collect().await;
    sections.into_iter().for_each(|section| report.add(section));
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

/// The worker that projects `balances`.
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
    use super::*;

    #[test]
    fn the_arms_of_a_slice_are_among_all() {
        for defect in SOME {
            assert!(ARMS.iter().any(|(name, ..)| *name == defect), "{defect}");
        }
    }
}
