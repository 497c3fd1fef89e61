//! `/metrics`, `/livez` and `/readyz` of a process without a gateway.

use std::{convert::Infallible, time::Duration};

use flexcore_cluster::Guard;
use flexcore_gateway::RenderMetrics;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A scraper that has not asked by then is none.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest life of a connection: scrapers come every few seconds and reconnect.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves until the token is cancelled.
pub(crate) async fn serve(
    listener: TcpListener,
    render: RenderMetrics,
    guard: Guard,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (render, guard) = (render.clone(), guard.clone());
        tokio::spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let response = respond(request.uri().path(), &render, &guard);
                async { Ok::<_, Infallible>(response) }
            });
            let conversation = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            // A scraper that breaks off is not worth a word.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, conversation).await;
        });
    }
}

fn respond(path: &str, render: &RenderMetrics, guard: &Guard) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/metrics" => (StatusCode::OK, render()),
        "/livez" => (StatusCode::OK, "live\n".to_owned()),
        "/readyz" if guard.holds() => (StatusCode::OK, "ready\n".to_owned()),
        "/readyz" => {
            (StatusCode::SERVICE_UNAVAILABLE, "no member: the broker does not answer\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "here are /metrics, /livez and /readyz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
