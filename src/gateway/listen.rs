//! The accept loop: hyper under our own timers and caps, which `axum::serve` has not.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use flexcore_http::accept;
use hyper::{
    Request,
    body::Incoming,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    admission::shed,
    connections::{Connection, Connections},
    frames::Frames,
    limits::{
        CONNECTION_IDLE_TIMEOUT, DRAIN_NOTICE, DRAIN_TIMEOUT, HEAD_BUFFER_BYTES, HEADERS_BYTES_MAX,
        HEADERS_TIMEOUT, HTTP2_PING_INTERVAL, HTTP2_PING_TIMEOUT, HTTP2_RESETS_MAX,
        HTTP2_STREAMS_MAX, REFUSALS_MAX,
    },
    problems::{self, ProblemKind},
    shared::Shared,
};

/// Longest time for a refused connection to ask and to read the refusal.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until `shutdown` is cancelled, then drains.
pub(crate) async fn run(
    listener: TcpListener,
    router: Router,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    tracing::info!(address = %listener.local_addr()?, "HTTP is served");
    let conversations = TaskTracker::new();
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = Connections::new(shared.settings.connections_max);
    let closing = CancellationToken::new();
    let server = Arc::new(server());
    #[cfg(feature = "defects")]
    crate::defects::watch(shutdown.clone());
    let stop = stop_accepting(&shared, &shutdown);
    tokio::pin!(stop);
    loop {
        let stream = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener) => accepted,
        };
        let Some(connection) = connections.open() else {
            shed("connections");
            refuse(stream, &refusals);
            continue;
        };
        let (router, server, closing) = (router.clone(), server.clone(), closing.clone());
        conversations.spawn(async move {
            let _open = Open::count();
            converse(stream, connection, router, &server, closing).await;
        });
    }
    drop(listener);
    closing.cancel();
    conversations.close();
    if timeout(DRAIN_TIMEOUT, conversations.wait()).await.is_err() {
        tracing::warn!(left = conversations.len(), "connections were still busy when time was up");
    }
    Ok(())
}

/// Readiness turns false at once; connections are taken a little longer, while load balancers learn
/// of it.
async fn stop_accepting(shared: &Shared, shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    shared.drain();
    tokio::time::sleep(DRAIN_NOTICE).await;
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_TIMEOUT)
        .max_buf_size(HEAD_BUFFER_BYTES);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_pending_accept_reset_streams(HTTP2_RESETS_MAX)
        .max_local_error_reset_streams(HTTP2_RESETS_MAX)
        .max_header_list_size(u32::try_from(HEADERS_BYTES_MAX * 2).expect("BUG: it is small"));
    server
}

