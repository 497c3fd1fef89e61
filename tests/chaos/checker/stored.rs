//! Commands that were only told "stored": invariant 5. Each comes to one outcome: it stands in the log
//! once, whole, with its own payload; or it was refused, for a reason that its account gives; or it is a
//! dead letter, which only a wrong payload or a used id makes.

use super::{
    Story, Verdict,
    account::Accounts,
    commands::{is_justified, is_not_made_of, is_of},
};
use crate::{
    evidence::Commit,
    history::{Call, Told},
};

/// Names of checks.
pub(crate) const STORED: &str = "what was stored comes to one outcome, whole";

/// The outcome of a stored command, as told at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted {
        version: u64,
        sequence: Option<u64>,
    },
    /// By the rules, or because of its version; with the word for it.
    Refused {
        code: String,
    },
    /// A dead letter.
    Dead {
        reason: String,
    },
    Pending,
    /// None of these.
    Strange(String),
}

/// 5: nothing that was stored is missing, doubled, in part or changed.
pub(crate) fn stored_come_to_one_outcome(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(5, STORED);
    for calls in accounts.commands() {
        let Some(call) = calls.iter().find(|call| call.told == Told::Queued) else { continue };
        let Call { tenant, account, key, tag, .. } = call;
        let found = accounts.commits(tenant, key);
        let outcome = story.outcomes.get(&((*tenant).to_owned(), account.clone(), key.clone()));
        let own: Vec<&Commit> = found.iter().filter(|commit| is_of(commit, tag)).copied().collect();
        let wrong = match own[..] {
            [] => outcome_is_wrong(accounts, &calls, found, outcome),
            [commit] => is_not_made_of(accounts, commit, call)
                .or_else(|| outcome.and_then(|outcome| differs(accounts, &calls, commit, outcome))),
            _ => Some("stands more than once"),
        };
        verdict.hold(wrong.is_none(), || {
            format!("{}: {call:?}, outcome {outcome:?} {own:?}", wrong.unwrap_or(""))
        });
    }
    verdict
}

/// The fault in the outcome of a command without a commit.
fn outcome_is_wrong(
    accounts: &Accounts<'_>,
    calls: &[&Call],
    others: &[&Commit],
    outcome: Option<&Outcome>,
) -> Option<&'static str> {
    // From the first time that it was sent to the end of the log.
    let first = calls.iter().min_by_key(|call| call.start_ns)?;
    match outcome {
        None | Some(Outcome::Pending) => Some("LOST from the queue"),
        Some(Outcome::Strange(_)) => Some("has no outcome that there is"),
        Some(Outcome::Accepted { version, sequence }) => {
            // Its id is another's by now, and that one is asked for.
            let is_other = |c: &&Commit| c.last == *version && Some(c.sequence) == *sequence;
            (!others.iter().any(is_other)).then_some("is said to be accepted, and is not there")
        }
        Some(Outcome::Refused { code }) => (!is_justified(accounts, first, code, u64::MAX))
            .then_some("was refused without a reason"),
        Some(Outcome::Dead { .. }) => {
            let reasons = ["invalid-payload", "idempotency-key-reused"];
            let is = |code: &&str| is_justified(accounts, first, code, u64::MAX);
            (!reasons.iter().any(is)).then_some("was put aside without a reason")
        }
    }
}

/// The fault in the outcome of a command that has a commit.
fn differs(
    accounts: &Accounts<'_>,
    calls: &[&Call],
    commit: &Commit,
    outcome: &Outcome,
) -> Option<&'static str> {
    match outcome {
        Outcome::Accepted { version, sequence } => {
            let same = *version == commit.last && *sequence == Some(commit.sequence);
            (!same).then_some("is said to stand elsewhere")
        }
        // Its id was used with another payload, too.
        Outcome::Dead { .. }
            if is_justified(accounts, calls[0], "idempotency-key-reused", u64::MAX) =>
        {
            None
        }
        // One copy was refused and another came later.
        Outcome::Refused { code } if calls.len() > 1 => {
            (!is_justified(accounts, calls[0], code, u64::MAX))
                .then_some("was refused without a reason")
        }
        _ => Some("stands in the log, and something else is said of it"),
    }
}
