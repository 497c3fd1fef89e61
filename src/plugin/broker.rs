//! go-plugin's broker: more gRPC connections between a host and its plugin, in both directions,
//! each under a number. So a plugin calls back its host, and a host reaches what a plugin made for
//! it. Both sides use the same [`Broker`].
//!
//! Without a multiplexer, the side that serves a number listens at a socket of its own and
//! announces it, and the other side dials that. With one, the side that dials knocks, waits for
//! the answer and opens the next stream of the one connection.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::service::Routes;

mod accepted;
mod exchange;
mod knocks;
mod shared;
mod start_stream;
mod state;

pub use accepted::Accepted;
use accepted::{Offer, Source};
use shared::Shared;
pub(crate) use start_stream::StartStream;
use state::{Announced, BrokerState, Step};

use crate::{
    Connection, Error,
    connection::Calls,
    identity::Tls,
    limits::{
        ANSWER_BYTES_MAX, BROKER_CALL_WAIT, BROKER_CALLS_MAX, BROKER_OUTGOING_MAX, BROKER_WAIT,
        BROKER_WAITING_MAX, DIAL_WAIT, MUX_WAIT,
    },
    logs::shown,
    mux::Mux,
    transport::{BoxIo, Listener, Owner},
    wire::{ConnInfo, Knock},
};

/// The way to the other side.
pub(crate) enum Reach {
    /// A socket for each service; those of this side are made in the folder. `owner` is the other
    /// side's user.
    Plain { folder: PathBuf, owner: Owner, tls: Option<Tls> },
    /// A stream of the one connection for each service. TLS is within the streams.
    Multiplexed { mux: Mux, tls: Option<Tls> },
}

/// Makes more connections between a host and its plugin. It is a cheap clone.
#[derive(Clone)]
pub struct Broker(Arc<Inner>);

