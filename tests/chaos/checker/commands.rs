//! Commands: invariants 1, 2, 4 and 5.

use std::collections::{BTreeMap, BTreeSet};

use super::{CLOCK_MS, Story, Verdict};
use crate::{
    evidence::Commit,
    history::{Call, Told, Way},
};

/// 1: what was answered 2xx stands in the log exactly once, whole, where the answer said, before
/// the answer.
pub(crate) fn accepted_are_recorded_once(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(1, "accepted commands are recorded once, before the answer");
    let commits = story.by_key();
    for call in &story.calls {
        let Told::Accepted { version, sequence, .. } = &call.told else { continue };
        let found = commits.get(&(call.tenant, call.key.as_str())).map_or(&[][..], Vec::as_slice);
        let wrong = match found {
            [] => Some("LOST"),
            [commit] => differs(story, call, commit, *version, *sequence),
            _ => Some("took effect more than once"),
        };
        verdict.hold(wrong.is_none(), || format!("{}: {call:?} {found:?}", wrong.unwrap_or("")));
    }
    verdict
}

fn differs(
    story: &Story,
    call: &Call,
    commit: &Commit,
    version: u64,
    sequence: Option<u64>,
) -> Option<&'static str> {
    let cases = [
        (commit.account != call.account, "stands at another account"),
        (commit.last != version, "has another version than the answer"),
        (Some(commit.sequence) != sequence, "stands elsewhere than the answer says"),
        (commit.changes.iter().any(|change| change.tag != call.tag), "has another's payload"),
        (commit.last + 1 - commit.first != call.parts, "is not whole"),
        (commit.stored_ms > story.ms(call.end_ns) + CLOCK_MS, "was answered before it was stored"),
    ];
    cases.iter().find(|(wrong, _)| *wrong).map(|(_, what)| *what)
}

/// 1: nothing is in the log that nobody sent.
pub(crate) fn nothing_else_is_recorded(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(1, "nothing is recorded that nobody sent");
    let sent: BTreeSet<(&str, &str, &str)> = story
        .calls
        .iter()
        .map(|call| (call.tenant, call.account.as_str(), call.key.as_str()))
        .collect();
    for commit in &story.log.commits {
        let known = (commit.tenant.as_str(), commit.account.as_str(), commit.key.as_str());
        verdict.hold(sent.contains(&known), || format!("nobody sent {commit:?}"));
    }
    verdict
}

/// Calls by tenant, key and payload.
fn by_payload(story: &Story) -> BTreeMap<(&str, &str, &str), Vec<&Call>> {
    let mut found: BTreeMap<_, Vec<&Call>> = BTreeMap::new();
    for call in &story.calls {
        found.entry((call.tenant, call.key.as_str(), call.tag.as_str())).or_default().push(call);
    }
    found
}

fn is_of(commit: &Commit, tag: &str) -> bool {
    commit.changes.iter().any(|change| change.tag == tag)
}

/// 2: what was answered 4xx, or turned away, has no event; unless the same command was sent in
/// another call as well, which may have been accepted later. What stood in the log already is
/// answered with what came of it, never with 4xx.
pub(crate) fn refused_leave_nothing(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(2, "refused commands leave no event");
    let commits = story.by_key();
    for ((tenant, key, tag), calls) in by_payload(story) {
        let found = commits.get(&(tenant, key)).map_or(&[][..], Vec::as_slice);
        let commit = found.iter().find(|commit| is_of(commit, tag));
        let may_have_worked = calls.iter().any(|call| {
            !matches!(call.told, Told::Refused { .. } | Told::TurnedAway { .. } | Told::NotSent)
        });
        for call in &calls {
            let Told::Refused { .. } = call.told else { continue };
            let wrong = match commit {
                None => None,
                Some(_) if !may_have_worked => Some("was refused, and only refused"),
                Some(commit) if commit.stored_ms + CLOCK_MS < story.ms(call.start_ns) => {
                    Some("was recorded before, and then refused")
                }
                Some(_) => None,
            };
            verdict.hold(wrong.is_none(), || {
                format!("{}: {call:?} {commit:?}", wrong.unwrap_or_default())
            });
        }
    }
    verdict
}

