//! Single deployments: the last of an application, and those before it.

use bytes::Bytes;
use flexcore_domain::AggregateKey;

use async_nats::jetstream::stream::LastRawMessageErrorKind;

use crate::{Error, EventStore, Recorded, direct, load, topology, unavailable};

impl EventStore {
    /// The last commit of an aggregate, as the stream's leader has it; `None`: it has none.
    pub(crate) async fn last_deployed(
        &self,
        key: &AggregateKey,
    ) -> Result<Option<Recorded>, Error> {
        let log = self.jetstream.get_stream_no_info(topology::EVENTS).await.map_err(unavailable)?;
        let last = log.get_last_raw_message_by_subject(&crate::subject(key)).await;
        let message = match last {
            Ok(message) => message,
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Err(error) => return Err(unavailable(error)),
        };
        let (headers, body) = (Some(&message.headers), &message.payload);
        load::decode(key.clone(), message.sequence, headers, body).map(Some)
    }

    /// The aggregate's last readable commit before this stream sequence; `None`: there is none. A
    /// message that is no commit is passed over.
    pub(crate) async fn deployed_before(
        &self,
        key: &AggregateKey,
        mut sequence: u64,
    ) -> Result<Option<Recorded>, Error> {
        let subject = crate::subject(key);
        while sequence > 1 {
            let to = direct::get(topology::EVENTS);
            let up_to = sequence - 1;
            let body = format!(r#"{{"multi_last":["{subject}"],"up_to_seq":{up_to}}}"#);
            let mut replies = self.inbox.request(to, None, Bytes::from(body)).await?;
            let message = replies.next().await?;
            match message.status.map(|status| status.as_u16()) {
                None => {}
                // 204: the batch ends; 404: nothing there.
                Some(204 | 404) => return Ok(None),
                Some(status) => {
                    let text = message.description.unwrap_or_default();
                    return Err(unavailable(format!("direct get answered {status} {text}")));
                }
            }
            sequence = load::number(&message, direct::SEQUENCE)
                .filter(|found| *found < sequence)
                .ok_or_else(|| unavailable("direct get without a sequence before"))?;
            let headers = message.headers.as_ref();
            if let Ok(read) = load::decode(key.clone(), sequence, headers, &message.payload) {
                return Ok(Some(read));
            }
        }
        Ok(None)
    }
}
