//! Commands, and what comes of them: the words that the gateway and the workers speak over NATS.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    hash::CommandHash,
    json::{Payload, Violation},
    names::{ActorName, AggregateKey, CommandId, CommandName, InvalidName},
    position::Position,
    trace::TraceParent,
};

/// A command on its way to the owner of its aggregate's slot.
#[derive(Clone, Debug)]
pub struct Command {
    /// The aggregate that it is for.
    pub key: AggregateKey,
    /// What is asked, such as `depart`.
    pub name: CommandName,
    /// What makes it the same command when it is sent again.
    pub id: CommandId,
    /// What it is about.
    pub payload: Payload,
    /// What tells it from another command of the same id: over its name and its payload's value.
    pub hash: CommandHash,
    /// Where it comes from: its commit says so, too.
    pub provenance: Provenance,
    /// The version that the aggregate must have; `None`: any.
    pub expected_version: Option<u64>,
}

/// Where a command comes from. It goes unchanged from the request into each event of its commit.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// Who sent it.
    pub actor: ActorName,
    /// What it belongs to, when the sender said so.
    pub correlation_id: Option<CommandId>,
    /// What caused it, when the sender said so.
    pub causation_id: Option<CommandId>,
    /// The trace that it is part of.
    pub traceparent: Option<TraceParent>,
}

impl Provenance {
    /// The headers with ids that its sender may give.
    pub const IDS: [&str; 2] = [header::CORRELATION_ID, header::CAUSATION_ID];

    /// Sent by this one, and nothing else is known.
    #[must_use]
    pub fn of(actor: ActorName) -> Self {
        Self { actor, correlation_id: None, causation_id: None, traceparent: None }
    }

    /// Reads what the headers of a command say beside its actor. Fails with the header that has no id in
    /// it, and why. A trace that cannot be read is left out.
    pub fn read<'h>(
        actor: ActorName,
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> Result<Self, (&'static str, InvalidName)> {
        let id =
            |name| header(name).map(CommandId::parse).transpose().map_err(|error| (name, error));
        Ok(Self {
            actor,
            correlation_id: id(header::CORRELATION_ID)?,
            causation_id: id(header::CAUSATION_ID)?,
            traceparent: header(header::TRACEPARENT).and_then(|text| text.parse().ok()),
        })
    }
}

impl Command {
    /// Subject of the synchronous request to the slot's owner of this epoch:
    /// `req.<epoch>.<slot>.<tenant>.<aggregate>.<id>.<command>`.
    #[must_use]
    pub fn request_subject(epoch: u64, key: &AggregateKey, name: &CommandName) -> String {
        format!("req.{epoch}.{}.{name}", key.subject_part())
    }

    /// Subject of a request for an aggregate's state:
    /// `get.<epoch>.<slot>.<tenant>.<aggregate>.<id>`.
    #[must_use]
    pub fn state_subject(epoch: u64, key: &AggregateKey) -> String {
        format!("get.{epoch}.{}", key.subject_part())
    }

    /// Subject of a request for what came of a command:
    /// `out.<epoch>.<slot>.<tenant>.<aggregate>.<id>`, the command id being in the header
    /// [`header::COMMAND_ID`].
    #[must_use]
    pub fn outcome_subject(epoch: u64, key: &AggregateKey) -> String {
        format!("out.{epoch}.{}", key.subject_part())
    }
}

