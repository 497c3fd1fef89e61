//! An owner's claim on a place's messages, and how far it has come with them.

use std::sync::Arc;

use async_nats::{
    HeaderMap,
    jetstream::consumer::{Consumer, DeliverPolicy, pull},
};
use bytes::Bytes;
use flexcore_broker::{
    Error,
    bucket::{self, Condition},
    ephemeral::{self, Ephemeral, PULL_BYTES_MIN},
    unavailable,
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use serde::{Deserialize, Serialize};

use crate::{
    Descriptor, Queue,
    end::End,
    message::{Queued, pulled, singly},
};

/// The value in the bucket under a place's number, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The owner that wrote it.
    epoch: u64,
    /// When the queue was made whose sequences these are.
    made_ns: i64,
    /// Stream sequence up to which every message of the place is settled.
    settled: u64,
    /// The first message after that, when the owner came.
    first: Option<u64>,
    /// Owners that have begun with it, and have not been seen to live on.
    begun: u32,
    /// The last owner that has begun with it.
    begun_by: u64,
    /// The owner's consumer. The next owner deletes it: consumers of killed owners would become as
    /// many as the broker keeps, where it is started again before it deletes them itself.
    #[serde(default)]
    reader: String,
    /// Stream sequence up to which any message may be done: an owner found no record of those before it,
    /// who may have had many more done than one leaves in doubt.
    #[serde(default)]
    in_doubt_to: u64,
}

impl Progress {
    /// Up to where the messages of this queue are settled. This was read from the stream `progress`.
    pub(crate) fn settled_in(
        &self,
        queue: End,
        progress: &'static str,
    ) -> Result<u64, crate::Error> {
        if self.made_ns != queue.made_ns {
            return Ok(0);
        }
        if self.settled > queue.last {
            let (last, settled) = (queue.last, self.settled);
            return Err(crate::Error::Behind { progress, last, settled });
        }
        Ok(self.settled)
    }

    /// The value that a new owner writes, when `first` is the first message after the settled ones
    /// in this queue; `None` when a later owner has been there.
    fn claimed(&self, epoch: u64, queue: End, settled: u64, first: Option<u64>) -> Option<Self> {
        let made_ns = queue.made_ns;
        let same = first.is_some() && first == self.first && made_ns == self.made_ns;
        let (begun, begun_by) = if same { (self.begun, self.begun_by) } else { (0, 0) };
        let (reader, is_unknown) = (String::new(), self.epoch == 0);
        let in_doubt_to = if is_unknown { queue.last } else { self.in_doubt_to };
        let claimed = Self { epoch, made_ns, settled, first, begun, begun_by, reader, in_doubt_to };
        (self.epoch <= epoch).then_some(claimed)
    }

    /// The value that an owner writes before it begins with the first message; `None` when it has
    /// before, and nobody has died of it.
    fn beginning(&self) -> Option<Self> {
        let anew = self.first.is_some() && self.begun_by != self.epoch;
        anew.then(|| Self { begun: self.begun + 1, begun_by: self.epoch, ..self.clone() })
    }

    /// The value that an owner writes that leaves before the first message is done: it has begun with
    /// it, and has not died of it. Owners before it still count. `None` when it has not begun.
    fn giving_back(&self) -> Option<Self> {
        let has_begun = self.begun_by == self.epoch;
        has_begun.then(|| Self { begun: self.begun.saturating_sub(1), begun_by: 0, ..self.clone() })
    }
}

/// A place's messages in the hand of one owner. Another owner's claim ends it: it can record nothing
/// any more.
#[derive(Clone)]
pub struct Claim {
    queue: Queue,
    place: u16,
    progress: Progress,
    /// Sequence of what this owner wrote last.
    revision: u64,
    last: u64,
}

