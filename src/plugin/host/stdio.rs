//! What a plugin's code prints after its server has taken the standard streams over. The stream is
//! read for as long as the connection lasts: a plugin whose output nobody reads stands still at its
//! next line.

use tokio::task::coop;
use tonic::{Request, Status, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::{
    Connection,
    limits::PRINTED_BYTES_MAX,
    process::{Output, Printed},
    wire::{Empty, STDERR, STDIO_STREAM, STDOUT, StdioData},
};

/// Hands on all that is printed, piece by piece, and holds nothing back: `output` returns at once,
/// so whoever gets it decides what to drop. Plugins of before go-plugin 1.1.0 have no such stream.
pub(super) async fn follow(connection: Connection, output: Output) {
    if let Err(status) = printed(&connection, &output).await {
        let (code, told) = (status.code(), status.message());
        tracing::debug!(?code, told, "a plugin's printed output has ended");
    }
}

async fn printed(connection: &Connection, output: &Output) -> Result<(), Status> {
    let mut grpc = connection.grpc().max_decoding_message_size(PRINTED_BYTES_MAX);
    grpc.ready().await?;
    let codec = ProstCodec::<Empty, StdioData>::default();
    let path = PathAndQuery::from_static(STDIO_STREAM);
    // A plugin in Go answers this when it prints something.
    let answer = grpc.server_streaming(Request::new(Empty {}), path, codec).await?;
    let mut pieces = answer.into_inner();
    while let Some(piece) = pieces.message().await? {
        if let Some(printed) = sort(piece) {
            output(printed);
        }
        // A flood leaves others their turn.
        coop::consume_budget().await;
    }
    Ok(())
}

fn sort(piece: StdioData) -> Option<Printed> {
    match piece {
        StdioData { data, .. } if data.is_empty() => None,
        StdioData { channel: STDOUT, data } => Some(Printed::Stdout(data)),
        StdioData { channel: STDERR, data } => Some(Printed::Stderr(data)),
        StdioData { channel, .. } => {
            tracing::debug!(channel, "a plugin prints to a stream that there is not");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_go_where_they_were_printed() {
        let piece = |channel, data: &'static str| sort(StdioData { channel, data: data.into() });
        assert!(matches!(piece(1, "a"), Some(Printed::Stdout(data)) if data == "a"));
        assert!(matches!(piece(2, "b"), Some(Printed::Stderr(data)) if data == "b"));
        for nothing in [piece(1, ""), piece(0, "c"), piece(3, "d"), piece(-1, "e")] {
            assert!(nothing.is_none());
        }
    }
}