/// Header names of requests, queued commands and commits.
pub mod header {
    /// The command id.
    pub const COMMAND_ID: &str = "Nats-Msg-Id";
    /// The command id under a name that means nothing to the broker: a stream with a duplicate window
    /// takes the second message of one `Nats-Msg-Id` for a repetition. So it is in FLEX_DEAD, and in what
    /// we publish to the queue.
    pub const OWN_COMMAND_ID: &str = "Flexcore-Command-Id";
    /// The commit's link in the aggregate's hash chain.
    pub const HASH: &str = "Flexcore-Hash";
    /// Who sent the command. Without [`ACTOR_SEAL`] it is recorded as a claim: `nats:…`; with one
    /// that does not fit the command is not done.
    pub const ACTOR: &str = "Flexcore-Actor";
    /// What a gateway vouches for the actor with: [`crate::Vouched::seal`].
    pub const ACTOR_SEAL: &str = "Flexcore-Actor-Seal";
    /// The version that the aggregate must have.
    pub const EXPECTED_VERSION: &str = "Flexcore-Expected-Version";
    /// For state requests: the version to fold up to.
    pub const AT_VERSION: &str = "Flexcore-At-Version";
    /// What the command belongs to.
    pub const CORRELATION_ID: &str = "Flexcore-Correlation-Id";
    /// What caused the command.
    pub const CAUSATION_ID: &str = "Flexcore-Causation-Id";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// In FLEX_DEAD: why, in one line.
    pub const DEAD_REASON: &str = "Flexcore-Reason";
    /// In FLEX_DEAD: the subject that the message had, to requeue it to.
    pub const DEAD_SUBJECT: &str = "Flexcore-Subject";
    /// In FLEX_DEAD: how many bytes the body had, where only its beginning was kept.
    pub const DEAD_BODY_BYTES: &str = "Flexcore-Body-Bytes";
    /// In FLEX_DEAD: how many of its headers had no room.
    pub const DEAD_HEADERS_LEFT_OUT: &str = "Flexcore-Headers-Left-Out";
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// Recorded in the log (or nothing to record: `position` is absent then).
    Accepted {
        /// The aggregate's version after the command.
        version: u64,
        /// Where the commit is in the log.
        position: Option<Position>,
        /// The same command was accepted before; this is what happened then.
        #[serde(default)]
        replayed: bool,
    },
    /// The rules said no.
    Rejected {
        /// A stable word for programs.
        code: String,
        /// A sentence for people.
        message: String,
    },
    /// The payload does not match the command's schema, or is no JSON that is accepted here.
    InvalidPayload {
        /// Which field, and why.
        violations: Vec<Violation>,
    },
    /// No deployed application has this aggregate.
    UnknownAggregate {
        /// Those that there are.
        known: Vec<String>,
    },
    /// The aggregate has no such command.
    UnknownCommand {
        /// Those that there are.
        known: Vec<String>,
    },
    /// The aggregate has another version than the sender expects, or was changed meanwhile.
    Conflict {
        /// The version that the aggregate has.
        version: u64,
    },
    /// The same command id was used with another payload.
    IdMismatch,
    /// The decider failed: it threw, looped, or asked for too much memory.
    Faulty {
        /// What it said.
        message: String,
    },
    /// Not taken up: too much is waiting. Safe to send again.
    Overloaded {
        /// When to try again, in seconds.
        retry_after_s: u32,
    },
    /// Nothing was done: the broker's storage is full. Safe to send again later.
    NoRoom {
        /// What the broker said.
        message: String,
    },
    /// Nothing was done: what decides cannot be asked just now, or has too much to do. Safe to send again.
    Away {
        /// Why it cannot be asked.
        message: String,
    },
    /// Unknown: the log did not answer. Send again with the same command id to learn the outcome.
    Unavailable {
        /// What did not answer.
        message: String,
    },
    /// Asked for by id: stored, and not processed yet.
    Pending,
    /// Asked for by id: no command of it waits and the aggregate's log has none, so it has recorded
    /// nothing. It was never received, or what came of it is no longer kept.
    Unknown,
    /// Asked for by id: put aside in FLEX_DEAD.
    Dead {
        /// Why.
        reason: String,
    },
}

/// Longest sentence of an outcome, in characters: an outcome is one message, however long what it
/// quotes.
pub const SENTENCE_CHARS_MAX: usize = 2_000;
/// Most bytes of all texts of an outcome that is kept, as JSON writes them. Tenants share what is kept by
/// number, so one outcome must not take much more room than another. The longest code and message of
/// a rejection have room, when each character is one byte.
pub const KEPT_BYTES_MAX: usize = 576;
/// Most entries of a list in an outcome.
const ENTRIES_MAX: usize = 256;
/// Most violations of an outcome.
const VIOLATIONS_MAX: usize = 32;
/// Most entries of a list, and most violations, in an outcome that is kept: each takes some bytes beside
/// its texts.
const KEPT_ENTRIES_MAX: usize = 4;