impl Queue {
    /// Claims a place for the owner of this epoch. Fails with [`Error::Conflict`] when there is a later
    /// owner (or one has just written), with [`Error::Unavailable`] when the broker is away, with
    /// [`crate::Error::Behind`], and with [`Error::Misconfigured`] when a person has to mend the queue.
    #[boxed::async_recursion]
    pub async fn claim(&self, place: u16, epoch: u64) -> Result<Claim, crate::Error> {
        let stream = self.jetstream.get_stream_no_info(self.described.stream).await;
        let stream = stream.map_err(unavailable)?;
        let (before, revision) = self.progress_of(place).await?;
        // After what was read: it cannot be settled further than the queue goes.
        let end = End::of(&stream.get_info().await.map_err(unavailable)?);
        let settled = before.settled_in(end, self.described.progress)?;
        let first = self.next(place, settled).await?;
        let mut progress = before.claimed(epoch, end, settled, first).ok_or(Error::Conflict)?;
        progress.reader = ephemeral::unique(&self.jetstream, &format!("slot_{place}_{epoch}"));
        let claim = Claim { queue: self.clone(), place, progress, revision, last: 0 };
        let written = claim.written().await;
        // Without an answer the claim may be recorded all the same, and then nobody else knows that reader.
        let may_be = matches!(written, Ok(_) | Err(Error::Unavailable(_)));
        if may_be && !before.reader.is_empty() {
            // Not waited for: the server that has it may be away for long.
            ephemeral::delete(&self.jetstream, self.described.stream, before.reader);
        }
        let claim = written?;
        // A later command may be handed to an earlier owner's reader, too, but tells nothing: its
        // lease has ended.
        let last = stream.get_info().await.map_err(unavailable)?.state.last_sequence;
        Ok(Claim { last, ..claim })
    }

    /// The stored value of a place, and its sequence. The bucket's leader is asked.
    pub(crate) async fn progress_of(&self, place: u16) -> Result<(Progress, u64), Error> {
        match self.progress_bucket().read(&place.to_string()).await.map_err(unavailable)? {
            Some(entry) => Ok((readable(place, &entry.value.unwrap_or_default()), entry.sequence)),
            None => Ok((Progress::default(), 0)),
        }
    }

    /// The stored value of each place; a replica that is behind has less.
    pub(crate) async fn progress(&self) -> Result<Vec<Progress>, Error> {
        let Descriptor { progress, places, .. } = self.described;
        let mut all = vec![Progress::default(); usize::from(places)];
        let subjects = bucket::subject(progress, "*");
        // The stream may hold something else beside: of commands, the secret that earlier versions made.
        let most = places + 1;
        let request = format!(r#"{{"multi_last":["{subjects}"],"batch":{most}}}"#);
        let to = format!("$JS.API.DIRECT.GET.{progress}");
        let mut replies = self.inbox.request(to, None, Bytes::from(request)).await?;
        loop {
            let message = replies.next().await?;
            match message.status.map(|status| status.as_u16()) {
                None => {}
                // 204: the batch ends; 404: nothing there.
                Some(204 | 404) => return Ok(all),
                Some(status) => return Err(unavailable(format!("direct get answered {status}"))),
            }
            let headers = message.headers.as_ref();
            let subject = headers.and_then(|headers| headers.get("Nats-Subject"));
            let place = subject.and_then(|subject| subject.as_str().rsplit('.').next());
            let place = place.and_then(|place| place.parse::<u16>().ok());
            let found = place.and_then(|place| Some((place, all.get_mut(usize::from(place))?)));
            if let Some((place, found)) = found {
                *found = readable(place, &message.payload);
            }
        }
    }
}

impl Claim {
    /// Stream sequence of the last message that may have been begun by an earlier owner: the last
    /// there was when this one came.
    #[must_use]
    pub fn last_before(&self) -> u64 {
        self.last
    }

    /// Stream sequence up to which any message may be done, however many were read before it.
    #[must_use]
    pub fn in_doubt_to(&self) -> u64 {
        self.progress.in_doubt_to
    }