struct Inner {
    reach: Reach,
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<ConnInfo>,
    /// Of the connections that are dialled.
    answer_bytes_max: usize,
    next: AtomicU32,
    /// Whoever knocks has it until the stream is open: the other side gives the next stream to the
    /// service of the last knock.
    turn: Mutex<()>,
    stop: CancellationToken,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Broker {
    /// A host's: it opens the exchange with the plugin's broker at once.
    pub(crate) fn host(connection: Connection, reach: Reach) -> Self {
        let shared = Arc::new(Shared::default());
        let (sender, outgoing) = mpsc::channel(BROKER_OUTGOING_MAX);
        let answer_bytes_max = connection.answer_bytes_max();
        let exchange = tokio::spawn(exchange::run(connection, outgoing, Arc::clone(&shared)));
        let tasks = vec![AbortOnDropHandle::new(exchange)];
        let stop = CancellationToken::new();
        Self::new(reach, shared, sender, answer_bytes_max, stop, tasks)
    }

    /// A plugin's, and the gRPC service through which its host opens the exchange. With a
    /// multiplexer, nobody else may take the connection's streams from here on.
    pub(crate) fn plugin(reach: Reach) -> (Self, StartStream) {
        let shared = Arc::new(Shared::default());
        let (sender, outgoing) = mpsc::channel(BROKER_OUTGOING_MAX);
        let stop = CancellationToken::new();
        let service = StartStream::new(Arc::clone(&shared), outgoing, stop.clone());
        (Self::new(reach, shared, sender, ANSWER_BYTES_MAX, stop, Vec::new()), service)
    }

    fn new(
        reach: Reach,
        shared: Arc<Shared>,
        outgoing: mpsc::Sender<ConnInfo>,
        answer_bytes_max: usize,
        stop: CancellationToken,
        mut tasks: Vec<AbortOnDropHandle<()>>,
    ) -> Self {
        if let Reach::Multiplexed { mux, .. } = &reach {
            let knocks = knocks::run(mux.clone(), outgoing.clone(), Arc::clone(&shared));
            tasks.push(AbortOnDropHandle::new(tokio::spawn(knocks)));
        }
        Self(Arc::new(Inner {
            reach,
            shared,
            outgoing,
            answer_bytes_max,
            next: AtomicU32::new(1),
            turn: Mutex::new(()),
            stop,
            _tasks: tasks,
        }))
    }

    /// A number for [`Self::accept`] that nobody uses. It is never 0, which many contracts use for
    /// "none". The other side has numbers of its own, which may be the same.
    #[must_use]
    pub fn next_id(&self) -> u32 {
        loop {
            let id = self.0.next.fetch_add(1, Ordering::Relaxed);
            // The numbers begin again after 2^32.
            if id != 0 && !self.0.shared.with(|state| state.serves(id)) {
                return id;
            }
        }
    }

    /// Serves gRPC services for the other side under this number, until the result is dropped.
    /// When this returns, the other side can dial it. Fails if the number is served already, if
    /// there is no broker on the other side, or if no socket can be made. A call that has no answer
    /// within [`BROKER_CALL_WAIT`] is dropped; see [`Self::accept_within`].
    pub async fn accept(&self, id: u32, routes: Routes) -> Result<Accepted, Error> {
        self.accept_within(id, routes, BROKER_CALL_WAIT).await
    }

    /// [`Self::accept`], with another limit on the time until a call is answered. It is also for
    /// the time that a request takes to arrive, which its sender may never complete. A stream of
    /// answers may last longer once it has begun. A service has
    /// [`BROKER_CONNECTIONS_MAX`](crate::limits::BROKER_CONNECTIONS_MAX) connections at once, each
    /// with [`BROKER_CALLS_MAX`] calls.
    pub async fn accept_within(
        &self,
        id: u32,
        routes: Routes,
        within: Duration,
    ) -> Result<Accepted, Error> {
        let Inner { reach, shared, outgoing, .. } = &*self.0;
        shared.check()?;
        let calls = Calls { most: BROKER_CALLS_MAX, within: Some(within) };
        match reach {
            Reach::Multiplexed { tls, .. } => {
                let (sender, streams) = mpsc::channel(BROKER_WAITING_MAX);
                shared.change(|state| state.serve(id, Some(sender)))?;
                let source = Source::Streams(streams);
                let offer = Offer { tls: tls.clone(), routes, calls };
                Ok(Accepted::new(id, Arc::clone(shared), source, offer))
            }
            Reach::Plain { folder, owner, tls } => {
                let listener = Listener::bind_for(*owner, folder)?;
                let (network, address) = listener.address().parts();
                let network = network.to_owned();
                shared.change(|state| state.serve(id, None))?;
                let source = Source::Listener(listener);
                let offer = Offer { tls: tls.clone(), routes, calls };
                let accepted = Accepted::new(id, Arc::clone(shared), source, offer);
                let info = ConnInfo { service_id: id, network, address, knock: None };
                shared.send(outgoing, info).await?;
                Ok(accepted)
            }
        }
    }

    /// Connects to what the other side serves under this number; it may begin to do so a little
    /// later. Fails at once if the other side refuses or has no broker, and if it takes too long:
    /// [`BROKER_WAIT`] for the announcement, or for other dials of a multiplexed connection, which
    /// come one after the other; [`MUX_WAIT`] for a stream of such a one; [`DIAL_WAIT`] for the
    /// rest. Without a multiplexer, what is announced can be dialled once; a dial that is dropped
    /// does not count.
    pub async fn dial(&self, id: u32) -> Result<Connection, Error> {
        let answer_bytes_max = self.0.answer_bytes_max;
        let dialled = self.dial_default(id).await;
        dialled.map(|connection| connection.with_answer_bytes_max(answer_bytes_max))
    }

    async fn dial_default(&self, id: u32) -> Result<Connection, Error> {
        match &self.0.reach {
            Reach::Plain { owner, tls, .. } => self.0.dial_socket(*owner, tls.as_ref(), id).await,
            Reach::Multiplexed { mux, tls } => {
                let (inner, mux, tls) = (Arc::clone(&self.0), mux.clone(), tls.clone());
                // A task of its own: once the other side has heard the knock, the stream has to
                // come, even if the caller does not wait for it any longer.
                let dialled = async move { inner.dial_stream(&mux, tls.as_ref(), id).await };
                tokio::spawn(dialled).await.unwrap_or(Err(Error::Ended))
            }
        }
    }

    /// Ends the exchange on a plugin's side, which would hold up the graceful end of its server.
    pub(crate) fn close(&self) {
        self.0.stop.cancel();
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").finish_non_exhaustive()
    }
}

impl Inner {
    async fn dial_socket(
        &self,
        owner: Owner,
        tls: Option<&Tls>,
        id: u32,
    ) -> Result<Connection, Error> {
        let Announced { address, at } = self.announced(id).await?;
        let address = address?;
        let announced = Some(Announced { address: Ok(address.clone()), at });
        let mut taken = Taken { shared: &self.shared, id, announced };
        let connected = async { connect(address.dial_to(owner).await?, tls).await };
        let late = Error::Late { what: "a connection to a service", limit: DIAL_WAIT };
        let connected = timeout(DIAL_WAIT, connected).await.unwrap_or(Err(late));
        taken.announced = None;
        connected
    }

