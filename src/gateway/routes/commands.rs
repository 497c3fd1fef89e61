//! Commands: sent and waited for, or queued and asked for later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::connection;
use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::Bytes;
use flexcore_auth::Identity;
use flexcore_definition::Catalog;
use flexcore_domain::{
    AggregateId, AggregateKey, AggregateName, CommandId, CommandName, Outcome, Position,
    Provenance, Tenant, Vouched, command::header as field, json, limits::PAYLOAD_BYTES_MAX,
};
use flexcore_eventstore::{self as eventstore, catalog::is_reserved};
use flexcore_resilience::{Backoff, Deadline, HeldPlace};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::{JSON, answer, etag};
use crate::{
    error::{self, Problem},
    extract::{self, Call, Preferences},
    limits, problems,
    question::Question,
    secret::heed,
    shared::Shared,
};

pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Pauses between two looks at a queued command's outcome.
const LOOKS: Backoff =
    Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(500) };

/// What is answered to a command that was accepted.
#[derive(Serialize)]
struct Accepted<'a> {
    version: u64,
    position: Option<Position>,
    command_id: &'a CommandId,
    replayed: bool,
}

/// What is answered about a command by its id.
#[derive(Serialize)]
struct About<'a> {
    command_id: &'a CommandId,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// A command as its sender asks for it, read from everything but the body.
struct Asked {
    key: AggregateKey,
    name: CommandName,
    id: CommandId,
    /// The version that the aggregate must have.
    expected: Option<u64>,
    preferences: Preferences,
    deadline: Deadline,
    /// As they go to whoever takes the command up.
    headers: async_nats::HeaderMap,
}

impl Asked {
    fn read(call: &Call) -> Result<Self, Problem> {
        let key = call.key()?;
        let name = call.name("command", CommandName::parse)?;
        call.parameters()?.finish(&[])?;
        let id = extract::idempotency_key(&call.headers)?.unwrap_or_else(new_id);
        let expected = extract::if_match(&call.headers)?;
        let preferences = extract::preferences(&call.headers);
        let deadline = extract::deadline(&call.headers)?;
        let headers = headers(call, expected)?;
        Ok(Self { key, name, id, expected, preferences, deadline, headers })
    }

    /// Seals that the bearer of the token sends it: nobody else can say so to a worker.
    fn vouch(&mut self, shared: &Shared, identity: &Identity, payload: &[u8]) {
        let Some(secret) = shared.store.secret() else { return };
        let Self { key, name, id, .. } = &*self;
        let actor = identity.subject.as_str();
        let seal = Vouched { actor, key, name, id, payload }.seal(&secret);
        self.headers.insert(field::ACTOR_SEAL, seal);
    }

    /// Whoever sent no key must learn it, to be able to repeat the command.
    fn with_key(&self, problem: Problem) -> Problem {
        problem.header(IDEMPOTENCY_KEY, value(self.id.as_str()))
    }
}

/// `POST /v1/commands/{aggregate}/{id}/{command}`
pub(crate) async fn send(
    State(shared): State<Arc<Shared>>,
    mut call: Call,
) -> Result<Response, Problem> {
    let mut asked = Asked::read(&call)?;
    if is_reserved(&asked.key) {
        return Err(super::aggregates::reserved(&shared.catalog()));
    }
    let _places = match places(&shared, &asked) {
        Ok(places) => places,
        Err(problem) => {
            return Err(shared.admission.refuse(call.tenant(), problem, asked.deadline).await);
        }
    };
    let payload = call.json_body(PAYLOAD_BYTES_MAX).await?;
    let turn = shared.admission.turn(call.tenant(), asked.deadline).await?;
    json::check(&payload).map_err(|violations| {
        Problem::new(&problems::MALFORMED_JSON, "errors says where it goes wrong")
            .with("errors", error::violations_json(&violations))
    })?;
    asked.vouch(&shared, call.identity(), &payload);
    if asked.preferences.respond_async {
        known(&shared.catalog(), &asked)?;
        let stored = enqueue(&shared, &asked, payload).await;
        drop(turn);
        return match stored {
            Ok(sequence) => Ok(queued(&shared, &asked, sequence).await),
            Err(problem) => {
                let refused = shared.admission.refuse(call.tenant(), problem, asked.deadline);
                Err(asked.with_key(refused.await))
            }
        };
    }
    do_now(&shared, &asked, payload).await.map_err(|problem| asked.with_key(problem))
}

