//! The plugin's half of the contract: whoever writes a plugin in Rust implements [`Serving`], as
//! the SDK does.
//!
//! What comes in has been checked, and what goes out is: code that breaks a limit gets a failure
//! sent in its place, and the host never sees the contract broken.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use prost::Message;
use tonic::{
    Code, Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, http},
    server::{Grpc, NamedService, StreamingService, UnaryService},
    service::Routes,
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::{
    check::taken,
    failure::BROKEN,
    messages::{
        CALL, CONFIGURE, CallRequest, CallResponse, CallResult, ConfigureRequest,
        ConfigureResponse, DECIDE, DESCRIBE, DecideRequest, DecideResponse, Decision,
        DecisionResult, DescribeRequest, Description, Failure, SERVICE, STREAM, StreamRequest,
        StreamResponse,
    },
};
use crate::{
    Cookie, Error, Serve,
    limits::{ENVELOPE_BYTES_MAX, INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, RESULTS_BYTES_MAX},
};

/// The version of the contract, which host and plugin agree on when the plugin starts.
pub const VERSION: u32 = 1;

const TOO_MUCH: &str = "the answers of one batch are too large together";

/// A plugin of the contract, to be handed to [`crate::serve`]. Its cookie is FlexCore's.
pub fn plugin(serving: impl Serving) -> Serve {
    Serve::new(Cookie::flexcore()).version(VERSION, move |_, _| Routes::new(Served::new(serving)))
}

/// Messages that come one by one, in either direction. A status ends them.
pub struct Messages<M>(BoxStream<'static, Result<M, Status>>);

impl<M> Messages<M> {
    /// These messages.
    pub fn new(messages: impl Stream<Item = Result<M, Status>> + Send + 'static) -> Self {
        Self(Box::pin(messages))
    }
}

impl<M> Stream for Messages<M> {
    type Item = Result<M, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.as_mut().poll_next(cx)
    }
}

impl<M> fmt::Debug for Messages<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}

/// What a plugin does. Requests have been checked. A future or stream is dropped when its caller
/// gives up, or is gone.
pub trait Serving: Clone + Send + Sync + 'static {
    /// Says what it can do: always the same.
    fn describe(&self) -> Description;

    /// Takes a tenant's configuration. The error is that it cannot work with it.
    fn configure(
        &self,
        request: ConfigureRequest,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Calls a function once. A status is for what is no call of a function.
    fn call(
        &self,
        request: CallRequest,
    ) -> impl Future<Output = Result<CallResponse, Status>> + Send;

    /// Calls a function many times. One response for each request.
    fn stream(&self, requests: Messages<StreamRequest>) -> Messages<StreamResponse>;

    /// Decides on commands. One response for each request.
    fn decide(&self, requests: Messages<DecideRequest>) -> Messages<DecideResponse>;
}

/// A [`Serving`] as a service of tonic's.
#[derive(Clone)]
struct Served<S> {
    serving: S,
    /// False in tests of what a host makes of broken plugins.
    checks: bool,
}

impl<S: Serving> Served<S> {
    fn new(serving: S) -> Self {
        Self { serving, checks: true }
    }

    fn checked(&self, response: CallResponse) -> CallResponse {
        if !self.checks {
            return response;
        }
        let result = match response.taken() {
            Ok(Ok(output)) => CallResult::Output(output),
            Ok(Err(failure)) => CallResult::Failure(failure),
            Err(fault) => CallResult::Failure(broken(&fault)),
        };
        CallResponse { result: Some(result) }
    }

    /// Outputs that do not go into one message with those before them are left out.
    fn checked_batch(&self, mut response: StreamResponse) -> StreamResponse {
        if !self.checks {
            return response;
        }
        let mut bytes = 0;
        let check = |response: CallResponse| {
            let response = self.checked(response);
            bytes += response.encoded_len();
            if bytes <= RESULTS_BYTES_MAX {
                return response;
            }
            CallResponse { result: Some(CallResult::Failure(broken(TOO_MUCH))) }
        };
        response.results = response.results.into_iter().map(check).collect();
        response
    }

    fn checked_decisions(&self, mut response: DecideResponse) -> DecideResponse {
        if !self.checks {
            return response;
        }
        let mut bytes = 0;
        let check = |decision: Decision| {
            bytes += decision.encoded_len();
            let taken =
                if bytes > RESULTS_BYTES_MAX { Err(TOO_MUCH.to_owned()) } else { decision.taken() };
            let result = taken.unwrap_or_else(|fault| DecisionResult::Failure(broken(&fault)));
            Decision { result: Some(result) }
        };
        response.decisions = response.decisions.into_iter().map(check).collect();
        response
    }
}

fn broken(fault: &str) -> Failure {
    Failure::new(BROKEN, format_args!("the plugin broke the contract: {fault}"))
}

