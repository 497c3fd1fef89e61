use std::{
    convert::Infallible,
    fs,
    future::{Ready, ready},
    path::Path,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{FutureExt as _, join, join_all};
use tempfile::TempDir;
use tokio::{
    io::duplex,
    time::{Instant, sleep},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{
        BoxFuture,
        http::{self, uri::PathAndQuery},
    },
    server::{NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::{state::Due, *};
use crate::{
    connection,
    limits::{BROKER_CONNECTIONS_MAX, BROKER_MESSAGE_BYTES_MAX, KNOCK_WAIT},
    wire::{HealthAnswer, HealthRequest},
};

/// A service that answers every question with its number.
#[derive(Clone)]
struct Numbered(u32);

impl NamedService for Numbered {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl Service<http::Request<Body>> for Numbered {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.0);
        Box::pin(async move {
            let codec = ProstCodec::<HealthAnswer, HealthRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(method, request).await)
        })
    }
}

struct Method(u32);

impl UnaryService<HealthRequest> for Method {
    type Response = HealthAnswer;
    type Future = Ready<Result<Response<HealthAnswer>, Status>>;

    fn call(&mut self, _: Request<HealthRequest>) -> Self::Future {
        let status = i32::try_from(self.0).unwrap();
        ready(Ok(Response::new(HealthAnswer { status })))
    }
}

fn numbered(id: u32) -> Routes {
    Routes::new(Numbered(id))
}

async fn ask(connection: &Connection) -> Result<i32, Status> {
    let mut grpc = connection.grpc();
    grpc.ready().await?;
    let codec = ProstCodec::<HealthRequest, HealthAnswer>::default();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let answer = grpc.unary(Request::new(HealthRequest::default()), path, codec).await?;
    Ok(answer.into_inner().status)
}

/// Dials a number and asks what is there.
async fn number(broker: &Broker, id: u32) -> Result<i32, Error> {
    let connection = broker.dial(id).await?;
    ask(&connection).await.map_err(Error::status("Check"))
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("it takes no time")
}

/// The two sides of one connection.
struct Sides {
    host: Broker,
    plugin: Broker,
    service: StartStream,
    folder: TempDir,
    _serving: AbortOnDropHandle<Result<(), Error>>,
}

/// Serves one connection as a plugin does.
async fn connected(
    near: BoxIo,
    far: BoxIo,
    routes: Routes,
) -> (Connection, AbortOnDropHandle<Result<(), Error>>) {
    let serving = tokio::spawn(connection::serve(far, routes, CancellationToken::new()));
    let connection = Connection::new(near).await.unwrap();
    (connection, AbortOnDropHandle::new(serving))
}

fn pipe() -> (BoxIo, BoxIo) {
    let (near, far) = duplex(64 * 1024);
    (Box::new(near), Box::new(far))
}

fn sockets(folder: &Path) -> Reach {
    Reach::Plain { folder: folder.to_owned(), owner: Owner::Own, tls: None }
}

async fn plain() -> Sides {
    let folder = tempfile::tempdir().unwrap();
    let (plugin, service) = Broker::plugin(sockets(folder.path()));
    let (near, far) = pipe();
    let (connection, serving) = connected(near, far, Routes::new(service.clone())).await;
    let host = Broker::host(connection, sockets(folder.path()));
    Sides { host, plugin, service, folder, _serving: serving }
}

async fn multiplexed() -> Sides {
    let folder = tempfile::tempdir().unwrap();
    let (near, far) = pipe();
    let (near, far) = (Mux::client(near), Mux::server(far));
    let first = near.open().await.unwrap();
    let served = far.accept().await.unwrap();
    let (plugin, service) = Broker::plugin(Reach::Multiplexed { mux: far, tls: None });
    let (connection, serving) = connected(first, served, Routes::new(service.clone())).await;
    let host = Broker::host(connection, Reach::Multiplexed { mux: near, tls: None });
    Sides { host, plugin, service, folder, _serving: serving }
}

/// A host with a multiplexer, and its plugin's half as a test plays it.
struct Played {
    host: Broker,
    near: Mux,
    far: Mux,
    heard: Arc<Shared>,
    say: mpsc::Sender<ConnInfo>,
    _serving: AbortOnDropHandle<Result<(), Error>>,
}

impl Played {
    async fn new() -> Self {
        let (near, far) = pipe();
        let (near, far) = (Mux::client(near), Mux::server(far));
        let (first, served) = (near.open().await.unwrap(), far.accept().await.unwrap());
        let heard = Arc::new(Shared::default());
        let (say, outgoing) = mpsc::channel(8);
        let service = StartStream::new(Arc::clone(&heard), outgoing, CancellationToken::new());
        let (connection, serving) = connected(first, served, Routes::new(service)).await;
        let host = Broker::host(connection, Reach::Multiplexed { mux: near.clone(), tls: None });
        Self { host, near, far, heard, say, _serving: serving }
    }

    /// Waits for a knock.
    async fn knocked(&self) {
        while !matches!(self.heard.with(|state| state.due(Instant::now())), Due::Later(_)) {
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn answer(&self, id: u32, error: &str) {
        let knock = Some(Knock { knock: true, ack: true, error: error.to_owned() });
        let info = ConnInfo { service_id: id, knock, ..ConnInfo::default() };
        self.say.send(info).await.unwrap();
    }
}

/// Each side serves some numbers, and the other side dials them all at once, each several times.
async fn talk(sides: &Sides) {
    let mut accepted = Vec::new();
    for (broker, ids) in [(&sides.host, 1..4), (&sides.plugin, 11..14)] {
        for id in ids {
            accepted.push(broker.accept(id, numbered(id)).await.unwrap());
        }
    }
    let of_plugin = (1..4).map(|id| number(&sides.plugin, id));
    let of_host = (11..14).map(|id| number(&sides.host, id));
    let (of_plugin, of_host) = soon(join(join_all(of_plugin), join_all(of_host))).await;
    let of_plugin: Vec<i32> = of_plugin.into_iter().map(Result::unwrap).collect();
    let of_host: Vec<i32> = of_host.into_iter().map(Result::unwrap).collect();
    assert_eq!((of_plugin, of_host), (vec![1, 2, 3], vec![11, 12, 13]));
}

#[tokio::test]
async fn both_sides_serve_and_dial_at_sockets() {
    let sides = plain().await;
    talk(&sides).await;
    // What was served before can be served again.
    talk(&sides).await;
}

#[tokio::test]
async fn both_sides_serve_and_dial_with_streams() {
    let sides = multiplexed().await;
    talk(&sides).await;
    talk(&sides).await;
    let _accepted = sides.plugin.accept(7, numbered(7)).await.unwrap();
    let again = (0..8).map(|_| number(&sides.host, 7));
    for answer in soon(join_all(again)).await {
        assert_eq!(answer.unwrap(), 7);
    }
}

#[tokio::test]
async fn a_service_may_come_after_its_dial() {
    for sides in [plain().await, multiplexed().await] {
        let dial = number(&sides.host, 5);
        let accept = async {
            sleep(Duration::from_millis(50)).await;
            sides.plugin.accept(5, numbered(5)).await.unwrap()
        };
        let (answer, _accepted) = soon(join(dial, accept)).await;
        assert_eq!(answer.unwrap(), 5);
    }
}

#[tokio::test]
async fn a_service_ends_with_its_socket_when_it_is_dropped() {
    let sides = plain().await;
    let accepted = sides.host.accept(1, numbered(1)).await.unwrap();
    assert!(matches!(sides.host.accept(1, numbered(1)).await, Err(Error::Broker(_))));
    let connection = soon(sides.plugin.dial(1)).await.unwrap();
    assert_eq!(ask(&connection).await.unwrap(), 1);
    drop(accepted);
    soon(connection.closed()).await;
    assert!(ask(&connection).await.is_err());
    let is_empty = || fs::read_dir(sides.folder.path()).unwrap().next().is_none();
    soon(async {
        while !is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let _again = sides.host.accept(1, numbered(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_number_that_nobody_serves_is_refused_or_late() {
    let sides = multiplexed().await;
    let refused = number(&sides.host, 9).await;
    assert!(matches!(&refused, Err(Error::Broker(reason)) if reason.contains('9')), "{refused:?}");
    let _accepted = sides.plugin.accept(1, numbered(1)).await.unwrap();
    assert_eq!(number(&sides.host, 1).await.unwrap(), 1, "the next one is not affected");
    let late = number(&plain().await.host, 9).await;
    assert!(matches!(late, Err(Error::Late { limit, .. }) if limit == BROKER_WAIT), "{late:?}");
}

#[tokio::test]
async fn a_dial_that_nobody_waits_for_takes_no_stream_of_the_next() {
    let sides = multiplexed().await;
    let _one = sides.plugin.accept(1, numbered(1)).await.unwrap();
    let _two = sides.plugin.accept(2, numbered(2)).await.unwrap();
    for _ in 0..20 {
        assert!(sides.host.dial(1).now_or_never().is_none(), "it has begun, and nobody waits");
        assert_eq!(soon(number(&sides.host, 2)).await.unwrap(), 2);
    }
}

#[tokio::test]
async fn a_dial_of_a_socket_that_nobody_waits_for_can_be_done_again() {
    let sides = plain().await;
    let _accepted = sides.plugin.accept(1, numbered(1)).await.unwrap();
    for _ in 0..20 {
        // Once the announcement is there, it comes as far as the socket.
        assert!(sides.host.dial(1).now_or_never().is_none());
        sleep(Duration::from_millis(5)).await;
    }
    let answer = timeout(BROKER_WAIT / 2, number(&sides.host, 1)).await.unwrap();
    assert_eq!(answer.unwrap(), 1);
}

/// hashicorp's plugin has one place for a service that it has answered for. It empties only with a
/// stream, and while it is taken there is no other answer.
#[tokio::test(start_paused = true)]
async fn a_stream_is_owed_until_it_is_open() {
    let played = Played::new().await;
    let Played { host, near, far, .. } = &played;
    let late = host.dial(5).await;
    assert!(matches!(late, Err(Error::Late { .. })), "{late:?}");
    let mut held = Vec::new();
    while let Ok(io) = near.open().await {
        held.push(io);
    }
    while far.accept().await.is_ok() {}
    played.answer(5, "").await;
    soon(host.0.shared.until(|state| state.owes().then_some(()))).await;
    let no_place = host.dial(6).await;
    assert!(matches!(no_place, Err(Error::Late { .. })), "{no_place:?}");
    drop(held);
    let plugin = async {
        let five = far.accept().await.unwrap();
        drop(five);
        played.knocked().await;
        played.answer(6, "").await;
        let six = far.accept().await.unwrap();
        connection::serve(six, numbered(6), CancellationToken::new()).await
    };
    tokio::select! {
        served = plugin => panic!("it ends before the answer: {served:?}"),
        answer = number(host, 6) => assert_eq!(answer.unwrap(), 6),
    }
}

#[tokio::test]
async fn a_refusal_is_told_on_one_short_line() {
    let played = Played::new().await;
    let refuses = async {
        played.knocked().await;
        played.answer(5, &"\u{1b}]0;x\u{7}\nforged ".repeat(200)).await;
    };
    let (dialled, ()) = soon(join(played.host.dial(5), refuses)).await;
    let told = dialled.unwrap_err().to_string();
    assert!(told.contains("forged") && !told.contains(char::is_control), "{told:?}");
    assert!(told.chars().count() < 300, "{told}");
}

#[tokio::test]
async fn connections_over_the_limit_wait_until_others_end() {
    let sides = multiplexed().await;
    let _accepted = sides.plugin.accept(7, numbered(7)).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..BROKER_CONNECTIONS_MAX {
        let connection = soon(sides.host.dial(7)).await.unwrap();
        assert_eq!(soon(ask(&connection)).await.unwrap(), 7);
        open.push(connection);
    }
    let more = soon(sides.host.dial(7)).await.unwrap();
    assert!(timeout(Duration::from_millis(100), ask(&more)).await.is_err());
    open.pop();
    assert_eq!(soon(ask(&more)).await.unwrap(), 7);
}

#[tokio::test]
async fn a_stream_without_a_knock_is_closed() {
    let sides = multiplexed().await;
    let Reach::Multiplexed { mux, .. } = &sides.host.0.reach else { unreachable!() };
    let _accepted = sides.plugin.accept(1, numbered(1)).await.unwrap();
    let mut stray = mux.open().await.unwrap();
    let mut byte = [0];
    let read = soon(tokio::io::AsyncReadExt::read(&mut stray, &mut byte)).await;
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    assert_eq!(soon(number(&sides.host, 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_plugin_without_a_broker_is_one_without_more_connections() {
    let (near, far) = pipe();
    let (connection, _serving) = connected(near, far, Routes::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let host = Broker::host(connection, sockets(folder.path()));
    let none = soon(host.dial(1)).await;
    assert!(matches!(&none, Err(Error::Broker(reason)) if reason.contains("none")), "{none:?}");
    let none = host.accept(1, numbered(1)).await;
    assert!(matches!(none, Err(Error::Broker(_))));
}

#[tokio::test]
async fn a_plugin_that_is_gone_is_noticed_at_once() {
    for sides in [plain().await, multiplexed().await] {
        let Sides { host, plugin, _serving, service, folder: _folder } = sides;
        let waits = async {
            let dialled = host.dial(1).await;
            assert!(matches!(dialled, Err(Error::Broker(_))), "{dialled:?}");
        };
        let ends = async {
            sleep(Duration::from_millis(20)).await;
            drop((plugin, service, _serving));
        };
        timeout(MUX_WAIT / 2, join(waits, ends)).await.unwrap();
    }
}

#[tokio::test]
async fn one_host_at_a_time_has_the_exchange() {
    let sides = plain().await;
    let _accepted = sides.plugin.accept(1, numbered(1)).await.unwrap();
    assert_eq!(soon(number(&sides.host, 1)).await.unwrap(), 1);
    let next = || async {
        let (near, far) = pipe();
        let routes = Routes::new(sides.service.clone());
        let (connection, serving) = connected(near, far, routes).await;
        (Broker::host(connection, sockets(sides.folder.path())), serving)
    };
    let (second, _serving) = next().await;
    let refused = soon(second.dial(2)).await;
    let is_refused = |reason: &str| reason.contains("another host");
    assert!(matches!(&refused, Err(Error::Broker(reason)) if is_refused(reason)), "{refused:?}");
    drop(sides.host);
    let served = async {
        loop {
            let (third, _serving) = next().await;
            let Ok(accepted) = third.accept(3, numbered(3)).await else { continue };
            if let Ok(3) = number(&sides.plugin, 3).await {
                break accepted;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    let _accepted = soon(served).await;
}

#[tokio::test]
async fn addresses_that_are_none_are_refused_and_do_no_harm() {
    let sides = plain().await;
    let announces = async |id, network: &str, address: &str| {
        let (network, address) = (network.to_owned(), address.to_owned());
        let info = ConnInfo { service_id: id, network, address, knock: None };
        sides.plugin.0.outgoing.send(info).await.unwrap();
        soon(sides.host.dial(id)).await
    };
    for (id, network, address) in [
        (1, "tcp", "192.0.2.1:80"),
        (2, "tcp", "example.com:80"),
        (3, "unix", "relative"),
        (4, "udp", "127.0.0.1:1"),
        (5, "", ""),
    ] {
        let dialled = announces(id, network, address).await;
        assert!(matches!(dialled, Err(Error::Address { .. })), "{address}: {dialled:?}");
    }
    let nobody = announces(6, "unix", "/nowhere/at/all").await;
    assert!(matches!(nobody, Err(Error::Unreachable { .. })));
    talk(&sides).await;
    let huge = announces(7, "unix", &"x".repeat(BROKER_MESSAGE_BYTES_MAX)).await;
    assert!(matches!(huge, Err(Error::Broker(_))), "{huge:?}");
}

/// Announcements, knocks and answers for thousands of numbers that nobody asked for.
async fn flood(sides: &Sides) {
    let knock = Some(Knock { knock: true, ..Knock::default() });
    let ack = Some(Knock { knock: true, ack: true, ..Knock::default() });
    for id in 100..5_000 {
        for knock in [None, knock.clone(), ack.clone()] {
            let info = ConnInfo { service_id: id, knock, ..ConnInfo::default() };
            sides.plugin.0.outgoing.send(info).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_flood_of_messages_leaves_the_host_as_it_was() {
    let sides = plain().await;
    flood(&sides).await;
    let _accepted = sides.host.accept(1, numbered(1)).await.unwrap();
    assert_eq!(soon(number(&sides.plugin, 1)).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_knocks_costs_the_plugin_alone() {
    let sides = multiplexed().await;
    let _accepted = sides.host.accept(1, numbered(1)).await.unwrap();
    let _other = sides.plugin.accept(2, numbered(2)).await.unwrap();
    flood(&sides).await;
    assert_eq!(number(&sides.host, 2).await.unwrap(), 2);
    // Its own knock waits behind the others, which are refused after a while.
    let late = number(&sides.plugin, 1).await;
    assert!(matches!(late, Ok(1) | Err(Error::Late { .. })), "{late:?}");
    sleep(KNOCK_WAIT).await;
    assert_eq!(number(&sides.plugin, 1).await.unwrap(), 1);
}

#[tokio::test]
async fn numbers_are_never_0_nor_in_use() {
    let sides = plain().await;
    assert_eq!((sides.host.next_id(), sides.host.next_id()), (1, 2));
    let _accepted = sides.host.accept(3, numbered(3)).await.unwrap();
    assert_eq!(sides.host.next_id(), 4);
    sides.host.0.next.store(u32::MAX, Ordering::Relaxed);
    assert_eq!((sides.host.next_id(), sides.host.next_id()), (u32::MAX, 1));
}