    /// The first message that was not settled, and how many owners have begun with it and were not
    /// seen to live on.
    #[must_use]
    pub fn first(&self) -> Option<(u64, u32)> {
        self.progress.first.map(|sequence| (sequence, self.progress.begun))
    }

    /// The same as it is once this owner has begun with it: see [`Self::begin`].
    #[must_use]
    pub fn first_begun(&self) -> Option<(u64, u32)> {
        let begun = self.progress.beginning().map_or(self.progress.begun, |begun| begun.begun);
        self.progress.first.map(|sequence| (sequence, begun))
    }

    /// Records that this owner begins with the first message. Returns the claim as it goes on; fails
    /// like [`Self::settle`].
    #[boxed::async_recursion]
    pub async fn begin(mut self) -> Result<Self, Error> {
        let Some(progress) = self.progress.beginning() else { return Ok(self) };
        self.progress = progress;
        self.written().await
    }

    /// Records that this owner has begun with the first message and lives on: it waits for something,
    /// and does not kill its workers. Returns the claim as it goes on; fails like [`Self::settle`].
    #[boxed::async_recursion]
    pub async fn survive(mut self) -> Result<Self, Error> {
        self.progress.begun = 0;
        self.written().await
    }

    /// Records that this owner leaves the first message to the next one, and lives on: it does not count
    /// among those that have begun with it. Returns the claim as it goes on; fails like [`Self::settle`].
    #[boxed::async_recursion]
    pub async fn give_back(mut self) -> Result<Self, Error> {
        let Some(progress) = self.progress.giving_back() else { return Ok(self) };
        self.progress = progress;
        self.written().await
    }

    /// The messages that are left, in order, as long as the broker keeps the reader. Nothing is
    /// acknowledged to it: [`Self::settle`] says how far they are done. Fails with [`Error::Conflict`] when
    /// another owner has come, and with [`Error::Unavailable`] when the broker is away.
    #[boxed::async_recursion]
    pub async fn messages(&self, batch: usize) -> Result<Messages, Error> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.progress.settled + 1,
            },
            filter_subject: self.queue.described.messages_of(self.place),
            ..pull::Config::default()
        };
        let (stream, name) = (self.queue.described.stream, self.progress.reader.clone());
        let reading = self.queue.reading.context().await?;
        let lasting = &self.queue.jetstream;
        let (kept, consumer) =
            Ephemeral::create_over(&reading, lasting, stream, name, config).await?;
        // A later owner may have deleted this one's reader before it was made.
        let (now, _) = self.queue.progress_of(self.place).await?;
        if (now.epoch, &now.reader) != (self.progress.epoch, &self.progress.reader) {
            return Err(Error::Conflict);
        }
        let stream = ephemeral::messages(&consumer, batch, PULL_BYTES_MIN).await?;
        let reader = KeptReader { consumer: Some((Arc::new(consumer), kept)) };
        Ok(Messages { stream: pulled(stream).boxed(), reader })
    }

    /// The same, asked for one by one: also those that end a connection on which they are handed out.
    /// Ends after some, or when there are no more; after one of those it goes on for a while.
    #[must_use]
    pub fn messages_singly(&self) -> Messages {
        let Queue { described, jetstream, .. } = self.queue.clone();
        let (subjects, settled) = (described.messages_of(self.place), self.progress.settled);
        let stream = singly(jetstream, described.stream, subjects, settled).boxed();
        Messages { stream, reader: KeptReader { consumer: None } }
    }

    /// Stream sequence up to which every message was settled when this owner came.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.progress.settled
    }

    /// Records that every message up to this stream sequence is settled. Returns the claim as
    /// it goes on. Fails with [`Error::Conflict`] when another owner has come, and with
    /// [`Error::Unavailable`] when the outcome is unknown: claim the place again.
    #[boxed::async_recursion]
    pub async fn settle(mut self, sequence: u64) -> Result<Self, Error> {
        // A replica that is behind may hand out again what was settled before.
        let settled = sequence.max(self.progress.settled);
        let progress = Progress { settled, first: None, begun: 0, begun_by: 0, ..self.progress };
        self.progress = progress;
        self.written().await
    }

    async fn written(mut self) -> Result<Self, Error> {
        let body = serde_json::to_vec(&self.progress).map_err(unavailable)?;
        let (key, bucket) = (self.place.to_string(), self.queue.progress_bucket());
        let condition = Some(Condition { key: &key, sequence: self.revision });
        self.revision = bucket.write(&key, HeaderMap::new(), body.into(), condition).await?;
        Ok(self)
    }
}

