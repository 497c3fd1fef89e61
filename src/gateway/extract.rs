//! Requests, read into types that cannot be wrong: parameters, names, conditions, preferences,
//! bodies. Pure but for reading the body.

use std::{mem, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, RawPathParams, Request},
    http::{HeaderMap, HeaderName, Uri, header},
};
use bytes::{Bytes, BytesMut};
use flexcore_auth::Identity;
use flexcore_definition::taken::{MIN_POSITION, WAIT_MS};
use flexcore_domain::{AggregateKey, CommandId, InvalidName, Position, Tenant, TraceParent};
use flexcore_resilience::Deadline;
use futures::FutureExt;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::{
    error::Problem,
    form::Form,
    limits::{ANSWER_TIMEOUT, BODY_IDLE_TIMEOUT, BODY_TIMEOUT, PARAMETERS_MAX, WAIT_MAX},
    problems,
};

/// The middleware's findings about a request.
#[derive(Clone)]
pub(crate) struct Findings {
    pub(crate) trace: TraceParent,
    /// Absent only where no token is needed.
    pub(crate) identity: Option<Arc<Identity>>,
}

/// A request as routes see it.
pub(crate) struct Call {
    findings: Findings,
    path: RawPathParams,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    body: Body,
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        let path = RawPathParams::from_request_parts(&mut parts, state).await.map_err(|_| {
            Problem::new(&problems::INVALID_NAME, "the path is not UTF-8 when decoded")
        })?;
        let findings = parts.extensions.remove();
        let findings = findings.expect("BUG: every request has gone through `run`");
        Ok(Self { findings, path, uri: parts.uri, headers: parts.headers, body })
    }
}

impl Call {
    pub(crate) fn trace(&self) -> &TraceParent {
        &self.findings.trace
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        self.findings.identity.as_ref().expect("BUG: nothing under /v1 is reached without a token")
    }

    pub(crate) fn tenant(&self) -> &Tenant {
        &self.identity().tenant
    }

    /// A part of the path, percent-decoded.
    pub(crate) fn part(&self, name: &str) -> &str {
        let found = self.path.iter().find(|(other, _)| *other == name);
        found.expect("BUG: the route has this part").1
    }

    pub(crate) fn name<T>(
        &self,
        part: &str,
        parse: impl Fn(&str) -> Result<T, InvalidName>,
    ) -> Result<T, Problem> {
        Ok(parse(self.part(part))?)
    }

    /// The aggregate that the path names, of the token's tenant.
    pub(crate) fn key(&self) -> Result<AggregateKey, Problem> {
        Ok(AggregateKey::new(
            self.tenant().clone(),
            self.name("aggregate", flexcore_domain::AggregateName::parse)?,
            self.name("id", flexcore_domain::AggregateId::parse)?,
        ))
    }

    pub(crate) fn parameters(&self) -> Result<Parameters, Problem> {
        Parameters::parse(self.uri.query().unwrap_or_default())
    }

    /// The body, a form of so many bytes at most, before it is read.
    pub(crate) fn form(&mut self, bytes_max: u64) -> Result<Form, Problem> {
        Form::of(&self.headers, mem::take(&mut self.body), bytes_max)
    }

    /// The body, which must be JSON by its type, of so many bytes at most; its text is not looked at.
    pub(crate) async fn json_body(&mut self, bytes_max: usize) -> Result<Bytes, Problem> {
        check_media_type(&self.headers)?;
        let announced = self.headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > bytes_max) {
            return Err(too_large(bytes_max));
        }
        read(&mut self.body, bytes_max).await
    }
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(&problems::PAYLOAD_TOO_LARGE, format!("this body has at most {bytes_max} bytes"))
}