/// 2: what is unknown took effect whole, once, or not at all.
pub(crate) fn unknown_are_whole_or_nothing(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(2, "unknown commands took effect whole, once, or not at all");
    let commits = story.by_key();
    for ((tenant, key, tag), calls) in by_payload(story) {
        let unknown =
            |call: &&Call| matches!(call.told, Told::Unknown { .. } | Told::NoAnswer { .. });
        let Some(call) = calls.iter().copied().find(unknown) else { continue };
        let found = commits.get(&(tenant, key)).map_or(&[][..], Vec::as_slice);
        let whole =
            |commit: &&Commit| !is_of(commit, tag) || commit.last + 1 - commit.first == call.parts;
        verdict.hold(found.len() <= 1 && found.iter().all(whole), || {
            format!("more than once, or in part: {call:?} {found:?}")
        });
    }
    verdict
}

/// 4: of the commands that expect the same version one wins, and it has the next.
pub(crate) fn one_wins_a_version(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(4, "of commands that expect one version one wins");
    let commits = story.by_key();
    let mut winners: BTreeMap<(&str, &str, u64), &str> = BTreeMap::new();
    for call in &story.calls {
        let (Some(expected), Told::Accepted { .. }) = (call.if_match, &call.told) else { continue };
        let found = commits.get(&(call.tenant, call.key.as_str()));
        let Some(commit) = found.and_then(|found| found.first()) else { continue };
        let winner = winners
            .entry((call.tenant, call.account.as_str(), expected))
            .or_insert(call.key.as_str());
        verdict.hold(commit.first == expected + 1 && *winner == call.key, || {
            format!("expected {expected}, and {winner} won: {call:?} {commit:?}")
        });
    }
    verdict
}

/// 4: an account's queued deposits keep their order: one that was stored before another was sent comes
/// first in the log. Of one that was also sent another way the place in the queue says nothing. Nor of a
/// withdrawal: it may be refused in its place, and a copy that was stored later not.
pub(crate) fn queued_keep_their_order(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(4, "an account's queued deposits keep their order");
    let commits = story.by_key();
    let mut accounts: BTreeMap<(&str, &str), Vec<Queued<'_>>> = BTreeMap::new();
    for ((tenant, key, tag), calls) in by_payload(story) {
        let queued = |call: &&Call| call.command == "deposit" && call.way != Way::Wait;
        if !calls.iter().all(queued) {
            continue;
        }
        let found = commits.get(&(tenant, key)).map_or(&[][..], Vec::as_slice);
        let Some(commit) = found.iter().find(|commit| is_of(commit, tag)) else { continue };
        let stored = calls.iter().filter(|call| call.told == Told::Queued);
        let queued = Queued {
            key,
            sent_ns: calls.iter().map(|call| call.start_ns).min().unwrap_or(0),
            stored_ns: stored.map(|call| call.end_ns).min(),
            sequence: commit.sequence,
        };
        accounts.entry((tenant, &calls[0].account)).or_default().push(queued);
    }
    for (account, mut queued) in accounts {
        let mut stored: Vec<(u64, &str, u64)> =
            queued.iter().filter_map(|one| Some((one.stored_ns?, one.key, one.sequence))).collect();
        stored.sort_unstable();
        queued.sort_unstable_by_key(|one| one.sent_ns);
        let (mut stored, mut last) = (stored.into_iter().peekable(), None::<(u64, &str)>);
        for one in &queued {
            while let Some((_, key, sequence)) = stored.next_if(|(at, ..)| *at < one.sent_ns) {
                last = last.max(Some((sequence, key)));
            }
            let Some((sequence, before)) = last else { continue };
            verdict.hold(sequence < one.sequence, || {
                let Queued { key, sequence: at, .. } = one;
                format!(
                    "{account:?}: {before} was stored first, and is behind {key}: {sequence} > {at}"
                )
            });
        }
    }
    verdict
}

