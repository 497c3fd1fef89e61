//! A call of a plugin's function for an event, and what its reply means for the rows.

use std::time::Duration;

use async_nats::{Client, HeaderMap, Request, RequestErrorKind, connection};
use flexcore_definition::Transform;
use flexcore_domain::{
    Event, Hash, PluginRefusal, PluginReply,
    command::header as field,
    plugin::{INPUT_BYTES_MAX, call_subject, header},
};
use flexcore_eventstore::Recorded;
use flexcore_readmodel::Transformed;
use flexcore_resilience::{self as resilience, Deadline};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use crate::projection::waiting::Call;

/// On whose behalf plugins are called.
const ACTOR: &str = "projection";
/// The time that a plugin has for an event. 5 s: the rows of all tenants wait meanwhile, so that one tenant's slow
/// events must not take long. An answer after that is late.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// The time that its worker has: the worker says itself that a plugin was late.
const ANSWERED_WITHIN: Duration = CALL_WITHIN.saturating_add(Duration::from_secs(1));
/// Characters of what a plugin says, in a reason.
const SAID_CHARS_MAX: usize = 400;

/// How reasons begin for which events are parked.
const STEP: &str = "transform";

/// What came of a call.
#[derive(Debug)]
pub(super) enum Came {
    /// This is read in place of the event's data.
    Data(Box<RawValue>),
    /// The plugin has none, and won't have: the event is parked with this reason.
    Nothing(String),
    /// It ended under the call, or was late: that may be the event's fault, or not.
    Ended(String),
    /// It says that it fails for now, or none of its tenant's calls is made for now: that may be this tenant's trouble
    /// alone, or not.
    Failing(String),
    /// Too much is under way there.
    Busy(String),
    /// There is none for now, for this reason.
    Away(String),
}

/// What a function gets.
#[derive(Serialize)]
struct Input<'a> {
    aggregate: &'a str,
    id: &'a str,
    event: &'a str,
    /// Of the event's schema.
    version: u32,
    time_ms: i64,
    data: &'a RawValue,
}

/// Makes the call for an event, the nth of its commit, with these data. Fails with the reason for which the event is
/// parked.
pub(super) fn prepare(
    transformed: &Transformed,
    recorded: &Recorded,
    (nth, event): (usize, &Event),
    data: &RawValue,
) -> Result<Call, String> {
    let (commit, transform) = (&recorded.commit, &transformed.transform);
    let input = Input {
        aggregate: commit.key.aggregate().as_str(),
        id: commit.key.id().as_str(),
        event: event.event.as_str(),
        version: transformed.version.unwrap_or(event.schema_version),
        time_ms: commit.time_ms,
        data,
    };
    let input =
        serde_json::to_vec(&input).map_err(|error| parked(transform, &error.to_string()))?;
    if input.len() > INPUT_BYTES_MAX {
        let bytes = input.len();
        let why = format!("an input of {bytes} bytes; at most {INPUT_BYTES_MAX} are accepted");
        return Err(parked(transform, &why));
    }
    let Some(subject) = call_subject(&transform.plugin, &transform.function) else {
        return Err(parked(transform, "this is no name of a function"));
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::TENANT, commit.key.tenant().as_str());
    headers.insert(header::VERSION, transform.version.as_str());
    headers.insert(field::ACTOR, ACTOR);
    headers.insert(field::OWN_COMMAND_ID, &*key(recorded, nth, &transformed.fingerprint));
    if let Some(trace) = &commit.provenance.traceparent {
        headers.insert(field::TRACEPARENT, trace.as_str());
    }
    Ok(Call { subject, headers, input: input.into() })
}

/// The call's idempotency key: the same whenever, and by whomever, this event is read. The commit's hash stands for
/// all that came before it, so that no other log has it.
fn key(recorded: &Recorded, nth: usize, fingerprint: &Hash) -> String {
    Hash::chain(&recorded.hash, format!("{nth}/{fingerprint}").as_bytes()).to_string()
}

/// Has one of the workers call the function.
pub(super) async fn make(client: &Client, call: Call, transform: &Transform) -> Came {
    if client.connection_state() != connection::State::Connected {
        return Came::Away(away(transform, "there is no connection to the broker"));
    }
    let Call { subject, mut headers, input } = call;
    let now = Instant::now();
    let left = Deadline::at(now, CALL_WITHIN).encode(now).unwrap_or_else(|| "1".to_owned());
    headers.insert(resilience::HEADER, &*left);
    let request = Request::new().headers(headers).payload(input).timeout(Some(ANSWERED_WITHIN));
    let error = match client.send_request(subject, request).await {
        Ok(answer) => return came_of(&answer.payload, transform),
        Err(error) => error,
    };
    match error.kind() {
        RequestErrorKind::NoResponders => Came::Away(away(
            transform,
            "no worker runs it now: install it with `flexcore plugin install`, or see \
             `flexcore plugin list`",
        )),
        RequestErrorKind::TimedOut => Came::Away(away(transform, "there was no answer in time")),
        RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
            Came::Nothing(parked(transform, &error.to_string()))
        }
        RequestErrorKind::Other => Came::Away(away(transform, &error.to_string())),
    }
}

