//! Load: an aggregate's commits by direct get on its one literal subject.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use flexcore_broker::inbox::Inbox;
use flexcore_domain::{AggregateKey, Commit, Hash, Tenant, command::header};
use flexcore_resilience::{Beside, Shares};

use crate::{Error, EventStore, REQUEST_TIMEOUT, Recorded, direct, topology, unavailable};

/// Commits of one request. A longer aggregate takes several, each bounded in memory.
pub const LOAD_COMMITS_MAX: usize = 512;
/// Most bytes of a page for a command, with one message more: 512 small commits.
const LOAD_BYTES_MAX: usize = 256 << 10;
/// Pages for commands under way at once. With the largest messages they are 60 MiB; a broker cuts a
/// connection off for which 64 MiB wait.
const LOADS_MAX: usize = 48;
/// Of which a tenant takes three times what is left for others: benches have 32 loads in flight.
const LOADS_TIMES: usize = 3;
/// The same for reads in bulk, over a connection of their own: fewer and larger pages.
const READ_BYTES_MAX: usize = 1 << 20;
const READS_MAX: usize = 30;
const READS_TIMES: usize = 1;
/// Commits of a page that are fetched one by one, because a replica did not have them.
const COMPLETED_MAX: usize = 64;

/// A connection over which pages come, and how much of it is taken. The broker reads faster than a
/// connection takes it up: what waits there is bounded by what was asked for.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) inbox: Inbox,
    pub(crate) places: Shares<Tenant>,
    bytes_max: usize,
}

impl Way {
    /// For what a command needs.
    pub(crate) fn quick(inbox: Inbox) -> Self {
        Self { inbox, places: loads(), bytes_max: LOAD_BYTES_MAX }
    }

    /// For everything else.
    pub(crate) fn bulk(inbox: Inbox) -> Self {
        Self { inbox, places: reads(), bytes_max: READ_BYTES_MAX }
    }
}

fn loads() -> Shares<Tenant> {
    Shares::new(LOADS_MAX, LOADS_TIMES).beside(Beside::new(LOADS_MAX, 2))
}

fn reads() -> Shares<Tenant> {
    Shares::new(READS_MAX, READS_TIMES).beside(Beside::new(READS_MAX, 1))
}

/// Commits that come with one request, and whether there are more.
pub struct Page {
    /// In order.
    pub commits: Vec<Recorded>,
    /// Later commits than these are in the log.
    pub more: bool,
}

impl EventStore {
    /// The aggregate's commits after this stream sequence, 0 meaning from the first; empty when
    /// there are none. All of them are held in memory: who can work page by page uses
    /// [`Self::read_page`]. None is left out that was acknowledged before this was called, but by a leader
    /// of the log that has just been deposed and does not know. Fails with
    /// [`Error::Gap`], [`Error::BrokenChain`] or [`Error::Corrupt`] when they do not follow one
    /// another, and with [`Error::Unavailable`] when the broker is away or its stream has no leader.
    #[boxed::async_recursion]
    pub async fn load(
        &self,
        key: &AggregateKey,
        after_sequence: u64,
    ) -> Result<Vec<Recorded>, Error> {
        let mut page = self.load_page(key, after_sequence).await?;
        let mut commits = page.commits;
        while page.more {
            let after = commits.last().map_or(after_sequence, |last| last.sequence);
            page = self.read_page(key, after, LOAD_COMMITS_MAX).await?;
            commits.extend(std::mem::take(&mut page.commits));
        }
        check_chain(key, after_sequence, &commits)?;
        Ok(commits)
    }

    /// The first commits of [`Self::load`], for a command: callers go on after the last of them, or
    /// from a snapshot, when there is more. They are not yet checked against one another.
    #[boxed::async_recursion]
    pub async fn load_page(&self, key: &AggregateKey, after: u64) -> Result<Page, Error> {
        self.page(&self.quick, key, after, LOAD_COMMITS_MAX).await
    }

    /// The same for everybody else, and at most so many commits: over a connection that commands do not
    /// need. A tenant that reads more than its share waits.
    #[boxed::async_recursion]
    pub async fn read_page(
        &self,
        key: &AggregateKey,
        after: u64,
        commits_max: usize,
    ) -> Result<Page, Error> {
        self.page(&self.bulk, key, after, commits_max.clamp(1, LOAD_COMMITS_MAX)).await
    }

    async fn page(
        &self,
        way: &Way,
        key: &AggregateKey,
        after: u64,
        commits_max: usize,
    ) -> Result<Page, Error> {
        let subject = crate::subject(key);
        let _place = way.places.wait(key.tenant()).await;
        if !self.asks_leader {
            return direct_page(way, key, &subject, after, commits_max).await;
        }
        let whole = async {
            let page = direct_page(way, key, &subject, after, commits_max);
            let last = async { Ok(self.leaders.last_on(topology::EVENTS, &subject, after).await?) };
            let (mut page, last) = tokio::try_join!(page, last)?;
            self.complete(&mut page, key, &subject, after, last).await?;
            Ok(page)
        };
        let whole = tokio::time::timeout(REQUEST_TIMEOUT, whole).await;
        whole.map_err(|_| unavailable("no answer in time"))?
    }

