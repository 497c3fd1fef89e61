//! The tenant's events as they are recorded, as server-sent events.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use flexcore_domain::{AggregateName, Position, Tenant};
use flexcore_eventstore::{Filter, Recorded, Subscription};
use futures::Stream;
use tokio_util::sync::CancellationToken;

use super::answer;
use crate::{
    admission::Place,
    error::Problem,
    extract::{self, Call},
    limits::{HEARTBEAT, STREAM_COMMITS_MAX},
    problems,
    request::now_s,
    shared::Shared,
};

/// `GET /v1/events?aggregate=&after=`
pub(crate) async fn stream(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let mut parameters = call.parameters()?;
    let aggregate = parameters.take("aggregate")?;
    let aggregate = aggregate.as_deref().map(AggregateName::parse).transpose()?;
    let after = parameters.take_parsed("after", "the id of an event")?;
    parameters.finish(&["aggregate", "after"])?;
    let after = last_event_id(&call)?.or(after);
    let place = shared.admission.stream(call.tenant())?;
    let from = match after {
        Some(position) => position.sequence,
        None => shared.store.last_sequence().await?,
    };
    let filter = Filter::Tenant(call.tenant().clone());
    let subscription = shared.store.subscribe(filter, from + 1).await?;
    let reader = Reader {
        subscription,
        aggregate,
        expires_s: call.identity().expires_s,
        shutdown: shared.shutdown.clone(),
        state: Progress::Opening,
        _place: place,
    };
    let body = Body::from_stream(reader.into_stream());
    let mut response = answer(StatusCode::OK, "text/event-stream", body);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A proxy that buffers would hold events back.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    headers.insert(unbuffered, HeaderValue::from_static("no"));
    Ok(response)
}

fn last_event_id(call: &Call) -> Result<Option<Position>, Problem> {
    static NAME: HeaderName = HeaderName::from_static("last-event-id");
    let text = extract::single(&call.headers, &NAME)?.filter(|text| !text.is_empty());
    text.map(str::parse)
        .transpose()
        .map_err(|error| Problem::new(&problems::INVALID_HEADER, format!("last-event-id: {error}")))
}

enum Progress {
    Opening,
    Reading,
    Closed,
}

/// One client's stream. Read only as fast as the client takes it.
struct Reader {
    subscription: Subscription,
    aggregate: Option<AggregateName>,
    expires_s: u64,
    shutdown: CancellationToken,
    state: Progress,
    _place: Place<Tenant>,
}

impl Reader {
    fn into_stream(self) -> impl Stream<Item = Result<String, std::convert::Infallible>> {
        futures::stream::unfold(self, |mut reader| async move {
            let text = reader.next().await?;
            Some((Ok(text), reader))
        })
    }

    /// What to send next; `None`: the stream is over.
    async fn next(&mut self) -> Option<String> {
        match self.state {
            Progress::Opening => {
                self.state = Progress::Reading;
                return Some("retry: 1000\n\n".to_owned());
            }
            Progress::Closed => return None,
            Progress::Reading => {}
        }
        let left = Duration::from_secs(self.expires_s.saturating_sub(now_s()));
        if left.is_zero() {
            return Some(self.close("the token has expired"));
        }
        let shutdown = self.shutdown.clone();
        let batch = self.subscription.next_batch(STREAM_COMMITS_MAX, left.min(HEARTBEAT));
        let read = tokio::select! {
            () = shutdown.cancelled() => return Some(self.close("the gateway is stopping")),
            read = batch => read,
        };
        match read {
            Ok(commits) => Some(self.write(&commits)),
            Err(error) => {
                tracing::error!(%error, "an event stream stopped");
                Some(self.close("the log cannot be read"))
            }
        }
    }

    fn close(&mut self, reason: &str) -> String {
        self.state = Progress::Closed;
        format!("event: closed\ndata: {{\"reason\":\"{reason}\"}}\n\n")
    }

    /// The commits' events, or a comment when there are none for this client.
    fn write(&self, commits: &[Recorded]) -> String {
        let mut text = String::new();
        for recorded in commits {
            let key = &recorded.commit.key;
            if self.aggregate.as_ref().is_none_or(|wanted| wanted == key.aggregate()) {
                write_commit(&mut text, recorded);
            }
        }
        if text.is_empty() {
            text.push_str(": nothing new\n\n");
        }
        text
    }
}

/// Only the last event of a commit carries an id: whoever is cut off inside a commit gets all of it
/// again, and nothing is left out.
fn write_commit(text: &mut String, recorded: &Recorded) {
    let commit = &recorded.commit;
    for (at, event) in commit.events.iter().enumerate() {
        if at + 1 == commit.events.len() {
            text.push_str("id: ");
            text.push_str(&recorded.position().to_string());
            text.push('\n');
        }
        text.push_str("event: ");
        text.push_str(commit.key.aggregate().as_str());
        text.push('.');
        text.push_str(event.event.as_str());
        text.push_str("\ndata: ");
        // Data is one line: JSON text holds line breaks only between tokens.
        text.extend(commit.cloud_event(event).chars().filter(|c| !matches!(c, '\n' | '\r')));
        text.push_str("\n\n");
    }
}

#[cfg(test)]
mod tests {
    use flexcore_domain::{
        ActorName, AggregateId, AggregateKey, CommandHash, CommandId, Commit, Event, EventName,
        Hash, Tenant,
    };
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn a_commit_is_resumed_whole_and_stays_on_its_lines() {
        let event = |version| Event {
            event: EventName::parse("departed").unwrap(),
            version,
            schema_version: 1,
            data: RawValue::from_string("{\n\"a\":\r\n\"x\\n\"}".to_owned()).unwrap(),
        };
        let commit = Commit {
            key: AggregateKey::new(
                Tenant::parse("acme").unwrap(),
                AggregateName::parse("flight").unwrap(),
                AggregateId::parse("UA1").unwrap(),
            ),
            command_id: CommandId::parse("c").unwrap(),
            command_hash: CommandHash::of("", ""),
            actor: ActorName::parse("a").unwrap(),
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            time_ms: 0,
            events: vec![event(1), event(2)],
        };
        let encoded = commit.encode(&Hash::ZERO);
        let recorded =
            Recorded { sequence: 9, hash: encoded.hash, body: encoded.body.into(), commit };
        let mut text = String::new();
        write_commit(&mut text, &recorded);
        let events: Vec<&str> = text.split("\n\n").filter(|part| !part.is_empty()).collect();
        assert_eq!(events.len(), 2);
        assert!(events[0].starts_with("event: flight.departed\ndata: {"));
        let id = format!("id: {}\nevent: flight.departed\ndata: {{", recorded.position());
        assert!(events[1].starts_with(&id), "{text}");
        assert!(events.iter().all(|event| event.contains(r#"{"a":"x\n"}"#)), "{text}");
    }
}
