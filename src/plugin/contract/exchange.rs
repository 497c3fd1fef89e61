//! A stream of numbered questions, each answered by one message of the same number, in any order.
//! When it ends, for whatever reason, all that is under way on it is told why.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::stream;
use prost::Message;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::messages::{DecideResponse, StreamResponse};
use crate::{
    Connection, Error,
    limits::{ENVELOPE_BYTES_MAX, RESULTS_BYTES_MAX},
};

/// An answer that says which question it is for.
pub(super) trait Numbered: Message + Default + 'static {
    fn number(&self) -> u64;
}

impl Numbered for StreamResponse {
    fn number(&self) -> u64 {
        self.number
    }
}

impl Numbered for DecideResponse {
    fn number(&self) -> u64 {
        self.number
    }
}

/// Why a stream has ended.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    /// The plugin ended it, or this side did, with nothing wrong.
    Ended,
    /// Its time is over, or that of something on it.
    Late(Duration),
    /// The plugin broke the contract.
    Fault(String),
    /// The plugin, or the connection to it, ended it with a status.
    Status(&'static str, Status),
}

impl Broken {
    pub(super) fn error(self) -> Error {
        match self {
            Self::Ended => Error::Ended,
            Self::Late(limit) => Error::Late { what: "the plugin's answer", limit },
            Self::Fault(fault) => Error::Contract(fault),
            Self::Status(path, status) => failed(path, status),
        }
    }
}

/// What a call of the contract failed with. A limit of ours that an answer passes is the plugin's
/// fault: tonic says so with a code that no plugin has a use for.
pub(super) fn failed(path: &str, status: Status) -> Error {
    let method = path.trim_start_matches('/');
    match status.code() {
        Code::OutOfRange => {
            Error::Contract(format!("the plugin's answer to {method}: {}", status.message()))
        }
        _ => Error::status(method)(status),
    }
}

/// The answer to a question, or why there will be none.
pub(super) type Pending<A> = oneshot::Receiver<Result<A, Broken>>;

/// One stream.
pub(super) struct Exchange<Q, A> {
    questions: mpsc::Sender<Q>,
    waiting: Waiting<A>,
    places: u32,
    reads: AbortOnDropHandle<()>,
}

impl<Q: Message + 'static, A: Numbered> Exchange<Q, A> {
    /// Begins a stream, for so long at most, with so many questions under way at once. A plugin
    /// that cannot be reached is noticed at the first question.
    pub(super) fn open(
        connection: &Connection,
        path: &'static str,
        within: Option<Duration>,
        at_once_max: usize,
    ) -> Self {
        let (questions, asked) = mpsc::channel(at_once_max);
        let waiting = Waiting::new(at_once_max);
        let reads = read(connection.clone(), path, within, asked, waiting.clone());
        let places = u32::try_from(at_once_max).unwrap_or(u32::MAX);
        Self { questions, waiting, places, reads: AbortOnDropHandle::new(tokio::spawn(reads)) }
    }

    /// A place among the questions under way. Fails when the stream has ended, with the reason.
    pub(super) async fn room(&self) -> Result<OwnedSemaphorePermit, Broken> {
        let room = Arc::clone(&self.waiting.room).acquire_owned().await;
        room.map_err(|_| self.waiting.reason())
    }

    /// All places: whatever is asked in them is alone on the stream. Fails as [`Self::room`].
    pub(super) async fn whole_room(&self) -> Result<OwnedSemaphorePermit, Broken> {
        let room = Arc::clone(&self.waiting.room).acquire_many_owned(self.places).await;
        room.map_err(|_| self.waiting.reason())
    }

    /// Asks, in a place that is free. Questions leave in the order of their numbers.
    pub(super) fn ask(
        &self,
        room: OwnedSemaphorePermit,
        question: impl FnOnce(u64) -> Q,
    ) -> Result<(u64, Pending<A>), Broken> {
        let (answer, pending) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if let Some(broken) = &waiting.broken {
            return Err(broken.clone());
        }
        let number = waiting.last + 1;
        let sent = self.questions.try_send(question(number));
        if let Err(mpsc::error::TrySendError::Full(_)) = sent {
            drop(waiting);
            let fault = "the plugin has answered questions before they were sent".to_owned();
            let broken = Broken::Fault(fault);
            self.break_with(broken.clone());
            return Err(broken);
        }
        // Where nobody reads them any more, the end of the stream is told in a moment.
        waiting.last = number;
        waiting.of.insert(number, Asked { answer, _room: room });
        drop(waiting);
        Ok((number, pending))
    }

    /// Ends the stream at once; all that is under way on it fails with this.
    pub(super) fn break_with(&self, broken: Broken) {
        self.reads.abort();
        self.waiting.end(broken);
    }

    /// Says that there is no more, and waits until the plugin has answered all.
    pub(super) async fn finish(self) -> Result<(), Broken> {
        let Self { questions, waiting, reads, .. } = self;
        drop(questions);
        // It is aborted by nobody else, and a panic of it would be told as an end.
        let _ = reads.await;
        match waiting.reason() {
            Broken::Ended => Ok(()),
            broken => Err(broken),
        }
    }
}