impl<S: Serving> NamedService for Served<S> {
    const NAME: &'static str = SERVICE;
}

impl<S: Serving> Service<http::Request<Body>> for Served<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let served = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                DESCRIBE => {
                    grpc::<Description, DescribeRequest>().unary(Describe(served), request).await
                }
                CONFIGURE => {
                    grpc::<ConfigureResponse, ConfigureRequest>()
                        .unary(Configure(served), request)
                        .await
                }
                CALL => grpc::<CallResponse, CallRequest>().unary(Call(served), request).await,
                STREAM => {
                    grpc::<StreamResponse, StreamRequest>()
                        .streaming(Streamed(served), request)
                        .await
                }
                DECIDE => {
                    grpc::<DecideResponse, DecideRequest>().streaming(Decide(served), request).await
                }
                other => Status::unimplemented(format!("there is no {other}")).into_http(),
            })
        })
    }
}

/// Reads requests a little beyond their limits, so that one that passes them is told so.
fn grpc<A, Q>() -> Grpc<ProstCodec<A, Q>>
where
    A: Message + 'static,
    Q: Message + Default + 'static,
{
    Grpc::new(ProstCodec::default())
        .max_decoding_message_size(INPUT_BYTES_MAX + ENVELOPE_BYTES_MAX)
        .max_encoding_message_size(OUTPUT_BYTES_MAX + ENVELOPE_BYTES_MAX)
}

/// A request that breaks a limit.
fn refused(error: Error) -> Status {
    Status::new(Code::InvalidArgument, error.to_string())
}

fn checked_calls(request: Result<StreamRequest, Status>) -> Result<StreamRequest, Status> {
    let request = request?;
    request.check().map_err(refused)?;
    Ok(request)
}

fn checked_questions(request: Result<DecideRequest, Status>) -> Result<DecideRequest, Status> {
    let request = request?;
    request.check().map_err(refused)?;
    Ok(request)
}

struct Describe<S>(Served<S>);

impl<S: Serving> UnaryService<DescribeRequest> for Describe<S> {
    type Response = Description;
    type Future = std::future::Ready<Result<Response<Description>, Status>>;

    fn call(&mut self, _: Request<DescribeRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.serving.describe())))
    }
}

struct Configure<S>(Served<S>);

impl<S: Serving> UnaryService<ConfigureRequest> for Configure<S> {
    type Response = ConfigureResponse;
    type Future = BoxFuture<Response<ConfigureResponse>, Status>;

    fn call(&mut self, request: Request<ConfigureRequest>) -> Self::Future {
        let served = self.0.clone();
        Box::pin(async move {
            let request = request.into_inner();
            request.check().map_err(refused)?;
            let failure = served.serving.configure(request).await.err();
            let check = |failure| taken(failure).unwrap_or_else(|fault| broken(&fault));
            let failure = if served.checks { failure.map(check) } else { failure };
            Ok(Response::new(ConfigureResponse { failure }))
        })
    }
}

struct Call<S>(Served<S>);

impl<S: Serving> UnaryService<CallRequest> for Call<S> {
    type Response = CallResponse;
    type Future = BoxFuture<Response<CallResponse>, Status>;

    fn call(&mut self, request: Request<CallRequest>) -> Self::Future {
        let served = self.0.clone();
        Box::pin(async move {
            let request = request.into_inner();
            request.check().map_err(refused)?;
            let response = served.serving.call(request).await?;
            Ok(Response::new(served.checked(response)))
        })
    }
}

struct Streamed<S>(Served<S>);

impl<S: Serving> StreamingService<StreamRequest> for Streamed<S> {
    type Response = StreamResponse;
    type ResponseStream = Messages<StreamResponse>;
    type Future = std::future::Ready<Result<Response<Messages<StreamResponse>>, Status>>;

    fn call(&mut self, request: Request<Streaming<StreamRequest>>) -> Self::Future {
        let served = self.0.clone();
        let requests = request.into_inner().map(checked_calls);
        let responses = served.serving.stream(Messages::new(requests));
        let responses = responses.map(move |response| response.map(|it| served.checked_batch(it)));
        std::future::ready(Ok(Response::new(Messages::new(responses))))
    }
}

struct Decide<S>(Served<S>);

impl<S: Serving> StreamingService<DecideRequest> for Decide<S> {
    type Response = DecideResponse;
    type ResponseStream = Messages<DecideResponse>;
    type Future = std::future::Ready<Result<Response<Messages<DecideResponse>>, Status>>;

    fn call(&mut self, request: Request<Streaming<DecideRequest>>) -> Self::Future {
        let served = self.0.clone();
        let requests = request.into_inner().map(checked_questions);
        let responses = served.serving.decide(Messages::new(requests));
        let responses =
            responses.map(move |response| response.map(|it| served.checked_decisions(it)));
        std::future::ready(Ok(Response::new(Messages::new(responses))))
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