/// A command that went into the queue, and into the log.
struct Queued<'a> {
    key: &'a str,
    /// The first time.
    sent_ns: u64,
    /// When it was known to be in the queue; `None`: never.
    stored_ns: Option<u64>,
    /// Of its commit.
    sequence: u64,
}

/// 5: nothing that was acknowledged is missing: answered 2xx means an event, queued means an
/// outcome.
pub(crate) fn acknowledged_stay(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(5, "nothing acknowledged is missing");
    let commits = story.by_key();
    let mut seen = BTreeSet::new();
    for call in &story.calls {
        let queued = call.told == Told::Queued;
        if !queued && !matches!(call.told, Told::Accepted { .. }) {
            continue;
        }
        if !seen.insert((call.tenant, call.key.as_str(), call.tag.as_str(), queued)) {
            continue;
        }
        let recorded = commits.contains_key(&(call.tenant, call.key.as_str()));
        let key = (call.tenant.to_owned(), call.account.clone(), call.key.clone());
        let outcome = story.outcomes.get(&key);
        let settled = outcome.is_some_and(|outcome| !outcome.contains(':'));
        verdict.hold(recorded || queued && settled, || {
            let way = if call.way == Way::Wait { "LOST" } else { "LOST from the queue" };
            format!("{way}: {call:?}, outcome {outcome:?}")
        });
    }
    verdict
}

