//! The gateway's connections, which tenants share. A connection counts for a tenant while a request of
//! that tenant is under way on it; over HTTP/2, once for each tenant that has some. One without a
//! request is kept as long as there is room. When all are taken, whoever has most of those loses the one
//! that has been quiet for longest; those that have never sent a request of a tenant are nobody's, and
//! together count as one tenant's. A stranger's request keeps no connection: its answer may never be read.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::{Context, Poll},
};

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    response::Response,
};
use bytes::Bytes;
use flexcore_domain::Tenant;
use flexcore_resilience::{HeldPlace, Shares};
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{admission::shed, error::Problem, limits::LEAVES_WITHIN, problems};

/// All connections of a listener.
pub(crate) struct Connections {
    max: usize,
    busy: Shares<Tenant>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    count: usize,
    /// How often one has fallen quiet so far.
    turn: u64,
    quiet: HashMap<Option<Tenant>, BTreeMap<u64, CancellationToken>>,
}

/// One connection, known to each of its requests.
pub(crate) struct Connection {
    all: Arc<Connections>,
    number: u64,
    gives_way: CancellationToken,
    leaves: CancellationToken,
    /// When it was told to leave.
    told: OnceLock<Instant>,
    now: Mutex<Now>,
}

struct Now {
    /// Requests of tenants under way.
    requests: usize,
    /// Whose the last request was.
    of: Option<Tenant>,
    /// When it fell quiet, see [`Open::turn`].
    quiet_since: u64,
    places: HashMap<Tenant, Weak<HeldPlace<Tenant>>>,
}

/// A request, until its answer has been handed over as a whole.
pub(crate) struct UnderWay {
    connection: Arc<Connection>,
    place: Option<Arc<HeldPlace<Tenant>>>,
}

