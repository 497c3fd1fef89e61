//! `flexcore publish --lines`: a file of commands, one a line, stored in order.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write},
    path::Path,
    time::Instant,
};

use anyhow::{Context, bail};
use async_nats::jetstream::{
    self,
    context::{PublishAckFuture, PublishError},
    publish::PublishAck,
};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandId, CommandName, Tenant,
};
use futures::future::join_all;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{
    config::Config,
    out,
    publish::{LINE_BYTES_MAX, Outgoing, not_taken, publish, random_id},
};

/// Commands that are published and not acknowledged yet: enough to keep the broker busy while it
/// syncs.
const IN_FLIGHT_MAX: usize = 1_024;

pub(crate) async fn run(
    config: &Config,
    path: &Path,
    actor: &ActorName,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let tenant = config.tenant()?;
    let jetstream = jetstream::new(config.connect().await?);
    let (mut input, length): (Box<dyn BufRead>, u64) = if path == Path::new("-") {
        (Box::new(BufReader::new(io::stdin())), 0)
    } else {
        let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
        let length = file.metadata()?.len();
        (Box::new(BufReader::new(file)), length)
    };
    let bar = out::progress(length, "publish");
    let started = Instant::now();
    let read = |bytes| bar.inc(bytes);
    let stored = publish_all(&jetstream, &mut input, &tenant, actor, read).await;
    bar.finish_and_clear();
    let (stored, seconds) = (stored?, started.elapsed().as_secs_f64());
    if json {
        out::json(out, &json!({"published": stored, "seconds": seconds}))?;
    } else {
        let rate = stored as f64 / seconds.max(f64::EPSILON);
        writeln!(out, "{stored} commands stored in {seconds:.1} s ({rate:.0}/s)")?;
    }
    Ok(true)
}

/// Publishes every line, up to the first that is no command or was not stored. Returns how many are
/// stored, once the broker has said so of each; fails with the line that stopped it, and says how many
/// are. `read` is told the bytes of each line.
async fn publish_all(
    jetstream: &jetstream::Context,
    input: &mut impl BufRead,
    tenant: &Tenant,
    actor: &ActorName,
    read: impl Fn(u64),
) -> anyhow::Result<u64> {
    let (mut text, mut number, mut sent) = (Vec::new(), 0, Sent::default());
    let stopped = loop {
        number += 1;
        let next = next(input, &mut text, tenant);
        read(text.len() as u64);
        let published = match next {
            Ok(Next::Command(outgoing)) => publish(jetstream, &outgoing, actor).await,
            Ok(Next::Blank) => continue,
            Ok(Next::End) => break None,
            Err(error) => Err(error),
        };
        match published {
            Ok(answer) => sent.under_way.push_back((number, answer)),
            Err(error) => break Some((number, error)),
        }
        if !sent.have_room().await {
            break None;
        }
    };
    sent.settle_all().await;
    sent.result(stopped)
}

/// The lines that were published, and the broker's answers.
#[derive(Default)]
struct Sent {
    /// With their numbers.
    under_way: VecDeque<(u64, PublishAckFuture)>,
    stored: u64,
    /// The first that is not stored, and why.
    unstored: Option<(u64, anyhow::Error)>,
    /// How many more are not.
    others: u64,
}

impl Sent {
    /// Waits until one more may be under way. Returns false when one was not stored.
    async fn have_room(&mut self) -> bool {
        if self.under_way.len() >= IN_FLIGHT_MAX
            && let Some((number, answer)) = self.under_way.pop_front()
        {
            let answer = answer.await;
            self.settle(number, answer);
        }
        self.unstored.is_none()
    }

    /// Waits for all at once: while the broker is away each takes the whole time that it has.
    async fn settle_all(&mut self) {
        let under_way = std::mem::take(&mut self.under_way).into_iter();
        let answers = under_way.map(async |(number, answer)| (number, answer.await));
        for (number, answer) in join_all(answers).await {
            self.settle(number, answer);
        }
    }

