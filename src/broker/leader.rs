//! Questions to a stream's leader. It has all that was acknowledged; any other replica answers direct
//! gets from its own copy, which may be behind: after a restart, or just by the time to the next
//! heartbeat.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flexcore_resilience::Backoff;
use serde::Deserialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{Error, REQUEST_TIMEOUT, inbox::Inbox, unavailable};

/// Questions of a process at a time: the broker drops the whole queue of its requests where too many
/// wait, and everybody's with it.
pub const ASKED_AT_ONCE_MAX: usize = 256;
/// A question that has no answer by then is asked again: while a stream has no leader nobody has one,
/// and the next leader does not know of it.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// The same for a question that costs the leader more the farther it has to look.
const PATIENCE: Backoff = Backoff { first: ASKED_AGAIN_AFTER, longest: REQUEST_TIMEOUT };
/// Pause before a leader is asked again that knows less than a replica did.
const PAUSE: Duration = Duration::from_millis(20);

/// The answer of the broker's API; other fields do not matter here.
#[derive(Deserialize)]
struct ApiAnswer {
    message: Option<Found>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Found {
    seq: u64,
}

#[derive(Deserialize)]
struct Refused {
    err_code: u64,
    description: String,
}

/// The broker's code: there is no such message.
pub const NOT_FOUND: u64 = 10_037;
/// From any server that sees no leader just now, while another may well be one.
const NO_LEADER: u64 = 10_008;

/// Asks the leaders of streams; cheap to clone.
#[derive(Clone)]
pub struct Leaders {
    inbox: Inbox,
    /// Questions that may be under way.
    asking: Arc<Semaphore>,
}

impl Leaders {
    /// Asks over this inbox.
    #[must_use]
    pub fn over(inbox: Inbox) -> Self {
        Self { inbox, asking: Arc::new(Semaphore::new(ASKED_AT_ONCE_MAX)) }
    }

    /// Stream sequence of the last message on these subjects, at least `least`; 0: there is none.
    /// Fails with [`Error::Unavailable`] when there is no answer in time. A deposed leader answers
    /// from its own copy until it hears of that, a second or so after it is back.
    #[boxed::async_recursion]
    pub async fn last_on(&self, stream: &str, subjects: &str, least: u64) -> Result<u64, Error> {
        let _place = self.asking.acquire().await.map_err(unavailable)?;
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let question = format!(r#"{{"last_by_subj":"{subjects}"}}"#);
        while Instant::now() < deadline {
            let until = deadline.min(Instant::now() + ASKED_AGAIN_AFTER);
            match self.ask(stream, &question, until).await? {
                Some(last) if last >= least => return Ok(last),
                Some(_) => tokio::time::sleep(PAUSE).await,
                None => {}
            }
        }
        Err(unavailable(format!(
            "{stream} has no leader, or one that has lost the end of {subjects}, which was {least}"
        )))
    }

    /// Stream sequence of the first message on these subjects at this sequence or behind it; `None`:
    /// there is none. Fails as [`Self::last_on`] does. The leader goes through all messages from there,
    /// so each time that there was no answer it has twice as long for the next.
    #[boxed::async_recursion]
    pub async fn next_on(
        &self,
        stream: &str,
        subjects: &str,
        from: u64,
    ) -> Result<Option<u64>, Error> {
        let _place = self.asking.acquire().await.map_err(unavailable)?;
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let question = format!(r#"{{"seq":{from},"next_by_subj":"{subjects}"}}"#);
        let mut asked = 0;
        while Instant::now() < deadline {
            asked += 1;
            let until = deadline.min(Instant::now() + PATIENCE.after(asked));
            if let Some(next) = self.ask(stream, &question, until).await? {
                return Ok((next > 0).then_some(next));
            }
        }
        Err(unavailable(format!("{stream} has no leader")))
    }

    /// The sequence of the message that the first finds that knows, 0: there is none; `None`: nobody
    /// knew until then.
    async fn ask(
        &self,
        stream: &str,
        question: &str,
        until: Instant,
    ) -> Result<Option<u64>, Error> {
        let to = format!("$JS.API.STREAM.MSG.GET.{stream}");
        let body = Bytes::copy_from_slice(question.as_bytes());
        let mut replies = self.inbox.request(to, None, body).await?;
        while let Ok(reply) = timeout_at(until, replies.next()).await {
            let reply = reply?;
            if reply.status.is_some() {
                // Nobody listens: JetStream is not up yet.
                break;
            }
            let answer: ApiAnswer = serde_json::from_slice(&reply.payload).map_err(unavailable)?;
            match answer {
                ApiAnswer { message: Some(found), .. } => return Ok(Some(found.seq)),
                ApiAnswer { error: Some(Refused { err_code: NOT_FOUND, .. }), .. } => {
                    return Ok(Some(0));
                }
                ApiAnswer { error: Some(Refused { err_code, description }), .. }
                    if err_code != NO_LEADER =>
                {
                    return Err(unavailable(format!("{stream}: {description} ({err_code})")));
                }
                _ => {}
            }
        }
        tokio::time::sleep_until(until).await;
        Ok(None)
    }
}