/// A place's messages as the broker hands them out.
pub struct Messages {
    /// The messages.
    pub stream: BoxStream<'static, Result<Queued, Error>>,
    /// To be kept as long as they are read.
    pub reader: KeptReader,
}

impl Messages {
    /// No more are read: the reader is given back now, while those that were read are still under way.
    pub fn end(&mut self) {
        self.stream = stream::empty().boxed();
        self.reader = KeptReader { consumer: None };
    }
}

/// The reader of a place's messages, as the broker knows it; given back when this is dropped.
pub struct KeptReader {
    /// `None`: they are asked for one by one.
    consumer: Option<(Arc<Consumer<pull::Config>>, Ephemeral)>,
}

impl KeptReader {
    /// Asks how many messages the broker has handed to this reader. When fewer have come, and go on
    /// being fewer, some were lost with a connection; 0 where they are asked for one by one. Fails
    /// with [`Error::Unavailable`] when the broker is away, or has lost the reader.
    pub fn handed_out(&self) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
        let asked = self.consumer.as_ref().map(|(consumer, _)| ephemeral::handed_out(consumer));
        async move {
            match asked {
                Some(asked) => Ok(asked.await?),
                None => Ok(0),
            }
        }
    }
}

/// The stored value, or that nothing is settled where it cannot be read. Then the place's messages are
/// taken again: each is processed once by its id. The next owner overwrites what it found.
fn readable(place: u16, body: &[u8]) -> Progress {
    decode(body).unwrap_or_else(|error| {
        metrics::counter!("flexcore_progress_unreadable_total").increment(1);
        tracing::error!(place, %error, "progress cannot be read: nothing counts as settled");
        Progress::default()
    })
}