fn came_of(answer: &[u8], transform: &Transform) -> Came {
    let reply: PluginReply = match serde_json::from_slice(answer) {
        Ok(reply) => reply,
        // Of a worker of another version, perhaps.
        Err(error) => {
            let why = format!("its worker's answer cannot be read: {error}");
            return Came::Away(away(transform, &why));
        }
    };
    match reply {
        PluginReply::Output(output) if output.get().trim_start().starts_with('{') => {
            Came::Data(output)
        }
        PluginReply::Output(_) => Came::Nothing(parked(transform, "what it returned is no object")),
        PluginReply::Failed { code, message, temporary, .. } => {
            let why = format!("{code}: {message}");
            match temporary {
                true => Came::Failing(away(transform, &why)),
                false => Came::Nothing(parked(transform, &why)),
            }
        }
        PluginReply::Refused { refusal, message } => refused(refusal, &message, transform),
    }
}

fn refused(refusal: PluginRefusal, message: &str, transform: &Transform) -> Came {
    match refusal {
        PluginRefusal::InvalidInput
        | PluginRefusal::TooLarge
        | PluginRefusal::NotForTenant
        | PluginRefusal::Faulty => Came::Nothing(parked(transform, message)),
        PluginRefusal::Busy => Came::Busy(away(transform, message)),
        PluginRefusal::OtherVersion => {
            let wanted = &transform.version;
            let what = format!(
                "{message}; install {wanted} again, or deploy the read model with the version that is \
                 installed: it is built anew then"
            );
            Came::Away(away(transform, &what))
        }
        PluginRefusal::UnknownFunction => {
            let what = format!("{message}; deploy the read model with one that it has");
            Came::Away(away(transform, &what))
        }
        PluginRefusal::NotInstalled | PluginRefusal::Away => {
            let what = format!("{message}; see `flexcore plugin list`");
            Came::Away(away(transform, &what))
        }
        PluginRefusal::Late | PluginRefusal::Unknown => {
            let what = format!("{message}; see `flexcore plugin list`");
            Came::Ended(away(transform, &what))
        }
    }
}

/// Why an event has no data, in a sentence.
fn parked(transform: &Transform, why: &str) -> String {
    let Transform { plugin, function, .. } = transform;
    format!("{STEP}: plugin {plugin}, function {function}: {}", cut(why))
}

/// Why an event is parked under which the plugin fails again and again, when that was said last.
pub(super) fn at_fault(transform: &Transform, said: &str) -> String {
    let why = "for this event alone it failed again and again, and for others it did not";
    parked(transform, &format!("{why}: {said}"))
}

/// Why an event is parked under which the plugin failed once, when another one of its tenant was parked lately.
pub(super) fn at_fault_too(transform: &Transform, said: &str) -> String {
    let why =
        "it failed for this event, as before for another one of this tenant, and not for others";
    parked(transform, &format!("{why}: {said}"))
}

/// Why rows wait, in a sentence.
fn away(transform: &Transform, why: &str) -> String {
    let Transform { plugin, function, version, .. } = transform;
    format!("plugin {plugin} (function {function}, version {version}): {}", cut(why))
}

