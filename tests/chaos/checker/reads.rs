//! Results of questions: invariant 8. Rows may be behind the log, but not behind the requested
//! position; states and events are those of a point between the question and its answer.

use super::{Story, Verdict, account::Accounts, model::Account};
use crate::{
    evidence::Row,
    history::{Asked, Read, Seen},
};

/// Names of checks.
pub(crate) const ROWS: &str = "queries with min_position see what was written, and no more";
pub(crate) const STATES: &str = "states and events are the log's at that time";

/// 8: a row shows its account as it was after some commit, from `min_position` on, and nobody else's.
pub(crate) fn rows_are_explained(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(8, ROWS);
    for read in &story.reads {
        let Asked::Row { least } = read.asked else { continue };
        match &read.seen {
            Seen::Rows(rows) => {
                verdict.hold(row_is_explained(accounts, read, least, rows), || format!("{read:?}"));
            }
            seen if seen.is_passing() => {}
            _ => verdict.hold(false, || format!("{read:?}")),
        }
    }
    verdict
}

fn row_is_explained(
    accounts: &Accounts<'_>,
    read: &Read,
    least: u64,
    rows: &[(String, Row)],
) -> bool {
    let [(account, row)] = rows else { return false };
    let history = accounts.history(read.tenant, &read.account);
    let states = history.between(0, accounts.ms(read.end_ns));
    let place = states.partition_point(|state| state.version < row.version.cast_unsigned());
    let is_then = states.get(place).and_then(Account::row).as_ref() == Some(row);
    *account == read.account && row.version.cast_unsigned() >= least && is_then
}

/// 8: a state is the account's at a point between question and answer, and events are the log's.
pub(crate) fn states_are_explained(story: &Story, accounts: &Accounts<'_>) -> Verdict {
    let mut verdict = Verdict::new(8, STATES);
    for read in &story.reads {
        if matches!(read.asked, Asked::Row { .. }) || read.seen.is_passing() {
            continue;
        }
        let history = accounts.history(read.tenant, &read.account);
        let states = history.between(read.start_ns, accounts.ms(read.end_ns));
        let holds = match &read.seen {
            Seen::State { version, branch, balance } => states.iter().any(|state| {
                let found = (state.version, state.branch.as_ref(), state.balance());
                found == (*version, Some(branch), *balance)
            }),
            Seen::Events { .. } => events_are_explained(accounts, read, states),
            Seen::Not { status: 404, .. } => states[0].version == 0,
            _ => false,
        };
        verdict.hold(holds, || {
            format!("{read:?}, the log has versions {:?}", (states[0].version, states.len()))
        });
    }
    verdict
}

/// True if the events are the log's from the requested version on: all up to a point between
/// question and answer, or as many as fit.
fn events_are_explained(accounts: &Accounts<'_>, read: &Read, states: &[Account]) -> bool {
    let (Asked::Events { after }, Seen::Events { events, more }) = (read.asked, &read.seen) else {
        return false;
    };
    let history = accounts.history(read.tenant, &read.account);
    let from = history.commits.partition_point(|commit| commit.last <= after);
    let logged = history.commits[from..]
        .iter()
        .flat_map(|commit| (commit.first..).zip(&commit.changes))
        .skip_while(|(version, _)| *version <= after);
    let same = events.iter().zip(logged).filter(|(seen, logged)| (seen.0, &seen.1) == *logged);
    let end = events.last().map_or(after, |(version, _)| *version);
    let ends = |state: &Account| state.version == end || state.version < after;
    same.count() == events.len() && (*more || states.iter().any(ends))
}
