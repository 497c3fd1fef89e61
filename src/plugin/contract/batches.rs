//! Many calls of one function, in batches on one stream.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    exchange::{Broken, Exchange, Pending},
    messages::{CallOutcome, CallResponse, Context, STREAM, StreamRequest, StreamResponse},
};
use crate::{Connection, Error, limits::STREAM_BATCHES_MAX};

/// Calls of one function, in batches: each is answered whole, and up to
/// [`STREAM_BATCHES_MAX`] are under way at once. Dropping it gives up what is.
pub struct Batches {
    exchange: Exchange<StreamRequest, StreamResponse>,
    /// What the first message says for all.
    first: Mutex<Option<(Context, String)>>,
    within: Duration,
    ends: Instant,
}

impl Batches {
    /// All of it within this time.
    pub(super) fn open(
        connection: &Connection,
        context: Context,
        function: &str,
        within: Duration,
    ) -> Self {
        let exchange = Exchange::open(connection, STREAM, Some(within), STREAM_BATCHES_MAX);
        let first = Mutex::new(Some((context, function.to_owned())));
        Self { exchange, first, within, ends: Instant::now() + within }
    }

    /// Sends a batch, once there is room for it. Returns what its results are read by, so that
    /// more can be sent before they are there. Fails where the batch is too large, and when the
    /// stream has ended.
    ///
    /// When it is dropped while it waits for room, nothing is sent.
    pub async fn send(&self, inputs: Vec<Bytes>) -> Result<Batch, Error> {
        let mut request = StreamRequest { inputs, ..StreamRequest::default() };
        request.check()?;
        // Room that is there at once would be taken after the end, too.
        if Instant::now() >= self.ends {
            return Err(self.late());
        }
        let room = timeout_at(self.ends, self.exchange.room()).await;
        let room = room.map_err(|_| self.late())?.map_err(Broken::error)?;
        let inputs = request.inputs.len();
        let asked = self.exchange.ask(room, |number| {
            let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some((context, function)) = first {
                (request.context, request.function) = (Some(context), function);
            }
            StreamRequest { number, ..request }
        });
        let (number, pending) = asked.map_err(Broken::error)?;
        Ok(Batch { number, inputs, pending, within: self.within, ends: self.ends })
    }

    /// Says that there are no more batches, and waits until all are answered. Fails with what the
    /// stream ended with, if that is no ordinary end; what is under way then failed as well.
    pub async fn finish(self) -> Result<(), Error> {
        let Self { exchange, ends, within, .. } = self;
        let finished = timeout_at(ends, exchange.finish()).await;
        let late = Error::Late { what: "the end of a stream of calls", limit: within };
        finished.map_err(|_| late)?.map_err(Broken::error)
    }

    fn late(&self) -> Error {
        Error::Late { what: "room for a batch of calls", limit: self.within }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").field("within", &self.within).finish_non_exhaustive()
    }
}

/// A batch that is under way.
#[derive(Debug)]
pub struct Batch {
    number: u64,
    inputs: usize,
    pending: Pending<StreamResponse>,
    within: Duration,
    ends: Instant,
}

impl Batch {
    /// 1 for the first one that was sent, 2 for the next.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// One result for each input, in their order. If it fails, some of the inputs may have been
    /// worked on.
    pub async fn results(self) -> Result<Vec<CallOutcome>, Error> {
        let answered = timeout_at(self.ends, self.pending).await;
        let late = Error::Late { what: "the results of a batch of calls", limit: self.within };
        let answered = answered.map_err(|_| late)?.unwrap_or(Err(Broken::Ended));
        let results = answered.map_err(Broken::error)?.results;
        if results.len() != self.inputs {
            return Err(Error::Contract(format!(
                "the plugin has answered {} inputs with {} results",
                self.inputs,
                results.len()
            )));
        }
        let taken = |result: CallResponse| {
            let taken = result.taken();
            taken
                .map_err(|fault| Error::Contract(format!("the plugin's answer to Stream: {fault}")))
        };
        results.into_iter().map(taken).collect()
    }
}
