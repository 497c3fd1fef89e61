//! gRPC on one connection that is there already: a socket, a TLS session, a stream of a
//! multiplexer. There is no pool, no queue of calls and nothing that connects again.

use std::{
    error::Error as _,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use hyper::{
    HeaderMap, Request, Response, Uri,
    body::{Frame, Incoming, SizeHint},
    client::conn::http2::{Builder as ClientBuilder, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{runtime::Handle, task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    client::Grpc,
    codegen::http::uri::{Authority, PathAndQuery, Scheme},
};
use tower_service::Service;

mod served;

pub(crate) use served::{Calls, secured, serve, serve_secured};

use crate::{
    Error,
    limits::{
        ANSWER_BYTES_MAX, DIAL_WAIT, HTTP_CONNECTION_WINDOW_BYTES, HTTP_HEADERS_BYTES_MAX,
        HTTP_RESET_MEMORY, HTTP_RESETS_MAX, HTTP_STREAM_WINDOW_BYTES, PING_EVERY, PING_WAIT,
    },
    transport::BoxIo,
    wire::BASE64,
};

/// The host's name in requests, which nobody looks at.
const AUTHORITY: &str = "plugin";

/// A gRPC connection to a plugin, or to what it serves through its broker: generated clients take a
/// clone of it. A cheap clone.
///
/// A call waits as long as its caller does, who should have a deadline, such as [`Self::within`]: a
/// call that is dropped is given up at the other end, too. When the connection has ended, calls fail
/// at once with `UNAVAILABLE`. It ends when the other side ends it, and when all clones and calls
/// are gone; then the other side has [`DIAL_WAIT`] to read what is on its way.
#[derive(Clone)]
pub struct Connection {
    // Its queue has no limit, and needs none: each call that waits in it has a caller who waits.
    sender: SendRequest<Body>,
    answer_bytes_max: usize,
    /// Longest time until an answer begins; none: as long as the caller waits.
    within: Option<Duration>,
    life: Arc<Life>,
}

/// What all clones of a connection share, and the calls.
struct Life {
    tasks: Tasks,
    /// No further call is possible.
    ended: CancellationToken,
}

impl Drop for Life {
    /// hyper ends a connection in good order, and would wait for ever until the other side has read
    /// that.
    fn drop(&mut self) {
        let tasks = self.tasks.clone();
        let in_time = async move {
            if timeout(DIAL_WAIT, tasks.0.closed.cancelled()).await.is_err() {
                tasks.close();
            }
        };
        match Handle::try_current() {
            Ok(runtime) if !self.tasks.0.closed.is_cancelled() => drop(runtime.spawn(in_time)),
            Ok(_) => {}
            // Nobody can wait. The other side finds it closed.
            Err(_) => self.tasks.close(),
        }
    }
}

impl Connection {
    /// Begins HTTP/2 as a client. Fails when the other side is gone, and after [`DIAL_WAIT`].
    pub(crate) async fn new(io: BoxIo) -> Result<Self, Error> {
        let tasks = Tasks::default();
        let mut builder = ClientBuilder::new(tasks.clone());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(HTTP_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(HTTP_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HTTP_HEADERS_BYTES_MAX)
            .max_concurrent_reset_streams(HTTP_RESETS_MAX)
            .reset_stream_duration(HTTP_RESET_MEMORY)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_WAIT);
        let shaken = timeout(DIAL_WAIT, builder.handshake(TokioIo::new(io))).await;
        let shaken = shaken.map_err(|_| Error::Late { what: "HTTP/2", limit: DIAL_WAIT })?;
        let (sender, driven) = shaken.map_err(|error| Error::Unreachable {
            address: "its socket".to_owned(),
            reason: reason(&error),
        })?;
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        tokio::spawn(async move {
            let _guard = guard;
            if let Err(error) = driven.await {
                tracing::debug!(error = reason(&error), "a connection has ended");
            }
        });
        let life = Arc::new(Life { tasks, ended });
        Ok(Self { sender, answer_bytes_max: ANSWER_BYTES_MAX, within: None, life })
    }

    /// The same connection, whose [`Self::grpc`] takes messages of this size. Every call under way
    /// may take as much memory.
    pub(crate) fn with_answer_bytes_max(self, answer_bytes_max: usize) -> Self {
        Self { answer_bytes_max, ..self }
    }

    /// The largest message that [`Self::grpc`] takes, in bytes.
    pub(crate) fn answer_bytes_max(&self) -> usize {
        self.answer_bytes_max
    }

    /// The same connection, for calls whose answers begin within this time. Others are dropped and
    /// fail with `DEADLINE_EXCEEDED`. An answer that is a stream may then last; one in a single
    /// message is sent whole when it begins.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Self { within: Some(limit), ..self.clone() }
    }

    /// For calls without a generated client: messages of up to the size that the plugin was started
    /// with in both directions, [`ANSWER_BYTES_MAX`] unless its host said otherwise. A generated
    /// client has a limit of its own, of 4 MiB.
    #[must_use]
    pub fn grpc(&self) -> Grpc<Self> {
        Grpc::new(self.clone())
            .max_decoding_message_size(self.answer_bytes_max)
            .max_encoding_message_size(self.answer_bytes_max)
    }

    /// Returns when the connection has ended. One that the other side only means to end is noticed
    /// at the next call.
    pub async fn closed(&self) {
        self.life.ended.cancelled().await;
    }

    /// Ends the connection at once, whatever the other side does: calls under way and later ones
    /// fail.
    pub(crate) fn close(&self) {
        self.life.tasks.close();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let has_ended = self.life.ended.is_cancelled();
        f.debug_struct("Connection").field("has_ended", &has_ended).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    /// Always ready: tonic turns an error here into one of unknown kind, so that the call has to
    /// say it.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let uri = request.uri_mut();
        *uri = absolute(std::mem::take(uri));
        let sent = self.sender.send_request(request);
        let (within, life) = (self.within, Arc::clone(&self.life));
        Box::pin(async move {
            let answered = match within {
                Some(limit) => timeout(limit, sent).await.map_err(|_| late(limit))?,
                None => sent.await,
            };
            let (mut head, incoming) = answered.map_err(status)?.into_parts();
            drop_broken_details(&mut head.headers);
            Ok(Response::from_parts(head, Body::new(AnswerBody { incoming, _life: life })))
        })
    }
}

/// HTTP/2 needs a scheme and a host; a client that was not told any has only a path.
fn absolute(uri: Uri) -> Uri {
    if uri.scheme().is_some() && uri.authority().is_some() {
        return uri;
    }
    let mut parts = uri.into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static(AUTHORITY));
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).expect("BUG: a scheme, a host and a path are a URI")
}

