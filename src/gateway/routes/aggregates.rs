//! Aggregates: their state, and the events that made it.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use flexcore_definition::Catalog;
use flexcore_domain::{AggregateKey, AggregateName, Outcome, StateReply, commit::BATCH};
use flexcore_eventstore::catalog::RESERVED;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{JSON, answer, etag};
use crate::{
    error::{self, Problem},
    extract::{self, Call},
    limits::{EVENTS_PAGE_BYTES, EVENTS_PAGE_DEFAULT, EVENTS_PAGE_MAX},
    problems,
    question::Question,
    shared::Shared,
};

#[derive(Serialize)]
struct Aggregate<'a> {
    aggregate: &'a AggregateName,
    id: &'a str,
    version: u64,
    state: &'a RawValue,
}

/// `GET /v1/aggregates/{aggregate}/{id}?at_version=`
pub(crate) async fn state(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let key = call.key()?;
    let mut parameters = call.parameters()?;
    let at = parameters.take_parsed::<u64>("at_version", "a version")?;
    parameters.finish(&["at_version"])?;
    let deadline = extract::deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let _turn = shared.admission.turn(call.tenant(), deadline).await?;
    let reply = Question::state(&key, at, call.trace(), deadline).ask(&shared).await?;
    let (version, state) = match reply {
        StateReply::Found { version, state } => (version, state),
        StateReply::NotFound => return Err(missing(&shared.catalog(), &key)),
        StateReply::Unavailable { message } => return Err(Problem::unavailable(&message)),
        StateReply::Faulty { message } => {
            return Err(Problem::new(&problems::FAULTY_DECIDER, message));
        }
    };
    #[cfg(feature = "defects")]
    let (version, state) = crate::defects::seen(&key, (version, state));
    if at.is_some_and(|at| at > version) {
        let detail = format!("at_version: the aggregate has version {version} only");
        return Err(Problem::new(&problems::INVALID_PARAMETER, detail).with("version", version));
    }
    if extract::none_match(&call.headers, version) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().insert(header::ETAG, etag(version));
        return Ok(response);
    }
    let (aggregate, id) = (key.aggregate(), key.id().as_str());
    let body = serde_json::to_vec(&Aggregate { aggregate, id, version, state: &state });
    let mut response = answer(StatusCode::OK, JSON, body.expect("BUG: a state serialises"));
    response.headers_mut().insert(header::ETAG, etag(version));
    Ok(response)
}

/// `GET /v1/aggregates/{aggregate}/{id}/events?after_version=&limit=`
pub(crate) async fn events(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let key = call.key()?;
    let mut parameters = call.parameters()?;
    let after = parameters.take_parsed::<u64>("after_version", "a version")?.unwrap_or(0);
    let limit = parameters.take_parsed::<usize>("limit", "a number")?;
    parameters.finish(&["after_version", "limit"])?;
    let limit = limit.unwrap_or(EVENTS_PAGE_DEFAULT);
    if limit == 0 || limit > EVENTS_PAGE_MAX {
        let detail = format!("limit must be 1 to {EVENTS_PAGE_MAX}");
        return Err(Problem::new(&problems::INVALID_PARAMETER, detail));
    }
    let deadline = extract::deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let _turn = shared.admission.turn(call.tenant(), deadline).await?;
    let page = deadline.timeout("log", page(&shared, &key, after, limit)).await;
    let page = page.map_err(|_| Problem::unavailable(&"the log did not answer in time"))??;
    if page.version == 0 {
        return Err(missing(&shared.catalog(), &key));
    }
    let mut response = answer(StatusCode::OK, BATCH, page.json);
    if page.more {
        let link = format!(
            "</v1/aggregates/{}/{}/events?after_version={}&limit={limit}>; rel=\"next\"",
            key.aggregate(),
            key.id(),
            page.version
        );
        let link = HeaderValue::try_from(link).expect("BUG: names are ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

struct Page {
    /// A JSON array.
    json: String,
    /// Of the last event that was read; 0: the aggregate has none.
    version: u64,
    more: bool,
}

/// Walks the aggregate's commits from where the page begins, a bounded number at a time, until it is
/// full.
async fn page(
    shared: &Shared,
    key: &AggregateKey,
    after: u64,
    limit: usize,
) -> Result<Page, Problem> {
    let start = shared.store.before_version(key, after).await?;
    let mut page = Page { json: "[".to_owned(), version: start.version, more: false };
    let (mut sequence, mut events) = (start.sequence, 0);
    'pages: loop {
        // Each commit has an event at least; one more says whether there are more.
        let skipped = usize::try_from(after.saturating_sub(page.version)).unwrap_or(usize::MAX);
        let wanted = skipped.saturating_add(limit - events + 1);
        let read = shared.store.read_page(key, sequence, wanted).await?;
        for recorded in &read.commits {
            sequence = recorded.sequence;
            for event in &recorded.commit.events {
                if events == limit || page.json.len() > EVENTS_PAGE_BYTES {
                    page.more = true;
                    break 'pages;
                }
                if event.version != page.version + 1 {
                    let (found, version) = (event.version, page.version);
                    return Err(Problem::internal(&format!("{key}: {found} follows {version}")));
                }
                page.version = event.version;
                if event.version > after {
                    page.json.push_str(if events == 0 { "" } else { "," });
                    page.json.push_str(&recorded.commit.cloud_event(event));
                    events += 1;
                }
            }
        }
        if !read.more {
            break;
        }
    }
    page.json.push(']');
    Ok(page)
}

/// Nothing is recorded under this key: because no application has the aggregate, or not yet.
fn missing(catalog: &Catalog, key: &AggregateKey) -> Problem {
    if catalog.aggregate(key.aggregate().as_str()).is_none() {
        return unknown(catalog);
    }
    let detail = "nothing has been recorded for this aggregate";
    Problem::new(&problems::NO_SUCH_AGGREGATE, detail)
}

pub(crate) fn unknown(catalog: &Catalog) -> Problem {
    error::refused(Outcome::UnknownAggregate { known: declared(catalog).collect() }, false)
}

/// It is one of the platform's own, whatever an application calls so.
pub(crate) fn reserved(catalog: &Catalog) -> Problem {
    let others = declared(catalog).filter(|name| !RESERVED.contains(&name.as_str()));
    let detail = "the platform's own aggregates take no commands; known lists those that do";
    let problem = Problem::new(&problems::UNKNOWN_AGGREGATE, detail);
    problem.with("known", others.collect::<Vec<_>>())
}

/// The aggregates of all applications.
fn declared(catalog: &Catalog) -> impl Iterator<Item = String> {
    let aggregates = catalog.applications.values().flat_map(|app| app.aggregates.keys());
    aggregates.map(ToString::to_string)
}
