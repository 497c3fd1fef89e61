//! Load: an aggregate's commits by direct get on its one literal subject.

use async_nats::Message;
use bytes::Bytes;
use flexcore_domain::{AggregateKey, Commit, Hash, command::header};

use crate::{Error, EventStore, Recorded, topology, unavailable};

/// Commits of one request. A longer aggregate takes several, each bounded in memory.
const LOAD_COMMITS_MAX: usize = 512;

/// Commits that come with one request, and whether there are more.
pub struct Page {
    /// In order.
    pub commits: Vec<Recorded>,
    /// Later commits than these are in the log.
    pub more: bool,
}

impl EventStore {
    /// The aggregate's commits after this stream sequence, 0 meaning from the first; empty when
    /// there are none. Fails with [`Error::Gap`], [`Error::BrokenChain`] or [`Error::Corrupt`] when
    /// they do not follow one another, and with [`Error::Unavailable`] when the broker is away.
    pub async fn load(
        &self,
        key: &AggregateKey,
        after_sequence: u64,
    ) -> Result<Vec<Recorded>, Error> {
        let mut commits: Vec<Recorded> = Vec::new();
        loop {
            let after = commits.last().map_or(after_sequence, |last| last.sequence);
            let page = self.load_page(key, after).await?;
            commits.extend(page.commits);
            if !page.more {
                check_chain(key, after_sequence, &commits)?;
                return Ok(commits);
            }
        }
    }

    /// The first page of [`Self::load`]: for callers that would rather start from a snapshot when
    /// there is more. Its commits are not yet checked against one another.
    pub async fn load_page(&self, key: &AggregateKey, after: u64) -> Result<Page, Error> {
        let subject = crate::subject(key);
        let request = format!(
            r#"{{"seq":{},"next_by_subj":"{subject}","batch":{LOAD_COMMITS_MAX}}}"#,
            after + 1
        );
        let to = format!("$JS.API.DIRECT.GET.{}", topology::EVENTS);
        let mut replies = self.inbox.request(to, None, Bytes::from(request)).await?;
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
            let sequence = number(&message, "Nats-Sequence").ok_or_else(|| Error::Corrupt {
                subject: subject.clone(),
                sequence: 0,
                reason: "direct get without a sequence".to_owned(),
            })?;
            page.more = number(&message, "Nats-Num-Pending").is_some_and(|pending| pending > 0);
            page.commits.push(decode(key.clone(), sequence, &message)?);
        }
    }
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

fn number(message: &Message, name: &str) -> Option<u64> {
    message.headers.as_ref()?.get(name)?.as_str().parse().ok()
}

/// Reads a message of the log.
pub(crate) fn decode(
    key: AggregateKey,
    sequence: u64,
    message: &Message,
) -> Result<Recorded, Error> {
    let corrupt = |key: &AggregateKey, reason: String| Error::Corrupt {
        subject: crate::subject(key),
        sequence,
        reason,
    };
    let link = message.headers.as_ref().and_then(|headers| headers.get(header::HASH));
    let link = link
        .and_then(|text| Hash::parse(text.as_str()))
        .ok_or_else(|| corrupt(&key, format!("no header {}", header::HASH)))?;
    let commit = Commit::decode(key.clone(), &message.payload)
        .map_err(|error| corrupt(&key, error.to_string()))?;
    Ok(Recorded { sequence, hash: link, body: message.payload.clone(), commit })
}
