//! Questions for decisions of one plugin: taken while it is ready and says that it decides, and answered. Those in
//! one message are of one tenant.

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use flexcore_domain::{
    PluginRefusal, Tenant,
    plugin::decisions::{
        DECISIONS_BYTES_MAX, QUESTION_BYTES_MAX, QUESTIONS_MAX, header, host_code,
    },
};
use flexcore_plugin::contract::{
    DecideRequest, DecideResponse, Decision, DecisionResult, Failure, Question,
};
use flexcore_pool::PoolError;
use flexcore_resilience::HeldPlace;
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::{Calls, leave};

/// What stands around a decision in a reply, in bytes: a tag and a length.
const AROUND_BYTES: usize = 8;

/// Room that is kept in a reply for each decision that follows: more than a failure of [`host_code::ALONE`] takes.
const KEPT_BYTES: usize = 128;

/// A question waits for a place of its tenant's for one of so many parts of its time. 4: what is left for the plugin is
/// nearly what whoever asks takes to be enough.
const WAIT_PARTS: u32 = 4;

/// Questions as they came.
#[derive(Debug)]
struct Asked {
    number: u64,
    tenant: Tenant,
    /// Each with its time.
    questions: Vec<(Question, Duration)>,
}

/// No decisions, and why.
#[derive(Debug)]
struct Refused(PluginRefusal, String);

/// Answers a message with questions.
pub(super) fn receive(calls: &Calls, message: Message, tasks: &TaskTracker) {
    let Some(to) = crate::inbox(&message) else { return };
    let calls = calls.clone();
    tasks.spawn(async move {
        let mut headers = HeaderMap::new();
        let body = match reply(&calls, &message.payload).await {
            Ok(decisions) => decisions,
            Err(Refused(refusal, why)) => {
                headers.insert(header::REFUSAL, refusal.word());
                Bytes::from(why)
            }
        };
        // The sender learns from its own timeout when the connection is gone.
        let _ = calls.store.client().publish_with_headers(to, headers, body).await;
    });
}

async fn reply(calls: &Calls, body: &Bytes) -> Result<Bytes, Refused> {
    let (in_force, came) = (calls.now(), Instant::now());
    let Asked { number, tenant, questions } = read(body, in_force.installed.manifest.call)?;
    if !in_force.is_for(&tenant) {
        let why = format!("the plugin {} is not for the tenant {tenant}", calls.name);
        return Err(Refused(PluginRefusal::NotForTenant, why));
    }
    // A span has one parent. The plugin is told each question's own.
    let span =
        tracing::info_span!("plugin decisions", otel.kind = "consumer", plugin = %calls.name);
    let context = questions.first().and_then(|(question, _)| question.context.as_ref());
    flexcore_telemetry::link(&span, context.map_or("", |context| &context.traceparent));
    let shortest = questions.iter().map(|(_, within)| *within).min().unwrap_or_default();
    // Whoever asks has few messages under way, so that few wait here.
    let waited = timeout(shortest / WAIT_PARTS, in_force.places.wait(&tenant)).await;
    let place = waited.map_err(|_| {
        let why = "the tenant has as much under way at the plugin as it may have";
        Refused(PluginRefusal::Busy, why.to_owned())
    })?;
    let left = |(question, within): (Question, Duration)| {
        (question, within.saturating_sub(came.elapsed()))
    };
    let questions: Vec<(Question, Duration)> = questions.into_iter().map(left).collect();
    let asked = calls.pool.decide(tenant.as_str(), &questions);
    let decided = tracing::Instrument::instrument(asked, span).await;
    leave_after(place, &questions, &decided);
    if decided.iter().all(|one| matches!(one, Err(PoolError::Busy))) {
        return Err(Refused(PluginRefusal::Busy, PoolError::Busy.to_string()));
    }
    Ok(response(number, decided).encode_to_vec().into())
}

/// Gives a tenant's place back when none of the questions is under way any more: late ones may run on for a while.
fn leave_after(
    place: HeldPlace<Tenant>,
    questions: &[(Question, Duration)],
    decided: &[Result<DecisionResult, PoolError>],
) {
    let late = questions.iter().zip(decided).filter(|(_, one)| **one == Err(PoolError::Late));
    if let Some(within) = late.map(|((_, within), _)| *within).min() {
        leave::<DecisionResult>(Arc::new(place), within, &Err(PoolError::Late));
    }
}

