//! `flexcore dead`: what could not be processed, to look at and to requeue.

use std::io::Write;

use anyhow::{Context, bail};
use async_nats::{
    HeaderMap,
    jetstream::{
        message::StreamMessage,
        stream::{DirectGetErrorKind, RawMessageErrorKind, Stream},
    },
};
use flexcore_domain::command::header;
use flexcore_eventstore::{EventStore, topology};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::{cli::Dead, config::Config, out};

/// Most of a body that a list shows, in characters.
const PREVIEW_CHARS_MAX: usize = 60;

pub(crate) async fn run(
    config: &Config,
    command: Dead,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let store = config.event_store().await?;
    let stream = store.jetstream().get_stream_no_info(topology::DEAD).await?;
    match command {
        Dead::List { kind, after, limit, json } => {
            let of_kind = |dead: &StreamMessage| {
                kind.as_ref()
                    .is_none_or(|kind| dead.subject.split('.').nth(1) == Some(kind.as_str()))
            };
            list(&stream, of_kind, after, limit, json, out).await
        }
        Dead::Show { number, json } => show(&get(&stream, number).await?, json, out),
        Dead::Requeue { numbers, json } => {
            for number in numbers {
                requeue(&store, &stream, &get(&stream, number).await?).await?;
                if json {
                    out::json(out, &json!({"number": number, "requeued": true}))?;
                } else {
                    writeln!(out, "{number} requeued")?;
                }
            }
            Ok(true)
        }
    }
}

async fn list(
    stream: &Stream<()>,
    wanted: impl Fn(&StreamMessage) -> bool,
    after: u64,
    limit: usize,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let mut table = out::table(["number", "since", "kind", "subject", "reason", "body"]);
    let mut next = after + 1;
    let mut listed = 0;
    while listed < limit {
        let dead = match stream.direct_get_next_for_subject("dead.>", Some(next)).await {
            Ok(dead) => dead,
            Err(error) if error.kind() == DirectGetErrorKind::NotFound => break,
            Err(error) => return Err(error).context("reading FLEX_DEAD"),
        };
        next = dead.sequence + 1;
        if !wanted(&dead) {
            continue;
        }
        listed += 1;
        if json {
            out::json(out, &as_json(&dead))?;
        } else {
            table.add_row(row(&dead));
        }
    }
    match (json, listed) {
        (true, _) => {}
        (false, 0) => writeln!(out, "no dead messages")?,
        (false, _) => writeln!(out, "{table}")?,
    }
    if listed == limit && !json {
        writeln!(out, "more may follow: flexcore dead list --after {}", next - 1)?;
    }
    Ok(true)
}

fn show(dead: &StreamMessage, json: bool, out: &mut dyn Write) -> anyhow::Result<bool> {
    if json {
        out::json(out, &as_json(dead))?;
        return Ok(true);
    }
    writeln!(out, "number   {}\nsince    {}\nkind     {}", dead.sequence, since(dead), kind(dead))?;
    writeln!(out, "subject  {}", header(dead, header::DEAD_SUBJECT))?;
    writeln!(out, "reason   {}\n", header(dead, header::DEAD_REASON))?;
    let own = dead.headers.iter().filter(|(name, _)| !is_brokers(name.as_ref()));
    for (name, values) in own {
        let values: Vec<_> = values.iter().map(|value| printable(value.as_str())).collect();
        writeln!(out, "{name}: {}", values.join(", "))?;
    }
    writeln!(out, "\n{}", printable(&String::from_utf8_lossy(&dead.payload)))?;
    Ok(true)
}

/// Publishes a dead command to its first subject and takes it off the list. Its number makes the
/// message id, so that a crash between the two does not send it twice within the broker's window;
/// after that, the command id that travels with it does.
async fn requeue(
    store: &EventStore,
    stream: &Stream<()>,
    dead: &StreamMessage,
) -> anyhow::Result<()> {
    let number = dead.sequence;
    let subject = queue_subject(&header(dead, header::DEAD_SUBJECT)).with_context(|| {
        format!(
            "{number} is no command: an event that a read model could not apply is still in the \
             log; correct the application, then `flexcore rebuild` the read model"
        )
    })?;
    whole(dead)?;
    let mut headers = HeaderMap::new();
    for (name, values) in dead.headers.iter() {
        let name: &str = name.as_ref();
        let ours = [header::DEAD_REASON, header::DEAD_SUBJECT].contains(&name);
        if let (false, false, Some(value)) = (ours, is_brokers(name), values.last()) {
            headers.insert(name, value.as_str());
        }
    }
    let id = header(dead, header::OWN_COMMAND_ID);
    headers.insert(header::COMMAND_ID, format!("{id}:requeue:{number}"));
    let sent = store.jetstream().publish_with_headers(subject, headers, dead.payload.clone());
    sent.await?.await.context("the command was not requeued; try again")?;
    let deleted = stream.delete_message(number).await;
    if !deleted
        .context("requeued, but still on the list; requeue it again, nothing is done twice")?
    {
        bail!("{number} was taken off the list meanwhile, by somebody else");
    }
    Ok(())
}

