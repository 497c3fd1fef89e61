//! A connection to a database, over a stream to an address that was checked. sqlx looks names up by
//! itself and connects to whatever it finds; so it is given a socket in a folder of ours, and what is
//! said there goes to and fro over the stream. TLS begins here, so that the database's messages are
//! counted before sqlx makes room for them.

use std::{fs::Permissions, io, os::unix::fs::PermissionsExt as _, sync::Arc};

use flexcore_sdk::Failure;
use sqlx::{ConnectOptions as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy, split},
    net::{TcpStream, UnixListener},
};
use tokio_util::task::AbortOnDropHandle;

use super::{failed::Trouble, frames::Frames, security::Security};
use crate::meter::{Meter, carry};

/// Bytes of the messages that the database may announce for one call. 16 MiB: 900 KiB of JSON are less
/// in its own words, and sqlx keeps a row as it comes, whatever its size.
const RECEIVED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A connection, and what carries it.
pub(super) struct Bridged {
    pub(super) connection: PgConnection,
    pub(super) meter: Arc<Meter>,
    _carries: AbortOnDropHandle<io::Result<()>>,
}

/// Logs in, over a stream that leads to the database.
pub(super) async fn bridged(
    options: PgConnectOptions,
    security: &Security,
    stream: TcpStream,
) -> Result<Bridged, Failure> {
    // Requests are whole: waiting to fill a segment only delays them. Without it, they are slower.
    let _ = stream.set_nodelay(true);
    // Nobody else may enter it, and it is gone when sqlx is connected.
    let private = Permissions::from_mode(0o700);
    let folder = tempfile::Builder::new().permissions(private).tempdir().map_err(Trouble::here)?;
    let socket = folder.path().join(format!(".s.PGSQL.{}", options.get_port()));
    let listener = UnixListener::bind(socket).map_err(Trouble::here)?;
    let meter = Arc::new(Meter::new(RECEIVED_BYTES_MAX));
    let metered = Arc::clone(&meter);
    let carries = match security {
        Security::Open => tokio::spawn(carried(listener, stream, metered)),
        Security::Tls(secure) => {
            let stream = secure.secured(stream).await?;
            tokio::spawn(carried(listener, stream, metered))
        }
    };
    let carries = AbortOnDropHandle::new(carries);
    let connection =
        options.socket(folder.path()).connect().await.map_err(|error| {
            if meter.is_over() { too_large() } else { Trouble::from(error).into() }
        })?;
    Ok(Bridged { connection, meter, _carries: carries })
}

/// Of a database that sends more than a call may have.
pub(super) fn too_large() -> Failure {
    Failure::new("too_large", "the database sends more than this plugin takes")
}

/// Ends when one of the two sides does.
async fn carried<S>(listener: UnixListener, server: S, meter: Arc<Meter>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (client, _) = listener.accept().await?;
    drop(listener);
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = split(server);
    let mut frames = Frames::default();
    tokio::select! {
        sent = copy(&mut from_client, &mut to_server) => sent.map(drop),
        received = carry(from_server, to_client, |bytes| frames.pass(bytes, &meter)) => received,
    }
}
