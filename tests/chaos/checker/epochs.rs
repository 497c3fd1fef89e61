//! Leadership: invariant 9.

use std::collections::BTreeMap;

use super::{Story, Verdict};

/// Names of checks.
pub(crate) const EPOCHS: &str = "epochs of checkpoints never go back";

/// Something that the holder of a role did, in the order in which it took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Effect {
    /// The basis of its action, such as the map of slots.
    pub(crate) on: String,
    pub(crate) epoch: u64,
    pub(crate) holder: String,
}

/// 9: nothing takes effect under an older epoch after a newer one, and an epoch has one holder.
pub(crate) fn effects_follow_epochs(effects: &[Effect]) -> Verdict {
    let mut verdict = Verdict::new(9, "nothing takes effect under a stale epoch");
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    let mut holders: BTreeMap<u64, &str> = BTreeMap::new();
    for effect in effects {
        let before = newest.entry(&effect.on).or_insert(effect.epoch);
        let holder = holders.entry(effect.epoch).or_insert(&effect.holder);
        verdict.hold(effect.epoch >= *before && *holder == effect.holder, || {
            format!("after epoch {before}, of which {holder} is the holder: {effect:?}")
        });
        *before = effect.epoch.max(*before);
    }
    verdict
}

/// 9: the epoch beside a checkpoint, which the writer's transaction has checked, never goes back.
pub(crate) fn checkpoints_epochs_never_go_back(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(9, EPOCHS);
    let mut reached: BTreeMap<(i64, i16), i64> = BTreeMap::new();
    for snapshot in &story.snapshots {
        for (place, (_, epoch)) in &snapshot.checkpoints {
            let before = reached.entry(*place).or_insert(*epoch);
            verdict.hold(*epoch >= *before, || {
                format!("version and slot {place:?}: from epoch {before} back to {epoch}")
            });
            *before = *epoch;
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::example::story;

    #[test]
    fn an_effect_of_a_stale_epoch_is_found() {
        let effect = |epoch: u64, holder: &str| Effect {
            on: "map".to_owned(),
            epoch,
            holder: holder.to_owned(),
        };
        let right = [effect(1, "one"), effect(1, "one"), effect(4, "two"), effect(4, "two")];
        assert_eq!(effects_follow_epochs(&right).violations.len(), 0);
        let stale = [effect(1, "one"), effect(4, "two"), effect(1, "one"), effect(4, "two")];
        assert_eq!(effects_follow_epochs(&stale).violations.len(), 1);
        let shared = [effect(1, "one"), effect(1, "two")];
        assert_eq!(effects_follow_epochs(&shared).violations.len(), 1);
    }

    #[test]
    fn a_checkpoint_of_an_older_epoch_is_found() {
        let mut story = story();
        for snapshot in &mut story.snapshots {
            snapshot.checkpoints.values_mut().for_each(|(_, epoch)| *epoch = 3 - *epoch);
        }
        assert_eq!(checkpoints_epochs_never_go_back(&story).violations.len(), 1);
    }
}
