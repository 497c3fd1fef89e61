//! The side that serves gRPC on one connection.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{Request, Response, body::Incoming, server::conn::http2::Builder as ServerBuilder};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{body::Body, service::Routes};
use tower_service::Service;

use super::{late, reason};
use crate::{
    Error,
    identity::Tls,
    limits::{
        DIAL_WAIT, HTTP_CALLS_MAX, HTTP_CONNECTION_WINDOW_BYTES, HTTP_HEADERS_BYTES_MAX,
        HTTP_PENDING_RESETS, HTTP_STREAM_WINDOW_BYTES, PING_EVERY, PING_WAIT,
    },
    transport::BoxIo,
};

/// What the other side may ask of one connection that is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    /// Those under way at once.
    pub(crate) most: u32,
    /// Longest time until a call is answered; then it is dropped. It is not for what follows in a
    /// stream of answers. None: as long as the caller waits.
    pub(crate) within: Option<Duration>,
}

impl Default for Calls {
    /// For the main connection of a plugin: its host is no enemy, and has deadlines.
    fn default() -> Self {
        Self { most: HTTP_CALLS_MAX, within: None }
    }
}

/// [`serve_secured`], without TLS, on a main connection.
pub(crate) async fn serve(io: BoxIo, routes: Routes, stop: CancellationToken) -> Result<(), Error> {
    serve_secured(io, None, routes, stop, Calls::default()).await
}

/// A connection as it is, or within TLS, where the other side has to show its certificate.
pub(crate) async fn secured(io: BoxIo, tls: Option<&Tls>) -> Result<BoxIo, Error> {
    match tls {
        Some(tls) => tls.accept(io).await,
        None => Ok(io),
    }
}

/// Serves gRPC on one connection until the other side closes it. When `stop` is cancelled, no
/// further calls are taken, and it returns after those under way. When this is dropped, so are
/// those. Fails when the connection breaks, and when the other side does not begin within
/// [`DIAL_WAIT`]; one that only looks whether somebody is there is no failure.
///
/// It does what tonic's server does for a connection, but for deadlines of clients: one whose
/// deadline has passed resets its call, and the call is dropped then.
pub(crate) async fn serve_secured(
    io: BoxIo,
    tls: Option<&Tls>,
    routes: Routes,
    stop: CancellationToken,
    calls: Calls,
) -> Result<(), Error> {
    let io = secured(io, tls).await?;
    let Some(begun) = stop.run_until_cancelled(Begun::wait(io)).await else { return Ok(()) };
    let Some(io) = begun? else { return Ok(()) };
    let mut builder = ServerBuilder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(HTTP_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HTTP_HEADERS_BYTES_MAX)
        .max_concurrent_streams(calls.most)
        .max_pending_accept_reset_streams(calls.most.saturating_mul(HTTP_PENDING_RESETS) as usize)
        .auto_date_header(false)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_WAIT);
    let routes = Timely { routes: routes.prepare(), within: calls.within };
    let service = TowerToHyperService::new(routes);
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
    let served = tokio::select! {
        served = served.as_mut() => served,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    served.map_err(|error| broken(io::Error::other(reason(&error))))
}

fn broken(error: io::Error) -> Error {
    Error::system("serve a connection")(error)
}

/// Services whose calls are dropped when they have no answer in time.
#[derive(Clone)]
struct Timely {
    routes: Routes,
    within: Option<Duration>,
}

impl Service<Request<Incoming>> for Timely {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<Incoming>>::poll_ready(&mut self.routes, cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (answered, within) = (self.routes.call(request), self.within);
        Box::pin(async move {
            match within {
                Some(limit) => {
                    let answered = timeout(limit, answered).await;
                    answered.unwrap_or_else(|_| Ok(late(limit).into_http()))
                }
                None => answered.await,
            }
        })
    }
}

/// The first bytes of a client.
pub(super) const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// A connection whose client has sent its first bytes. hyper would wait for them for ever.
struct Begun {
    io: BoxIo,
    preface: [u8; PREFACE_BYTES],
    /// Bytes of the preface that have been read.
    read: usize,
}

impl Begun {
    /// None when the client leaves before.
    async fn wait(mut io: BoxIo) -> Result<Option<Self>, Error> {
        let mut preface = [0; PREFACE_BYTES];
        match timeout(DIAL_WAIT, io.read_exact(&mut preface)).await {
            Ok(Ok(_)) => Ok(Some(Self { io, preface, read: 0 })),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(Error::Late { what: "a client's first bytes", limit: DIAL_WAIT }),
        }
    }
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read == PREFACE_BYTES {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let end = PREFACE_BYTES.min(self.read + buf.remaining());
        buf.put_slice(&self.preface[self.read..end]);
        self.read = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
