//! Many streams over one connection, by hashicorp's yamux. The connection is plain; whoever wants
//! TLS has it within each stream.
//!
//! A session runs in a task of its own, until the other side ends it, or all handles and streams of
//! this side are gone. [`Mux`] is a handle.
//!
//! # What a hostile plugin can fill
//! A stream has a window of 256 KiB, and the session none that grows: its limit for all streams is
//! what they have anyway. The crate keeps every frame's data by itself, with about 100 bytes more,
//! so that one-byte frames would take a hundred times their size: [`Scraps`] ends such a session.
//! What remains are frames of 9 bytes: 29,127 fill a window, and 3 MiB of memory. There are at most
//! [`STREAMS_MAX`] = 80 streams, those included that are being closed, so 240 MiB at worst, if
//! nobody reads any of them. In the other direction a stream takes 12 frames of 16 KiB from us.
//! Pings are answered one by one: while an answer cannot be sent, nothing is read. A plugin that
//! breaks a rule of yamux ends the session; the crate itself would only tell it so, and go on.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead as _, AsyncWrite as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufStream, ReadBuf},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use yamux::{Config, Connection, ConnectionError, DEFAULT_CREDIT, Mode, Stream};

use crate::{
    Error,
    limits::{
        MUX_ARRIVALS_MAX, MUX_BUFFER_BYTES, MUX_SCRAPS_MAX, MUX_STREAMS_MAX, MUX_WAIT,
        MUX_WANTED_MAX,
    },
    transport::BoxIo,
};

/// Streams that the crate may know of at once. Those above the limit are being closed: it hears of
/// a stream that was dropped a moment later. More break a rule.
const STREAMS_MAX: usize = MUX_STREAMS_MAX + MUX_ARRIVALS_MAX;

/// A request for a stream.
type Wanted = oneshot::Sender<Stream>;
/// A stream with its place among [`MUX_STREAMS_MAX`].
type Placed = (Stream, OwnedSemaphorePermit);

/// A multiplexed connection. A cheap clone.
#[derive(Clone)]
pub(crate) struct Mux {
    wanted: mpsc::Sender<Wanted>,
    arrived: Arc<Mutex<mpsc::Receiver<Placed>>>,
    places: Arc<Semaphore>,
}

impl Mux {
    /// The side that dialled, which is a host.
    pub(crate) fn client(io: BoxIo) -> Self {
        Self::new(io, Mode::Client)
    }

    /// The side that listened, which is a plugin.
    pub(crate) fn server(io: BoxIo) -> Self {
        Self::new(io, Mode::Server)
    }

    fn new(io: BoxIo, mode: Mode) -> Self {
        let (wanted, wants) = mpsc::channel(MUX_WANTED_MAX);
        let (arrivals, arrived) = mpsc::channel(MUX_ARRIVALS_MAX);
        let places = Arc::new(Semaphore::new(MUX_STREAMS_MAX));
        let session = Session {
            connection: Connection::new(Socket::new(io), config(), mode),
            wants,
            waiting: None,
            arrivals,
            places: Arc::clone(&places),
        };
        tokio::spawn(session.run());
        Self { wanted, arrived: Arc::new(Mutex::new(arrived)), places }
    }

    /// Opens a stream. The other side hears of it even if nothing is written, and hears of several
    /// in the order in which they were opened. Fails when the session has ended, and after
    /// [`MUX_WAIT`], when there are too many. Cancel-safe.
    pub(crate) async fn open(&self) -> Result<BoxIo, Error> {
        let opened = async {
            let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
            let (sender, stream) = oneshot::channel();
            self.wanted.send(sender).await.ok()?;
            Some((stream.await.ok()?, place))
        };
        self.taken(timeout(MUX_WAIT, opened).await)
    }

    /// The next stream that the other side opened. Fails when the session has ended, and when none
    /// is there after [`MUX_WAIT`]. Cancel-safe. Streams that nobody takes are closed when there
    /// are more than a few.
    pub(crate) async fn accept(&self) -> Result<BoxIo, Error> {
        let arrived = async { self.arrived.lock().await.recv().await };
        self.taken(timeout(MUX_WAIT, arrived).await)
    }

