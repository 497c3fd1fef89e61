//! One call of a service that go-plugin itself has.

use std::time::Duration;

use prost::Message;
use tokio::time::timeout;
use tonic::{Request, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::{Connection, Error, limits::CONTROL_BYTES_MAX};

/// Calls `/package.Service/Method`. Fails with its status, and when there is no answer within the
/// time.
pub(super) async fn call<Q, A>(
    connection: &Connection,
    path: &'static str,
    question: Q,
    within: Duration,
) -> Result<A, Error>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let called = async {
        let mut grpc = connection.grpc().max_decoding_message_size(CONTROL_BYTES_MAX);
        grpc.ready().await?;
        let mut request = Request::new(question);
        request.set_timeout(within);
        let path = PathAndQuery::from_static(path);
        grpc.unary(request, path, ProstCodec::<Q, A>::default()).await
    };
    match timeout(within, called).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Error::status(path.trim_start_matches('/'))(status)),
        Err(_) => Err(Error::Late { what: "an answer of the plugin", limit: within }),
    }
}