/// What is under way. A cheap clone.
struct Waiting<A> {
    shared: Arc<Mutex<Shared<A>>>,
    room: Arc<Semaphore>,
}

struct Shared<A> {
    /// The number of the last question.
    last: u64,
    of: HashMap<u64, Asked<A>>,
    broken: Option<Broken>,
}

struct Asked<A> {
    answer: oneshot::Sender<Result<A, Broken>>,
    _room: OwnedSemaphorePermit,
}

impl<A> Clone for Waiting<A> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), room: Arc::clone(&self.room) }
    }
}

impl<A: Numbered> Waiting<A> {
    fn new(at_once_max: usize) -> Self {
        let shared = Shared { last: 0, of: HashMap::new(), broken: None };
        let room = Arc::new(Semaphore::new(at_once_max));
        Self { shared: Arc::new(Mutex::new(shared)), room }
    }

    fn lock(&self) -> MutexGuard<'_, Shared<A>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reason(&self) -> Broken {
        self.lock().broken.clone().unwrap_or(Broken::Ended)
    }

    /// Hands an answer to whoever waits for it.
    fn deliver(&self, answer: A) -> Result<(), Broken> {
        let number = answer.number();
        let asked = self.lock().of.remove(&number).ok_or_else(|| {
            let fault = format!("the plugin has answered number {number}, which it was not asked");
            Broken::Fault(fault)
        })?;
        // Nobody is left where the caller's time is over.
        let _ = asked.answer.send(Ok(answer));
        Ok(())
    }

    /// The first reason stands.
    fn end(&self, broken: Broken) {
        let mut shared = self.lock();
        let broken = shared.broken.get_or_insert(broken).clone();
        let left = std::mem::take(&mut shared.of);
        drop(shared);
        self.room.close();
        for asked in left.into_values() {
            let _ = asked.answer.send(Err(broken.clone()));
        }
    }
}

/// Sends what is asked and reads answers until the stream ends, and says why it has.
async fn read<Q: Message + 'static, A: Numbered>(
    connection: Connection,
    path: &'static str,
    within: Option<Duration>,
    mut asked: mpsc::Receiver<Q>,
    waiting: Waiting<A>,
) {
    let broken = |status: Status| match (status.code(), within) {
        (Code::DeadlineExceeded, Some(limit)) => Broken::Late(limit),
        _ => Broken::Status(path, status),
    };
    let exchanged = async {
        let answer_bytes_max = RESULTS_BYTES_MAX + ENVELOPE_BYTES_MAX;
        let mut grpc = connection.grpc().max_decoding_message_size(answer_bytes_max);
        grpc.ready().await.map_err(broken)?;
        let mut request = Request::new(stream::poll_fn(move |cx| asked.poll_recv(cx)));
        if let Some(within) = within {
            request.set_timeout(within);
        }
        let path = PathAndQuery::from_static(path);
        let answers = grpc.streaming(request, path, ProstCodec::<Q, A>::default()).await;
        let mut answers = answers.map_err(broken)?.into_inner();
        while let Some(answer) = answers.message().await.map_err(broken)? {
            waiting.deliver(answer)?;
        }
        Ok::<(), Broken>(())
    };
    let ended = match within {
        Some(limit) => timeout(limit, exchanged).await.unwrap_or(Err(Broken::Late(limit))),
        None => exchanged.await,
    };
    waiting.end(ended.err().unwrap_or(Broken::Ended));
}
