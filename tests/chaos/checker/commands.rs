//! Commands whose answers tell their outcomes, held to the log: invariants 1, 2, 4 and 5.

use std::collections::BTreeMap;

use super::{Story, Verdict, account::Accounts};
use crate::{
    evidence::Commit,
    history::{Call, Told, Way},
};

/// Names of checks.
pub(crate) const ACCEPTED: &str = "accepted commands are recorded once, before the answer";
pub(crate) const COMMITS: &str = "every commit is a command that was sent, whole and once";
pub(crate) const TURNED_AWAY: &str = "what was turned away leaves no event";
pub(crate) const REFUSED: &str = "refused commands leave no event, and the state says why";
pub(crate) const UNKNOWN: &str = "unknown commands took effect whole, once, or not at all";
pub(crate) const QUEUED_ORDER: &str = "an account's queued deposits keep their order";
pub(crate) const LATE: &str = "commands repeated beyond every window are not done again";
pub(crate) const IN_THE_LOG: &str = "nothing answered 2xx is missing from the log";

/// 1: a command that was answered 2xx stands in the log exactly once, at the answered place, before
/// the answer.
pub(crate) fn accepted_are_recorded_once(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(1, ACCEPTED);
    for call in &story.calls {
        let Told::Accepted { version, sequence, replayed } = call.told else { continue };
        let found = accounts.commits(call.tenant, &call.key);
        let wrong = match found {
            [] => Some("LOST"),
            [commit] => {
                let place = (version, sequence);
                differs(accounts, call, commit, place, replayed)
            }
            _ => Some("took effect more than once"),
        };
        verdict.hold(wrong.is_none(), || format!("{}: {call:?} {found:?}", wrong.unwrap_or("")));
    }
    verdict
}

fn differs(
    accounts: &Accounts<'_>,
    call: &Call,
    commit: &Commit,
    place: (u64, Option<u64>),
    replayed: bool,
) -> Option<&'static str> {
    let is_new = !accounts.was_before(commit, call.start_ns);
    let cases = [
        (commit.account != call.account, "stands at another account"),
        (commit.last != place.0, "has another version than the answer"),
        (Some(commit.sequence) != place.1, "stands elsewhere than the answer says"),
        (!is_of(commit, &call.tag), "has another's payload"),
        (commit.stored_ms > accounts.ms(call.end_ns), "was answered before it was stored"),
        (!replayed && !is_new, "was answered as new, and stood there before"),
    ];
    cases.iter().find(|(wrong, _)| *wrong).map(|(_, what)| *what)
}

pub(crate) fn is_of(commit: &Commit, tag: &str) -> bool {
    commit.changes.iter().any(|change| change.tag == tag)
}

/// The fault of a commit as the work of this command; `None`: it is whole, and what the rules make
/// of the account as it was.
pub(crate) fn is_not_made_of(
    accounts: &Accounts<'_>,
    commit: &Commit,
    call: &Call,
) -> Option<&'static str> {
    let before = accounts.before(commit)?;
    if call.if_match.is_some_and(|expected| expected != before.version) {
        return Some("expected another version");
    }
    match before.decide(&call.wanted, &call.tag) {
        Ok(changes) if changes == commit.changes => None,
        Ok(_) => Some("is in part, or changed"),
        Err(_) => Some("is against the rules"),
    }
}

/// A call after which the command may be in the log. All others say that nothing was done.
fn may_have_worked(call: &Call) -> bool {
    matches!(
        call.told,
        Told::Accepted { .. } | Told::Queued | Told::Unknown { .. } | Told::NoAnswer { .. }
    )
}

/// 1: every commit is a command that somebody sent, whole and once, and that the rules allowed then.
pub(crate) fn commits_are_explained(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(1, COMMITS);
    for commit in &story.log.commits {
        let calls = accounts.calls(&commit.tenant, &commit.key);
        let of = |call: &&&Call| call.account == commit.account && is_of(commit, &call.tag);
        let calls: Vec<&Call> = calls.iter().filter(of).copied().collect();
        let again = accounts.commits(&commit.tenant, &commit.key)[0].sequence != commit.sequence;
        let wrong = match calls.first() {
            None => Some("nobody sent"),
            Some(_) if again => Some("stands once more"),
            Some(_) if !is_done_by_one(accounts, commit, &calls) => {
                Some("everybody was told that nothing was done")
            }
            Some(call) => is_not_made_of(accounts, commit, call),
        };
        verdict.hold(wrong.is_none(), || format!("{}: {commit:?}", wrong.unwrap_or("")));
    }
    verdict
}

