//! The place up to which a reader of a part of the log has seen the log: no message tells it.

use futures::future::try_join_all;

use crate::{Error, EventStore, Subscription, topology, unavailable};

impl Subscription {
    /// The stream sequence up to which everything that the filter names has been delivered: at least
    /// [`Self::read_to`], and the log's end where nothing of it is left. Fails when the broker is away,
    /// and with [`Error::Gap`] when messages are missing from the log.
    ///
    /// The leader says where the log ends, and only then whether there is more of what is followed:
    /// all that it has up to that end it had when it was asked. The consumer's own report would not
    /// do: it may be on a server that is behind, and counts what is left beside what is stored. A
    /// leader that was deposed and has not heard of it may answer the second question only: for a
    /// moment after a partition this may say too much. So it is good for those who wait, and nobody
    /// goes on reading behind it.
    ///
    /// `known`: a stream sequence up to which there was nothing, as an earlier answer said; 0 for the first.
    /// The leader goes through all that lies behind that and [`Self::read_to`].
    pub fn seen(&self, known: u64) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
        seen(self.store.clone(), self.filter.subjects(), self.read_to().max(known))
    }
}

async fn seen(store: EventStore, subjects: Vec<String>, read_to: u64) -> Result<u64, Error> {
    let log = store.jetstream.get_stream(topology::EVENTS).await.map_err(unavailable)?;
    let state = &log.cached_info().state;
    if state.messages != state.last_sequence {
        return Err(Error::Gap {
            subject: topology::EVENTS.to_owned(),
            expected: state.messages + 1,
            found: state.last_sequence,
        });
    }
    if state.last_sequence <= read_to {
        return Ok(read_to);
    }
    let next = subjects
        .iter()
        .map(|subject| store.leaders.next_on(topology::EVENTS, subject, read_to + 1));
    let first = try_join_all(next).await?.into_iter().flatten().min();
    Ok(first.map_or(state.last_sequence, |first| (first - 1).min(state.last_sequence)))
}
