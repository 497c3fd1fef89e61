//! Streams that somebody deletes while processes run. Those without which stored commands stop are made anew,
//! as at a start; the log and the queue never are.

use async_nats::jetstream::stream::Config;
use flexcore_broker::stream::found;

use crate::{Error, EventStore, identity, topology};

/// The loss when a stream of this name is deleted; `None`: it is not made anew. Of the log and the queue an
/// empty one would hide that they are gone, and the secret is deleted to end it.
fn lost_with(stream: &str) -> Option<&'static str> {
    match stream {
        topology::PROGRESS => Some(
            "how far each slot's commands are settled: those that are left in the queue are done \
             again, but for what the log or the outcomes have",
        ),
        topology::OUTCOMES => {
            Some("what came of stored commands that left nothing in the log: it is unknown now")
        }
        topology::SNAPSHOTS => Some("snapshots: the next load of each aggregate takes longer"),
        topology::DEAD => Some("messages that were put aside: they cannot be requeued any more"),
        _ => None,
    }
}

impl EventStore {
    /// Makes anew those streams without which stored commands stop, if they are gone. Fails when the
    /// broker is away, and with [`Error::Misconfigured`] when one is gone and cannot be made; the others
    /// are looked after all the same.
    #[boxed::async_recursion]
    pub async fn remake_streams(&self) -> Result<(), Error> {
        let mut all = Ok(());
        for wanted in topology::streams(&self.settings) {
            let Some(lost) = lost_with(&wanted.name) else { continue };
            if let Err(error) = self.remake(wanted, lost).await {
                all = Err(error);
            }
        }
        all
    }

    async fn remake(&self, mut wanted: Config, lost: &str) -> Result<(), Error> {
        let name = wanted.name.clone();
        if found(&self.jetstream, &name).await?.is_some() {
            return Ok(());
        }
        let failed = |why: String| {
            let what = format!("stream {name} was deleted, and cannot be made anew");
            Error::Misconfigured(format!("{what}: {why}"))
        };
        let log = found(&self.jetstream, topology::EVENTS).await?;
        let log = log.ok_or_else(|| failed(format!("{} is gone, too", topology::EVENTS)))?;
        wanted.metadata = identity::metadata(&identity::of_log(&log));
        let made = self.jetstream.create_stream(wanted).await;
        made.map_err(|error| failed(error.to_string()))?;
        tracing::error!(stream = name, lost, "a stream was deleted, and is made anew");
        metrics::counter!("flexcore_streams_remade_total", "stream" => name).increment(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_the_queue_and_the_secret_are_never_made_anew() {
        for never in [topology::EVENTS, topology::COMMANDS, topology::SECRETS] {
            assert_eq!(lost_with(never), None, "{never}");
        }
    }
}
