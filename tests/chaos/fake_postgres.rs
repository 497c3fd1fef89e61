//! A fake in front of Postgres, as far as the gateways can tell: it passes everything on, or fails
//! in one of the ways in which servers and networks fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Its behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As if it were not there.
    Pass,
    /// Connections are answered with an error of Postgres's own.
    Errors,
    /// Nothing is answered any more.
    Hang,
    /// A byte now and then.
    Drip,
    /// Connections break at the first message.
    Reset,
    /// As `Reset`, for every other message.
    HalfReset,
}

/// Between two bytes that drip.
const DROP_EVERY: Duration = Duration::from_millis(700);
/// `FATAL: 57P03: the database system is starting up`, in Postgres's protocol.
const ERROR: &[u8] = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";

/// The fake. Dropping it ends it.
pub(crate) struct FakePostgres {
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
}

impl FakePostgres {
    /// Listens on `address` and passes on to `target`, both `HOST:PORT`.
    pub(crate) async fn start(address: &str, target: String) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let (way, seen) = watch::channel(Way::Pass);
        let said = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, target.clone(), seen.clone(), said.clone()));
            }
        });
        Self { way, task }
    }

    pub(crate) fn behave(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Drop for FakePostgres {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut client: TcpStream,
    target: String,
    way: watch::Receiver<Way>,
    said: Arc<AtomicU64>,
) -> Option<()> {
    let now = *way.borrow();
    match now {
        Way::Errors => {
            // Read what it wants first, or it would see a reset in place of the error.
            let mut wanted = [0; 1_024];
            client.read(&mut wanted).await.ok().filter(|count| *count > 0)?;
            let length = u32::try_from(ERROR.len() + 4).unwrap().to_be_bytes();
            let answer = [b"E", &length[..], ERROR].concat();
            return client.write_all(&answer).await.ok();
        }
        Way::Reset => return None,
        _ => {}
    }
    let server = TcpStream::connect(&target).await.ok()?;
    client.set_nodelay(true).ok()?;
    server.set_nodelay(true).ok()?;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::select! {
        _ = pass(from_client, to_server, way.clone(), Some(said)) => {}
        _ = pass(from_server, to_client, way, None) => {}
    }
    None
}

/// Passes bytes on in one direction; `said` counts what clients say.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: watch::Receiver<Way>,
    said: Option<Arc<AtomicU64>>,
) -> Option<()> {
    let mut bytes = vec![0; 16 * 1_024];
    loop {
        let count = from.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
        let now = *way.borrow();
        let number = said.as_ref().map(|said| said.fetch_add(1, Ordering::Relaxed));
        match now {
            Way::Pass => to.write_all(&bytes[..count]).await.ok()?,
            Way::Hang => std::future::pending().await,
            Way::Drip => {
                for byte in &bytes[..count] {
                    to.write_all(&[*byte]).await.ok()?;
                    tokio::time::sleep(DROP_EVERY).await;
                }
            }
            // An open connection knows no other way to fail at once.
            Way::Errors | Way::Reset => return None,
            Way::HalfReset if number.is_some_and(|number| number % 2 == 1) => return None,
            Way::HalfReset => to.write_all(&bytes[..count]).await.ok()?,
        }
    }
}