/// Reads questions of which each has so long at most.
fn read(body: &[u8], call_max: Duration) -> Result<Asked, Refused> {
    let invalid = |why: String| Refused(PluginRefusal::InvalidInput, why);
    if body.len() > QUESTION_BYTES_MAX {
        let why =
            format!("questions of {} bytes; at most {QUESTION_BYTES_MAX} are taken", body.len());
        return Err(Refused(PluginRefusal::TooLarge, why));
    }
    let request = DecideRequest::decode(body)
        .map_err(|error| invalid(format!("the questions cannot be read: {error}")))?;
    let count = request.questions.len();
    if count == 0 || count > QUESTIONS_MAX {
        return Err(invalid(format!("{count} questions; 1 to {QUESTIONS_MAX} are taken")));
    }
    let mut tenants = request
        .questions
        .iter()
        .map(|question| question.context.as_ref().map_or("", |context| context.tenant.as_str()));
    let tenant = tenants.next().unwrap_or_default();
    if tenants.any(|other| other != tenant) {
        return Err(invalid("the questions are of several tenants".to_owned()));
    }
    let tenant = Tenant::parse(tenant).map_err(|error| invalid(format!("the tenant: {error}")))?;
    let timed = |question: Question| {
        let timeout_ms = question.context.as_ref().map_or(0, |context| context.timeout_ms);
        (question, Duration::from_millis(timeout_ms).min(call_max))
    };
    let questions = request.questions.into_iter().map(timed).collect();
    Ok(Asked { number: request.number, tenant, questions })
}

/// The decisions as they fit into a message. Those for which there is no room are to be asked for alone.
fn response(number: u64, decided: Vec<Result<DecisionResult, PoolError>>) -> DecideResponse {
    let (count, mut used) = (decided.len(), AROUND_BYTES * 2);
    let mut decisions = Vec::with_capacity(count);
    for (at, one) in decided.into_iter().enumerate() {
        let decision = Decision { result: Some(taken(one)) };
        let (bytes, kept) = (decision.encoded_len() + AROUND_BYTES, (count - at - 1) * KEPT_BYTES);
        let decision = if used + bytes + kept <= DECISIONS_BYTES_MAX {
            decision
        } else if count == 1 {
            let why =
                format!("a decision of {bytes} bytes; at most {DECISIONS_BYTES_MAX} are accepted");
            failed(Failure::new(host_code::FAULTY, why))
        } else {
            failed(Failure::passing(host_code::ALONE, "no room beside others"))
        };
        used += decision.encoded_len() + AROUND_BYTES;
        decisions.push(decision);
    }
    DecideResponse { number, decisions }
}

fn failed(failure: Failure) -> Decision {
    Decision { result: Some(DecisionResult::Failure(failure)) }
}

/// Without details: nobody reads them, and they are large.
fn taken(one: Result<DecisionResult, PoolError>) -> DecisionResult {
    let bare = |failure: Failure| Failure { details: Bytes::new(), ..failure };
    match one {
        Ok(DecisionResult::Rejected(failure)) => DecisionResult::Rejected(bare(failure)),
        Ok(DecisionResult::Failure(failure)) => DecisionResult::Failure(bare(failure)),
        Ok(events) => events,
        Err(error) => DecisionResult::Failure(of_error(&error)),
    }
}

