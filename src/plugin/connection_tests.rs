use std::{convert::Infallible, future::Ready};

use futures::{StreamExt as _, future::join_all, stream};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::header::HeaderValue;
use tokio::{
    io::{AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tonic::{Code, server::NamedService, service::Routes};
use tonic_prost::ProstCodec;

use super::{served::PREFACE_BYTES, *};
use crate::wire::StdioData;

const PIPE_BYTES: usize = 64 * 1024;
const MIB: usize = 1024 * 1024;

/// A service. Each method does one thing.
#[derive(Clone, Default)]
struct Lab {
    /// A call of `Wait` has begun, and waits for `release`; `gone` when it has ended, or was
    /// dropped.
    begun: CancellationToken,
    release: CancellationToken,
    gone: CancellationToken,
}

impl NamedService for Lab {
    const NAME: &'static str = "flexcore.lab.v1.Lab";
}

impl Service<Request<Body>> for Lab {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let lab = self.clone();
        Box::pin(async move { Ok(lab.answer(request).await) })
    }
}

impl Lab {
    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let mut grpc = tonic::server::Grpc::new(codec());
        match method.as_str() {
            "Sized" => {
                grpc.unary(Handler(|asked: StdioData| ok(sized(asked.channel))), request).await
            }
            "Many" => grpc.server_streaming(Handler(many), request).await,
            "Wait" => {
                let wait = move |asked: StdioData| {
                    let lab = self.clone();
                    async move {
                        let _gone = lab.gone.clone().drop_guard();
                        lab.begun.cancel();
                        lab.release.cancelled().await;
                        Ok::<_, Status>(tonic::Response::new(asked))
                    }
                };
                grpc.unary(Handler(wait), request).await
            }
            "BrokenHeaders" => {
                let mut answer = Response::new(Body::empty());
                *answer.headers_mut() = broken_details();
                answer
            }
            "BrokenTrailers" => {
                let trailers = std::future::ready(Some(Ok(broken_details())));
                Response::new(Body::new(Empty::<Bytes>::new().with_trailers(trailers)))
            }
            _ => Status::unimplemented("no such method").into_http(),
        }
    }
}

/// A function as tonic's servers take it.
struct Handler<F>(F);

impl<F, R, T> Service<tonic::Request<StdioData>> for Handler<F>
where
    F: FnMut(StdioData) -> R,
    R: Future<Output = Result<tonic::Response<T>, Status>>,
{
    type Response = tonic::Response<T>;
    type Error = Status;
    type Future = R;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<StdioData>) -> R {
        (self.0)(request.into_inner())
    }
}

type Answered<T> = Ready<Result<tonic::Response<T>, Status>>;

fn ok<T>(message: T) -> Answered<T> {
    std::future::ready(Ok(tonic::Response::new(message)))
}

fn sized(mib: i32) -> StdioData {
    StdioData { channel: mib, data: vec![b'x'; mib as usize * MIB].into() }
}

/// So many messages, numbered, each with 1 KiB.
fn many(asked: StdioData) -> Answered<impl futures::Stream<Item = Result<StdioData, Status>>> {
    let data = Bytes::from(vec![b'x'; 1024]);
    let messages = (0..asked.channel).map(move |channel| StdioData { channel, data: data.clone() });
    ok(stream::iter(messages.map(Ok)))
}

fn broken_details() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("grpc-status", HeaderValue::from_static("13"));
    headers.insert("grpc-status-details-bin", HeaderValue::from_static("%%%"));
    headers
}

fn codec() -> ProstCodec<StdioData, StdioData> {
    ProstCodec::default()
}

async fn connected(
    lab: &Lab,
    stop: &CancellationToken,
) -> (Connection, JoinHandle<Result<(), Error>>) {
    let (near, far) = duplex(PIPE_BYTES);
    let served = serve(Box::new(far), Routes::new(lab.clone()), stop.clone());
    let serving = tokio::spawn(served);
    (Connection::new(Box::new(near)).await.unwrap(), serving)
}

/// A connection on which only these calls are taken.
async fn limited(lab: &Lab, calls: Calls) -> (Connection, JoinHandle<Result<(), Error>>) {
    let (near, far) = duplex(PIPE_BYTES);
    let (routes, stop) = (Routes::new(lab.clone()), CancellationToken::new());
    let serving = tokio::spawn(serve_secured(Box::new(far), None, routes, stop, calls));
    (Connection::new(Box::new(near)).await.unwrap(), serving)
}

/// A request that says how long its message is, and then has one byte of it.
fn half_of(method: &str) -> Request<Body> {
    let begins = Frame::data(Bytes::from_static(&[0, 0, 64, 0, 0, 1]));
    let frames = stream::iter([Ok::<_, Status>(begins)]).chain(stream::pending());
    Request::post(path(method)).body(Body::new(StreamBody::new(frames))).unwrap()
}

