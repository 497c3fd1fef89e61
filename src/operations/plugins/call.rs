//! A call of a plugin's function, by one of the workers.

use std::{future::pending, time::Duration};

use async_nats::{Client, HeaderMap, Request, RequestError, RequestErrorKind, connection};
use bytes::Bytes;
use flexcore_definition::PluginManifest;
use flexcore_domain::{
    ActorName, CommandId, Name, PluginRefusal, PluginReply, Tenant, TraceParent,
    command::header as field,
    plugin::{INPUT_BYTES_MAX, call_subject, header, told},
};
use flexcore_eventstore::{EventStore, plugins};
use flexcore_resilience::{self as resilience, Backoff, Deadline};
use futures::{Stream, StreamExt};
use tokio::time::{Instant, sleep, timeout};

use crate::Error;

/// Most workers that are asked, one after the other: the broker picks one by chance, and it may be full while
/// others are free.
const ASKED_MAX: u32 = 3;
/// Pauses between them: as long as the shortest calls take, which make room.
const PAUSES: Backoff =
    Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(100) };

/// Time after which a caller listens for its worker, which says nothing before. Shorter calls cost nothing more.
const LISTENED_AFTER: Duration = Duration::from_millis(500);

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

/// Why there is no answer.
#[derive(Debug)]
enum Unanswered {
    /// The request reached nobody, or the time was over.
    Failed(RequestError),
    /// The worker that had the call is not heard any more. It may be done.
    Gone,
}

/// Whom a call is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// A worker that says while it has the call.
    Telling,
    /// The same, after another one that is gone and may have done it.
    Again,
    /// Any worker, one of a version that says nothing included.
    Any,
}