    /// Waits for the announcement of a service.
    async fn announced(&self, id: u32) -> Result<Announced, Error> {
        let announced = self.shared.until(|state| match state.announcement(id) {
            Some(announced) => Some(Ok(announced)),
            None => state.ended().map(|reason| Err(Error::Broker(reason))),
        });
        let late = Error::Late { what: "the announcement of a service", limit: BROKER_WAIT };
        timeout(BROKER_WAIT, announced).await.unwrap_or(Err(late))
    }

    async fn dial_stream(
        &self,
        mux: &Mux,
        tls: Option<&Tls>,
        id: u32,
    ) -> Result<Connection, Error> {
        let turn = timeout(BROKER_WAIT, self.turn.lock()).await;
        let late = |_| Error::Late { what: "the turn to dial", limit: BROKER_WAIT };
        let turn = turn.map_err(late)?;
        self.shared.check()?;
        let late = Error::Late { what: "a stream for a service", limit: MUX_WAIT };
        let opened = timeout(MUX_WAIT, self.knock(mux, id)).await.unwrap_or(Err(late));
        // The other side may answer still, or expect the stream already.
        let io = opened.inspect_err(|_| self.shared.with(BrokerState::give_up))?;
        drop(turn);
        connect(io, tls).await
    }

    /// Knocks, and opens a stream when the other side has answered. If it fails or is dropped, the
    /// knock has to be given up.
    async fn knock(&self, mux: &Mux, id: u32) -> Result<BoxIo, Error> {
        // While the other side waits for these streams, it can answer no knock.
        while self.shared.with(|state| state.owes()) {
            self.settle(mux).await?;
        }
        self.shared.with(|state| state.knock(id));
        let knock = Some(Knock { knock: true, ..Knock::default() });
        let info = ConnInfo { service_id: id, knock, ..ConnInfo::default() };
        self.shared.send(&self.outgoing, info).await?;
        loop {
            match self.shared.until(|state| state.step()).await {
                Step::Owed => self.settle(mux).await?,
                Step::Answered(Ok(())) => {
                    let io = mux.open().await?;
                    self.shared.with(BrokerState::opened);
                    return Ok(io);
                }
                Step::Answered(Err(reason)) => {
                    return Err(Error::Broker(format!("service {id}: {}", shown(&reason))));
                }
                Step::Ended(reason) => return Err(Error::Broker(reason)),
            }
        }
    }

    /// Opens a stream and closes it: the other side answered a knock too late, and must not take
    /// the next stream for the service of that one. It is owed until it is open.
    async fn settle(&self, mux: &Mux) -> Result<(), Error> {
        mux.open().await.map(drop)?;
        self.shared.with(BrokerState::settled);
        Ok(())
    }
}

/// An announcement that is being dialled. If nobody waits for that any longer, it is put back.
struct Taken<'a> {
    shared: &'a Shared,
    id: u32,
    announced: Option<Announced>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(announced) = self.announced.take() {
            self.shared.change(|state| state.put_back(self.id, announced));
        }
    }
}

/// HTTP/2 on a fresh stream, within TLS if there is any.
pub(crate) async fn connect(io: BoxIo, tls: Option<&Tls>) -> Result<Connection, Error> {
    let connected = async {
        let io = match tls {
            Some(tls) => tls.connect(io).await?,
            None => io,
        };
        Connection::new(io).await
    };
    let late = Error::Late { what: "a connection to the plugin", limit: DIAL_WAIT };
    timeout(DIAL_WAIT, connected).await.unwrap_or(Err(late))
}

#[cfg(test)]
mod tests;