    fn taken<E>(&self, placed: Result<Option<Placed>, E>) -> Result<BoxIo, Error> {
        match placed {
            Ok(Some((stream, place))) => {
                Ok(Box::new(Held { stream, _place: place, _session: self.wanted.clone() }))
            }
            Ok(None) => Err(Error::Ended),
            Err(_) => Err(Error::Late { what: "a multiplexed stream", limit: MUX_WAIT }),
        }
    }
}

fn config() -> Config {
    let mut config = Config::default();
    // As many windows as streams: none can grow, which they need not on one machine.
    config.set_max_num_streams(STREAMS_MAX);
    config.set_max_connection_receive_window(Some(STREAMS_MAX * DEFAULT_CREDIT as usize));
    config
}

/// What the session's task owns.
struct Session {
    connection: Connection<Socket>,
    wants: mpsc::Receiver<Wanted>,
    waiting: Option<Wanted>,
    arrivals: mpsc::Sender<Placed>,
    places: Arc<Semaphore>,
}

/// The end of a session.
enum End {
    /// Nobody on this side has a handle or a stream any more.
    Unwanted,
    /// The other side has closed the connection.
    Closed,
    Broken(ConnectionError),
}

impl Session {
    async fn run(mut self) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        match end {
            End::Unwanted => {
                let closing = poll_fn(|cx| self.connection.poll_close(cx));
                // The other side may not read any more; then it finds the connection closed.
                let _ = timeout(MUX_WAIT, closing).await;
            }
            End::Closed => {}
            End::Broken(error) => tracing::debug!(%error, "a multiplexed connection has ended"),
        }
    }

    /// Opens one stream at a time, and works for all others in between: only then does the crate
    /// notice those that were dropped, and send what is written.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let opened = self.poll_open(cx);
            if opened == Poll::Ready(None) {
                return Poll::Ready(End::Unwanted);
            }
            let ended = self.poll_arrivals(cx);
            if ended.is_ready() || opened.is_pending() {
                return ended;
            }
        }
    }

    /// Ready when a request has been answered; with none when nobody will ask for more.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        if self.waiting.is_none() {
            match ready!(self.wants.poll_recv(cx)) {
                Some(wanted) => self.waiting = Some(wanted),
                None => return Poll::Ready(None),
            }
        }
        let opened = ready!(self.connection.poll_new_outbound(cx));
        // An error is that of the session. It ends in a moment, and whoever waits is told so.
        if let (Some(wanted), Ok(mut stream)) = (self.waiting.take(), opened) {
            announce(&mut stream, cx);
            let _ = wanted.send(stream);
        }
        Poll::Ready(Some(()))
    }

    /// Sends and receives for all streams. Ready when the session has ended.
    fn poll_arrivals(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            match ready!(self.connection.poll_next_inbound(cx)) {
                Some(Ok(stream)) => self.arrive(stream, cx),
                Some(Err(error)) => return Poll::Ready(End::Broken(error)),
                None => return Poll::Ready(End::Closed),
            }
        }
    }

    fn arrive(&self, mut stream: Stream, cx: &mut Context<'_>) {
        announce(&mut stream, cx);
        let refused = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => {
                let kept = self.arrivals.try_send((stream, place));
                kept.err().map(|error| error.into_inner().0)
            }
            Err(_) => Some(stream),
        };
        if let Some(mut refused) = refused {
            // Nothing else waits to be sent on it yet, so this is done at once.
            let _ = Pin::new(&mut refused).poll_close(cx);
        }
    }
}

/// Tells the other side that a stream has been opened, or taken, by a frame without data. The crate
/// would wait until something is written. But a plugin's answer to a knock is for the next stream
/// that it hears of, and hashicorp's ends the whole session when nobody has acknowledged a stream
/// of its own within 75 s.
fn announce(stream: &mut Stream, cx: &mut Context<'_>) {
    // A new stream has room for some frames, so this is done at once.
    let _ = Pin::new(stream).poll_write(cx, &[]);
}

/// A stream that keeps the session alive.
struct Held {
    stream: Stream,
    _place: OwnedSemaphorePermit,
    _session: mpsc::Sender<Wanted>,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf.initialize_unfilled()))?;
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