/// Has the slot's owner do the command, and answers what came of it.
async fn do_now(shared: &Shared, asked: &Asked, payload: Bytes) -> Result<Response, Problem> {
    let mut headers = asked.headers.clone();
    headers.insert(field::COMMAND_ID, asked.id.as_str());
    let deadline = match shared.store.check_room() {
        Ok(()) => asked.deadline,
        Err(_) => {
            Deadline::after(asked.deadline.remaining(Instant::now()).min(limits::FULL_TIMEOUT))
        }
    };
    let question = Question::command(&asked.key, &asked.name, headers, payload, deadline);
    let outcome = question.ask(shared).await.map_err(|problem| or_full(shared, problem))?;
    heed(shared, &outcome).await;
    accepted(outcome, asked)
}

/// Where nobody has taken a command up, and the broker cannot write, that is why: no worker can keep its
/// lease then.
fn or_full(shared: &Shared, problem: Problem) -> Problem {
    match shared.store.check_room() {
        Err(full) if problem.is(&problems::UNAVAILABLE) => full.into(),
        _ => problem,
    }
}

/// The places that a command takes. The queue has room for what an aggregate cannot take at once.
fn places(
    shared: &Shared,
    asked: &Asked,
) -> Result<(HeldPlace<Tenant>, Option<HeldPlace<AggregateKey>>), Problem> {
    let place = shared.admission.command(asked.key.tenant())?;
    let waits = !asked.preferences.respond_async;
    let of_aggregate = waits.then(|| shared.admission.aggregate(&asked.key)).transpose()?;
    Ok((place, of_aggregate))
}

/// `GET /v1/commands/{command_id}?aggregate=&id=`
pub(crate) async fn outcome(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let id = call.name("command_id", CommandId::parse)?;
    let mut parameters = call.parameters()?;
    let missing = || {
        let detail = "aggregate and id say which aggregate the command is for";
        Problem::new(&problems::INVALID_PARAMETER, detail)
    };
    let aggregate = AggregateName::parse(&parameters.take("aggregate")?.ok_or_else(missing)?)?;
    let aggregate_id = AggregateId::parse(&parameters.take("id")?.ok_or_else(missing)?)?;
    parameters.finish(&["aggregate", "id"])?;
    let deadline = extract::deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let _turn = shared.admission.turn(call.tenant(), deadline).await?;
    let key = AggregateKey::new(call.tenant().clone(), aggregate, aggregate_id);
    let outcome = Question::outcome(&key, &id, None, deadline).ask(&shared).await?;
    heed(&shared, &outcome).await;
    match outcome {
        refused @ (Outcome::Overloaded { .. } | Outcome::Unknown) => {
            Err(error::refused(refused, false))
        }
        Outcome::Unavailable { message } => Err(Problem::unavailable(&message)),
        outcome => Ok(about(&id, &outcome)),
    }
}

/// The id of a command whose sender gives none.
pub(super) fn new_id() -> CommandId {
    CommandId::parse(&Uuid::now_v7().to_string()).expect("BUG: a UUID is a command id")
}

/// The value of a header that names something.
pub(super) fn value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).expect("BUG: names are ASCII")
}

fn accepted(outcome: Outcome, asked: &Asked) -> Result<Response, Problem> {
    let Outcome::Accepted { version, position, replayed } = outcome else {
        return Err(error::refused(outcome, asked.expected.is_some()));
    };
    let body = Accepted { version, position, command_id: &asked.id, replayed };
    let body = serde_json::to_vec(&body).expect("BUG: numbers and names serialise");
    let mut response = answer(StatusCode::OK, JSON, body);
    response.headers_mut().insert(header::ETAG, etag(version));
    response.headers_mut().insert(IDEMPOTENCY_KEY, value(asked.id.as_str()));
    Ok(response)
}

fn headers(call: &Call, expected: Option<u64>) -> Result<async_nats::HeaderMap, Problem> {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(field::ACTOR, call.identity().subject.as_str());
    headers.insert(field::TRACEPARENT, call.trace().as_str());
    if let Some(version) = expected {
        headers.insert(field::EXPECTED_VERSION, version.to_string());
    }
    for id in Provenance::IDS {
        // HTTP knows no upper case in these names, and NATS does.
        let name = HeaderName::try_from(id).expect("BUG: a name of a header");
        if let Some(text) = extract::single(&call.headers, &name)? {
            headers.insert(id, CommandId::parse(text)?.as_str());
        }
    }
    Ok(headers)
}

