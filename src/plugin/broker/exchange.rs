//! The host's end of `plugin.GRPCBroker/StartStream`: the stream of messages to and from the
//! plugin's broker, for as long as the connection lasts.

use std::sync::Arc;

use futures::stream;
use tokio::{sync::mpsc, task::coop};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::shared::Shared;
use crate::{
    Connection,
    limits::BROKER_MESSAGE_BYTES_MAX,
    logs::shown,
    wire::{BROKER_STREAM, ConnInfo},
};

/// Sends what is outgoing and takes what comes, until one side ends it. Old plugins, and plugins
/// that do not use go-plugin, have no broker: whoever uses it then gets the reason.
pub(super) async fn run(
    connection: Connection,
    outgoing: mpsc::Receiver<ConnInfo>,
    shared: Arc<Shared>,
) {
    let reason = match exchange(connection, outgoing, &shared).await {
        Ok(()) => "the plugin closed it".to_owned(),
        Err(status) if status.code() == Code::Unimplemented => "the plugin has none".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), shown(status.message())),
    };
    tracing::debug!(reason, "a plugin's broker has ended");
    shared.change(|state| state.end(reason));
}

async fn exchange(
    connection: Connection,
    outgoing: mpsc::Receiver<ConnInfo>,
    shared: &Shared,
) -> Result<(), Status> {
    let mut grpc = connection.grpc().max_decoding_message_size(BROKER_MESSAGE_BYTES_MAX);
    grpc.ready().await?;
    let messages = stream::unfold(outgoing, |mut outgoing| async move {
        let info = outgoing.recv().await?;
        Some((info, outgoing))
    });
    let codec = ProstCodec::<ConnInfo, ConnInfo>::default();
    let path = PathAndQuery::from_static(BROKER_STREAM);
    // A plugin in Go answers this with its first message only, which may never come.
    let mut incoming = grpc.streaming(Request::new(messages), path, codec).await?.into_inner();
    while let Some(info) = incoming.message().await? {
        shared.take(info);
        // A flood leaves others their turn.
        coop::consume_budget().await;
    }
    Ok(())
}