    /// Adds what the replica did not have, up to `last`, from the stream's leader: mostly one or two,
    /// and at most so many that the next page begins sooner.
    async fn complete(
        &self,
        page: &mut Page,
        key: &AggregateKey,
        subject: &str,
        after: u64,
        last: u64,
    ) -> Result<(), Error> {
        let mut reached = page.commits.last().map_or(after, |recorded| recorded.sequence);
        if page.more || reached >= last {
            return Ok(());
        }
        let log = self.jetstream.get_stream_no_info(topology::EVENTS).await;
        let log = log.map_err(unavailable)?;
        let mut added = 0;
        while reached < last {
            if added == COMPLETED_MAX {
                page.more = true;
                return Ok(());
            }
            added += 1;
            let next = log.get_first_raw_message_by_subject(subject, reached + 1).await;
            let next = next.map_err(unavailable)?;
            reached = next.sequence;
            let headers = Some(&next.headers);
            page.commits.push(decode(key.clone(), reached, headers, &next.payload)?);
        }
        Ok(())
    }
}

/// A page as the replica has it that answers: any of them, and one that is behind leaves out what it
/// does not have yet.
async fn direct_page(
    way: &Way,
    key: &AggregateKey,
    subject: &str,
    after: u64,
    commits_max: usize,
) -> Result<Page, Error> {
    let request = format!(
        r#"{{"seq":{},"next_by_subj":"{subject}","batch":{commits_max},"max_bytes":{}}}"#,
        after + 1,
        way.bytes_max
    );
    let to = direct::get(topology::EVENTS);
    let mut replies = way.inbox.request(to, None, Bytes::from(request)).await?;
    let mut page = Page { commits: Vec::new(), more: false };
    loop {
        let message = replies.next().await?;
        match message.status.map(|status| status.as_u16()) {
            None => {}
            // 204: the batch ends; 404: nothing there.
            Some(204 | 404) => return Ok(page),
            Some(status) => {
                let text = message.description.unwrap_or_default();
                return Err(unavailable(format!("direct get answered {status} {text}")));
            }
        }
        page.more = number(&message, direct::PENDING).is_some_and(|pending| pending > 0);
        page.commits.push(read(key, &message)?);
    }
}

/// Reads a commit that a direct get has answered.
pub(crate) fn read(key: &AggregateKey, message: &Message) -> Result<Recorded, Error> {
    let sequence = number(message, direct::SEQUENCE).ok_or_else(|| Error::Corrupt {
        subject: crate::subject(key),
        sequence: 0,
        reason: "direct get without a sequence".to_owned(),
    })?;
    decode(key.clone(), sequence, message.headers.as_ref(), &message.payload)
}

/// Checks that loaded commits follow one another and, when they start at the first, the whole chain.
fn check_chain(key: &AggregateKey, after_sequence: u64, commits: &[Recorded]) -> Result<(), Error> {
    let Some(first) = commits.first() else { return Ok(()) };
    let mut version = if after_sequence == 0 { 0 } else { first.commit.version_before() };
    let mut previous = (after_sequence == 0).then_some(Hash::ZERO);
    for recorded in commits {
        check_link(key, recorded, version, previous.as_ref())?;
        version = recorded.commit.version();
        previous = Some(recorded.hash);
    }
    Ok(())
}

/// Checks one commit against the version and hash before it, the hash where it is known.
pub(crate) fn check_link(
    key: &AggregateKey,
    recorded: &Recorded,
    version_before: u64,
    previous: Option<&Hash>,
) -> Result<(), Error> {
    if recorded.commit.version_before() != version_before {
        return Err(Error::Gap {
            subject: crate::subject(key),
            expected: version_before + 1,
            found: recorded.commit.version_before() + 1,
        });
    }
    if previous.is_some_and(|previous| !recorded.follows(previous)) {
        return Err(Error::BrokenChain {
            subject: crate::subject(key),
            sequence: recorded.sequence,
        });
    }
    Ok(())
}

pub(crate) fn number(message: &Message, name: &str) -> Option<u64> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}

/// Reads a message of the log.
pub(crate) fn decode(
    key: AggregateKey,
    sequence: u64,
    headers: Option<&HeaderMap>,
    body: &Bytes,
) -> Result<Recorded, Error> {
    let corrupt = |key: &AggregateKey, reason: String| Error::Corrupt {
        subject: crate::subject(key),
        sequence,
        reason,
    };
    let link = headers.and_then(|headers| headers.get(header::HASH));
    let link = link
        .and_then(|text| Hash::parse(text.as_str()))
        .ok_or_else(|| corrupt(&key, format!("no header {}", header::HASH)))?;
    let commit =
        Commit::decode(key.clone(), body).map_err(|error| corrupt(&key, error.to_string()))?;
    Ok(Recorded { sequence, hash: link, body: body.clone(), commit })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Number of pages under way for one that asks for many: before somebody else asks for one, and
    /// when those have ended; and whether the other one has its page at once.
    fn flood(places: &Shares<Tenant>) -> (usize, bool, usize) {
        let [flood, calm] = ["flood", "calm"].map(|name| Tenant::parse(name).unwrap());
        let mut asked: Vec<_> = (0..500).map(|_| Box::pin(places.wait(&flood))).collect();
        let held: Vec<_> = asked.iter_mut().filter_map(FutureExt::now_or_never).collect();
        let other = places.wait(&calm).now_or_never();
        let alone = held.len();
        // The waiting ones get the rest.
        drop(held);
        (alone, other.is_some(), places.taken() - 1)
    }

    #[tokio::test]
    async fn a_flood_of_pages_leaves_places_and_has_few_beside_others() {
        assert_eq!(flood(&loads()), (36, true, 2));
        assert_eq!(flood(&reads()), (15, true, 1));
    }
}
