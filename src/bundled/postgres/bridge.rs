//! A connection to a database, over a stream to an address that was checked. sqlx looks names up by
//! itself and connects to whatever it finds; so it is given a socket in a folder of ours, and what is
//! said there goes to and fro over the stream. TLS goes through, and holds the server to its name.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use sqlx::{ConnectOptions as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpStream, UnixListener, tcp::OwnedReadHalf, unix::OwnedWriteHalf},
};
use tokio_util::task::AbortOnDropHandle;

use super::failed::Trouble;

/// Bytes that the database may send for one call. 16 MiB: 900 KiB of JSON are less in its own words, and
/// sqlx keeps a row as it comes, whatever its size.
const RECEIVED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes that are copied at once.
const COPY_BYTES: usize = 16 * 1024;

/// What the database may still send.
pub(super) struct Meter {
    left: AtomicUsize,
    is_over: AtomicBool,
}

/// A connection, and what carries it.
pub(super) struct Bridged {
    pub(super) connection: PgConnection,
    pub(super) meter: Arc<Meter>,
    _carries: AbortOnDropHandle<io::Result<()>>,
}

impl Meter {
    /// For the next call.
    pub(super) fn reset(&self) {
        self.left.store(RECEIVED_BYTES_MAX, Ordering::Relaxed);
    }

    /// True if the database has sent more, which has ended the connection.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> io::Result<()> {
        let less = |left: usize| left.checked_sub(bytes);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.map(drop).map_err(|_| {
            self.is_over.store(true, Ordering::Relaxed);
            io::Error::other("the database sends more than this plugin takes")
        })
    }
}

/// Logs in, over a stream that leads to the database.
pub(super) async fn bridged(
    options: PgConnectOptions,
    stream: TcpStream,
) -> Result<Bridged, Trouble> {
    // Requests are whole: waiting to fill a segment only delays them. Without it, they are slower.
    let _ = stream.set_nodelay(true);
    // Nobody else may enter it, and it is gone when sqlx is connected.
    let private = Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().permissions(private).tempdir().map_err(Trouble::here)?;
    let socket = folder.path().join(format!(".s.PGSQL.{}", options.get_port()));
    let listener = UnixListener::bind(socket).map_err(Trouble::here)?;
    let meter = Arc::new(Meter {
        left: AtomicUsize::new(RECEIVED_BYTES_MAX),
        is_over: AtomicBool::new(false),
    });
    let carries = AbortOnDropHandle::new(tokio::spawn(carry(listener, stream, Arc::clone(&meter))));
    let connection = options.socket(folder.path()).connect().await?;
    Ok(Bridged { connection, meter, _carries: carries })
}

/// Ends when one of the two does.
async fn carry(listener: UnixListener, server: TcpStream, meter: Arc<Meter>) -> io::Result<()> {
    let (client, _) = listener.accept().await?;
    drop(listener);
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    tokio::select! {
        sent = copy(&mut from_client, &mut to_server) => sent.map(drop),
        received = metered(from_server, to_client, &meter) => received,
    }
}

async fn metered(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, meter: &Meter) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    while let read @ 1.. = from.read(&mut buffer).await? {
        meter.take(read)?;
        to.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
    Ok(())
}
