//! Requests with several replies, over one subscription: a subscription a request would cost the
//! server two more protocol messages each.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::{Error, unavailable};

type Waiting = Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<Message>>>>;

/// Asks and hears the replies; cheap to clone.
#[derive(Clone)]
pub struct Inbox {
    client: async_nats::Client,
    prefix: Arc<str>,
    next: Arc<AtomicU64>,
    waiting: Waiting,
    _dispatch: Arc<AbortOnDropHandle<()>>,
}

/// The replies to one request. Bounded by what the request asked for.
pub struct Replies {
    token: u64,
    waiting: Waiting,
    receiver: mpsc::UnboundedReceiver<Message>,
}

impl Inbox {
    /// Asks over this connection. Fails when the subscription to the replies is refused.
    #[boxed::async_recursion]
    pub async fn open(client: &async_nats::Client) -> Result<Self, Error> {
        let prefix = client.new_inbox();
        let mut replies = client.subscribe(format!("{prefix}.*")).await.map_err(unavailable)?;
        let waiting = Waiting::default();
        let dispatch = tokio::spawn({
            let waiting = waiting.clone();
            let skip = prefix.len() + 1;
            async move {
                while let Some(message) = replies.next().await {
                    let token = message.subject.get(skip..).and_then(|text| text.parse().ok());
                    let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(sender) = token.and_then(|token: u64| waiting.get(&token)) {
                        // A closed receiver has given up waiting: nothing to tell it.
                        let _ = sender.send(message);
                    }
                }
            }
        });
        Ok(Self {
            client: client.clone(),
            prefix: prefix.into(),
            next: Arc::default(),
            waiting,
            _dispatch: Arc::new(AbortOnDropHandle::new(dispatch)),
        })
    }

    /// Sends a request. Returns its replies as they come; fails when the connection does not take it.
    #[boxed::async_recursion]
    pub async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Replies, Error> {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::unbounded_channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(token, sender);
        let replies = Replies { token, waiting: self.waiting.clone(), receiver };
        let reply = format!("{}.{token}", self.prefix);
        let sent = match headers {
            Some(headers) => {
                self.client.publish_with_reply_and_headers(subject, reply, headers, body).await
            }
            None => self.client.publish_with_reply(subject, reply, body).await,
        };
        sent.map_err(unavailable)?;
        Ok(replies)
    }
}

impl Replies {
    /// The next reply. Fails when none comes within the request timeout.
    #[boxed::async_recursion]
    pub async fn next(&mut self) -> Result<Message, Error> {
        match tokio::time::timeout(crate::REQUEST_TIMEOUT, self.receiver.recv()).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(unavailable("the connection was closed")),
            Err(_) => Err(unavailable("no answer in time")),
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}
