//! A client ends for good over a header that has a carriage return within its value: its task panics, and is not
//! made again. From then on every call fails, and nothing comes. Here one hears of it, and a connection over
//! which anybody's messages come is made anew.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, jetstream};
use futures::future::BoxFuture;
use tokio::sync::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Error, context, unavailable};

/// Time after a failed try in which nobody tries again. Those who have waited for it are told at once.
const REST: Duration = Duration::from_secs(1);
/// Time for which a failed try says that a connection is away. Who has something to read tries far more often.
const AWAY_FOR: Duration = Duration::from_secs(60);

/// A connection to the broker.
#[derive(Clone)]
pub struct Connection {
    /// Its client.
    pub client: Client,
    /// Cancelled when the client has ended for good.
    pub ended: CancellationToken,
}

/// Options of a connection, and a token that is cancelled when its client has ended for good. `hear` is told
/// the client's events.
#[must_use]
pub fn watched<F>(options: ConnectOptions, hear: F) -> (ConnectOptions, CancellationToken)
where
    F: Fn(&Event) + Send + Sync + 'static,
{
    let ended = CancellationToken::new();
    let told = Told { hear, _ended: ended.clone().drop_guard() };
    let options = options.event_callback(move |event| {
        told.tell(&event);
        async {}
    });
    (options, ended)
}

/// What the client tells its events. It drops this when its task has ended, by a panic, too.
struct Told<F> {
    hear: F,
    _ended: DropGuard,
}

impl<F: Fn(&Event)> Told<F> {
    fn tell(&self, event: &Event) {
        (self.hear)(event);
    }
}

/// Makes a connection. Fails with the reason.
type Connect = dyn Fn() -> BoxFuture<'static, Result<Connection, String>> + Send + Sync;

/// A connection that is made anew when its client has ended; cheap to clone.
#[derive(Clone)]
pub struct Renewed(Arc<Kept>);

struct Kept {
    /// `None`: it lasts as long as the process does.
    connect: Option<Box<Connect>>,
    now: Mutex<Now>,
    /// When it could not be made anew last; `None`: it is there.
    away_at: std::sync::Mutex<Option<Instant>>,
}

struct Now {
    jetstream: jetstream::Context,
    ended: CancellationToken,
    /// When it could not be made anew.
    failed_at: Option<Instant>,
}

impl Now {
    fn of(connection: Connection) -> Self {
        let Connection { client, ended } = connection;
        Self { jetstream: context(&client), ended, failed_at: None }
    }
}

impl Renewed {
    /// Begins with this connection, and makes others like it.
    #[must_use]
    pub fn new<F>(first: Connection, connect: F) -> Self
    where
        F: Fn() -> BoxFuture<'static, Result<Connection, String>> + Send + Sync + 'static,
    {
        Self::of(Now::of(first), Some(Box::new(connect)))
    }

    /// This connection alone, over which no such message comes, or whose end is somebody else's to mend.
    #[must_use]
    pub fn never(jetstream: jetstream::Context) -> Self {
        let now = Now { jetstream, ended: CancellationToken::new(), failed_at: None };
        Self::of(now, None)
    }

    fn of(now: Now, connect: Option<Box<Connect>>) -> Self {
        Self(Arc::new(Kept { connect, now: Mutex::new(now), away_at: Default::default() }))
    }

    /// Its JetStream context. When its client has ended, a new one is made first, and all who ask meanwhile
    /// wait for it. Fails with [`Error::Unavailable`] when that cannot be done now.
    #[boxed::async_recursion]
    pub async fn context(&self) -> Result<jetstream::Context, Error> {
        let Kept { connect, now, .. } = &*self.0;
        let mut now = now.lock().await;
        if let Some(connect) = connect.as_ref().filter(|_| now.ended.is_cancelled()) {
            if now.failed_at.is_some_and(|at| at.elapsed() < REST) {
                return Err(unavailable("the connection could not be made anew"));
            }
            let made = connect().await;
            now.failed_at = made.is_err().then(Instant::now);
            *self.away_at() = now.failed_at;
            *now = Now::of(made.map_err(unavailable)?);
            tracing::warn!("a connection whose client had ended over a message was made anew");
        }
        Ok(now.jetstream.clone())
    }

    /// True while it has ended and could not be made anew. Who has nothing to read does not try, and it is
    /// away for nobody after a minute.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.away_at().is_some_and(|at| at.elapsed() < AWAY_FOR)
    }

    fn away_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.away_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
