//! Taking connections.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// Pause after a failed `accept` (file descriptors used up) before the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The next connection, however long it takes.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
