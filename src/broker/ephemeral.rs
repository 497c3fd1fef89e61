//! Readers of a stream that the broker keeps in memory: a consumer on one server, without
//! acknowledgements. The reader knows where it stopped, and makes the consumer anew there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self, ErrorCode,
    consumer::{AckPolicy, Consumer, pull},
    stream::{ConsumerError, ConsumerErrorKind},
};

use flexcore_resilience::Backoff;

use crate::{Error, unavailable};

/// Time between the server's heartbeats; two missed mean a new consumer.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Time for which the server keeps the consumer of a reader that has gone away.
const INACTIVE_MAX: Duration = Duration::from_secs(30);
/// Pauses between two tries to delete a consumer.
const DELETE_PAUSES: Backoff =
    Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(5) };
/// Time for which the deletion of a consumer is tried. The leader of all streams has to do it, which a
/// broken network costs for some 20 s. A server that nobody told asks that leader itself, but only after 30 to
/// 60 s, and then after twice that each time.
const DELETE_TRIED: Duration = Duration::from_secs(120);
/// How often a server says that there is no such consumer before that is believed of one whose creation had no
/// answer: it may be made just after it was to be deleted. With the pauses these are some 5 s.
const GONE_SAID: u32 = 5;
/// Fewest bytes of a pull request that any message fits into: the broker's limit of 1 MiB, and what
/// comes with it. With a smaller one a large message would never be handed out.
pub const PULL_BYTES_MIN: usize = (1 << 20) + (16 << 10);
/// Duration of one pull request.
const EXPIRES: Duration = Duration::from_secs(30);

/// A consumer that is given back when this is dropped.
pub struct Ephemeral {
    /// Where it is deleted.
    jetstream: jetstream::Context,
    stream: &'static str,
    name: String,
    /// Nobody has said whether it was made.
    in_doubt: bool,
}

impl Ephemeral {
    /// Makes one of this name, filter and start. Fails with [`Error::Unavailable`], which a broker that
    /// keeps no more of them is, too.
    #[boxed::async_recursion]
    pub async fn create(
        jetstream: &jetstream::Context,
        stream: &'static str,
        name: String,
        config: pull::Config,
    ) -> Result<(Self, Consumer<pull::Config>), Error> {
        Self::create_over(jetstream, jetstream, stream, name, config).await
    }

    /// The same over a connection whose client may end for good: it is deleted over the other one, which lasts.
    #[boxed::async_recursion]
    pub async fn create_over(
        jetstream: &jetstream::Context,
        lasting: &jetstream::Context,
        stream: &'static str,
        name: String,
        config: pull::Config,
    ) -> Result<(Self, Consumer<pull::Config>), Error> {
        // Before it is made: when the answer is lost it may be there all the same.
        let mut reader =
            Self { jetstream: lasting.clone(), stream, name: name.clone(), in_doubt: true };
        let config = pull::Config {
            name: Some(name),
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE_MAX,
            memory_storage: true,
            num_replicas: 1,
            ..config
        };
        match jetstream.create_consumer_on_stream(config, stream).await {
            Ok(consumer) => {
                reader.in_doubt = false;
                Ok((reader, consumer))
            }
            Err(error) => {
                reader.in_doubt = code(&error).is_none();
                if code(&error) == Some(ErrorCode::MAXIMUM_CONSUMERS_LIMIT) {
                    say_full(stream);
                }
                Err(unavailable(error))
            }
        }
    }
}

/// A name that no other consumer has, and that begins so.
pub fn unique(jetstream: &jetstream::Context, begin: &str) -> String {
    let inbox = jetstream.client().new_inbox();
    format!("{begin}_{}", inbox.rsplit('.').next().unwrap_or(&inbox))
}

/// Begins to delete a consumer. It may be gone already; one that cannot be deleted for two minutes is left to the
/// server, which does so some time after [`INACTIVE_MAX`].
pub fn delete(jetstream: &jetstream::Context, stream: &'static str, name: String) {
    delete_until(jetstream, stream, name, 1);
}

/// The same, until it was said so often that there is no such consumer.
fn delete_until(
    jetstream: &jetstream::Context,
    stream: &'static str,
    name: String,
    gone_said: u32,
) {
    // A reader may be dropped when the process, and with it the runtime, ends.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let jetstream = jetstream.clone();
    runtime.spawn(async move {
        let (began, mut failures, mut gone) = (Instant::now(), 0, 0);
        while let Err(error) = jetstream.delete_consumer_from_stream(&name, stream).await {
            gone += u32::from(is_gone(&error));
            if gone >= gone_said {
                return;
            }
            if began.elapsed() > DELETE_TRIED {
                tracing::debug!(%error, name, "a reader's consumer is left to the server");
                return;
            }
            failures += 1;
            tokio::time::sleep(DELETE_PAUSES.jittered(failures)).await;
        }
    });
}

/// True if there is nothing to delete.
fn is_gone(error: &ConsumerError) -> bool {
    let gone = [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND];
    code(error).is_some_and(|code| gone.contains(&code))
}

fn code(error: &ConsumerError) -> Option<ErrorCode> {
    match error.kind() {
        ConsumerErrorKind::JetStream(error) => Some(error.error_code()),
        _ => None,
    }
}

/// Says at times that nothing more can be read.
fn say_full(stream: &'static str) {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.is_none_or(|at| at.elapsed() > INACTIVE_MAX) {
        *said = Some(Instant::now());
        tracing::error!(
            stream,
            "the broker keeps no more readers of the stream: raise default_max_consumers in nats.conf"
        );
    }
}

/// A consumer's messages, pulled so many at a time, and so many bytes of them.
#[boxed::async_recursion]
pub async fn messages(
    consumer: &Consumer<pull::Config>,
    messages_max: usize,
    bytes_max: usize,
) -> Result<pull::Stream, Error> {
    let pulls = consumer.stream().max_messages_per_batch(messages_max);
    let pulls = pulls
        .max_bytes_per_batch(bytes_max.max(PULL_BYTES_MIN))
        .heartbeat(HEARTBEAT)
        .expires(EXPIRES);
    pulls.messages().await.map_err(unavailable)
}

/// Number of messages that the broker has handed to this consumer.
pub fn handed_out(
    consumer: &Arc<Consumer<pull::Config>>,
) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
    let consumer = consumer.clone();
    async move {
        let info = consumer.get_info().await.map_err(unavailable)?;
        Ok(info.delivered.consumer_sequence)
    }
}

/// Finds out whether messages were lost on their way to a reader that waits for the next: nothing is
/// acknowledged, and a message that was in a server when it died does not come again.
#[derive(Default)]
pub struct Lost {
    /// Number of messages that had come when the broker had handed out more.
    behind_at: Option<u64>,
}

impl Lost {
    /// True if some were lost, when so many have come and the broker has handed out so many: one
    /// look may find some on their way, but a second finds that they have come.
    pub fn some(&mut self, came: u64, handed_out: u64) -> bool {
        let before = self.behind_at;
        self.behind_at = (handed_out > came).then_some(came);
        self.behind_at.is_some() && self.behind_at == before
    }
}

impl Drop for Ephemeral {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        let gone_said = if self.in_doubt { GONE_SAID } else { 1 };
        delete_until(&self.jetstream, self.stream, name, gone_said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lost_when_they_do_not_come_between_two_looks() {
        let mut lost = Lost::default();
        assert!(!lost.some(0, 0));
        assert!(!lost.some(0, 5), "on their way");
        assert!(!lost.some(5, 5), "come");
        assert!(!lost.some(5, 6) && !lost.some(6, 8), "others than before");
        assert!(lost.some(6, 8));
    }
}
