//! `lab.proto`: what a host calls of a plugin, and the service that it serves for one.

use std::{convert::Infallible, pin::Pin, task};

use bytes::Bytes;
use flexcore_plugin::{Connection, Plugin};
use futures::{Stream, StreamExt as _, stream};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage,
    prost_types::{FileDescriptorProto, FileDescriptorSet},
};
use serde_json::{Value, json};
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{BoxFuture, http, http::uri::PathAndQuery},
    server::NamedService,
};
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::{
    fixtures,
    lab::{
        ADD, APPLY, APPLY_STREAM, AddRequest, AddResponse, TRANSFORM, TransformRequest,
        TransformResponse, descriptors,
    },
};

/// The plugin's service, for callers.
#[derive(Clone)]
pub(crate) struct Transform {
    connection: Connection,
}

impl Transform {
    pub(crate) fn of(plugin: &Plugin) -> Self {
        Self::over(plugin.connection().clone())
    }

    pub(crate) fn over(connection: Connection) -> Self {
        Self { connection }
    }

    async fn grpc(&self) -> Result<tonic::client::Grpc<Connection>, Status> {
        let mut grpc = self.connection.grpc();
        grpc.ready().await?;
        Ok(grpc)
    }

    /// One call, as it is answered. The caller sets a limit on its time.
    pub(crate) async fn call(
        &self,
        request: TransformRequest,
    ) -> Result<TransformResponse, Status> {
        let path = PathAndQuery::from_static(APPLY);
        let codec = ProstCodec::<TransformRequest, TransformResponse>::default();
        let answer = self.grpc().await?.unary(Request::new(request), path, codec).await;
        answer.map(Response::into_inner)
    }

    pub(crate) async fn apply(&self, id: &str, payload: &str) -> Result<TransformResponse, Status> {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        self.call(TransformRequest { id: id.to_owned(), payload, callback_id: 0 }).await
    }

    /// The plugin calls the host's service of this number.
    pub(crate) async fn call_back(&self, callback_id: u32) -> Result<String, Status> {
        let (id, payload) = ("callback".to_owned(), Bytes::new());
        let answer = self.call(TransformRequest { id, payload, callback_id }).await;
        answer.map(|answer| answer.note)
    }

    /// One stream both ways.
    pub(crate) async fn stream(
        &self,
        requests: impl Stream<Item = TransformRequest> + Send + 'static,
    ) -> Result<Streaming<TransformResponse>, Status> {
        let path = PathAndQuery::from_static(APPLY_STREAM);
        let codec = ProstCodec::<TransformRequest, TransformResponse>::default();
        let answers = self.grpc().await?.streaming(Request::new(requests), path, codec).await;
        answers.map(Response::into_inner)
    }

    /// The answers to this many requests of one stream, which has to end behind them.
    pub(crate) async fn streamed(&self, count: usize) -> Vec<TransformResponse> {
        let request = |number: usize| TransformRequest {
            id: number.to_string(),
            payload: Bytes::from_static(b"streamed"),
            callback_id: 0,
        };
        let answers = self.stream(stream::iter((0..count).map(request))).await.unwrap();
        answers.map(Result::unwrap).collect().await
    }
}

/// The host's service: it adds.
#[derive(Clone, Copy)]
pub(crate) struct HostAdder;

impl NamedService for HostAdder {
    const NAME: &'static str = "flexcore.lab.v1.HostAdder";
}

impl Service<http::Request<Body>> for HostAdder {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != ADD {
                return Ok(Status::unimplemented("the host only adds").into_http());
            }
            let codec = ProstCodec::<AddResponse, AddRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(Adding, request).await)
        })
    }
}

struct Adding;

impl Service<Request<AddRequest>> for Adding {
    type Response = Response<AddResponse>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Status>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<AddRequest>) -> Self::Future {
        let AddRequest { a, b } = request.into_inner();
        let sum = a.checked_add(b).ok_or_else(|| Status::out_of_range("too large"));
        Box::pin(std::future::ready(sum.map(|sum| Response::new(AddResponse { sum }))))
    }
}

/// Without what it has for Go, and what follows from the rest.
fn reduced(mut file: FileDescriptorProto) -> FileDescriptorProto {
    file.options = None;
    for field in file.message_type.iter_mut().flat_map(|message| &mut message.field) {
        field.json_name = None;
    }
    for method in file.service.iter_mut().flat_map(|service| &mut service.method) {
        method.client_streaming = Some(method.client_streaming());
        method.server_streaming = Some(method.server_streaming());
    }
    file
}

#[test]
fn the_descriptors_are_those_of_the_file() {
    let Some(set) = fixtures::descriptors() else { return };
    let compiled = FileDescriptorSet::decode(set.as_slice()).unwrap();
    let compiled: Vec<_> = compiled.file.into_iter().map(reduced).collect();
    assert_eq!(compiled, descriptors().file);
}

/// What a message says to whoever knows the descriptors alone.
fn said(name: &str, message: &impl Message) -> Value {
    let pool = DescriptorPool::from_file_descriptor_set(descriptors()).unwrap();
    let of = pool.get_message_by_name(&format!("flexcore.lab.v1.{name}")).unwrap();
    let message = DynamicMessage::decode(of, message.encode_to_vec().as_slice()).unwrap();
    serde_json::to_value(&message).unwrap()
}

#[test]
fn the_messages_are_those_of_the_descriptors() {
    let payload = Bytes::from_static(b"hello");
    let request = TransformRequest { id: "a".into(), payload: payload.clone(), callback_id: 7 };
    let expected = json!({"id": "a", "payload": "aGVsbG8=", "callbackId": 7});
    assert_eq!(said("TransformRequest", &request), expected);
    let response = TransformResponse { id: "a".into(), payload, note: "n".into() };
    let expected = json!({"id": "a", "payload": "aGVsbG8=", "note": "n"});
    assert_eq!(said("TransformResponse", &response), expected);
    assert_eq!(said("AddRequest", &AddRequest { a: 1, b: 2 }), json!({"a": "1", "b": "2"}));
    assert_eq!(said("AddResponse", &AddResponse { sum: 3 }), json!({"sum": "3"}));
    for (service, path) in [(TRANSFORM, APPLY), (TRANSFORM, APPLY_STREAM), (HostAdder::NAME, ADD)] {
        let method = path.strip_prefix(&format!("/{service}/")).unwrap();
        let pool = DescriptorPool::from_file_descriptor_set(descriptors()).unwrap();
        let service = pool.get_service_by_name(service).unwrap();
        assert!(service.methods().any(|known| known.name() == method), "{path}");
    }
}
