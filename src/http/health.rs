//! What a process says of itself: whether it lives and is ready, and its metrics. A gateway has these pages
//! among its routes; [`serve`] is for a port of their own.

use std::{borrow::Cow, convert::Infallible, future::Future, sync::Arc, time::Duration};

use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, header::HeaderValue,
    server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::accept;

/// Renders all metrics in Prometheus' text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Whether the process answers.
pub const LIVEZ: &str = "/livez";
/// Whether it can work.
pub const READYZ: &str = "/readyz";
/// Whether it could work once.
pub const STARTUPZ: &str = "/startupz";
/// Its metrics.
pub const METRICS: &str = "/metrics";

/// A scraper that has not asked by then is none.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection: scrapers come every few seconds and reconnect.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections at once; others wait. Some scrapers and probes come every few seconds.
const CONNECTIONS_MAX: usize = 256;

/// Something that does not answer, or is not as it should be.
#[derive(Clone, Debug, Serialize)]
pub struct Missing {
    /// Its name, such as `nats`.
    pub what: &'static str,
    /// The reason, for strangers, too.
    pub why: Cow<'static, str>,
}

/// `/livez`: the process answers.
#[must_use]
pub fn live() -> Response<String> {
    json(StatusCode::OK, &json!({"status": "live"}))
}

/// `/readyz`: 200 where nothing is missing, or the process is of use without it, else 503.
#[must_use]
pub fn ready(missing: &[Missing], is_of_use: bool) -> Response<String> {
    match missing {
        [] => json(StatusCode::OK, &json!({"status": "ready"})),
        _ if is_of_use => json(StatusCode::OK, &json!({"status": "degraded", "missing": missing})),
        _ => not_ready(missing),
    }
}

/// `/startupz`: everything needed was there once.
#[must_use]
pub fn started() -> Response<String> {
    json(StatusCode::OK, &json!({"status": "started"}))
}

/// Where the process is not ready, or not started yet.
#[must_use]
pub fn not_ready(missing: &[Missing]) -> Response<String> {
    let body = json!({"status": "not ready", "missing": missing});
    let mut response = json(StatusCode::SERVICE_UNAVAILABLE, &body);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// `/metrics`
#[must_use]
pub fn metrics(render: &RenderMetrics) -> Response<String> {
    answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render())
}

fn json(status: StatusCode, body: &Value) -> Response<String> {
    answer(status, "application/json", body.to_string())
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// Serves `/livez`, `/metrics`, and what `ready` says at `/readyz`, until the token is cancelled.
pub async fn serve<R, A>(
    listener: TcpListener,
    render: RenderMetrics,
    ready: R,
    stop: CancellationToken,
) where
    R: Fn() -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<String>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place.expect("BUG: nobody closes it"), accept(&listener).await)
        };
        let Some((place, stream)) = stop.run_until_cancelled(next).await else { return };
        let (render, ready) = (render.clone(), ready.clone());
        let service = service_fn(move |request| respond(request, render.clone(), ready.clone()));
        let conversation = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // A scraper that breaks off is not worth a word.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, conversation).await;
            drop(place);
        });
    }
}

async fn respond<R, A>(
    request: Request<Incoming>,
    render: RenderMetrics,
    ready: R,
) -> Result<Response<String>, Infallible>
where
    R: Fn() -> A,
    A: Future<Output = Response<String>>,
{
    let text = |status, text: &str| answer(status, "text/plain; charset=utf-8", text.to_owned());
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, LIVEZ) => live(),
        (&Method::GET | &Method::HEAD, READYZ) => ready().await,
        (&Method::GET | &Method::HEAD, METRICS) => metrics(&render),
        (_, LIVEZ | READYZ | METRICS) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "here are only GET and HEAD\n")
        }
        _ => text(StatusCode::NOT_FOUND, "here are /metrics, /livez and /readyz\n"),
    })
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;

    use super::*;
    use crate::{Limits, ask};

    const NATS: Missing = Missing { what: "nats", why: Cow::Borrowed("it does not answer") };

    #[tokio::test]
    async fn a_port_of_its_own_has_metrics_and_health() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let render: RenderMetrics = Arc::new(|| "# m\n".to_owned());
        let readiness = || std::future::ready(ready(&[NATS], false));
        let serving = tokio::spawn(serve(listener, render, readiness, stop.clone()));
        let limits = Limits { within: Duration::from_secs(5), bytes_max: 1_000 };
        let call = async |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(Bytes::new()).unwrap();
            ask(&authority, request, limits).await.unwrap()
        };
        let got = async |path: &str| {
            let answer = call(Method::GET, path).await;
            (answer.status().as_u16(), String::from_utf8(answer.into_body().to_vec()).unwrap())
        };
        assert_eq!(got("/livez").await, (200, r#"{"status":"live"}"#.to_owned()));
        assert_eq!(got("/metrics?a=b").await, (200, "# m\n".to_owned()));
        let missing = r#"[{"what":"nats","why":"it does not answer"}]"#;
        let body = format!(r#"{{"status":"not ready","missing":{missing}}}"#);
        assert_eq!(got("/readyz").await, (503, body));
        assert_eq!(got("/v1/cluster").await.0, 404);
        assert_eq!(call(Method::POST, "/metrics").await.status(), 405);
        assert!(call(Method::HEAD, "/livez").await.body().is_empty());
        stop.cancel();
        serving.await.unwrap();
    }

    #[test]
    fn a_process_that_is_of_use_is_ready_and_says_what_is_missing() {
        assert_eq!(ready(&[], false).body(), r#"{"status":"ready"}"#);
        let degraded = ready(&[NATS], true);
        assert_eq!(degraded.status(), StatusCode::OK);
        assert!(degraded.body().starts_with(r#"{"status":"degraded","missing":[{"what":"nats""#));
        let refused = ready(&[NATS], false);
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()[header::RETRY_AFTER], "1");
    }
}
