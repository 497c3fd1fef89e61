//! `flexcore dead`: what could not be processed, to look at and to requeue.

use std::io::Write;

use flexcore_operations::dead::{Letter, Letters, printable};
use serde_json::json;

use crate::{config::Config, out};

/// Look at what could not be processed, and requeue it
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  flexcore dead list
  flexcore dead show 17
  flexcore dead requeue 17 18")]
pub(crate) enum Dead {
    /// List dead messages, oldest first
    List {
        /// Only this kind: command, projection
        #[arg(long)]
        kind: Option<flexcore_domain::Name>,
        /// Only those after this number
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: u64,
        /// Most lines
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one whole
    Show {
        /// Its number in the list
        number: u64,
        /// In JSON
        #[arg(long)]
        json: bool,
    },
    /// Send commands again, under their own ids, and take them off the list
    Requeue {
        /// Their numbers in the list
        #[arg(required = true)]
        numbers: Vec<u64>,
        /// In JSON, one object a line
        #[arg(long)]
        json: bool,
    },
}

/// Most of a body that a list shows, in characters.
const PREVIEW_CHARS_MAX: usize = 60;

pub(crate) async fn run(
    config: &Config,
    command: Dead,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let letters = Letters::of(config.event_store().await?).await;
    match command {
        Dead::List { kind, after, limit, json } => {
            let of_kind =
                |dead: &Letter| kind.as_ref().is_none_or(|kind| dead.is_of(kind.as_str()));
            list(&letters, of_kind, after, limit, json, out).await
        }
        Dead::Show { number, json } => show(&letters.get(number).await?, json, out),
        Dead::Requeue { numbers, json } => {
            for number in numbers {
                letters.requeue(number).await?;
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
    letters: &Letters,
    wanted: impl Fn(&Letter) -> bool,
    mut after: u64,
    limit: usize,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let mut table = out::table(["number", "since", "kind", "subject", "reason", "body"]);
    let mut listed = 0;
    while listed < limit {
        let Some(dead) = letters.after(after).await? else { break };
        after = dead.number();
        if !wanted(&dead) {
            continue;
        }
        listed += 1;
        if json {
            out::json(out, &dead.as_json())?;
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
        writeln!(out, "more may follow: flexcore dead list --after {after}")?;
    }
    Ok(true)
}

fn show(dead: &Letter, json: bool, out: &mut dyn Write) -> anyhow::Result<bool> {
    if json {
        out::json(out, &dead.as_json())?;
        return Ok(true);
    }
    let (number, since, kind) = (dead.number(), dead.since(), dead.kind());
    writeln!(out, "number   {number}\nsince    {since}\nkind     {kind}")?;
    writeln!(out, "subject  {}\nreason   {}\n", dead.subject(), dead.reason())?;
    for (name, values) in dead.headers() {
        let values: Vec<_> = values.iter().map(|value| printable(value.as_str())).collect();
        writeln!(out, "{name}: {}", values.join(", "))?;
    }
    writeln!(out, "\n{}", dead.body())?;
    Ok(true)
}

fn row(dead: &Letter) -> [String; 6] {
    let body = dead.body();
    let mut preview: String = body.chars().take(PREVIEW_CHARS_MAX).collect();
    if preview.len() < body.len() {
        preview.push('…');
    }
    let number = dead.number().to_string();
    [number, dead.since(), dead.kind(), dead.subject(), dead.reason(), preview]
}
