//! Calls as they come: answered, and told to be under way meanwhile where whoever waits listens for that.

use std::{convert::Infallible, future::pending};

use async_nats::{Client, HeaderMap, Message, Subject};
use bytes::Bytes;
use flexcore_domain::{
    PluginRefusal, PluginReply,
    plugin::told::{FIRST_WORD_AFTER, WORD_EVERY, header},
};
use flexcore_pool::Pool;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use super::Calls;

/// Answers a call, once. Until then it says that the call is under way.
pub(super) fn receive(calls: &Calls, message: Message, tasks: &TaskTracker) {
    let Some(to) = crate::inbox(&message) else { return };
    let (calls, words) = (calls.clone(), words(&message));
    tasks.spawn(async move {
        let client = calls.store.client();
        let reply = tokio::select! {
            biased;
            reply = calls.reply(message) => reply,
            never = say(client, words) => match never {},
        };
        let body = serde_json::to_vec(&reply.shortened()).expect("BUG: replies serialise");
        // The sender learns from its own timeout when the connection is gone.
        let _ = client.publish(to, body.into()).await;
    });
}

/// Where its sender listens; `None`: nowhere. Nothing else than an inbox, as with answers.
fn words(message: &Message) -> Option<Subject> {
    let inbox = message.headers.as_ref()?.get(header::WORDS)?.as_str();
    crate::inbox(&Message { reply: Some(Subject::from(inbox)), ..message.clone() })
}

/// Says again and again that a call is under way, until it is dropped.
async fn say(client: &Client, to: Option<Subject>) -> Infallible {
    let Some(to) = to else { return pending().await };
    sleep(FIRST_WORD_AFTER).await;
    loop {
        // One that is lost is followed by others.
        let _ = client.publish(to.clone(), Bytes::new()).await;
        sleep(WORD_EVERY).await;
    }
}

/// The answer to a call that another worker may have done, unless its function may be repeated. `None` for all
/// other calls.
pub(super) fn unrepeatable(
    pool: &Pool,
    headers: Option<&HeaderMap>,
    function: &str,
) -> Option<PluginReply> {
    headers?.get(header::REPEATED)?;
    let Some(description) = pool.status().description else {
        let message = "the plugin does not say now whether the function may be repeated";
        return Some(PluginReply::refused(PluginRefusal::Away, message));
    };
    let mut functions = description.functions.iter();
    let may_be_repeated = functions.any(|known| known.name == function && known.idempotent);
    (!may_be_repeated).then(|| {
        let message = "the worker that had the call is gone; it may have been done, and the \
                       function may not be repeated";
        PluginReply::refused(PluginRefusal::Unknown, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_go_to_an_inbox_and_nowhere_else() {
        let message = |words: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(words) = words {
                headers.insert(header::WORDS, words);
            }
            Message {
                subject: Subject::from("told.plug.greeter.greet"),
                reply: Some(Subject::from("_INBOX.a.b")),
                payload: Bytes::new(),
                headers: Some(headers),
                status: None,
                description: None,
                length: 0,
            }
        };
        for (given, expected) in [
            (Some("_INBOX.c"), Some("_INBOX.c")),
            // Of a version without words.
            (None, None),
            (Some("ctl.plugins"), None),
            (Some(""), None),
        ] {
            let to = words(&message(given));
            assert_eq!(to.as_ref().map(Subject::as_str), expected, "{given:?}");
        }
    }
}