/// Without control characters, and not too long: the plugin chose the words.
fn cut(said: &str) -> String {
    let line = said.chars().map(|sign| if sign.is_control() { ' ' } else { sign });
    let mut short: String = line.take(SAID_CHARS_MAX).collect();
    if said.chars().nth(SAID_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flexcore_definition::FileLine;
    use flexcore_domain::{
        ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit,
        EventName, Name, Provenance, Tenant,
    };
    use serde_json::{Value, json, value::to_raw_value};

    use super::*;

    fn transform() -> Transform {
        Transform {
            plugin: Name::parse("geo").unwrap(),
            function: "locate".to_owned(),
            version: "1.2.0".to_owned(),
            place: FileLine::default(),
        }
    }

    fn transformed() -> Transformed {
        Transformed { transform: transform(), version: Some(3), fingerprint: Hash::ZERO }
    }

    fn recorded(hash: Hash, data: &Value) -> Recorded {
        let aggregate = AggregateName::parse("flight").unwrap();
        let (tenant, id) = (Tenant::parse("acme").unwrap(), AggregateId::parse("7").unwrap());
        let commit = Commit {
            key: AggregateKey::new(tenant, aggregate, id),
            command_id: CommandId::parse("c").unwrap(),
            command_hash: CommandHash::of("", ""),
            provenance: Provenance::of(ActorName::parse("a").unwrap()),
            time_ms: 5,
            events: vec![Event {
                event: EventName::parse("departed").unwrap(),
                version: 1,
                schema_version: 1,
                data: to_raw_value(data).unwrap(),
            }],
        };
        Recorded { sequence: 9, hash, body: Bytes::new(), commit }
    }

    fn prepared(recorded: &Recorded) -> Result<Call, String> {
        let event = &recorded.commit.events[0];
        prepare(&transformed(), recorded, (0, event), &event.data)
    }

    /// What came, as a word with what is said.
    fn told(reply: &Value) -> (&'static str, String) {
        match came_of(reply.to_string().as_bytes(), &transform()) {
            Came::Data(data) => ("data", data.get().to_owned()),
            Came::Nothing(reason) => ("nothing", reason),
            Came::Ended(reason) => ("ended", reason),
            Came::Failing(reason) => ("failing", reason),
            Came::Busy(reason) => ("busy", reason),
            Came::Away(reason) => ("away", reason),
        }
    }

    #[test]
    fn what_never_passes_parks_the_event_and_all_else_is_waited_for() {
        let refused = |word: &str| json!({"refused": {"refusal": word, "message": "why"}});
        let failed = |temporary: bool| {
            json!({"failed": {"code": "c", "message": "m", "temporary": temporary,
                              "retry_after_ms": 0, "details": null}})
        };
        for (reply, expected) in [
            (json!({"output": {"a": 1}}), "data"),
            (json!({"output": []}), "nothing"),
            (json!({"output": null}), "nothing"),
            (json!({"output": "{"}), "nothing"),
            (failed(false), "nothing"),
            (failed(true), "failing"),
            (refused("invalid_input"), "nothing"),
            (refused("too_large"), "nothing"),
            (refused("not_for_tenant"), "nothing"),
            (refused("faulty"), "nothing"),
            (refused("busy"), "busy"),
            (refused("not_installed"), "away"),
            (refused("unknown_function"), "away"),
            (refused("other_version"), "away"),
            (refused("away"), "away"),
            (refused("late"), "ended"),
            (refused("unknown"), "ended"),
            (refused("a_later_word"), "ended"),
            (json!({"a_later_word": 1}), "away"),
        ] {
            let (came, why) = told(&reply);
            assert_eq!(came, expected, "{reply}: {why}");
            let names_it = why.contains("geo") && why.contains("locate");
            assert!(came == "data" || names_it, "{why}");
        }
        assert!(told(&refused("other_version")).1.contains("install 1.2.0 again"));
        let long = json!({"failed": {"code": "c", "message": "x\n".repeat(9_000),
                                     "temporary": true, "retry_after_ms": 0, "details": null}});
        let (_, why) = told(&long);
        assert!(why.len() < 1_000 && !why.contains('\n'), "{why}");
    }

    #[test]
    fn a_call_says_what_happened_to_whom_and_which_version_is_meant() {
        let at = recorded(Hash::ZERO, &json!({"from": "EWR"}));
        let Call { subject, headers, input } = prepared(&at).unwrap();
        assert_eq!(subject, "plug.geo.locate");
        let says = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(says("Flexcore-Tenant").as_deref(), Some("acme"));
        assert_eq!(says("Flexcore-Plugin-Version").as_deref(), Some("1.2.0"));
        assert_eq!(says("Flexcore-Actor").as_deref(), Some(ACTOR));
        assert!(CommandId::parse(&says("Flexcore-Command-Id").unwrap()).is_ok());
        let input: Value = serde_json::from_slice(&input).unwrap();
        let expected = json!({"aggregate": "flight", "id": "7", "event": "departed", "version": 3,
                              "time_ms": 5, "data": {"from": "EWR"}});
        assert_eq!(input, expected);
    }

    #[test]
    fn a_call_is_the_same_again_whoever_makes_it_and_no_other_is() {
        let (here, there) = (Hash::chain(&Hash::ZERO, b"a"), Hash::chain(&Hash::ZERO, b"b"));
        let (one, other) = (recorded(here, &json!({})), recorded(there, &json!({})));
        assert_eq!(key(&one, 0, &here), key(&one.clone(), 0, &here));
        let others = [key(&other, 0, &here), key(&one, 1, &here), key(&one, 0, &there)];
        assert!(!others.contains(&key(&one, 0, &here)));
    }

    #[test]
    fn an_event_that_fits_no_message_is_parked_and_sent_to_nobody() {
        let largest = |bytes| prepared(&recorded(Hash::ZERO, &json!("x".repeat(bytes))));
        let rest = largest(0).unwrap().input.len();
        assert!(largest(INPUT_BYTES_MAX - rest).is_ok());
        let why = largest(INPUT_BYTES_MAX - rest + 1).err().unwrap();
        assert!(why.contains("at most"), "{why}");
    }
}
