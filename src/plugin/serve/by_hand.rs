//! gRPC services whose messages and methods are written by hand, since they are few and small.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, stream::BoxStream};
use prost::Message;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, http},
    server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower_service::Service;

/// A call, and its answer, in HTTP.
pub(super) type Asked = http::Request<Body>;
pub(super) type Answered = http::Response<Body>;

/// Answers that come one by one. A type of its own: the compiler loses the lifetime of a boxed
/// stream where it looks whether a method's future may be sent.
pub(super) struct Answers<A>(BoxStream<'static, Result<A, Status>>);

impl<A> Answers<A> {
    pub(super) fn new(answers: impl Stream<Item = Result<A, Status>> + Send + 'static) -> Self {
        Self(Box::pin(answers))
    }
}

impl<A> Stream for Answers<A> {
    type Item = Result<A, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.as_mut().poll_next(cx)
    }
}

/// The methods of one gRPC service.
pub(super) trait Methods: Clone + Send + Sync + 'static {
    /// The service's full name.
    const NAME: &'static str;

    /// Answers a call of the method with this path, `/package.Service/Method`.
    fn answer(self, path: String, asked: Asked) -> impl Future<Output = Answered> + Send;
}

/// Methods as a service of tonic's.
#[derive(Clone)]
pub(super) struct ByHand<M>(pub(super) M);

impl<M: Methods> NamedService for ByHand<M> {
    const NAME: &'static str = M::NAME;
}

impl<M: Methods> Service<Asked> for ByHand<M> {
    type Response = Answered;
    type Error = Infallible;
    type Future = BoxFuture<Answered, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, asked: Asked) -> Self::Future {
        let methods = self.0.clone();
        Box::pin(async move {
            let path = asked.uri().path().to_owned();
            Ok(methods.answer(path, asked).await)
        })
    }
}

/// The answer to a method that is not there.
pub(super) fn unknown(path: &str) -> Answered {
    Status::unimplemented(format!("there is no method {path}")).into_http()
}

/// One message in, one out.
pub(super) async fn unary<Q, A>(
    asked: Asked,
    answer: impl FnMut(Q) -> Result<A, Status> + Send,
) -> Answered
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default()).unary(Function(answer), asked).await
}

/// One message in, a stream out.
pub(super) async fn answers<Q, A>(
    asked: Asked,
    answer: impl FnMut(Q) -> Result<Answers<A>, Status> + Send,
) -> Answered
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default()).server_streaming(Function(answer), asked).await
}

/// A stream in, a stream out.
pub(super) async fn both_ways<Q, A>(
    asked: Asked,
    answer: impl FnMut(Streaming<Q>) -> Result<Answers<A>, Status> + Send,
) -> Answered
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default()).streaming(Function(answer), asked).await
}

/// A function as a method.
struct Function<F>(F);

impl<Q, A, F: FnMut(Q) -> Result<A, Status>> UnaryService<Q> for Function<F> {
    type Response = A;
    type Future = Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(Response::new))
    }
}

impl<Q, A, F: FnMut(Q) -> Result<Answers<A>, Status>> ServerStreamingService<Q> for Function<F> {
    type Response = A;
    type ResponseStream = Answers<A>;
    type Future = Ready<Result<Response<Answers<A>>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(Response::new))
    }
}

impl<Q, A, F> StreamingService<Q> for Function<F>
where
    F: FnMut(Streaming<Q>) -> Result<Answers<A>, Status>,
{
    type Response = A;
    type ResponseStream = Answers<A>;
    type Future = Ready<Result<Response<Answers<A>>, Status>>;

    fn call(&mut self, request: Request<Streaming<Q>>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(Response::new))
    }
}
