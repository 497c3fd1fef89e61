//! A call of a plugin's function, by one of the workers.

use std::time::Duration;

use async_nats::{HeaderMap, Request, RequestError, RequestErrorKind, connection};
use bytes::Bytes;
use flexcore_definition::PluginManifest;
use flexcore_domain::{
    ActorName, CommandId, Name, PluginRefusal, PluginReply, Tenant, TraceParent,
    command::header as field,
    plugin::{INPUT_BYTES_MAX, call_subject, header},
};
use flexcore_eventstore::{EventStore, plugins};
use flexcore_resilience::{self as resilience, Backoff, Deadline};
use tokio::time::{Instant, sleep};

use crate::Error;

/// Most workers that are asked, one after the other: the broker picks one by chance, and it may be full while
/// others are free.
const ASKED_MAX: u32 = 3;
/// Pauses between them: as long as the shortest calls take, which make room.
const PAUSES: Backoff =
    Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(100) };

/// A call of a function.
#[derive(Clone, Debug)]
pub struct PluginCall {
    /// The plugin.
    pub plugin: Name,
    /// Its function, or the method of a foreign plugin as `package.Service/Method`.
    pub function: String,
    /// Whose call it is.
    pub tenant: Tenant,
    /// Who calls.
    pub actor: ActorName,
    /// What makes it the same call when it is sent again.
    pub key: CommandId,
    /// JSON.
    pub input: Bytes,
    /// How long the caller waits.
    pub within: Duration,
    /// The trace that it is part of.
    pub trace: Option<TraceParent>,
}

/// Has one of the workers call a function; where it is full, or its plugin is away, others are asked. Returns
/// what came of it, which may be that nobody knows. Fails when nobody runs the plugin and the log cannot tell
/// if it is installed.
#[boxed::async_recursion]
pub async fn call(store: &EventStore, call: PluginCall) -> Result<PluginReply, Error> {
    let refused = |refusal, message: &str| Ok(PluginReply::refused(refusal, message));
    if call.input.len() > INPUT_BYTES_MAX {
        let message = format!("an input has at most {INPUT_BYTES_MAX} bytes");
        return refused(PluginRefusal::TooLarge, &message);
    }
    let Some(subject) = call_subject(&call.plugin, &call.function) else {
        return refused(PluginRefusal::UnknownFunction, "this is no name of a function");
    };
    if store.client().connection_state() != connection::State::Connected {
        return refused(PluginRefusal::Away, "not connected to the broker; nothing was done");
    }
    let asked = asked_again(call.within, |left| ask(store, &subject, &call, left));
    let error = match asked.await {
        Ok(reply) => return Ok(reply),
        Err(error) => error,
    };
    match error.kind() {
        RequestErrorKind::NoResponders => nobody(store, &call).await,
        RequestErrorKind::TimedOut => {
            refused(PluginRefusal::Late, "there was no answer in time; it may have been done")
        }
        RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
            refused(PluginRefusal::TooLarge, &error.to_string())
        }
        RequestErrorKind::Other => refused(PluginRefusal::Unknown, &error.to_string()),
    }
}

/// Asks, and again where a worker says that it has done nothing and another may: at most so many times, and
/// within this time.
pub(super) async fn asked_again<F: Future<Output = Result<PluginReply, RequestError>>>(
    within: Duration,
    mut ask: impl FnMut(Duration) -> F,
) -> Result<PluginReply, RequestError> {
    let (since, mut asked) = (Instant::now(), 0);
    loop {
        let reply = ask(within.saturating_sub(since.elapsed())).await?;
        asked += 1;
        let pause = PAUSES.jittered(asked);
        let is_over = asked == ASKED_MAX || since.elapsed() + pause >= within;
        if is_over || !is_for_another(&reply) {
            return Ok(reply);
        }
        sleep(pause).await;
    }
}

/// True if nothing was done here, and another worker may do it.
fn is_for_another(reply: &PluginReply) -> bool {
    let PluginReply::Refused { refusal, .. } = reply else { return false };
    matches!(refusal, PluginRefusal::Away | PluginRefusal::Busy)
}

/// Asks one of the workers, which has so long for its answer.
async fn ask(
    store: &EventStore,
    subject: &str,
    call: &PluginCall,
    within: Duration,
) -> Result<PluginReply, RequestError> {
    let request = Request::new().headers(headers(call, within)).payload(call.input.clone());
    let asked = store.client().send_request(subject.to_owned(), request.timeout(Some(within)));
    Ok(read(&asked.await?.payload))
}

/// A worker's answer. One that cannot be read is about a call that may have been done all the same.
pub(super) fn read(answer: &[u8]) -> PluginReply {
    serde_json::from_slice(answer).unwrap_or_else(|error| {
        let message = format!("the worker's answer cannot be read, and it may be done: {error}");
        PluginReply::refused(PluginRefusal::Unknown, message)
    })
}

/// Why nobody takes calls of a plugin.
async fn nobody(store: &EventStore, call: &PluginCall) -> Result<PluginReply, Error> {
    let PluginCall { plugin, tenant, .. } = call;
    let installed = plugins::installed(store, plugin).await?.installed;
    Ok(not_taken(installed.as_ref().map(|installed| &installed.manifest), plugin, tenant))
}