/// True if one of the calls may have recorded the commit: it began before, and did not say that
/// nothing was done.
fn is_done_by_one(accounts: &Accounts<'_>, commit: &Commit, calls: &[&Call]) -> bool {
    calls.iter().any(|call| may_have_worked(call) && !accounts.was_before(commit, call.start_ns))
}

/// 2: a command that was answered "nothing was done" has no event; unless the same command was sent
/// in another call as well, which did it.
pub(crate) fn turned_away_leave_nothing(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(2, TURNED_AWAY);
    let turned_away = |call: &&Call| matches!(call.told, Told::TurnedAway { .. } | Told::NotSent);
    for call in story.calls.iter().filter(turned_away) {
        let wrong = done_all_the_same(accounts, call);
        verdict.hold(wrong.is_none(), || format!("{call:?} {wrong:?}"));
    }
    verdict
}

/// The commit of a command of which no call may have recorded it.
fn done_all_the_same<'a>(accounts: &'a Accounts<'_>, call: &'a Call) -> Option<&'a Commit> {
    let found = accounts.commits(call.tenant, &call.key);
    let commit = found.iter().find(|commit| is_of(commit, &call.tag))?;
    let calls = accounts.calls(call.tenant, &call.key);
    let calls: Vec<&Call> = calls.iter().filter(|other| other.tag == call.tag).copied().collect();
    (!is_done_by_one(accounts, commit, &calls)).then_some(commit)
}

/// 2: a refused command has no event, and the account's state at some point of the call says why. A
/// command that was in the log already is answered with its outcome, never with 4xx.
pub(crate) fn refused_are_justified(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(2, REFUSED);
    for call in &story.calls {
        let Told::Refused { code, .. } = &call.told else { continue };
        let found = accounts.commits(call.tenant, &call.key);
        let own = found.iter().find(|commit| is_of(commit, &call.tag));
        let wrong = if done_all_the_same(accounts, call).is_some() {
            Some("was done all the same")
        } else if own.is_some_and(|commit| accounts.was_before(commit, call.start_ns)) {
            Some("was recorded before, and then refused")
        } else if !is_justified(accounts, call, code, call.end_ns) {
            Some("was refused without a reason")
        } else {
            None
        };
        verdict.hold(wrong.is_none(), || format!("{}: {call:?} {own:?}", wrong.unwrap_or("")));
    }
    verdict
}

/// True if the account gives a reason for this refusal of the call by this moment.
pub(crate) fn is_justified(
    accounts: &Accounts<'_>,
    call: &Call,
    code: &str,
    until_ns: u64,
) -> bool {
    let states = accounts.seen(call, until_ns);
    match code {
        // Others were faster, again and again.
        "conflict" => states.len() > 1,
        "version-mismatch" => {
            let other = |expected| states.iter().any(|state| state.version != expected);
            call.if_match.is_some_and(other)
        }
        "idempotency-key-reused" => {
            let calls = accounts.calls(call.tenant, &call.key);
            let other = |other: &&&Call| other.tag != call.tag || other.wanted != call.wanted;
            calls.iter().filter(other).any(|other| other.start_ns < until_ns)
        }
        code => states.iter().any(|state| state.decide(&call.wanted, &call.tag) == Err(code)),
    }
}

/// 2: a command with an unknown outcome took effect whole, once, or not at all.
pub(crate) fn unknown_are_whole_or_nothing(_: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(2, UNKNOWN);
    for calls in accounts.commands() {
        let unknown =
            |call: &&&Call| matches!(call.told, Told::Unknown { .. } | Told::NoAnswer { .. });
        let Some(call) = calls.iter().find(unknown) else { continue };
        let found = accounts.commits(call.tenant, &call.key);
        let whole = |commit: &&Commit| {
            !is_of(commit, &call.tag) || is_not_made_of(accounts, commit, call).is_none()
        };
        verdict.hold(found.len() <= 1 && found.iter().all(whole), || {
            format!("more than once, or in part: {call:?} {found:?}")
        });
    }
    verdict
}