/// 5, without what became of queued commands: what was answered 2xx is in the log.
pub(crate) fn acknowledged_in_the_log(story: &Story) -> Verdict {
    let mut verdict = Verdict::new(5, "nothing answered 2xx is missing from the log");
    let commits = story.by_key();
    for call in story.calls.iter().filter(|call| matches!(call.told, Told::Accepted { .. })) {
        let recorded = commits.contains_key(&(call.tenant, call.key.as_str()));
        verdict.hold(recorded, || format!("LOST: {call:?}"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::example::{accepted, call, commit, story};

    fn refused(code: &str) -> Told {
        Told::Refused { status: 409, code: code.to_owned() }
    }

    fn no_answer() -> Told {
        Told::NoAnswer { why: "Timeout".to_owned() }
    }

    #[test]
    fn a_whole_story_has_no_violation() {
        let story = story();
        for verdict in crate::checker::all(&story) {
            assert_eq!(verdict.violations, Vec::<String>::new(), "{}", verdict.what);
            assert!(verdict.n > 0, "{} looked at something", verdict.what);
        }
    }

    #[test]
    fn a_lost_command_is_found() {
        let mut story = story();
        let key = story.log.commits.pop().unwrap().key;
        for check in [accepted_are_recorded_once, acknowledged_stay, acknowledged_in_the_log] {
            let found = check(&story).violations;
            assert!(found.len() == 1 && found[0].contains("LOST") && found[0].contains(&key));
        }
    }

    #[test]
    fn a_command_that_took_effect_twice_is_found() {
        let mut story = story();
        let mut again = story.log.commits.last().unwrap().clone();
        (again.first, again.last, again.sequence) = (again.last + 1, again.last + 1, 99);
        story.log.commits.push(again);
        assert!(accepted_are_recorded_once(&story).violations[0].contains("more than once"));
        story.calls.last_mut().unwrap().told = no_answer();
        assert_eq!(unknown_are_whole_or_nothing(&story).violations.len(), 1);
    }

    #[test]
    fn an_answer_that_says_something_else_than_the_log_is_found() {
        let wrong = |change: fn(&mut Commit), what: &str| {
            let mut story = story();
            change(story.log.commits.last_mut().unwrap());
            let found = accepted_are_recorded_once(&story).violations;
            assert!(found.len() == 1 && found[0].starts_with(what), "{what}: {found:?}");
        };
        wrong(|commit| commit.account = "b".to_owned(), "stands at another account");
        wrong(|commit| commit.last += 1, "has another version");
        wrong(|commit| commit.sequence += 1, "stands elsewhere");
        wrong(|commit| commit.changes[0].tag = "x".to_owned(), "has another's payload");
        wrong(|commit| commit.first -= 1, "is not whole");
        wrong(|commit| commit.stored_ms += 60_000, "was answered before it was stored");
    }

    #[test]
    fn what_nobody_sent_is_found() {
        let mut story = story();
        story.log.commits.push(commit("phantom", 9, 9));
        assert_eq!(nothing_else_is_recorded(&story).violations.len(), 1);
    }

    #[test]
    fn a_refused_command_with_an_event_is_found() {
        let mut story = story();
        story.log.commits.push(commit("refused", 9, 9));
        story.calls.push(call("refused", refused("too_little")));
        assert!(refused_leave_nothing(&story).violations[0].contains("only refused"));
        // Sent again, and accepted then: no violation, unless the refusal came after it.
        story.calls.push(call("refused", accepted(9, 9)));
        assert_eq!(refused_leave_nothing(&story).violations.len(), 0);
        story.log.commits.last_mut().unwrap().stored_ms = 0;
        assert!(refused_leave_nothing(&story).violations[0].contains("recorded before"));
    }

    #[test]
    fn half_a_command_is_found() {
        let mut story = story();
        let mut half = call("half", no_answer());
        half.parts = 3;
        story.calls.push(half);
        assert_eq!(unknown_are_whole_or_nothing(&story).violations.len(), 0, "none of it");
        story.log.commits.push(commit("half", 9, 9));
        assert_eq!(unknown_are_whole_or_nothing(&story).violations.len(), 1, "a third of it");
    }

    #[test]
    fn two_winners_of_one_version_are_found() {
        let mut story = story();
        for (key, version) in [("one", 9), ("other", 10)] {
            let mut racing = call(key, accepted(version, version));
            racing.if_match = Some(8);
            story.calls.push(racing);
            story.log.commits.push(commit(key, version, version));
        }
        let found = one_wins_a_version(&story).violations;
        assert!(found.len() == 1 && found[0].contains("one won"), "{found:?}");
    }

    #[test]
    fn queued_commands_out_of_order_are_found() {
        let mut story = story();
        let mut queue = |key: &str, sent_ns: u64, sequence: u64| {
            let mut queued = call(key, Told::Queued);
            let sent_ns = 20_000_000_000 + sent_ns;
            (queued.way, queued.start_ns, queued.end_ns) = (Way::Publish, sent_ns, sent_ns + 10);
            story.calls.push(queued);
            story.log.commits.push(commit(key, sequence, sequence));
        };
        queue("one", 1_000, 5);
        // At the same time as the first: either may be first.
        queue("two", 1_005, 4);
        queue("three", 2_000, 10);
        queue("four", 3_000, 7);
        let verdict = queued_keep_their_order(&story);
        assert_eq!((verdict.n, verdict.violations.len()), (5, 1), "{verdict:?}");
        assert!(verdict.violations[0].contains("three was stored first, and is behind four"));
        // Sent to its owner as well, it may come early; and the one before may come late.
        for key in ["four", "three"] {
            let mut story = story.clone();
            story.calls.push(call(key, accepted(7, 7)));
            assert_eq!(queued_keep_their_order(&story).violations.len(), 0, "{key}");
        }
    }

    #[test]
    fn a_queued_command_without_an_outcome_is_found() {
        let mut story = story();
        story.calls.push(call("queued", Told::Queued));
        assert_eq!(acknowledged_stay(&story).violations.len(), 1);
        let key = ("alder".to_owned(), "a-g0".to_owned(), "queued".to_owned());
        story.outcomes.insert(key.clone(), "dead: delivered 11 times".to_owned());
        assert_eq!(acknowledged_stay(&story).violations.len(), 1);
        story.outcomes.insert(key, "too_little".to_owned());
        assert_eq!(acknowledged_stay(&story).violations.len(), 0);
    }
}