/// Reads the body within its limits. Most bodies are there with their head, and cost no timer.
async fn read(body: &mut Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let late = |_| Problem::new(&problems::REQUEST_TIMEOUT, "the body did not arrive in time");
    let mut first: Option<Bytes> = None;
    let mut more: Option<BytesMut> = None;
    let mut end: Option<Instant> = None;
    loop {
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                let now = Instant::now();
                let end = *end.get_or_insert(now + BODY_TIMEOUT);
                timeout_at(end.min(now + BODY_IDLE_TIMEOUT), body.frame()).await.map_err(late)?
            }
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| {
            Problem::new(&problems::BAD_REQUEST, "the body broke off before its end")
        })?;
        let Ok(data) = frame.into_data() else { continue };
        match (&mut more, first.take()) {
            (None, None) => first = Some(data),
            (None, Some(before)) => {
                let mut joined = BytesMut::from(before);
                joined.extend_from_slice(&data);
                more = Some(joined);
            }
            (Some(joined), _) => joined.extend_from_slice(&data),
        }
        let length = more.as_ref().map_or(0, BytesMut::len) + first.as_ref().map_or(0, Bytes::len);
        if length > bytes_max {
            return Err(too_large(bytes_max));
        }
    }
    Ok(more.map(BytesMut::freeze).or(first).unwrap_or_default())
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let unsupported =
        |detail: &'static str| Err(Problem::new(&problems::UNSUPPORTED_MEDIA_TYPE, detail));
    if headers.contains_key(header::CONTENT_ENCODING) {
        return unsupported("compressed bodies are not taken");
    }
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let mut parts = value.unwrap_or_default().split(';').map(str::trim);
    if !parts.next().unwrap_or_default().eq_ignore_ascii_case("application/json") {
        return unsupported("the body must be application/json, and say so in Content-Type");
    }
    let foreign = parts.any(|part| {
        let charset = part.to_ascii_lowercase();
        charset.strip_prefix("charset=").is_some_and(|c| c.trim_matches('"') != "utf-8")
    });
    if foreign { unsupported("JSON is UTF-8") } else { Ok(()) }
}

/// A header that may be given once. Fails when it is given twice or is not ASCII text.
pub(crate) fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let invalid = |why: &str| Problem::new(&problems::INVALID_HEADER, format!("{name}: {why}"));
    if values.next().is_some() {
        return Err(invalid("it may be given once"));
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| invalid("it must be ASCII text"))
}

/// The command's id, as a plain word or as a structured field's string.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<CommandId>, Problem> {
    static NAME: HeaderName = HeaderName::from_static("idempotency-key");
    let Some(text) = single(headers, &NAME)? else { return Ok(None) };
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    CommandId::parse(inner).map(Some).map_err(|_| {
        let rule = CommandId::RULE;
        let detail = format!("idempotency-key: {rule}, plain or in double quotes");
        Problem::new(&problems::INVALID_HEADER, detail)
    })
}

/// The version that `If-Match` asks for.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(text) = single(headers, &header::IF_MATCH)? else { return Ok(None) };
    let why = match text {
        "*" => {
            "* is not supported: send the ETag of the state that you decided on, or \"0\" for \
                an aggregate that must not exist yet"
        }
        weak if weak.starts_with("W/") => "a weak entity tag never matches: send it without W/",
        list if list.contains(',') => "one entity tag only: an aggregate has one version",
        tag => match version_of(tag) {
            Some(version) => return Ok(Some(version)),
            None => "it must be a version in double quotes, such as \"3\"",
        },
    };
    Err(Problem::new(&problems::INVALID_HEADER, format!("if-match: {why}")))
}

/// True if `If-None-Match` names this version (weakly compared, as RFC 9110 asks), so that the
/// answer is 304.
pub(crate) fn none_match(headers: &HeaderMap, version: u64) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || version_of(tag.strip_prefix("W/").unwrap_or(tag)) == Some(version)
    })
}

fn version_of(tag: &str) -> Option<u64> {
    let digits = tag.strip_prefix('"')?.strip_suffix('"')?;
    let canonical = digits == "0" || !digits.starts_with(['0', '+']);
    if canonical { digits.parse().ok() } else { None }
}

/// The wishes in `Prefer` (RFC 7240); others are ignored, as they must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preferences {
    pub(crate) respond_async: bool,
    /// Bounded by [`WAIT_MAX`].
    pub(crate) wait: Option<Duration>,
}

/// Until when the client waits for an answer: as it says in `Flexcore-Timeout-Ms`, and not longer
/// than [`ANSWER_TIMEOUT`]. Fails when it says something that is no time.
pub(crate) fn deadline(headers: &HeaderMap) -> Result<Deadline, Problem> {
    let longest = Deadline::after(ANSWER_TIMEOUT);
    Ok(clients_deadline(headers)?.map_or(longest, |asked| asked.min(longest)))
}

