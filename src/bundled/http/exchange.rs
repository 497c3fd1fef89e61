//! One request and its answer, over a connection of their own.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use flexcore_sdk::Failure;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    HeaderMap, Method, Request, Response,
    client::conn::http1::Builder,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use url::{Position, Url};

use super::settings::{Settings, host};
use crate::reach;

/// Most headers of an answer: what the library takes unless told otherwise.
const HEADERS_MAX: usize = 100;
/// Largest head of an answer, in bytes. 64 KiB: as many as are read at once.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A request of a tenant to one host.
pub(super) struct Hop<'a> {
    pub(super) tenant: &'a str,
    pub(super) url: &'a Url,
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Sends a request and returns the answer, whatever its status. Sets the mark when the endpoint may
/// have seen the request. The caller bounds the time.
pub(super) async fn exchange(
    hop: Hop<'_>,
    settings: &Settings,
    bytes_max: usize,
    sent: &AtomicBool,
) -> Result<Response<Bytes>, Failure> {
    let (tenant, url) = (hop.tenant, hop.url);
    let (Some(host), Some(port)) = (host(url), url.port_or_known_default()) else {
        return Err(Failure::new("invalid_url", "the address has no host"));
    };
    let request = request(hop)?;
    let stream = reach::connect(tenant, &host, port, &settings.networks).await?;
    // A request is whole: waiting to fill a segment only delays it. Without it, it is slower.
    let _ = stream.set_nodelay(true);
    if url.scheme() != "https" {
        return send(stream, request, bytes_max, sent).await;
    }
    let name = ServerName::try_from(host.clone()).map_err(|_| {
        Failure::new("invalid_url", format!("{host} is no name that a certificate can have"))
    })?;
    let connected = TlsConnector::from(Arc::clone(&settings.tls)).connect(name, stream).await;
    send(connected.map_err(|error| no_tls(&host, &error))?, request, bytes_max, sent).await
}

fn request(hop: Hop<'_>) -> Result<Request<Full<Bytes>>, Failure> {
    let Hop { url, method, headers, body, .. } = hop;
    let unfit =
        || Failure::new("invalid_url", "the address has characters that HTTP does not take");
    let host = HeaderValue::from_str(&url[Position::BeforeHost..Position::AfterPort]);
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() =
        url[Position::BeforePath..Position::AfterQuery].parse().map_err(|_| unfit())?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(header::HOST, host.map_err(|_| unfit())?);
    Ok(request)
}

async fn send<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    bytes_max: usize,
    sent: &AtomicBool,
) -> Result<Response<Bytes>, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = Builder::new();
    builder.max_headers(HEADERS_MAX).max_header_size(HEAD_BYTES_MAX).max_buf_size(HEAD_BYTES_MAX);
    let made = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(|error| broken(&error))?;
    let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
    sent.store(true, Ordering::Relaxed);
    let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, bytes_max).collect().await;
    let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
        Ok(error) => broken(&error),
        Err(error) if error.is::<LengthLimitError>() => {
            Failure::new("too_large", format!("the answer has more than {bytes_max} bytes"))
        }
        Err(error) => Failure::passing("no_answer", error),
    })?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// What is no HTTP is so the next time, too.
fn broken(error: &hyper::Error) -> Failure {
    if error.is_parse() {
        return Failure::new("broken_answer", format!("the endpoint's answer is no HTTP: {error}"));
    }
    Failure::passing("no_answer", format!("the endpoint did not answer: {error}"))
}

/// A certificate that is not to be trusted stays so, until somebody does something.
fn no_tls(host: &str, error: &io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(inner) if matches!(inner, rustls::Error::InvalidCertificate(_)) => {
            Failure::new("not_trusted", format!("{host}: {inner}"))
        }
        _ => Failure::passing("no_connection", format!("{host}: no TLS: {error}")),
    }
}