/// A request whose message is "1,000".
fn thousand(method: &str) -> Request<Body> {
    let message = Frame::data(Bytes::from_static(&[0, 0, 0, 0, 3, 8, 0xe8, 7]));
    let frames = stream::iter([Ok::<_, Status>(message)]);
    Request::post(path(method)).body(Body::new(StreamBody::new(frames))).unwrap()
}

fn path(method: &str) -> PathAndQuery {
    format!("/{}/{method}", Lab::NAME).parse().unwrap()
}

async fn call(connection: &Connection, method: &str, mib: i32) -> Result<StdioData, Status> {
    let asked = tonic::Request::new(StdioData { channel: mib, data: Bytes::new() });
    let answer = connection.grpc().unary(asked, path(method), codec()).await?;
    Ok(answer.into_inner())
}

/// A call of `Wait` that has begun.
async fn waiting(connection: &Connection, lab: &Lab) -> JoinHandle<Result<StdioData, Status>> {
    let connection = connection.clone();
    let waiting = tokio::spawn(async move { call(&connection, "Wait", 0).await });
    lab.begun.cancelled().await;
    waiting
}

#[tokio::test]
async fn calls_and_streams_share_a_connection() {
    let (connection, _serving) = connected(&Lab::default(), &CancellationToken::new()).await;
    let calls = join_all((0..100).map(|_| call(&connection, "Sized", 0))).await;
    assert!(calls.into_iter().all(|answer| answer.unwrap() == sized(0)));
    let asked = tonic::Request::new(StdioData { channel: 1_000, data: Bytes::new() });
    let answer = connection.grpc().server_streaming(asked, path("Many"), codec()).await;
    let mut stream = answer.unwrap().into_inner();
    for number in 0..1_000 {
        assert_eq!(stream.message().await.unwrap().unwrap().channel, number);
        if number == 500 {
            call(&connection, "Sized", 1).await.unwrap();
        }
    }
    assert_eq!(stream.message().await.unwrap(), None);
    let unknown = call(&connection, "Nothing", 0).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
}

