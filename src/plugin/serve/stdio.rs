//! `plugin.GRPCStdio`: what a plugin's code prints for its host. The real standard output is no
//! place for it: its first line is the handshake's, and hosts throw away the rest.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream;
use tokio::{
    sync::{Mutex, OwnedMutexGuard, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::by_hand::{Answered, Answers, Asked, Methods, answers, unknown};
use crate::{
    Error,
    limits::{STDIO_PIECE_BYTES_MAX, STDIO_PIECES_MAX, STDIO_WAIT},
    wire::{Empty, STDERR, STDIO, STDIO_STREAM, STDOUT, StdioData},
};

/// Prints for the host. It is a cheap clone.
#[derive(Clone, Debug)]
pub struct Stdio(mpsc::Sender<StdioData>);

impl Stdio {
    /// Prints to the standard output that the host shows. Waits while the host does not read; fails
    /// after [`STDIO_WAIT`], when the rest is lost.
    pub async fn stdout(&self, text: impl Into<Bytes>) -> Result<(), Error> {
        self.print(STDOUT, text.into()).await
    }

    /// As [`Stdio::stdout`], to the standard error.
    pub async fn stderr(&self, text: impl Into<Bytes>) -> Result<(), Error> {
        self.print(STDERR, text.into()).await
    }

    async fn print(&self, channel: i32, mut text: Bytes) -> Result<(), Error> {
        while !text.is_empty() {
            let data = text.split_to(text.len().min(STDIO_PIECE_BYTES_MAX));
            let sent = timeout(STDIO_WAIT, self.0.send(StdioData { channel, data })).await;
            let late = Error::Late { what: "reading what the plugin prints", limit: STDIO_WAIT };
            sent.map_err(|_| late)?.map_err(|_| Error::Ended)?;
        }
        Ok(())
    }
}

/// What was printed, on its way to the host. One host at a time reads it, and the next when that
/// one is gone.
#[derive(Clone)]
pub(super) struct Printed {
    pieces: Arc<Mutex<mpsc::Receiver<StdioData>>>,
    stop: CancellationToken,
}

/// The plugin's end and the host's. The host's stream ends with the token, after what was printed
/// until then.
pub(super) fn pair(stop: CancellationToken) -> (Stdio, Printed) {
    let (sender, receiver) = mpsc::channel(STDIO_PIECES_MAX);
    (Stdio(sender), Printed { pieces: Arc::new(Mutex::new(receiver)), stop })
}

impl Printed {
    fn stream(&self) -> Result<Answers<StdioData>, Status> {
        let pieces = Arc::clone(&self.pieces).try_lock_owned();
        let pieces =
            pieces.map_err(|_| Status::failed_precondition("another host reads it already"))?;
        let reader = (pieces, self.stop.clone());
        let stream = stream::unfold(reader, |(mut pieces, stop)| async move {
            let piece = next(&mut pieces, &stop).await?;
            Some((Ok(piece), (pieces, stop)))
        });
        Ok(Answers::new(stream))
    }
}

async fn next(
    pieces: &mut OwnedMutexGuard<mpsc::Receiver<StdioData>>,
    stop: &CancellationToken,
) -> Option<StdioData> {
    tokio::select! {
        biased;
        piece = pieces.recv() => piece,
        () = stop.cancelled() => None,
    }
}

impl Methods for Printed {
    const NAME: &'static str = STDIO;

    async fn answer(self, path: String, asked: Asked) -> Answered {
        match path.as_str() {
            STDIO_STREAM => answers(asked, move |Empty {}| self.stream()).await,
            _ => unknown(&path),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn what_was_printed_comes_before_the_end() {
        let stop = CancellationToken::new();
        let (stdio, printed) = pair(stop.clone());
        stdio.stdout("out").await.unwrap();
        stdio.stderr("err").await.unwrap();
        let stream = printed.stream().unwrap();
        assert!(printed.stream().is_err(), "two hosts at a time");
        stop.cancel();
        let pieces: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(
            pieces,
            [
                StdioData { channel: STDOUT, data: "out".into() },
                StdioData { channel: STDERR, data: "err".into() },
            ]
        );
        assert!(printed.stream().is_ok(), "the next host");
    }

    #[tokio::test]
    async fn long_texts_come_in_pieces() {
        let stop = CancellationToken::new();
        let (stdio, printed) = pair(stop.clone());
        stdio.stdout(vec![b'x'; STDIO_PIECE_BYTES_MAX + 1]).await.unwrap();
        stop.cancel();
        let lengths: Vec<_> =
            printed.stream().unwrap().map(|piece| piece.unwrap().data.len()).collect().await;
        assert_eq!(lengths, [STDIO_PIECE_BYTES_MAX, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_read_holds_up_nobody_for_long() {
        let (stdio, _printed) = pair(CancellationToken::new());
        for _ in 0..STDIO_PIECES_MAX {
            stdio.stdout("x").await.unwrap();
        }
        assert!(matches!(stdio.stdout("x").await, Err(Error::Late { .. })));
    }
}
