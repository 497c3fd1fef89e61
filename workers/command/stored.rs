//! What the command worker does with the messages of FLEX_COMMANDS: asynchronous commands.

use flexcore_domain::{AggregateKey, CommandId, Outcome, Slot};
use flexcore_eventstore::{
    Error, EventStore,
    commands::{published_subject, stored_part},
    headers::command_id,
};
use flexcore_queue::Queued;
use tokio::sync::mpsc;

use super::{Lanes, reading::read_command, requests::count};
use crate::queue::{BEGUN_MAX, Handler};

/// Has the stored commands of a slot decided by their lane.
pub(super) struct Stored {
    pub(super) store: EventStore,
    pub(super) lanes: Lanes,
    pub(super) slot: Slot,
}

impl Handler for Stored {
    type Outcome = Outcome;

    /// Gives a command to its lane. Those behind it wait while its seal has the secret read again.
    async fn begin(
        &self,
        number: u64,
        message: &Queued,
        kills: bool,
        to: &mpsc::UnboundedSender<(u64, Outcome)>,
    ) {
        let part = stored_part(&message.subject).unwrap_or_default();
        let sequence = message.sequence;
        let read = match message.malformed {
            Some(why) => Err(Outcome::Faulty { message: why.to_owned() }),
            None => {
                let headers = message.headers.as_ref();
                read_command(&self.store, part, headers, &message.payload).await
            }
        };
        let outcome = match read {
            Ok(_) if kills => Outcome::Faulty {
                message: format!("{BEGUN_MAX} workers began with it, and none has lived on"),
            },
            #[cfg(feature = "defects")]
            Ok(command) => {
                let lanes = self.lanes.clone();
                let hand = move |command, number, to| lanes.queued(command, sequence, number, to);
                return crate::defects::queued(hand, command, number, to.clone());
            }
            #[cfg(not(feature = "defects"))]
            Ok(command) => return self.lanes.queued(command, sequence, number, to.clone()),
            Err(outcome) => outcome,
        };
        // The receiver is the caller's own.
        let _ = to.send((number, outcome));
    }

    /// A tenant that rests has commands in the lane for much longer than a slot may take to be left.
    async fn give_back(&self) {
        self.lanes.give_back(self.slot).await;
    }

    /// A command that was refused must not be decided a second time: the aggregate may have moved on. Of
    /// what the log has the aggregate knows, but a command that would be put aside is not decided at all.
    async fn is_done(&self, message: &Queued, kills: bool) -> Result<bool, Error> {
        let Some((key, id)) = identify(message) else { return Ok(false) };
        let is_done = self.store.has_outcome(&key, &id, message.stamp()).await?;
        if is_done || !kills {
            return Ok(is_done);
        }
        match self.store.command_anywhere(&key, &id).await {
            Ok(found) => Ok(found.is_some()),
            Err(error @ Error::Unavailable(_)) => Err(error),
            // Waiting makes a damaged log no better, and holds the slot up.
            Err(_) => Ok(false),
        }
    }

    fn was_done(&self) {
        metrics::counter!("flexcore_commands_total", "outcome" => "replayed").increment(1);
    }

    /// What has a position is in the log.
    fn hear(&self, outcome: &Outcome) -> bool {
        count(outcome);
        matches!(outcome, Outcome::Accepted { position: Some(_), .. })
    }

    /// What is accepted without events and what is refused are answers to look up. What can't be processed
    /// is put aside for a person, once: from then on the outcome says so.
    async fn keep(&self, message: &Queued, outcome: &mut Outcome) -> Result<(), Error> {
        let is_answer = matches!(
            outcome,
            Outcome::Accepted { .. }
                | Outcome::Rejected { .. }
                | Outcome::Conflict { .. }
                | Outcome::Dead { .. }
        );
        if !is_answer {
            let reason = reason(outcome);
            let subject = published_subject(&message.subject);
            let subject = subject.as_deref().unwrap_or(&message.subject);
            let headers = message.headers.as_ref();
            let body = message.payload.clone();
            self.store.bury("command", &reason, subject, headers, body).await?;
            *outcome = Outcome::Dead { reason };
        }
        match identify(message) {
            Some((key, id)) => self.store.save_outcome(&key, &id, message.stamp(), outcome).await,
            None => Ok(()),
        }
    }
}

/// Whose outcome it is; `None` for a command that does not say so.
fn identify(message: &Queued) -> Option<(AggregateKey, CommandId)> {
    let (part, _) = stored_part(&message.subject)?.rsplit_once('.')?;
    let id = command_id(message.headers.as_ref())?;
    Some((AggregateKey::from_subject_part(part)?, CommandId::parse(id).ok()?))
}

fn reason(outcome: &Outcome) -> String {
    let listed = |known: &[String]| known.join(", ");
    match outcome {
        Outcome::InvalidPayload { violations } => {
            let fields = violations.iter().map(|v| format!("{}: {}", v.field, v.reason));
            format!("invalid payload: {}", fields.collect::<Vec<_>>().join("; "))
        }
        Outcome::UnknownAggregate { known } => {
            format!("unknown aggregate; deployed are: {}", listed(known))
        }
        Outcome::UnknownCommand { known } => {
            format!("unknown command; the aggregate accepts: {}", listed(known))
        }
        Outcome::IdMismatch => "this command id was used with another payload".to_owned(),
        Outcome::Faulty { message }
        | Outcome::Away { message }
        | Outcome::Unavailable { message } => message.clone(),
        other => format!("{other:?}"),
    }
}