fn late(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {limit:?}"))
}

/// The body of an answer, with our statuses.
struct AnswerBody {
    incoming: Incoming,
    _life: Arc<Life>,
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let mut frame = frame.map_err(status)?;
            if let Some(trailers) = frame.trailers_mut() {
                drop_broken_details(trailers);
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Removes details of an error that are not in base64: tonic, which reads them with the same
/// settings, panics on them.
fn drop_broken_details(headers: &mut HeaderMap) {
    const NAME: &str = "grpc-status-details-bin";
    if headers.get(NAME).is_some_and(|details| BASE64.decode(details).is_err()) {
        headers.remove(NAME);
    }
}

/// The status of a call that has failed. If only this call was reset, gRPC's table of reasons says
/// it; whatever happens to the connection is `UNAVAILABLE`, a call that was never begun included.
fn status(error: hyper::Error) -> Status {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    if cause.is_some_and(h2::Error::is_reset) {
        return Status::from_error(Box::new(error));
    }
    Status::unavailable(reason(&error))
}

/// hyper says where, and its source why.
fn reason(error: &hyper::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Runs hyper's tasks for a connection. The first one owns the socket; the others are for calls.
#[derive(Clone, Default)]
struct Tasks(Arc<SocketTask>);

#[derive(Default)]
struct SocketTask {
    handle: OnceLock<AbortHandle>,
    /// It has ended, and the socket is closed.
    closed: CancellationToken,
}

impl Tasks {
    /// Closes the socket at once.
    fn close(&self) {
        if let Some(socket) = self.0.handle.get() {
            socket.abort();
        }
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        if self.0.handle.get().is_some() {
            tokio::spawn(task);
            return;
        }
        let guard = self.0.closed.clone().drop_guard();
        let socket = tokio::spawn(async move {
            let _guard = guard;
            task.await;
        });
        self.0.handle.get_or_init(|| socket.abort_handle());
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
