//! `flexcore publish --lines`: a file of commands, one a line, stored in order.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write},
    path::Path,
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use async_nats::jetstream::{
    self,
    context::{PublishAckFuture, PublishError},
    publish::PublishAck,
};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, CommandName,
    Tenant,
};
use futures::future::join_all;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{
    config::Config,
    out,
    publish::{LINE_BYTES_MAX, Outgoing, Publish, is_refused, not_taken, publish, random_id},
};

/// Commands that are published and not acknowledged yet: enough to keep the broker busy while it
/// syncs.
const IN_FLIGHT_MAX: usize = 1_024;

/// Longest name of a run, in characters: an id has 128, and a line's number and hash are in it, too.
const RUN_CHARS_MAX: usize = 100;

pub(crate) async fn run(
    config: &Config,
    path: &Path,
    args: &Publish,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let (tenant, run) = (config.tenant()?, args.run.clone().unwrap_or_else(random_id));
    let is_short = run.as_str().len() <= RUN_CHARS_MAX;
    ensure!(is_short, "the name of the run has more than {RUN_CHARS_MAX} characters");
    let jetstream = jetstream::new(config.connect().await?);
    let (input, length): (Box<dyn BufRead>, u64) = if path == Path::new("-") {
        (Box::new(BufReader::new(io::stdin())), 0)
    } else {
        let file = File::open(path).with_context(|| format!("reading {}", path.display()))?;
        let length = file.metadata()?.len();
        (Box::new(BufReader::new(file)), length)
    };
    let bar = out::progress(length, "publish");
    let started = Instant::now();
    let mut is_told = args.run.is_some();
    let read = |bytes, has_unnamed: bool| {
        bar.inc(bytes);
        // Before the first is sent: who ends this hears no error that says it.
        if has_unnamed && !is_told {
            is_told = true;
            let what = "lines have no command_id; to do nothing twice publish all again with";
            bar.suspend(|| out::note(&format!("{what} --run {run}")));
        }
    };
    let mut lines = Lines::new(input, &tenant, &run);
    let stored = publish_all(&jetstream, &mut lines, &args.actor, read).await;
    bar.finish_and_clear();
    let (stored, seconds) = (stored?, started.elapsed().as_secs_f64());
    if args.json {
        out::json(out, &json!({"published": stored, "seconds": seconds}))?;
    } else {
        let rate = stored as f64 / seconds.max(f64::EPSILON);
        writeln!(out, "{stored} commands stored in {seconds:.1} s ({rate:.0}/s)")?;
    }
    Ok(true)
}

/// Publishes every line, up to the first that is no command or was not stored. Returns how many are
/// stored, once the broker has said so of each; fails with the line that stopped it, and says how many
/// are. `read` is told the bytes of each line, and whether some line so far has no id.
async fn publish_all(
    jetstream: &jetstream::Context,
    lines: &mut Lines<'_, impl BufRead>,
    actor: &ActorName,
    mut read: impl FnMut(u64, bool),
) -> anyhow::Result<u64> {
    let mut sent = Sent::default();
    let stopped = loop {
        let next = lines.next();
        read(lines.text.len() as u64, lines.has_unnamed);
        let published = match next {
            Ok(Next::Command(outgoing)) => publish(jetstream, &outgoing, actor).await,
            Ok(Next::Blank) => continue,
            Ok(Next::End) => break None,
            Err(error) => Err(error),
        };
        match published {
            Ok(answer) => sent.under_way.push_back((lines.number, answer)),
            Err(error) => break Some((lines.number, error)),
        }
        if !sent.have_room().await {
            break None;
        }
    };
    sent.settle_all().await;
    sent.result(stopped, lines.has_unnamed.then_some(lines.run))
}

