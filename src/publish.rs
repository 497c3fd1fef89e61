//! `flexcore publish`: sends a command over NATS or HTTP, or a file of them over NATS.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        context::{PublishAckFuture, PublishError, PublishErrorKind},
    },
};
use flexcore_cluster::Owners;
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, Command, CommandId, CommandName, Outcome,
    command::header,
};
use flexcore_eventstore::{commands::command_subject, headers::QUEUE_SEQUENCE};
use flexcore_http::Method;
use flexcore_workers::COMMANDS;
use serde_json::{json, value::RawValue};

use crate::{config::Config, gateways, out, token};

/// Send a command, or many
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore publish flight UA1-20130101-EWR depart '{\"time\":\"2013-01-01T10:22:00Z\"}' --wait
  echo '{}' | flexcore publish flight UA1-20130101-EWR cancel - --id cancel-1
  flexcore publish --lines commands.jsonl

A line of --lines is {\"aggregate\":…,\"id\":…,\"command\":…,\"payload\":…}, and optionally
\"command_id\". The same command id sent again is recognised: repeating a publish is safe. A line without one
has the same id again with the same --run, as long as neither its text nor its number changes.")]
pub(crate) struct Publish {
    /// The kind of aggregate, such as flight
    #[arg(required_unless_present = "lines")]
    pub(crate) aggregate: Option<AggregateName>,
    /// The aggregate's id
    #[arg(required_unless_present = "lines", value_name = "ID")]
    pub(crate) aggregate_id: Option<AggregateId>,
    /// The command, such as depart
    #[arg(required_unless_present = "lines", value_name = "COMMAND")]
    pub(crate) name: Option<CommandName>,
    /// JSON; `-` reads it from standard input
    #[arg(default_value = "{}")]
    pub(crate) payload: String,
    /// The command's id: the same id makes it the same command when it is sent again [default: a
    /// random one]
    #[arg(long, value_name = "KEY")]
    pub(crate) id: Option<CommandId>,
    /// The sender's name (over NATS; over HTTP the token says it)
    #[arg(long, default_value = "cli")]
    pub(crate) actor: ActorName,
    /// nats: stored, then processed; http: processed, then answered
    #[arg(long, value_enum, default_value = "nats")]
    pub(crate) over: Over,
    /// Wait for the outcome, at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30")]
    pub(crate) wait: Option<u64>,
    /// Publish every line of this file, in order (`-`: standard input); nats only
    #[arg(long, value_name = "FILE", conflicts_with_all = ["aggregate", "id", "wait", "over"])]
    pub(crate) lines: Option<PathBuf>,
    /// Names the ids of lines that have no command_id: the same file, published again with the same
    /// name, has the same ids. Another file needs another name. At most 100 characters [default: a
    /// random one]
    #[arg(long, value_name = "NAME", requires = "lines")]
    pub(crate) run: Option<CommandId>,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The way that a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Over {
    Nats,
    Http,
}

/// Longest line of a file, in bytes: a payload at its limit, and the names around it.
pub(crate) const LINE_BYTES_MAX: u64 = 512 * 1024;

/// Time between two questions for an outcome.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Longest wait for one answer: the question is asked again.
const ASK_MAX: Duration = Duration::from_secs(10);

/// A command as it is published.
pub(crate) struct Outgoing {
    pub(crate) key: AggregateKey,
    pub(crate) name: CommandName,
    pub(crate) id: CommandId,
    pub(crate) payload: Box<RawValue>,
}

pub(crate) async fn run(
    config: &Config,
    args: Publish,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let (Some(aggregate), Some(aggregate_id), Some(name)) =
        (args.aggregate, args.aggregate_id, args.name)
    else {
        bail!("BUG: the command line lets none of the names be missing");
    };
    let outgoing = Outgoing {
        key: AggregateKey::new(config.tenant()?, aggregate, aggregate_id),
        name,
        id: args.id.unwrap_or_else(random_id),
        payload: payload(&args.payload)?,
    };
    match args.over {
        Over::Http => over_http(config, &outgoing, args.json, out).await,
        Over::Nats => {
            let client = config.connect().await?;
            let jetstream = jetstream::new(client.clone());
            let stored = publish(&jetstream, &outgoing, &args.actor).await?.await;
            // A random one is known to nobody else.
            let told = || format!("publishing the command {}", outgoing.id);
            let sequence = stored.map_err(not_taken).with_context(told)?.sequence;
            match args.wait {
                Some(seconds) => {
                    let longest = Duration::from_secs(seconds);
                    let outcome = wait(&client, &outgoing, sequence, longest).await?;
                    show(&outcome, &outgoing.id, args.json, out)
                }
                None if args.json => {
                    out::json(out, &json!({"command_id": outgoing.id, "status": "stored"}))?;
                    Ok(true)
                }
                None => {
                    writeln!(out, "stored as {}; it will be processed", outgoing.id)?;
                    Ok(true)
                }
            }
        }
    }
}

pub(crate) fn random_id() -> CommandId {
    let id = uuid::Uuid::now_v7().to_string();
    CommandId::parse(&id).expect("BUG: a UUID is a command id")
}

fn payload(text: &str) -> anyhow::Result<Box<RawValue>> {
    let mut read = String::new();
    let text = if text == "-" {
        io::stdin().take(LINE_BYTES_MAX).read_to_string(&mut read)?;
        &read
    } else {
        text
    };
    serde_json::from_str(text).context("the payload is not JSON")
}

/// Hands a command to the broker; the future ends when the broker has stored it.
pub(crate) async fn publish(
    jetstream: &jetstream::Context,
    outgoing: &Outgoing,
    actor: &ActorName,
) -> anyhow::Result<PublishAckFuture> {
    let mut headers = HeaderMap::new();
    headers.insert(header::OWN_COMMAND_ID, outgoing.id.as_str());
    headers.insert(header::ACTOR, actor.as_str());
    let subject = command_subject(&outgoing.key, &outgoing.name);
    let body = outgoing.payload.get().to_owned().into();
    Ok(jetstream.publish_with_headers(subject, headers, body).await?)
}

/// True if the broker has stored nothing for certain, whatever is sent again.
pub(crate) fn is_refused(error: &PublishError) -> bool {
    // An answer of the stream's.
    let answered = error.kind() == PublishErrorKind::Other
        && std::error::Error::source(error).is_some_and(|cause| cause.is::<jetstream::Error>());
    answered || error.kind() == PublishErrorKind::MaxPayloadExceeded
}

pub(crate) fn not_taken(error: PublishError) -> anyhow::Error {
    let advice = if is_refused(&error) {
        "the broker does not take the command; nothing was stored"
    } else {
        "the broker did not confirm the command; send it again with the same id"
    };
    anyhow::Error::new(error).context(advice)
}

/// What came of the command that has this sequence in the queue: an earlier one of its id may have another
/// outcome.
async fn wait(
    client: &async_nats::Client,
    outgoing: &Outgoing,
    sequence: u64,
    longest: Duration,
) -> anyhow::Result<Outcome> {
    let owners = Owners::attach(COMMANDS, client).await?;
    let (slot, started) = (outgoing.key.slot().number(), Instant::now());
    loop {
        let question = |epoch, _| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, outgoing.id.as_str());
            headers.insert(QUEUE_SEQUENCE, sequence.to_string());
            (Command::outcome_subject(epoch, &outgoing.key), headers)
        };
        let asked = owners.ask(slot, ASK_MAX, bytes::Bytes::new(), question).await;
        let outcome = match asked {
            Ok(reply) => {
                serde_json::from_slice(&reply.message.payload).context("the worker's answer")?
            }
            // No worker owns the slot at the moment: one will.
            Err(error) => Outcome::Unavailable { message: error.to_string() },
        };
        let known = !matches!(outcome, Outcome::Pending | Outcome::Unavailable { .. });
        if known || started.elapsed() >= longest {
            return Ok(outcome);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Prints an outcome. Returns whether the command was accepted.
fn show(
    outcome: &Outcome,
    id: &CommandId,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let accepted = matches!(outcome, Outcome::Accepted { .. });
    if json {
        let mut answer = serde_json::to_value(outcome)?;
        answer["command_id"] = id.as_str().into();
        out::json(out, &answer)?;
        return Ok(accepted);
    }
    match outcome {
        Outcome::Accepted { version, position, replayed } => {
            let before = if *replayed { " (before: nothing was done twice)" } else { "" };
            let at = position.map_or_else(String::new, |p| format!(", position {p}"));
            writeln!(out, "accepted{before}: version {version}{at}")?;
        }
        Outcome::Rejected { code, message } => writeln!(out, "rejected, {code}: {message}")?,
        Outcome::InvalidPayload { violations } => {
            writeln!(out, "the payload does not match its schema:")?;
            for violation in violations {
                writeln!(out, "  {} {}", violation.field, violation.reason)?;
            }
        }
        Outcome::UnknownAggregate { known } => {
            writeln!(out, "unknown aggregate; deployed are: {}", known.join(", "))?;
        }
        Outcome::UnknownCommand { known } => {
            writeln!(out, "unknown command; there are: {}", known.join(", "))?;
        }
        Outcome::Pending => writeln!(out, "stored as {id}, and not processed yet")?,
        Outcome::Unavailable { message } => {
            writeln!(out, "stored as {id}, but no worker tells its outcome ({message})")?;
        }
        Outcome::Unknown => writeln!(out, "no outcome of {id} is kept; it has recorded nothing")?,
        Outcome::Dead { reason } => {
            writeln!(out, "put aside: {reason}\n`flexcore dead list` shows it")?;
        }
        other => writeln!(out, "{}", serde_json::to_string(other)?)?,
    }
    Ok(accepted)
}

async fn over_http(
    config: &Config,
    outgoing: &Outgoing,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let (key, name) = (&outgoing.key, &outgoing.name);
    let path = format!("/v1/commands/{}/{}/{name}", key.aggregate(), key.id());
    let call = gateways::Call {
        method: Method::POST,
        path: &path,
        token: &token::for_request(config)?,
        headers: &[("idempotency-key", outgoing.id.as_str())],
        body: Some(outgoing.payload.get().to_owned()),
    };
    let told = || format!("sending the command {}", outgoing.id);
    let answer = gateways::call(config.http()?, call).await.with_context(told)?;
    let accepted = answer.status.is_success();
    if json {
        out.write_all(&answer.body)?;
        writeln!(out)?;
    } else {
        let body = answer.success().with_context(told)?;
        writeln!(out, "accepted: version {}, position {}", body["version"], body["position"])?;
    }
    Ok(accepted)
}