/// A queued command that cannot be meant for anything is refused while its sender is there.
fn known(catalog: &Catalog, asked: &Asked) -> Result<(), Problem> {
    let Some(aggregate) = catalog.aggregate(asked.key.aggregate().as_str()) else {
        return Err(super::aggregates::unknown(catalog));
    };
    if aggregate.commands.contains_key(&asked.name) {
        return Ok(());
    }
    let known = aggregate.commands.keys().map(ToString::to_string).collect();
    Err(error::refused(Outcome::UnknownCommand { known }, false))
}

/// Stores a command in the queue, again while the broker is away: the same id is recognised. Returns its
/// sequence there. Fails with "unavailable" when no attempt was sent, with what the broker said when it has
/// stored none, and else without knowing whether it is stored.
async fn enqueue(shared: &Shared, asked: &Asked, payload: Bytes) -> Result<u64, Problem> {
    // Of an attempt without an answer: it may be stored.
    let in_doubt = AtomicBool::new(false);
    let publish = |_| {
        let connected = shared.store.client().connection_state() == connection::State::Connected;
        let (headers, payload) = (asked.headers.clone(), payload.clone());
        let in_doubt = &in_doubt;
        async move {
            if !connected {
                let reason = "not connected to the broker".to_owned();
                return Err(eventstore::Error::Unavailable(reason));
            }
            let before = in_doubt.swap(true, Ordering::Relaxed);
            let sent =
                shared.publisher.publish(&asked.key, &asked.name, &asked.id, headers, payload);
            let stored = sent.await;
            if let Err(
                eventstore::Error::NoRoom(_)
                | eventstore::Error::TooMuch(_)
                | eventstore::Error::TooLarge(_),
            ) = &stored
            {
                in_doubt.store(before, Ordering::Relaxed);
            }
            stored
        }
    };
    let again = |error: &eventstore::Error| matches!(error, eventstore::Error::Unavailable(_));
    let stored = shared.queue.run(asked.deadline, again, publish).await;
    stored.map_err(|error| match in_doubt.load(Ordering::Relaxed) {
        true => Problem::outcome_unknown(&error),
        false => error.into(),
    })
}

/// 202 with the place to ask at; 200 when the outcome comes within the time to wait. An earlier command of the
/// same id may have another outcome than the one that has this sequence in the queue.
async fn queued(shared: &Shared, asked: &Asked, sequence: u64) -> Response {
    let Asked { key, id, preferences: Preferences { wait, .. }, .. } = asked;
    let mut outcome = Outcome::Pending;
    if let Some(wait) = *wait {
        let (end, mut looks) = (Instant::now() + wait, 0);
        while matches!(outcome, Outcome::Pending | Outcome::Unavailable { .. })
            && Instant::now() < end
        {
            looks += 1;
            tokio::time::sleep_until((Instant::now() + LOOKS.after(looks)).min(end)).await;
            // The command is stored: a question that fails is only a question.
            let deadline = Deadline::after(limits::ANSWER_TIMEOUT);
            let known = Question::outcome(key, id, Some(sequence), deadline).ask(shared).await;
            outcome = known.unwrap_or(Outcome::Pending);
            heed(shared, &outcome).await;
        }
        if matches!(
            outcome,
            Outcome::Unavailable { .. } | Outcome::Overloaded { .. } | Outcome::Unknown
        ) {
            outcome = Outcome::Pending;
        }
    }
    let mut response = about(id, &outcome);
    let location = format!("/v1/commands/{id}?aggregate={}&id={}", key.aggregate(), key.id());
    let applied = match wait {
        Some(wait) => format!("respond-async, wait={}", wait.as_secs()),
        None => "respond-async".to_owned(),
    };
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(&location));
    headers.insert(HeaderName::from_static("preference-applied"), value(&applied));
    headers.insert(IDEMPOTENCY_KEY, value(id.as_str()));
    response
}

fn about(id: &CommandId, outcome: &Outcome) -> Response {
    let body = serde_json::to_vec(&About { command_id: id, outcome });
    let body = body.expect("BUG: an outcome serialises");
    if matches!(outcome, Outcome::Pending) {
        let mut response = answer(StatusCode::ACCEPTED, JSON, body);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return response;
    }
    answer(StatusCode::OK, JSON, body)
}