/// What the pool says, in the worker's words.
fn of_error(error: &PoolError) -> Failure {
    let message = error.to_string();
    match error {
        PoolError::Busy | PoolError::Away(_) => Failure::passing(host_code::AWAY, message),
        // While calls of the tenant are refused, and where the plugin does not take its configuration.
        PoolError::Failed(failure) if failure.temporary => {
            Failure::passing(host_code::AWAY, message)
        }
        PoolError::Late => Failure::new(host_code::LATE, message),
        PoolError::Unknown(_) => {
            let why = format!("the plugin ended under the question, and once more: {message}");
            Failure::new(host_code::ENDED, why)
        }
        PoolError::UnknownFunction => {
            Failure::new(host_code::FAULTY, "it says that it decides, and does not")
        }
        PoolError::Failed(_) | PoolError::TooLarge | PoolError::Faulty(_) => {
            Failure::new(host_code::FAULTY, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::contract::{Context, Event, Events};
    use flexcore_pool::LINGER_MIN;
    use flexcore_resilience::Shares;

    use super::*;

    const CALL_MAX: Duration = Duration::from_secs(30);

    fn question(tenant: &str, timeout_ms: u64) -> Question {
        let context = Context { tenant: tenant.to_owned(), timeout_ms, ..Context::default() };
        Question { context: Some(context), ..Question::default() }
    }

    fn body(questions: Vec<Question>) -> Vec<u8> {
        DecideRequest { number: 7, questions }.encode_to_vec()
    }

    fn events(bytes: usize) -> Result<DecisionResult, PoolError> {
        let event = Event { event: "e".to_owned(), data: vec![b' '; bytes].into() };
        Ok(DecisionResult::Events(Events { events: vec![event] }))
    }

    /// The code of each failure; empty: it is none.
    fn codes(response: &DecideResponse) -> Vec<&str> {
        fn code(decision: &Decision) -> &str {
            match &decision.result {
                Some(DecisionResult::Failure(failure)) => &failure.code,
                _ => "",
            }
        }
        response.decisions.iter().map(code).collect()
    }

    #[test]
    fn questions_of_one_tenant_are_read_and_no_others() {
        let asked =
            read(&body(vec![question("acme", 1_900), question("acme", 90_000)]), CALL_MAX).unwrap();
        assert_eq!((asked.number, asked.tenant.as_str()), (7, "acme"));
        let times: Vec<Duration> = asked.questions.iter().map(|(_, within)| *within).collect();
        assert_eq!(times, [Duration::from_millis(1_900), CALL_MAX]);
        let many = body(vec![question("acme", 1); QUESTIONS_MAX + 1]);
        assert!(read(&body(vec![question("acme", 1); QUESTIONS_MAX]), CALL_MAX).is_ok());
        for (wrong, expected) in [
            (body(vec![]), PluginRefusal::InvalidInput),
            (many, PluginRefusal::InvalidInput),
            (body(vec![question("acme", 1), question("globex", 1)]), PluginRefusal::InvalidInput),
            (body(vec![question("", 1)]), PluginRefusal::InvalidInput),
            (body(vec![Question::default()]), PluginRefusal::InvalidInput),
            (vec![0xff; 8], PluginRefusal::InvalidInput),
            (vec![0; QUESTION_BYTES_MAX + 1], PluginRefusal::TooLarge),
        ] {
            let Refused(refusal, why) = read(&wrong, CALL_MAX).unwrap_err();
            assert_eq!(refusal, expected, "{why}");
        }
    }

    /// A tenant whose questions were late had others in their place at once, beside which they ran on.
    #[tokio::test]
    async fn late_questions_that_run_on_keep_their_tenants_place() {
        let (places, rest) = (Shares::new(2, 1), Duration::from_millis(50));
        let (tenant, short) = (Tenant::parse("acme").unwrap(), LINGER_MIN.saturating_sub(rest));
        let asked = |withins: [Duration; 2]| withins.map(|within| (question("acme", 1), within));
        let late = || Err(PoolError::Late);
        for (withins, decided, is_kept) in [
            ([short; 2], [events(2), events(2)], false),
            ([LINGER_MIN; 2], [late(), late()], false),
            ([short, LINGER_MIN], [events(2), late()], false),
            ([LINGER_MIN, short], [late(), late()], true),
        ] {
            let place = places.enter(&tenant).unwrap();
            leave_after(place, &asked(withins), &decided);
            assert_eq!(places.enter(&tenant).is_none(), is_kept, "{withins:?} {decided:?}");
        }
        tokio::time::sleep(rest * 4).await;
        assert!(places.enter(&tenant).is_some());
    }

    #[test]
    fn decisions_fit_a_message_whatever_the_plugin_says() {
        let largest = || events(DECISIONS_BYTES_MAX / 2);
        let reply = response(1, vec![largest(), largest(), events(2), events(3)]);
        assert_eq!(codes(&reply), ["", host_code::ALONE, "", ""]);
        assert!(reply.encoded_len() <= DECISIONS_BYTES_MAX);
        let alone = response(1, vec![events(DECISIONS_BYTES_MAX)]);
        assert_eq!(codes(&alone), [host_code::FAULTY]);
        let all = response(1, (0..QUESTIONS_MAX).map(|_| events(DECISIONS_BYTES_MAX)).collect());
        assert!(codes(&all).iter().all(|code| *code == host_code::ALONE), "{all:?}");
        let large = Failure {
            details: vec![b' '; 64 * 1024].into(),
            ..Failure::new("no", "x".repeat(4 * 1024))
        };
        let large = |_| Ok(DecisionResult::Failure(large.clone()));
        let all = response(1, (0..QUESTIONS_MAX).map(large).collect());
        assert!(codes(&all).iter().all(|code| *code == "no"));
        assert!(all.encoded_len() <= DECISIONS_BYTES_MAX, "{}", all.encoded_len());
    }

    #[test]
    fn what_may_pass_is_told_as_such() {
        let code = |error: PoolError| {
            let failure = of_error(&error);
            (failure.code, failure.temporary)
        };
        let passing = PoolError::Failed(Failure::passing("ended_under_calls", "x"));
        let away = (host_code::AWAY.to_owned(), true);
        for error in [PoolError::Busy, PoolError::Away("x".to_owned()), passing] {
            assert_eq!(code(error), away);
        }
        for (error, word) in [
            (PoolError::Late, host_code::LATE),
            (PoolError::Unknown("x".to_owned()), host_code::ENDED),
            (PoolError::UnknownFunction, host_code::FAULTY),
            (PoolError::TooLarge, host_code::FAULTY),
            (PoolError::Faulty("x".to_owned()), host_code::FAULTY),
            (PoolError::Failed(Failure::new("unconfigured", "x")), host_code::FAULTY),
        ] {
            assert_eq!(code(error), (word.to_owned(), false));
        }
    }
}