#[tokio::test]
async fn large_answers_pass_and_too_large_ones_do_no_harm() {
    let (connection, _serving) = connected(&Lab::default(), &CancellationToken::new()).await;
    let larger = connection.clone().with_answer_bytes_max(40 * MIB);
    for connection in [connection, larger] {
        let most = connection.answer_bytes_max() / MIB;
        let large = call(&connection, "Sized", most as i32 - 1).await.unwrap();
        assert_eq!(large.data.len(), (most - 1) * MIB);
        let refused = call(&connection, "Sized", most as i32 + 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange);
        assert_eq!(call(&connection, "Sized", 1).await.unwrap(), sized(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_begin_in_time_is_given_up() {
    let lab = Lab::default();
    let (connection, _serving) = connected(&lab, &CancellationToken::new()).await;
    let limit = Duration::from_secs(1);
    let hurried = connection.within(limit);
    let late = call(&hurried, "Wait", 0).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    lab.gone.cancelled().await;
    // A stream that has begun may last.
    let asked = tonic::Request::new(StdioData { channel: 1_000, data: Bytes::new() });
    let answer = hurried.grpc().server_streaming(asked, path("Many"), codec()).await;
    let mut stream = answer.unwrap().into_inner();
    sleep(limit * 2).await;
    for number in 0..1_000 {
        assert_eq!(stream.message().await.unwrap().unwrap().channel, number);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_left_in_time() {
    // There is room for the first bytes alone: nothing that follows can be sent.
    let (_near, far) = duplex(PREFACE_BYTES);
    let connection = Connection::new(Box::new(far)).await.unwrap();
    let (tasks, dropped) = (connection.life.tasks.clone(), Instant::now());
    drop(connection);
    timeout(DIAL_WAIT * 2, tasks.0.closed.cancelled()).await.unwrap();
    assert!(dropped.elapsed() >= DIAL_WAIT, "it had time to read");
}

#[tokio::test(start_paused = true)]
async fn a_call_holds_its_connection() {
    let lab = Lab::default();
    let (mut connection, _serving) = connected(&lab, &CancellationToken::new()).await;
    let tasks = connection.life.tasks.clone();
    let (waiting, many) = (connection.call(thousand("Wait")), connection.call(thousand("Many")));
    let many = many.await.unwrap().into_body();
    drop(connection);
    sleep(DIAL_WAIT * 2).await;
    lab.release.cancel();
    assert!(waiting.await.is_ok());
    sleep(DIAL_WAIT * 2).await;
    let all = many.collect().await.unwrap().to_bytes();
    assert!(all.len() > 1_000 * 1_024, "{}", all.len());
    // It ends by itself then.
    let dropped = Instant::now();
    tasks.0.closed.cancelled().await;
    assert!(dropped.elapsed() < DIAL_WAIT);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_calls_are_taken_at_once() {
    let lab = Lab::default();
    let (connection, _serving) = limited(&lab, Calls { most: 1, within: None }).await;
    // With the first answer the client has heard of the limit.
    call(&connection, "Sized", 0).await.unwrap();
    let under_way = waiting(&connection, &lab).await;
    let waits = timeout(Duration::from_secs(60), call(&connection, "Sized", 0)).await;
    assert!(waits.is_err(), "{waits:?}");
    lab.release.cancel();
    assert!(under_way.await.unwrap().is_ok());
    assert_eq!(call(&connection, "Sized", 0).await.unwrap(), sized(0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_too_long_is_dropped() {
    let lab = Lab::default();
    let calls = Calls { within: Some(Duration::from_secs(1)), ..Calls::default() };
    let (mut connection, _serving) = limited(&lab, calls).await;
    let late = call(&connection, "Wait", 0).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    lab.gone.cancelled().await;
    let late = connection.call(half_of("Sized")).await.unwrap();
    let code = (Code::DeadlineExceeded as i32).to_string();
    assert_eq!(late.headers()["grpc-status"], code.as_str());
    assert_eq!(call(&connection, "Sized", 1).await.unwrap(), sized(1));
}

#[tokio::test]
async fn when_the_other_side_is_gone_calls_are_unavailable() {
    let lab = Lab::default();
    let (connection, serving) = connected(&lab, &CancellationToken::new()).await;
    let under_way = waiting(&connection, &lab).await;
    serving.abort();
    assert_eq!(under_way.await.unwrap().unwrap_err().code(), Code::Unavailable);
    connection.closed().await;
    assert_eq!(call(&connection, "Sized", 0).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_connection_can_be_closed_whatever_the_other_side_does() {
    let lab = Lab::default();
    let (connection, serving) = connected(&lab, &CancellationToken::new()).await;
    let under_way = waiting(&connection, &lab).await;
    connection.close();
    assert_eq!(under_way.await.unwrap().unwrap_err().code(), Code::Unavailable);
    connection.closed().await;
    assert_eq!(call(&connection, "Sized", 0).await.unwrap_err().code(), Code::Unavailable);
    // The server notices, and drops the call.
    lab.gone.cancelled().await;
    let _ = serving.await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_ends_what_is_under_way() {
    let (lab, stop) = (Lab::default(), CancellationToken::new());
    let (connection, serving) = connected(&lab, &stop).await;
    let under_way = waiting(&connection, &lab).await;
    stop.cancel();
    let refused = loop {
        match call(&connection, "Sized", 0).await {
            Ok(_) => sleep(std::time::Duration::from_millis(5)).await,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable);
    lab.release.cancel();
    assert!(under_way.await.unwrap().is_ok());
    connection.closed().await;
    let _ = serving.await.unwrap();
}

#[tokio::test]
async fn a_call_that_nobody_waits_for_is_dropped_by_the_server() {
    let lab = Lab::default();
    let (connection, _serving) = connected(&lab, &CancellationToken::new()).await;
    waiting(&connection, &lab).await.abort();
    lab.gone.cancelled().await;
    assert!(call(&connection, "Sized", 0).await.is_ok());
}

#[tokio::test]
async fn broken_details_of_an_error_do_no_harm() {
    let (connection, _serving) = connected(&Lab::default(), &CancellationToken::new()).await;
    for method in ["BrokenHeaders", "BrokenTrailers"] {
        let status = call(&connection, method, 0).await.unwrap_err();
        assert_eq!((status.code(), status.details()), (Code::Internal, &[][..]), "{method}");
    }
    for (details, is_kept) in [("", true), ("CAE", true), ("CAE=", true), ("CAF", false)] {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status-details-bin", HeaderValue::from_static(details));
        drop_broken_details(&mut headers);
        assert_eq!(!headers.is_empty(), is_kept, "{details}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_begin_is_left_in_time() {
    let run = |far: DuplexStream| serve(Box::new(far), Routes::default(), CancellationToken::new());
    let (_near, far) = duplex(PIPE_BYTES);
    assert!(matches!(run(far).await, Err(Error::Late { .. })));
    let (near, far) = duplex(PIPE_BYTES);
    drop(near);
    assert!(run(far).await.is_ok());
    let (mut near, far) = duplex(PIPE_BYTES);
    near.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(matches!(run(far).await, Err(Error::System { .. })));
    let (_near, far) = duplex(PIPE_BYTES);
    let stop = CancellationToken::new();
    stop.cancel();
    assert!(serve(Box::new(far), Routes::default(), stop).await.is_ok());
}

#[test]
fn a_path_becomes_a_whole_uri() {
    for (given, whole) in [
        ("/flexcore.lab.v1.Lab/Sized", "http://plugin/flexcore.lab.v1.Lab/Sized"),
        ("/", "http://plugin/"),
        ("https://localhost:1/a", "https://localhost:1/a"),
    ] {
        assert_eq!(absolute(given.parse().unwrap()).to_string(), whole);
    }
}
