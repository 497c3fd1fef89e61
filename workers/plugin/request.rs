//! Calls as they come over NATS, read into what a plugin is asked.

use std::time::Duration;

use async_nats::HeaderMap;
use flexcore_domain::{
    ActorName, CommandId, InvalidName, PluginRefusal, PluginReply, Tenant, TraceParent, command,
    plugin::{self, INPUT_BYTES_MAX},
};
use flexcore_plugin::contract::Context;
use flexcore_resilience::Deadline;
use tokio::time::Instant;

/// A call of a plugin.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// The function's name, or a method's.
    pub(super) function: String,
    /// Whose call it is.
    pub(super) tenant: Tenant,
    /// On whose behalf, for the plugin.
    pub(super) context: Context,
    /// The version of the plugin that is meant; `None`: any.
    pub(super) version: Option<String>,
    /// Until when its sender waits, and how long a call may take at most.
    pub(super) until: Instant,
}

/// Reads a call that came at `now`, for a plugin whose calls take so long at most. Fails with the answer to give.
pub(super) fn read(
    subject: &str,
    headers: Option<&HeaderMap>,
    input_bytes: usize,
    call_max: Duration,
    now: Instant,
) -> Result<Asked, PluginReply> {
    let function = plugin::called_function(subject).ok_or_else(|| {
        PluginReply::refused(PluginRefusal::UnknownFunction, "the subject names no function")
    })?;
    if input_bytes > INPUT_BYTES_MAX {
        let message =
            format!("an input of {input_bytes} bytes; at most {INPUT_BYTES_MAX} are accepted");
        return Err(PluginReply::refused(PluginRefusal::TooLarge, message));
    }
    let tenant = given(headers, plugin::header::TENANT, Tenant::parse)?;
    let key = given(headers, command::header::OWN_COMMAND_ID, CommandId::parse)?;
    let actor = one(headers, command::header::ACTOR)?.map(ActorName::parse).transpose();
    let actor = actor.map_err(|error| wrong(command::header::ACTOR, &error.to_string()))?;
    let version = one(headers, plugin::header::VERSION)?.map(str::to_owned);
    // One that cannot be read is left out, as with commands.
    let trace = one(headers, command::header::TRACEPARENT)?;
    let trace = trace.and_then(|text| text.parse::<TraceParent>().ok());
    let asked = one(headers, flexcore_resilience::HEADER)?;
    let asked = asked.map(|text| Deadline::parse(text, now)).transpose();
    let asked = asked.map_err(|error| wrong(flexcore_resilience::HEADER, &error.to_string()))?;
    let within = asked.map_or(call_max, |asked| asked.remaining(now).min(call_max));
    let context = Context {
        tenant: tenant.to_string(),
        actor: actor.map(String::from).unwrap_or_default(),
        idempotency_key: key.to_string(),
        traceparent: trace.map(String::from).unwrap_or_default(),
        ..Context::default()
    };
    let (function, until) = (function.to_owned(), now + within);
    Ok(Asked { function, tenant, context, version, until })
}

/// A name that has to be there.
fn given<T>(
    headers: Option<&HeaderMap>,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, InvalidName>,
) -> Result<T, PluginReply> {
    let text = one(headers, name)?.ok_or_else(|| wrong(name, "it is missing"))?;
    parse(text).map_err(|error| wrong(name, &error.to_string()))
}

/// The value of a header. A sender who gives two says two things.
fn one<'h>(headers: Option<&'h HeaderMap>, name: &str) -> Result<Option<&'h str>, PluginReply> {
    let Some(headers) = headers else { return Ok(None) };
    let mut values = headers.get_all(name).map(|value| value.as_str());
    let first = values.next();
    match values.next() {
        Some(_) => Err(wrong(name, "it is given more than once")),
        None => Ok(first),
    }
}

