//! What every request goes through: trace context, limits of its head, the token, the tenant's
//! rate; and on the way back problem documents, common headers and metrics.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use flexcore_auth::{self as auth, Identity};
use flexcore_domain::TraceParent;
use flexcore_resilience::Deadline;
use futures::FutureExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    admission::Rate,
    connections::{Connection, UnderWay},
    error::Problem,
    extract::Findings,
    limits::{ANSWER_TIMEOUT, HEADERS_BYTES_MAX, URI_BYTES_MAX},
    problems,
    route::Route,
    shared::Shared,
    strangers::StrangerPlace,
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers that the router itself sets on problems.
const KEPT_ON_PROBLEMS: &[HeaderName] = &[header::ALLOW];

/// Answers one request, which is for one of these routes or for none.
pub(crate) async fn run(
    State((shared, routes)): State<(Arc<Shared>, &'static [Route])>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = Route::of(routes, &request);
    let label = route.map_or(NO_ROUTE, |route| route.path);
    let parent = traceparent(request.headers());
    let span = tracing::debug_span!("http.request", otel.kind = "server", method, route = label);
    if let Some(parent) = &parent {
        flexcore_telemetry::link(&span, parent.as_str());
    }
    let (admitted, response) = answer(&shared, route, request, next, parent).instrument(span).await;
    let status = response.status();
    let (method, label) = labels(admitted, status, (method, label));
    shared.record(method, label, status.as_u16(), started.elapsed());
    response
}

/// The answer, and whether the sender was admitted to the route.
async fn answer(
    shared: &Shared,
    route: Option<&Route>,
    mut request: Request,
    next: Next,
    parent: Option<TraceParent>,
) -> (bool, Response) {
    let mut under_way = UnderWay::begin(&mut request);
    let own = flexcore_telemetry::current_traceparent().and_then(|text| text.parse().ok());
    let trace = own.or(parent).unwrap_or_else(new_trace);
    let protected = match route {
        Some(route) => route.needs.is_some(),
        None => request.uri().path().starts_with("/v1/"),
    };
    let head = (request.version(), request.uri(), request.headers());
    let admitted = admit(shared, route, protected, under_way.connection(), head).await;
    let Admitted { identity, rate, place: _place } = match admitted {
        Ok(admitted) => admitted,
        Err(problem) => {
            return (false, finish(problem.into_response(), &trace, None, protected));
        }
    };
    if let Some(Identity { tenant, .. }) = identity.as_deref()
        && let Err(problem) = under_way.is_of(tenant)
    {
        // While the refusal is held back the connection may give way to another one.
        drop(under_way);
        let in_time = Deadline::after(ANSWER_TIMEOUT);
        let problem = shared.admission.refuse(tenant, problem, in_time).await;
        let refused = finish(problem.into_response(), &trace, rate.as_ref(), protected);
        return (true, closing(refused, request.version()));
    }
    if let Err(problem) = allow(identity.as_deref(), route) {
        return (true, finish(problem.into_response(), &trace, rate.as_ref(), protected));
    }
    request.extensions_mut().insert(Findings { trace: trace.clone(), identity });
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = answered.unwrap_or_else(|_| {
        // The panic's own message is in the log already.
        Problem::internal(&"a handler panicked").into_response()
    });
    #[cfg(feature = "defects")]
    let response = if protected { crate::defects::answered(response) } else { response };
    (true, under_way.until_sent(finish(response, &trace, rate.as_ref(), protected)))
}

/// The answer after which the connection is closed. HTTP/2 has no word for that in an answer; its
/// connection is one without a request again.
fn closing(mut response: Response, version: Version) -> Response {
    if version <= Version::HTTP_11 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Fails where the route needs a permission that the sender has not.
fn allow(identity: Option<&Identity>, route: Option<&Route>) -> Result<(), Problem> {
    let Some(needed) = route.and_then(|route| route.needs) else { return Ok(()) };
    if identity.is_some_and(|identity| identity.may(needed)) {
        return Ok(());
    }
    let detail = format!("the token does not give the permission {needed:?}");
    Err(Problem::new(&problems::FORBIDDEN, detail))
}

/// A sender that was let in.
#[derive(Default)]
struct Admitted {
    /// `None`: a stranger.
    identity: Option<Arc<Identity>>,
    rate: Option<Rate>,
    /// A stranger's, kept until the answer is there.
    place: Option<StrangerPlace>,
}

async fn admit(
    shared: &Shared,
    route: Option<&Route>,
    protected: bool,
    connection: &Connection,
    (version, uri, headers): (Version, &Uri, &HeaderMap),
) -> Result<Admitted, Problem> {
    let strangers = &shared.strangers;
    if let Err(problem) = fits(uri, headers).and_then(|()| names_host(version, headers)) {
        return Err(strangers.refuse(connection, problem).await);
    }
    if protected {
        let identity = match identify(shared, connection, headers).await {
            Ok(identity) => identity,
            Err(Unidentified::Stranger(problem)) => {
                return Err(strangers.refuse(connection, problem).await);
            }
            Err(Unidentified::Expired(problem)) => return Err(problem),
        };
        let rate = shared.admission.rate(&identity.tenant)?;
        return Ok(Admitted { identity: Some(identity), rate: Some(rate), place: None });
    }
    if route.is_some_and(Route::is_always_answered) {
        return Ok(Admitted::default());
    }
    let place = strangers.enter(connection).await?;
    Ok(Admitted { place: Some(place), ..Admitted::default() })
}

/// Fails where the head is too long.
fn fits(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let uri = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if uri > URI_BYTES_MAX {
        let detail = format!("path and query have at most {URI_BYTES_MAX} bytes");
        return Err(Problem::new(&problems::URI_TOO_LONG, detail));
    }
    let fields = headers.iter();
    if fields.map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
        > HEADERS_BYTES_MAX
    {
        let detail = format!("headers have at most {HEADERS_BYTES_MAX} bytes");
        return Err(Problem::new(&problems::HEADERS_TOO_LARGE, detail));
    }
    Ok(())
}

/// Fails where the head names several hosts, or none in HTTP/1.1 (RFC 9112, 3.2): whoever stands before the
/// gateway may have gone by another one.
fn names_host(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get_all(header::HOST).iter().count() {
        1 => Ok(()),
        // HTTP/2 has a word of its own for it.
        0 if version != Version::HTTP_11 => Ok(()),
        _ => Err(Problem::new(&problems::BAD_REQUEST, "send one header Host")),
    }
}

/// A sender of whom nobody knows who it is, and the answer.
enum Unidentified {
    /// Told so as far as strangers are let in.
    Stranger(Problem),
    /// Whoever had a good token learns in any case that its time is over, and gets another.
    Expired(Problem),
}

impl From<Problem> for Unidentified {
    fn from(problem: Problem) -> Self {
        Self::Stranger(problem)
    }
}

/// Who sends the request, by its bearer token (RFC 6750).
async fn identify(
    shared: &Shared,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Arc<Identity>, Unidentified> {
    let value = crate::extract::single(headers, &header::AUTHORIZATION)?;
    let token = value.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some(token) = token else {
        let detail = "send Authorization: Bearer TOKEN";
        let problem = Problem::new(&problems::UNAUTHENTICATED, detail);
        let challenge = HeaderValue::from_static("Bearer realm=\"flexcore\"");
        return Err(problem.header(header::WWW_AUTHENTICATE, challenge).into());
    };
    if let Some(identity) = shared.verifier.remembered(token, now_s()) {
        return Ok(identity);
    }
    let check = || shared.verifier.verify(token, now_s());
    let error = match shared.strangers.check(connection, check).await? {
        Ok(identity) => return Ok(identity),
        Err(error) => error,
    };
    let challenge = format!(
        "Bearer realm=\"flexcore\", error=\"invalid_token\", error_description=\"{error}\""
    );
    let challenge = HeaderValue::try_from(challenge).expect("BUG: errors are plain ASCII");
    let problem = Problem::new(&problems::UNAUTHENTICATED, error.to_string())
        .header(header::WWW_AUTHENTICATE, challenge);
    Err(match error {
        auth::Error::Expired => Unidentified::Expired(problem),
        _ => Unidentified::Stranger(problem),
    })
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes the problem, if there is one, and the headers that every answer has.
fn finish(
    mut response: Response,
    trace: &TraceParent,
    rate: Option<&Rate>,
    protected: bool,
) -> Response {
    let problem = response.extensions_mut().remove::<Problem>().or_else(|| stray(&response));
    if let Some(problem) = problem {
        problem.log(trace.trace_id());
        let mut rendered = problem.render(Some(trace.trace_id()));
        for name in KEPT_ON_PROBLEMS {
            if let Some(value) = response.headers().get(name) {
                rendered.headers_mut().insert(name, value.clone());
            }
        }
        response = rendered;
    }
    let headers = response.headers_mut();
    let value = HeaderValue::from_str(trace.as_str()).expect("BUG: a traceparent is ASCII");
    headers.insert(TRACEPARENT, value);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if protected && !headers.contains_key(header::CACHE_CONTROL) {
        let value = HeaderValue::from_static("private, no-cache");
        headers.insert(header::CACHE_CONTROL, value);
    }
    if let Some(rate) = rate {
        rate.write(headers);
    }
    response
}

/// A problem for an error status that came without one, from the framework itself.
fn stray(response: &Response) -> Option<Problem> {
    match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => Some(Problem::new(
            &problems::METHOD_NOT_ALLOWED,
            "the header Allow lists those that are",
        )),
        status
            if status.is_server_error()
                && !response.headers().contains_key(header::CONTENT_TYPE) =>
        {
            Some(Problem::internal(&status))
        }
        status
            if status.is_client_error()
                && !response.headers().contains_key(header::CONTENT_TYPE) =>
        {
            Some(Problem::new(&problems::BAD_REQUEST, "the request cannot be read"))
        }
        _ => None,
    }
}

fn traceparent(headers: &HeaderMap) -> Option<TraceParent> {
    headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

fn new_trace() -> TraceParent {
    let (trace, span) = (Uuid::new_v4().as_u128(), Uuid::new_v4().as_u64_pair().1);
    let text = format!("00-{trace:032x}-{span:016x}-00");
    text.parse().expect("BUG: version and variant bits keep both ids from being zero")
}

/// Method and route under which an answer is counted. Strangers choose both as they like, and each
/// pair with a status would be kept for ever.
fn labels(
    admitted: bool,
    status: StatusCode,
    (method, route): (&'static str, &'static str),
) -> (&'static str, &'static str) {
    match status {
        _ if !admitted => (OTHER_METHOD, NO_ROUTE),
        StatusCode::METHOD_NOT_ALLOWED => (OTHER_METHOD, route),
        _ => (method, route),
    }
}

/// The label of requests for no route.
const NO_ROUTE: &str = "none";
/// The label of methods that are not told apart.
const OTHER_METHOD: &str = "other";

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => OTHER_METHOD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_add_no_line_for_each_method_and_route() {
        let sent = ("DELETE", "/v1/cluster");
        assert_eq!(labels(false, StatusCode::UNAUTHORIZED, sent), (OTHER_METHOD, NO_ROUTE));
        assert_eq!(labels(false, StatusCode::URI_TOO_LONG, sent), (OTHER_METHOD, NO_ROUTE));
        let not_allowed = labels(true, StatusCode::METHOD_NOT_ALLOWED, sent);
        assert_eq!(not_allowed, (OTHER_METHOD, "/v1/cluster"));
        assert_eq!(labels(true, StatusCode::FORBIDDEN, sent), sent);
    }

    #[test]
    fn a_request_names_one_host() {
        let named = |version, hosts: &[&'static str]| {
            let value = |&host: &&'static str| (header::HOST, HeaderValue::from_static(host));
            names_host(version, &hosts.iter().map(value).collect()).map_err(|it| it.status())
        };
        for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
            assert_eq!(named(version, &["x"]), Ok(()));
            assert_eq!(named(version, &["x", "y"]), Err(StatusCode::BAD_REQUEST));
            assert_eq!(named(version, &["x", "x"]), Err(StatusCode::BAD_REQUEST));
        }
        assert_eq!(named(Version::HTTP_11, &[]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(named(Version::HTTP_10, &[]), Ok(()));
        assert_eq!(named(Version::HTTP_2, &[]), Ok(()));
    }

    #[test]
    fn new_traces_are_valid_and_differ() {
        let (one, two) = (new_trace(), new_trace());
        assert_ne!(one.trace_id(), two.trace_id());
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        let with =
            |text: &str| traceparent(&HeaderMap::from_iter([(TRACEPARENT, text.parse().unwrap())]));
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(with(good).unwrap().as_str(), good);
        assert!(with("00-00000000000000000000000000000000-00f067aa0ba902b7-01").is_none());
        assert!(with("x").is_none());
    }
}