impl Connections {
    /// At most so many at once.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, busy: Shares::new(max, 1), open: Mutex::default() })
    }

    /// A place for a new connection. `None`: all have requests under way.
    pub(crate) fn open(self: &Arc<Self>) -> Option<Arc<Connection>> {
        let gives_way = CancellationToken::new();
        let number = {
            let mut open = self.lock();
            if open.count >= self.max && !open.make_room() {
                return None;
            }
            open.count += 1;
            open.falls_quiet(None, &gives_way)
        };
        let now = Now { requests: 0, of: None, quiet_since: number, places: HashMap::new() };
        Some(Arc::new(Connection {
            all: self.clone(),
            number,
            gives_way,
            leaves: CancellationToken::new(),
            told: OnceLock::new(),
            now: Mutex::new(now),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn falls_quiet(&mut self, of: Option<Tenant>, gives_way: &CancellationToken) -> u64 {
        self.turn += 1;
        if !gives_way.is_cancelled() {
            self.quiet.entry(of).or_default().insert(self.turn, gives_way.clone());
        }
        self.turn
    }

    fn wakes(&mut self, now: &Now) {
        let Some(own) = self.quiet.get_mut(&now.of) else { return };
        own.remove(&now.quiet_since);
        if own.is_empty() {
            self.quiet.remove(&now.of);
        }
    }

    /// Ends one that is quiet. Returns false when there is none.
    fn make_room(&mut self) -> bool {
        let most = self.quiet.iter().max_by_key(|(_, own)| own.len());
        let Some(of) = most.map(|(of, _)| of.clone()) else { return false };
        let Some(own) = self.quiet.get_mut(&of) else { return false };
        let oldest = own.pop_first();
        if own.is_empty() {
            self.quiet.remove(&of);
        }
        let Some((_, gives_way)) = oldest else { return false };
        gives_way.cancel();
        self.count -= 1;
        true
    }
}

impl Connection {
    /// Returns when the connection has to be closed at once, to make room for another one.
    pub(crate) async fn gives_way(&self) {
        self.gives_way.cancelled().await;
    }

    /// True if a tenant ever asked on it.
    pub(crate) fn has_tenant(&self) -> bool {
        self.lock().of.is_some()
    }

    /// Its number, which no other one ever has.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns when the connection is to take no more requests, and to end when it has answered all.
    pub(crate) async fn leaves(&self) {
        self.leaves.cancelled().await;
    }

    /// It is to take no more requests. One that takes them all the same is ended, unless a tenant ever asked
    /// on it: a proxy may carry those of many, and leaves by itself. And an answer that was handed over, which
    /// counts no more, may not be written yet.
    pub(crate) fn leave(&self) {
        self.leaves.cancel();
        if self.told.get_or_init(Instant::now).elapsed() < LEAVES_WITHIN {
            return;
        }
        let now = self.lock();
        let mut open = self.all.lock();
        if now.of.is_none() && !self.gives_way.is_cancelled() {
            open.wakes(&now);
            open.count -= 1;
            self.gives_way.cancel();
        }
    }

    /// Falls quiet when no request is under way.
    fn rests(&self, now: &mut Now) {
        if now.requests == 0 {
            now.quiet_since = self.all.lock().falls_quiet(now.of.clone(), &self.gives_way);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = self.now.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut open = self.all.lock();
        open.wakes(now);
        // One that gave way is counted no more.
        if !self.gives_way.is_cancelled() {
            open.count -= 1;
        }
    }
}

impl UnderWay {
    /// A request begins, on the connection that it names.
    pub(crate) fn begin(request: &mut Request) -> Self {
        let connection = request.extensions_mut().remove::<Arc<Connection>>();
        Self::on(connection.expect("BUG: every request comes over a connection"))
    }

    fn on(connection: Arc<Connection>) -> Self {
        Self { connection, place: None }
    }

    /// The connection that it came over.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The request is of this tenant, and the connection does not give way until it is answered: not
    /// before, since a stranger may never read an answer. Fails when the tenant has its share of the
    /// connections.
    pub(crate) fn is_of(&mut self, tenant: &Tenant) -> Result<(), Problem> {
        let mut now = self.connection.lock();
        if now.requests == 0 {
            self.connection.all.lock().wakes(&now);
        }
        now.of = Some(tenant.clone());
        let held = now.places.get(tenant).and_then(Weak::upgrade);
        if held.is_none() {
            now.places.retain(|_, place| place.strong_count() > 0);
        }
        let place = held.or_else(|| self.connection.all.busy.enter(tenant).map(Arc::new));
        let Some(place) = place else {
            self.connection.rests(&mut now);
            shed("connections");
            let detail = "your tenant has its share of the connections; nothing was done";
            return Err(Problem::new(&problems::OVERLOADED, detail));
        };
        now.places.insert(tenant.clone(), Arc::downgrade(&place));
        now.requests += 1;
        drop(now);
        self.place = Some(place);
        Ok(())
    }

    /// The request is under way until this answer has been handed over, or is dropped.
    pub(crate) fn until_sent(self, answer: Response) -> Response {
        answer.map(|body| Body::new(Sent { body, _under_way: self }))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.place.is_some() {
            let mut now = self.connection.lock();
            now.requests -= 1;
            self.connection.rests(&mut now);
        }
    }
}

/// An answer's body.
struct Sent {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HTTP2_STREAMS_MAX;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    /// A request of this tenant on a new connection; `None`: there is no place.
    fn ask(all: &Arc<Connections>, of: &str) -> Option<UnderWay> {
        let mut asked = UnderWay::on(all.open()?);
        asked.is_of(&tenant(of)).ok()?;
        Some(asked)
    }

    #[test]
    fn a_tenant_that_takes_all_it_can_leaves_connections() {
        let all = Connections::new(8);
        let flood: Vec<_> = std::iter::from_fn(|| ask(&all, "flood")).collect();
        assert_eq!(flood.len(), 4);
        assert!(ask(&all, "calm").is_some());
        drop(flood);
        assert_eq!((all.lock().count, all.busy.taken()), (0, 0));
    }

    #[test]
    fn whoever_has_most_quiet_ones_loses_the_oldest() {
        let all = Connections::new(4);
        let calm = all.open().unwrap();
        UnderWay::on(calm.clone()).is_of(&tenant("calm")).unwrap();
        let silent: Vec<_> = (0..3).map(|_| all.open().unwrap()).collect();
        let newcomer = all.open().expect("one gives way");
        let gone = |connection: &Arc<Connection>| connection.gives_way.is_cancelled();
        assert!(gone(&silent[0]) && !gone(&silent[1]) && !gone(&calm) && !gone(&newcomer));
        assert_eq!(all.lock().count, 4, "one that gave way has no place any more");
        drop((calm, silent, newcomer));
        assert!(all.lock().quiet.is_empty());
        assert_eq!(all.lock().count, 0);
    }

    #[test]
    fn a_connection_with_a_request_does_not_give_way() {
        let all = Connections::new(2);
        let (one, two) = (all.open().unwrap(), all.open().unwrap());
        let asked = [(&one, "a"), (&two, "b"), (&two, "b")].map(|(connection, of)| {
            let mut asked = UnderWay::on(connection.clone());
            asked.is_of(&tenant(of)).expect("a place is free");
            asked
        });
        drop(two);
        assert!(all.open().is_none());
        let [first, ..] = asked;
        drop(first);
        assert!(all.open().is_some());
        assert!(one.gives_way.is_cancelled());
    }

    #[test]
    fn a_strangers_request_keeps_no_connection() {
        let all = Connections::new(1);
        let stranger = UnderWay::on(all.open().unwrap());
        assert!(all.open().is_some(), "its answer may never be read");
        assert!(stranger.connection.gives_way.is_cancelled());
    }

    /// A proxy was ended between two requests of a tenant, with an answer that was not written yet, and
    /// before it could know that it was to leave.
    #[tokio::test(start_paused = true)]
    async fn one_that_goes_on_although_it_is_to_leave_is_ended_unless_a_tenant_asked_on_it() {
        let all = Connections::new(2);
        let (stranger, proxy) = (all.open().unwrap(), all.open().unwrap());
        let mut asked = UnderWay::on(proxy.clone());
        asked.is_of(&tenant("calm")).unwrap();
        for _ in 0..2 * HTTP2_STREAMS_MAX {
            stranger.leave();
            proxy.leave();
        }
        assert!(stranger.leaves.is_cancelled() && proxy.leaves.is_cancelled());
        assert!(!stranger.gives_way.is_cancelled(), "these were on their way");
        drop(asked);
        tokio::time::sleep(LEAVES_WITHIN).await;
        for _ in 0..2 {
            stranger.leave();
            proxy.leave();
        }
        assert!(stranger.gives_way.is_cancelled() && !proxy.gives_way.is_cancelled());
        assert_eq!(all.lock().count, 1, "it is counted no more");
        drop((stranger, proxy));
        assert_eq!(all.lock().count, 0);
        assert!(all.lock().quiet.is_empty());
    }

    #[test]
    fn a_connection_counts_once_for_each_tenant_on_it() {
        let all = Connections::new(8);
        let shared = all.open().unwrap();
        let mut asked: Vec<_> = (0..6).map(|_| UnderWay::on(shared.clone())).collect();
        for (number, request) in asked.iter_mut().enumerate() {
            request.is_of(&tenant(if number < 4 { "one" } else { "two" })).unwrap();
        }
        assert_eq!(all.busy.taken(), 2);
        asked.truncate(4);
        assert_eq!(all.busy.taken(), 1);
    }
}
