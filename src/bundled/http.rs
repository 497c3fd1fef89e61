//! The plugin `http`: it calls an endpoint, over a connection of its own, and tells what it answers.

mod body;
mod exchange;
mod headers;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use flexcore_sdk::{Call, Failure, Function, Plugin};
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{self, HeaderName},
};
use serde::{Deserialize, Serialize};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use tokio::time::timeout;
use url::Url;

use self::{body::Content, exchange::Hop, settings::Settings};

/// Longest address, in bytes. 8 KiB: what most servers take.
const URL_BYTES_MAX: usize = 8 * 1024;
/// Most redirects that a caller may ask for. 10: more go round in a circle.
const REDIRECTS_MAX: u8 = 10;
/// Largest body of an answer, in bytes. 640 KiB: in base64 it fits into what a worker hands on.
const ANSWER_BYTES_MAX: usize = 640 * 1024;
/// Largest output, in bytes. 950 KiB: a worker hands on 960 KiB.
const OUTPUT_BYTES_MAX: usize = 950 * 1024;
/// Time that is left for telling that there was no answer. 100 ms: later than the caller's time nobody
/// hears of it.
const MARGIN: Duration = Duration::from_millis(100);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What the same request does a second time, it has done the first time.
static FETCH: [Method; 4] = [Method::GET, Method::HEAD, Method::PUT, Method::DELETE];
/// All others, and those: an endpoint may be wrong about itself.
static SEND: [Method; 4] = [Method::POST, Method::PATCH, Method::PUT, Method::DELETE];

/// The plugin.
pub(crate) fn plugin() -> Plugin {
    let fetch = Function::new("fetch", |call: Call<Input>| asked(call, true))
        .summary("Calls an endpoint with GET, HEAD, PUT or DELETE.")
        .input_schema(input_schema(&FETCH))
        .output_schema(output_schema())
        .idempotent();
    let send = Function::new("send", |call: Call<Input>| asked(call, false))
        .summary("Calls an endpoint once, with POST, PATCH, PUT or DELETE, and an Idempotency-Key.")
        .input_schema(input_schema(&SEND))
        .output_schema(output_schema());
    Plugin::new("http", env!("CARGO_PKG_VERSION"))
        .summary("Calls endpoints over HTTP.")
        .configured_by(settings::schema(), Settings::new)
        .function(fetch)
        .function(send)
}

fn input_schema(methods: &[Method]) -> Value {
    let methods: Vec<_> = methods.iter().map(Method::as_str).collect();
    json!({
        "type": "object",
        "required": ["method", "url"],
        "additionalProperties": false,
        "properties": {
            "method": { "enum": methods },
            "url": { "type": "string", "maxLength": URL_BYTES_MAX },
            "headers": {
                "type": "object",
                "maxProperties": headers::HEADERS_MAX,
                "additionalProperties": { "type": "string" },
            },
            "json": { "description": "The body, as JSON; one body at most." },
            "text": { "type": "string", "description": "The body, as text." },
            "base64": { "type": "string", "description": "The body, as bytes in base64." },
            "timeout_ms": { "type": "integer", "minimum": 1 },
            "redirects": {
                "type": "integer",
                "minimum": 0,
                "maximum": REDIRECTS_MAX,
                "description": "Redirects to follow; none unless said otherwise.",
            },
            "bytes_max": {
                "type": "integer",
                "minimum": 0,
                "maximum": ANSWER_BYTES_MAX,
                "description": "Largest body of the answer; the maximum unless said otherwise.",
            },
        },
    })
}

fn output_schema() -> Value {
    json!({
        "type": "object",
        "required": ["status", "url", "headers"],
        "properties": {
            "status": { "type": "integer" },
            "url": { "type": "string", "description": "Where the answer came from." },
            "headers": {
                "type": "object",
                "additionalProperties": { "type": "string" },
                "description": "Names in small letters. Values of one name stand behind each other \
                    with commas, those of set-cookie in lines.",
            },
            "json": { "description": "The body, where it is JSON and says so." },
            "text": { "type": "string", "description": "The body, where it is text else." },
            "base64": {
                "type": "string",
                "description": "The body, where it is neither, and where JSON would make the text too \
                    long.",
            },
        },
    })
}

/// What a caller sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    method: String,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    json: Option<Box<RawValue>>,
    text: Option<String>,
    base64: Option<String>,
    timeout_ms: Option<u64>,
    #[serde(default)]
    redirects: u8,
    bytes_max: Option<usize>,
}

/// What the caller gets, whatever the status.
#[derive(Serialize)]
struct Output {
    status: u16,
    url: String,
    headers: BTreeMap<String, String>,
    #[serde(flatten)]
    body: Content,
}

/// A request, checked.
struct Asked {
    url: Url,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
    redirects: u8,
    bytes_max: usize,
}

async fn asked(call: Call<Input>, is_idempotent: bool) -> Result<Box<RawValue>, Failure> {
    let settings = call.configured::<Settings>()?;
    let asked = Asked::new(&call, is_idempotent)?;
    let within = call.remaining().saturating_sub(MARGIN);
    let within = call.input.timeout_ms.map_or(within, |ms| within.min(Duration::from_millis(ms)));
    let sent = AtomicBool::new(false);
    let answered = timeout(within, follow(call.tenant(), asked, &settings, &sent)).await;
    let answered = answered.unwrap_or_else(|_| {
        Err(Failure::passing("late", format!("there was no whole answer within {within:?}")))
    });
    let written = answered.and_then(|output| output.written());
    written.map_err(|failure| told(failure, is_idempotent || !sent.load(Ordering::Relaxed)))
}