/// The number of commands that an aggregate may remember whole; later repetitions are beyond it.
const WINDOW: usize = 1_024;

/// 1: a command that is repeated after its account has taken more others than anybody remembers is
/// answered with its first outcome.
pub(crate) fn late_repeats_are_known(story: &Story) -> Verdict {
    let accounts = Accounts::of(story);
    let mut verdict = Verdict::new(1, LATE);
    for call in &story.calls {
        let [commit, more @ ..] = accounts.commits(call.tenant, &call.key) else { continue };
        let history = accounts.history(&commit.tenant, &commit.account);
        if history.known(call.start_ns) < history.place(commit) + WINDOW {
            continue;
        }
        let holds = match &call.told {
            Told::Accepted { version, replayed, .. } => *replayed && *version == commit.last,
            Told::Refused { code, .. } => {
                !is_of(commit, &call.tag) && code == "idempotency-key-reused"
            }
            _ => continue,
        };
        verdict.hold(holds && more.is_empty(), || format!("{call:?} {commit:?} {more:?}"));
    }
    verdict
}

/// 4: a command that was sent after something was known of its account comes behind that in the log.
pub(crate) fn commits_follow_what_was_known(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(4, "a commit comes behind what was known when it was sent");
    let mut places: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for commit in &story.log.commits {
        let name = (commit.tenant.as_str(), commit.account.as_str());
        let place = places.entry(name).or_default();
        let calls = accounts.calls(&commit.tenant, &commit.key);
        let sent = calls.iter().filter(|call| is_of(commit, &call.tag)).map(|call| call.start_ns);
        let known = sent.min().map_or(0, |sent| accounts.history(name.0, name.1).known(sent));
        if known > 0 {
            verdict.hold(known <= *place, || {
                format!("{known} commits were known before it was sent as {place}: {commit:?}")
            });
        }
        *place += 1;
    }
    verdict
}

/// 4: of the commands that expect the same version one wins, and it has the next.
pub(crate) fn one_wins_a_version(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(4, "of commands that expect one version one wins");
    let mut winners: BTreeMap<(&str, &str, u64), &str> = BTreeMap::new();
    for call in &story.calls {
        let (Some(expected), Told::Accepted { .. }) = (call.if_match, &call.told) else { continue };
        let Some(commit) = accounts.commits(call.tenant, &call.key).first() else { continue };
        let winner = winners
            .entry((call.tenant, call.account.as_str(), expected))
            .or_insert(call.key.as_str());
        verdict.hold(commit.first == expected + 1 && *winner == call.key, || {
            format!("expected {expected}, and {winner} won: {call:?} {commit:?}")
        });
    }
    verdict
}

/// 4: an account's queued deposits keep their order: one that was stored before another was sent
/// comes first in the log. For a command that was also sent another way the place in the queue says
/// nothing. Nor of a withdrawal: it may be refused in its place, and a copy that was stored later
/// not.
pub(crate) fn queued_keep_their_order(_: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(4, QUEUED_ORDER);
    let mut by_account: BTreeMap<(&str, &str), Vec<Queued<'_>>> = BTreeMap::new();
    for calls in accounts.commands() {
        let queued = |call: &&Call| call.wanted.command() == "deposit" && call.way != Way::Wait;
        if !calls.iter().all(queued) {
            continue;
        }
        let Call { tenant, account, key, tag, .. } = calls[0];
        let found = accounts.commits(tenant, key);
        let Some(commit) = found.iter().find(|commit| is_of(commit, tag)) else { continue };
        let stored = calls.iter().filter(|call| call.told == Told::Queued);
        let queued = Queued {
            key,
            sent_ns: calls.iter().map(|call| call.start_ns).min().unwrap_or(0),
            stored_ns: stored.map(|call| call.end_ns).min(),
            sequence: commit.sequence,
        };
        by_account.entry((tenant, account)).or_default().push(queued);
    }
    for (account, mut queued) in by_account {
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

/// 5: a command that was answered 2xx is in the log.
pub(crate) fn acknowledged_in_the_log(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(5, IN_THE_LOG);
    for call in story.calls.iter().filter(|call| matches!(call.told, Told::Accepted { .. })) {
        let recorded = !accounts.commits(call.tenant, &call.key).is_empty();
        verdict.hold(recorded, || format!("LOST: {call:?}"));
    }
    verdict
}