/// Fails when not all of the message was kept: a part of it is another command.
fn whole(dead: &StreamMessage) -> anyhow::Result<()> {
    let (number, bytes) = (dead.sequence, header(dead, header::DEAD_BODY_BYTES));
    if !bytes.is_empty() {
        bail!(
            "{number} cannot be requeued: its body had {bytes} bytes, too many to be kept; send the \
             command again from where it came, in parts"
        );
    }
    let left_out = header(dead, header::DEAD_HEADERS_LEFT_OUT);
    if !left_out.is_empty() {
        bail!(
            "{number} cannot be requeued: {left_out} of its headers had no room; send the command \
             again from where it came, with fewer"
        );
    }
    Ok(())
}

/// The subject to publish to, of a command's subject before or after the stream's transform.
fn queue_subject(subject: &str) -> Option<String> {
    if let Some(rest) = subject.strip_prefix("cmdq.") {
        return rest.split_once('.').map(|(_slot, rest)| format!("cmd.{rest}"));
    }
    subject.starts_with("cmd.").then(|| subject.to_owned())
}

async fn get(stream: &Stream<()>, number: u64) -> anyhow::Result<StreamMessage> {
    // The leader is asked: another replica may lack the last ones, and have what was requeued.
    match stream.get_raw_message(number).await {
        Ok(dead) => Ok(dead),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
            bail!("no dead message {number}: `flexcore dead list` shows those that there are")
        }
        Err(error) => Err(error).context("reading FLEX_DEAD"),
    }
}

fn header(dead: &StreamMessage, name: &str) -> String {
    dead.headers.get_last(name).map(|value| printable(value.as_str())).unwrap_or_default()
}

/// Headers that the broker adds to what it hands out.
fn is_brokers(name: &str) -> bool {
    name.starts_with("Nats-")
}

/// When it was put aside, RFC 3339, to the second.
fn since(dead: &StreamMessage) -> String {
    let time = dead.time.replace_nanosecond(0).unwrap_or(dead.time);
    time.format(&Rfc3339).unwrap_or_default()
}

/// What it is: `command`, or `projection.<read model>.<slot>`. Its subject has the tenant and the size
/// behind the first word.
fn kind(dead: &StreamMessage) -> String {
    let parts: Vec<&str> = dead.subject.split('.').skip(1).collect();
    match parts[..] {
        [kind, _tenant, size, ref rest @ ..] if size.starts_with('k') => {
            [&[kind], rest].concat().join(".")
        }
        _ => parts.join("."),
    }
}

fn row(dead: &StreamMessage) -> [String; 6] {
    let body = printable(&String::from_utf8_lossy(&dead.payload));
    let mut preview: String = body.chars().take(PREVIEW_CHARS_MAX).collect();
    if preview.len() < body.len() {
        preview.push('…');
    }
    [
        dead.sequence.to_string(),
        since(dead),
        kind(dead),
        header(dead, header::DEAD_SUBJECT),
        header(dead, header::DEAD_REASON),
        preview,
    ]
}

fn as_json(dead: &StreamMessage) -> Value {
    let headers: serde_json::Map<String, Value> = dead
        .headers
        .iter()
        .filter(|(name, _)| !is_brokers(name.as_ref()))
        .filter_map(|(name, values)| Some((name.to_string(), values.last()?.as_str().into())))
        .collect();
    let text = String::from_utf8_lossy(&dead.payload);
    json!({
        "number": dead.sequence,
        "time": since(dead),
        "kind": kind(dead),
        "subject": header(dead, header::DEAD_SUBJECT),
        "reason": header(dead, header::DEAD_REASON),
        "headers": headers,
        "body": serde_json::from_str(&text).unwrap_or(Value::String(text.into_owned())),
    })
}

/// What a stranger wrote must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_commands_have_a_subject_to_requeue_to() {
        let queued = queue_subject("cmdq.12.demo.flight.UA1.depart");
        assert_eq!(queued.as_deref(), Some("cmd.demo.flight.UA1.depart"));
        let published = queue_subject("cmd.demo.flight.UA1.depart");
        assert_eq!(published.as_deref(), Some("cmd.demo.flight.UA1.depart"));
        assert_eq!(queue_subject("evt.12.demo.flight.UA1"), None);
        assert_eq!(queue_subject("cmdq.12"), None);
    }
}