/// Behind a request that may have had its effect, each failure is the same one, and for good: whoever
/// mended what it says, and sent the request again, might have it done twice.
fn told(failure: Failure, may_be_sent_again: bool) -> Failure {
    if may_be_sent_again {
        return failure;
    }
    let Failure { code, message, .. } = failure;
    let message = format!("it is not known what came of the request: {code}: {message}");
    Failure::new("unknown_outcome", message)
}

impl Asked {
    fn new(call: &Call<Input>, is_idempotent: bool) -> Result<Self, Failure> {
        let input = &call.input;
        let methods = if is_idempotent { &FETCH } else { &SEND };
        let method = methods.iter().find(|method| method.as_str() == input.method).cloned();
        let method = method.ok_or_else(|| {
            Failure::new("invalid_input", "this function does not take this method")
        })?;
        let bytes_max = input.bytes_max.unwrap_or(ANSWER_BYTES_MAX);
        if bytes_max > ANSWER_BYTES_MAX {
            let message = format!("`bytes_max` is {ANSWER_BYTES_MAX} at most");
            return Err(Failure::new("invalid_input", message));
        }
        let (body, media_type) =
            body::sent(input.json.as_deref(), input.text.as_deref(), input.base64.as_deref())?;
        let mut headers = headers::given(&input.headers, media_type)?;
        if !is_idempotent {
            headers::add(&mut headers, IDEMPOTENCY_KEY, call.idempotency_key());
        }
        if let Some((parent, state)) = call.trace() {
            headers::add(&mut headers, TRACEPARENT, parent);
            headers::add(&mut headers, TRACESTATE, state);
        }
        Ok(Self {
            url: address(&input.url)?,
            method,
            headers,
            body,
            redirects: input.redirects.min(REDIRECTS_MAX),
            bytes_max,
        })
    }
}

/// An address over HTTP, without a login in it.
fn address(text: &str) -> Result<Url, Failure> {
    let unfit = |why: &str| Failure::new("invalid_url", format!("the address {why}"));
    if text.len() > URL_BYTES_MAX {
        return Err(unfit("is too long"));
    }
    // Its own words say what is wrong and quote nothing.
    let url = Url::parse(text).map_err(|error| unfit(&format!("is none: {error}")))?;
    checked(url, unfit)
}

fn checked(mut url: Url, unfit: impl Fn(&str) -> Failure) -> Result<Url, Failure> {
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(unfit("does not begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(unfit("has a login in it: put that into a header"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// Asks, and goes where it is sent, as often as the caller allows.
async fn follow(
    tenant: &str,
    asked: Asked,
    settings: &Settings,
    sent: &AtomicBool,
) -> Result<Output, Failure> {
    let Asked { mut url, mut method, mut headers, mut body, redirects, bytes_max } = asked;
    for _ in 0..=redirects {
        settings.check(&url)?;
        let headers_now = settings.headers_for(&url, &headers);
        let (method_now, body_now) = (method.clone(), body.clone());
        let hop =
            Hop { tenant, url: &url, method: method_now, headers: headers_now, body: body_now };
        let response = exchange::exchange(hop, settings, bytes_max, sent).await?;
        let next = if redirects > 0 { next(&url, &response)? } else { None };
        let Some(next) = next else { return Ok(Output::new(&url, response)) };
        if next.origin() != url.origin() {
            headers::keep_harmless(&mut headers);
        }
        if becomes_get(&method, response.status()) {
            method = Method::GET;
            body = Bytes::new();
            headers::drop_body(&mut headers);
        }
        url = next;
    }
    let message = format!("the endpoint redirected more than {redirects} times");
    Err(Failure::new("too_many_redirects", message))
}

/// Where an answer sends the caller; `None`: nowhere.
fn next(url: &Url, response: &Response<Bytes>) -> Result<Option<Url>, Failure> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = response.headers().get(header::LOCATION) else { return Ok(None) };
    let unfit = |why: &str| Failure::new("bad_redirect", format!("the redirect's address {why}"));
    let location = location.to_str().ok().filter(|text| text.len() <= URL_BYTES_MAX);
    let next = location.and_then(|location| url.join(location).ok());
    let next = checked(next.ok_or_else(|| unfit("is none"))?, unfit)?;
    if url.scheme() == "https" && next.scheme() == "http" {
        return Err(unfit("gives up TLS"));
    }
    Ok(Some(next))
}

/// True where the next request is a plain look, as browsers do it.
fn becomes_get(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        303 => method != Method::HEAD,
        301 | 302 => method == Method::POST,
        _ => false,
    }
}

impl Output {
    fn new(url: &Url, response: Response<Bytes>) -> Self {
        let (head, bytes) = response.into_parts();
        Self {
            status: head.status.as_u16(),
            url: url.to_string(),
            headers: headers::told(&head.headers),
            body: Content::of(&head.headers, &bytes),
        }
    }

    /// As JSON. Fails where a worker would not hand it on: the headers may be long, too.
    fn written(&self) -> Result<Box<RawValue>, Failure> {
        let json = to_raw_value(self).map_err(|error| Failure::new("broken_answer", error))?;
        if json.get().len() > OUTPUT_BYTES_MAX {
            let message = format!("the answer has more than {OUTPUT_BYTES_MAX} bytes as JSON");
            return Err(Failure::new("too_large", message));
        }
        Ok(json)
    }
}
