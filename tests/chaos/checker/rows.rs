//! Read models: invariants 6, 7 and 8.

use std::collections::{BTreeMap, BTreeSet};

use super::{Story, Verdict, model::Account};
use crate::{
    evidence::{Commit, Rows},
    history::is_hot,
};

/// Names of checks.
pub(crate) const FOLD: &str = "rows equal the fold of the log";
pub(crate) const FORWARD: &str = "checkpoints never go back";
pub(crate) const TOGETHER: &str = "rows and checkpoints commit together";

/// The expected rows: the fold of the log.
pub(crate) fn fold(commits: &[Commit]) -> Rows {
    let mut rows = Rows::default();
    let mut accounts: BTreeMap<(&str, &str), Account> = BTreeMap::new();
    for commit in commits {
        let account = accounts.entry((&commit.tenant, &commit.account)).or_default();
        for change in &commit.changes {
            account.evolve(change);
            let branch = (commit.tenant.clone(), change.branch.clone());
            let [opened, changes, deposited, withdrawn] = rows.branches.entry(branch).or_default();
            match change.event.as_str() {
                "opened" => {
                    *opened += 1;
                    continue;
                }
                "deposited" => *deposited += change.amount,
                _ => *withdrawn += change.amount,
            }
            *changes += 1;
        }
    }
    for ((tenant, account), state) in accounts {
        let key = (tenant.to_owned(), account.to_owned());
        rows.balances.extend(state.row().map(|row| (key, row)));
    }
    rows
}

/// 6: after everything has calmed down, every row equals the fold of the log.
pub(crate) fn rows_are_the_fold(story: &Story, rows: &Rows, what: &'static str) -> Verdict {
    let mut verdict = Verdict::new(6, what);
    let expected = fold(&story.log.commits);
    let accounts: BTreeSet<_> = expected.balances.keys().chain(rows.balances.keys()).collect();
    for key in accounts {
        let (row, wanted) = (rows.balances.get(key), expected.balances.get(key));
        verdict.hold(row == wanted, || format!("{key:?} is {row:?}, the fold is {wanted:?}"));
    }
    let branches: BTreeSet<_> = expected.branches.keys().chain(rows.branches.keys()).collect();
    for key in branches {
        let (row, wanted) = (rows.branches.get(key), expected.branches.get(key));
        verdict.hold(row == wanted, || format!("{key:?} is {row:?}, the fold is {wanted:?}"));
    }
    verdict
}

/// 7: a checkpoint never goes back. A rebuild makes a new version with checkpoints of its own.
pub(crate) fn checkpoints_never_go_back(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(7, FORWARD);
    let mut reached: BTreeMap<(i64, i16), i64> = BTreeMap::new();
    for snapshot in &story.snapshots {
        for (place, (position, _)) in &snapshot.checkpoints {
            let before = reached.entry(*place).or_insert(*position);
            verdict.hold(*position >= *before, || {
                format!("version and slot {place:?}: from {before} back to {position}")
            });
            *before = *position;
        }
    }
    verdict
}

/// 7: rows and checkpoints commit together: at any moment a row has the version that the log gives
/// its account up to the checkpoint of its slot.
pub(crate) fn checkpoints_commit_with_rows(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(7, TOGETHER);
    let mut histories: BTreeMap<(String, String), Vec<&Commit>> = BTreeMap::new();
    for commit in &story.log.commits {
        let key = (commit.tenant.clone(), commit.account.clone());
        histories.entry(key).or_default().push(commit);
    }
    for snapshot in &story.snapshots {
        let suffix = format!("-g{}", snapshot.generation);
        let looked_at = histories
            .iter()
            .filter(|((_, account), _)| account.ends_with(&suffix) || is_hot(account));
        for (key, commits) in looked_at {
            let Some((position, _)) =
                snapshot.checkpoints.get(&(snapshot.serving, commits[0].slot))
            else {
                continue;
            };
            let reached = commits.partition_point(|c| c.sequence <= position.cast_unsigned());
            let expected = commits[..reached].last().map(|commit| commit.last);
            let found = snapshot.versions.get(key).copied();
            verdict.hold(found == expected, || {
                format!("{key:?} has version {found:?} at checkpoint {position}, not {expected:?}")
            });
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::example::story;

    #[test]
    fn a_row_that_is_not_the_fold_is_found() {
        let check = |spoil: fn(&mut Rows)| {
            let story = story();
            let mut rows = story.rows.clone();
            spoil(&mut rows);
            rows_are_the_fold(&story, &rows, "").violations.len()
        };
        assert_eq!(check(|_| {}), 0);
        assert_eq!(check(|rows| rows.balances.clear()), 1, "a missing row");
        assert_eq!(check(|rows| rows.balances.values_mut().for_each(|r| r.deposited += 5)), 1);
        assert_eq!(check(|rows| rows.branches.values_mut().for_each(|r| r[1] += 1)), 1);
        let extra = |rows: &mut Rows| {
            let row = rows.balances.values().next().unwrap().clone();
            rows.balances.insert(("birch".to_owned(), "a".to_owned()), row);
        };
        assert_eq!(check(extra), 1, "a row too many");
    }

    #[test]
    fn a_checkpoint_that_goes_back_is_found() {
        let mut story = story();
        story.snapshots.reverse();
        assert_eq!(checkpoints_never_go_back(&story).violations.len(), 1);
    }

    #[test]
    fn rows_without_their_checkpoint_are_found() {
        let mut ahead = story();
        ahead.snapshots[0].versions.values_mut().for_each(|version| *version = 3);
        assert_eq!(checkpoints_commit_with_rows(&ahead).violations.len(), 1, "rows are ahead");
        let mut behind = story();
        behind.snapshots[1].versions.clear();
        assert_eq!(checkpoints_commit_with_rows(&behind).violations.len(), 1, "rows are missing");
    }
}
