//! The tenant's events as they are recorded, as server-sent events.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use flexcore_domain::{AggregateKey, AggregateName, Position, Slot, Tenant};
use flexcore_eventstore::{Broken, Filter, Read, Recorded, Subscription};
use flexcore_resilience::HeldPlace;
use futures::Stream;
use tokio_util::sync::CancellationToken;

use super::answer;
use crate::{
    error::Problem,
    extract::{self, Call},
    limits::{HEARTBEAT, PASSED_OVER_MAX, STREAM_COMMITS_MAX},
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
    let last = shared.store.last_sequence().await?;
    let from = after.map_or(last, |position| position.sequence);
    if from > last {
        let detail = format!("after: the log ends at {last}, so the position is of another log");
        return Err(Problem::new(&problems::INVALID_PARAMETER, detail));
    }
    let filter = Filter::Tenant(call.tenant().clone());
    let subscription = shared.store.subscribe(filter, from + 1).await?;
    let reader = EventReader {
        subscription,
        aggregate,
        // A client that is cut off before the first event resumes here.
        places: Places::begin(from, Instant::now()),
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
struct EventReader {
    subscription: Subscription,
    aggregate: Option<AggregateName>,
    places: Places,
    expires_s: u64,
    shutdown: CancellationToken,
    state: Progress,
    _place: HeldPlace<Tenant>,
}

impl EventReader {
    fn into_stream(self) -> impl Stream<Item = Result<String, std::convert::Infallible>> {
        futures::stream::unfold(self, |mut reader| async move {
            let text = reader.next().await?;
            Some((Ok(text), reader))
        })
    }

    /// The next thing to send; `None`: the stream is over.
    async fn next(&mut self) -> Option<String> {
        match self.state {
            Progress::Opening => {
                self.state = Progress::Reading;
                let id = self.places.tell(Instant::now()).unwrap_or_default();
                return Some(format!("retry: 1000\n{id}"));
            }
            Progress::Closed => return None,
            Progress::Reading => {}
        }
        loop {
            let left = Duration::from_secs(self.expires_s.saturating_sub(now_s()));
            if left.is_zero() {
                return Some(self.close("the token has expired"));
            }
            let wait = left.min(self.places.silence_left(Instant::now()));
            let shutdown = self.shutdown.clone();
            let batch = self.subscription.next_batch(STREAM_COMMITS_MAX, wait);
            let read = tokio::select! {
                () = shutdown.cancelled() => return Some(self.close("the gateway is stopping")),
                read = batch => read,
            };
            match read {
                Ok(read) => {
                    if let Some(text) = self.write(&read, Instant::now()) {
                        return Some(text);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "an event stream stopped");
                    return Some(self.close("the log cannot be read"));
                }
            }
        }
    }

    fn close(&mut self, reason: &str) -> String {
        self.state = Progress::Closed;
        format!("event: closed\ndata: {{\"reason\":\"{reason}\"}}\n\n")
    }

    /// The commits that were read of the log for this client, and the place up to which it is read
    /// where that is due; `None`: neither.
    fn write(&mut self, read: &Read, now: Instant) -> Option<String> {
        let mut text = String::new();
        let wanted = |key: &AggregateKey| {
            self.aggregate.as_ref().is_none_or(|wanted| wanted == key.aggregate())
        };
        match read {
            Read::Commits(commits) => {
                for recorded in commits {
                    #[cfg(feature = "defects")]
                    if crate::defects::misses() {
                        continue;
                    }
                    if wanted(&recorded.commit.key) {
                        write_commit(&mut text, recorded);
                        self.places.told(now);
                    } else {
                        self.places.pass_over(recorded.position());
                    }
                }
            }
            Read::Broken(broken) => {
                if let Some(key) = broken.key.as_ref().filter(|key| wanted(key)) {
                    write_broken(&mut text, key, broken);
                    self.places.told(now);
                }
            }
        }
        if let Some(id) = self.places.tell(now) {
            text.push_str(&id);
        } else if text.is_empty() && self.places.silence_left(now).is_zero() {
            self.places.told(now);
            text.push_str(": nothing new\n\n");
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The place up to which the client needs nothing: beside the events' own ids it is sent alone, now
/// and then, or a client that resumes would have everything read again since its last event.
struct Places {
    /// The last commit that was passed over since an id was sent.
    passed: Option<Position>,
    commits: usize,
    told_at: Instant,
    due: bool,
}

impl Places {
    /// At this stream sequence, which is to be told.
    fn begin(sequence: u64, now: Instant) -> Self {
        let slot = Slot::all().next().expect("BUG: there are slots");
        let passed = Some(Position { slot, sequence });
        Self { passed, commits: 0, told_at: now, due: true }
    }

    fn pass_over(&mut self, position: Position) {
        self.passed = Some(position);
        self.commits += 1;
        self.due |= self.commits >= PASSED_OVER_MAX;
    }

    /// An id was sent, or that there is nothing new.
    fn told(&mut self, now: Instant) {
        *self = Self { passed: None, commits: 0, told_at: now, due: false };
    }

    /// The place alone, when it is due.
    fn tell(&mut self, now: Instant) -> Option<String> {
        let position = self.passed.filter(|_| self.due || self.silence_left(now).is_zero())?;
        self.told(now);
        // Without data it is no event: the client remembers the id.
        Some(format!("id: {position}\n\n"))
    }

    /// Time for which nothing may be sent yet.
    fn silence_left(&self, now: Instant) -> Duration {
        HEARTBEAT.saturating_sub(now.saturating_duration_since(self.told_at))
    }
}

/// Only the last event of a commit carries an id: a client that is cut off inside a commit gets all
/// of it again, and nothing is left out.
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

/// In the place of a commit that cannot be read: its client misses something, and the rest goes on.
fn write_broken(text: &mut String, key: &AggregateKey, broken: &Broken) {
    let position = Position { slot: key.slot(), sequence: broken.sequence };
    let data = serde_json::json!({"aggregate": key.aggregate(), "id": key.id()});
    text.push_str(&format!("id: {position}\nevent: unreadable\ndata: {data}\n\n"));
}

#[cfg(test)]
mod tests {
    use flexcore_domain::{
        ActorName, AggregateId, AggregateKey, CommandHash, CommandId, Commit, Event, EventName,
        Hash, Provenance, Tenant,
    };
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn places_alone_are_told_after_many_commits_or_some_time_and_at_the_beginning() {
        let now = Instant::now();
        let position = |sequence| Position { slot: Slot::new(7).unwrap(), sequence };
        let mut places = Places::begin(41, now);
        assert_eq!(places.tell(now).as_deref(), Some("id: 1-0-41\n\n"));
        assert_eq!(places.tell(now), None);
        for sequence in 1..PASSED_OVER_MAX as u64 {
            places.pass_over(position(sequence));
            assert_eq!(places.tell(now), None, "{sequence}");
        }
        places.pass_over(position(5_000));
        assert_eq!(places.tell(now).as_deref(), Some("id: 1-7-5000\n\n"));
        places.pass_over(position(5_001));
        assert_eq!(places.tell(now + HEARTBEAT / 2), None);
        let later = now + HEARTBEAT;
        assert_eq!(places.tell(later).as_deref(), Some("id: 1-7-5001\n\n"));
        assert_eq!(places.silence_left(later), HEARTBEAT);
        // Commits that were passed over before an event are covered by the event's own id.
        places.pass_over(position(5_002));
        places.told(later);
        assert_eq!(places.tell(later + HEARTBEAT), None);
    }

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
            provenance: Provenance::of(ActorName::parse("a").unwrap()),
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