impl Outcome {
    /// The outcome with its texts cut to what fits a message many times over.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        self.cut_lists(VIOLATIONS_MAX, ENTRIES_MAX);
        self.texts().into_iter().for_each(shorten);
        self
    }

    /// The outcome as it is kept to be asked for later: its texts are cut to [`KEPT_BYTES_MAX`] in all,
    /// the last ones first.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.cut_lists(KEPT_ENTRIES_MAX, KEPT_ENTRIES_MAX);
        let mut room = KEPT_BYTES_MAX;
        for text in self.texts() {
            cut(text, room);
            room = room.saturating_sub(json_bytes(text));
        }
        self
    }

    fn cut_lists(&mut self, violations_max: usize, entries_max: usize) {
        match self {
            Self::InvalidPayload { violations } => violations.truncate(violations_max),
            Self::UnknownAggregate { known } | Self::UnknownCommand { known } => {
                known.truncate(entries_max);
            }
            _ => {}
        }
    }

    /// All its texts, in the order in which they are written.
    fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Self::Rejected { code, message } => vec![code, message],
            Self::InvalidPayload { violations } => {
                violations.iter_mut().flat_map(|it| [&mut it.field, &mut it.reason]).collect()
            }
            Self::UnknownAggregate { known } | Self::UnknownCommand { known } => {
                known.iter_mut().collect()
            }
            Self::Faulty { message }
            | Self::NoRoom { message }
            | Self::Away { message }
            | Self::Unavailable { message } => vec![message],
            Self::Dead { reason } => vec![reason],
            Self::Accepted { .. }
            | Self::Conflict { .. }
            | Self::IdMismatch
            | Self::Overloaded { .. }
            | Self::Pending
            | Self::Unknown => Vec::new(),
        }
    }
}

impl StateReply {
    /// The reply with its text cut to what fits a message; a state has a limit of its own, which does.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        match &mut self {
            Self::Unavailable { message } | Self::Faulty { message } => shorten(message),
            Self::Found { .. } | Self::NotFound => {}
        }
        self
    }
}

fn shorten(text: &mut String) {
    // Most are shorter in bytes already, and are not counted.
    if text.len() > SENTENCE_CHARS_MAX
        && let Some((at, _)) = text.char_indices().nth(SENTENCE_CHARS_MAX)
    {
        text.truncate(at);
        text.push(CUT);
    }
}

/// Stands where a text was cut.
const CUT: char = '…';

/// Cuts a text to so many bytes, as JSON writes it.
fn cut(text: &mut String, bytes_max: usize) {
    let (mut bytes, mut end) = (0, 0);
    for (at, character) in text.char_indices() {
        bytes += escaped_bytes(character);
        if bytes > bytes_max {
            break;
        }
        if bytes + CUT.len_utf8() <= bytes_max {
            end = at + character.len_utf8();
        }
    }
    if bytes > bytes_max {
        text.truncate(end);
        if CUT.len_utf8() <= bytes_max {
            text.push(CUT);
        }
    }
}

fn json_bytes(text: &str) -> usize {
    text.chars().map(escaped_bytes).sum()
}

/// Bytes of a character within a text of JSON.
fn escaped_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        other => other.len_utf8(),
    }
}

/// The answer to a state request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case", try_from = "FlatStateReply")]
pub enum StateReply {
    /// The aggregate, folded up to the version.
    Found {
        /// Events folded.
        version: u64,
        /// What `evolve` returned, JSON.
        state: Box<RawValue>,
    },
    /// It has no events, or no deployed application has this aggregate.
    NotFound,
    /// The log did not answer.
    Unavailable {
        /// What went wrong.
        message: String,
    },
    /// It cannot be folded, and will not be by asking again: its functions or its events are at fault.
    Faulty {
        /// What is wrong with it.
        message: String,
    },
}

/// A [`StateReply`] as it is read: a tagged enum is read through a buffer, which raw JSON cannot
/// pass.
#[derive(Deserialize)]
struct FlatStateReply {
    status: String,
    version: Option<u64>,
    state: Option<Box<RawValue>>,
    message: Option<String>,
}

impl TryFrom<FlatStateReply> for StateReply {
    type Error = &'static str;

