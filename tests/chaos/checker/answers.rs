//! Answers under overload and while processes end: invariants 13 and 17.

use std::time::Duration;

use super::Verdict;
use crate::history::{Asked, Call, Read, Seen, Told};

/// Names of checks.
pub(crate) const ANSWERED: &str = "every request is answered, the excess with Retry-After";
pub(crate) const INSIDE: &str = "no gateway answers that something failed inside";
pub(crate) const ENDS: &str = "SIGTERM ends a process with 0 within 30 s";
pub(crate) const UNDER_WAY: &str = "no request under way fails because of a SIGTERM";

/// SIGTERM has to end a process within this time.
const END_WITHIN: Duration = Duration::from_secs(30);

/// A process that was asked to end.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    pub(crate) node: String,
    /// The gateway's number, if it is one.
    pub(crate) gateway: Option<usize>,
    pub(crate) from_ns: u64,
    /// Exit code and how long it took; `None`: it did not end.
    pub(crate) ended: Option<(Option<i32>, Duration)>,
}

/// 13: every request that reached a gateway is answered by its deadline: 2xx, a refusal of the
/// request, or 429 and 503 with `Retry-After`. 401 and 404 are no answer to a good request.
pub(crate) fn everything_is_answered(calls: &[Call], reads: &[Read]) -> Verdict {
    let mut verdict = Verdict::new(13, ANSWERED);
    for call in calls.iter().filter(|call| call.gateway > 0) {
        let holds = match &call.told {
            Told::Accepted { .. } | Told::Queued => true,
            // By the rules or for its payload: whether rightly so is another check's.
            Told::Refused { status, .. } => matches!(status, 409 | 412 | 422),
            Told::TurnedAway { retry_after, .. } => *retry_after,
            Told::Unknown { status, retry_after, .. } => *status == 503 && *retry_after,
            Told::NotSent | Told::NoAnswer { .. } => false,
        };
        verdict.hold(holds, || format!("{call:?}"));
    }
    for read in reads {
        let holds = match read.seen {
            Seen::Rows(_) | Seen::State { .. } | Seen::Events { .. } => true,
            Seen::Not { status: 429 | 503, retry_after } => retry_after,
            Seen::Not { .. } | Seen::Nothing { .. } => false,
        };
        verdict.hold(holds, || format!("{read:?}"));
    }
    verdict
}

/// 13: whatever fails, an answer says what its client can do. That a request has none, and that a refusal is
/// right, is for other checks.
pub(crate) fn nothing_failed_inside(calls: &[Call], reads: &[Read]) -> Verdict {
    let mut verdict = Verdict::new(13, INSIDE);
    for call in calls.iter().filter(|call| call.gateway > 0) {
        let holds = match call.told {
            Told::NotSent | Told::NoAnswer { .. } => continue,
            Told::Accepted { .. } | Told::Queued => true,
            // It has none of the types that a gateway gives for too much.
            Told::Refused { status, .. } => status != 429,
            Told::TurnedAway { status, retry_after, .. }
            | Told::Unknown { status, retry_after, .. } => {
                status >= 400 && is_of_use(status, retry_after, false)
            }
        };
        verdict.hold(holds, || format!("{call:?}"));
    }
    for read in reads {
        let holds = match read.seen {
            Seen::Nothing { .. } => continue,
            Seen::Rows(_) | Seen::State { .. } | Seen::Events { .. } => true,
            Seen::Not { status, retry_after } => {
                is_of_use(status, retry_after, matches!(read.asked, Asked::Row { .. }))
            }
        };
        verdict.hold(holds, || format!("{read:?}"));
    }
    verdict
}

/// True if an answer of this status says what its client can do. Too much is going on (429), a service is
/// away (503), or the store is full (507): send it again, after `Retry-After`. A query took too long (504):
/// ask for less. Any other 5xx is a fault of ours, and 502 one of a proxy, which is not here.
pub(crate) fn is_of_use(status: u16, retry_after: bool, is_query: bool) -> bool {
    match status {
        429 | 503 | 507 => retry_after,
        504 => is_query,
        status => status < 500,
    }
}

/// 17: a process that is asked to end does so in order: exit code 0, in time.
pub(crate) fn ends_in_order(stops: &[Stop]) -> Verdict {
    let mut verdict = Verdict::new(17, ENDS);
    for stop in stops {
        let holds = matches!(stop.ended, Some((Some(0), took)) if took <= END_WITHIN);
        verdict.hold(holds, || format!("{stop:?}"));
    }
    verdict
}