/// One connection, from its first byte to its last.
async fn converse(
    stream: TcpStream,
    connection: Arc<Connection>,
    router: Router,
    server: &auto::Builder<TokioExecutor>,
    closing: CancellationToken,
) {
    // Answers are small and whole: waiting to fill a segment only delays them.
    let _ = stream.set_nodelay(true);
    let mut first = [0];
    let first = tokio::select! {
        first = timeout(HEADERS_TIMEOUT, stream.peek(&mut first)) => first,
        () = connection.gives_way() => return,
        () = closing.cancelled() => return,
    };
    if !matches!(first, Ok(Ok(1))) {
        return;
    }
    let stream = TokioIo::new(Watched::new(stream, connection.clone()));
    let (router, known) = (TowerToHyperService::new(router), connection.clone());
    let conversation = server.serve_connection(
        stream,
        service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(known.clone());
            router.call(request)
        }),
    );
    tokio::pin!(conversation);
    let mut leaves = false;
    let ended = loop {
        tokio::select! {
            ended = conversation.as_mut() => break ended,
            // It has no request of a tenant under way, so that nothing is lost.
            () = connection.gives_way() => return,
            () = leave(&connection, &closing), if !leaves => {
                leaves = true;
                conversation.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Returns when a connection is to end once it has answered what is under way.
async fn leave(connection: &Connection, closing: &CancellationToken) {
    tokio::select! {
        () = connection.leaves() => {}
        () = closing.cancelled() => {}
    }
}

/// Answers a connection for which there is no place, then closes it.
fn refuse(mut stream: TcpStream, refusals: &Arc<Semaphore>) {
    let Ok(place) = refusals.clone().try_acquire_owned() else { return };
    tokio::spawn(async move {
        let text = bare_answer(&problems::OVERLOADED, "there are too many connections");
        let answer = async {
            // To a client that has not asked yet, an answer is noise.
            stream.peek(&mut [0]).await?;
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await?;
            // Closing with unread bytes would reset the connection and the answer with it.
            let mut sink = [0; 4096];
            while stream.read(&mut sink).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout(REFUSAL_TIMEOUT, answer).await;
        drop(place);
    });
}

/// A whole answer with a problem document, for where there is no request to speak of.
fn bare_answer(kind: &ProblemKind, detail: &str) -> String {
    let body = format!(
        "{{\"type\":\"/problems/{}\",\"title\":\"{}\",\"status\":{},\"detail\":\"{detail}\"}}",
        kind.code,
        kind.title,
        kind.status.as_u16()
    );
    let retry = if kind.retry_after_s > 0 { "retry-after: 1\r\n" } else { "" };
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         {retry}connection: close\r\n\r\n{body}",
        kind.status,
        body.len()
    )
}

/// The answer that replaces hyper's own to a head that it cannot read, which has no body. Every
/// answer of ours that is an error has one.
fn instead_of(head: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(head).ok()?;
    let status = text.strip_prefix("HTTP/1.1 ")?.get(..3)?;
    if !text.contains("content-length: 0\r\n") || !text.ends_with("\r\n\r\n") {
        return None;
    }
    match status {
        "400" => Some(bare_answer(&problems::BAD_REQUEST, "this is not HTTP/1.1")),
        "414" => Some(bare_answer(&problems::URI_TOO_LONG, "path and query are too long")),
        "431" => Some(bare_answer(&problems::HEADERS_TOO_LARGE, "path or headers are too long")),
        _ => None,
    }
}

/// Counts a connection while it is open.
struct Open;

static OPEN: AtomicUsize = AtomicUsize::new(0);

impl Open {
    fn count() -> Self {
        gauge(OPEN.fetch_add(1, Ordering::Relaxed) + 1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge(OPEN.fetch_sub(1, Ordering::Relaxed) - 1);
    }
}

fn gauge(open: usize) {
    metrics::gauge!("flexcore_http_connections").set(u32::try_from(open).unwrap_or(u32::MAX));
}

/// A connection that fails when for [`CONNECTION_IDLE_TIMEOUT`] no byte came in or went out. This
/// ends readers that do not read, and openings that are no request. It fails, too, when more frames come than
/// belong to requests.
struct Watched {
    stream: TcpStream,
    connection: Arc<Connection>,
    frames: Frames,
    active: Instant,
    timer: Pin<Box<Sleep>>,
    /// The answer that replaces hyper's, and the part of it that has gone.
    substitute: Option<(String, usize)>,
}

impl Watched {
    fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        let now = Instant::now();
        Self {
            stream,
            connection,
            frames: Frames::new(now),
            active: now,
            timer: Box::pin(sleep_until(now + CONNECTION_IDLE_TIMEOUT)),
            substitute: None,
        }
    }

    /// Passes a result on. Progress is noted; while there is none the timer runs.
    fn watch<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.active = Instant::now();
            return poll;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.active + CONNECTION_IDLE_TIMEOUT;
            if due <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// Notes what has gone: so many bytes of these.
    fn went(&mut self, buffers: &[io::IoSlice<'_>], poll: &Poll<io::Result<usize>>) {
        let Poll::Ready(Ok(gone)) = poll else { return };
        if !self.frames.are_there() {
            return;
        }
        let (mut left, to_tenant) = (*gone, self.connection.has_tenant());
        for buffer in buffers {
            let part = &buffer[..left.min(buffer.len())];
            self.frames.went(part, to_tenant);
            left -= part.len();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = poll
            && let Err(flood) = self.frames.arrived(&buffer.filled()[before..], Instant::now())
        {
            shed("frames");
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        self.watch(cx, poll)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buffer.starts_with(b"HTTP/1.1 4") && this.substitute.is_none() {
            this.substitute = instead_of(buffer).map(|text| (text, 0));
        }
        while let Some((text, sent)) = &mut this.substitute {
            match Pin::new(&mut this.stream).poll_write(cx, &text.as_bytes()[*sent..]) {
                Poll::Ready(Ok(more)) if more > 0 => *sent += more,
                other => return this.watch(cx, other),
            }
            if *sent == text.len() {
                this.substitute = None;
                return this.watch(cx, Poll::Ready(Ok(buffer.len())));
            }
        }
        let poll = Pin::new(&mut this.stream).poll_write(cx, buffer);
        this.went(&[io::IoSlice::new(buffer)], &poll);
        this.watch(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [head] = buffers {
            return self.poll_write(cx, head);
        }
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.went(buffers, &poll);
        self.watch(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