/// The lines that were published, and the broker's answers, which come in the order of the lines.
#[derive(Default)]
struct Sent {
    /// With their numbers.
    under_way: VecDeque<(u64, PublishAckFuture)>,
    stored: u64,
    /// The first that the broker has not confirmed, and why.
    unstored: Option<(u64, anyhow::Error)>,
    /// How many behind it are not confirmed either.
    others: u64,
    /// True if the broker did not answer for some: these may be stored.
    in_doubt: bool,
    /// How many behind it are, and the last one.
    behind: u64,
    last: u64,
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
        self.in_doubt |= answer.as_ref().is_err_and(|error| !is_refused(error));
        match answer {
            Ok(_) if self.unstored.is_none() => self.stored += 1,
            Ok(_) => (self.behind, self.last) = (self.behind + 1, number),
            Err(error) if self.unstored.is_none() => {
                self.unstored = Some((number, not_taken(error)));
            }
            Err(_) => self.others += 1,
        }
    }

    /// How many are stored, when all are and no line stopped the reading. `run` names the ids of lines that
    /// have none.
    fn result(
        self,
        stopped: Option<(u64, anyhow::Error)>,
        run: Option<&CommandId>,
    ) -> anyhow::Result<u64> {
        let Self { stored, unstored, others, in_doubt, behind, last, .. } = self;
        let stopped_at =
            |number: u64| format!("line {number} is not published, nor is any behind it");
        let before = format!("the {stored} commands before it are stored");
        let again =
            |run: &CommandId| format!("; to do nothing twice publish all lines with --run {run}");
        let again = run.map(again).unwrap_or_default();
        match (unstored, stopped) {
            (None, None) => Ok(stored),
            (None, Some((number, error))) => {
                Err(error.context(format!("{}; {before}{again}", stopped_at(number))))
            }
            (Some((first, error)), stopped) => {
                let what = if in_doubt { "confirmed" } else { "stored" };
                let mut said = format!("line {first} is not {what}");
                if others > 0 {
                    said += &format!(", nor are {others} behind it");
                }
                said += &format!("; {before}");
                if behind > 0 {
                    said += &format!(", and {behind} behind it, the last one in line {last}");
                }
                said += &again;
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

/// A file of commands, which is read line by line.
struct Lines<'a, R> {
    input: R,
    tenant: &'a Tenant,
    /// Names the ids of lines that have none: a line that is published again under this name, and has the
    /// same number, has the same one. At most [`RUN_CHARS_MAX`] characters.
    run: &'a CommandId,
    /// True if such a line was read.
    has_unnamed: bool,
    text: Vec<u8>,
    /// Of the last line that was read.
    number: u64,
}

impl<'a, R: BufRead> Lines<'a, R> {
    fn new(input: R, tenant: &'a Tenant, run: &'a CommandId) -> Self {
        Self { input, tenant, run, has_unnamed: false, text: Vec::new(), number: 0 }
    }

    /// Reads the next line. Fails when it is no command, or longer than one can be.
    fn next(&mut self) -> anyhow::Result<Next> {
        self.text.clear();
        self.number += 1;
        self.input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.text)?;
        if self.text.is_empty() {
            return Ok(Next::End);
        }
        if self.text.len() as u64 > LINE_BYTES_MAX {
            bail!("it is longer than {LINE_BYTES_MAX} bytes");
        }
        let text = std::str::from_utf8(&self.text).context("it is not UTF-8")?;
        if text.trim().is_empty() {
            return Ok(Next::Blank);
        }
        let line: Line = serde_json::from_str(text).context("it is no command")?;
        let id = match line.command_id {
            Some(id) => id,
            None => {
                self.has_unnamed = true;
                // The line is in it: one of another file, or one that was corrected, is another command.
                let hash = CommandHash::of("line", text.trim()).to_string();
                let made = CommandId::parse(&format!("{}-{}-{hash:.8}", self.run, self.number));
                made.expect("BUG: the name of a run leaves room for both")
            }
        };
        Ok(Next::Command(Outgoing {
            key: AggregateKey::new(self.tenant.clone(), line.aggregate, line.id),
            name: line.command,
            id,
            payload: line.payload,
        }))
    }
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

#[cfg(test)]
mod tests {
    use async_nats::jetstream::context::PublishErrorKind;

    use super::*;

    const GOOD: &str = r#"{"aggregate":"flight","id":"UA1","command":"depart","payload":{"a":1}}"#;

    /// The commands of a text, in a run of this name.
    fn read(text: &[u8], run: &str) -> anyhow::Result<Vec<Outgoing>> {
        let (tenant, run) = (Tenant::parse("demo").unwrap(), CommandId::parse(run).unwrap());
        let (mut lines, mut all) = (Lines::new(text, &tenant, &run), Vec::new());
        loop {
            match lines.next()? {
                Next::Command(outgoing) => all.push(outgoing),
                Next::Blank => {}
                Next::End => return Ok(all),
            }
        }
    }

    fn ids(text: &str, run: &str) -> Vec<String> {
        let all = read(text.as_bytes(), run).unwrap();
        all.iter().map(|outgoing| outgoing.id.to_string()).collect()
    }

    #[test]
    fn a_line_is_checked_before_it_is_published() {
        let outgoing = read(GOOD.as_bytes(), "r").unwrap().remove(0);
        assert_eq!(outgoing.key.to_string(), "demo/flight/UA1");
        assert_eq!(outgoing.payload.get(), r#"{"a":1}"#);
        for bad in [
            r#"{"aggregate":"flight","id":"a.b","command":"depart","payload":{}}"#,
            r#"{"aggregate":"flight","id":"a","command":"depart"}"#,
            r#"{"aggregate":"flight","id":"a","command":"depart","payload":{},"more":1}"#,
            "not JSON",
        ] {
            assert!(read(bad.as_bytes(), "r").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_without_an_id_has_the_same_one_in_each_run_of_a_name() {
        let named = GOOD.replace("}}", r#"},"command_id":"own"}"#);
        let text = format!("{GOOD}\n\n{named}\n{GOOD}\n");
        assert_eq!(ids(&text, "r"), ["r-1-c5b2fc86", "own", "r-4-c5b2fc86"]);
        assert_eq!(ids(&text, "s"), ["s-1-c5b2fc86", "own", "s-4-c5b2fc86"]);
        assert_eq!(ids(&text.replace('\n', " \r\n"), "r"), ids(&text, "r"), "the same lines");
    }

    /// It was taken for the line of that number in the file before, and nothing was done.
    #[test]
    fn another_line_is_another_command_in_a_run_of_the_same_name() {
        let text = format!("{GOOD}\n{GOOD}\n");
        let other = text.replacen(r#""a":1"#, r#""a":2"#, 1);
        assert_eq!(ids(&other, "r"), ["r-1-9c95bd20", "r-2-c5b2fc86"]);
        assert_eq!(ids(&text, "r"), ["r-1-c5b2fc86", "r-2-c5b2fc86"]);
    }

    /// All were called "not stored" while the broker was away, and some were stored.
    #[test]
    fn what_the_broker_did_not_answer_is_not_confirmed_and_what_it_refused_is_not_stored() {
        let refused = || {
            let said = r#"{"code":400,"err_code":10054,"description":"message size exceeds"}"#;
            let said: jetstream::Error = serde_json::from_str(said).unwrap();
            PublishError::with_source(PublishErrorKind::Other, said)
        };
        let unanswered = || PublishError::new(PublishErrorKind::TimedOut);
        let said = |answers: [PublishError; 2]| {
            let mut sent = Sent::default();
            for (number, error) in (1..).zip(answers) {
                sent.settle(number, Err(error));
            }
            sent.result(None, None).unwrap_err().to_string()
        };
        let stored = said([refused(), refused()]);
        assert!(stored.starts_with("line 1 is not stored, nor are 1 behind it"), "{stored}");
        for answers in [[unanswered(), unanswered()], [refused(), unanswered()]] {
            let told = said(answers);
            assert!(told.starts_with("line 1 is not confirmed, nor are 1 behind it"), "{told}");
        }
    }

    #[test]
    fn a_line_is_as_long_as_a_command_can_be_and_no_longer() {
        let most = usize::try_from(LINE_BYTES_MAX).unwrap();
        for (bytes, is_taken) in [(most - 1, true), (most, true), (most + 1, false)] {
            let line = GOOD.to_owned() + &" ".repeat(bytes - GOOD.len());
            assert_eq!(read(line.as_bytes(), "r").is_ok(), is_taken, "{bytes}");
        }
        assert!(read(b"\xff\n", "r").is_err());
    }
}
