//! A plugin's end of `plugin.GRPCBroker/StartStream`, as a service of its gRPC server.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use futures::{StreamExt as _, stream, stream::BoxStream};
use tokio::{sync::mpsc, task::coop};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, http},
    server::{NamedService, StreamingService},
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::shared::Shared;
use crate::{
    limits::BROKER_MESSAGE_BYTES_MAX,
    wire::{BROKER, BROKER_STREAM, ConnInfo},
};

/// Messages to the host; taken while a host has its stream open.
type Outgoing = Arc<Mutex<Option<mpsc::Receiver<ConnInfo>>>>;

/// A stream of these.
type Messages = BoxStream<'static, Result<ConnInfo, Status>>;

/// The service `plugin.GRPCBroker`. One host at a time has its stream: the messages are for one.
#[derive(Clone)]
pub(crate) struct StartStream {
    shared: Arc<Shared>,
    outgoing: Outgoing,
    stop: CancellationToken,
}

impl StartStream {
    pub(super) fn new(
        shared: Arc<Shared>,
        outgoing: mpsc::Receiver<ConnInfo>,
        stop: CancellationToken,
    ) -> Self {
        Self { shared, outgoing: Arc::new(Mutex::new(Some(outgoing))), stop }
    }

    fn start(&self, incoming: Streaming<ConnInfo>) -> Result<Messages, Status> {
        let outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let outgoing = outgoing
            .ok_or_else(|| Status::failed_precondition("another host has the broker's stream"))?;
        self.shared.change(|state| state.begin());
        let stop = self.stop.child_token();
        let reading = tokio::spawn(read(incoming, Arc::clone(&self.shared), stop.clone()));
        let open = Open {
            outgoing: Some(outgoing),
            back: Arc::clone(&self.outgoing),
            shared: Arc::clone(&self.shared),
            stop,
            _reading: AbortOnDropHandle::new(reading),
        };
        let messages = stream::unfold(open, |mut open| async move {
            let info = open.next().await?;
            Some((Ok(info), open))
        });
        Ok(messages.boxed())
    }
}

/// Takes what the host says, and ends the stream when the host does.
async fn read(mut incoming: Streaming<ConnInfo>, shared: Arc<Shared>, stop: CancellationToken) {
    while let Ok(Some(info)) = incoming.message().await {
        shared.take(info);
        coop::consume_budget().await;
    }
    stop.cancel();
}

/// A stream that a host has open. When it ends, the next host may open one.
struct Open {
    outgoing: Option<mpsc::Receiver<ConnInfo>>,
    back: Outgoing,
    shared: Arc<Shared>,
    stop: CancellationToken,
    _reading: AbortOnDropHandle<()>,
}

impl Open {
    async fn next(&mut self) -> Option<ConnInfo> {
        let outgoing = self.outgoing.as_mut()?;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            info = outgoing.recv() => info,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.change(|state| state.end("the host closed it".to_owned()));
        *self.back.lock().unwrap_or_else(PoisonError::into_inner) = self.outgoing.take();
    }
}

impl NamedService for StartStream {
    const NAME: &'static str = BROKER;
}

impl Service<http::Request<Body>> for StartStream {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(self.clone());
        Box::pin(async move {
            if request.uri().path() != BROKER_STREAM {
                return Ok(Status::unimplemented("GRPCBroker has StartStream alone").into_http());
            }
            let codec = ProstCodec::<ConnInfo, ConnInfo>::default();
            let mut grpc =
                tonic::server::Grpc::new(codec).max_decoding_message_size(BROKER_MESSAGE_BYTES_MAX);
            Ok(grpc.streaming(method, request).await)
        })
    }
}

struct Method(StartStream);

impl StreamingService<ConnInfo> for Method {
    type Response = ConnInfo;
    type ResponseStream = Messages;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<ConnInfo>>) -> Self::Future {
        ready(self.0.start(request.into_inner()).map(Response::new))
    }
}
