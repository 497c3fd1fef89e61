//! Looking a command up in the log.

use async_nats::jetstream::stream::RawMessageErrorKind;
use bytes::Bytes;
use flexcore_domain::{AggregateKey, CommandId};

use crate::{
    Error, EventStore, Recorded, direct,
    load::{decode, number},
    snapshot::RememberedCommand,
    topology, unavailable,
};

impl EventStore {
    /// The outcome of a command when its commit is the first one at these stream sequences; `None`:
    /// it is at none of them. Reads one message at a time, and no more than these. Fails with
    /// [`Error::Corrupt`] where the aggregate has no commit there.
    #[boxed::async_recursion]
    pub async fn command_at(
        &self,
        key: &AggregateKey,
        id: &CommandId,
        sequences: &[u64],
    ) -> Result<Option<RememberedCommand>, Error> {
        for sequence in sequences {
            let recorded = self.commit_at(key, *sequence).await?;
            if recorded.commit.command_id == *id {
                return Ok(Some(RememberedCommand::of(&recorded)));
            }
        }
        Ok(None)
    }

    /// The outcome of a command: reads the aggregate's log from its beginning, a page at a time.
    /// For when nothing else can be trusted, such as a worker that the aggregate may kill.
    #[boxed::async_recursion]
    pub async fn command_anywhere(
        &self,
        key: &AggregateKey,
        id: &CommandId,
    ) -> Result<Option<RememberedCommand>, Error> {
        let mut after = 0;
        loop {
            let page = self.load_page(key, after).await?;
            if let Some(found) = page.commits.iter().find(|it| it.commit.command_id == *id) {
                return Ok(Some(RememberedCommand::of(found)));
            }
            match page.commits.last() {
                Some(last) if page.more => after = last.sequence,
                _ => return Ok(None),
            }
        }
    }

    async fn commit_at(&self, key: &AggregateKey, sequence: u64) -> Result<Recorded, Error> {
        let subject = crate::subject(key);
        let corrupt = |reason: &str| Error::Corrupt {
            subject: subject.clone(),
            sequence,
            reason: reason.to_owned(),
        };
        let to = direct::get(topology::EVENTS);
        let body = Bytes::from(format!(r#"{{"seq":{sequence}}}"#));
        let reply = self.inbox.request(to, None, body).await?.next().await?;
        if reply.status.is_none() {
            let header = |name| reply.headers.as_ref().and_then(|headers| headers.get(name));
            let same = header(direct::SUBJECT).is_some_and(|of| of.as_str() == subject);
            if !same || number(&reply, direct::SEQUENCE) != Some(sequence) {
                return Err(corrupt("another aggregate's message is there"));
            }
            return decode(key.clone(), sequence, reply.headers.as_ref(), &reply.payload);
        }
        // A replica that is behind may not have it yet; the leader has.
        let log = self.jetstream.get_stream_no_info(topology::EVENTS).await.map_err(unavailable)?;
        let message = log.get_raw_message(sequence).await.map_err(|error| match error.kind() {
            RawMessageErrorKind::NoMessageFound => corrupt("there is no message"),
            _ => unavailable(error),
        })?;
        if message.subject.as_str() != subject {
            return Err(corrupt("another aggregate's message is there"));
        }
        decode(key.clone(), sequence, Some(&message.headers), &message.payload)
    }
}

impl RememberedCommand {
    /// The command that a commit is of.
    #[must_use]
    pub fn of(recorded: &Recorded) -> Self {
        Self {
            id: recorded.commit.command_id.clone(),
            hash: recorded.commit.command_hash,
            version: recorded.commit.version(),
            sequence: recorded.sequence,
        }
    }
}