pub(super) fn not_taken(
    manifest: Option<&PluginManifest>,
    name: &Name,
    tenant: &Tenant,
) -> PluginReply {
    let (refusal, message) = match manifest.map(|manifest| &manifest.tenants) {
        None => (PluginRefusal::NotInstalled, format!("no plugin {name} is installed")),
        Some(Some(tenants)) if !tenants.contains(tenant) => {
            (PluginRefusal::NotForTenant, format!("the plugin {name} is not for this tenant"))
        }
        Some(_) => {
            (PluginRefusal::Away, format!("no worker runs plugin {name} now; nothing was done"))
        }
    };
    PluginReply::refused(refusal, message)
}

fn headers(call: &PluginCall, within: Duration) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::TENANT, call.tenant.as_str());
    headers.insert(field::ACTOR, call.actor.as_str());
    headers.insert(field::OWN_COMMAND_ID, call.key.as_str());
    if let Some(trace) = &call.trace {
        headers.insert(field::TRACEPARENT, trace.as_str());
    }
    let now = Instant::now();
    let left = Deadline::at(now, within).encode(now).unwrap_or_else(|| "1".to_owned());
    headers.insert(resilience::HEADER, left);
    headers
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::ready};

    use flexcore_definition::SourceFile;

    use super::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    fn refusal(reply: &PluginReply) -> Option<PluginRefusal> {
        match reply {
            PluginReply::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }

    /// One worker that was full refused a call, though others were free.
    #[tokio::test]
    async fn a_worker_that_is_full_or_away_is_not_the_only_one_that_is_asked() {
        use PluginRefusal as R;
        let (long, short) = (Duration::from_secs(60), Duration::from_millis(1));
        for (within, answers, asked) in [
            (long, [R::Busy, R::Away, R::Late], 3),
            (long, [R::Busy, R::Busy, R::Busy], 3),
            (long, [R::Away, R::InvalidInput, R::Late], 2),
            (long, [R::Late, R::Busy, R::Busy], 1),
            (long, [R::Unknown, R::Busy, R::Busy], 1),
            (short, [R::Busy, R::Late, R::Late], 1),
        ] {
            let count = Cell::new(0_usize);
            let ask = |left: Duration| {
                assert!(left <= within);
                let refusal = answers[count.replace(count.get() + 1)];
                ready(Ok(PluginReply::refused(refusal, "why")))
            };
            let reply = asked_again(within, ask).await.unwrap();
            assert_eq!(count.get(), asked, "{answers:?}");
            assert_eq!(refusal(&reply), Some(answers[asked - 1]));
        }
        let count = Cell::new(0);
        let ask = |_| {
            count.set(count.get() + 1);
            ready(Err(RequestErrorKind::TimedOut.into()))
        };
        assert!(asked_again(long, ask).await.is_err());
        assert_eq!(count.get(), 1, "it may be done");
    }

    #[test]
    fn an_answer_that_cannot_be_read_leaves_open_what_was_done() {
        for answer in ["", "{", r#"{"a_later_word":1}"#] {
            assert_eq!(refusal(&read(answer.as_bytes())), Some(PluginRefusal::Unknown), "{answer}");
        }
        assert_eq!(refusal(&read(br#"{"output":1}"#)), None);
    }

    #[test]
    fn where_nobody_takes_calls_a_plugin_is_not_told_to_other_tenants() {
        let text = "name: greeter\nversion: a\nfile: f\ntenants: [acme]\n".to_owned();
        let source = SourceFile { path: "plugin.yaml".to_owned(), text };
        let manifest = PluginManifest::read(source).unwrap();
        let name = Name::parse("greeter").unwrap();
        let why = |manifest, of: &str| refusal(&not_taken(manifest, &name, &tenant(of)));
        assert_eq!(why(None, "acme"), Some(PluginRefusal::NotInstalled));
        assert_eq!(why(Some(&manifest), "acme"), Some(PluginRefusal::Away));
        assert_eq!(why(Some(&manifest), "eve"), Some(PluginRefusal::NotForTenant));
    }

    #[test]
    fn a_call_says_whose_it_is_and_how_long_it_waits() {
        let call = PluginCall {
            plugin: Name::parse("greeter").unwrap(),
            function: "greet".to_owned(),
            tenant: Tenant::parse("acme").unwrap(),
            actor: ActorName::parse("alice").unwrap(),
            key: CommandId::parse("k-1").unwrap(),
            input: Bytes::from_static(b"{}"),
            within: Duration::from_secs(3),
            trace: None,
        };
        let headers = headers(&call, call.within);
        let says = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(says(header::TENANT).as_deref(), Some("acme"));
        assert_eq!(says(field::ACTOR).as_deref(), Some("alice"));
        assert_eq!(says(field::OWN_COMMAND_ID).as_deref(), Some("k-1"));
        assert_eq!(says(resilience::HEADER).as_deref(), Some("3000"));
        assert_eq!(says(field::TRACEPARENT), None);
    }
}
