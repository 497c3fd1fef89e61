//! Asks the owner of a place, also when the owner changes before the answer.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, HeaderMap, Message, Request, RequestErrorKind};
use bytes::Bytes;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, Map, Member, WorkKind,
    bucket::{Bucket, MAP, parsed},
};

/// Longest wait for an owner that does not take questions. An owner that leaves takes less. A dead
/// one's lease takes longer, and a request that waits for it takes up a place that others could
/// use.
const OWNERLESS_MAX: Duration = Duration::from_secs(2);
/// Longest wait for a place that is just being handed over: while the broker is busy every step of
/// that waits its turn.
const HANDED_OVER_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries to find an owner.
const RETRY: Duration = Duration::from_millis(25);
/// Time between a tool's looks at the map.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Nobody took the question up.
    NoOwner,
    /// It may have been taken up.
    InDoubt(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOwner => f.write_str("no worker owns this slot just now"),
            Self::InDoubt(reason) => f.write_str(reason),
        }
    }
}

/// An owner's answer.
#[derive(Clone, Debug)]
pub struct Answered {
    /// Its reply.
    pub message: Message,
    /// An earlier owner was asked before, and may have done the work, or may still do it. So this
    /// owner's refusal does not mean that nothing was done.
    pub repeated: bool,
}

/// Knows who owns which place of a kind of work; cheap to clone.
#[derive(Clone)]
pub struct Owners {
    kind: WorkKind,
    client: Client,
    map: watch::Receiver<Arc<Map>>,
    /// Of a process that is no member: what keeps the map up to date.
    following: Option<Arc<AbortOnDropHandle<()>>>,
    member: Option<Member>,
}

impl Owners {
    /// As a member knows them.
    #[must_use]
    pub fn of(kind: WorkKind, client: &Client, member: &Member) -> Self {
        let (client, map) = (client.clone(), member.map());
        Self { kind, client, map, following: None, member: Some(member.clone()) }
    }

    /// For a process that is no member, such as a tool. Fails when the broker does not answer.
    #[boxed::async_recursion]
    pub async fn attach(kind: WorkKind, client: &Client) -> Result<Self, Error> {
        let bucket = Bucket::attach(client).await?;
        let (tell, map) = watch::channel(read(&bucket).await?.unwrap_or_default());
        let following: JoinHandle<()> = tokio::spawn(async move {
            while !tell.is_closed() {
                tokio::time::sleep(LOOK_EVERY).await;
                // A look that fails changes nothing.
                if let Ok(Some(map)) = read(&bucket).await {
                    tell.send_replace(map);
                }
            }
        });
        let following = Some(Arc::new(AbortOnDropHandle::new(following)));
        Ok(Self { kind, client: client.clone(), map, following, member: None })
    }

    /// Asks the owner of a place; asks its successor when there is one before the answer. So the
    /// same question may be taken up twice: it must be one that is recognised. `question` makes
    /// subject and headers for the owner's epoch and the time that is left. Fails when there is no
    /// answer `within` that time, and earlier when there is no owner.
    pub async fn ask(
        &self,
        number: u16,
        within: Duration,
        payload: Bytes,
        question: impl Fn(u64, Duration) -> (String, HeaderMap),
    ) -> Result<Answered, Unanswered> {
        let (kind, started) = (self.kind, Instant::now());
        let (mut map, mut in_doubt, mut ownerless) = (self.map.clone(), false, None);
        loop {
            let left = within.saturating_sub(started.elapsed());
            let owner = able(&map.borrow_and_update(), kind, number);
            let nobody = match owner {
                Some(epoch) => {
                    let (subject, headers) = question(epoch, left);
                    let request = Request::new()
                        .headers(headers)
                        .payload(payload.clone())
                        .timeout(Some(left));
                    tokio::select! {
                        biased;
                        reply = self.client.send_request(subject, request) => match reply {
                            Ok(message) => return Ok(Answered { message, repeated: in_doubt }),
                            Err(error) if error.kind() == RequestErrorKind::NoResponders => true,
                            Err(error) => return Err(Unanswered::InDoubt(error.to_string())),
                        },
                        () = moved(&mut map, kind, number, epoch) => {
                            in_doubt = true;
                            false
                        }
                    }
                }
                None => true,
            };
            if !nobody {
                ownerless = None;
                continue;
            }
            let since: Instant = *ownerless.get_or_insert_with(Instant::now);
            let longest = match map.borrow().is_moving(kind, number) {
                true => HANDED_OVER_MAX,
                false => OWNERLESS_MAX,
            };
            if since.elapsed() >= longest.min(left) {
                return Err(match in_doubt {
                    true => Unanswered::InDoubt("its owner has gone meanwhile".to_owned()),
                    false => Unanswered::NoOwner,
                });
            }
            if let Some(member) = &self.member {
                member.look();
            }
            let _ = tokio::time::timeout(RETRY, map.changed()).await;
        }
    }
}

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let follows = self.following.is_some();
        f.debug_struct("Owners").field("follows", &follows).finish_non_exhaustive()
    }
}

async fn read(bucket: &Bucket) -> Result<Option<Arc<Map>>, Error> {
    Ok(bucket.read(MAP).await?.as_ref().and_then(parsed).map(Arc::new))
}

/// The epoch of an owner that takes questions. One that is to leave listens for a moment yet, for those
/// that were sent before: what reaches it just as it stops to is lost, and would leave doubt.
fn able(map: &Map, kind: WorkKind, number: u16) -> Option<u64> {
    let owner = map.owner(kind, number).filter(|_| !map.is_moving(kind, number));
    owner.map(|(_, epoch)| epoch)
}

/// Returns when the place has another owner.
async fn moved(map: &mut watch::Receiver<Arc<Map>>, kind: WorkKind, number: u16, epoch: u64) {
    let other = |map: &Arc<Map>| map.owner(kind, number).is_some_and(|(_, now)| now != epoch);
    if map.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}