fn decode(body: &[u8]) -> Result<Progress, Error> {
    let broken = |error| Error::Misconfigured(format!("how far a place is settled: {error}"));
    serde_json::from_slice(body).map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: End = End { made_ns: 1, last: 50 };

    /// An owner of this epoch finds this first message, and begins with it.
    fn begun(progress: &Progress, epoch: u64, first: u64) -> Progress {
        let claimed = progress.claimed(epoch, QUEUE, progress.settled, Some(first)).unwrap();
        claimed.beginning().unwrap_or(claimed)
    }

    /// It is made of numbers and one name.
    #[test]
    fn progress_fits_a_message_whatever_it_says() {
        let reader = format!("slot_{}_{}_{}", u16::MAX, u64::MAX, "x".repeat(22));
        let fullest = Progress {
            epoch: u64::MAX,
            made_ns: i64::MIN,
            settled: u64::MAX,
            first: Some(u64::MAX),
            begun: u32::MAX,
            begun_by: u64::MAX,
            reader,
            in_doubt_to: u64::MAX,
        };
        let bytes = serde_json::to_vec(&fullest).unwrap().len();
        assert!(bytes < 1_000, "{bytes}");
        assert_eq!(decode(&serde_json::to_vec(&fullest).unwrap()).unwrap(), fullest);
    }

    #[test]
    fn each_owner_that_begins_and_comes_no_further_counts() {
        let first = begun(&Progress::default(), 5, 9);
        assert_eq!((first.epoch, first.begun), (5, 1));
        assert_eq!(begun(&first, 5, 9).begun, 1, "the same owner, connected anew");
        let second = begun(&first, 8, 9);
        assert_eq!((second.epoch, second.begun), (8, 2));
        assert_eq!(begun(&second, 9, 12).begun, 1, "another message");
        let claimed = second.claimed(9, QUEUE, 0, Some(9)).unwrap();
        assert_eq!(claimed.begun, 2, "claimed, and not begun with");
        assert_eq!(begun(&claimed, 10, 9).begun, 3);
    }

    #[test]
    fn an_owner_that_gives_the_first_message_back_does_not_count() {
        let killed = begun(&Progress::default(), 5, 9);
        let claimed = killed.claimed(8, QUEUE, 0, Some(9)).unwrap();
        assert_eq!(claimed.giving_back(), None, "it has not begun");
        let left = claimed.beginning().unwrap().giving_back().unwrap();
        assert_eq!((left.epoch, left.begun), (8, 1), "the one that was killed still counts");
        assert_eq!(begun(&left, 8, 9).begun, 2, "the same owner begins anew");
        assert_eq!(begun(&left, 9, 9).begun, 2);
        let survived = Progress { begun: 0, ..killed };
        assert_eq!(survived.giving_back().unwrap().begun, 0, "it had lived on before");
    }

    /// The record was deleted, or cannot be read: however many owners come before all that is seen to.
    #[test]
    fn whoever_finds_no_record_leaves_word_that_all_is_in_doubt() {
        let first = begun(&Progress::default(), 5, 9);
        assert_eq!(first.in_doubt_to, QUEUE.last);
        let later = End { last: 90, ..QUEUE };
        let second = first.claimed(8, later, 20, Some(30)).unwrap();
        assert_eq!(second.in_doubt_to, QUEUE.last, "an earlier owner's record bounds the rest");
    }

    #[test]
    fn owners_of_an_idle_place_have_begun_nothing() {
        let mut progress = Progress { epoch: 1, made_ns: 1, settled: 7, ..Progress::default() };
        for epoch in 2..30 {
            progress = progress.claimed(epoch, QUEUE, 7, None).unwrap();
            assert_eq!(progress.beginning(), None);
        }
        assert_eq!(begun(&progress, 30, 8).begun, 1);
    }

    #[test]
    fn what_cannot_be_read_counts_as_nothing_settled() {
        // The last is an acknowledgement of the broker: a forged reply subject writes it.
        for body in [&b""[..], b"{}", br#"{"stream":"FLEX_COMMANDS","seq":1}"#] {
            assert_eq!(readable(0, body), Progress::default());
        }
        let progress = Progress { epoch: 3, settled: 7, ..Progress::default() };
        assert_eq!(readable(0, &serde_json::to_vec(&progress).unwrap()), progress);
    }

    #[test]
    fn an_earlier_owner_has_no_claim() {
        let now = Progress { epoch: 8, made_ns: 1, settled: 7, ..Progress::default() };
        assert_eq!(now.claimed(7, QUEUE, 7, None), None);
        assert!(now.claimed(8, QUEUE, 7, None).is_some());
    }

    #[test]
    fn what_is_settled_counts_in_the_queue_of_which_it_was_written() {
        let progress = Progress { made_ns: 1, settled: 50, ..Progress::default() };
        let settled_in = |end| progress.settled_in(end, "KV_progress");
        assert_eq!(settled_in(QUEUE).unwrap(), 50);
        assert_eq!(settled_in(End { made_ns: 2, last: 3 }).unwrap(), 0, "made anew");
        let behind = settled_in(End { last: 49, ..QUEUE }).unwrap_err();
        assert!(matches!(behind, crate::Error::Behind { last: 49, settled: 50, .. }), "{behind}");
    }
}
