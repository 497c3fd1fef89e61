//! The log: invariants 3 and 4.

use std::collections::BTreeMap;

use super::{Story, Verdict};
use crate::listener::TENANT;

/// Name of a check.
pub(crate) const HEARD: &str = "a listener hears every commit once, in order";

/// 3: stream sequences follow one another, every message is a commit, and the replicas agree.
pub(crate) fn sequences_follow(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(3, "sequences of the log follow one another on every replica");
    for (expected, sequence) in (1..).zip(&story.log.sequences) {
        verdict.hold(expected == *sequence, || format!("{sequence} where {expected} follows"));
        if expected != *sequence {
            // Everything after a gap is shifted.
            break;
        }
    }
    verdict.violations.extend(story.log.unreadable.iter().cloned());
    let last = story.log.sequences.last().copied().unwrap_or(0);
    for (broker, replica) in &story.replicas {
        verdict.hold(*replica == (last, 0, last), || {
            let (messages, deleted, end) = replica;
            format!("{broker} has {messages} messages up to {end}, {deleted} deleted, of {last}")
        });
    }
    verdict
}

/// 3: who listens to a tenant's events hears each of its commits once, whole and in order, over all the
/// connections that it took, and nobody else's.
pub(crate) fn listeners_miss_nothing(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(3, HEARD);
    let mut heard = story.heard.iter();
    for commit in story.log.commits.iter().filter(|commit| commit.tenant == TENANT) {
        let next = heard.next();
        let is_next = next.is_some_and(|next| next.is(commit));
        verdict.hold(is_next, || format!("heard {next:?} where {commit:?} follows"));
        if !is_next {
            // From here on everything is shifted.
            return verdict;
        }
    }
    let more = heard.next();
    verdict.hold(more.is_none(), || format!("heard {more:?} after the end"));
    verdict
}

/// 4: an account's versions follow one another, and its commits form a chain.
pub(crate) fn versions_follow(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(4, "versions follow one another, commits form a chain");
    let mut versions: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for commit in &story.log.commits {
        let version = versions.entry((&commit.tenant, &commit.account)).or_default();
        verdict.hold(commit.first == *version + 1 && commit.chained, || {
            format!("version {version}, then {commit:?}")
        });
        *version = commit.last;
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::example::story;

    #[test]
    fn a_gap_in_the_log_is_found() {
        let mut story = story();
        story.log.sequences = vec![1, 3, 4];
        assert!(sequences_follow(&story).violations[0].contains("3 where 2 follows"));
        story.log.sequences = vec![2, 3];
        assert!(sequences_follow(&story).violations[0].contains("2 where 1 follows"));
    }

    #[test]
    fn a_replica_that_lost_messages_is_found() {
        let mut story = story();
        story.replicas.insert("nats-2".to_owned(), (2, 1, 3));
        let found = sequences_follow(&story).violations;
        assert!(found.len() == 1 && found[0].contains("nats-2 has 2 messages up to 3, 1 deleted"));
    }

    #[test]
    fn a_listener_that_misses_or_repeats_something_is_found() {
        for heard in [&[1_usize, 3][..], &[1, 2], &[1, 2, 2, 3], &[1, 2, 3, 3], &[2, 1, 3]] {
            let mut story = story();
            let whole = story.heard.clone();
            story.heard = heard.iter().map(|n| whole[n - 1].clone()).collect();
            assert_eq!(listeners_miss_nothing(&story).violations.len(), 1, "{heard:?}");
        }
    }

    #[test]
    fn what_is_no_commit_is_found() {
        let mut story = story();
        story.log.unreadable.push("4: strange".to_owned());
        assert_eq!(sequences_follow(&story).violations, ["4: strange"]);
    }

    #[test]
    fn a_version_that_jumps_and_a_broken_chain_are_found() {
        let mut broken = story();
        broken.log.commits[2].chained = false;
        assert_eq!(versions_follow(&broken).violations.len(), 1);
        let mut jumping = story();
        jumping.log.commits.remove(1);
        assert_eq!(versions_follow(&jumping).violations.len(), 1);
        let mut twice = story();
        twice.log.commits[2].first = 2;
        assert_eq!(versions_follow(&twice).violations.len(), 1);
    }
}