    fn try_from(flat: FlatStateReply) -> Result<Self, Self::Error> {
        match flat.status.as_str() {
            "found" => Ok(Self::Found {
                version: flat.version.ok_or("a state without its version")?,
                // The state may be `null` itself.
                state: flat.state.unwrap_or_else(|| RawValue::NULL.to_owned()),
            }),
            "not_found" => Ok(Self::NotFound),
            "unavailable" => Ok(Self::Unavailable { message: flat.message.unwrap_or_default() }),
            "faulty" => Ok(Self::Faulty { message: flat.message.unwrap_or_default() }),
            _ => Err("not the status of a state"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_fits_a_message_whatever_it_quotes() {
        let long = || "\u{1}".repeat(600_000);
        let violation = || Violation { field: long(), reason: long() };
        for outcome in [
            Outcome::Rejected { code: long(), message: long() },
            Outcome::InvalidPayload { violations: (0..200).map(|_| violation()).collect() },
            Outcome::UnknownCommand { known: vec!["a".repeat(40); 100_000] },
            Outcome::Faulty { message: long() },
            Outcome::NoRoom { message: long() },
            Outcome::Away { message: long() },
            Outcome::Dead { reason: long() },
        ] {
            let bytes = serde_json::to_vec(&outcome.shortened()).unwrap().len();
            // What every server takes.
            assert!(bytes < crate::limits::COMMIT_BYTES_MAX, "{bytes}");
        }
        let exact = "é".repeat(SENTENCE_CHARS_MAX);
        let kept = Outcome::Faulty { message: exact.clone() }.shortened();
        assert_eq!(kept, Outcome::Faulty { message: exact.clone() });
        let cut = Outcome::Faulty { message: exact.clone() + "é" }.shortened();
        assert_eq!(cut, Outcome::Faulty { message: exact + "…" });
    }

    #[test]
    fn an_outcome_that_is_kept_takes_few_bytes_whatever_it_quotes() {
        for part in ["x", "\u{1}", "\n", "é", "\u{1f600}"] {
            let long = || part.repeat(10_000);
            let violation = || Violation { field: long(), reason: long() };
            for outcome in [
                Outcome::Rejected { code: long(), message: long() },
                Outcome::InvalidPayload { violations: (0..200).map(|_| violation()).collect() },
                Outcome::UnknownAggregate { known: vec!["a".repeat(40); 1_000] },
                Outcome::UnknownCommand { known: vec![long(); 1_000] },
                Outcome::Faulty { message: long() },
                Outcome::NoRoom { message: long() },
                Outcome::Away { message: long() },
                Outcome::Unavailable { message: long() },
                Outcome::Dead { reason: long() },
            ] {
                let bytes = serde_json::to_vec(&outcome.kept()).unwrap().len();
                assert!(bytes < KEPT_BYTES_MAX + 150, "{bytes}");
            }
            let each = KEPT_BYTES_MAX / json_bytes(part);
            let whole = Outcome::Dead { reason: part.repeat(each) };
            assert_eq!(whole.clone().kept(), whole);
            let Outcome::Dead { reason } = Outcome::Dead { reason: part.repeat(each + 1) }.kept()
            else {
                panic!("not dead")
            };
            let (left, bytes) = (reason.trim_end_matches('…'), json_bytes(&reason));
            assert!(left.len() < reason.len() && left.replace(part, "").is_empty(), "{reason}");
            // Nothing but what the sign needs is lost.
            assert!((KEPT_BYTES_MAX - 8..=KEPT_BYTES_MAX).contains(&bytes), "{bytes}");
        }
        let rejected = Outcome::Rejected { code: "c".repeat(64), message: "m".repeat(500) };
        assert_eq!(rejected.clone().kept(), rejected);
        // No room is left for the second text, nor for the sign that it was cut.
        let (code, message) = ("c".repeat(KEPT_BYTES_MAX), "m".to_owned());
        let kept = Outcome::Rejected { code: code.clone(), message }.kept();
        assert_eq!(kept, Outcome::Rejected { code, message: String::new() });
    }

    #[test]
    fn bytes_are_counted_as_json_writes_them() {
        for character in ('\0'..'\u{180}').chain(['…', '\u{2028}', '\u{1f600}']) {
            let written = serde_json::to_string(&character).unwrap();
            assert_eq!(escaped_bytes(character), written.len() - 2, "{character:?}");
        }
    }

    #[test]
    fn a_reply_about_a_state_fits_a_message_whatever_it_quotes() {
        let largest = format!("\"{}\"", "x".repeat(crate::limits::STATE_BYTES_MAX - 2));
        let state = RawValue::from_string(largest).unwrap();
        let message = || "\u{1}".repeat(600_000);
        for reply in [
            StateReply::Found { version: u64::MAX, state },
            StateReply::Unavailable { message: message() },
            StateReply::Faulty { message: message() },
        ] {
            let bytes = serde_json::to_vec(&reply.shortened()).unwrap().len();
            assert!(bytes < crate::limits::COMMIT_BYTES_MAX, "{bytes}");
        }
    }

    #[test]
    fn state_replies_round_trip() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        for reply in [
            StateReply::Found { version: 3, state: raw(r#"{"a":[1.50]}"#) },
            StateReply::Found { version: 1, state: raw("null") },
            StateReply::NotFound,
            StateReply::Unavailable { message: "why".to_owned() },
            StateReply::Faulty { message: "why".to_owned() },
        ] {
            let text = serde_json::to_string(&reply).unwrap();
            let read: StateReply = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
    }
}
