//! Questions of one tenant for decisions, from their place to what came of each.

use std::{slice, sync::Arc, time::Duration};

use flexcore_plugin::contract::{DecisionResult, Question};
use flexcore_resilience::Verdict;
use tokio::time::{Instant, timeout_at};

use crate::{
    calls::{Limit, place_soon, verdict},
    error::PoolError,
    group::Group,
    run::{Broken, CallPlace, Decided},
};

/// What came of a question, for whoever asked.
pub(crate) type Told = Result<DecisionResult, PoolError>;

/// A question, and until when its caller waits.
#[derive(Clone, Debug)]
struct Timed {
    question: Question,
    until: Instant,
}

/// Asks questions of one tenant, each within its own time. Those under which the instance ended are asked once
/// more, by what is in service `now`: a decision has no effect by itself. So are all where it ended under the tenant's
/// configuration. One is only told that the instance ended under it if nothing else was under way there.
pub(crate) async fn decide(
    group: &Group,
    tenant: &str,
    questions: &[(Question, Duration)],
    now: impl Fn() -> Option<Arc<Group>>,
) -> Vec<Told> {
    let longest = questions.iter().map(|(_, within)| *within).max().unwrap_or_default();
    let limit = Limit::of_decisions(longest, group.spec.call_max);
    let began = Instant::now();
    let timed = questions.iter().map(|(question, within)| Timed {
        question: question.clone(),
        until: began + (*within).min(group.spec.call_max),
    });
    let timed: Vec<Timed> = timed.collect();
    let asked = match first(group, tenant, limit, &timed).await {
        // Under the tenant's configuration, before any question.
        Err(Broken { died: true, .. }) => again(group, tenant, limit, &timed, &now).await,
        asked => asked,
    };
    let mut decided = asked.unwrap_or_else(|broken| not_asked(&broken.error, &timed));
    for (one, timed) in decided.iter_mut().zip(&timed) {
        if matches!(one, Err(Broken { died: true, .. })) {
            // By itself, as one of the others may have been what the instance ended under.
            let asked = again(group, tenant, limit, slice::from_ref(timed), &now).await;
            let alone = asked.map(|all| all.into_iter().next());
            *one = alone.and_then(|told| told.unwrap_or_else(|| Err(not_back())));
        }
    }
    decided.into_iter().map(told).collect()
}

/// What came of all questions together, for figures: the first error.
pub(crate) fn summary(told: &[Told]) -> Result<(), PoolError> {
    told.iter().find_map(|one| one.as_ref().err().cloned()).map_or(Ok(()), Err)
}

/// True if none was asked, since no instance takes questions.
pub(crate) fn is_away(told: &[Told]) -> bool {
    told.iter().all(|one| matches!(one, Err(PoolError::Away(_))))
}

async fn first(
    group: &Group,
    tenant: &str,
    limit: Limit,
    timed: &[Timed],
) -> Result<Vec<Decided>, Broken> {
    let place = group.may_call(tenant).and_then(|()| group.place());
    attempt(group, place.map_err(Broken::not_made)?, tenant, limit, timed).await
}

/// After an instance has ended. Where there is no other one in time, or the tenant may not ask any more, nothing has
/// come of them, and they may be asked again later.
async fn again(
    before: &Group,
    tenant: &str,
    limit: Limit,
    timed: &[Timed],
    now: &impl Fn() -> Option<Arc<Group>>,
) -> Result<Vec<Decided>, Broken> {
    // Where the death was one too many for this tenant, it is not tried again.
    before.may_call(tenant).map_err(Broken::not_made)?;
    match timeout_at(limit.until(), place_soon(before, now)).await {
        Ok(Some((group, place))) => attempt(&group, place, tenant, limit, timed).await,
        Ok(None) | Err(_) => Err(not_back()),
    }
}

fn not_back() -> Broken {
    let why = "it ended while it decided, and is not back in time";
    Broken::not_made(PoolError::Away(why.to_owned()))
}

fn not_asked(error: &PoolError, timed: &[Timed]) -> Vec<Decided> {
    timed.iter().map(|_| Err(Broken::not_made(error.clone()))).collect()
}

/// Asks all of them. Fails where none was asked.
async fn attempt(
    group: &Group,
    place: CallPlace,
    tenant: &str,
    limit: Limit,
    timed: &[Timed],
) -> Result<Vec<Decided>, Broken> {
    let left = limit.left().map_err(|_| Broken::no_time())?;
    place.configured(tenant, left, group.on_death(tenant)).await?;
    let admitted = group.admit(tenant).map_err(Broken::not_made)?;
    let now = Instant::now();
    let asked = timed
        .iter()
        .map(|Timed { question, until }| (question.clone(), until.saturating_duration_since(now)));
    let decided = place.decide(tenant, asked.collect(), || group.on_death(tenant)).await;
    admitted.leave(verdict_of_all(&decided, limit));
    Ok(decided)
}

/// What the answers say of the plugin together: one that is its fault counts.
fn verdict_of_all(decided: &[Decided], limit: Limit) -> Verdict {
    let verdicts: Vec<Verdict> = decided.iter().map(|one| verdict(one, limit)).collect();
    let whole = [Verdict::Failure, Verdict::Success].into_iter().find(|of| verdicts.contains(of));
    whole.unwrap_or(Verdict::Neutral)
}

/// Without an answer nothing was done. So [`PoolError::Unknown`] only stands for a question under which the
/// instance ended, twice by now, and the last time under nothing else: that is the question's fault.
fn told(one: Decided) -> Told {
    one.map_err(|Broken { error, died, .. }| match error {
        PoolError::Unknown(why) if !died => PoolError::Away(format!("it gave no answer: {why}")),
        error => error,
    })
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::Events;

    use super::*;

    fn limit() -> Limit {
        Limit::of_decisions(Duration::from_secs(2), Duration::from_secs(30))
    }

    fn broken(error: PoolError, died: bool, is_fault: bool) -> Decided {
        Err(Broken { error, died, is_fault })
    }

    fn events() -> Decided {
        Ok(DecisionResult::Events(Events::default()))
    }

    #[test]
    fn one_fault_among_the_answers_counts_against_the_plugin() {
        let unreached = || broken(PoolError::Unknown("gone".to_owned()), false, true);
        let away = || broken(PoolError::Away("it starts".to_owned()), false, false);
        let of = |decided: &[Decided]| verdict_of_all(decided, limit());
        assert_eq!(of(&[events(), unreached(), events()]), Verdict::Failure);
        assert_eq!(of(&[away(), events()]), Verdict::Success);
        assert_eq!(of(&[away(), away()]), Verdict::Neutral);
        assert_eq!(of(&[]), Verdict::Neutral);
    }

    #[test]
    fn a_question_without_an_answer_may_be_asked_again_unless_it_kills() {
        let gone = || PoolError::Unknown("gone".to_owned());
        assert!(matches!(told(broken(gone(), false, true)), Err(PoolError::Away(_))));
        assert_eq!(told(broken(gone(), true, false)), Err(gone()));
        assert_eq!(told(broken(PoolError::Late, false, true)), Err(PoolError::Late));
        assert!(told(events()).is_ok());
    }
}
