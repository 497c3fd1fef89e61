//! Answering the other side's knocks on a multiplexed connection, strictly one after the other:
//! after an answer, the next stream that the other side opens is for the service that it knocked
//! at. The streams themselves do not say what they are for.

use std::sync::Arc;

use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    shared::Shared,
    state::{Due, Streams},
};
use crate::{
    Error,
    limits::MUX_WAIT,
    mux::Mux,
    wire::{ConnInfo, Knock},
};

/// Runs until the connection ends.
pub(super) async fn run(mux: Mux, outgoing: mpsc::Sender<ConnInfo>, shared: Arc<Shared>) {
    loop {
        let due = tokio::select! {
            biased;
            stray = mux.accept() => match stray {
                // Nobody has an answer for it to follow, so nobody can say what it is for.
                Ok(_) => {
                    tracing::debug!("closed a stream that no knock came before");
                    continue;
                }
                Err(Error::Late { .. }) => continue,
                Err(_) => break,
            },
            due = shared.due() => due,
        };
        let (id, streams) = match due {
            Due::Serve(id, streams) => (id, Ok(streams)),
            Due::Refuse(id) => (id, Err(format!("there is no service {id}"))),
            Due::Later(_) | Due::Nothing => continue,
        };
        let error = streams.as_ref().err().cloned().unwrap_or_default();
        if let Err(error) = shared.send(&outgoing, answer(id, error)).await {
            tracing::debug!(id, %error, "cannot answer a knock");
        } else if let Ok(streams) = streams
            && !open_up(&mux, id, &streams).await
        {
            break;
        }
    }
    shared.change(|state| state.end("the connection has ended".to_owned()));
}

fn answer(id: u32, error: String) -> ConnInfo {
    let knock = Some(Knock { knock: true, ack: true, error });
    ConnInfo { service_id: id, knock, ..ConnInfo::default() }
}

/// Gives the next stream to a service. False when the connection has ended.
async fn open_up(mux: &Mux, id: u32, streams: &Streams) -> bool {
    let end = Instant::now() + MUX_WAIT;
    match timeout_at(end, mux.accept()).await {
        // A service that has enough connections, or is gone by now, lets this one go.
        Ok(Ok(io)) => {
            let taken = streams.try_send(io).is_ok();
            tracing::debug!(id, taken, "a stream for a service");
            true
        }
        Ok(Err(Error::Late { .. })) | Err(_) => {
            tracing::debug!(id, "no stream came after the answer to a knock");
            true
        }
        Ok(Err(_)) => false,
    }
}