/// Has one of the workers call a function; where it is full, or its plugin is away, others are asked. Where it is
/// not heard any more, another one does what may be repeated. Returns what came of it, which may be that nobody
/// knows. Fails when nobody runs the plugin and the log cannot tell if it is installed.
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
    let (client, began, mut asks) = (store.client(), Instant::now(), 0);
    let asked = asked_again(call.within, |left| {
        asks += 1;
        // The last one is anybody's: others may have room while workers of this version are full.
        let to = if asks < ASKED_MAX { To::Telling } else { To::Any };
        ask(client, &subject, &call, left, to)
    });
    let error = match asked.await {
        Ok(reply) => return Ok(reply),
        Err(Unanswered::Failed(error)) => error,
        Err(Unanswered::Gone) => {
            let left = call.within.saturating_sub(began.elapsed());
            return Ok(repeated(client, &subject, &call, left).await);
        }
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
pub(super) async fn asked_again<E, F: Future<Output = Result<PluginReply, E>>>(
    within: Duration,
    mut ask: impl FnMut(Duration) -> F,
) -> Result<PluginReply, E> {
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

/// Asks one of the workers, which has so long for its answer. Where there is none of this version any other is
/// asked.
async fn ask(
    client: &Client,
    subject: &str,
    call: &PluginCall,
    within: Duration,
    to: To,
) -> Result<PluginReply, Unanswered> {
    match send(client, subject, call, within, to).await {
        Err(Unanswered::Failed(error))
            if to == To::Telling && error.kind() == RequestErrorKind::NoResponders =>
        {
            send(client, subject, call, within, To::Any).await
        }
        answered => answered,
    }
}

/// Sends a call, and waits for its answer for as long as its worker is heard.
async fn send(
    client: &Client,
    subject: &str,
    call: &PluginCall,
    within: Duration,
    to: To,
) -> Result<PluginReply, Unanswered> {
    let (words, mut headers) = (client.new_inbox(), headers(call, within));
    headers.insert(told::header::WORDS, words.as_str());
    if to == To::Again {
        headers.insert(told::header::REPEATED, "true");
    }
    let subject = if to == To::Any { subject.to_owned() } else { told::subject(subject) };
    let request = Request::new().headers(headers).payload(call.input.clone());
    let asked = client.send_request(subject, request.timeout(Some(within)));
    tokio::select! {
        biased;
        answer = asked => match answer {
            Ok(answer) => Ok(read(&answer.payload)),
            Err(error) => Err(Unanswered::Failed(error)),
        },
        () = silence(client, words, to != To::Any) => Err(Unanswered::Gone),
    }
}

/// Returns when the worker that has a call was not heard for too long.
async fn silence(client: &Client, words: String, is_telling: bool) {
    sleep(LISTENED_AFTER).await;
    match client.subscribe(words).await {
        Ok(words) => silent(words, is_telling, told::SILENCE_MAX).await,
        // The connection is closed for good, which the request itself notices.
        Err(_) => pending::<()>().await,
    }
}

/// Returns when there was no word for so long. A worker that need not say anything is waited for until it does.
async fn silent(mut words: impl Stream + Unpin, is_telling: bool, longest: Duration) {
    if !is_telling && words.next().await.is_none() {
        pending::<()>().await;
    }
    while let Ok(Some(_)) = timeout(longest, words.next()).await {}
}

/// Has another worker do what one may have done that is gone; it refuses what may not be repeated.
async fn repeated(
    client: &Client,
    subject: &str,
    call: &PluginCall,
    within: Duration,
) -> PluginReply {
    // It is this process that hears nobody: a question would wait for all the time that is left.
    if client.connection_state() != connection::State::Connected {
        return gone();
    }
    let asked = asked_again(within, |left| send(client, subject, call, left, To::Again));
    asked.await.ok().filter(is_of_all).unwrap_or_else(gone)
}

/// True if it holds whatever another worker did before: that one may have done what was not done here.
fn is_of_all(reply: &PluginReply) -> bool {
    use PluginRefusal::{Faulty, Late, Unknown};
    match reply {
        PluginReply::Output(_) | PluginReply::Failed { .. } => true,
        PluginReply::Refused { refusal, .. } => matches!(refusal, Faulty | Late | Unknown),
    }
}

fn gone() -> PluginReply {
    let message = "the worker that had the call is not heard any more; it may have been done";
    PluginReply::refused(PluginRefusal::Unknown, message)
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
    use futures::stream;

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
            let reply = asked_again::<Unanswered, _>(within, ask).await.unwrap();
            assert_eq!(count.get(), asked, "{answers:?}");
            assert_eq!(refusal(&reply), Some(answers[asked - 1]));
        }
        let count = Cell::new(0);
        let ask = |_| {
            count.set(count.get() + 1);
            ready(Err(Unanswered::Failed(RequestErrorKind::TimedOut.into())))
        };
        assert!(asked_again(long, ask).await.is_err());
        assert_eq!(count.get(), 1, "it may be done");
    }

    #[tokio::test]
    async fn a_worker_that_falls_silent_is_gone_unless_it_never_said_a_word() {
        let short = Duration::from_millis(20);
        let is_gone = async |heard: usize, is_telling: bool| {
            let words = stream::iter(0..heard).chain(stream::pending());
            timeout(short * 20, silent(words, is_telling, short)).await.is_ok()
        };
        assert!(is_gone(0, true).await, "it was gone before its first word");
        assert!(is_gone(2, true).await);
        assert!(is_gone(1, false).await);
        assert!(!is_gone(0, false).await, "a worker of a former version says nothing");
        assert!(LISTENED_AFTER < told::FIRST_WORD_AFTER);
    }

    #[test]
    fn what_another_worker_did_not_do_may_have_been_done_by_the_first() {
        use PluginRefusal as R;
        let refused = |refusal| is_of_all(&PluginReply::refused(refusal, "why"));
        assert!([R::Late, R::Faulty, R::Unknown].into_iter().all(refused));
        let nothing_done = [R::Busy, R::Away, R::NotInstalled, R::NotForTenant, R::InvalidInput];
        assert!(!nothing_done.into_iter().any(refused));
        assert!(is_of_all(&read(br#"{"output":1}"#)));
        assert_eq!(refusal(&gone()), Some(R::Unknown));
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
