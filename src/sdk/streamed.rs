//! Many calls on one stream.

use std::sync::Arc;

use bytes::Bytes;
use flexcore_plugin::contract::{CallResponse, Context, Messages, StreamRequest, StreamResponse};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{sync::Semaphore, time::timeout_at};
use tokio_util::{sync::DropGuard, task::AbortOnDropHandle};
use tonic::Status;

use crate::{
    Failure, Function,
    call::{About, late},
    function::response,
};

/// Batches of one stream that are worked on at once. 4: each has a task, and so may have a
/// processor.
const BATCHES_AT_ONCE: usize = 4;

/// Answers each batch when all of it is done. `begin` is asked once, with what the first message
/// says for all.
pub(crate) fn streamed(
    requests: Messages<StreamRequest>,
    begin: impl Fn(Context, &str) -> (About, Result<Arc<Function>, Failure>) + Send + 'static,
) -> Messages<StreamResponse> {
    let mut first: Option<All> = None;
    let batches = requests.map(move |request| {
        let StreamRequest { number, context, function, inputs } = request?;
        let all = first.get_or_insert_with(|| {
            let (about, function) = begin(context.unwrap_or_default(), &function);
            let at_once = function.as_ref().map_or(1, |function| function.at_once);
            let room = Arc::new(Semaphore::new(at_once.min(Semaphore::MAX_PERMITS)));
            All { stop: Arc::new(about.stop.clone().drop_guard()), about, function, room }
        });
        Ok::<_, Status>(all.clone().batch(number, inputs))
    });
    Messages::new(batches.try_buffer_unordered(BATCHES_AT_ONCE))
}

/// What holds for all calls of a stream.
#[derive(Clone)]
struct All {
    about: About,
    function: Result<Arc<Function>, Failure>,
    /// For the calls of all batches.
    room: Arc<Semaphore>,
    /// Cancels what the calls have begun elsewhere, when the stream ends.
    stop: Arc<DropGuard>,
}

impl All {
    async fn batch(self, number: u64, inputs: Vec<Bytes>) -> Result<StreamResponse, Status> {
        let ends = self.about.ends;
        let work = AbortOnDropHandle::new(tokio::spawn(self.work(number, inputs)));
        let done = timeout_at(ends, work).await.map_err(|_| late())?;
        let results = done.map_err(|error| Status::internal(error.to_string()))?;
        Ok(StreamResponse { number, results })
    }

    async fn work(self, number: u64, inputs: Vec<Bytes>) -> Vec<CallResponse> {
        let Self { about, function, room, stop: _stop } = self;
        let function = match function {
            Ok(function) => function,
            Err(failure) => return vec![response(Err(failure)); inputs.len()],
        };
        let at_once = function.at_once;
        let calls = inputs.into_iter().enumerate().map(move |(index, input)| {
            let (function, about) = (Arc::clone(&function), about.of(number, index));
            let room = Arc::clone(&room);
            async move {
                let _room = room.acquire().await;
                // Ended with the call, like that of a call alone.
                let _stop = about.stop.clone().drop_guard();
                function.answer(input, about).await
            }
        });
        stream::iter(calls).buffered(at_once).collect().await
    }
}