fn wrong(header: &str, why: &str) -> PluginReply {
    PluginReply::refused(PluginRefusal::InvalidInput, format!("the header {header}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL_MAX: Duration = Duration::from_secs(30);

    fn map(given: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, *value);
        }
        headers
    }

    fn refusal(read: Result<Asked, PluginReply>) -> (PluginRefusal, String) {
        match read {
            Err(PluginReply::Refused { refusal, message }) => (refusal, message),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_call_says_who_asks_for_what_and_how_long_they_wait() {
        let now = Instant::now();
        let parent = format!("00-{}-{}-01", "a".repeat(32), "b".repeat(16));
        let headers = map(&[
            ("Flexcore-Tenant", "acme"),
            ("Flexcore-Actor", "ann"),
            ("Flexcore-Command-Id", "k-1"),
            ("Flexcore-Timeout-Ms", "1500"),
            ("traceparent", &parent),
        ]);
        let asked = read("plug.greeter.greet", Some(&headers), 2, CALL_MAX, now).unwrap();
        assert_eq!((&*asked.function, asked.tenant.as_str()), ("greet", "acme"));
        assert_eq!(asked.until, now + Duration::from_millis(1_500));
        let expected = Context {
            tenant: "acme".to_owned(),
            actor: "ann".to_owned(),
            idempotency_key: "k-1".to_owned(),
            traceparent: parent,
            ..Context::default()
        };
        assert_eq!((asked.context, asked.version), (expected, None));
        let few = map(&[("Flexcore-Tenant", "acme"), ("Flexcore-Command-Id", "k-1")]);
        let asked = read("plug.tf.a.v1.B/C", Some(&few), 0, CALL_MAX, now).unwrap();
        assert_eq!((&*asked.function, asked.until), ("a.v1.B/C", now + CALL_MAX));
        let of_a_version = map(&[
            ("Flexcore-Tenant", "acme"),
            ("Flexcore-Command-Id", "k-1"),
            ("Flexcore-Plugin-Version", "1.2.0"),
        ]);
        let asked = read("plug.geo.locate", Some(&of_a_version), 2, CALL_MAX, now).unwrap();
        assert_eq!(asked.version.as_deref(), Some("1.2.0"));
        let long = map(&[
            ("Flexcore-Tenant", "acme"),
            ("Flexcore-Command-Id", "k-1"),
            ("Flexcore-Timeout-Ms", "40000"),
        ]);
        let asked = read("plug.greeter.greet", Some(&long), 2, CALL_MAX, now).unwrap();
        assert_eq!(asked.until, now + CALL_MAX);
    }

    #[test]
    fn a_call_that_cannot_be_read_says_what_is_wrong() {
        let (now, subject) = (Instant::now(), "plug.greeter.greet");
        let good = [("Flexcore-Tenant", "acme"), ("Flexcore-Command-Id", "k-1")];
        let with = |more: &[(&str, &str)]| map(&[&good[..], more].concat());
        for (headers, header) in [
            (map(&[]), "Flexcore-Tenant"),
            (map(&good[..1]), "Flexcore-Command-Id"),
            (with(&good[..1]), "Flexcore-Tenant"),
            (with(&[("Flexcore-Actor", "a b")]), "Flexcore-Actor"),
            (with(&[("Flexcore-Timeout-Ms", "0")]), "Flexcore-Timeout-Ms"),
        ] {
            let (why, message) = refusal(read(subject, Some(&headers), 2, CALL_MAX, now));
            assert_eq!(why, PluginRefusal::InvalidInput);
            assert!(message.contains(header), "{message}");
        }
        let large = refusal(read(subject, Some(&with(&[])), INPUT_BYTES_MAX + 1, CALL_MAX, now));
        assert_eq!(large.0, PluginRefusal::TooLarge);
        let none = refusal(read("plug.greeter", Some(&with(&[])), 2, CALL_MAX, now));
        assert_eq!(none.0, PluginRefusal::UnknownFunction);
    }
}