/// The connection below a session: buffered, and watched for scraps that come and for the crate's
/// word that a rule has been broken.
struct Socket {
    io: BufStream<BoxIo>,
    scraps: Scraps,
    sent: Headers,
    /// The other side has broken a rule. Every write fails from then on: the crate does not look
    /// at each error, but at that of a flush.
    is_over: bool,
}

impl Socket {
    fn new(io: BoxIo) -> Self {
        let io = BufStream::with_capacity(MUX_BUFFER_BYTES, MUX_BUFFER_BYTES, io);
        Self { io, scraps: Scraps::default(), sent: Headers::default(), is_over: false }
    }
}

impl futures::AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut buf = ReadBuf::new(buf);
        ready!(Pin::new(&mut this.io).poll_read(cx, &mut buf))?;
        this.scraps.see(buf.filled())?;
        Poll::Ready(Ok(buf.filled().len()))
    }
}

impl futures::AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(Err(rule_broken()));
        }
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        let seen = this.sent.see(&buf[..written], no_rule_is_broken);
        this.is_over = seen.is_err();
        Poll::Ready(seen.map(|()| written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_over {
            return Poll::Ready(Err(rule_broken()));
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Bytes of a frame's header: version, type, two of flags, four of the stream, four of the length.
const HEADER_BYTES: usize = 12;
/// The type of a frame with data. Others have none, whatever their length says.
const DATA: u8 = 0;
/// Data of a frame that only a cut write is as small as, in bytes.
const SCRAP_BYTES_MAX: u32 = 8;
/// Data of a frame that makes up for one scrap: whoever cuts a write has sent a large part of it.
const LARGE_BYTES_MIN: u32 = 64;

/// The type of a frame that ends the session; in place of a length it has a reason.
const GO_AWAY: u8 = 3;
/// The reason of an end in good order.
const NO_ERROR: u32 = 0;

/// Fails at the crate's word to the other side that it has broken a rule. The crate goes on after
/// that; an error of the socket makes it end.
fn no_rule_is_broken(kind: u8, reason: u32) -> io::Result<()> {
    if kind == GO_AWAY && reason != NO_ERROR { Err(rule_broken()) } else { Ok(()) }
}

fn rule_broken() -> io::Error {
    let reason = "the other side has broken a rule of multiplexing";
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Follows frames, wherever their bytes are cut.
#[derive(Default)]
struct Headers {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have been seen.
    known: usize,
    /// Bytes of the frame's data that are still to come.
    data: u32,
}

impl Headers {
    /// Shows type and length of each frame whose header is complete. Fails when `each` does.
    fn see(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(u8, u32) -> io::Result<()>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let data = bytes.len().min(self.data as usize);
            self.data -= data as u32;
            bytes = &bytes[data..];
            let more = bytes.len().min(HEADER_BYTES - self.known);
            self.header[self.known..self.known + more].copy_from_slice(&bytes[..more]);
            self.known += more;
            bytes = &bytes[more..];
            if self.known == HEADER_BYTES {
                self.known = 0;
                let [_, kind, _, _, _, _, _, _, length @ ..] = self.header;
                let length = u32::from_be_bytes(length);
                self.data = if kind == DATA { length } else { 0 };
                each(kind, length)?;
            }
        }
        Ok(())
    }
}

/// Counts the frames that come whose data is so small that keeping it costs far more than itself.
#[derive(Default)]
struct Scraps {
    headers: Headers,
    count: u32,
}

impl Scraps {
    /// Fails when there were too many.
    fn see(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self { headers, count } = self;
        headers.see(bytes, |kind, length| match (kind, length) {
            (DATA, 1..=SCRAP_BYTES_MAX) if *count == MUX_SCRAPS_MAX => {
                let reason = "too many multiplexed frames with only a few bytes";
                Err(io::Error::new(io::ErrorKind::InvalidData, reason))
            }
            (DATA, 1..=SCRAP_BYTES_MAX) => {
                *count += 1;
                Ok(())
            }
            (DATA, LARGE_BYTES_MIN..) => {
                *count = count.saturating_sub(1);
                Ok(())
            }
            _ => Ok(()),
        })
    }
}

#[cfg(test)]
#[path = "mux_tests.rs"]
mod tests;