/// Until when the client says that it waits; `None`: it does not say.
pub(crate) fn clients_deadline(headers: &HeaderMap) -> Result<Option<Deadline>, Problem> {
    let text = single(headers, &HeaderName::from_static("flexcore-timeout-ms"))?;
    let asked = text.map(|text| Deadline::parse(text, Instant::now())).transpose();
    asked.map_err(|error| Problem::new(&problems::BAD_REQUEST, error.to_string()))
}

pub(crate) fn preferences(headers: &HeaderMap) -> Preferences {
    let mut preferences = Preferences::default();
    let values = headers.get_all(HeaderName::from_static("prefer")).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    for preference in texts.flat_map(|text| text.split([',', ';'])).map(str::trim) {
        let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
        if name.trim().eq_ignore_ascii_case("respond-async") {
            preferences.respond_async = true;
        } else if name.trim().eq_ignore_ascii_case("wait") && preferences.wait.is_none() {
            let seconds = value.trim().trim_matches('"').parse().ok();
            preferences.wait = seconds.map(|s| Duration::from_secs(s).min(WAIT_MAX));
        }
    }
    preferences
}

/// The parameters of a query string, decoded, in order.
#[derive(Debug)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: &str) -> Result<Self, Problem> {
        let invalid = |why: &'static str| Problem::new(&problems::INVALID_PARAMETER, why);
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8();
            let text = decoded.map_err(|_| invalid("the query string is not UTF-8"))?.into_owned();
            if text.contains('\0') { Err(invalid("a parameter holds NUL")) } else { Ok(text) }
        };
        let mut pairs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(name)?, decode(value)?));
            if pairs.len() > PARAMETERS_MAX {
                return Err(invalid("there are too many parameters"));
            }
        }
        Ok(Self(pairs))
    }

    /// Takes a parameter out. Fails when it is given twice.
    pub(crate) fn take(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            let detail = format!("{name} may be given once");
            return Err(Problem::new(&problems::INVALID_PARAMETER, detail));
        }
        Ok(values.pop())
    }

    /// Takes a parameter out and parses it.
    pub(crate) fn take_parsed<T: std::str::FromStr>(
        &mut self,
        name: &str,
        what: &str,
    ) -> Result<Option<T>, Problem> {
        let parsed = self.take(name)?.map(|text| text.parse());
        parsed.transpose().map_err(|_| {
            Problem::new(&problems::INVALID_PARAMETER, format!("{name} must be {what}"))
        })
    }

    fn take_all(&mut self, name: &str) -> Vec<String> {
        let taken = self.0.extract_if(.., |(other, _)| other == name);
        taken.map(|(_, value)| value).collect()
    }

    /// Takes out [`MIN_POSITION`] (repeated or with commas between) and [`WAIT_MS`].
    pub(crate) fn take_wait(&mut self) -> Result<(Vec<Position>, Duration), Problem> {
        let tokens = self.take_all(MIN_POSITION);
        let tokens = tokens.iter().flat_map(|value| value.split(','));
        let positions: Result<Vec<Position>, _> = tokens.map(|text| text.trim().parse()).collect();
        let positions = positions.map_err(|error| {
            Problem::new(&problems::INVALID_PARAMETER, format!("{MIN_POSITION}: {error}"))
        })?;
        let wait = self.take_parsed::<u64>(WAIT_MS, "a number of milliseconds")?;
        let wait = wait.map_or(crate::limits::WAIT_DEFAULT, Duration::from_millis);
        Ok((positions, wait.min(WAIT_MAX)))
    }

    /// Refuses all parameters that were not taken.
    pub(crate) fn finish(self, known: &[&str]) -> Result<(), Problem> {
        let Some((name, _)) = self.0.into_iter().next() else { return Ok(()) };
        let name: String = name.chars().take(40).flat_map(char::escape_debug).collect();
        let detail = format!("there is no parameter {name:?} here");
        Err(Problem::new(&problems::INVALID_PARAMETER, detail).with("known", known.to_vec()))
    }

    /// The refused parts, for callers that know their names.
    pub(crate) fn rest(self) -> Vec<(String, String)> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    #[test]
    fn idempotency_keys_are_plain_or_quoted() {
        let key = |text| idempotency_key(&headers(&[("idempotency-key", text)]));
        assert_eq!(key("a-1").unwrap().unwrap().as_str(), "a-1");
        assert_eq!(key("\"a-1\"").unwrap().unwrap().as_str(), "a-1");
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
        for text in ["", "\"\"", "a b", "\"a", "a.b", "*", ">"] {
            assert_eq!(key(text).unwrap_err().status(), 400, "{text}");
        }
        let mut twice = headers(&[("idempotency-key", "a")]);
        twice.append("idempotency-key", "b".parse().unwrap());
        assert_eq!(idempotency_key(&twice).unwrap_err().status(), 400);
    }

    #[test]
    fn if_match_is_one_strong_version() {
        let version = |text| if_match(&headers(&[("if-match", text)]));
        assert_eq!(version("\"3\"").unwrap(), Some(3));
        assert_eq!(version("\"0\"").unwrap(), Some(0));
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
        for text in ["3", "*", "W/\"3\"", "\"3\", \"4\"", "\"\"", "\"-1\"", "\"+1\"", "\"03\"", "x"]
        {
            assert_eq!(version(text).unwrap_err().status(), 400, "{text}");
        }
    }

    #[test]
    fn if_none_match_is_compared_weakly() {
        for text in ["\"3\"", "W/\"3\"", "\"1\", \"3\"", "*"] {
            assert!(none_match(&headers(&[("if-none-match", text)]), 3), "{text}");
        }
        for text in ["\"4\"", "3", "", "\"33\""] {
            assert!(!none_match(&headers(&[("if-none-match", text)]), 3), "{text}");
        }
    }

    #[test]
    fn preferences_that_make_no_sense_are_ignored() {
        let prefer = |text| preferences(&headers(&[("prefer", text)]));
        let both = Preferences { respond_async: true, wait: Some(Duration::from_secs(5)) };
        assert_eq!(prefer("respond-async, wait=5"), both);
        assert_eq!(prefer("Respond-Async; wait=\"5\""), both);
        assert_eq!(prefer("wait=99999").wait, Some(WAIT_MAX));
        assert_eq!(prefer("handling=lenient, wait=x, , ="), Preferences::default());
    }

    #[test]
    fn parameters_are_decoded_and_unknown_ones_refused() {
        let mut read = Parameters::parse("a=1%2C2&b=x+y&&c").unwrap();
        assert_eq!(read.take("a").unwrap().as_deref(), Some("1,2"));
        assert_eq!(read.take("b").unwrap().as_deref(), Some("x y"));
        assert_eq!(read.finish(&["a", "b"]).unwrap_err().status(), 400);
        assert_eq!(Parameters::parse("a=%ff").unwrap_err().status(), 400);
        assert_eq!(Parameters::parse("a=%00").unwrap_err().status(), 400);
        assert_eq!(Parameters::parse(&"a=1&".repeat(65)).unwrap_err().status(), 400);
        assert_eq!(Parameters::parse("a=1&a=2").unwrap().take("a").unwrap_err().status(), 400);
    }

    #[test]
    fn positions_are_repeated_or_joined_by_commas() {
        let mut read = Parameters::parse("min_position=1-3-7,1-4-8&min_position=1-5-9").unwrap();
        let (positions, wait) = read.take_wait().unwrap();
        assert_eq!(positions.len(), 3);
        assert_eq!(wait, crate::limits::WAIT_DEFAULT);
        let mut long = Parameters::parse("wait_ms=99999999999").unwrap();
        assert_eq!(long.take_wait().unwrap().1, WAIT_MAX);
        for bad in ["min_position=7", "min_position=", "min_position=1-99-1", "wait_ms=soon"] {
            assert_eq!(Parameters::parse(bad).unwrap().take_wait().unwrap_err().status(), 400);
        }
    }

    #[test]
    fn only_json_in_utf8_is_taken() {
        for text in ["application/json", "Application/JSON; charset=UTF-8"] {
            assert!(check_media_type(&headers(&[("content-type", text)])).is_ok(), "{text}");
        }
        for text in ["", "text/plain", "application/json5", "application/json; charset=utf-16"] {
            let refused = check_media_type(&headers(&[("content-type", text)]));
            assert_eq!(refused.unwrap_err().status(), 415, "{text}");
        }
        let packed = headers(&[("content-type", "application/json"), ("content-encoding", "gzip")]);
        assert_eq!(check_media_type(&packed).unwrap_err().status(), 415);
    }
}