    fn settle(&mut self, number: u64, answer: Result<PublishAck, PublishError>) {
        match answer {
            Ok(_) => self.stored += 1,
            Err(error) if self.unstored.is_none() => {
                self.unstored = Some((number, not_taken(error)));
            }
            Err(_) => self.others += 1,
        }
    }

    /// How many are stored, when all are and no line stopped the reading.
    fn result(self, stopped: Option<(u64, anyhow::Error)>) -> anyhow::Result<u64> {
        let Self { stored, unstored, others, .. } = self;
        let stopped_at =
            |number: u64| format!("line {number} is not published, nor is any behind it");
        match (unstored, stopped) {
            (None, None) => Ok(stored),
            (None, Some((number, error))) => {
                let before = format!("the {stored} commands before it are stored");
                Err(error.context(format!("{}; {before}", stopped_at(number))))
            }
            (Some((first, error)), stopped) => {
                let mut said = format!("line {first} is not stored");
                if others > 0 {
                    said += &format!(", nor are {others} behind it");
                }
                said += &format!("; {stored} commands are stored");
                if let Some((number, error)) = stopped {
                    said += &format!("; {}: {error:#}", stopped_at(number));
                }
                Err(error.context(said))
            }
        }
    }
}

/// The content of a line.
enum Next {
    Command(Outgoing),
    Blank,
    End,
}

/// Reads the next line. Fails when it is no command, or longer than one can be.
fn next(input: &mut impl BufRead, text: &mut Vec<u8>, tenant: &Tenant) -> anyhow::Result<Next> {
    text.clear();
    input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', text)?;
    if text.is_empty() {
        return Ok(Next::End);
    }
    if text.len() as u64 > LINE_BYTES_MAX {
        bail!("it is longer than {LINE_BYTES_MAX} bytes");
    }
    let text = std::str::from_utf8(text).context("it is not UTF-8")?;
    if text.trim().is_empty() {
        return Ok(Next::Blank);
    }
    Ok(Next::Command(parse(text, tenant).context("it is no command")?))
}

/// A line of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    aggregate: AggregateName,
    id: AggregateId,
    command: CommandName,
    payload: Box<RawValue>,
    command_id: Option<CommandId>,
}

fn parse(text: &str, tenant: &Tenant) -> anyhow::Result<Outgoing> {
    let line: Line = serde_json::from_str(text)?;
    Ok(Outgoing {
        key: AggregateKey::new(tenant.clone(), line.aggregate, line.id),
        name: line.command,
        id: line.command_id.unwrap_or_else(random_id),
        payload: line.payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_checked_before_it_is_published() {
        let tenant = Tenant::parse("demo").unwrap();
        let good = r#"{"aggregate":"flight","id":"UA1","command":"depart","payload":{"a":1}}"#;
        let outgoing = parse(good, &tenant).unwrap();
        assert_eq!(outgoing.key.to_string(), "demo/flight/UA1");
        assert_eq!(outgoing.payload.get(), r#"{"a":1}"#);
        for bad in [
            r#"{"aggregate":"flight","id":"a.b","command":"depart","payload":{}}"#,
            r#"{"aggregate":"flight","id":"a","command":"depart"}"#,
            r#"{"aggregate":"flight","id":"a","command":"depart","payload":{},"more":1}"#,
            "not JSON",
        ] {
            assert!(parse(bad, &tenant).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_is_as_long_as_a_command_can_be_and_no_longer() {
        let tenant = Tenant::parse("demo").unwrap();
        let good = r#"{"aggregate":"flight","id":"UA1","command":"depart","payload":{}}"#;
        let most = usize::try_from(LINE_BYTES_MAX).unwrap();
        for (bytes, is_taken) in [(most - 1, true), (most, true), (most + 1, false)] {
            let line = good.to_owned() + &" ".repeat(bytes - good.len());
            let read = next(&mut line.as_bytes(), &mut Vec::new(), &tenant);
            assert_eq!(read.is_ok(), is_taken, "{bytes}");
        }
        assert!(next(&mut &b"\xff\n"[..], &mut Vec::new(), &tenant).is_err());
    }
}