/// 17: no request that is under way at SIGTERM fails. A later request may meet a closed port.
pub(crate) fn nothing_under_way_fails(stops: &[Stop], calls: &[Call]) -> Verdict {
    let mut verdict = Verdict::new(17, UNDER_WAY);
    for stop in stops {
        let under_way = calls.iter().filter(|call| {
            let here = stop.gateway.is_none_or(|gateway| gateway == call.gateway);
            here && call.gateway > 0 && (call.start_ns..call.end_ns).contains(&stop.from_ns)
        });
        for call in under_way {
            let failed = matches!(call.told, Told::NoAnswer { .. } | Told::Unknown { .. });
            verdict.hold(!failed, || format!("SIGTERM of {}: {call:?}", stop.node));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::example::{accepted, call, story};

    fn shed(retry_after: bool) -> Told {
        Told::TurnedAway { status: 503, code: "overloaded".to_owned(), retry_after }
    }

    fn refused(status: u16) -> Told {
        Told::Refused { status, code: String::new() }
    }

    fn no_answer() -> Told {
        Told::NoAnswer { why: "Timeout".to_owned() }
    }

    #[test]
    fn a_request_without_a_proper_answer_is_found() {
        let unknown = |status| Told::Unknown { status, code: String::new(), retry_after: true };
        for (told, violations) in [
            (accepted(1, 1), 0),
            (shed(true), 0),
            (shed(false), 1),
            (unknown(503), 0),
            (unknown(500), 1),
            (no_answer(), 1),
            (Told::NotSent, 1),
            (refused(409), 0),
            (refused(401), 1),
            (refused(404), 1),
        ] {
            let verdict = everything_is_answered(&[call("k", 10, told.clone())], &[]);
            assert_eq!(verdict.violations.len(), violations, "{told:?}");
        }
        let mut reads = story().reads;
        for (seen, violations) in [
            (Seen::Not { status: 503, retry_after: true }, 0),
            (Seen::Not { status: 503, retry_after: false }, 1),
            (Seen::Not { status: 500, retry_after: false }, 1),
            (Seen::Nothing { why: String::new() }, 1),
            (Seen::Not { status: 401, retry_after: false }, 1),
            (Seen::Not { status: 404, retry_after: false }, 1),
            (Seen::Rows(Vec::new()), 0),
        ] {
            reads[0].seen = seen;
            assert_eq!(everything_is_answered(&[], &reads).violations.len(), violations);
        }
    }

    #[test]
    fn an_answer_that_something_failed_inside_is_found() {
        let unknown =
            |status, retry_after| Told::Unknown { status, code: String::new(), retry_after };
        let full = |retry_after| Told::TurnedAway { status: 507, code: String::new(), retry_after };
        for (told, n, violations) in [
            (accepted(1, 1), 1, 0),
            (refused(404), 1, 0),
            (refused(429), 1, 1),
            (shed(true), 1, 0),
            (shed(false), 1, 1),
            (full(true), 1, 0),
            (full(false), 1, 1),
            (unknown(503, true), 1, 0),
            (unknown(503, false), 1, 1),
            (unknown(500, true), 1, 1),
            (unknown(502, true), 1, 1),
            // No command takes too long: it is not begun then, or nobody knows what comes of it.
            (unknown(504, true), 1, 1),
            // It says that the command was done, and not where.
            (unknown(200, false), 1, 1),
            (no_answer(), 0, 0),
            (Told::NotSent, 0, 0),
        ] {
            let verdict = nothing_failed_inside(&[call("k", 10, told.clone())], &[]);
            assert_eq!((verdict.n, verdict.violations.len()), (n, violations), "{told:?}");
        }
        let stored = Call { gateway: 0, ..call("k", 10, unknown(500, true)) };
        assert_eq!(nothing_failed_inside(&[stored], &[]).n, 0, "the broker's own word");
        let mut read = story().reads.remove(0);
        for (asked, status, retry_after, violations) in [
            (Asked::State, 404, false, 0),
            (Asked::State, 429, true, 0),
            (Asked::State, 429, false, 1),
            (Asked::State, 503, true, 0),
            (Asked::State, 503, false, 1),
            (Asked::State, 500, true, 1),
            (Asked::Events { after: 1 }, 504, false, 1),
            (Asked::Row { least: 1 }, 504, false, 0),
            (Asked::Row { least: 1 }, 500, false, 1),
        ] {
            (read.asked, read.seen) = (asked, Seen::Not { status, retry_after });
            let verdict = nothing_failed_inside(&[], std::slice::from_ref(&read));
            assert_eq!((verdict.n, verdict.violations.len()), (1, violations), "{read:?}");
        }
        read.seen = Seen::Nothing { why: String::new() };
        assert_eq!(nothing_failed_inside(&[], &[read]).n, 0, "that is another check's");
    }

    #[test]
    fn a_process_that_does_not_end_in_order_is_found() {
        let stop =
            |ended| Stop { node: "gateway-1".to_owned(), gateway: Some(1), from_ns: 0, ended };
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(31));
        for (ended, violations) in [
            (Some((Some(0), soon)), 0),
            (Some((Some(1), soon)), 1),
            (Some((None, soon)), 1),
            (Some((Some(0), late)), 1),
            (None, 1),
        ] {
            assert_eq!(ends_in_order(&[stop(ended)]).violations.len(), violations, "{ended:?}");
        }
    }

    #[test]
    fn a_request_that_fails_because_of_sigterm_is_found() {
        let stop = |gateway, from_s: u64| Stop {
            node: "x".to_owned(),
            gateway,
            from_ns: from_s * 1_000_000_000,
            ended: None,
        };
        let calls = [call("k", 10, no_answer())];
        let found = |gateway, from_s: u64| {
            nothing_under_way_fails(&[stop(gateway, from_s)], &calls).violations.len()
        };
        assert_eq!(found(Some(1), 10), 1);
        assert_eq!(found(None, 10), 1, "of a worker");
        assert_eq!(found(Some(2), 10), 0, "another gateway's");
        assert_eq!(found(Some(1), 9), 0, "sent afterwards");
    }
}
